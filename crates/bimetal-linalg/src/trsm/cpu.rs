//! Triangular systems on the CPU.

use super::{TrsmParams, Way};
use crate::lanes::{Part, each_float};
use crate::triangles::{self, Form};
use bimetal_core::{Result, Tensor};

pub(super) fn trsm(params: &TrsmParams, way: &Way, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    let status = status.as_mut_slice::<i32>()?;
    let Way { system, triangle, sides, upper } = *way;
    let part = if params.upper { Part::Upper } else { Part::Lower };
    let form = Form { system, part, unit: params.unit, triangle, upper, sides, both: false, alpha: params.alpha };
    each_float!(inputs[0].dtype(), T => {
        triangles::solve::<T>(form, inputs[0].as_slice()?, inputs[1].as_slice()?, x.as_mut_slice()?, status);
    });
    Ok(())
}
