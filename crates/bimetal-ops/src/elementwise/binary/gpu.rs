//! The functions of two elements in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::{self, Arithmetic};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn binary(gpu: &Gpu, function: Function, p: [f32; 2], x: [&Tensor; 2], y: &Tensor) -> Result<()> {
    gpu::map2(gpu, function, p, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        a: Vector<f32, N>,
        b: Vector<f32, N>,
        _c: Vector<f32, N>,
        _p: f32,
        _q: f32,
        #[comptime] function: Self,
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        match comptime!(function) {
            Function::Add => a + b,
            Function::Sub => a - b,
            Function::Mul => a * b,
            Function::Div => math::quotient::<N>(a, b, arithmetic),
            Function::Pow => math::pow::<N>(a, b, arithmetic),
            Function::Maximum => math::max_nan::<N>(a, b),
            Function::Minimum => math::min_nan::<N>(a, b),
        }
    }
}
