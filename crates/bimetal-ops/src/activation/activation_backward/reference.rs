//! The activations' gradients in f64, with the magnitudes of the terms that make up a slope.

use super::Function;
use bimetal_core::op::{Expected, Values};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, TAU};

pub(super) fn activation_backward(function: Function, p: f64, x: &[Values]) -> Expected {
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    for (&g, &x) in x[0].data.iter().zip(&x[1].data) {
        if function == Function::ReluBackward {
            data.push(if x <= 0.0 { 0.0 } else { g });
            scale.push(0.0);
            continue;
        }
        let (first, second) = slope(function, p, x);
        data.push(g * (first + second));
        scale.push(g.abs() * (first.abs() + second.abs()));
    }
    Expected::sums(data, scale)
}

/// The two terms of the slope.
fn slope(function: Function, p: f64, x: f64) -> (f64, f64) {
    match function {
        Function::LeakyReluBackward if x > 0.0 => (1.0, 0.0),
        Function::LeakyReluBackward => (p, 0.0),
        Function::EluBackward if x <= 0.0 => (p * x.exp(), 0.0),
        Function::ReluBackward | Function::EluBackward => (1.0, 0.0),
        // The limits of the gates' slopes, whose formulas are ∞ · 0 there.
        _ if x == f64::INFINITY => (1.0, 0.0),
        _ if x == f64::NEG_INFINITY => (0.0, 0.0),
        Function::GeluBackward => {
            (libm::erfc(-x * FRAC_1_SQRT_2) / 2.0, x * (-x * x / 2.0).exp() / TAU.sqrt())
        }
        Function::GeluTanhBackward => {
            let u = FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x);
            let (s, rest) = (logistic(2.0 * u), logistic(-2.0 * u));
            (s, x * s * rest * 2.0 * FRAC_2_PI.sqrt() * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Function::SiluBackward => (logistic(x), x * logistic(x) * logistic(-x)),
        Function::MishBackward => {
            let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
            (softplus.tanh(), x * logistic(x) / softplus.cosh().powi(2))
        }
    }
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
