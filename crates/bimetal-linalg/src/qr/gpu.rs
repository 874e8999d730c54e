//! QR on the GPU: one launch for matrices whose columns fit into registers.

pub(crate) mod blocked;
pub(crate) mod columns;
mod ends;
pub(crate) mod moves;
pub(crate) mod panels;
pub(crate) mod wy;

use self::columns::{Layout, factor_columns};
use super::{Dims, Form};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::prelude::*;

/// How matrices are given to units.
struct Params {
    /// Most rows that a unit holds in registers.
    rows: usize,
    /// Registers of all units of a cube for their columns, with this many more for each: a multiprocessor has 65536.
    registers: usize,
    other: usize,
    /// Units of a cube that several matrices share.
    shared_units: usize,
}

const PARAMS: Params = Params { rows: 64, registers: 60_000, other: 48, shared_units: 128 };

/// Rows for which there is code.
const ROWS: [usize; 6] = [8, 16, 24, 32, 48, 64];

pub(super) fn factor(gpu: &Gpu, form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    if dims.batch == 0 {
        return Ok(());
    }
    match layout(gpu, form, dims, a.dtype()) {
        Some((layout, span)) => in_registers(gpu, form, dims, a, outputs, layout, span),
        None => blocked::factor(gpu, form, dims, a, outputs),
    }
}

/// How matrices are held in registers, and the units of each; none for those that do not fit.
fn layout(gpu: &Gpu, form: Form, dims: &Dims, dtype: DType) -> Option<(Layout, usize)> {
    let Dims { batch, m, n, .. } = *dims;
    let explicit = form != Form::Packed;
    let span = (if explicit { n + m } else { n }).max(1);
    let rows = ROWS.into_iter().find(|&rows| rows >= m).filter(|&rows| rows <= PARAMS.rows)?;
    let double = dtype == DType::F64;
    let words = if double { 2 } else { 1 };
    if span > gpu.max_units as usize || span * (rows * words + PARAMS.other) > PARAMS.registers {
        return None;
    }
    // Matrices share a cube as long as every processor has cubes enough.
    let mut slots = (PARAMS.shared_units / span).max(1).next_power_of_two();
    while slots > 1 && (slots * span > PARAMS.shared_units || batch < 4 * slots * gpu.processors as usize) {
        slots /= 2;
    }
    let chunk = if rows % 16 == 0 { 16 } else { 8 };
    let block = if rows > 32 && rows % 16 == 0 { 16 } else { 8 };
    let width = if double { 2 } else { 4 };
    Some((Layout { rows, block, width, slots, chunk, explicit, double }, span))
}

/// Bytes that [`factor`] allocates beside inputs and outputs; on CUDA the most that it does.
pub(crate) fn scratch(gpu: &Gpu, form: Form, dims: &Dims, dtype: DType) -> Result<usize> {
    if dims.batch == 0 || layout(gpu, form, dims, dtype).is_some() {
        return Ok(0);
    }
    blocked::scratch(gpu, form, dims, dtype)
}

fn in_registers(
    gpu: &Gpu,
    form: Form,
    dims: &Dims,
    a: &Tensor,
    outputs: &mut [&mut Tensor],
    layout: Layout,
    span: usize,
) -> Result<()> {
    let Dims { batch, m, n, .. } = *dims;
    let computed = gpu.elem(if layout.double { DType::F64 } else { DType::F32 })?;
    let largest = outputs.iter().map(|t| t.numel()).max().unwrap_or(0).max(a.numel());
    // SAFETY: the buffers hold `batch` matrices of these extents, past which the kernel touches nothing.
    unsafe {
        factor_columns::launch_unchecked(
            gpu.client(),
            gpu.cubes(batch.div_ceil(layout.slots)),
            CubeDim::new_1d((span * layout.slots) as u32),
            address_type(largest),
            layout.width,
            a.gpu_arg()?,
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            batch,
            m as u32,
            n as u32,
            form.columns(dims) as u32,
            span as u32,
            layout,
            [gpu.elem(a.dtype())?, computed],
        );
    }
    Ok(())
}
