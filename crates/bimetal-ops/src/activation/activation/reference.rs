//! The activations in f64.

use super::Function;
use bimetal_core::op::{Expected, Values};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

pub(super) fn activation(function: Function, p: f64, x: &Values) -> Expected {
    let mut data = Vec::with_capacity(x.data.len());
    for &x in &x.data {
        data.push(match function {
            Function::Relu if x < 0.0 => 0.0,
            Function::Relu => x,
            Function::LeakyRelu | Function::Elu if x > 0.0 => x,
            Function::LeakyRelu => p * x,
            Function::Elu => p * x.exp_m1(),
            // The limit of the gates, whose formulas are ∞ · 0 there.
            _ if x == f64::NEG_INFINITY => -0.0,
            Function::Gelu => x / 2.0 * libm::erfc(-x * FRAC_1_SQRT_2),
            Function::GeluTanh => {
                let u = FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x);
                x / (1.0 + (-2.0 * u).exp())
            }
            Function::Silu => x / (1.0 + (-x).exp()),
            Function::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
        });
    }
    Expected::exact(data)
}
