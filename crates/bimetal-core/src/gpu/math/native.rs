//! The functions where CUDA's own arithmetic is cheaper than [`math`](super)'s: fused products, the multifunction unit's
//! 2ʳ and reciprocal (2 and 1 ulp), and NVIDIA's `exp`, `log`, `tanh` and `erf`, which are within 2 ulp.
//!
//! Per element an H200 has 45 instructions before arithmetic costs more than eight bytes of memory; conversions, roundings
//! and the multifunction unit count eight each, selections and integers two. So n of x = n ln 2 + r is found by adding
//! [`MAGIC`], whose low bits then hold n + 127, and special cases come out of the arithmetic.

use super::power as portable;
use super::*;

/// 1.5·2²³ + 127: the sum with a number below 2²² is rounded to an integer n, and its bits end with n + 127.
const MAGIC: f32 = 12_583_039.0;

/// log₂ e in two floats.
const LOG2_E: (f32, f32) = (1.442_695_02, 1.925_963e-8);

/// 2u = x (A + B x²) of the tanh form of GELU, and the same in units of ln 2: A to 19 bits after the point and a rest.
const A: f32 = 1.595_769_2;
const B: f32 = 0.071_354_814;
const A2: (f32, f32) = (2.302_207_946_777_343_8, 2.513_669_8e-7);
const B2: (f32, f32) = (0.102_943_242, -2.016_198_4e-9);

/// (ln(1 + t) − t) / t² for 0 ≤ t ≤ 1; 5e-9.
const LOG1P: &[f32] = &[
    -0.499_999_31,
    0.333_305_12,
    -0.249_585_87,
    0.196_954_01,
    -0.153_553_96,
    0.106_805_56,
    -0.057_664_443,
    0.020_204_585,
    -0.003_318_472_3,
];

/// (artanh √s / √s − 1) / s for s up to (√2 − 1)²/(√2 + 1)²; 5e-12 of the whole.
const ARTANH: &[f32] = &[0.333_333_32, 0.200_001_67, 0.142_686_4, 0.117_913_835];

/// (2^r − 1) / r for |r| ≤ ½; 2e-9 of the whole.
const EXP2: &[f32] = &[0.693_147_2, 0.240_226_48, 0.055_503_32, 0.009_618_44, 0.001_339_913_2, 0.000_153_531_54];

/// An instruction of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Instruction {
    /// 2ˣ; subnormal results are zero.
    Exp2,
    /// 1/x; subnormal numbers are zero.
    Inverse,
    /// 1/x of any number.
    Reciprocal,
    /// √x of any number.
    Sqrt,
    /// 1/√x of any number.
    Rsqrt,
}

#[cube]
fn each<N: Size>(x: Vector<f32, N>, #[comptime] instruction: Instruction) -> Vector<f32, N> {
    let mut all = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..N::value() {
        let x = x.extract(i);
        let y: f32;
        match comptime!(instruction) {
            Instruction::Exp2 => gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) y, in(_) x, options(pure, nomem)),
            Instruction::Inverse => gpu_asm!("rcp.approx.ftz.f32 {}, {};", out(_) y, in(_) x, options(pure, nomem)),
            Instruction::Reciprocal => gpu_asm!("rcp.approx.f32 {}, {};", out(_) y, in(_) x, options(pure, nomem)),
            Instruction::Sqrt => gpu_asm!("sqrt.approx.f32 {}, {};", out(_) y, in(_) x, options(pure, nomem)),
            Instruction::Rsqrt => gpu_asm!("rsqrt.approx.f32 {}, {};", out(_) y, in(_) x, options(pure, nomem)),
        }
        all.insert(i, y);
    }
    all
}

#[cube]
fn exp2<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    each::<N>(x, Instruction::Exp2)
}

#[cube]
fn inverse<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    each::<N>(x, Instruction::Inverse)
}

/// 1/x; ±∞ at ±0.
#[cube]
pub(super) fn reciprocal<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    each::<N>(x, Instruction::Reciprocal)
}

