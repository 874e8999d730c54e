//! Cholesky on the GPU: matrices that fit in a cube's registers in one launch; larger ones by panels in the device's memory.

mod rows;
mod tiles;

use crate::blocks::{Place, Work, copied_bytes, elems, working};
use crate::small::{Form, substitute};
use crate::system::System;
use bimetal_core::gpu::counted;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::prelude::*;
use tiles::Code;

pub(super) fn cholesky(
    gpu: &Gpu,
    upper: bool,
    [count, n]: [usize; 2],
    a: &Tensor,
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let [l, status] = outputs else { unreachable!("the outputs were checked") };
    if count == 0 {
        return Ok(());
    }
    if crate::rows::fit(gpu, n) {
        return rows::cholesky(gpu, upper, [count, n], a, l, status);
    }
    let double = a.dtype() == DType::F64;
    let Some(code) = Code::of(gpu, n, false, upper, double) else {
        return large(gpu, upper, [count, n], a, l, status);
    };
    let elems = elems(gpu, a.dtype())?;
    // SAFETY: both buffers hold `count` matrices of order `n`; cubes past the last one store nothing.
    unsafe {
        tiles::whole::launch_unchecked(
            gpu.client(),
            gpu.cubes(count),
            CubeDim::new_1d(code.units() as u32),
            address_type(a.numel()),
            a.gpu_arg()?,
            l.gpu_arg()?,
            status.gpu_arg()?,
            count,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            code,
            elems,
        );
    }
    Ok(())
}

/// Bytes that [`cholesky`] allocates beside inputs and outputs.
pub(crate) fn scratch(gpu: &Gpu, [count, n]: [usize; 2], dtype: DType) -> usize {
    if count == 0 || crate::rows::fit(gpu, n) || n <= Code::most(gpu) {
        return 0;
    }
    let size = working(dtype).size();
    let corners = counted(count * n * Code::most(gpu) * size);
    copied_bytes(dtype, count, n * stride(gpu, n)) + corners
}

/// Elements from one row of working memory to the next: the vendor's products want whole groups.
fn stride(gpu: &Gpu, n: usize) -> usize {
    n.next_multiple_of(if gpu.has_gemm() { 64 } else { 1 })
}

/// Columns of the part of an update that one product makes, as what is above the diagonal is made for nothing.
const UPDATED: usize = 1024;

fn large(gpu: &Gpu, upper: bool, [count, n]: [usize; 2], a: &Tensor, l: &Tensor, status: &Tensor) -> Result<()> {
    let part = if upper { 2 } else { 1 };
    let row = stride(gpu, n);
    let (work, flags, chunks) = Work::copied_to(gpu, a, count, [n, row], part)?;
    let whole = Place { start: 0, row, column: 1 };
    let whole = if upper { whole.transposed() } else { whole };
    work.verdict(status, &[(&flags, chunks)], None)?;
    let most = Code::most(gpu);
    let code = Code::of(gpu, most, true, upper, work.double()).expect("a square of the largest order fits");
    let corners = gpu.alloc(count * n * most * work.dtype.size());
    // SAFETY: there are `n` rows of `most` elements for each matrix.
    let corners = || unsafe { BufferArg::from_raw_parts(corners.clone(), count * n * most) };
    for start in (0..n).step_by(most) {
        let size = most.min(n - start);
        let (rest, next) = (n - start - size, start + size);
        let parts = rest.div_ceil(code.rows_below()).max(1);
        // SAFETY: the panel lies within the matrices.
        unsafe {
            tiles::panel::launch_unchecked(
                gpu.client(),
                gpu.cubes(count * parts),
                CubeDim::new_1d(code.units() as u32),
                work.address(),
                work.arg(),
                corners(),
                status.gpu_arg()?,
                count,
                parts,
                n as u32,
                start as u32,
                size as u32,
                work.batch,
                whole.row,
                whole.column,
                code,
                gpu.elem(work.dtype)?,
            );
        }
        for first in (next..n).step_by(UPDATED) {
            let [c, below] = [whole.at(first, first), whole.at(first, start)];
            let extents = [n - first, UPDATED.min(n - first), size];
            work.subtract_product([c, below, below.transposed()], extents, true)?;
        }
    }
    let elems = elems(gpu, l.dtype())?;
    // SAFETY: the buffers hold `count` matrices of order `n`.
    unsafe {
        tiles::collect::launch_unchecked(
            gpu.client(),
            gpu.cubes(l.numel().div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            work.address(),
            work.arg(),
            corners(),
            l.gpu_arg()?,
            status.gpu_arg()?,
            l.numel(),
            n as u32,
            most as u32,
            work.batch,
            row,
            InputScalar::new(f64::NAN, elems[1]),
            upper,
            elems,
        );
    }
    Ok(())
}

pub(super) fn solve(
    gpu: &Gpu,
    upper: bool,
    system: System,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let System { count, n, k } = system;
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    if count == 0 {
        return Ok(());
    }
    let [l, b] = [inputs[0], inputs[1]];
    let triangle = Place { start: 0, row: n, column: 1 };
    let triangle = if upper { triangle.transposed() } else { triangle };
    let sides = Place { start: 0, row: k, column: 1 };
    let form = Form { unit: false, upper: false, both: true };
    if substitute(gpu, system, form, [l, b], [x, status], [triangle, sides], 1.0)? {
        return Ok(());
    }
    let part = if upper { 2 } else { 1 };
    let (matrix, flags, chunks) = Work::copied(gpu, l, count, n, part)?;
    let (right, more, right_chunks) = Work::copied(gpu, b, count, k, 0)?;
    let zeros = Some((&matrix, n));
    right.verdict(status, &[(&flags, chunks), (&more, right_chunks)], zeros)?;
    right.substitute(&matrix, triangle, sides, [n, k], [false, false])?;
    right.substitute(&matrix, triangle.transposed(), sides, [n, k], [false, true])?;
    right.finish(x, status, k, 0, true)
}
