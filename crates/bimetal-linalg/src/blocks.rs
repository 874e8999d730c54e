//! Blocked triangular algorithms in a GPU's memory: the steps that large factorisations and solvers are made of, each over
//! a batch. A step solves with, or multiplies by, [`BLOCK`] columns of a triangular matrix.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

mod kernels;

use self::kernels::{copy_in, copy_out, judge, solve_vectors, update_tiles};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::gpu::{Product, counted};
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Columns of a step: a unit keeps as many values in registers.
pub(crate) const BLOCK: usize = 32;
/// Rows and columns of the result that a cube updates, and units along each side of it.
const TILE: usize = 64;
const SIDE: usize = 16;
/// Elements that a cube copies into working memory.
const CHUNK: usize = 16384;
/// Units of kernels that copy or solve.
const UNITS: u32 = 128;

/// Matrices in working memory, of the dtype of the computation: `count` matrices `batch` elements apart.
#[derive(Clone)]
pub(crate) struct Work<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) handle: Handle,
    pub(crate) dtype: DType,
    pub(crate) count: usize,
    pub(crate) batch: usize,
}

/// Where elements of a matrix lie: the first one, and the distances of rows and columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) start: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Place {
    pub(crate) fn at(self, row: usize, column: usize) -> Self {
        Self { start: self.start + row * self.row + column * self.column, ..self }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// The dtype that a computation with `dtype` is done in.
pub(crate) fn working(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Storage and computation as kernels' types.
pub(crate) fn elems(gpu: &Gpu, dtype: DType) -> Result<[ElemType; 2]> {
    Ok([gpu.elem(dtype)?, gpu.elem(working(dtype))?])
}

/// Whether a value is infinite or NaN, by its bits where a compiler may assume that none is.
#[cube]
pub(crate) fn not_finite<A: Float>(x: A, #[comptime] double: bool) -> bool {
    let mut small = x;
    if comptime!(double) {
        // The largest f64 becomes an f32; NaN and infinity stay what they are.
        #[unroll]
        for _ in 0..9 {
            small = small * A::new(1e-30);
        }
    }
    (u32::reinterpret(f32::cast_from(small)) & 0x7fff_ffffu32) >= 0x7f80_0000u32
}

/// Bytes of [`Work::copied`] for `count` matrices of `size` elements.
pub(crate) fn copied_bytes(dtype: DType, count: usize, size: usize) -> usize {
    counted(count * size * working(dtype).size()) + counted(count * size.div_ceil(CHUNK) * 4)
}

impl<'a> Work<'a> {
    /// Memory for `count` matrices of `size` elements.
    pub(crate) fn new(gpu: &'a Gpu, dtype: DType, count: usize, size: usize) -> Self {
        let dtype = working(dtype);
        Self { gpu, handle: gpu.alloc(count * size * dtype.size()), dtype, count, batch: size }
    }

    pub(crate) fn arg(&self) -> BufferArg {
        // SAFETY: the buffer was allocated with this length.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.count * self.batch) }
    }

    pub(crate) fn address(&self) -> AddressType {
        address_type(self.count * self.batch)
    }

    pub(crate) fn double(&self) -> bool {
        self.dtype == DType::F64
    }

    /// A copy of a tensor's matrices of `columns` columns, and a flag for each chunk of each of them: whether there is an
    /// element that is not finite. `part` says which elements count: 0 all, 1 the lower triangle, 2 the upper one, 3
    /// and 4 those without their diagonals; the others become 0.
    pub(crate) fn copied(
        gpu: &'a Gpu,
        x: &Tensor,
        count: usize,
        columns: usize,
        part: usize,
    ) -> Result<(Self, Handle, usize)> {
        Self::copied_to(gpu, x, count, [columns, columns], part)
    }

    /// The same with rows of `stride` elements, of which those past the columns are not written.
    pub(crate) fn copied_to(
        gpu: &'a Gpu,
        x: &Tensor,
        count: usize,
        [columns, stride]: [usize; 2],
        part: usize,
    ) -> Result<(Self, Handle, usize)> {
        let size = x.numel() / count;
        let work = Self::new(gpu, x.dtype(), count, size / columns.max(1) * stride);
        let chunks = size.div_ceil(CHUNK);
        let flags = gpu.alloc(count * chunks * 4);
        // SAFETY: both buffers hold `count` matrices of `batch` elements, and the flags a word for each chunk.
        unsafe {
            copy_in::launch_unchecked(
                gpu.client(),
                gpu.cubes(count * chunks),
                CubeDim::new_1d(UNITS.min(gpu.max_units)),
                work.address(),
                x.gpu_arg()?,
                work.arg(),
                BufferArg::from_raw_parts(flags.clone(), count * chunks),
                count,
                size,
                columns,
                stride,
                chunks,
                part,
                work.double(),
                elems(gpu, x.dtype())?,
            );
        }
        Ok((work, flags, chunks))
    }

    /// Writes the matrices to a tensor, rounded to its dtype: NaN where the status is not 0 (or negative, where a positive
    /// one is no failure). `part` as for [`Work::copied`]; what does not count is 0.
    pub(crate) fn finish(
        &self,
        out: &Tensor,
        status: &Tensor,
        columns: usize,
        part: usize,
        positive_fails: bool,
    ) -> Result<()> {
        self.finish_scaled(out, status, columns, part, positive_fails, 1.0)
    }

    /// [`Work::finish`] with a factor.
    pub(crate) fn finish_scaled(
        &self,
        out: &Tensor,
        status: &Tensor,
        columns: usize,
        part: usize,
        positive_fails: bool,
        factor: f64,
    ) -> Result<()> {
        // SAFETY: both buffers hold `count` matrices of `batch` elements.
        unsafe {
            copy_out::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(out.numel().div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS.min(self.gpu.max_units)),
                self.address(),
                self.arg(),
                out.gpu_arg()?,
                status.gpu_arg()?,
                out.numel(),
                self.batch,
                columns,
                InputScalar::new(f64::NAN, self.gpu.elem(self.dtype)?),
                InputScalar::new(factor, self.gpu.elem(self.dtype)?),
                part,
                positive_fails,
                elems(self.gpu, out.dtype())?,
            );
        }
        Ok(())
    }

    /// `X ← L⁻¹·X` for the `n` ≤ [`BLOCK`] rows of `X` and the lower triangular `L` from `triangle` on, in `matrix` or in
    /// the same memory; `vectors` columns. With `last`, indices of rows and of the triangle count down from there.
    pub(crate) fn solve(
        &self,
        matrix: Option<&Self>,
        triangle: Place,
        x: Place,
        [n, vectors]: [usize; 2],
        [unit, backwards]: [bool; 2],
    ) -> Result<()> {
        if n == 0 || vectors == 0 {
            return Ok(());
        }
        let from = matrix.unwrap_or(self);
        let units = UNITS.min(self.gpu.max_units);
        // SAFETY: the places are those of matrices within both buffers; the kernel stops at `n` and `vectors`.
        unsafe {
            solve_vectors::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.count * vectors.div_ceil(units as usize)),
                CubeDim::new_1d(units),
                address_type((self.count * self.batch).max(from.count * from.batch)),
                if matrix.is_some() { from.arg() } else { self.dummy() },
                self.arg(),
                self.count,
                n as u32,
                vectors as u32,
                from.batch,
                triangle.start,
                triangle.row,
                triangle.column,
                self.batch,
                x.start,
                x.row,
                x.column,
                unit,
                backwards,
                matrix.is_none(),
                self.gpu.elem(self.dtype)?,
            );
        }
        Ok(())
    }

    /// `C ← C − A·B` for `C` of `m`×`n` and a sum over `k` ≤ [`BLOCK`], where `A` is in `matrix` or in the same memory as the
    /// others. With `lower` only the tiles that reach below the diagonal.
    pub(crate) fn update(
        &self,
        matrix: Option<&Self>,
        [c, a, b]: [Place; 3],
        [m, n, k]: [usize; 3],
        lower: bool,
    ) -> Result<()> {
        if m == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        let from = matrix.unwrap_or(self);
        // SAFETY: the places are those of matrices within both buffers; the kernel stops at `m`, `n` and `k`.
        unsafe {
            update_tiles::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.count * m.div_ceil(TILE) * n.div_ceil(TILE)),
                CubeDim::new_1d((SIDE * SIDE) as u32),
                address_type((self.count * self.batch).max(from.count * from.batch)),
                if matrix.is_some() { from.arg() } else { self.dummy() },
                self.arg(),
                self.count,
                m as u32,
                n as u32,
                k as u32,
                from.batch,
                self.batch,
                a.start,
                a.row,
                a.column,
                b.start,
                b.row,
                b.column,
                c.start,
                c.row,
                c.column,
                [a.column == 1, b.column == 1, c.column == 1],
                lower,
                matrix.is_none(),
                self.double(),
                self.gpu.elem(self.dtype)?,
            );
        }
        Ok(())
    }

    /// `C ← C − A·B` within this memory for a sum over any `k`, by the vendor's library where there is one: rows or columns of
    /// all three are next to each other. With `lower` what is above the diagonal need not be made.
    pub(crate) fn subtract_product(&self, [c, a, b]: [Place; 3], [m, n, k]: [usize; 3], lower: bool) -> Result<()> {
        if m == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        let spec = Spec::new(Shape::new(&[self.count, self.batch])?, self.dtype);
        let all = Tensor::over_handle(spec, self.gpu, self.handle.clone())?;
        // A result whose columns are not next to each other is made transposed.
        let turned = c.column != 1;
        let [x, y, z] = if turned { [b.transposed(), a.transposed(), c.transposed()] } else { [a, b, c] };
        let step = |place: Place| if place.column == 1 { place.row } else { place.column };
        let product = Product {
            batch: self.count,
            m: if turned { n } else { m },
            n: if turned { m } else { n },
            k,
            a_transposed: x.column != 1,
            b_transposed: y.column != 1,
            strides: [self.batch; 3],
            starts: [x.start, y.start, z.start],
            rows: [step(x), step(y), step(z)],
            tf32: false,
        };
        if self.gpu.gemm(&product, -1.0, 1.0, &all, &all, &all)? {
            return Ok(());
        }
        for first in (0..k).step_by(BLOCK) {
            let places = [c, a.at(0, first), b.at(first, 0)];
            self.update(None, places, [m, n, BLOCK.min(k - first)], lower)?;
        }
        Ok(())
    }

    /// `X ← T⁻¹·X` for a triangular matrix of `n` rows in `matrix` and `vectors` columns in this memory: forwards for a lower
    /// triangle, backwards for an upper one.
    pub(crate) fn substitute(
        &self,
        matrix: &Self,
        triangle: Place,
        x: Place,
        [n, vectors]: [usize; 2],
        [unit, upper]: [bool; 2],
    ) -> Result<()> {
        let blocks = n.div_ceil(BLOCK);
        for step in 0..blocks {
            let block = if upper { blocks - 1 - step } else { step };
            let start = block * BLOCK;
            let size = BLOCK.min(n - start);
            let [t, rows] = [triangle.at(start, start), x.at(start, 0)];
            self.solve(Some(matrix), t, rows, [size, vectors], [unit, upper])?;
            let (first, rest) = if upper { (0, start) } else { (start + size, n - start - size) };
            let places = [x.at(first, 0), triangle.at(first, start), rows];
            self.update(Some(matrix), places, [rest, vectors, size], false)?;
        }
        Ok(())
    }

    /// Sets the statuses from flags of what is not finite, each so many to a matrix, and from zeros on the diagonal of
    /// row-major matrices of this order.
    pub(crate) fn verdict(
        &self,
        status: &Tensor,
        flags: &[(&Handle, usize)],
        diagonal: Option<(&Self, usize)>,
    ) -> Result<()> {
        let (first, second) = (flags[0], *flags.get(1).unwrap_or(&flags[0]));
        // SAFETY: each of the buffers of flags holds its number for every matrix, and they are only read.
        unsafe {
            let second_arg = match flags.len() {
                1 => self.dummy(),
                _ => BufferArg::from_raw_parts(second.0.clone(), self.count * second.1),
            };
            judge::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.count),
                CubeDim::new_1d(UNITS.min(self.gpu.max_units)),
                diagonal.map_or(self.address(), |(matrix, _)| matrix.address()),
                BufferArg::from_raw_parts(first.0.clone(), self.count * first.1),
                second_arg,
                diagonal.map_or_else(|| self.dummy(), |(matrix, _)| matrix.arg()),
                status.gpu_arg()?,
                self.count,
                first.1 as u32,
                if flags.len() == 1 { 0 } else { second.1 as u32 },
                diagonal.map_or(0, |(_, n)| n as u32),
                self.gpu.elem(self.dtype)?,
            );
        }
        Ok(())
    }

    /// A buffer for an argument that is not read: one must not be bound twice.
    pub(crate) fn dummy(&self) -> BufferArg {
        // SAFETY: allocations have at least 256 bytes.
        unsafe { BufferArg::from_raw_parts(self.gpu.alloc(8), 1) }
    }
}
