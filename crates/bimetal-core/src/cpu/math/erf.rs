//! The error function, its complement and the exact GELU, x Φ(x), with the normal tail Φ(−a) = e^(−a²/2) M(a).

use super::double::two_prod;
use super::exp::exp_parts;
use super::poly;
use crate::cpu::simd::Simd;

/// erf x, within 1.16 ulp (worst at 0.85029). An odd polynomial up to 0.85, 1 − e^−q(x) above, where q approximates −ln erfc.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let p = poly(s, z, [0.12837917, -0.3761259, 0.11282865, -0.026807288, 0.0050577037, -0.00063485187]);
    let near = s.fma(x, p, x);
    let t = s.min(s.splat(4.0), a);
    let minus_q = [-0.00010452279, -1.128061, -0.6365188, -0.104526125, 0.022519164, -0.0031178817, 0.00020367907];
    let (p, n) = exp_parts(s, poly(s, t, minus_q), None);
    let far = s.sub(s.splat(1.0), s.scale_pow2_normal(p, n));
    s.select(s.lt(a, s.splat(0.85)), near, s.xor_sign(far, x))
}

/// 1 − erf x, within 4.39 ulp (worst at 7.4198), relative to itself until it underflows near 10.05.
#[inline(always)]
pub fn erfc<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.min(s.splat(10.5), s.abs(x));
    let (square, square_lo) = two_prod(s, a, a);
    let (p, n) = exp_parts(s, s.neg(square), Some(s.neg(square_lo)));
    let m = tail_ratio(s, a, std::f32::consts::SQRT_2);
    let tail = s.scale_pow2(s.mul(s.add(m, m), p), n);
    s.select(s.lt(x, s.splat(0.0)), s.sub(s.splat(2.0), tail), tail)
}

/// Below this, [`gelu`] needs no division.
const NEAR: f32 = 4.0;

/// x Φ(x) = x/2 (1 + erf(x/√2)), within 4.33 ulp (worst at −11.994), relative to itself for negative x too, until it
/// underflows near −14.4. Its limit −0 at −∞.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let near = s.all(s.lt(a, s.splat(NEAR)));
    let a = if near { a } else { s.min(s.splat(15.0), a) };
    let half = s.mul(a, s.splat(-0.5));
    let (v, v_lo) = two_prod(s, a, half);
    let (p, n) = exp_parts(s, v, Some(v_lo));
    if near {
        let tail = s.scale_pow2_normal(s.mul(s.mul(a, p), near_ratio(s, a)), n);
        return s.sub(s.max(s.splat(0.0), x), tail);
    }
    let tail = s.scale_pow2(s.mul(s.mul(a, p), tail_ratio(s, a, 1.0)), n);
    s.select(s.ge(x, s.splat(0.0)), s.sub(x, tail), s.neg(tail))
}

/// M(a) of [`tail_ratio`] for a < [`NEAR`], a polynomial about the middle.
#[inline(always)]
fn near_ratio<S: Simd>(s: S, a: S::F) -> S::F {
    const P: [f32; 13] = [
        0.168_102,
        -0.0627381951,
        0.0213128012,
        -0.00670488831,
        0.00197587674,
        -0.000549179735,
        0.000145924569,
        -3.80489546e-05,
        9.05426623e-06,
        -1.66269194e-06,
        4.24150272e-07,
        -1.87423481e-07,
        3.58108849e-08,
    ];
    poly(s, s.sub(a, s.splat(NEAR / 2.0)), P)
}

/// M(t) = e^(t²/2) Φ(−t) at t = scale · a in \[0, 15\]: u P(u − centre) with u = 1/(1 + 0.29 t), because M falls like
/// 1/t. The centre keeps the terms of P small, and with them its rounding errors.
#[inline(always)]
pub(super) fn tail_ratio<S: Simd>(s: S, a: S::F, scale: f32) -> S::F {
    const CENTRE: f32 = 0.578125;
    const P: [f32; 10] = [
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
    let (one, c) = (s.splat(1.0), s.splat(0.29 * scale));
    let den = s.fma(a, c, one);
    let den_lo = s.fma(a, c, s.sub(one, den));
    let u = s.div(one, den);
    // M varies up to 2.75 times as fast as u, so u needs its rounding error too.
    let u_lo = s.mul(u, s.neg_fma(u, den_lo, s.neg_fma(u, den, one)));
    let p = poly(s, s.add(s.sub(u, s.splat(CENTRE)), u_lo), P);
    s.fma(u, p, s.mul(u_lo, p))
}
