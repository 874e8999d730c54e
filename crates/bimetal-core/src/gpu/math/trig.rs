//! Sine and cosine: |x| = q π/2 + r with |r| ≤ π/4, then a polynomial in r chosen and signed by q mod 4.

use super::*;

/// (sin r − r) / r³ and cos r, in r².
const SIN: &[f32] = &[-0.16666655, 0.008332188, -0.000195181];
const COS: &[f32] = &[1.0, -0.5, 0.041666646, -0.0013887311, 2.4432553e-05];

/// Up to here q has twelve bits, and so have the parts of π/2: their products are exact.
const COMMON: f32 = 6000.0;

/// sin x; NaN at ±∞.
#[cube]
pub fn sin<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (q, r) = reduce::<N>(x);
    let y = xor_sign::<N>(quadrant::<N>(q, r), x);
    let zero = magnitude::<N>(x).equal(&Vector::new(0u32));
    outside::<N>(x, select_many(zero, x, y))
}

/// cos x; NaN at ±∞.
#[cube]
pub fn cos<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (q, r) = reduce::<N>(x);
    outside::<N>(x, quadrant::<N>(q + Vector::new(1u32), r))
}

/// NaN where x is NaN or infinite, y elsewhere.
#[cube]
fn outside<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>) -> Vector<f32, N> {
    let finite = magnitude::<N>(x).less_than(&Vector::new(INFINITY));
    from_bits::<N>(select_many(finite, bits::<N>(y), Vector::new(NAN)))
}

/// sin(q π/2 + r)
#[cube]
fn quadrant<N: Size>(q: Vector<u32, N>, r: Vector<f32, N>) -> Vector<f32, N> {
    let z = r * r;
    let sin = r + r * z * poly::<N>(z, SIN);
    let cos = poly::<N>(z, COS);
    let one = Vector::new(1u32);
    let odd = (q & one).equal(&one);
    let sign = (q & Vector::new(2u32)) << Vector::new(30u32);
    from_bits::<N>(bits::<N>(select_many(odd, cos, sin)) ^ sign)
}

/// (q, r) with |x| = q π/2 + r, up to multiples of 4 in q.
#[cube]
fn reduce<N: Size>(x: Vector<f32, N>) -> (Vector<u32, N>, Vector<f32, N>) {
    let a = abs::<N>(x);
    let large = a.greater_than(&Vector::new(f32::new(COMMON)));
    let n = (limit::<N>(a, 0.0f32, COMMON) * Vector::new(f32::new(std::f32::consts::FRAC_2_PI))).round();
    // π/2 in parts of twelve bits and a rest.
    let r = a - n * Vector::new(1.570_312_5f32);
    let r = r - hidden::<N>(n, 0xffff_f000u32) * Vector::new(4.837_513e-4f32);
    let r = r - hidden::<N>(n, 0xffff_f800u32) * Vector::new(7.549_533_6e-8f32);
    let r = r - hidden::<N>(n, 0xffff_fc00u32) * Vector::new(2.563_344e-12f32);
    let mut quadrants = Vector::<u32, N>::cast_from(n);
    let mut rest = r;
    let mut any = 0u32;
    #[unroll]
    for i in 0..N::value() {
        any |= select(large.extract(i), 1u32, 0u32);
    }
    if any == 1u32 {
        let (q, r) = reduce_large::<N>(a);
        quadrants = select_many(large, q, quadrants);
        rest = select_many(large, r, rest);
    }
    (quadrants, rest)
}

/// (q mod 4, r) with a = q π/2 + r, for a ≥ [`COMMON`]: the mantissa times the 96 bits of 2/π that decide q mod 4 and
/// the fraction (Payne and Hanek 1983), in integers.
#[cube]
fn reduce_large<N: Size>(a: Vector<f32, N>) -> (Vector<u32, N>, Vector<f32, N>) {
    let size = bits::<N>(a);
    let mantissa = (size & Vector::new(0x007f_ffffu32)) | Vector::new(0x0080_0000u32);
    // a = mantissa · 2^(field − 150); the first bit of 2/π that counts is worth 2^(1 − (field − 150)).
    let position = (size >> Vector::new(23u32)) - Vector::new(120u32);
    let word = position >> Vector::new(5u32);
    let shift = position & Vector::new(31u32);
    let w0 = window::<N>(word, shift, 0usize);
    let w1 = window::<N>(word, shift, 1usize);
    let w2 = window::<N>(word, shift, 2usize);
    let low = mantissa * w1;
    let middle = low + Vector::mul_hi(mantissa, w2);
    let carry = select_many(middle.less_than(&low), Vector::new(1u32), Vector::new(0u32));
    let high = mantissa * w0 + Vector::mul_hi(mantissa, w1) + carry;

    // Two bits of quadrant, then 62 of fraction, rounded to the nearest quadrant.
    let up = (high >> Vector::new(29u32)) & Vector::new(1u32);
    let q = (high >> Vector::new(30u32)) + up;
    let negative = up.equal(&Vector::new(1u32));
    let fraction = high << Vector::new(2u32) | middle >> Vector::new(30u32);
    let below = middle << Vector::new(2u32);
    let ones = Vector::new(0xffff_ffffu32);
    let fraction = select_many(negative, fraction ^ ones, fraction);
    let below = select_many(negative, below ^ ones, below);
    let r = Vector::<f32, N>::cast_from(fraction) * Vector::new(3.657_295_3e-10f32)
        + Vector::<f32, N>::cast_from(below) * Vector::new(8.515_304e-20f32);
    (q, select_many(negative, -r, r))
}

/// Word `index` of 2/π (32 zero bits before the binary point) from bit `32 word + shift` on.
#[cube]
fn window<N: Size>(word: Vector<u32, N>, shift: Vector<u32, N>, #[comptime] index: usize) -> Vector<u32, N> {
    let first = two_over_pi::<N>(word, index);
    let second = two_over_pi::<N>(word, comptime!(index + 1));
    let high = first << shift;
    // A shift by 32 is undefined, so it is done in two.
    let low = second >> Vector::new(1u32) >> (Vector::new(31u32) - shift);
    high | low
}

#[cube]
fn two_over_pi<N: Size>(word: Vector<u32, N>, #[comptime] index: usize) -> Vector<u32, N> {
    let table = comptime!([
        0u32,
        0xa2f9_836e,
        0x4e44_1529,
        0xfc27_57d1,
        0xf534_ddc0,
        0xdb62_9599,
        0x3c43_9041,
        0xfe51_63ab,
        0xdebb_c561,
    ]);
    let mut value = Vector::new(u32::new(comptime!(table[index] as i64)));
    #[unroll]
    for i in 1..5usize {
        let here = word.equal(&Vector::new(u32::new(comptime!(i as i64))));
        value = select_many(here, Vector::new(u32::new(comptime!(table[index + i] as i64))), value);
    }
    value
}
