//! The gradients in kernels.

use super::Function;
use crate::pointwise::gpu::{self, Formula};
use bimetal_core::gpu::math::{self, Arithmetic};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::prelude::*;

pub(super) fn unary_backward(gpu: &Gpu, function: Function, p: [f32; 2], x: [&Tensor; 2], y: &Tensor) -> Result<()> {
    gpu::map2(gpu, function, p, x, y)
}

#[cube]
impl Formula for Function {
    fn eval<N: Size>(
        g: Vector<f32, N>,
        x: Vector<f32, N>,
        _c: Vector<f32, N>,
        lo: f32,
        hi: f32,
        #[comptime] function: Self,
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N> {
        let one = Vector::new(1.0f32);
        let zero = Vector::new(0.0f32);
        match comptime!(function) {
            Function::SigmoidBackward => g * (x * (one - x)),
            Function::TanhBackward => g * ((one - x) * (one + x)),
            // The portable form keeps what is subnormal until a large gradient multiplies it.
            Function::SoftplusBackward => g * math::sigmoid::<N>(x, Arithmetic::Plain),
            Function::ExpBackward => g * x,
            Function::LogBackward => math::quotient::<N>(g, x, arithmetic),
            Function::AbsBackward => {
                let size = math::magnitude::<N>(x);
                let flat = size.equal(&Vector::new(0u32)).or(math::is_nan::<N>(x));
                // g · 0, which a compiler may take for 0 whatever g is.
                let finite = math::magnitude::<N>(g).less_than(&Vector::new(0x7f80_0000u32));
                let nothing = select_many(finite, Vector::new(0u32), Vector::new(0x7fc0_0000u32));
                let nothing = math::from_bits::<N>(nothing);
                select_many(flat, nothing, math::xor_sign::<N>(g, x))
            }
            Function::ClampBackward => {
                let order = math::order::<N>(x);
                let above = order.greater_equal(&math::order::<N>(Vector::new(lo)));
                let below = order.less_equal(&math::order::<N>(Vector::new(hi)));
                let nan = math::is_nan::<N>(x).or(math::is_nan::<N>(Vector::new(lo)));
                let inside = select_many(above.vec_and(below), g, zero);
                select_many(nan.or(math::is_nan::<N>(Vector::new(hi))), zero, inside)
            }
        }
    }
}
