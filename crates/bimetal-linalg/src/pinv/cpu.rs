//! Inverses on the CPU: the steps of the composition on host tensors.

use bimetal_core::{Result, Tensor};

pub(super) fn pinv(rcond: Option<f64>, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    super::steps(rcond, a, outputs)
}