/// √x; NaN for a negative number.
#[cube]
pub(super) fn sqrt<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    each::<N>(x, Instruction::Sqrt)
}

/// 1/√x; ±∞ at ±0, NaN for a negative number.
#[cube]
pub(super) fn rsqrt<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    each::<N>(x, Instruction::Rsqrt)
}

/// a/b, to 2 ulp.
#[cube]
pub(super) fn quotient<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    let mut all = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..N::value() {
        let (a, b) = (a.extract(i), b.extract(i));
        let y: f32;
        gpu_asm!("div.full.f32 {}, {}, {};", out(_) y, in(_) a, in(_) b, options(pure, nomem));
        all.insert(i, y);
    }
    all
}

/// The larger of x and `least`; NaN stays, which `max` does not promise.
#[cube]
fn at_least<N: Size>(x: Vector<f32, N>, #[comptime] least: f32) -> Vector<f32, N> {
    let least = Vector::new(f32::new(least));
    select_many(x.less_than(&least), least, x)
}

/// The smaller of x and `most`; NaN stays.
#[cube]
fn at_most<N: Size>(x: Vector<f32, N>, #[comptime] most: f32) -> Vector<f32, N> {
    let most = Vector::new(f32::new(most));
    select_many(x.greater_than(&most), most, x)
}

/// max(x, 0); NaN stays.
#[cube]
fn positive_part<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    at_least::<N>(x, 0.0f32)
}

/// (p, s) with 2^(a b + lo) = p s, s a power of two, and `a b` up to 127; p is small where the power is below 2⁻¹²⁶. The
/// product is not rounded.
#[cube]
fn power<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, lo: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let magic = Vector::new(f32::new(MAGIC));
    let sum = max(fma(a, b, magic), Vector::new(f32::new(MAGIC - 126.0)));
    let r = fma(a, b, magic - sum) + lo;
    (exp2::<N>(r), from_bits::<N>(bits::<N>(sum) << Vector::new(23u32)))
}

/// [`power`] for eˣ.
#[cube]
fn exp_power<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    power::<N>(x, Vector::new(f32::new(LOG2_E.0)), x * Vector::new(f32::new(LOG2_E.1)))
}

/// 1 / (1 + e⁻ˣ).
#[cube]
pub(super) fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    inverse::<N>(Vector::new(1.0f32) + (-x).exp())
}

/// ln(1 + eˣ).
#[cube]
pub(super) fn softplus<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let t = (-abs::<N>(x)).exp();
    max(x, Vector::new(0.0f32)) + fma(t * t, poly::<N>(t, LOG1P), t)
}

/// x E/(1 + E), with E = p s; x may be larger than the exponent that E is of, but is not −∞.
#[cube]
fn gated<N: Size>(x: Vector<f32, N>, p: Vector<f32, N>, s: Vector<f32, N>) -> Vector<f32, N> {
    let share = p * inverse::<N>(fma(p, s, Vector::new(1.0f32)));
    x * share * s
}

/// x / (1 + e⁻ˣ).
#[cube]
pub(super) fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = at_least::<N>(x, -120.0f32);
    let (p, s) = exp_power::<N>(min(x, Vector::new(20.0f32)));
    gated::<N>(x, p, s)
}

/// E/(1 + E) (1 + rise/(1 + E)) with E = p s.
#[cube]
fn gated_slope<N: Size>(rise: Vector<f32, N>, p: Vector<f32, N>, s: Vector<f32, N>) -> Vector<f32, N> {
    let inverse = inverse::<N>(fma(p, s, Vector::new(1.0f32)));
    p * fma(rise * inverse, inverse, inverse) * s
}

/// The slope of [`silu`].
#[cube]
pub(super) fn silu_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = at_most::<N>(at_least::<N>(x, -120.0f32), 30.0f32);
    let (p, s) = exp_power::<N>(x);
    gated_slope::<N>(x, p, s)
}

