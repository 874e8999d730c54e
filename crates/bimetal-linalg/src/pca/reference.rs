//! What makes principal components right, in f64: an orthonormal basis that leaves as little of the centred samples as can
//! be, with the variances along it, the samples' mean, and signs that are told.

use crate::ratio::{extents, orthogonality, product, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::singular_values;
use crate::svd_truncated::reference::allowance;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 35.0;

pub(super) fn properties(
    k: usize,
    iterations: Option<usize>,
    inputs: &[Values],
    outputs: &[Values],
) -> Vec<Property> {
    let [batch, m, n] = extents(&inputs[0]);
    let (dtype, degrees) = (inputs[0].spec.dtype, m as f64 - 1.0);
    let mut statuses = Vec::new();
    let mut found: [Vec<(usize, f64)>; 5] = Default::default();
    for i in 0..batch {
        let x = &inputs[0].data[i * m * n..][..m * n];
        let rows = &outputs[0].data[i * k * n..][..k * n];
        let part = |o: usize, size: usize| &outputs[o].data[i * size..][..size];
        let (variance, ratio, mean, values, status) = (part(1, k), part(2, k), part(3, n), part(4, k), part(5, 1)[0]);
        if x.iter().any(|x| !x.is_finite()) {
            let nothing = [rows, variance, ratio, mean, values].iter().all(|part| part.iter().all(|x| x.is_nan()));
            let marked = status == f64::from(NOT_FINITE) && nothing;
            statuses.push((i, if marked { 0.0 } else { f64::INFINITY }));
            continue;
        }
        // The element of largest magnitude is positive, where rounding leaves no doubt which that is.
        let told = rows.chunks_exact(n.max(1)).all(|row| {
            let most = |sign: f64| row.iter().fold(0.0, |most: f64, x| most.max(sign * x));
            most(1.0) >= most(-1.0) * (1.0 - 4.0 * dtype.epsilon())
        });
        let sorted = values.windows(2).all(|pair| pair[0] >= pair[1]) && values.iter().all(|x| *x >= 0.0);
        statuses.push((i, if status == 0.0 && told && sorted { 0.0 } else { f64::INFINITY }));
        let column = |j: usize| (0..m).map(move |r| x[r * n + j]);
        let exact: Vec<f64> = (0..n).map(|j| column(j).sum::<f64>() / m as f64).collect();
        for j in 0..n {
            let scale = column(j).map(f64::abs).sum::<f64>() / m as f64 + dtype.min_positive();
            found[0].push((i, (mean[j] - exact[j]).abs() / (scale * dtype.epsilon())));
        }
        let centred: Vec<f64> = (0..m * n).map(|e| x[e] - exact[e % n]).collect();
        let right = singular_values(&centred, m, n);
        let squares: f64 = right.iter().map(|s| s * s).sum();
        let size = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(dtype.min_positive() / dtype.epsilon());
        let unit = m.max(n) as f64 * size * dtype.epsilon();
        if k == 0 {
            continue;
        }
        found[1].push((i, orthogonality(&transposed(rows, k, n), [n, k], dtype)));
        // D − D·Vᵀ·V, and the lengths of D·vᵢ.
        let along = product(&centred, &transposed(rows, k, n), [m, n, k], &(0..k).collect::<Vec<_>>());
        let mut left = product(&along, rows, [m, k, n], &(0..n).collect::<Vec<_>>());
        left.iter_mut().zip(&centred).for_each(|(left, d)| *left -= d);
        let missed = singular_values(&left, m, n).first().copied().unwrap_or(0.0);
        let best = right.get(k).copied().unwrap_or(0.0);
        let allowed = iterations.map_or(best, |iterations| best * allowance(k, [m, n], iterations));
        found[2].push((i, (missed - allowed).max(0.0) / unit));
        for j in 0..k {
            let length = (0..m).map(|r| along[r * k + j].powi(2)).sum::<f64>().sqrt();
            // A sketch's values are the lengths within it: what it leaves out is at right angles to them.
            let outside = if iterations.is_some() { allowed } else { 0.0 };
            let longest = values[j].hypot(outside);
            found[3].push((i, (length - longest).max(values[j] - length).max(0.0) / unit));
            if iterations.is_none() {
                found[3].push((i, (right[j] - values[j]).abs() / unit));
            }
            let off = |found: f64, exact: f64| {
                let floor = 4.0 * dtype.min_positive();
                (found - exact).abs() / (dtype.epsilon() * exact + floor)
            };
            found[4].push((i, off(variance[j], values[j] * values[j] / degrees)));
            // The total holds the rounding of the mean and of the differences.
            let whole = if squares.sqrt() > 100.0 * unit { squares } else { f64::NAN };
            let expected = values[j] * values[j] / whole;
            if expected.is_finite() {
                let doubt = 1.0 + 2.0 * unit / (whole.sqrt() * dtype.epsilon());
                found[4].push((i, off(ratio[j], expected) / doubt));
            }
        }
    }
    let [mean, orthogonality, best, values, derived] = found;
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("mean", 10.0, mean.into_iter()),
        worst("orthogonality", ALLOWED, orthogonality.into_iter()),
        worst("approximation", ALLOWED, best.into_iter()),
        worst("values", ALLOWED, values.into_iter()),
        worst("variances", 10.0, derived.into_iter()),
    ]
}
