//! The gradients in f64.

use super::Function;
use bimetal_core::op::{Expected, Values};

pub(super) fn unary_backward(function: Function, [lo, hi]: [f64; 2], x: &[Values]) -> Expected {
    let mut data = Vec::with_capacity(x[0].data.len());
    for (&g, &x) in x[0].data.iter().zip(&x[1].data) {
        data.push(match function {
            Function::SigmoidBackward => g * (x * (1.0 - x)),
            Function::TanhBackward => g * ((1.0 - x) * (1.0 + x)),
            Function::SoftplusBackward => g / (1.0 + (-x).exp()),
            Function::ExpBackward => g * x,
            Function::LogBackward => g / x,
            Function::AbsBackward if x > 0.0 => g,
            Function::AbsBackward if x < 0.0 => -g,
            Function::AbsBackward => g * 0.0,
            Function::ClampBackward if lo <= x && x <= hi => g,
            Function::ClampBackward => 0.0,
        });
    }
    Expected::exact(data)
}
