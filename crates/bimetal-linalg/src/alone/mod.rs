//! Decompositions of one matrix of f32 at a time on the CPU: a tridiagonal or bidiagonal matrix in one pass over what is left
//! for each column, its divide and conquer, and the way back by products.

mod back;
mod bidiagonal;
mod counts;
mod deflate;
mod divide;
pub(crate) mod eigen;
mod leaf;
mod merge;
mod mixture;
mod secular;
pub(crate) mod singular;
mod tridiagonal;
mod turned;
mod values;

use bimetal_core::cpu::simd::MAX_LANES;

/// Elements between the starts of rows of `n`: whole vectors, and not a power of two, whose rows would meet in few sets of the
/// cache.
fn line(n: usize) -> usize {
    let line = n.next_multiple_of(MAX_LANES);
    if line.is_multiple_of(8 * MAX_LANES) { line + MAX_LANES } else { line }
}
