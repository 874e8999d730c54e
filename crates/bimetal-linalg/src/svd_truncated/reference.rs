//! What makes truncated factors right, in f64: they are orthonormal, `‖A − U·Σ·Vᵀ‖₂` is near the best, and not above the
//! bound that is given out with them.

use super::Decomposition;
use crate::blocks::working;
use crate::ratio::{extents, orthogonality, product, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::singular_values;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 35.0;

/// How much larger than the best an error may be for a sketch: corollary 10.10 of Halko, Martinsson and Tropp, and theorem
/// 9.3 for the truncation.
pub(crate) fn allowance(rank: usize, [m, n]: [usize; 2], power_iterations: usize) -> f64 {
    let sketch = 1.0 + 4.0 * (2.0 * m.min(n) as f64 / rank.saturating_sub(1).max(1) as f64).sqrt();
    1.0 + sketch.powf(1.0 / (2 * power_iterations + 1) as f64)
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
        let scaled: Vec<f64> = (0..m * k).map(|e| u[e] * s[e % k]).collect();
        let mut left = product(&scaled, vh, [m, k, n], &(0..n).collect::<Vec<_>>());
        left.iter_mut().zip(a).for_each(|(left, a)| *left -= a);
        let exact = singular_values(a, m, n);
        let difference = singular_values(&left, m, n).first().copied().unwrap_or(0.0);
        let largest = exact.first().copied().unwrap_or(0.0);
        let floor = dtype.min_positive() / dtype.epsilon();
        let unit = m.max(n).max(1) as f64 * largest.max(floor) * dtype.epsilon();
        let best = exact.get(k).copied().unwrap_or(0.0);
        let allowed = allowance(k, [m, n], op.params.power_iterations) * best;
        found[1].push((i, (difference - allowed).max(0.0) / unit));
        // The bound holds, and is no worse than its probes: a Frobenius norm instead of the spectral one.
        found[2].push((i, if error * (1.0 + 1e-6) + dtype.min_positive() >= difference { 0.0 } else { f64::INFINITY }));
        let frobenius = left.iter().map(|x| (x / largest.max(floor)).powi(2)).sum::<f64>().sqrt() * largest.max(floor);
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
