//! Launches of the Jacobi kernels: a cube for each matrix if it fits in shared memory, else rounds of blocks of columns.

mod blocks;
mod complete;
mod plan;
mod rounds;
pub(crate) mod step;
mod whole;

use super::tolerance;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;
use plan::{Extents, PARAMS, WholePlan};
use rounds::{Columns, Rotations};
use std::ops::Deref;
use whole::Form;

/// What to compute.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// Eigenvalues of a symmetric matrix, else singular values.
    pub symmetric: bool,
    /// Which triangle of a symmetric matrix is read.
    pub upper: bool,
    /// The left (or eigen-) vectors and the right ones are wanted.
    pub vectors: bool,
}

/// Where results go.
pub(crate) struct Targets<'a> {
    pub values: &'a Tensor,
    /// Left singular vectors or eigenvectors.
    pub left: Option<&'a Tensor>,
    /// Right singular vectors, as rows.
    pub right: Option<&'a Tensor>,
    pub status: &'a Tensor,
}

/// Decomposes every matrix of `a`.
///
/// # Errors
/// A dtype that the device lacks.
pub(crate) fn decompose(gpu: &Gpu, request: Request, a: &Tensor, targets: &Targets) -> Result<()> {
    let dims = a.shape().dims();
    let [m, n] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let batch = targets.status.numel();
    if batch == 0 {
        return Ok(());
    }
    let wide = a.dtype() == DType::F64;
    let compute = if wide { DType::F64 } else { DType::F32 };
    let swapped = m < n;
    let (rows, cols) = (m.max(n), m.min(n));
    let carries = request.vectors && !request.symmetric;
    let form = Form { symmetric: request.symmetric, upper: request.upper, vectors: request.vectors, wide };
    let dummy = gpu.alloc(4);
    let job = Job {
        extents: Extents { gpu, batch, rows, cols, carries, size: compute.size() },
        request,
        form,
        a,
        targets,
        swapped,
        elems: [gpu.elem(a.dtype())?, gpu.elem(compute)?],
        tolerance: tolerance(rows, compute.epsilon()) as f32,
        negligible: if wide { 1e-36 } else { 1e-29 },
        good: gpu.alloc(batch * 4),
        dummy,
    };
    match job.whole_plan() {
        Some(plan) => job.whole(plan)?,
        None => job.blocks()?,
    }
    if carries { job.complete() } else { Ok(()) }
}

/// Bytes that [`decompose`] allocates beside inputs and outputs for so many matrices `[m, n]`, with `total` left or right
/// vectors, whichever are longer.
pub(crate) fn scratch(gpu: &Gpu, request: Request, [batch, m, n]: [usize; 3], dtype: DType, total: usize) -> usize {
    let size = if dtype == DType::F64 { 8 } else { 4 };
    let carries = request.vectors && !request.symmetric;
    Extents { gpu, batch, rows: m.max(n), cols: m.min(n), carries, size }.scratch(total)
}

struct Job<'a> {
    extents: Extents<'a>,
    request: Request,
    form: Form,
    a: &'a Tensor,
    targets: &'a Targets<'a>,
    swapped: bool,
    elems: [ElemType; 2],
    tolerance: f32,
    negligible: f32,
    /// How many columns of each matrix have a length.
    good: Handle,
    dummy: Handle,
}

impl<'a> Deref for Job<'a> {
    type Target = Extents<'a>;

    fn deref(&self) -> &Extents<'a> {
        &self.extents
    }
}

