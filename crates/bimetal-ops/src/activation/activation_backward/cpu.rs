//! The activations' gradients on vectors.

use crate::pointwise::cpu::functions;
use bimetal_core::cpu::math;

functions! {
    2:
    ReluBackward |s, [g, x], _p| s.select(s.le(x, s.splat(0.0)), s.splat(0.0), g);
    LeakyReluBackward |s, [g, x], p| s.select(s.gt(x, s.splat(0.0)), g, s.mul(g, s.splat(p[0])));
    EluBackward |s, [g, x], p| {
        s.select(s.le(x, s.splat(0.0)), s.mul(s.mul(g, s.splat(p[0])), math::exp(s, x)), g)
    };
    GeluBackward |s, [g, x], _p| s.mul(g, math::gelu_slope(s, x));
    GeluTanhBackward |s, [g, x], _p| s.mul(g, math::gelu_tanh_slope(s, x));
    SiluBackward |s, [g, x], _p| s.mul(g, math::silu_slope(s, x));
    MishBackward |s, [g, x], _p| s.mul(g, math::mish_slope(s, x));
}
