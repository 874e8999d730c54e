//! What makes a solution right, in f64: `Aᵀ(A·x − b)` is of the order of rounding, or `A·x − b` itself and `x` in the span
//! of the rows; and the rank, by Gram–Schmidt.

use super::{Dims, rank_tolerance};
use crate::compose::cutoff;
use crate::pinv::reference::ranks;
use crate::ratio::{norm1, product, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::singular_columns;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 30.0;

pub(super) fn properties(dims: &Dims, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let Dims { batch, m, n, p } = *dims;
    let dtype = inputs[0].spec.dtype;
    let (mut statuses, mut residuals, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..batch {
        let (a, b) = (&inputs[0].data[i * m * n..][..m * n], &inputs[1].data[i * m * p..][..m * p]);
        let (x, found) = (&outputs[0].data[i * n * p..][..n * p], outputs[1].data[i]);
        let finite = a.iter().all(|x| x.is_finite());
        // The lines whose independence decides, and the least part of one that those before it do not span.
        let lines = if m >= n { transposed(a, m, n) } else { a.to_vec() };
        let (basis, least) = orthonormal(&lines, m.max(n));
        let limit = rank_tolerance(m, n, dtype);
        let nothing = x.iter().all(|x| x.is_nan());
        let right = match found {
            _ if !finite => found == f64::from(NOT_FINITE) && nothing,
            0.0 => least > 0.05 * limit,
            _ => found > 0.0 && nothing && least < 20.0 * limit,
        };
        statuses.push((i, if right { 0.0 } else { f64::INFINITY }));
        if !finite || found != 0.0 || n * p * m == 0 {
            let zeros = m > 0 || x.iter().all(|x| *x == 0.0);
            residuals.push((i, if zeros { 0.0 } else { f64::INFINITY }));
            continue;
        }
        let columns: Vec<usize> = (0..p).collect();
        let mut residual = product(a, x, [m, n, p], &columns);
        residual.iter_mut().zip(b).for_each(|(r, b)| *r -= b);
        let size = norm1(a, n) * norm1(x, p) + norm1(b, p);
        let unit = m.max(n) as f64 * size * dtype.epsilon();
        if m >= n {
            let normal = product(&transposed(a, m, n), &residual, [n, m, p], &columns);
            residuals.push((i, norm1(&normal, p) / (unit * norm1(a, n).max(norm1(&transposed(a, m, n), m)))));
        } else {
            residuals.push((i, norm1(&residual, p) / unit));
            let inside = product(&basis, x, [m, n, p], &columns);
            let mut outside = product(&transposed(&basis, m, n), &inside, [n, m, p], &columns);
            outside.iter_mut().zip(x).for_each(|(o, x)| *o -= x);
            spans.push((i, norm1(&outside, p) / (n as f64 * norm1(x, p).max(f64::MIN_POSITIVE) * dtype.epsilon())));
        }
    }
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("residual", ALLOWED, residuals.into_iter()),
        worst("span", ALLOWED, spans.into_iter()),
    ]
}

/// Lines of `length` elements made orthonormal, and the least part that was left of one, as a share of its largest element.
fn orthonormal(lines: &[f64], length: usize) -> (Vec<f64>, f64) {
    let (mut basis, mut least) = (Vec::<f64>::new(), f64::INFINITY);
    for line in lines.chunks_exact(length.max(1)) {
        let norm = |line: &[f64]| line.iter().map(|x| x * x).sum::<f64>().sqrt();
        let whole = norm(line);
        let mut line = line.to_vec();
        for _ in 0..2 {
            for earlier in basis.chunks_exact(length.max(1)) {
                let sum: f64 = line.iter().zip(earlier).map(|(a, b)| a * b).sum();
                line.iter_mut().zip(earlier).for_each(|(x, e)| *x -= sum * e);
            }
        }
        let left = norm(&line);
        least = least.min(if whole == 0.0 { 0.0 } else { left / whole });
        basis.extend(line.iter().map(|x| if left == 0.0 { 0.0 } else { x / left }));
    }
    (basis, least)
}

/// What makes the shortest solution right: `Aᵀ(A·x − b)` small, the rank and the values those of the matrix, and `x` in the
/// span of as many right singular vectors.
pub(super) fn shortest(dims: &Dims, rcond: Option<f64>, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let Dims { batch, m, n, p } = *dims;
    let (dtype, k) = (inputs[0].spec.dtype, m.min(n));
    let cutoff = cutoff(rcond, m, n, dtype);
    let (mut statuses, mut residuals, mut spans, mut distances) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..batch {
        let (a, b) = (&inputs[0].data[i * m * n..][..m * n], &inputs[1].data[i * m * p..][..m * p]);
        let (x, rank) = (&outputs[0].data[i * n * p..][..n * p], outputs[1].data[i]);
        let (found, status) = (&outputs[2].data[i * k..][..k], outputs[3].data[i]);
        if a.iter().any(|x| !x.is_finite()) {
            let nothing = rank == -1.0 && x.iter().chain(found).all(|x| x.is_nan());
            let marked = status == f64::from(NOT_FINITE) && nothing;
            statuses.push((i, if marked { 0.0 } else { f64::INFINITY }));
            continue;
        }
        // Right singular vectors times their values: the columns of a wide matrix's transpose.
        let pairs = singular_columns(a, m, n);
        let exact: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let [least, most] = ranks(&exact, cutoff, [m, n], dtype);
        let right = status == 0.0 && (least as f64..=most as f64).contains(&rank);
        statuses.push((i, if right { 0.0 } else { f64::INFINITY }));
        let largest = exact.first().copied().unwrap_or(0.0);
        let floor = (m.max(n) as f64 * largest * dtype.epsilon()).max(dtype.min_positive());
        distances.extend(exact.iter().zip(found).map(|(a, b)| (i, (a - b).abs() / floor)));
        if n * p == 0 {
            continue;
        }
        if rank <= 0.0 {
            residuals.push((i, if x.iter().all(|x| *x == 0.0) { 0.0 } else { f64::INFINITY }));
            continue;
        }
        let columns: Vec<usize> = (0..p).collect();
        let mut residual = product(a, x, [m, n, p], &columns);
        residual.iter_mut().zip(b).for_each(|(r, b)| *r -= b);
        let at = transposed(a, m, n);
        let normal = product(&at, &residual, [n, m, p], &columns);
        let size = (norm1(a, n) * norm1(x, p) + norm1(b, p)) * norm1(a, n).max(norm1(&at, m));
        // What the cutoff leaves out remains in the residual.
        let rank = rank as usize;
        let next = exact.get(rank).copied().unwrap_or(0.0);
        let left = next * norm1(b, p) * (m.max(n) as f64).sqrt();
        let unit = m.max(n) as f64 * size * dtype.epsilon();
        residuals.push((i, (norm1(&normal, p) - left).max(0.0) / unit));
        if rank < n {
            let outside = outside(&pairs[..rank], &at, x, [m, n, p]);
            let gap = (exact[rank - 1] - next).max(f64::MIN_POSITIVE);
            let unit = m.max(n) as f64 * norm1(x, p).max(f64::MIN_POSITIVE) * dtype.epsilon() * norm1(&at, m) / gap;
            spans.push((i, outside / unit));
        }
    }
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("residual", ALLOWED, residuals.into_iter()),
        worst("span", ALLOWED, spans.into_iter()),
        worst("values", ALLOWED, distances.into_iter()),
    ]
}

/// `‖x − V·Vᵀ·x‖₁` for the right singular vectors that belong to `pairs`: `Aᵀ·u` of the left ones for `m ≥ n`.
fn outside(pairs: &[(f64, Vec<f64>)], at: &[f64], x: &[f64], [m, n, p]: [usize; 3]) -> f64 {
    let mut left = x.to_vec();
    for (value, vector) in pairs {
        let v: Vec<f64> = match m >= n {
            true => product(at, vector, [n, m, 1], &[0]).iter().map(|x| x / (value * value)).collect(),
            false => vector.iter().map(|x| x / value).collect(),
        };
        for j in 0..p {
            let sum: f64 = (0..n).map(|i| v[i] * left[i * p + j]).sum();
            (0..n).for_each(|i| left[i * p + j] -= sum * v[i]);
        }
    }
    norm1(&left, p)
}
