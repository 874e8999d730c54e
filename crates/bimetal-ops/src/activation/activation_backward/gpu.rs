//! The activations' gradients in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::{self, Arithmetic};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn activation_backward(
    gpu: &Gpu,
    function: Function,
    p: [f32; 2],
    x: [&Tensor; 2],
    y: &Tensor,
) -> Result<()> {
    gpu::map2(gpu, function, p, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        g: Vector<f32, N>,
        x: Vector<f32, N>,
        _c: Vector<f32, N>,
        p: f32,
        _q: f32,
        #[comptime] function: Self,
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        let zero = Vector::new(0.0f32);
        // By its bits: some devices take subnormal numbers for zero.
        let sign = math::order::<N>(x);
        let positive = sign.greater_than(&Vector::new(0i32));
        let nan = math::is_nan::<N>(x);
        match comptime!(function) {
            Function::ReluBackward => select_many(positive.or(nan), g, zero),
            Function::LeakyReluBackward => {
                let scaled = g * Vector::new(p);
                select_many(nan, scaled, select_many(positive, g, scaled))
            }
            Function::EluBackward => {
                select_many(positive.or(nan), g, g * Vector::new(p) * math::exp::<N>(x))
            }
            Function::GeluBackward => g * math::gelu_slope::<N>(x, arithmetic),
            Function::GeluTanhBackward => g * math::gelu_tanh_slope::<N>(x, arithmetic),
            Function::SiluBackward => g * math::silu_slope::<N>(x, arithmetic),
            Function::MishBackward => g * math::mish_slope::<N>(x, arithmetic),
        }
    }
}
