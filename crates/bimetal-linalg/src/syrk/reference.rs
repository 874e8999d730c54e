//! `cᵢⱼ = α·Σ aᵢₗ·aⱼₗ` in f64.

use super::SyrkParams;
use crate::ratio::{extents, product, transposed};
use bimetal_core::op::{Expected, Values};

pub(super) fn syrk(a: &Values, params: SyrkParams) -> Expected {
    let [count, m, n] = extents(a);
    let (rows, terms) = if params.transpose { (n, m) } else { (m, n) };
    let columns: Vec<usize> = (0..rows).collect();
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    for matrix in 0..count {
        let given = &a.data[matrix * m * n..][..m * n];
        let turned = transposed(given, m, n);
        let (left, right) = if params.transpose { (&turned[..], given) } else { (given, &turned[..]) };
        let magnitudes = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let dims = [rows, terms, rows];
        data.extend(product(left, right, dims, &columns).into_iter().map(|x| params.alpha * x));
        let sizes = product(&magnitudes(left), &magnitudes(right), dims, &columns);
        scale.extend(sizes.into_iter().map(|x| params.alpha.abs() * x));
    }
    Expected::sums(data, scale)
}
