//! Gradients of layer norm and RMS norm in f64, row by row; the gradients of the parameters add up over the rows.

use super::RowNormBackward;
use crate::normalization::row_norm::row_length;
use bimetal_core::op::{Expected, Values};

pub(super) fn row_norm_backward(op: &RowNormBackward, inputs: &[Values]) -> Vec<Expected> {
    let (grad, x, weight) = (&inputs[0].data, &inputs[1].data, inputs.get(2));
    let n = row_length(&inputs[1].spec.shape, weight.map(|w| &w.spec.shape));
    let count = n as f64;
    let zeros = || Expected::sums(vec![0.0; n], vec![0.0; n]);
    let (mut dx, mut dweight, mut dbias) = (Expected::default(), zeros(), zeros());
    for (g, x) in grad.chunks_exact(n.max(1)).zip(x.chunks_exact(n.max(1))) {
        let mean = if op.kind.centers() { x.iter().sum::<f64>() / count } else { 0.0 };
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
        // What remains of the mean's rounding after its correction, and the deviations that the correction sums.
        let magnitude = x.iter().map(|v| v.abs()).sum::<f64>() / count;
        let spread = x.iter().map(|v| (v - mean).abs()).sum::<f64>() / count;
        let of_mean = if op.kind.centers() { spread + magnitude / 65_536.0 } else { 0.0 };
        let unit = |i: usize| (x[i] - mean) * rstd;
        let unit_scale = |i: usize| ((x[i] - mean).abs() + of_mean) * rstd;
        let weighted = |i: usize| g[i] * weight.map_or(1.0, |w| w.data[i]);
        let average = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / count;
        let centers = f64::from(u8::from(op.kind.centers()));
        let first = centers * average(&weighted);
        let first_scale = centers * average(&|i| weighted(i).abs());
        let second = average(&|i| weighted(i) * unit(i));
        let second_scale = average(&|i| weighted(i).abs() * unit_scale(i));
        for i in 0..n {
            dx.data.push(rstd * (weighted(i) - first - unit(i) * second));
            dx.scale.push(rstd * (weighted(i).abs() + first_scale + unit_scale(i) * second_scale));
            dweight.data[i] += g[i] * unit(i);
            dweight.scale[i] += g[i].abs() * unit_scale(i);
            dbias.data[i] += g[i];
            dbias.scale[i] += g[i].abs();
        }
    }
    if op.kind.centers() { vec![dx, dweight, dbias] } else { vec![dx, dweight] }
}