impl Job<'_> {
    fn address(&self) -> AddressType {
        // Columns with the zeros at their ends are at most twice as long.
        let extents = [self.a.numel(), 4 * self.batch * self.rows * self.cols, self.full_numel()];
        address_type(extents.into_iter().max().unwrap_or(0))
    }

    /// Elements of the larger output.
    fn full_numel(&self) -> usize {
        let numel = |t: Option<&Tensor>| t.map_or(0, Tensor::numel);
        numel(self.targets.left).max(numel(self.targets.right))
    }

    /// Columns of the left output and rows of the right one.
    fn kept(&self) -> [usize; 2] {
        let extent =
            |t: Option<&Tensor>, from_end: usize| t.map_or(0, |t| t.shape().dims()[t.shape().rank() - from_end]);
        [extent(self.targets.left, 1), extent(self.targets.right, 2)]
    }

    fn output(&self, tensor: Option<&Tensor>) -> Result<BufferArg> {
        match tensor {
            Some(tensor) => tensor.gpu_arg(),
            // SAFETY: the buffer has one element of any dtype; kernels without vectors do not touch it.
            None => Ok(unsafe { BufferArg::from_raw_parts(self.dummy.clone(), 1) }),
        }
    }

    fn raw(&self, handle: &Handle, len: usize) -> BufferArg {
        // SAFETY: callers give the length with which the buffer was allocated.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len.max(1)) }
    }

    fn whole(&self, plan: WholePlan) -> Result<()> {
        let [left_cols, right_rows] = self.kept();
        let division = plan.division;
        // SAFETY: outputs have the shapes of the operation; a cube's tile holds its matrix, checked by the plan.
        unsafe {
            whole::whole::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.batch),
                CubeDim::new_1d(division.units as u32),
                self.address(),
                self.a.gpu_arg()?,
                self.targets.values.gpu_arg()?,
                self.output(self.targets.left)?,
                self.output(self.targets.right)?,
                self.targets.status.gpu_arg()?,
                self.raw(&self.good, self.batch),
                self.batch as u32,
                self.rows as u32,
                self.cols as u32,
                division.below as u32,
                division.height as u32,
                u32::from(self.swapped),
                if self.swapped { right_rows } else { left_cols } as u32,
                division.team as u32,
                PARAMS.sweeps as u32,
                self.tolerance,
                self.negligible,
                plan.elements,
                plan.most_cols,
                division.slots,
                self.form,
                division.lanes,
                self.elems,
            );
        }
        Ok(())
    }

    fn blocks(&self) -> Result<()> {
        let (gpu, batch, sweeps) = (self.gpu, self.batch, self.launched_sweeps());
        let block = self.block_width();
        let division = self.division(block.unwrap_or(1));
        let [below, height] = self.heights(block);
        let elements = batch * height * self.cols;
        let w = gpu.alloc(elements * self.size);
        let marks = gpu.alloc(batch * 2 * self.size);
        let flags = gpu.alloc(batch * (sweeps + 1) * 4);
        let units = PARAMS.units.min(gpu.max_units as usize);
        let flag_count = batch * (sweeps + 1);
        // SAFETY: the buffers have the lengths given; kernels stay within the extents that they are given.
        unsafe {
            blocks::measure::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch),
                CubeDim::new_1d(units as u32),
                self.address(),
                self.a.gpu_arg()?,
                self.raw(&marks, batch * 2),
                self.targets.status.gpu_arg()?,
                self.raw(&flags, flag_count),
                batch as u32,
                if self.swapped { self.cols } else { self.rows } as u32,
                if self.swapped { self.rows } else { self.cols } as u32,
                sweeps as u32,
                units.div_ceil(gpu.plane.0 as usize),
                self.form,
                self.elems,
            );
            blocks::fill::launch_unchecked(
                gpu.client(),
                gpu.cubes(elements.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address(),
                self.a.gpu_arg()?,
                self.raw(&marks, batch * 2),
                self.raw(&w, elements),
                elements,
                self.rows as u32,
                self.cols as u32,
                below as u32,
                height as u32,
                u32::from(self.swapped),
                self.form,
                self.elems,
            );
        }
        let rotations = Rotations { job: self, w: &w, flags: &flags, elements, flag_count, sweeps, height };
        match block {
            Some(block) => rotations.of_blocks(block, division),
            None => rotations.of_pairs(),
        }
        self.results(&w, [below, height], &marks, &flags)
    }

    /// Values in order, and the vectors that belong to them.
    fn results(&self, w: &Handle, [below, height]: [usize; 2], marks: &Handle, flags: &Handle) -> Result<()> {
        let (gpu, batch, sweeps) = (self.gpu, self.batch, self.launched_sweeps());
        let columns = batch * self.cols;
        let lengths = gpu.alloc(columns * self.size);
        let order = gpu.alloc(columns * 4);
        let per_cube = ELEMENTWISE_UNITS as usize / (gpu.plane.1 as usize).min(ELEMENTWISE_UNITS as usize);
        // SAFETY: as for the rounds.
        unsafe {
            blocks::lengths::launch_unchecked(
                gpu.client(),
                gpu.cubes(columns.div_ceil(per_cube)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address(),
                self.raw(w, columns * height),
                self.raw(&lengths, columns),
                columns,
                self.rows as u32,
                height as u32,
                self.elems[1],
            );
            blocks::sort::launch_unchecked(
                gpu.client(),
                gpu.cubes(columns.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address(),
                self.raw(&lengths, columns),
                self.raw(marks, batch * 2),
                self.targets.status.gpu_arg()?,
                self.raw(flags, batch * (sweeps + 1)),
                self.targets.values.gpu_arg()?,
                self.raw(&order, columns),
                self.raw(&self.good, batch),
                columns,
                self.cols as u32,
                sweeps as u32,
                self.negligible,
                self.form,
                self.elems,
            );
        }
        if self.request.vectors {
            let columns = Columns { job: self, w, height, lengths: &lengths, order: &order };
            columns.write(true, 0, self.rows)?;
            if !self.request.symmetric {
                columns.write(false, below, self.cols)?;
            }
        }
        Ok(())
    }

    /// Where the columns of unit length go: the tensor, how many it has in all, and its strides along and across them.
    fn long(&self) -> (Option<&Tensor>, usize, [usize; 2]) {
        let [left_cols, right_rows] = self.kept();
        if self.swapped {
            (self.targets.right, right_rows, [1, self.rows])
        } else {
            (self.targets.left, left_cols, [left_cols, 1])
        }
    }

    /// Orthonormal columns in the place of those without a length, and past the last one.
    fn complete(&self) -> Result<()> {
        let (tensor, total, [along, across]) = self.long();
        let (gpu, batch) = (self.gpu, self.batch);
        let units = 512.min(gpu.max_units as usize);
        let memory = |each: usize| gpu.alloc(batch * each * self.size);
        // SAFETY: the buffers have the lengths given, which are those of the kernel's extents.
        unsafe {
            complete::complete::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch),
                CubeDim::new_1d(units as u32),
                self.address(),
                self.output(tensor)?,
                self.targets.status.gpu_arg()?,
                self.raw(&self.good, batch),
                self.raw(&memory(self.rows), batch * self.rows),
                self.raw(&memory(self.rows), batch * self.rows),
                self.raw(&memory(total), batch * total),
                batch as u32,
                self.rows as u32,
                self.cols as u32,
                total as u32,
                along as u32,
                across as u32,
                units.div_ceil(gpu.plane.0 as usize),
                self.elems,
            );
        }
        Ok(())
    }
}
