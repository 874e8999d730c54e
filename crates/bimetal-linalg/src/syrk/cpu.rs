//! The product on the CPU.

use crate::matmul::Product;
use bimetal_core::op::Op;
use bimetal_core::{Result, Tensor};

pub(super) fn syrk(product: &Product, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    product.cpu(&[a, a], outputs)
}
