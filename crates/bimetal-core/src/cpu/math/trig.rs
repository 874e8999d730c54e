//! Sine and cosine: |x| = q π/2 + r with |r| ≤ π/4, then a polynomial in r chosen and signed by q mod 4.

use super::double::{fast_two_sum, two_prod};
use super::poly;
use crate::cpu::simd::{MAX_LANES, Simd};

/// π/2 as a sum of three floats, each rounded to nearest.
const HALF_PI: [f32; 3] = [1.570_796_4, -4.371_139e-8, -1.715_124_5e-15];

/// Up to here q has 16 bits, so that q · HALF_PI\[0\] leaves an exact difference.
const COMMON: f32 = 1e5;

/// sin x, within 1.23 ulp for all finite x (worst at −3.8293e9); NaN at ±∞.
#[inline(always)]
pub fn sin<S: Simd>(s: S, x: S::F) -> S::F {
    let (q, r) = reduce(s, x);
    s.xor_sign(quadrant(s, q, r), x)
}

/// cos x, within 1.22 ulp for all finite x (worst at −1.5921e11); NaN at ±∞.
#[inline(always)]
pub fn cos<S: Simd>(s: S, x: S::F) -> S::F {
    let (q, r) = reduce(s, x);
    quadrant(s, s.add_i(q, s.splat_i(1)), r)
}

/// (sin x, cos x), reducing once.
#[inline(always)]
pub fn sin_cos<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let (q, r) = reduce(s, x);
    (s.xor_sign(quadrant(s, q, r), x), quadrant(s, s.add_i(q, s.splat_i(1)), r))
}

/// sin(q π/2 + r) of r in two floats; the second is too small to matter to the cosine.
#[inline(always)]
fn quadrant<S: Simd>(s: S, q: S::I, (r, r_lo): (S::F, S::F)) -> S::F {
    let z = s.mul(r, r);
    let sin = poly(s, z, [-0.16666655, 0.008332188, -0.000195181]);
    let sin = s.add(r, s.fma(s.mul(r, z), sin, r_lo));
    let cos = poly(s, z, [1.0, -0.5, 0.041666646, -0.0013887311, 2.4432553e-05]);
    let one = s.splat_i(1);
    let odd = s.eq_i(s.and_i(q, one), one);
    s.xor_sign(s.select(odd, cos, sin), s.from_bits(s.shl_i::<30>(q)))
}

/// (q, r) with |x| = q π/2 + r and r in two floats, up to multiples of 4 in q.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::F) -> (S::I, (S::F, S::F)) {
    let a = s.abs(x);
    let q = s.round(s.mul(a, s.splat(std::f32::consts::FRAC_2_PI)));
    let r = s.neg_fma(q, s.splat(HALF_PI[0]), a);
    // r is a multiple of the last place of this product, so the fast sum is exact although it may be smaller.
    let (mid, mid_lo) = two_prod(s, q, s.splat(-HALF_PI[1]));
    let (r, r_lo) = fast_two_sum(s, r, mid);
    let r = fast_two_sum(s, r, s.neg_fma(q, s.splat(HALF_PI[2]), s.add(r_lo, mid_lo)));
    let q = s.to_i(q);
    let large = s.gt(a, s.splat(COMMON));
    if s.any(large) { reduce_large(s, a, large, q, r) } else { (q, r) }
}

/// Replaces the lanes marked `large`, one by one.
#[cold]
#[inline(never)]
fn reduce_large<S: Simd>(s: S, a: S::F, large: S::M, q: S::I, r: (S::F, S::F)) -> (S::I, (S::F, S::F)) {
    let (a, mut r, mut r_lo) = (s.to_array(a), s.to_array(r.0), s.to_array(r.1));
    let mut quadrants = [0; MAX_LANES];
    // SAFETY: each of the arrays holds a vector of any level.
    unsafe {
        s.store_i(quadrants.as_mut_ptr(), q);
        let mask = s.mask_bits(large);
        for i in (0..S::LANES).filter(|i| mask >> i & 1 == 1) {
            let (q, exact) = payne_hanek(a[i]);
            (quadrants[i], r[i]) = (q, exact as f32);
            r_lo[i] = (exact - f64::from(r[i])) as f32;
        }
        (s.load_i(quadrants.as_ptr()), (s.load(r.as_ptr()), s.load(r_lo.as_ptr())))
    }
}

/// (q mod 4, r) with a = q π/2 + r, for finite a ≥ [`COMMON`]: the mantissa times the 96 bits of 2/π that decide q mod
/// 4 and the fraction (Payne and Hanek 1983). r is NaN for an infinite `a`.
fn payne_hanek(a: f32) -> (i32, f64) {
    const TWO_OVER_PI: [u32; 8] =
        [0xa2f9_836e, 0x4e44_1529, 0xfc27_57d1, 0xf534_ddc0, 0xdb62_9599, 0x3c43_9041, 0xfe51_63ab, 0xdebb_c561];
    /// Fraction bits of the product.
    const FRACTION: u32 = 94;
    if a.is_infinite() {
        return (0, f64::NAN);
    }
    let mantissa = u128::from(a.to_bits() & 0x7f_ffff | 0x80_0000);
    let exponent = (a.to_bits() >> 23) as i32 - 150;
    // Bits of 2/π before this one contribute multiples of 4.
    let start = (exponent - 2).max(0) as usize;
    let four_words = (0..4).fold(0, |w, i| w << 32 | u128::from(TWO_OVER_PI[start / 32 + i]));
    let window = four_words << (start % 32) >> 32;
    let product = (mantissa * window) >> (2 - exponent).max(0);
    let q = (product + (1 << (FRACTION - 1))) >> FRACTION;
    let fraction = product as i128 - (q << FRACTION) as i128;
    let r = fraction as f64 * (std::f64::consts::FRAC_PI_2 / (1u128 << FRACTION) as f64);
    ((q & 3) as i32, r)
}
