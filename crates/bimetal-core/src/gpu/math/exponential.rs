//! eˣ, eˣ − 1 and the error function: x = n ln 2 + r with |r| ≤ ln 2 / 2, and e^r by a polynomial.

use super::*;

/// (e^r − 1 − r) / r², for results near 1 and for results near 0.
const EXP: &[f32] = &[0.49999994, 0.16666521, 0.041668266, 0.0083686765, 0.0013820693];
const EXPM1: &[f32] = &[0.5, 0.16666666, 0.041666493, 0.008333545, 0.0013932332, 0.00019762541];

/// erf x / x − 1 in x², and ln erfc x.
const ERF: &[f32] = &[0.12837917, -0.3761259, 0.11282865, -0.026807288, 0.0050577037, -0.00063485187];
const LN_ERFC: &[f32] =
    &[-0.00010452279, -1.128061, -0.6365188, -0.104526125, 0.022519164, -0.0031178817, 0.00020367907];

/// eˣ. Infinite above 88.72; subnormal results may be zero.
#[cube]
pub fn exp<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (p, n) = exp_parts::<N>(limit::<N>(x, -110.0f32, 89.0f32), Vector::new(0.0f32));
    keep_nan::<N>(x, scale::<N>(p, n))
}

/// (n, r) with x = n ln 2 + r. ln 2 is cut after nine bits, so that n times its head is exact.
#[cube]
fn reduce<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let n = (x * Vector::new(f32::new(std::f32::consts::LOG2_E))).round();
    let r = x - n * Vector::new(0.693359375f32);
    (n, r + hidden::<N>(n, 0xffff_0000u32) * Vector::new(2.121_944_4e-4f32))
}

/// (p, n) with e^(x + lo) = p 2ⁿ and p near 1, for −110 ≤ x ≤ 89 and |lo| well below 1.
#[cube]
pub(super) fn exp_parts<N: Size>(x: Vector<f32, N>, lo: Vector<f32, N>) -> (Vector<f32, N>, Vector<i32, N>) {
    let (n, r) = reduce::<N>(x);
    let r = r + lo;
    let q = poly::<N>(r, EXP);
    ((r + r * r * q) + Vector::new(1.0f32), Vector::cast_from(n))
}

/// eˣ − 1 without cancellation near 0: 2ⁿ (e^r − 1) + (2ⁿ − 1).
#[cube]
pub fn expm1<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let half = Vector::new(0.5f32);
    let (n, r) = reduce::<N>(limit::<N>(x, -20.0f32, 89.0f32));
    let q = poly::<N>(r, EXPM1);
    let em1 = r + r * r * q;
    // Half of 2ⁿ stays finite where the result does.
    let half_scale = power_of_two::<N>(Vector::cast_from(n) - Vector::new(1i32));
    let halved = half_scale * em1 + (half_scale - half);
    let y = select_many(n.equal(&Vector::new(0.0f32)), em1, halved + halved);
    let zero = magnitude::<N>(x).equal(&Vector::new(0u32));
    select_many(zero.or(is_nan::<N>(x)), x, y)
}

/// The error function: an odd polynomial up to 0.85, 1 − e^−q(x) above, where q approximates −ln erfc.
#[cube]
pub fn erf<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let a = abs::<N>(x);
    let z = x * x;
    let near = x + x * poly::<N>(z, ERF);
    let t = min(a, Vector::new(4.0f32));
    let minus_q = poly::<N>(t, LN_ERFC);
    let (p, n) = exp_parts::<N>(minus_q, Vector::new(0.0f32));
    let far = Vector::new(1.0f32) - p * power_of_two::<N>(n);
    let y = select_many(a.less_than(&Vector::new(0.85f32)), near, xor_sign::<N>(far, x));
    keep_nan::<N>(x, y)
}
