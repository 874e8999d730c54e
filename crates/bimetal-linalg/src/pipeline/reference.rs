//! What the end of each chain must be, in f64: orthonormal with `Qᵀ·A` triangular, the best approximation of its rank, `±`
//! rows of `B` in the basis of `A`'s columns, or `A·Aᵀ`.

use super::Pipeline;
use crate::ratio::{extents, norm1, orthogonality, product, reconstruction, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::singular_values;
use bimetal_core::DType;
use bimetal_core::op::{Property, Values};

/// LAPACK's bounds: for three factorisations, SVD and eigenvalues.
const ALLOWED: f64 = 60.0;

pub(super) fn properties(pipeline: Pipeline, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [batch, m, n] = extents(&inputs[0]);
    let dtype = inputs[0].spec.dtype;
    let (mut statuses, mut results) = (Vec::new(), Vec::new());
    for i in 0..batch {
        let a = &inputs[0].data[i * m * n..][..m * n];
        let size = outputs[0].data.len() / batch;
        let (y, status) = (&outputs[0].data[i * size..][..size], outputs[1].data[i]);
        if a.iter().any(|x| !x.is_finite()) {
            let marked = status == f64::from(NOT_FINITE) && y.iter().all(|x| x.is_nan());
            statuses.push((i, if marked { 0.0 } else { f64::INFINITY }));
            continue;
        }
        statuses.push((i, if status == 0.0 { 0.0 } else { f64::INFINITY }));
        if m * n == 0 || size == 0 {
            results.push((i, if y.iter().all(|x| *x == 0.0) { 0.0 } else { f64::INFINITY }));
            continue;
        }
        let ratio = match pipeline {
            Pipeline::QrThreeTimes => triangular(a, y, [m, n], dtype).max(orthogonality(y, [m, m.min(n)], dtype)),
            Pipeline::SvdTruncateReconstruct(rank) => truncated(a, y, [m, n], rank, dtype),
            Pipeline::QrMatmul => {
                let b = &inputs[1].data;
                let (k, p) = (m.min(n), size / m);
                in_basis(a, y, &b[i * k * p..][..k * p], [m, n, p], dtype)
            }
            Pipeline::ProductEighProduct => {
                let columns: Vec<usize> = (0..m).collect();
                let gram = product(a, &transposed(a, m, n), [m, n, m], &columns);
                let own = m.max(n) as f64 * norm1(a, n) * norm1(&transposed(a, m, n), m) * dtype.epsilon();
                let whole = reconstruction(&gram, y, [m, m], &columns, dtype) * m as f64 * norm1(&gram, m) * dtype.epsilon();
                if whole == 0.0 { 0.0 } else { whole / own.max(dtype.min_positive()) }
            }
        };
        results.push((i, ratio));
    }
    vec![worst(Property::STATUS, 0.0, statuses.into_iter()), worst("result", ALLOWED, results.into_iter())]
}

/// How much of `Qᵀ·A` is below its diagonal, and how much of `A` is not in the span of `Q`.
fn triangular(a: &[f64], q: &[f64], [m, n]: [usize; 2], dtype: DType) -> f64 {
    let k = m.min(n);
    let columns: Vec<usize> = (0..n).collect();
    let mut r = product(&transposed(q, m, k), a, [k, m, n], &columns);
    (0..k * n).filter(|e| e / n > e % n).for_each(|e| r[e] = 0.0);
    reconstruction(a, &product(q, &r, [m, k, n], &columns), [m, n], &columns, dtype)
}

/// How far `‖A − Y‖₂` is above the best of this rank, and how much `Y` has of a higher one.
fn truncated(a: &[f64], y: &[f64], [m, n]: [usize; 2], rank: usize, dtype: DType) -> f64 {
    let left: Vec<f64> = a.iter().zip(y).map(|(a, y)| a - y).collect();
    let [exact, left, own] = [a, &left, y].map(|x| singular_values(x, m, n));
    let best = exact.get(rank).copied().unwrap_or(0.0);
    let beyond = own.get(rank).copied().unwrap_or(0.0);
    let unit = m.max(n) as f64 * exact[0].max(dtype.min_positive() / dtype.epsilon()) * dtype.epsilon();
    (left[0] - best).max(beyond).max(0.0) / unit
}

/// How far the rows of `Qᵀ·Y` are from those of `B` but for their signs, with `Q` of `A` by Gram and Schmidt in f64; how well
/// a column of `Q` is determined goes with what is left of `A`'s after those before it.
fn in_basis(a: &[f64], y: &[f64], b: &[f64], [m, n, p]: [usize; 3], dtype: DType) -> f64 {
    let k = m.min(n);
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let (mut worst, mut condition) = (0.0f64, 1.0f64);
    for j in 0..k {
        let mut column: Vec<f64> = (0..m).map(|i| a[i * n + j]).collect();
        let whole = norm1(a, n);
        for _ in 0..2 {
            for earlier in &basis {
                let sum = dot(&column, earlier);
                column.iter_mut().zip(earlier).for_each(|(x, e)| *x -= sum * e);
            }
        }
        let length = dot(&column, &column).sqrt();
        // From here on the columns are rounding errors, and any basis is as good.
        condition = condition.max(whole / length.max(f64::MIN_POSITIVE));
        if condition > 1e-2 / (dtype.epsilon() * m as f64) {
            break;
        }
        column.iter_mut().for_each(|x| *x /= length);
        let row: Vec<f64> = (0..p).map(|c| (0..m).map(|i| column[i] * y[i * p + c]).sum()).collect();
        let distance = |sign: f64| (0..p).map(|c| (row[c] - sign * b[j * p + c]).abs()).fold(0.0, f64::max);
        worst = worst.max(distance(1.0).min(distance(-1.0)) / condition);
        basis.push(column);
    }
    // Whatever the basis, the lengths of columns stay.
    let grams = [(y, m), (b, k)].map(|(x, rows)| product(&transposed(x, rows, p), x, [p, rows, p], &(0..p).collect::<Vec<_>>()));
    let lengths = norm1(&grams[0].iter().zip(&grams[1]).map(|(y, b)| y - b).collect::<Vec<_>>(), p);
    let unit = m.max(n) as f64 * dtype.epsilon();
    (worst / (unit * norm1(b, p))).max(lengths / (unit * norm1(&grams[1], p)))
}
