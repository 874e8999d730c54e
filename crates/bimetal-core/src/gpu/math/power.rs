//! xʸ = 2^(y log₂|x|) with the logarithm in two floats; roots and quotients that mind subnormal numbers.

use super::logarithm::{exponent, normalised, split};
use super::*;

/// (2^r − 1) / r.
const EXP2: &[f32] = &[0.6931472, 0.24022648, 0.055503596, 0.009618503, 0.0013390997, 0.00015327803];

/// 2/5 + 2/7 z + …
const ARTANH: &[f32] = &[0.40000153, 0.28547096, 0.23419385];

/// xʸ with C99's special cases: 1 for y = 0 or x = 1 whatever the other, NaN for a negative finite x and a fractional
/// y, signed zeros and infinities for odd y.
#[cube]
pub fn pow<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>, #[comptime] fused: bool) -> Vector<f32, N> {
    let (x_size, y_size) = (magnitude::<N>(x), magnitude::<N>(y));
    let (inf, one) = (Vector::new(INFINITY), Vector::new(0x3f80_0000u32));
    let zero = Vector::new(0u32);
    let (log, log_lo) = log2_pair::<N>(x, fused);
    let log = select_many(x_size.equal(&zero), Vector::new(0xff80_0000u32), bits::<N>(log));
    let log = from_bits::<N>(select_many(x_size.equal(&inf), inf, log));

    let (v, v_lo) = two_prod::<N>(y, log, fused);
    let lo = y * log_lo + v_lo;
    let capped = limit::<N>(v, -200.0f32, 200.0f32);
    let n = capped.round();
    let r = capped - n;
    let r = select_many(v.equal(&capped), r + lo, r);
    let p = poly::<N>(r, EXP2);
    let size = bits::<N>(scale::<N>(Vector::new(1.0f32) + r * p, Vector::cast_from(n)));

    let half = y * Vector::new(0.5f32);
    // Numbers below 1 are told by their bits: a subnormal one may count as zero otherwise.
    let below_one = y_size.less_than(&one);
    let fractional = y.trunc().not_equal(&y).or(below_one);
    let odd = half.trunc().not_equal(&half).vec_and(y.trunc().equal(&y));
    let x_negative = bits::<N>(x).greater_than(&Vector::new(0x8000_0000u32));
    let sign = bits::<N>(x) & Vector::new(0x8000_0000u32);
    let result = select_many(odd, size | sign, size);
    let undefined = x_negative.vec_and(x_size.less_than(&inf)).vec_and(fractional);
    let result = select_many(undefined, Vector::new(NAN), result);
    // (±1)^±∞
    let result = select_many(x_size.equal(&one).vec_and(y_size.equal(&inf)), one, result);
    let result = select_many(is_nan::<N>(x).or(is_nan::<N>(y)), Vector::new(NAN), result);
    let trivial = y_size.equal(&zero).or(bits::<N>(x).equal(&one));
    from_bits::<N>(select_many(trivial, one, result))
}

/// log₂|x| to about 2⁻³⁵ of itself, for finite x ≠ 0: ln(1 + f) = 2 artanh t with t = f/(2 + f), whose first two terms
/// are kept in two floats.
#[cube]
fn log2_pair<N: Size>(x: Vector<f32, N>, #[comptime] fused: bool) -> (Vector<f32, N>, Vector<f32, N>) {
    let (normal, offset) = normalised::<N>(x);
    let (shifted, m) = split::<N>(normal);
    let k = exponent::<N>(shifted) + offset;
    let f = m - Vector::new(1.0f32);

    let (den, den_lo) = fast_two_sum::<N>(Vector::new(2.0f32), f);
    let inverse = Vector::new(1.0f32) / den;
    let t = f * inverse;
    let (back, back_lo) = two_prod::<N>(t, den, fused);
    let t_lo = (((f - back) - back_lo) - t * den_lo) * inverse;
    let (z, z_lo) = two_prod::<N>(t, t, fused);
    let z_lo = (t + t) * t_lo + z_lo;
    // 2/3 + 2/5 z + …
    let series = z * poly::<N>(z, ARTANH);
    let (w, w_lo) = fast_two_sum::<N>(Vector::new(0.666_666_7f32), series);
    let w_lo = w_lo - Vector::new(1.986_821_6e-8f32);
    let (cube, cube_lo) = two_prod::<N>(t, z, fused);
    let cube_lo = t_lo * z + (t * z_lo + cube_lo);
    let (tail, tail_lo) = two_prod::<N>(cube, w, fused);
    let tail_lo = cube_lo * w + (cube * w_lo + tail_lo);
    let (ln, ln_lo) = fast_two_sum::<N>(t + t, tail);
    let ln_lo = ln_lo + ((t_lo + t_lo) + tail_lo);

    let log2_e = Vector::new(f32::new(std::f32::consts::LOG2_E));
    let (log, log_lo) = two_prod::<N>(ln, log2_e, fused);
    let log_lo = ln_lo * log2_e + (ln * Vector::new(1.925_963e-8f32) + log_lo);
    let (sum, sum_lo) = fast_two_sum::<N>(k, log);
    fast_two_sum::<N>(sum, sum_lo + log_lo)
}

/// √x; NaN for a negative number, however small.
#[cube]
pub fn sqrt<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let negative = bits::<N>(x).greater_than(&Vector::new(0x8000_0000u32));
    let y = bits::<N>(abs::<N>(x).sqrt());
    let zero = magnitude::<N>(x).equal(&Vector::new(0u32));
    from_bits::<N>(select_many(zero, bits::<N>(x), select_many(negative, Vector::new(NAN), y)))
}

/// 1/√x; ±∞ at ±0, NaN for a negative number.
#[cube]
pub fn rsqrt<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let negative = bits::<N>(x).greater_than(&Vector::new(0x8000_0000u32));
    let size = magnitude::<N>(x);
    // 2¹⁴⁸ is the square of 2⁷⁴; the bits of a subnormal number are its multiple of 2⁻¹⁴⁹.
    let tiny = size.less_than(&Vector::new(NORMAL));
    let scaled: Vector<f32, N> = Vector::cast_from(size);
    let argument = select_many(tiny, scaled * Vector::new(0.5f32), abs::<N>(x));
    let factor = select_many(tiny, Vector::new(1.888_946_6e22f32), Vector::new(1.0f32));
    let y = bits::<N>(Vector::new(1.0f32) / argument.sqrt() * factor);
    let y = select_many(negative, Vector::new(NAN), y);
    let infinite = (bits::<N>(x) & Vector::new(0x8000_0000u32)) | Vector::new(INFINITY);
    from_bits::<N>(select_many(size.equal(&Vector::new(0u32)), infinite, y))
}

/// 1/x; ±∞ at ±0.
#[cube]
pub fn reciprocal<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0f32) / x
}

/// a / b, where subnormal operands count with their values on every device.
#[cube]
pub fn quotient<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let (a, a_exponent) = whole::<N>(a);
    let (b, b_exponent) = whole::<N>(b);
    scale::<N>(a / b, a_exponent - b_exponent)
}

/// (m, n) with x = m 2ⁿ and m normal or zero, where a quotient of two m overflows only if that of the x does.
#[cube]
fn whole<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<i32, N>) {
    let size = magnitude::<N>(x);
    let tiny = size.less_than(&Vector::new(NORMAL));
    let scaled = Vector::<f32, N>::cast_from(size) * Vector::new(5.960_464_5e-8f32);
    (select_many(tiny, xor_sign::<N>(scaled, x), x), select_many(tiny, Vector::new(-125i32), Vector::new(0i32)))
}
