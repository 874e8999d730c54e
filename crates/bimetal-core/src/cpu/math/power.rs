//! xʸ = 2^(y log₂|x|) with the logarithm in two floats, and the reciprocal square root.

use super::double::{fast_two_sum, two_prod};
use super::exp::exp2_reduced;
use super::log::split;
use super::poly;
use crate::cpu::simd::Simd;

/// xʸ, within 0.90 ulp on 2²⁴ random pairs, with C99's special cases: 1 for y = 0 or x = 1 whatever the other, NaN for a negative finite x and a fractional
/// y, signed zeros and infinities for odd y.
#[inline(always)]
pub fn pow<S: Simd>(s: S, x: S::F, y: S::F) -> S::F {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let inf = s.splat(f32::INFINITY);
    let a = s.abs(x);
    let (log, log_lo) = log2_pair(s, a);
    let log = s.select(s.eq(a, zero), s.splat(f32::NEG_INFINITY), log);
    let log = s.select(s.eq(a, inf), inf, log);

    let v = s.mul(y, log);
    let lo = s.fma(y, log_lo, s.fma_sub(y, log, v));
    let capped = s.min(s.splat(200.0), s.max(s.splat(-200.0), v));
    let n = s.round(capped);
    let r = s.sub(capped, n);
    let r = s.select(s.eq(v, capped), s.add(r, lo), r);
    let magnitude = s.scale_pow2(exp2_reduced(s, r), n);

    let y_half = s.mul(y, s.splat(0.5));
    let fractional = s.ne(s.trunc(y), y);
    let odd = s.and_m(s.ne(s.trunc(y_half), y_half), s.eq(s.trunc(y), y));
    let signed = s.select(odd, s.xor_sign(magnitude, x), magnitude);
    let negative = s.and_m(s.lt(x, zero), s.lt(a, inf));
    let result = s.select(s.and_m(negative, fractional), s.splat(f32::NAN), signed);
    // (±1)^±∞
    let result = s.select(s.and_m(s.eq(a, one), s.eq(s.abs(y), inf)), one, result);
    let result = s.select(s.or_m(s.is_nan(x), s.is_nan(y)), s.splat(f32::NAN), result);
    s.select(s.or_m(s.eq(y, zero), s.eq(x, one)), one, result)
}

/// log₂ a to about 2⁻³⁵ of itself, for finite a > 0: ln(1 + f) = 2 artanh t with t = f/(2 + f), whose first two terms
/// are kept in two floats.
#[inline(always)]
fn log2_pair<S: Simd>(s: S, a: S::F) -> (S::F, S::F) {
    const LOG2_E_LO: f32 = 1.925_963e-8;
    let tiny = s.lt(a, s.splat(f32::MIN_POSITIVE));
    let normal = s.select(tiny, s.mul(a, s.splat(2f32.powi(23))), a);
    let (shifted, m) = split(s, s.bits(normal));
    let k = s.to_f(s.sra_i::<23>(shifted));
    let k = s.select(tiny, s.sub(k, s.splat(23.0)), k);
    let one = s.splat(1.0);
    let f = s.sub(m, one);

    let (den, den_lo) = fast_two_sum(s, s.splat(2.0), f);
    let inverse = s.div(one, den);
    let t = s.mul(f, inverse);
    let t_lo = s.mul(s.neg_fma(t, den_lo, s.neg_fma(t, den, f)), inverse);
    let (z, z_lo) = two_prod(s, t, t);
    let z_lo = s.fma(s.add(t, t), t_lo, z_lo);
    // 2/3 + 2/5 z + …
    let series = s.mul(z, poly(s, z, [0.40000153, 0.28547096, 0.23419385]));
    let (w, w_lo) = fast_two_sum(s, s.splat(0.666_666_7), series);
    let w_lo = s.add(w_lo, s.splat(-1.986_821_6e-8));
    let (cube, cube_lo) = two_prod(s, t, z);
    let cube_lo = s.fma(t_lo, z, s.fma(t, z_lo, cube_lo));
    let (tail, tail_lo) = two_prod(s, cube, w);
    let tail_lo = s.fma(cube_lo, w, s.fma(cube, w_lo, tail_lo));
    let (ln, ln_lo) = fast_two_sum(s, s.add(t, t), tail);
    let ln_lo = s.add(ln_lo, s.add(s.add(t_lo, t_lo), tail_lo));

    let log2_e = s.splat(std::f32::consts::LOG2_E);
    let (log, log_lo) = two_prod(s, ln, log2_e);
    let log_lo = s.fma(ln_lo, log2_e, s.fma(ln, s.splat(LOG2_E_LO), log_lo));
    let (sum, sum_lo) = fast_two_sum(s, k, log);
    fast_two_sum(s, sum, s.add(sum_lo, log_lo))
}

/// 1/√x, within 0.501 ulp, with one correction step, so that the two roundings of a square root and a division do not add up.
#[inline(always)]
pub fn rsqrt<S: Simd>(s: S, x: S::F) -> S::F {
    let y = s.div(s.splat(1.0), s.sqrt(x));
    let (t, t_lo) = two_prod(s, x, y);
    let residual = s.neg_fma(t_lo, y, s.neg_fma(t, y, s.splat(1.0)));
    let better = s.fma(s.mul(y, s.splat(0.5)), residual, y);
    // Only 0 and ∞ have a result whose residual is not finite.
    s.select(s.is_nan(better), y, better)
}
