//! Slopes of the smooth activations, with the exponential's power of two put on last: where x is very negative the
//! slope is small and keeps its accuracy.

use super::double::two_prod;
use super::erf::tail_ratio;
use super::exp::exp_parts;
use super::sigmoid::{LOWEST, gate, tanh_gate};
use crate::cpu::simd::Simd;

/// The slope of [`silu`](super::silu), σ (1 + x (1 − σ)); its limits 0 and 1 at ∓∞.
#[inline(always)]
pub fn silu_slope<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let a = s.min(s.splat(-LOWEST), s.abs(x));
    let (p, n) = exp_parts(s, s.neg(a), None);
    let e = s.scale_pow2(p, n);
    let den = s.add(one, e);
    let ratio = s.div(a, den);
    gate(s, x, s.fma(ratio, e, one), s.mul(p, s.sub(one, ratio)), den, n)
}

/// The slope of [`mish`](super::mish): w/(w + 2) + 4x eˣ(1 + eˣ)/(w + 2)² with w = eˣ(eˣ + 2), for positive x with
/// both fractions divided by e^2x and e^4x; its limits 0 and 1 at ∓∞.
#[inline(always)]
pub fn mish_slope<S: Simd>(s: S, x: S::F) -> S::F {
    let (one, two) = (s.splat(1.0), s.splat(2.0));
    let a = s.min(s.splat(-LOWEST), s.abs(x));
    let (p, n) = exp_parts(s, s.neg(a), None);
    let e = s.scale_pow2(p, n);
    let e2 = s.add(e, two);
    let numerator = s.fma(two, e, one);
    let den_plus = s.fma(s.add(e, e), e, numerator);
    let den_minus = s.fma(e, e2, two);
    let bent = s.mul(s.mul(s.splat(4.0), a), s.add(one, e));
    let plus = s.fma(s.mul(bent, e), e, s.mul(numerator, den_plus));
    let minus = s.mul(p, s.fma_sub(e2, den_minus, bent));
    let den = s.select(s.ge(x, s.splat(0.0)), den_plus, den_minus);
    gate(s, x, plus, minus, s.mul(den, den), n)
}

/// The slope of [`gelu_tanh`](super::gelu_tanh): g (1 + x (1 − g) 2u′) with g = 1/(1 + e^−2u).
#[inline(always)]
pub fn gelu_tanh_slope<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let (a, p, n) = tanh_gate(s, x);
    let e = s.scale_pow2(p, n);
    let den = s.add(one, e);
    let slope = s.fma(s.mul(a, a), s.splat(3.0 * 0.071_354_814), s.splat(1.595_769_2));
    let rise = s.div(s.mul(a, slope), den);
    gate(s, x, s.fma(rise, e, one), s.mul(p, s.sub(one, rise)), den, n)
}

/// The slope of [`gelu`](super::gelu), Φ(x) + x φ(x).
#[inline(always)]
pub fn gelu_slope<S: Simd>(s: S, x: S::F) -> S::F {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let a = s.min(s.splat(15.0), s.abs(x));
    let (v, v_lo) = two_prod(s, a, s.mul(a, s.splat(-0.5)));
    let (p, n) = exp_parts(s, v, Some(v_lo));
    let tail = s.scale_pow2(s.mul(p, s.neg_fma(a, s.splat(INV_SQRT_TAU), tail_ratio(s, a, 1.0))), n);
    s.select(s.ge(x, s.splat(0.0)), s.sub(s.splat(1.0), tail), tail)
}
