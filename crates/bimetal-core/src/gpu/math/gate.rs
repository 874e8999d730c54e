//! Functions of e^−|x|: tanh, the logistic function, the activations built on them and the slopes of these. The power
//! of two of the exponential is put on last, so that small results keep their accuracy.

use super::logarithm::log1p_finite;
use super::*;

/// 2u = x (A + B x²) of the tanh form of GELU, in two floats each.
const A: (f32, f32) = (1.595_769_2, -4.534_068e-8);
const B: (f32, f32) = (0.071_354_814, 2.398_832_5e-9);

/// tanh x / x³ − 1/x², in x².
const TANH: &[f32] = &[-0.3333328, 0.13331406, -0.053736515, 0.020628167, -0.0056922967];

/// e^(a²/2) Φ(−a) / u with u = 1/(1 + 0.29 a), around u = 0.578125.
pub(super) const TAIL: &[f32] = &[
    0.24318445,
    0.38548496,
    0.41749367,
    0.26758072,
    0.033291247,
    -0.08705886,
    -0.034848996,
    0.038023297,
    0.015463454,
    -0.018074488,
];

/// |x|, not above `most`.
#[cube]
fn capped<N: Size>(x: Vector<f32, N>, #[comptime] most: f32) -> Vector<f32, N> {
    min(abs::<N>(x), Vector::new(f32::new(most)))
}

/// (p, n) with e^−a = p 2ⁿ.
#[cube]
fn decay<N: Size>(a: Vector<f32, N>) -> (Vector<f32, N>, Vector<i32, N>) {
    exp_parts::<N>(-a, Vector::new(0.0f32))
}

/// Whether the sign is +; NaN has either.
#[cube]
fn positive<N: Size>(x: Vector<f32, N>) -> Vector<bool, N> {
    bits::<N>(x).less_than(&Vector::new(0x8000_0000u32))
}

/// `plus / den` for positive x, `minus / den · 2ⁿ` for the others; NaN stays.
#[cube]
fn gate<N: Size>(
    x: Vector<f32, N>,
    plus: Vector<f32, N>,
    minus: Vector<f32, N>,
    den: Vector<f32, N>,
    n: Vector<i32, N>,
) -> Vector<f32, N> {
    let quotient = select_many(positive::<N>(x), plus, minus) / den;
    keep_nan::<N>(x, select_many(positive::<N>(x), quotient, scale::<N>(quotient, n)))
}

/// tanh x. An odd polynomial up to ⅝, 1 − 2/(e^2x + 1) above.
#[cube]
pub fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let a = abs::<N>(x);
    let one = Vector::new(1.0f32);
    let z = a * a;
    let near = a + a * z * poly::<N>(z, TANH);
    let doubled = min(a, Vector::new(10.0f32)) * Vector::new(2.0f32);
    let (p, n) = exp_parts::<N>(doubled, Vector::new(0.0f32));
    let far = one - Vector::new(2.0f32) / (p * power_of_two::<N>(n) + one);
    keep_nan::<N>(x, xor_sign::<N>(select_many(a.less_than(&Vector::new(0.625f32)), near, far), x))
}

/// 1 / (1 + e⁻ˣ), without overflow.
#[cube]
pub fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let (p, n) = decay::<N>(capped::<N>(x, 110.0f32));
    gate::<N>(x, one, p, one + scale::<N>(p, n), n)
}

/// ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|).
#[cube]
pub fn softplus<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (p, n) = decay::<N>(capped::<N>(x, 110.0f32));
    keep_nan::<N>(x, max(x, Vector::new(0.0f32)) + log1p_finite::<N>(scale::<N>(p, n)))
}

/// x / (1 + e⁻ˣ); its limit −0 at −∞.
#[cube]
pub fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let a = capped::<N>(x, 110.0f32);
    let (p, n) = decay::<N>(a);
    gate::<N>(x, x, -(a * p), Vector::new(1.0f32) + scale::<N>(p, n), n)
}

/// The slope of [`silu()`], σ (1 + x (1 − σ)).
#[cube]
pub fn silu_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let a = capped::<N>(x, 110.0f32);
    let (p, n) = decay::<N>(a);
    let e = scale::<N>(p, n);
    let den = one + e;
    gate::<N>(x, one + a * e / den, p * (one - a / den), den, n)
}

/// x tanh(ln(1 + eˣ)) = x w/(w + 2) with w = eˣ(eˣ + 2); for positive x both divided by e^2x. Its limit −0 at −∞.
#[cube]
pub fn mish<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let two = Vector::new(2.0f32);
    let a = capped::<N>(x, 110.0f32);
    let (p, n) = decay::<N>(a);
    let e = scale::<N>(p, n);
    let plus = Vector::new(1.0f32) + two * e;
    let den_plus = plus + two * e * e;
    let den = select_many(positive::<N>(x), den_plus, e * (e + two) + two);
    gate::<N>(x, x * plus, -(a * p * (e + two)), den, n)
}

