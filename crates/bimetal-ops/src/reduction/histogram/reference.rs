//! Histogram by a search among the edges.

use bimetal_core::op::Expected;

pub(super) fn histogram(x: &[f64], bins: usize, lo: f64, hi: f64) -> Expected {
    let step = (hi - lo) / bins as f64;
    let mut edges: Vec<f64> = (0..bins).map(|i| f64::from((i as f64 * step + lo) as f32)).collect();
    edges.push(f64::from(hi as f32));
    let mut data = vec![0.0; bins];
    for &v in x {
        if v >= edges[0] && v <= edges[bins] {
            let not_above = edges.partition_point(|&e| e <= v);
            data[(not_above - 1).min(bins - 1)] += 1.0;
        }
    }
    Expected::exact(data)
}
