//! Triangular systems on the GPU: in one launch where they fit in shared memory, by blocks where they do not.

use super::{TrsmParams, Way};
use crate::blocks::Work;
use crate::small::{Form, substitute};
use bimetal_core::{Gpu, Result, Tensor};

pub(super) fn trsm(
    gpu: &Gpu,
    params: &TrsmParams,
    way: &Way,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    let (n, k, count) = (way.system.n, way.system.k, way.system.count);
    if count == 0 {
        return Ok(());
    }
    let form = Form { unit: params.unit, upper: way.upper, both: false };
    let (operands, results) = ([inputs[0], inputs[1]], [&**x, &**status]);
    if substitute(gpu, way.system, form, operands, results, [way.triangle, way.sides], params.alpha)? {
        return Ok(());
    }
    let part = if params.upper { 2 } else { 1 } + if params.unit { 2 } else { 0 };
    let (matrix, flags, chunks) = Work::copied(gpu, inputs[0], count, n, part)?;
    // A row or column of the sides, whichever is contiguous.
    let columns = if params.left { k } else { n };
    let (right, more, right_chunks) = Work::copied(gpu, inputs[1], count, columns, 0)?;
    let zeros = (!params.unit).then_some((&matrix, n));
    right.verdict(status, &[(&flags, chunks), (&more, right_chunks)], zeros)?;
    right.substitute(&matrix, way.triangle, way.sides, [n, k], [params.unit, way.upper])?;
    right.finish_scaled(x, status, columns, 0, true, params.alpha)
}
