//! Sums in f64, one element after the other; a variance in two passes.

use super::Kind;
use bimetal_core::op::Expected;

pub(super) fn sums(x: &[f64], (outer, n, inner): (usize, usize, usize), kind: Kind, correction: usize) -> Expected {
    let mut expected = Expected::default();
    for o in 0..outer {
        for i in 0..inner {
            let line = (0..n).map(|k| x[(o * n + k) * inner + i]);
            let (value, scale) = one(line, n as f64, kind, correction as f64);
            expected.data.push(value);
            expected.scale.push(scale);
        }
    }
    expected
}

fn one(line: impl Iterator<Item = f64> + Clone, n: f64, kind: Kind, correction: f64) -> (f64, f64) {
    let sum: f64 = line.clone().fold(0.0, |a, v| a + v);
    let magnitudes: f64 = line.clone().map(f64::abs).sum();
    let mean = sum / n;
    let spread: f64 = line.clone().map(|v| (v - mean) * (v - mean)).sum();
    let variance = if n > correction { spread / (n - correction) } else { f64::NAN };
    match kind {
        Kind::Sum => (sum, magnitudes),
        Kind::Mean => (mean, magnitudes / n),
        Kind::L2Norm => {
            let norm = line.map(|v| v * v).sum::<f64>().sqrt();
            (norm, norm)
        }
        // Deviations from a rounded mean: an error of one unit in x or the mean changes the variance by |mean|·σ.
        Kind::Variance => (variance, variance + mean.abs() * variance.sqrt() + f64::from(f32::EPSILON) * mean * mean),
        Kind::StandardDeviation => (variance.sqrt(), variance.sqrt() + mean.abs()),
    }
}
