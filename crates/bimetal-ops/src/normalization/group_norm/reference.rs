//! Group norm and its gradients in f64, group by group.

use super::{GroupNorm, Kind, Layout};
use bimetal_core::op::{Expected, Values};

pub(super) fn group_norm(op: &GroupNorm, inputs: &[Values]) -> Vec<Expected> {
    let x = &inputs[op.x()];
    let layout = op.layout(&x.spec.shape);
    let Layout { samples, channels, spatial, groups } = layout;
    let size = layout.group();
    let count = size as f64;
    let weight = |c: usize| op.weight(inputs).map_or(1.0, |w| w.data[c]);
    let bias = |c: usize| op.bias(inputs).map_or(0.0, |b| b.data[c]);
    let zeros = |n: usize| Expected::sums(vec![0.0; n], vec![0.0; n]);
    let (mut out, mut dweight, mut dbias) = (zeros(x.data.len()), zeros(channels), zeros(channels));
    if size == 0 {
        return if op.kind == Kind::Forward { vec![out] } else { vec![out, dweight, dbias] };
    }
    for row in 0..samples * groups {
        let v = &x.data[row * size..(row + 1) * size];
        let mean = v.iter().sum::<f64>() / count;
        let variance = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
        // What remains of the mean's rounding after its correction, and the deviations that the correction sums.
        let magnitude = v.iter().map(|v| v.abs()).sum::<f64>() / count;
        let spread = v.iter().map(|v| (v - mean).abs()).sum::<f64>() / count;
        let unit = |i: usize| (v[i] - mean) * rstd;
        let unit_scale = |i: usize| ((v[i] - mean).abs() + spread + magnitude / 65_536.0) * rstd;
        let channel = |i: usize| row % groups * layout.members() + i / spatial;
        if op.kind == Kind::Forward {
            for i in 0..size {
                let (w, b) = (weight(channel(i)), bias(channel(i)));
                out.data[row * size + i] = unit(i) * w + b;
                out.scale[row * size + i] = unit_scale(i) * w.abs() + b.abs();
            }
            continue;
        }
        let g = &inputs[0].data[row * size..(row + 1) * size];
        let weighted = |i: usize| g[i] * weight(channel(i));
        let average = |f: &dyn Fn(usize) -> f64| (0..size).map(f).sum::<f64>() / count;
        let (first, first_scale) = (average(&weighted), average(&|i| weighted(i).abs()));
        let second = average(&|i| weighted(i) * unit(i));
        let second_scale = average(&|i| weighted(i).abs() * unit_scale(i));
        for i in 0..size {
            out.data[row * size + i] = rstd * (weighted(i) - first - unit(i) * second);
            out.scale[row * size + i] = rstd * (weighted(i).abs() + first_scale + unit_scale(i) * second_scale);
            dweight.data[channel(i)] += g[i] * unit(i);
            dweight.scale[channel(i)] += g[i].abs() * unit_scale(i);
            dbias.data[channel(i)] += g[i];
            dbias.scale[channel(i)] += g[i].abs();
        }
    }
    if op.kind == Kind::Forward { vec![out] } else { vec![out, dweight, dbias] }
}
