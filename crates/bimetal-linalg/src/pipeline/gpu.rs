//! Chains on the GPU: launches follow each other on the device's stream, and nothing waits or is copied to the host.

use super::Pipeline;
use bimetal_core::{Result, Tensor};

pub(super) fn run(pipeline: Pipeline, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    pipeline.steps(inputs, outputs)
}
