//! `cᵢⱼ = α·Σ aᵢₗ·aⱼₗ` in f64.

use super::SyrkParams;
use crate::ratio::extents;
use bimetal_core::op::{Expected, Values};

pub(super) fn syrk(a: &Values, params: SyrkParams) -> Expected {
    let [count, m, n] = extents(a);
    let (rows, terms) = if params.transpose { (n, m) } else { (m, n) };
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    for matrix in 0..count {
        let element = |i: usize, l: usize| a.data[matrix * m * n + if params.transpose { l * n + i } else { i * n + l }];
        for i in 0..rows {
            for j in 0..rows {
                let products = (0..terms).map(|l| params.alpha * element(i, l) * element(j, l));
                data.push(products.clone().sum());
                scale.push(products.map(f64::abs).sum());
            }
        }
    }
    Expected::sums(data, scale)
}
