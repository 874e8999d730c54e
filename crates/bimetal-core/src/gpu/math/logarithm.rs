//! ln x and ln(1 + x): x = 2ᵏ (1 + f) with √½ ≤ 1 + f < √2, and ln(1 + f) = f − f²/2 + f³ R(f).

use super::*;

/// (ln(1 + f) − f) / f².
pub(super) const LOG: &[f32] =
    &[-0.5, 0.3333333, -0.2500082, 0.20001242, -0.16623409, 0.1420158, -0.1315961, 0.12762217, -0.07636439];

/// (k 2²³, m) of the bits of a positive normal number 2ᵏ m with √½ ≤ m < √2.
#[cube]
pub(super) fn split<N: Size>(x: Vector<u32, N>) -> (Vector<u32, N>, Vector<f32, N>) {
    let shifted = (x - Vector::new(0x3f35_04f3u32)) & Vector::new(0xff80_0000u32);
    (shifted, from_bits::<N>(x - shifted))
}

/// k of [`split`]'s first value.
#[cube]
pub(super) fn exponent<N: Size>(shifted: Vector<u32, N>) -> Vector<f32, N> {
    Vector::cast_from(Vector::<i32, N>::reinterpret(shifted) >> Vector::new(23i32))
}

/// The bits of x 2¹⁴⁹ and −149 where |x| is subnormal, of |x| and 0 elsewhere.
#[cube]
pub(super) fn normalised<N: Size>(x: Vector<f32, N>) -> (Vector<u32, N>, Vector<f32, N>) {
    let size = magnitude::<N>(x);
    let tiny = size.less_than(&Vector::new(NORMAL));
    let scaled = bits::<N>(Vector::cast_from(size));
    (select_many(tiny, scaled, size), select_many(tiny, Vector::new(-149.0f32), Vector::new(0.0f32)))
}

/// ln(2ᵏ (1 + f + rest)).
#[cube]
fn combine<N: Size>(k: Vector<f32, N>, f: Vector<f32, N>, rest: Vector<f32, N>) -> Vector<f32, N> {
    let r = poly::<N>(f, LOG);
    let tail = f * f * r + rest;
    // ln 2 cut after 15 bits: exact times any exponent.
    k * Vector::new(0.693_145_75f32) + (f + (tail + hidden::<N>(k, 0xffff_0000u32) * Vector::new(1.428_606_8e-6f32)))
}

/// ln x. −∞ at ±0, NaN below.
#[cube]
pub fn log<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let size = magnitude::<N>(x);
    let (normal, offset) = normalised::<N>(x);
    let (shifted, m) = split::<N>(normal);
    let zero = Vector::new(0.0f32);
    let y = combine::<N>(exponent::<N>(shifted) + offset, m - Vector::new(1.0f32), zero);
    let y = select_many(size.less_than(&Vector::new(INFINITY)), bits::<N>(y), size);
    let y = select_many(bits::<N>(x).greater_than(&Vector::new(0x8000_0000u32)), Vector::new(NAN), y);
    from_bits::<N>(select_many(size.equal(&Vector::new(0u32)), Vector::new(0xff80_0000u32), y))
}

/// ln(1 + x) without cancellation near 0. −∞ at −1, NaN below.
#[cube]
pub fn log1p<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let y = bits::<N>(log1p_finite::<N>(x));
    let y = select_many(magnitude::<N>(x).less_than(&Vector::new(INFINITY)), y, bits::<N>(x));
    let minus_one = Vector::new(0xbf80_0000u32);
    let y = select_many(bits::<N>(x).equal(&minus_one), Vector::new(0xff80_0000u32), y);
    from_bits::<N>(select_many(bits::<N>(x).greater_than(&minus_one), Vector::new(NAN), y))
}

/// ln(1 + x) for −1 < x < ∞, with the rounding error of 1 + x carried along.
#[cube]
pub(super) fn log1p_finite<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let (u, c) = two_sum::<N>(one, x);
    let (shifted, m) = split::<N>(bits::<N>(u));
    // c 2⁻ᵏ in two factors, because 2⁻ᵏ is not normal for the largest k.
    let unscale = from_bits::<N>(Vector::new(0x4000_0000u32) - shifted);
    let (f, rest) = fast_two_sum::<N>(m - one, c * Vector::new(0.5f32) * unscale);
    let y = combine::<N>(exponent::<N>(shifted), f, rest);
    select_many(abs::<N>(x).less_than(&Vector::new(2.980_232_2e-8f32)), x, y)
}
