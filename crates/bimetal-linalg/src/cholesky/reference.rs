//! What a Cholesky factor must fulfil, `‖A − LLᵀ‖₁ ≤ 30·n·‖A‖₁·ε`, which status each matrix deserves, and the residual of
//! solutions.

use crate::ratio::{
    PANEL, compared_columns, extents, norm1, product, reconstruction, subtract_product, transposed, worst,
};
use crate::status::NOT_FINITE;
use bimetal_core::DType;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound for factorisations and solutions.
pub(crate) const ALLOWED: f64 = 30.0;

/// The statuses that a matrix may get: the first order whose leading minor is not positive, within what rounding leaves
/// open.
struct Deserved {
    /// 0 is right.
    success: bool,
    /// Positive statuses from the first to the last of these are right.
    orders: [i32; 2],
    finite: bool,
}

impl Deserved {
    fn contains(&self, status: f64) -> bool {
        let status = status as i32;
        match status {
            _ if !self.finite => status == NOT_FINITE,
            0 => self.success,
            _ => status >= self.orders[0] && status <= self.orders[1],
        }
    }
}

fn deserved(a: &[f64], n: usize, dtype: DType) -> Deserved {
    let finite = a.iter().all(|x| x.is_finite());
    let success = Deserved { success: true, orders: [1, 0], finite };
    if !finite {
        return success;
    }
    let epsilon = dtype.epsilon().min(DType::F32.epsilon());
    let doubt = 4.0 * n as f64 * epsilon * norm1(a, n);
    let mut w = a.to_vec();
    for first in (0..n).step_by(PANEL) {
        let end = n.min(first + PANEL);
        for k in first..end {
            let pivot = w[k * n + k];
            let order = k as i32 + 1;
            // The first pivot is an element, which no rounding has changed.
            if k == 0 && pivot <= 0.0 || pivot < -doubt {
                return Deserved { success: false, orders: [order; 2], finite };
            }
            if pivot <= doubt && k > 0 {
                return Deserved { success: true, orders: [order, n as i32], finite };
            }
            for i in k + 1..n {
                let factor = w[i * n + k] / pivot;
                for j in k + 1..end.min(i + 1) {
                    w[i * n + j] -= factor * w[j * n + k];
                }
            }
        }
        if end < n {
            let columns: Vec<f64> = (end..n).flat_map(|i| w[i * n + first..i * n + end].to_vec()).collect();
            let pivots: Vec<f64> = (first..end).map(|k| w[k * n + k]).collect();
            let rows = transposed(&columns, n - end, end - first);
            let scaled: Vec<f64> = columns.iter().zip(pivots.iter().cycle()).map(|(x, pivot)| x / pivot).collect();
            subtract_product(&mut w, n, end, [&scaled, &rows], end - first);
        }
    }
    success
}

/// The symmetric matrix that the triangle in use stands for.
fn symmetric(a: &[f64], n: usize, upper: bool) -> Vec<f64> {
    let element = |i: usize, j: usize| if upper { a[i.min(j) * n + i.max(j)] } else { a[i.max(j) * n + i.min(j)] };
    (0..n * n).map(|e| element(e / n, e % n)).collect()
}

/// The properties of factors and statuses.
pub(super) fn factors(upper: bool, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [count, n, _] = extents(&inputs[0]);
    let dtype = inputs[0].spec.dtype;
    let (mut statuses, mut errors) = (vec![0.0; count], vec![0.0; count]);
    for i in 0..count {
        let a = symmetric(&inputs[0].data[i * n * n..][..n * n], n, upper);
        let l = &outputs[0].data[i * n * n..][..n * n];
        let status = outputs[1].data[i];
        if !deserved(&a, n, dtype).contains(status) {
            statuses[i] = f64::INFINITY;
        }
        errors[i] = if status != 0.0 {
            if l.iter().all(|x| x.is_nan()) { 0.0 } else { f64::INFINITY }
        } else {
            let l = if upper { transposed(l, n, n) } else { l.to_vec() };
            let triangle = (0..n * n).all(|e| e % n <= e / n || l[e] == 0.0) && (0..n).all(|j| l[j * n + j] >= 0.0);
            let columns = compared_columns(n);
            let back = product(&l, &transposed(&l, n, n), [n, n, n], &columns);
            if triangle { reconstruction(&a, &back, [n, n], &columns, dtype) } else { f64::INFINITY }
        };
    }
    vec![
        worst("reconstruction", ALLOWED, errors.into_iter().enumerate()),
        worst(Property::STATUS, 0.0, statuses.into_iter().enumerate()),
    ]
}

/// `‖B − A·X‖₁ / (n·‖A‖₁·‖X‖₁·ε)` with the product `A·X` given.
pub(crate) fn residual(a: &[f64], x: &[f64], b: &[f64], [n, k]: [usize; 2], dtype: DType) -> f64 {
    let columns: Vec<usize> = (0..k).collect();
    let back = product(a, x, [n, n, k], &columns);
    let difference: Vec<f64> = back.iter().zip(b).map(|(x, b)| x - b).collect();
    let distance = norm1(&difference, k);
    let floor = dtype.min_positive() / dtype.epsilon();
    let size = (norm1(a, n) * norm1(x, k)).max(norm1(b, k)).max(floor);
    if distance == 0.0 { 0.0 } else { distance / (n.max(1) as f64 * size * dtype.epsilon()) }
}

/// The properties of solutions `X` of `L·Lᵀ·X = B`.
pub(super) fn solutions(upper: bool, k: usize, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [count, n, _] = extents(&inputs[0]);
    let dtype = inputs[0].spec.dtype;
    let (mut statuses, mut errors) = (vec![0.0; count], vec![0.0; count]);
    for i in 0..count {
        let l = &inputs[0].data[i * n * n..][..n * n];
        let l = if upper { transposed(l, n, n) } else { l.to_vec() };
        let l: Vec<f64> = (0..n * n).map(|e| if e % n <= e / n { l[e] } else { 0.0 }).collect();
        let b = &inputs[1].data[i * n * k..][..n * k];
        let x = &outputs[0].data[i * n * k..][..n * k];
        let finite = l.iter().chain(b).all(|x| x.is_finite());
        let zero = (0..n).find(|j| l[j * n + j] == 0.0).map_or(0, |j| j as i32 + 1);
        let expected = if finite { zero } else { NOT_FINITE };
        if outputs[1].data[i] as i32 != expected {
            statuses[i] = f64::INFINITY;
        }
        errors[i] = if expected != 0 {
            if x.iter().all(|x| x.is_nan()) { 0.0 } else { f64::INFINITY }
        } else {
            let columns: Vec<usize> = (0..n).collect();
            let size: Vec<f64> = l.iter().map(|x| x.abs()).collect();
            let a = product(&l, &transposed(&l, n, n), [n, n, n], &columns);
            let magnitude = product(&size, &transposed(&size, n, n), [n, n, n], &columns);
            // The norm of |L|·|Lᵀ|, which is that of A but for cancellation in A itself.
            let scale = norm1(&magnitude, n) / norm1(&a, n).max(f64::MIN_POSITIVE);
            residual(&a, x, b, [n, k], dtype) / scale.max(1.0)
        };
    }
    vec![
        worst("residual", ALLOWED, errors.into_iter().enumerate()),
        worst(Property::STATUS, 0.0, statuses.into_iter().enumerate()),
    ]
}
