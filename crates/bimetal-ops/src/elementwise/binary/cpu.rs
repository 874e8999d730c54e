//! The functions of two elements on vectors.

use crate::pointwise::cpu::functions;
use bimetal_core::cpu::math;

functions! {
    2:
    Add |s, [a, b], _p| s.add(a, b);
    Sub |s, [a, b], _p| s.sub(a, b);
    Mul |s, [a, b], _p| s.mul(a, b);
    Div |s, [a, b], _p| s.div(a, b);
    Pow |s, [a, b], _p| math::pow(s, a, b);
    Maximum |s, [a, b], _p| s.max_nan(a, b);
    Minimum |s, [a, b], _p| s.min_nan(a, b);
}
