//! Elementary functions in kernels: one source for every GPU language, because the languages promise little (WGSL's
//! `exp` may be off by 3 + 2|x| ulp, `log` by 3, `sin` by 2⁻¹¹ absolute, and `erf` is a polyfill of 1.5e-7).
//!
//! Only additions, multiplications, divisions and integer operations are used, so that a result depends on the device
//! through the rounding of its division at most. Products are never assumed to be fused (Mesa's CPU driver splits
//! them), subnormal numbers are recognised by their bits (several devices read them as zero), and infinities and NaN
//! are made from bits (WGSL has no literals for them). Polynomials are those of [`cpu::math`](crate::cpu::math).
//!
//! Kernels pass the device's [`Arithmetic`]: where `fma` rounds once, exact products are cheaper, and on CUDA most functions
//! have a form of their own.

// Constants are written as they are rounded, and a coefficient near ln 2 is not ln 2.
#![allow(clippy::excessive_precision, clippy::approx_constant)]

mod chosen;
mod exponential;
mod gate;
mod logarithm;
mod native;
mod power;
mod trig;

pub use chosen::{
    erf, gelu, gelu_slope, gelu_tanh, gelu_tanh_slope, log, log1p, mish, mish_slope, pow, quotient, reciprocal, rsqrt,
    sigmoid, silu, silu_slope, softplus, sqrt, tanh,
};
pub use exponential::{exp, expm1};
pub use trig::{cos, sin};

use crate::{Device, Gpu};
use cubecl::prelude::*;
use exponential::exp_parts;

/// What a device's arithmetic offers to kernels, chosen when they are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `fma` may round twice: Vulkan and WGSL leave it open.
    Plain,
    /// `fma` rounds once.
    Fused,
    /// CUDA: `fma` rounds once, and PTX instructions and NVIDIA's functions are there.
    Native,
}

impl Gpu {
    /// What kernels on this device are compiled for.
    pub fn arithmetic(&self) -> Arithmetic {
        match self.device() {
            Device::Cuda(_) => Arithmetic::Native,
            _ if self.fused() => Arithmetic::Fused,
            _ => Arithmetic::Plain,
        }
    }
}

/// All bits but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;
/// The bits of a quiet NaN.
const NAN: u32 = 0x7fc0_0000;
/// The bits of the smallest normal number.
const NORMAL: u32 = 0x0080_0000;

/// The bits.
#[cube]
pub fn bits<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    Vector::reinterpret(x)
}

/// The number with these bits.
#[cube]
pub fn from_bits<N: Size>(x: Vector<u32, N>) -> Vector<f32, N> {
    Vector::reinterpret(x)
}

/// The bits of |x|.
#[cube]
pub fn magnitude<N: Size>(x: Vector<f32, N>) -> Vector<u32, N> {
    bits::<N>(x) & Vector::new(MAGNITUDE)
}

/// Whether x is NaN, by its bits: a compiler may assume that `x != x` is false.
#[cube]
pub fn is_nan<N: Size>(x: Vector<f32, N>) -> Vector<bool, N> {
    magnitude::<N>(x).greater_than(&Vector::new(INFINITY))
}

/// `x` where it is NaN, `y` elsewhere.
#[cube]
pub fn keep_nan<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>) -> Vector<f32, N> {
    select_many(is_nan::<N>(x), x, y)
}

/// An integer that orders as x does, the same for both zeros; NaN is beyond the infinities.
#[cube]
pub fn order<N: Size>(x: Vector<f32, N>) -> Vector<i32, N> {
    let sign = Vector::<i32, N>::reinterpret(x) >> Vector::new(31i32);
    let size = Vector::<i32, N>::reinterpret(magnitude::<N>(x));
    (size ^ sign) - sign
}

/// |x|
#[cube]
pub fn abs<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    from_bits::<N>(magnitude::<N>(x))
}

/// `size` with its sign flipped where `sign` is negative.
#[cube]
pub fn xor_sign<N: Size>(size: Vector<f32, N>, sign: Vector<f32, N>) -> Vector<f32, N> {
    from_bits::<N>(bits::<N>(size) ^ (bits::<N>(sign) & Vector::new(0x8000_0000u32)))
}

