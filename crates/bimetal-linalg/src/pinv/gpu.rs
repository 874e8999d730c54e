//! Inverses on the GPU: the steps of the composition on the device's tensors, without a copy to the host between them.

use bimetal_core::{Result, Tensor};

pub(super) fn pinv(rcond: Option<f64>, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    super::steps(rcond, a, outputs)
}
