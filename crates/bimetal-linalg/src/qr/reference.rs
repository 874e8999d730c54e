//! What makes factors right, in f64: `‖A − Q·R‖₁ ≤ 30·max(m, n)·‖A‖₁·ε`, `‖1 − QᵀQ‖₁ ≤ 30·m·ε`, and R triangular.

use super::Form;
use crate::ratio::{compared_columns, extents, orthogonality, product, reconstruction, worst};
use crate::status::NOT_FINITE;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound for QR.
const ALLOWED: f64 = 30.0;

pub(super) fn properties(form: Form, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [batch, m, n] = extents(&inputs[0]);
    let k = m.min(n);
    let [first, second, status] = outputs else { unreachable!("there are three outputs") };
    let dtype = inputs[0].spec.dtype;
    let part = |values: &Values, i: usize| {
        let size = values.data.len() / batch;
        values.data[i * size..(i + 1) * size].to_vec()
    };
    let mut statuses = Vec::new();
    let (mut reconstructions, mut orthogonalities) = (Vec::new(), Vec::new());
    for i in 0..batch {
        let a = part(&inputs[0], i);
        let (first, second) = (part(first, i), part(second, i));
        let finite = a.iter().all(|x| x.is_finite());
        let nothing = || first.iter().chain(&second).all(|x| x.is_nan());
        let right = if finite { status.data[i] == 0.0 } else { status.data[i] == f64::from(NOT_FINITE) && nothing() };
        statuses.push((i, if right { 0.0 } else { f64::INFINITY }));
        if !finite {
            continue;
        }
        let (q, r) = match form {
            Form::Packed => unpacked(&first, &second, [m, n]),
            _ => (first, second),
        };
        let columns = if form == Form::Complete { m } else { k };
        let triangular = (0..columns).all(|i| r[i * n..][..i.min(n)].iter().all(|x| *x == 0.0));
        let compared = compared_columns(n);
        let again = product(&q, &r, [m, columns, n], &compared);
        let ratio = if n == 0 || m == 0 { 0.0 } else { reconstruction(&a, &again, [m, n], &compared, dtype) };
        reconstructions.push((i, if triangular { ratio } else { f64::INFINITY }));
        orthogonalities.push((i, if columns == 0 { 0.0 } else { orthogonality(&q, [m, columns], dtype) }));
    }
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("reconstruction", ALLOWED, reconstructions.into_iter()),
        worst("orthogonality", ALLOWED, orthogonalities.into_iter()),
    ]
}

/// Q and R of packed reflectors and their factors: the product of the reflectors, from the last one back.
pub(crate) fn unpacked(packed: &[f64], tau: &[f64], [m, n]: [usize; 2]) -> (Vec<f64>, Vec<f64>) {
    let k = m.min(n);
    let mut q: Vec<f64> = (0..m * k).map(|i| if i / k == i % k { 1.0 } else { 0.0 }).collect();
    for j in (0..k).rev() {
        let v: Vec<f64> = (0..m).map(|i| if i < j { 0.0 } else if i == j { 1.0 } else { packed[i * n + j] }).collect();
        let mut sums = vec![0.0; k];
        for i in j..m {
            sums.iter_mut().zip(&q[i * k..]).for_each(|(sum, q)| *sum += v[i] * q);
        }
        for i in j..m {
            q[i * k..(i + 1) * k].iter_mut().zip(&sums).for_each(|(q, sum)| *q -= tau[j] * v[i] * sum);
        }
    }
    let r = (0..k * n).map(|i| if i / n <= i % n { packed[i] } else { 0.0 }).collect();
    (q, r)
}
