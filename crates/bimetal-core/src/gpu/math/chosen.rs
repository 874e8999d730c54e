//! The functions that have a form of their own for CUDA, in [`native`], beside the portable one.

use super::{Arithmetic, exponential, gate, logarithm, native, power};
use cubecl::prelude::*;

/// The error function.
#[cube]
pub fn erf<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { x.erf() } else { exponential::erf::<N>(x) }
}

/// tanh x.
#[cube]
pub fn tanh<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { x.tanh() } else { gate::tanh::<N>(x) }
}

/// ln x. −∞ at ±0, NaN below.
#[cube]
pub fn log<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { x.ln() } else { logarithm::log::<N>(x) }
}

/// ln(1 + x) without cancellation near 0. −∞ at −1, NaN below.
#[cube]
pub fn log1p<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::log1p::<N>(x) } else { logarithm::log1p::<N>(x) }
}

/// √x; NaN for a negative number, however small.
#[cube]
pub fn sqrt<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::sqrt::<N>(x) } else { power::sqrt::<N>(x) }
}

/// 1/√x; ±∞ at ±0, NaN for a negative number.
#[cube]
pub fn rsqrt<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::rsqrt::<N>(x) } else { power::rsqrt::<N>(x) }
}

/// 1/x; ±∞ at ±0.
#[cube]
pub fn reciprocal<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::reciprocal::<N>(x) } else { power::reciprocal::<N>(x) }
}

/// a / b, where subnormal operands count with their values on every device.
#[cube]
pub fn quotient<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::quotient::<N>(a, b) } else { power::quotient::<N>(a, b) }
}

/// xʸ with C99's special cases: 1 for y = 0 or x = 1 whatever the other, NaN for a negative finite x and a fractional
/// y, signed zeros and infinities for odd y.
#[cube]
pub fn pow<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) {
        native::pow::<N>(x, y)
    } else {
        power::pow::<N>(x, y, comptime!(arithmetic == Arithmetic::Fused))
    }
}

/// 1 / (1 + e⁻ˣ), without overflow.
#[cube]
pub fn sigmoid<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::sigmoid::<N>(x) } else { gate::sigmoid::<N>(x) }
}

/// ln(1 + eˣ).
#[cube]
pub fn softplus<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::softplus::<N>(x) } else { gate::softplus::<N>(x) }
}

/// x / (1 + e⁻ˣ); its limit −0 at −∞.
#[cube]
pub fn silu<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::silu::<N>(x) } else { gate::silu::<N>(x) }
}

/// The slope of [`silu()`].
#[cube]
pub fn silu_slope<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::silu_slope::<N>(x) } else { gate::silu_slope::<N>(x) }
}

/// x tanh(ln(1 + eˣ)); its limit −0 at −∞.
#[cube]
pub fn mish<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::mish::<N>(x) } else { gate::mish::<N>(x) }
}

/// The slope of [`mish()`].
#[cube]
pub fn mish_slope<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) { native::mish_slope::<N>(x) } else { gate::mish_slope::<N>(x) }
}

/// x Φ(x), accurate relative to itself for negative x too; its limit −0 at −∞.
#[cube]
pub fn gelu<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) {
        native::gelu::<N>(x)
    } else {
        gate::gelu::<N>(x, comptime!(arithmetic == Arithmetic::Fused))
    }
}

/// The slope of [`gelu()`], Φ(x) + x φ(x).
#[cube]
pub fn gelu_slope<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) {
        native::gelu_slope::<N>(x)
    } else {
        gate::gelu_slope::<N>(x, comptime!(arithmetic == Arithmetic::Fused))
    }
}

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), accurate relative to itself for negative x too; its limit −0 at −∞.
#[cube]
pub fn gelu_tanh<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) {
        native::gelu_tanh::<N>(x)
    } else {
        gate::gelu_tanh::<N>(x, comptime!(arithmetic == Arithmetic::Fused))
    }
}

/// The slope of [`gelu_tanh()`].
#[cube]
pub fn gelu_tanh_slope<N: Size>(x: Vector<f32, N>, #[comptime] arithmetic: Arithmetic) -> Vector<f32, N> {
    if comptime!(arithmetic == Arithmetic::Native) {
        native::gelu_tanh_slope::<N>(x)
    } else {
        gate::gelu_tanh_slope::<N>(x, comptime!(arithmetic == Arithmetic::Fused))
    }
}
