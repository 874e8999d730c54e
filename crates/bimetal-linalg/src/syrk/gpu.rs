//! The product on the GPU.

use crate::matmul::Product;
use bimetal_core::op::Op;
use bimetal_core::{Gpu, Result, Tensor};

pub(super) fn syrk(gpu: &Gpu, product: &Product, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    product.gpu(gpu, &[a, a], outputs)
}
