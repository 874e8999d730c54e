//! The functions of one element in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn unary(gpu: &Gpu, function: Function, bounds: [f32; 2], x: &Tensor, y: &Tensor) -> Result<()> {
    gpu::map1(gpu, function, bounds, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        x: Vector<f32, N>,
        _b: Vector<f32, N>,
        _c: Vector<f32, N>,
        lo: f32,
        hi: f32,
        #[comptime] function: Self,
        #[comptime] _fused: bool,
    ) -> Vector<f32, N> {
        match comptime!(function) {
            Function::Exp => math::exp::<N>(x),
            Function::Expm1 => math::expm1::<N>(x),
            Function::Log => math::log::<N>(x),
            Function::Log1p => math::log1p::<N>(x),
            Function::Sigmoid => math::sigmoid::<N>(x),
            Function::Tanh => math::tanh::<N>(x),
            Function::Softplus => math::softplus::<N>(x),
            Function::Erf => math::erf::<N>(x),
            Function::Sin => math::sin::<N>(x),
            Function::Cos => math::cos::<N>(x),
            Function::Sqrt => math::sqrt::<N>(x),
            Function::Rsqrt => math::rsqrt::<N>(x),
            Function::Reciprocal => Vector::new(1.0f32) / x,
            Function::Square => x * x,
            Function::Abs => math::abs::<N>(x),
            Function::Neg => -x,
            Function::Clamp => math::min_nan::<N>(math::max_nan::<N>(x, Vector::new(lo)), Vector::new(hi)),
        }
    }
}
