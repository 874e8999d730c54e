//! The activations in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::{self, Arithmetic};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn activation(gpu: &Gpu, function: Function, p: [f32; 2], x: &Tensor, y: &Tensor) -> Result<()> {
    gpu::map1(gpu, function, p, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        x: Vector<f32, N>,
        _b: Vector<f32, N>,
        _c: Vector<f32, N>,
        p: f32,
        _q: f32,
        #[comptime] function: Self,
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        let zero = Vector::new(0.0f32);
        match comptime!(function) {
            Function::Relu => math::max_nan::<N>(x, zero),
            Function::LeakyRelu => select_many(x.greater_than(&zero), x, x * Vector::new(p)),
            Function::Elu => select_many(x.greater_than(&zero), x, math::expm1::<N>(x) * Vector::new(p)),
            Function::Gelu => math::gelu::<N>(x, arithmetic),
            Function::GeluTanh => math::gelu_tanh::<N>(x, arithmetic),
            Function::Silu => math::silu::<N>(x, arithmetic),
            Function::Mish => math::mish::<N>(x, arithmetic),
        }
    }
}
