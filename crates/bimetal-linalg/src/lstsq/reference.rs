//! What makes a solution right, in f64: `Aᵀ(A·x − b)` is of the order of rounding, or `A·x − b` itself and `x` in the span
//! of the rows; and the rank, by Gram–Schmidt.

use super::{Dims, rank_tolerance};
use crate::ratio::{norm1, product, transposed, worst};
use crate::status::NOT_FINITE;
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
