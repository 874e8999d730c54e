//! Layer norm and RMS norm in f64, row by row: statistics first, then each element.

use super::{Arguments, RowNorm, row_length};
use bimetal_core::op::{Expected, Values};

pub(super) fn row_norm(op: &RowNorm, inputs: &[Values]) -> Vec<Expected> {
    let Arguments { x, residual, weight, bias } = op.arguments(inputs);
    let n = row_length(&x.spec.shape, weight.or(bias).map(|p| &p.spec.shape));
    let mut h = x.data.clone();
    if let Some(residual) = residual {
        for (h, r) in h.iter_mut().zip(&residual.data) {
            *h = x.spec.dtype.round(*h + r);
        }
    }
    let mut y = Expected::sums(Vec::with_capacity(h.len()), Vec::with_capacity(h.len()));
    for row in h.chunks_exact(n.max(1)) {
        let count = n as f64;
        let mean = if op.kind.centers() { row.iter().sum::<f64>() / count } else { 0.0 };
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
        // What remains of the mean's rounding after its correction, and the deviations that the correction sums.
        let magnitude = row.iter().map(|v| v.abs()).sum::<f64>() / count;
        let spread = row.iter().map(|v| (v - mean).abs()).sum::<f64>() / count;
        let of_mean = if op.kind.centers() { spread + magnitude / 65_536.0 } else { 0.0 };
        for (i, v) in row.iter().enumerate() {
            let weight = weight.map_or(1.0, |w| w.data[i]);
            let bias = bias.map_or(0.0, |b| b.data[i]);
            y.data.push((v - mean) * rstd * weight + bias);
            y.scale.push(((v - mean).abs() + of_mean) * rstd * weight.abs() + bias.abs());
        }
    }
    if residual.is_some() { vec![y, Expected::exact(h)] } else { vec![y] }
}
