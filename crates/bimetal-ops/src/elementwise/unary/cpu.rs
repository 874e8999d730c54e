//! The functions of one element on vectors, from the vector math library.

use crate::pointwise::cpu::functions;
use bimetal_core::cpu::math;

functions! {
    1:
    Exp |s, [x], _p| math::exp(s, x);
    Expm1 |s, [x], _p| math::expm1(s, x);
    Log |s, [x], _p| math::log(s, x);
    Log1p |s, [x], _p| math::log1p(s, x);
    Sigmoid |s, [x], _p| math::sigmoid(s, x);
    Tanh |s, [x], _p| math::tanh(s, x);
    Softplus |s, [x], _p| math::softplus(s, x);
    Erf |s, [x], _p| math::erf(s, x);
    Sin |s, [x], _p| math::sin(s, x);
    Cos |s, [x], _p| math::cos(s, x);
    Sqrt |s, [x], _p| s.sqrt(x);
    // Without the correction of math::rsqrt, which the tolerance does not need and memory does not hide.
    Rsqrt |s, [x], _p| s.div(s.splat(1.0), s.sqrt(x));
    Reciprocal |s, [x], _p| s.div(s.splat(1.0), x);
    Square |s, [x], _p| s.mul(x, x);
    Abs |s, [x], _p| s.abs(x);
    Neg |s, [x], _p| s.neg(x);
    Clamp |s, [x], p| s.min_nan(s.max_nan(x, s.splat(p[0])), s.splat(p[1]));
}
