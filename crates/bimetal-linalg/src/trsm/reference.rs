//! What solutions of triangular systems must fulfil, `‖α·B − op(T)·X‖₁ ≤ 30·n·‖T‖₁·‖X‖₁·ε`, and the status of each.

use super::TrsmParams;
use crate::cholesky::reference::{ALLOWED, residual};
use crate::ratio::{extents, transposed, worst};
use crate::status::NOT_FINITE;
use bimetal_core::op::{Property, Values};

pub(super) fn judge(params: &TrsmParams, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [count, n, _] = extents(&inputs[0]);
    let [_, rows, columns] = extents(&inputs[1]);
    let (dtype, sides) = (inputs[0].spec.dtype, rows * columns);
    let (mut statuses, mut errors) = (vec![0.0; count], vec![0.0; count]);
    for i in 0..count {
        let t = &inputs[0].data[i * n * n..][..n * n];
        let element = |row: usize, column: usize| match (row == column, params.upper == (column > row)) {
            (true, _) => if params.unit { 1.0 } else { t[row * n + row] },
            (false, true) => t[row * n + column],
            (false, false) => 0.0,
        };
        let t: Vec<f64> = (0..n * n).map(|e| element(e / n, e % n)).collect();
        let b: Vec<f64> = inputs[1].data[i * sides..][..sides].iter().map(|b| b * params.alpha).collect();
        let x = &outputs[0].data[i * sides..][..sides];
        let finite = t.iter().chain(&b).all(|x| x.is_finite());
        let zero = (0..n).find(|j| t[j * n + j] == 0.0).map_or(0, |j| j as i32 + 1);
        let expected = if finite { zero } else { NOT_FINITE };
        statuses[i] = if outputs[1].data[i] as i32 == expected { 0.0 } else { f64::INFINITY };
        errors[i] = if expected != 0 {
            if x.iter().all(|x| x.is_nan()) { 0.0 } else { f64::INFINITY }
        } else {
            let t = if params.transpose == params.left { transposed(&t, n, n) } else { t };
            match params.left {
                true => residual(&t, x, &b, [n, columns], dtype),
                false => residual(&t, &transposed(x, rows, n), &transposed(&b, rows, n), [n, rows], dtype),
            }
        };
    }
    vec![
        worst("residual", ALLOWED, errors.into_iter().enumerate()),
        worst(Property::STATUS, 0.0, statuses.into_iter().enumerate()),
    ]
}