/// x w/(w + 2) with w = E (E + 2) and E = eˣ.
#[cube]
pub(super) fn mish<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let two = Vector::new(2.0f32);
    let x = at_least::<N>(x, -120.0f32);
    let (p, s) = exp_power::<N>(min(x, Vector::new(20.0f32)));
    let e = p * s;
    let f = e + two;
    let share = p * f * inverse::<N>(fma(e, f, two));
    x * share * s
}

/// The slope of [`mish`], E ((E + 2) (w + 2) + 4 x (1 + E))/(w + 2)².
#[cube]
pub(super) fn mish_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let two = Vector::new(2.0f32);
    let x = at_most::<N>(at_least::<N>(x, -120.0f32), 20.0f32);
    let (p, s) = exp_power::<N>(x);
    let e = p * s;
    let f = e + two;
    let den = fma(e, f, two);
    let inverse = inverse::<N>(den);
    let bent = Vector::new(4.0f32) * x * (e + Vector::new(1.0f32));
    p * fma(f, den, bent) * inverse * inverse * s
}

/// ([`power`] of e^2u, x²) with 2u = x (A + B x²). A + B x² is cut to 18 bits after the point, which makes the rest exact.
#[cube]
#[allow(clippy::type_complexity)]
fn tanh_power<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>, Vector<f32, N>) {
    let (a, b) = (Vector::new(f32::new(A2.0)), Vector::new(f32::new(B2.0)));
    let z = x * x;
    let z_lo = fma(x, x, -z);
    let c = fma(b, z, Vector::new(f32::new(A2.0 + 24.0))) - Vector::new(24.0f32);
    let rest = fma(b, z, a - c);
    let rest = fma(b, z_lo, fma(z, Vector::new(f32::new(B2.1)), rest)) + Vector::new(f32::new(A2.1));
    let (p, s) = power::<N>(x, c, x * rest);
    (p, s, z)
}

/// x / (1 + e^−2u).
#[cube]
pub(super) fn gelu_tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = at_least::<N>(x, -12.0f32);
    let (p, s, _z) = tanh_power::<N>(min(x, Vector::new(6.0f32)));
    gated::<N>(x, p, s)
}

/// The slope of [`gelu_tanh`].
#[cube]
pub(super) fn gelu_tanh_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let x = at_most::<N>(at_least::<N>(x, -12.0f32), 6.0f32);
    let (p, s, z) = tanh_power::<N>(x);
    let rise = x * fma(z, Vector::new(f32::new(3.0 * B)), Vector::new(f32::new(A)));
    gated_slope::<N>(rise, p, s)
}

/// ([`power`] of e^(−a²/2), M(a)) with Φ(−a) = e^(−a²/2) M(a). M = u P(u − centre) with u = 1/(1 + 0.29 a) varies up to 2.75
/// times as fast as u, so u gets its error back. A quotient of polynomials in a takes ten instructions less, but each of
/// its nine steps adds a rounding: 6 to 7 ulp in all.
#[cube]
fn normal_tail<N: Size>(a: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>, Vector<f32, N>) {
    let half = Vector::new(f32::new(-0.5 * LOG2_E.0));
    let z = a * a;
    let z_lo = fma(a, a, -z);
    let (p, s) = power::<N>(z, half, fma(z_lo, half, z * Vector::new(f32::new(-0.5 * LOG2_E.1))));
    let (one, slope) = (Vector::new(1.0f32), Vector::new(0.29f32));
    let den = fma(a, slope, one);
    let u = inverse::<N>(den);
    let u_lo = u * fma(-u, fma(a, slope, one - den), fma(-u, den, one));
    let q = poly::<N>((u - Vector::new(0.578125f32)) + u_lo, gate::TAIL);
    (p, s, fma(u, q, u_lo * q))
}

/// x Φ(x).
#[cube]
pub(super) fn gelu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let a = min(abs::<N>(x), Vector::new(15.0f32));
    let (p, s, m) = normal_tail::<N>(a);
    positive_part::<N>(x) - a * p * m * s
}

