//! Functions of e^−|x|: tanh, the logistic function and the activations built on them.

use super::double::{two_prod, two_sum};
use super::exp::exp_parts;
use super::log::log1p_unit;
use super::poly;
use crate::cpu::simd::Simd;

/// Below this, products with e^x underflow for every x that a function here multiplies it with.
pub(super) const LOWEST: f32 = -110.0;

/// −|x|, not below [`LOWEST`].
#[inline(always)]
fn neg_abs<S: Simd>(s: S, x: S::F) -> S::F {
    s.max(s.splat(LOWEST), s.neg(s.abs(x)))
}

/// tanh x, within 1.37 ulp (worst at 0.63000). An odd polynomial up to ⅝, 1 − 2/(e^2x + 1) above.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let z = s.mul(a, a);
    let p = poly(s, z, [-0.3333328, 0.13331406, -0.053736515, 0.020628167, -0.0056922967]);
    let near = s.fma(s.mul(a, z), p, a);
    let capped = s.min(s.splat(10.0), a);
    let (p, n) = exp_parts(s, s.add(capped, capped), None);
    let one = s.splat(1.0);
    let e = s.scale_pow2_normal(p, n);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.xor_sign(s.select(s.lt(a, s.splat(0.625)), near, far), x)
}

/// 1 / (1 + e⁻ˣ), within 2.41 ulp (worst at −4.1573). Written e^−|x| / (1 + e^−|x|) for negative x, it does not
/// overflow.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let (p, n) = exp_parts(s, neg_abs(s, x), None);
    let e = s.scale_pow2(p, n);
    s.div(s.select(s.gt(x, s.splat(0.0)), one, e), s.add(one, e))
}

/// x / (1 + e⁻ˣ), also called swish, within 3.35 ulp (worst at −5.9389); its limit −0 at −∞.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let low = neg_abs(s, x);
    let parts = exp_parts(s, low, None);
    let den = s.add(s.splat(1.0), s.scale_pow2(parts.0, parts.1));
    gate(s, x, x, s.mul(low, parts.0), den, parts.1)
}

/// `plus / den` for x ≥ 0, `minus / den · 2ⁿ` below: the power of two is put on last, so that the
/// quotient rounds once where it underflows.
#[inline(always)]
pub(super) fn gate<S: Simd>(s: S, x: S::F, plus: S::F, minus: S::F, den: S::F, n: S::F) -> S::F {
    let positive = s.ge(x, s.splat(0.0));
    let quotient = s.div(s.select(positive, plus, minus), den);
    s.select(positive, quotient, s.scale_pow2(quotient, n))
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|), within 1.82 ulp (worst at −0.84855).
#[inline(always)]
pub fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let (p, n) = exp_parts(s, neg_abs(s, x), None);
    s.add(log1p_unit(s, s.scale_pow2(p, n)), s.max(s.splat(0.0), x))
}

/// x tanh(ln(1 + eˣ)) (Misra 2019), within 4.65 ulp (worst at −6.7632): x w/(w + 2) with w = eˣ(eˣ + 2); for positive x
/// both divided by e^2x. Its limit −0 at −∞.
#[inline(always)]
pub fn mish<S: Simd>(s: S, x: S::F) -> S::F {
    let (one, two) = (s.splat(1.0), s.splat(2.0));
    let low = neg_abs(s, x);
    let (p, n) = exp_parts(s, low, None);
    let e = s.scale_pow2(p, n);
    let e2 = s.add(e, two);
    let plus = s.fma(two, e, one);
    let den_plus = s.fma(s.add(e, e), e, plus);
    let den = s.select(s.ge(x, s.splat(0.0)), den_plus, s.fma(e, e2, two));
    gate(s, x, s.mul(x, plus), s.mul(s.mul(low, p), e2), den, n)
}

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016) = x / (1 + e^−2u), within 3.20 ulp (worst at
/// −1.8379). The exponent is kept in two floats, so the bound holds for negative x too.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let (a, p, n) = tanh_gate(s, x);
    let den = s.add(s.splat(1.0), s.scale_pow2(p, n));
    gate(s, x, x, s.neg(s.mul(a, p)), den, n)
}

/// (|x|, p, n) with e^−2|u| = p 2ⁿ for u of [`gelu_tanh`].
#[inline(always)]
pub(super) fn tanh_gate<S: Simd>(s: S, x: S::F) -> (S::F, S::F, S::F) {
    // 2u = x (A + B x²).
    const A: (f32, f32) = (1.595_769_2, -4.534_068e-8);
    const B: (f32, f32) = (0.071_354_814, 2.398_832_5e-9);
    // Beyond this the result is x or underflows.
    let a = s.min(s.splat(12.0), s.abs(x));
    let (z, z_lo) = two_prod(s, a, a);
    let (t, t_lo) = two_prod(s, z, s.splat(B.0));
    let (c, c_lo) = two_sum(s, s.splat(A.0), t);
    let small = s.fma(z, s.splat(B.1), s.splat(A.1));
    let t_lo = s.add(small, s.fma(z_lo, s.splat(B.0), t_lo));
    let (v, v_lo) = two_prod(s, a, c);
    let v_lo = s.fma(a, s.add(c_lo, t_lo), v_lo);
    let (p, n) = exp_parts(s, s.neg(v), Some(s.neg(v_lo)));
    (a, p, n)
}
