//! The functions of one element in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::{self, Arithmetic};
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
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        match comptime!(function) {
            Function::Exp => math::exp::<N>(x),
            Function::Expm1 => math::expm1::<N>(x),
            Function::Log => math::log::<N>(x, arithmetic),
            Function::Log1p => math::log1p::<N>(x, arithmetic),
            Function::Sigmoid => math::sigmoid::<N>(x, arithmetic),
            Function::Tanh => math::tanh::<N>(x, arithmetic),
            Function::Softplus => math::softplus::<N>(x, arithmetic),
            Function::Erf => math::erf::<N>(x, arithmetic),
            Function::Sin => math::sin::<N>(x),
            Function::Cos => math::cos::<N>(x),
            Function::Sqrt => math::sqrt::<N>(x, arithmetic),
            Function::Rsqrt => math::rsqrt::<N>(x, arithmetic),
            Function::Reciprocal => math::reciprocal::<N>(x, arithmetic),
            Function::Square => x * x,
            Function::Abs => math::abs::<N>(x),
            Function::Neg => -x,
            Function::Clamp => math::min_nan::<N>(math::max_nan::<N>(x, Vector::new(lo)), Vector::new(hi)),
        }
    }
}
