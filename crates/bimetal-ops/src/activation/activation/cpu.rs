//! The activations on vectors.

use crate::pointwise::cpu::functions;
use bimetal_core::cpu::math;

functions! {
    1:
    Relu |s, [x], _p| s.max(s.splat(0.0), x);
    LeakyRelu |s, [x], p| s.select(s.gt(x, s.splat(0.0)), x, s.mul(x, s.splat(p[0])));
    Elu |s, [x], p| s.select(s.gt(x, s.splat(0.0)), x, s.mul(math::expm1(s, x), s.splat(p[0])));
    Gelu |s, [x], _p| math::gelu(s, x);
    GeluTanh |s, [x], _p| math::gelu_tanh(s, x);
    Silu |s, [x], _p| math::silu(s, x);
    Mish |s, [x], _p| math::mish(s, x);
}
