//! What makes truncated factors right, in f64: they are orthonormal, `‖A − U·Σ·Vᵀ‖₂` is near the best, and not above the
//! bound that is given out with them.

use super::Decomposition;
use crate::blocks::working;
use crate::ratio::{extents, orthogonality, product, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::{JUDGED, largest_value, singular_values, times, transposed_times};
use bimetal_core::op::{Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 35.0;

/// How much larger than the best an error may be for a sketch: corollary 10.10 of Halko, Martinsson and Tropp, and theorem
/// 9.3 for the truncation.
pub(crate) fn allowance(rank: usize, [m, n]: [usize; 2], power_iterations: usize) -> f64 {
    let sketch = 1.0 + 4.0 * (2.0 * m.min(n) as f64 / rank.saturating_sub(1).max(1) as f64).sqrt();
    1.0 + sketch.powf(1.0 / (2 * power_iterations + 1) as f64)
}

/// What an approximation leaves: its spectral and Frobenius norm, the largest singular value of the matrix, and the first
/// that is left out.
struct Left {
    difference: f64,
    frobenius: f64,
    largest: f64,
    best: f64,
}

/// By all singular values; for large matrices by power iteration, and with the mean of the values that are left out, which is
/// below the first of them.
fn left_over(a: &[f64], [u, s, vh]: [&[f64]; 3], [m, n]: [usize; 2]) -> Left {
    let k = s.len();
    let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    if m.min(n) > JUDGED {
        let error = |x: &[f64]| -> Vec<f64> {
            let inner: Vec<f64> = times(vh, n, x).iter().zip(s).map(|(x, s)| x * s).collect();
            times(a, n, x).iter().enumerate().map(|(i, y)| y - u[i * k..][..k].iter().zip(&inner).map(|(u, x)| u * x).sum::<f64>()).collect()
        };
        let back = |y: &[f64]| -> Vec<f64> {
            let inner: Vec<f64> = transposed_times(u, k, y).iter().zip(s).map(|(x, s)| x * s).collect();
            transposed_times(a, n, y).iter().zip(transposed_times(vh, n, &inner)).map(|(x, v)| x - v).collect()
        };
        let frobenius = (squares(a) - squares(s)).max(0.0).sqrt();
        let best = frobenius / ((m.min(n) - k).max(1) as f64).sqrt();
        let largest = largest_value(n, |x| times(a, n, x), |y| transposed_times(a, n, y));
        return Left { difference: largest_value(n, error, back), frobenius, largest, best };
    }
    let scaled: Vec<f64> = (0..m * k).map(|e| u[e] * s[e % k]).collect();
    let mut left = product(&scaled, vh, [m, k, n], &(0..n).collect::<Vec<_>>());
    left.iter_mut().zip(a).for_each(|(left, a)| *left -= a);
    let [exact, errors] = [a, &left].map(|x| singular_values(x, m, n));
    let first = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(0.0);
    let largest = first(&exact, 0);
    let unit = errors.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(*x));
    let frobenius = unit * errors.iter().map(|x| (x / unit).powi(2)).sum::<f64>().sqrt();
    Left { difference: first(&errors, 0), frobenius, largest, best: first(&exact, k) }
}

pub(super) fn properties(op: &Decomposition, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [batch, m, n] = extents(&inputs[0]);
    let (dtype, k) = (inputs[0].spec.dtype, op.rank);
    let mut statuses = Vec::new();
    let mut found: [Vec<(usize, f64)>; 4] = Default::default();
    for i in 0..batch {
        let a = &inputs[0].data[i * m * n..][..m * n];
        let (u, s) = (&outputs[0].data[i * m * k..][..m * k], &outputs[1].data[i * k..][..k]);
        let (vh, error, status) = (&outputs[2].data[i * k * n..][..k * n], outputs[3].data[i], outputs[4].data[i]);
        if a.iter().any(|x| !x.is_finite()) {
            let nothing = u.iter().chain(s).chain(vh).all(|x| x.is_nan()) && error.is_nan();
            let marked = status == f64::from(NOT_FINITE) && nothing;
            statuses.push((i, if marked { 0.0 } else { f64::INFINITY }));
            continue;
        }
        let sorted = s.windows(2).all(|pair| pair[0] >= pair[1]) && s.iter().all(|&x| x >= 0.0);
        statuses.push((i, if status == 0.0 && sorted { 0.0 } else { f64::INFINITY }));
        if k > 0 {
            let right = orthogonality(&transposed(vh, k, n), [n, k], dtype);
            found[0].push((i, orthogonality(u, [m, k], dtype).max(right)));
        }
        let Left { difference, frobenius, largest, best } = left_over(a, [u, s, vh], [m, n]);
        let floor = dtype.min_positive() / dtype.epsilon();
        let unit = m.max(n).max(1) as f64 * largest.max(floor) * dtype.epsilon();
        let allowed = allowance(k, [m, n], op.params.power_iterations) * best;
        found[1].push((i, (difference - allowed).max(0.0) / unit));
        // The bound holds, and is no worse than its probes: a Frobenius norm instead of the spectral one.
        found[2].push((i, if error * (1.0 + 1e-6) + dtype.min_positive() >= difference { 0.0 } else { f64::INFINITY }));
        let noise = m.max(n).max(1) as f64 * working(dtype).epsilon() * largest.max(floor);
        found[3].push((i, error / (op.params.factor() * (frobenius + noise).max(f64::MIN_POSITIVE))));
    }
    let [orthogonality, best, bound, close] = found;
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("orthogonality", ALLOWED, orthogonality.into_iter()),
        worst("approximation", ALLOWED, best.into_iter()),
        worst("bound", 0.0, bound.into_iter()),
        worst("closeness of the bound", 10.0, close.into_iter()),
    ]
}