/// Φ(x) + x φ(x).
#[cube]
pub(super) fn gelu_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let a = at_most::<N>(abs::<N>(x), 15.0f32);
    let (p, s, m) = normal_tail::<N>(a);
    let tail = p * fma(a, Vector::new(-0.398_942_3f32), m) * s;
    select_many(x.greater_than(&Vector::new(0.0f32)), Vector::new(1.0f32) - tail, tail)
}

/// Whether every lane is set.
#[cube]
fn all<N: Size>(mask: Vector<bool, N>) -> bool {
    let mut set = true;
    #[unroll]
    for i in 0..N::value() {
        set = set && mask.extract(i);
    }
    set
}

/// ln(1 + x): the scale of 1 + x is taken off x and 1 apart, so that nothing is lost.
#[cube]
pub(super) fn log1p<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    let (shifted, _m) = logarithm::split::<N>(bits::<N>(one + x));
    let unit = from_bits::<N>(Vector::new(0x4080_0000u32) - shifted);
    let f = from_bits::<N>(bits::<N>(x) - shifted) + fma(unit, Vector::new(0.25f32), -one);
    let k: Vector<f32, N> = Vector::cast_from(Vector::<i32, N>::reinterpret(shifted));
    // ln 2 / 2²³
    let y = fma(k, Vector::new(8.262_958_3e-8f32), fma(f * f, poly::<N>(f, logarithm::LOG), f));
    let usual = x.greater_than(&-one).vec_and(magnitude::<N>(x).less_than(&Vector::new(INFINITY)));
    if all::<N>(usual) { y } else { select_many(usual, y, (one + x).ln()) }
}

/// xʸ of positive normal x where the result is normal; the lanes of any other vector as in [`super::power::pow()`].
#[cube]
pub(super) fn pow<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>) -> Vector<f32, N> {
    let (shifted, m) = logarithm::split::<N>(bits::<N>(x));
    let k: Vector<f32, N> = Vector::cast_from(Vector::<i32, N>::reinterpret(shifted));
    let k = k * Vector::new(1.192_092_9e-7f32);
    let (hi, lo) = log2_pair::<N>(k, m);
    let v = y * (hi + lo);
    let magic = Vector::new(f32::new(MAGIC - 127.0));
    let sum = v + magic;
    let r = fma(y, lo, fma(y, hi, magic - sum));
    let p = fma(r, poly::<N>(r, EXP2), Vector::new(1.0f32));
    let fast = from_bits::<N>(bits::<N>(p) + (bits::<N>(sum) << Vector::new(23u32)));
    let normal = (bits::<N>(x) - Vector::new(NORMAL)).less_than(&Vector::new(INFINITY - NORMAL));
    let usual = normal.vec_and(abs::<N>(v).less_than(&Vector::new(125.0f32)));
    if all::<N>(usual) { fast } else { portable::pow::<N>(x, y, true) }
}

/// k + log₂ m in two floats, to 2⁻³⁰ of itself; not normalised: the second is up to 1% of the first. As in [`power`], but
/// with ln(1 + f) = 2 (q + q³ R(q²)), where q³ needs no more than its own rounding error, 1% of that of q.
#[cube]
fn log2_pair<N: Size>(k: Vector<f32, N>, m: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::new(1.0f32);
    let f = m - one;
    let inverse = inverse::<N>(m + one);
    let q = f * inverse;
    let q_lo = inverse * fma(-q, f, fma(q, Vector::new(-2.0f32), f));
    let s = q * q;
    let s_lo = fma(q, q_lo + q_lo, fma(q, q, -s));
    let cube = s * q;
    let cube_lo = fma(s, q_lo, fma(s_lo, q, fma(s, q, -cube)));
    let series = poly::<N>(s, ARTANH);
    let rest = fma(cube, series, fma(cube_lo, series, q_lo));
    let scale = Vector::new(f32::new(2.0 * LOG2_E.0));
    let hi = fma(q, scale, k);
    let lo = fma(q, scale, k - hi);
    (hi, fma(rest, scale, fma(q, Vector::new(f32::new(2.0 * LOG2_E.1)), lo)))
}
