//! Reductions of a tensor or of one axis: sums, moments and norms, extrema and their indices, histograms.

mod grid;
mod lines;
mod over;

bimetal_core::domain!("reduction": sums, extrema, histogram);
