//! Logarithms: x = 2ᵏ (1 + f) with √½ ≤ 1 + f < √2, and ln(1 + f) = f − f²/2 + f³ R(f), summed so that only the last
//! addition rounds at full size.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E, LOG10_E, SQRT_2};

use super::double::{fast_two_sum, two_prod, two_sum};
use super::poly;
use crate::cpu::simd::Simd;

/// k log_b 2 = k (K_HI + K_LO) and ln(1 + f) / ln b = ln(1 + f) (M_HI + M_LO) of a base b; k · K_HI is exact.
struct Base {
    k_hi: f32,
    k_lo: f32,
    m_hi: f32,
    m_lo: f32,
}

/// LN2_HI cut to 15 bits: exact times any exponent.
const NATURAL: Base = Base { k_hi: 0.693_145_75, k_lo: 1.428_606_8e-6, m_hi: 1.0, m_lo: 0.0 };
const BINARY: Base = Base { k_hi: 1.0, k_lo: 0.0, m_hi: LOG2_E, m_lo: 1.925_963e-8 };
const DECIMAL: Base = Base { k_hi: 0.301_025_4, k_lo: 4.605_039e-6, m_hi: LOG10_E, m_lo: -1.010_305e-8 };

/// ln x, within 0.93 ulp (worst at 0.70643). −∞ at ±0, NaN below.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F) -> S::F {
    log_base(s, x, NATURAL)
}

/// log₂ x, within 1.14 ulp (worst at 1.39668), exact at powers of two. −∞ at ±0, NaN below.
#[inline(always)]
pub fn log2<S: Simd>(s: S, x: S::F) -> S::F {
    log_base(s, x, BINARY)
}

/// log₁₀ x, within 1.02 ulp (worst at 1.33323). −∞ at ±0, NaN below.
#[inline(always)]
pub fn log10<S: Simd>(s: S, x: S::F) -> S::F {
    log_base(s, x, DECIMAL)
}

/// ln(1 + x) without cancellation near 0, within 1.02 ulp (worst at 0.44983). −∞ at −1, NaN below.
#[inline(always)]
pub fn log1p<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let y = log1p_finite(s, x);
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let y = s.select(s.eq(x, s.neg(one)), s.splat(f32::NEG_INFINITY), y);
    s.select(s.lt(x, s.neg(one)), s.splat(f32::NAN), y)
}

/// ln(1 + x) for −1 < x < ∞; NaN stays NaN.
#[inline(always)]
pub(super) fn log1p_finite<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let (u, c) = two_sum(s, one, x);
    let (shifted, m) = split(s, s.bits(u));
    // c 2⁻ᵏ, in two factors because 2⁻ᵏ is not finite for the largest k.
    let unscale = s.from_bits(s.sub_i(s.bits(s.splat(2.0)), shifted));
    let c = s.mul(s.mul(c, s.splat(0.5)), unscale);
    let (f, rest) = fast_two_sum(s, s.sub(m, one), c);
    let k = s.to_f(s.sra_i::<23>(shifted));
    let y = combine(s, k, f, rest, &NATURAL);
    s.select(s.lt(s.abs(x), s.splat(2f32.powi(-25))), x, y)
}

/// ln(1 + e) for 0 ≤ e ≤ 1; NaN stays NaN.
#[inline(always)]
pub(super) fn log1p_unit<S: Simd>(s: S, e: S::F) -> S::F {
    let (half, zero) = (s.splat(0.5), s.splat(0.0));
    let upper = s.gt(e, s.splat(SQRT_2 - 1.0));
    let f = s.select(upper, s.fma(e, half, s.splat(-0.5)), e);
    combine(s, s.select(upper, s.splat(1.0), zero), f, zero, &NATURAL)
}

#[inline(always)]
fn log_base<S: Simd>(s: S, x: S::F, base: Base) -> S::F {
    let bits = s.bits(x);
    let y = log_normal(s, bits, s.splat(0.0), &base);
    const NORMAL: i32 = f32::MIN_POSITIVE.to_bits() as i32;
    let range = s.splat_i(f32::INFINITY.to_bits() as i32 - NORMAL);
    if s.all(s.lt_u(s.sub_i(bits, s.splat_i(NORMAL)), range)) { y } else { log_special(s, x, y, &base) }
}

/// log_b(x · 2ᵏ) of the bits of a positive normal x.
#[inline(always)]
fn log_normal<S: Simd>(s: S, bits: S::I, k: S::F, base: &Base) -> S::F {
    let (shifted, m) = split(s, bits);
    let k = s.add(k, s.to_f(s.sra_i::<23>(shifted)));
    combine(s, k, s.sub(m, s.splat(1.0)), s.splat(0.0), base)
}

/// Replaces the lanes of `y` whose x is not a positive normal number.
#[inline(always)]
fn log_special<S: Simd>(s: S, x: S::F, y: S::F, base: &Base) -> S::F {
    let zero = s.splat(0.0);
    let scaled = s.bits(s.mul(x, s.splat(2f32.powi(23))));
    let y = s.select(s.lt(x, s.splat(f32::MIN_POSITIVE)), log_normal(s, scaled, s.splat(-23.0), base), y);
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let outside = s.select(s.eq(x, zero), s.splat(f32::NEG_INFINITY), s.splat(f32::NAN));
    s.select(s.le(x, zero), outside, y)
}

/// (k · 2²³, m) of the bits of a positive normal number 2ᵏ m with √½ ≤ m < √2.
#[inline(always)]
pub(super) fn split<S: Simd>(s: S, bits: S::I) -> (S::I, S::F) {
    let from_sqrt_half = s.sub_i(bits, s.splat_i(FRAC_1_SQRT_2.to_bits() as i32));
    let shifted = s.and_i(from_sqrt_half, s.splat_i(0xff80_0000u32 as i32));
    (shifted, s.from_bits(s.sub_i(bits, shifted)))
}

/// log_b(2ᵏ (1 + f + rest)), with k log_b 2 + f M as an exact sum of two floats (Dekker's fast two-sum).
#[inline(always)]
fn combine<S: Simd>(s: S, k: S::F, f: S::F, rest: S::F, base: &Base) -> S::F {
    let r = poly(
        s,
        f,
        [-0.5, 0.3333333, -0.2500082, 0.20001242, -0.16623409, 0.1420158, -0.1315961, 0.12762217, -0.07636439],
    );
    let tail = s.fma(s.mul(f, f), r, rest);
    let kk = s.mul(k, s.splat(base.k_hi));
    if base.m_hi == 1.0 {
        let (sum, error) = fast_two_sum(s, kk, f);
        let low = s.fma(k, s.splat(base.k_lo), error);
        return s.add(sum, s.add(tail, low));
    }
    let m_hi = s.splat(base.m_hi);
    let (product, product_lo) = two_prod(s, f, m_hi);
    let (sum, error) = fast_two_sum(s, kk, product);
    let low = s.fma(k, s.splat(base.k_lo), s.fma(f, s.splat(base.m_lo), s.add(error, product_lo)));
    s.add(sum, s.fma(tail, m_hi, low))
}