/// x limited to lo..hi; NaN becomes either.
#[cube]
pub fn limit<N: Size>(x: Vector<f32, N>, #[comptime] lo: f32, #[comptime] hi: f32) -> Vector<f32, N> {
    min(max(x, Vector::new(f32::new(lo))), Vector::new(f32::new(hi)))
}

/// The smaller; NaN where either is NaN.
#[cube]
pub fn min_nan<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    keep_nan::<N>(a, keep_nan::<N>(b, min(a, b)))
}

/// The larger; NaN where either is NaN.
#[cube]
pub fn max_nan<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> Vector<f32, N> {
    keep_nan::<N>(a, keep_nan::<N>(b, max(a, b)))
}

/// c\[0\] + c\[1\] x + c\[2\] x² + …, by Horner's rule.
#[cube]
pub fn poly<N: Size>(x: Vector<f32, N>, #[comptime] c: &'static [f32]) -> Vector<f32, N> {
    let last = comptime!(c.len() - 1);
    let mut sum = Vector::new(f32::new(comptime!(c[last])));
    #[unroll]
    for i in 0..last {
        sum = sum * x + Vector::new(f32::new(comptime!(c[last - 1 - i])));
    }
    sum
}

/// v · 2ⁿ in two steps, for |n| ≤ 250 and v near 1.
#[cube]
pub fn scale<N: Size>(v: Vector<f32, N>, n: Vector<i32, N>) -> Vector<f32, N> {
    let half = n >> Vector::new(1i32);
    v * power_of_two::<N>(half) * power_of_two::<N>(n - half)
}

/// 2ⁿ for a normal result.
#[cube]
pub fn power_of_two<N: Size>(n: Vector<i32, N>) -> Vector<f32, N> {
    Vector::reinterpret((n + Vector::new(127i32)) << Vector::new(23i32))
}

/// x without the bits outside of `mask`. Shader compilers simplify (a + b) − a to b and n c + n d to n (c + d), as if
/// numbers were real; they do not see through this.
#[cube]
pub fn hidden<N: Size>(x: Vector<f32, N>, #[comptime] mask: u32) -> Vector<f32, N> {
    from_bits::<N>(bits::<N>(x) & Vector::new(u32::new(comptime!(mask as i64))))
}

/// a + b as (sum cut to 23 bits, rest), for |a| ≥ |b| or a = 0.
#[cube]
pub fn fast_two_sum<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let sum = hidden::<N>(a + b, 0xffff_fffeu32);
    (sum, b - (sum - a))
}

/// a + b as (sum cut to 23 bits, rest).
#[cube]
pub fn two_sum<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let larger = magnitude::<N>(a).greater_than(&magnitude::<N>(b));
    fast_two_sum::<N>(select_many(larger, a, b), select_many(larger, b, a))
}

/// a · b as (product cut to 23 bits, rest). Without fused operations the factors are cut into halves of twelve bits, whose
/// products are exact (Dekker 1971). The product is hidden: a compiler that contracts `c - product` to one operation takes
/// off the exact product, and the rest would count twice.
#[cube]
pub fn two_prod<N: Size>(
    a: Vector<f32, N>,
    b: Vector<f32, N>,
    #[comptime] fused: bool,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let product = hidden::<N>(a * b, 0xffff_fffeu32);
    let error = if comptime!(fused) {
        fma(a, b, -product)
    } else {
        let upper = Vector::new(0xffff_f000u32);
        let a_hi = from_bits::<N>(bits::<N>(a) & upper);
        let b_hi = from_bits::<N>(bits::<N>(b) & upper);
        let a_lo = a - a_hi;
        let b_lo = b - b_hi;
        // Hidden, or a_hi b_hi + a_hi b_lo would become a_hi b. The difference has 13 bits.
        let coarse = hidden::<N>(a_hi * b_hi - product, 0xffff_ff00u32);
        (coarse + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo
    };
    (product, error)
}
