//! The functions of two elements in f64.

use super::Function;
use crate::pointwise::broadcast;
use bimetal_core::op::{Expected, Values};

pub(super) fn binary(function: Function, x: &[Values]) -> Expected {
    let mut data = Vec::new();
    broadcast(x, |v| {
        let (a, b) = (v[0], v[1]);
        data.push(match function {
            Function::Add => a + b,
            Function::Sub => a - b,
            Function::Mul => a * b,
            Function::Div => a / b,
            Function::Pow => a.powf(b),
            _ if a.is_nan() || b.is_nan() => f64::NAN,
            Function::Maximum => a.max(b),
            Function::Minimum => a.min(b),
        });
    });
    Expected::exact(data)
}
