//! Elementary functions on vectors: one source for every level, branch-free on common ranges.
//!
//! Each function's doc gives its largest error in units in the last place (ulp) of the exact result, measured over
//! all 2³² inputs. Special values follow IEEE 754 and C99 Annex F; subnormal inputs and results are kept. Polynomials
//! are weighted minimax fits (Lawson's iteration, coefficients rounded to `f32` from the lowest power up).

mod double;
mod erf;
mod exp;
mod log;
mod power;
mod sigmoid;
mod slope;
#[cfg(test)]
mod tests;
mod trig;

pub use erf::{erf, erfc, gelu};
pub use exp::{exp, exp2, expm1};
pub use log::{log, log1p, log2, log10};
pub use power::{pow, rsqrt};
pub use sigmoid::{gelu_tanh, mish, sigmoid, silu, softplus, tanh};
pub use slope::{gelu_slope, gelu_tanh_slope, mish_slope, silu_slope};
pub use trig::{cos, sin, sin_cos};

use super::simd::Simd;

/// c\[0\] + c\[1\] x + c\[2\] x² + …, by Horner's rule.
#[inline(always)]
pub fn poly<S: Simd, const N: usize>(s: S, x: S::F, c: [f32; N]) -> S::F {
    let mut sum = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.fma(sum, x, s.splat(c[i]));
    }
    sum
}
