//! Where an operation on host tensors runs.

use crate::op::Op;
use crate::{Result, Tensor};

/// Runs on the host's tensors.
pub(crate) fn run_host(op: &dyn Op, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    op.cpu(inputs, outputs)
}
