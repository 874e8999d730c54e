//! The gradients on vectors.

use crate::pointwise::cpu::functions;
use bimetal_core::cpu::math;

functions! {
    2:
    SigmoidBackward |s, [g, y], _p| s.mul(g, s.mul(y, s.sub(s.splat(1.0), y)));
    TanhBackward |s, [g, y], _p| s.mul(g, s.mul(s.sub(s.splat(1.0), y), s.add(s.splat(1.0), y)));
    SoftplusBackward |s, [g, x], _p| s.mul(g, math::sigmoid(s, x));
    ExpBackward |s, [g, y], _p| s.mul(g, y);
    LogBackward |s, [g, x], _p| s.div(g, x);
    AbsBackward |s, [g, x], _p| {
        let zero = s.splat(0.0);
        let signed = s.xor_sign(g, x);
        s.select(s.or_m(s.lt(x, zero), s.gt(x, zero)), signed, s.mul(g, zero))
    };
    ClampBackward |s, [g, x], p| {
        let inside = s.and_m(s.ge(x, s.splat(p[0])), s.le(x, s.splat(p[1])));
        s.select(inside, g, s.splat(0.0))
    };
}
