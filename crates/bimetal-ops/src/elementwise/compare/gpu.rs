//! The comparisons in kernels, on integers that order as the numbers do: some devices take subnormal numbers for zero.

use super::Function;
use crate::pointwise::gpu::{self, Relation};
use bimetal_core::gpu::math;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn compare(gpu: &Gpu, function: Function, x: [&Tensor; 2], y: &Tensor) -> Result<()> {
    gpu::test(gpu, function, x, y)
}

#[cube]
impl Relation for Function {
    fn eval<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] function: Self) -> Vector<u32, N> {
        let unordered = math::is_nan::<N>(a).or(math::is_nan::<N>(b));
        let left = math::order::<N>(a);
        let right = math::order::<N>(b);
        let (yes, no) = (Vector::new(1u32), Vector::new(0u32));
        let holds = match comptime!(function) {
            Function::Eq => left.equal(&right),
            Function::Ne => left.not_equal(&right),
            Function::Lt => left.less_than(&right),
            Function::Le => left.less_equal(&right),
            Function::Gt => left.greater_than(&right),
            Function::Ge => left.greater_equal(&right),
        };
        let otherwise = match comptime!(function) {
            Function::Ne => yes,
            _ => no,
        };
        select_many(unordered, otherwise, select_many(holds, yes, no))
    }
}
