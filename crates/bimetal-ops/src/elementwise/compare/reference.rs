//! The comparisons in f64.

use super::Function;
use crate::pointwise::broadcast;
use bimetal_core::op::{Expected, Values};

pub(super) fn compare(function: Function, x: &[Values]) -> Expected {
    let mut data = Vec::new();
    broadcast(x, |v| {
        let (a, b) = (v[0], v[1]);
        let holds = match function {
            Function::Eq => a == b,
            Function::Ne => a != b,
            Function::Lt => a < b,
            Function::Le => a <= b,
            Function::Gt => a > b,
            Function::Ge => a >= b,
        };
        data.push(f64::from(u8::from(holds)));
    });
    Expected::exact(data)
}
