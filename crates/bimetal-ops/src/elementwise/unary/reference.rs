//! The functions of one element in f64.

use super::Function;
use bimetal_core::op::{Expected, Values};

pub(super) fn unary(function: Function, bounds: [f64; 2], x: &Values) -> Expected {
    let mut data = Vec::with_capacity(x.data.len());
    for &x in &x.data {
        data.push(match function {
            Function::Exp => x.exp(),
            Function::Expm1 => x.exp_m1(),
            Function::Log => x.ln(),
            Function::Log1p => x.ln_1p(),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Tanh => x.tanh(),
            Function::Softplus if x > 0.0 => x + (-x).exp().ln_1p(),
            Function::Softplus => x.exp().ln_1p(),
            Function::Erf => libm::erf(x),
            Function::Sin => x.sin(),
            Function::Cos => x.cos(),
            Function::Sqrt => x.sqrt(),
            Function::Rsqrt => 1.0 / x.sqrt(),
            Function::Reciprocal => 1.0 / x,
            Function::Square => x * x,
            Function::Abs => x.abs(),
            Function::Neg => -x,
            Function::Clamp => clamp(x, bounds),
        });
    }
    Expected::exact(data)
}

fn clamp(x: f64, [lo, hi]: [f64; 2]) -> f64 {
    if x.is_nan() || lo.is_nan() || hi.is_nan() {
        return f64::NAN;
    }
    x.max(lo).min(hi)
}
