//! Multiply-add in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::Arithmetic;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn fma(gpu: &Gpu, function: Function, p: [f32; 2], x: [&Tensor; 3], y: &Tensor) -> Result<()> {
    gpu::map3(gpu, function, p, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        a: Vector<f32, N>,
        b: Vector<f32, N>,
        c: Vector<f32, N>,
        _p: f32,
        _q: f32,
        #[comptime] _function: Self,
        #[comptime] _arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        cubecl::prelude::fma(a, b, c)
    }
}