/// The slope of [`mish()`], w/(w + 2) + 4x eˣ(1 + eˣ)/(w + 2)², with the divisions of [`mish()`].
#[cube]
pub fn mish_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (one, two) = (Vector::new(1.0f32), Vector::new(2.0f32));
    let a = capped::<N>(x, 110.0f32);
    let (p, n) = decay::<N>(a);
    let e = scale::<N>(p, n);
    let numerator = one + two * e;
    let den_plus = numerator + two * e * e;
    let den_minus = e * (e + two) + two;
    let bent = Vector::new(4.0f32) * a * (one + e);
    let plus = numerator * den_plus + bent * e * e;
    let minus = p * ((e + two) * den_minus - bent);
    let den = select_many(positive::<N>(x), den_plus, den_minus);
    gate::<N>(x, plus, minus, den * den, n)
}

/// (p, n, 1 + p 2ⁿ) with e^−2|u| = p 2ⁿ for |x| = a: an error of the exponent is a relative error of the result, so it
/// is kept in two floats.
#[cube]
fn tanh_gate<N: Size>(a: Vector<f32, N>, #[comptime] fused: bool) -> (Vector<f32, N>, Vector<i32, N>, Vector<f32, N>) {
    let b = Vector::new(f32::new(B.0));
    let (z, z_lo) = two_prod::<N>(a, a, fused);
    let (t, t_lo) = two_prod::<N>(z, b, fused);
    let (c, c_lo) = two_sum::<N>(Vector::new(f32::new(A.0)), t);
    let t_lo = Vector::new(f32::new(A.1)) + z * Vector::new(f32::new(B.1)) + z_lo * b + t_lo;
    let (v, v_lo) = two_prod::<N>(a, c, fused);
    let v_lo = a * (c_lo + t_lo) + v_lo;
    let (p, n) = exp_parts::<N>(-v, -v_lo);
    (p, n, Vector::new(1.0f32) + scale::<N>(p, n))
}

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x / (1 + e^−2u).
#[cube]
pub fn gelu_tanh<N: Size>(x: Vector<f32, N>, #[comptime] fused: bool) -> Vector<f32, N> {
    let a = capped::<N>(x, 12.0f32);
    let (p, n, den) = tanh_gate::<N>(a, fused);
    gate::<N>(x, x, -(a * p), den, n)
}

/// The slope of [`gelu_tanh()`], s (1 + x (1 − s) 2u′) with s = 1 / (1 + e^−2u).
#[cube]
pub fn gelu_tanh_slope<N: Size>(x: Vector<f32, N>, #[comptime] fused: bool) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let a = capped::<N>(x, 12.0f32);
    let (p, n, den) = tanh_gate::<N>(a, fused);
    let rise = a * (Vector::new(f32::new(A.0)) + Vector::new(f32::new(3.0 * B.0)) * a * a);
    gate::<N>(x, one + rise * scale::<N>(p, n) / den, p * (one - rise / den), den, n)
}

/// (a, p, n, M(a)) with a = |x|, e^(−a²/2) = p 2ⁿ and Φ(−a) = p 2ⁿ M(a).
#[cube]
#[allow(clippy::type_complexity)]
fn normal_tail<N: Size>(
    x: Vector<f32, N>,
    #[comptime] fused: bool,
) -> (Vector<f32, N>, Vector<f32, N>, Vector<i32, N>, Vector<f32, N>) {
    let one = Vector::new(1.0f32);
    let a = capped::<N>(x, 15.0f32);
    let (v, v_lo) = two_prod::<N>(a, a * Vector::new(-0.5f32), fused);
    let (p, n) = exp_parts::<N>(v, v_lo);
    // M(a) = u P(u − centre) with u = 1/(1 + 0.29 a); M varies up to 2.75 times as fast as u, so u needs its error.
    let (t, t_lo) = two_prod::<N>(a, Vector::new(0.29f32), fused);
    let (den, den_lo) = two_sum::<N>(one, t);
    let u = one / den;
    let (back, back_lo) = two_prod::<N>(u, den, fused);
    let u_lo = u * ((one - back) - back_lo - u * (den_lo + t_lo));
    let q = poly::<N>((u - Vector::new(0.578125f32)) + u_lo, TAIL);
    (a, p, n, u * q + u_lo * q)
}

/// x Φ(x) = x/2 (1 + erf(x/√2)), accurate relative to itself for negative x too. Its limit −0 at −∞.
#[cube]
pub fn gelu<N: Size>(x: Vector<f32, N>, #[comptime] fused: bool) -> Vector<f32, N> {
    let (a, p, n, m) = normal_tail::<N>(x, fused);
    let tail = scale::<N>(a * p * m, n);
    keep_nan::<N>(x, select_many(positive::<N>(x), x - tail, -tail))
}

/// The slope of [`gelu()`], Φ(x) + x φ(x).
#[cube]
pub fn gelu_slope<N: Size>(x: Vector<f32, N>, #[comptime] fused: bool) -> Vector<f32, N> {
    let (a, p, n, m) = normal_tail::<N>(x, fused);
    let tail = scale::<N>(p * (m - a * Vector::new(0.398_942_3f32)), n);
    keep_nan::<N>(x, select_many(positive::<N>(x), Vector::new(1.0f32) - tail, tail))
}
