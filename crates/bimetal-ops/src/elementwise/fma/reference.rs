//! Multiply-add in f64.

use crate::pointwise::broadcast;
use bimetal_core::op::{Expected, Values};

pub(super) fn fma(x: &[Values]) -> Expected {
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    broadcast(x, |v| {
        data.push(v[0] * v[1] + v[2]);
        scale.push((v[0] * v[1]).abs() + v[2].abs());
    });
    Expected::sums(data, scale)
}
