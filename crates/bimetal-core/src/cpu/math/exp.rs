//! eˣ, 2ˣ and eˣ − 1: x = n ln 2 + r with |r| ≤ ln 2 / 2, and e^r by a polynomial (Cody and Waite 1980).

use super::poly;
use crate::cpu::simd::Simd;

/// ln 2 = HI + LO, each rounded to nearest.
const LN2_HI: f32 = std::f32::consts::LN_2;
const LN2_LO: f32 = -1.904_654_2e-9;

/// eˣ, within 0.90 ulp (worst at −5.8486). Overflows to infinity above 88.72, underflows gradually below −87.33.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let (p, n) = exp_parts(s, s.min(s.splat(89.0), s.max(s.splat(-110.0), x)), None);
    s.scale_pow2(p, n)
}

/// (p, n) with e^(x + lo) = p · 2ⁿ and p near 1, for −110 ≤ x ≤ 89 and |lo| well below 1.
#[inline(always)]
pub(super) fn exp_parts<S: Simd>(s: S, x: S::F, lo: Option<S::F>) -> (S::F, S::F) {
    let (n, r) = reduce(s, x, lo);
    (poly(s, r, [1.0, 1.0, 0.49999994, 0.16666521, 0.041668266, 0.0083686765, 0.0013820693]), n)
}

/// (n, r) with x + lo = n ln 2 + r. The first product is exact inside the fused operation, and so is its difference.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::F, lo: Option<S::F>) -> (S::F, S::F) {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_fma(n, s.splat(LN2_HI), x);
    let ln2_lo = s.splat(LN2_LO);
    let r = match lo {
        None => s.neg_fma(n, ln2_lo, r),
        Some(lo) => s.add(r, s.neg_fma(n, ln2_lo, lo)),
    };
    (n, r)
}

/// 2ˣ, within 0.88 ulp (worst at −126.4965, a subnormal result). Exact where x is an integer.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.splat(129.0), s.max(s.splat(-160.0), x));
    let n = s.round(x);
    s.scale_pow2(exp2_reduced(s, s.sub(x, n)), n)
}

/// 2^r for |r| ≤ ½.
#[inline(always)]
pub(super) fn exp2_reduced<S: Simd>(s: S, r: S::F) -> S::F {
    poly(s, r, [1.0, LN2_HI, 0.24022648, 0.055503596, 0.009618503, 0.0013390997, 0.00015327803])
}

/// eˣ − 1 without cancellation near 0, within 1.44 ulp (worst at 17.002): 2ⁿ (e^r − 1) + (2ⁿ − 1).
#[inline(always)]
pub fn expm1<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.min(s.splat(89.0), s.max(s.splat(-20.0), x));
    let (n, r) = reduce(s, clamped, None);
    let q = poly(s, r, [0.5, 0.16666666, 0.041666493, 0.008333545, 0.0013932332, 0.00019762541]);
    let em1 = s.fma(s.mul(r, r), q, r);
    // Half of 2ⁿ stays finite where the result does.
    let half_scale = s.scale_pow2_normal(s.splat(0.5), n);
    let half = s.fma(half_scale, em1, s.sub(half_scale, s.splat(0.5)));
    let y = s.select(s.eq(n, s.splat(0.0)), em1, s.add(half, half));
    // The sign of a zero.
    s.select(s.eq(x, s.splat(0.0)), x, y)
}
