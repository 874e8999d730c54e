//! Chains on the CPU.

use super::Pipeline;
use bimetal_core::{Result, Tensor};

pub(super) fn run(pipeline: Pipeline, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    pipeline.steps(inputs, outputs)
}
