//! Batch norm and its gradients in f64, channel by channel.

use super::{BatchNorm, Kind, Layout};
use bimetal_core::op::{Expected, Values};

pub(super) fn batch_norm(op: &BatchNorm, inputs: &[Values]) -> Vec<Expected> {
    let x = &inputs[op.x()];
    let layout = op.layout(&x.spec.shape);
    let Layout { channels, spatial, .. } = layout;
    let n = layout.count();
    let count = n as f64;
    let zeros = |n: usize| Expected::sums(vec![0.0; n], vec![0.0; n]);
    let mut outputs = vec![zeros(x.data.len()), zeros(channels), zeros(channels)];
    for c in 0..channels {
        let at = |i: usize| (i / spatial * channels + c) * spatial + i % spatial;
        let v = |i: usize| x.data[at(i)];
        let average = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / count;
        let weight = op.weight(inputs).map_or(1.0, |w| w.data[c]);
        let bias = op.bias(inputs).map_or(0.0, |b| b.data[c]);
        let given = op.kind == Kind::Inference;
        let mean = if given { inputs[1].data[c] } else { average(&v) };
        let variance = if given { inputs[2].data[c] } else { average(&|i| (v(i) - mean).powi(2)) };
        let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
        // What remains of the mean's rounding after its correction, and the deviations that the correction sums.
        let magnitude = average(&|i| v(i).abs());
        let of_mean = if given { mean.abs() } else { average(&|i| (v(i) - mean).abs()) + magnitude / 65_536.0 };
        let unit = |i: usize| (v(i) - mean) * rstd;
        let unit_scale = |i: usize| ((v(i) - mean).abs() + of_mean) * rstd;
        if op.kind == Kind::Backward {
            let g = |i: usize| inputs[0].data[at(i)];
            let (first, first_scale) = (average(&g), average(&|i| g(i).abs()));
            let second = average(&|i| g(i) * unit(i));
            let second_scale = average(&|i| g(i).abs() * unit_scale(i));
            for i in 0..n {
                outputs[0].data[at(i)] = rstd * weight * (g(i) - first - unit(i) * second);
                outputs[0].scale[at(i)] = rstd * weight.abs() * (g(i).abs() + first_scale + unit_scale(i) * second_scale);
            }
            (outputs[1].data[c], outputs[1].scale[c]) = (second * count, second_scale * count);
            (outputs[2].data[c], outputs[2].scale[c]) = (first * count, first_scale * count);
            continue;
        }
        for i in 0..n {
            outputs[0].data[at(i)] = unit(i) * weight + bias;
            outputs[0].scale[at(i)] = unit_scale(i) * weight.abs() + bias.abs();
        }
        if op.kind == Kind::Training {
            let momentum = f64::from(op.momentum);
            let old = [inputs[1].data[c], inputs[2].data[c]];
            let new = [mean, variance * count / (count - 1.0)];
            for (k, new_scale) in [magnitude, new[1]].into_iter().enumerate() {
                outputs[k + 1].data[c] = (1.0 - momentum) * old[k] + momentum * new[k];
                outputs[k + 1].scale[c] = (1.0 - momentum) * old[k].abs() + momentum * new_scale;
            }
        }
    }
    outputs.truncate(if op.kind == Kind::Inference { 1 } else { 3 });
    outputs
}
