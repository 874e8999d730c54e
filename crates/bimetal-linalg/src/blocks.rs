//! Blocked triangular algorithms in a GPU's memory: the steps that large factorisations and solvers are made of, each over
//! a batch. A step solves with, or multiplies by, [`BLOCK`] columns of a triangular matrix.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
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
    /// element that is not finite. `part` says which elements count: 0 all, 1 the lower triangle, 2 the upper one; the
    /// others become 0.
    pub(crate) fn copied(
        gpu: &'a Gpu,
        x: &Tensor,
        count: usize,
        columns: usize,
        part: usize,
    ) -> Result<(Self, Handle, usize)> {
        let work = Self::new(gpu, x.dtype(), count, x.numel() / count);
        let chunks = work.batch.div_ceil(CHUNK);
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
                work.batch,
                columns,
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

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_in<I: Float, A: Float>(
    x: &[I],
    work: &mut [A],
    flags: &mut [i32],
    count: usize,
    size: usize,
    columns: usize,
    chunks: usize,
    #[comptime] part: usize,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let matrix = CUBE_POS / chunks;
    let chunk = CUBE_POS % chunks;
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let end = select(matrix < count, min((chunk + 1) * comptime!(CHUNK), size), 0usize);
    let mut e = chunk * comptime!(CHUNK) + UNIT_POS as usize;
    while e < end {
        let (i, j) = (e / columns, e % columns);
        let inside = comptime!(part == 0) || (comptime!(part == 1) && j <= i) || (comptime!(part == 2) && j >= i);
        let value = select(inside, A::cast_from(x[matrix * size + e]), A::new(0.0));
        work[matrix * size + e] = value;
        if not_finite::<A>(value, double) {
            bad[0] = 1i32;
        }
        e += CUBE_DIM as usize;
    }
    sync_cube();
    if UNIT_POS == 0 && matrix < count {
        flags[matrix * chunks + chunk] = bad[0];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_out<I: Float, A: Float>(
    work: &[A],
    out: &mut [I],
    status: &[i32],
    total: usize,
    size: usize,
    columns: usize,
    nan: InputScalar,
    #[comptime] part: usize,
    #[comptime] positive_fails: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let matrix = e / size;
        let (i, j) = (e % size / columns, e % columns);
        let inside = comptime!(part == 0) || (comptime!(part == 1) && j <= i) || (comptime!(part == 2) && j >= i);
        let found = status[matrix];
        let failed = found < 0i32 || (comptime!(positive_fails) && found > 0i32);
        let value = select(inside, work[e], A::new(0.0));
        out[e] = I::cast_from(select(failed, nan.get::<A>(), value));
    }
}

/// A cube for each matrix: −1 if a flag is set, else the first zero on the diagonal from 1, else 0.
#[cube(launch_unchecked, address_type = "dynamic")]
fn judge<A: Float>(
    first: &[i32],
    second: &[i32],
    matrix: &[A],
    status: &mut [i32],
    count: usize,
    flags: u32,
    more: u32,
    n: u32,
    #[define(A)] _elem: ElemType,
) {
    let mut zeros = Shared::<[u32]>::new_slice(comptime!(UNITS as usize));
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let at = min(CUBE_POS, count - 1);
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < flags {
        if first[at * flags as usize + i as usize] != 0i32 {
            bad[0] = 1i32;
        }
        i += CUBE_DIM;
    }
    i = UNIT_POS;
    while i < more {
        if second[at * more as usize + i as usize] != 0i32 {
            bad[0] = 1i32;
        }
        i += CUBE_DIM;
    }
    let mut zero = n;
    i = UNIT_POS;
    while i < n {
        let place = at * n as usize * n as usize + i as usize * (n as usize + 1);
        zero = select(matrix[place] == A::new(0.0), min(zero, i), zero);
        i += CUBE_DIM;
    }
    zeros[UNIT_POS as usize] = zero;
    sync_cube();
    if UNIT_POS == 0 && CUBE_POS < count {
        for other in 1..CUBE_DIM {
            zero = min(zero, zeros[other as usize]);
        }
        status[at] = select(bad[0] != 0i32, -1i32, select(zero < n, zero as i32 + 1i32, 0i32));
    }
}

/// A unit for each vector, which it keeps in registers; the triangle is in shared memory.
#[cube(launch_unchecked, address_type = "dynamic")]
fn solve_vectors<A: Float>(
    t: &[A],
    x: &mut [A],
    count: usize,
    n: u32,
    vectors: u32,
    t_batch: usize,
    t_start: usize,
    t_row: usize,
    t_column: usize,
    x_batch: usize,
    x_start: usize,
    x_row: usize,
    x_column: usize,
    #[comptime] unit_diagonal: bool,
    #[comptime] backwards: bool,
    #[comptime] same: bool,
    #[define(A)] _elem: ElemType,
) {
    let block = comptime!(BLOCK);
    let mut triangle = Shared::<[A]>::new_slice(comptime!(BLOCK * (BLOCK + 1)));
    let groups = vectors.div_ceil(CUBE_DIM) as usize;
    let matrix = min(CUBE_POS / groups, count - 1);
    let inside = CUBE_POS / groups < count;
    let vector = (CUBE_POS % groups) as u32 * CUBE_DIM + UNIT_POS;
    let n = n as usize;
    let mut e = UNIT_POS as usize;
    while e < comptime!(BLOCK * BLOCK) {
        let (i, j) = (e / block, e % block);
        let mut value = select(i == j, A::new(1.0), A::new(0.0));
        if i < n && j <= i && (comptime!(!unit_diagonal) || j < i) {
            let (i, j) = if comptime!(backwards) { (n - 1 - i, n - 1 - j) } else { (i, j) };
            let place = i * t_row + j * t_column + t_start + matrix * t_batch;
            if comptime!(same) {
                value = x[place];
            } else {
                value = t[place];
            }
        }
        triangle[j * comptime!(BLOCK + 1) + i] = value;
        e += CUBE_DIM as usize;
    }
    sync_cube();
    if inside && vector < vectors {
        let from = matrix * x_batch + x_start + vector as usize * x_column;
        let mut values = Array::<A>::new(block);
        #[unroll]
        for i in 0..block {
            values[i] = A::new(0.0);
            if i < n {
                let row = if comptime!(backwards) { n - 1 - i } else { i.runtime() };
                values[i] = x[from + row * x_row];
            }
        }
        #[unroll]
        for k in 0..block {
            if comptime!(!unit_diagonal) {
                values[k] = values[k] / triangle[comptime!(k * (BLOCK + 1) + k)];
            }
            let solved = values[k];
            #[unroll]
            for i in comptime!(k + 1)..block {
                values[i] = values[i] - solved * triangle[comptime!(k * (BLOCK + 1) + i)];
            }
        }
        #[unroll]
        for i in 0..block {
            if i < n {
                let row = if comptime!(backwards) { n - 1 - i } else { i.runtime() };
                x[from + row * x_row] = values[i];
            }
        }
    }
}

/// A cube for each tile of the result: both operands in shared memory, 4×4 elements a unit.
#[cube(launch_unchecked, address_type = "dynamic")]
fn update_tiles<A: Float>(
    t: &[A],
    x: &mut [A],
    count: usize,
    m: u32,
    n: u32,
    k: u32,
    t_batch: usize,
    x_batch: usize,
    a_start: usize,
    a_row: usize,
    a_column: usize,
    b_start: usize,
    b_row: usize,
    b_column: usize,
    c_start: usize,
    c_row: usize,
    c_column: usize,
    #[comptime] along: [bool; 3],
    #[comptime] lower: bool,
    #[comptime] same: bool,
    #[comptime] double: bool,
    #[define(A)] _elem: ElemType,
) {
    let per_unit = comptime!(TILE / SIDE);
    // A row one longer than the tile spreads columns over the banks; in f64 there is no room for it.
    let padded = comptime!(if double { TILE } else { TILE + 1 });
    let mut left = Shared::<[A]>::new_slice(comptime!(BLOCK * if double { TILE } else { TILE + 1 }));
    let mut right = Shared::<[A]>::new_slice(comptime!(BLOCK * if double { TILE } else { TILE + 1 }));
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let down = m.div_ceil(comptime!(TILE));
    let across = n.div_ceil(comptime!(TILE));
    let matrix = min(CUBE_POS / (down * across), count - 1);
    let at = CUBE_POS % (down * across);
    let row = at / across * comptime!(TILE);
    let column = at % across * comptime!(TILE);
    let wanted = CUBE_POS / (down * across) < count && (comptime!(!lower) || column <= row);
    let a_from = matrix * t_batch + a_start;
    let b_from = matrix * x_batch + b_start;
    let c_from = matrix * x_batch + c_start;
    let mut e = UNIT_POS as usize;
    while e < comptime!(BLOCK * TILE) {
        let (i, l) = if comptime!(along[0]) {
            (e / comptime!(BLOCK), e % comptime!(BLOCK))
        } else {
            (e % comptime!(TILE), e / comptime!(TILE))
        };
        let mut value = A::new(0.0);
        if wanted && row + i < m && l < k {
            let place = a_from + (row + i) * a_row + l * a_column;
            if comptime!(same) {
                value = x[place];
            } else {
                value = t[place];
            }
        }
        left[l * padded + i] = value;
        let (j, l) = if comptime!(along[1]) {
            (e % comptime!(TILE), e / comptime!(TILE))
        } else {
            (e / comptime!(BLOCK), e % comptime!(BLOCK))
        };
        let mut value = A::new(0.0);
        if wanted && column + j < n && l < k {
            value = x[b_from + l * b_row + (column + j) * b_column];
        }
        right[l * padded + j] = value;
        e += comptime!(SIDE * SIDE);
    }
    sync_cube();
    let fast = UNIT_POS as usize % comptime!(SIDE);
    let slow = UNIT_POS as usize / comptime!(SIDE);
    // Neighbouring units write neighbouring elements.
    let (y, z) = if comptime!(along[2]) { (slow, fast) } else { (fast, slow) };
    let mut sums = Array::<A>::new(comptime!((TILE / SIDE) * (TILE / SIDE)));
    #[unroll]
    for s in 0..comptime!((TILE / SIDE) * (TILE / SIDE)) {
        sums[s] = A::new(0.0);
    }
    for l in 0..comptime!(BLOCK) {
        #[unroll]
        for i in 0..per_unit {
            let factor = left[l * padded + y + i * comptime!(SIDE)];
            #[unroll]
            for j in 0..per_unit {
                let s = comptime!(i * (TILE / SIDE) + j);
                sums[s] = sums[s] + factor * right[l * padded + z + j * comptime!(SIDE)];
            }
        }
    }
    if wanted {
        #[unroll]
        for i in 0..per_unit {
            #[unroll]
            for j in 0..per_unit {
                let own_row = row + y + i * comptime!(SIDE);
                let own_column = column + z + j * comptime!(SIDE);
                if own_row < m && own_column < n {
                    let place = c_from + own_row * c_row + own_column * c_column;
                    x[place] = x[place] - sums[comptime!(i * (TILE / SIDE) + j)];
                }
            }
        }
    }
}
