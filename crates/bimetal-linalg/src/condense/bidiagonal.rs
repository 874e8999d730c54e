//! Upper bidiagonal form, `A = U·B·Vᵀ` (LAPACK's `gebrd`): launched column by column until a cube can hold what is left.

use super::load::Source;
use super::rectangle::{Form, STEP, rectangle};
use super::sides::{self, Code, first_columns};
use super::step::ROWS;
use super::{Memory, PRODUCTS, Reflectors, Row};
use crate::blocks::working;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Tunables.
#[derive(Clone, Copy)]
pub(super) struct Params {
    /// Units of a launched row at most, and of a stripe of columns.
    pub(super) units: usize,
    pub(super) striped: usize,
    /// Rows for which another cube takes part in a row's launch.
    pub(super) rows: usize,
    /// Columns that a cube takes over at most.
    pub(super) taken: usize,
    /// Neighbouring units that share a row or column in a cube.
    pub(super) lanes: usize,
}

pub(super) const PARAMS: Params = Params { units: 1024, striped: 1024, rows: 4, taken: 192, lanes: 2 };

/// Matrices of `m`×`n` with `m` ≥ `n` as `scale·U·B·Vᵀ`, with the upper bidiagonal `B` of `diagonal` and `off`.
pub(crate) struct Bidiagonal<'a> {
    pub(super) memory: Memory<'a>,
    params: Params,
    pub(super) m: usize,
    pub(super) n: usize,
    left: Reflectors,
    right: Reflectors,
    /// The diagonals, batch × n, in the dtype of the computation (f32, or f64 for f64).
    pub diagonal: Handle,
    /// What is above them, batch × n: element i is beside diagonal i + 1, the last is 0.
    pub off: Handle,
    /// For each matrix the power of two that its singular values are to be multiplied by.
    pub scale: Handle,
}

/// A cube's share of a matrix in shared memory.
struct Layout {
    tall: usize,
    wide: usize,
    pitch: usize,
    /// Comptime sizes of the matrix, a column and a row.
    elements: usize,
    column: usize,
    row: usize,
    lanes: usize,
}

impl Layout {
    fn new(gpu: &Gpu, [m, n]: [usize; 2], params: Params) -> Self {
        let lanes = if (gpu.plane.0 as usize).is_multiple_of(params.lanes) { params.lanes } else { 1 };
        let padded = |x: usize| x.next_multiple_of(STEP as usize * lanes).max(STEP as usize * lanes);
        let (tall, wide) = (padded(m), padded(n));
        // Neighbours in rows and in columns hit different banks, but for few.
        let pitch = (wide + 15).next_multiple_of(32) + 17 - if (wide + 15) % 32 == 0 { 0 } else { 32 };
        let pitch = if pitch < wide { pitch + 32 } else { pitch };
        let rounded = |x: usize| if x <= 64 { x.next_power_of_two() } else { x.next_multiple_of(32) };
        let elements = (tall * pitch).next_multiple_of(2048);
        Self { tall, wide, pitch, elements, column: rounded(tall), row: rounded(wide), lanes }
    }

    fn fits(&self, gpu: &Gpu, dtype: DType) -> bool {
        // Slots for planes are at most one for each of 1024 units.
        (self.elements + 3 * self.column + 2 * self.row + 3) * dtype.size() + 1024 <= gpu.shared_memory
    }
}

/// Reduces matrices, or their transposes if `swapped`: what is reduced must have no fewer rows than columns. The status becomes
/// 0, or −1 where an element is not finite: such a matrix is replaced by zeros. Without `vectors` there is no way back.
pub(crate) fn bidiagonal<'a>(
    gpu: &'a Gpu,
    a: &Tensor,
    swapped: bool,
    status: &Tensor,
    vectors: bool,
) -> Result<Bidiagonal<'a>> {
    reduced(gpu, a, swapped, status, vectors, PARAMS)
}

pub(super) fn reduced<'a>(
    gpu: &'a Gpu,
    a: &Tensor,
    swapped: bool,
    status: &Tensor,
    vectors: bool,
    params: Params,
) -> Result<Bidiagonal<'a>> {
    let dims = a.shape().dims();
    let [rows, columns] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let [m, n] = if swapped { [columns, rows] } else { [rows, columns] };
    let memory = Memory { gpu, dtype: working(a.dtype()), batch: status.numel() };
    let stride = |x: usize| x.next_multiple_of(if x > 256 { 64 } else { 4 }).max(4);
    let dtype = memory.dtype;
    let fits = |first: usize| Layout::new(gpu, [m - first, n - first], params).fits(gpu, dtype);
    let held = Bidiagonal::held(&memory, [m, n], params);
    let made = Bidiagonal {
        left: Reflectors::new(&memory, [n, n.max(1), stride(m), 0], !held || m >= PRODUCTS)?,
        right: Reflectors::new(&memory, [n.saturating_sub(2), n.max(1), stride(n), 1], !held)?,
        diagonal: memory.alloc(n),
        off: memory.alloc(n),
        scale: memory.alloc(1),
        params,
        m,
        n,
        memory,
    };
    let memory = &made.memory;
    if memory.batch == 0 {
        return Ok(made);
    }
    if held {
        made.whole(Some((a, swapped, status)), None, 0, vectors)?;
        return Ok(made);
    }
    let xy = memory.alloc(m + n);
    let across = stride(n);
    let (w, c) = (memory.alloc(m * across), memory.alloc(m));
    let source = if swapped { Source::Swapped } else { Source::Plain };
    memory.load(a, source, [m, n, across], [&w, &made.scale], status)?;
    made.first_column(&w, &c)?;
    let first = (n.saturating_sub(params.taken).max(1)..n).find(|&first| fits(first)).unwrap_or(n);
    for k in 0..first {
        made.step([&w, &c, &xy], k)?;
    }
    if first < n {
        made.whole(None, Some([&w, &xy]), first, true)?;
    }
    Ok(made)
}

impl Bidiagonal<'_> {
    /// Whether a cube takes a whole matrix.
    pub(super) fn held(memory: &Memory, dims: [usize; 2], params: Params) -> bool {
        dims[1] <= 256 && Layout::new(memory.gpu, dims, params).fits(memory.gpu, memory.dtype)
    }

    /// Every row of the batch × `rows` × m elements of `z` becomes U times itself.
    pub(crate) fn back_left(&self, z: &Handle, rows: usize) -> Result<()> {
        self.left.apply(&self.memory, z, [rows, self.m])
    }

    /// Every row of the batch × n × n elements of `z` becomes V times itself.
    pub(crate) fn back_right(&self, z: &Handle) -> Result<()> {
        self.right.apply(&self.memory, z, [self.n, self.n])
    }

    /// What is left from row and column `first` on, by a cube for each matrix.
    fn whole(
        &self,
        fresh: Option<(&Tensor, bool, &Tensor)>,
        left: Option<[&Handle; 2]>,
        first: usize,
        vectors: bool,
    ) -> Result<()> {
        let (memory, m, n) = (&self.memory, self.m, self.n);
        let gpu = memory.gpu;
        let layout = Layout::new(gpu, [m - first, n - first], self.params);
        let plane = gpu.plane.1 as usize;
        let most = (gpu.max_units as usize).min(1024) / plane * plane;
        let units = ((m - first).max(1) * layout.lanes).next_multiple_of(plane).min(most);
        let dummy = gpu.alloc(8);
        // SAFETY: allocations have at least 256 bytes, and a dummy is not touched.
        let unused = || unsafe { BufferArg::from_raw_parts(dummy.clone(), 1) };
        let form = Form {
            fresh: fresh.is_some(),
            swapped: fresh.is_some_and(|(_, swapped, _)| swapped),
            vectors,
            double: memory.double(),
            lanes: layout.lanes as u32,
            elements: layout.elements,
            tall: layout.column,
            wide: layout.row,
            planes: memory.planes(most).min(256),
        };
        let (input, status, elems) = match fresh {
            Some((a, _, status)) => (a.gpu_arg()?, status.gpu_arg()?, memory.elems(a)?),
            None => {
                (left.map_or_else(unused, |[w, _]| memory.arg(w, m * self.right.stride)), unused(), [memory.elem()?; 2])
            }
        };
        // SAFETY: the buffers have these extents; the matrix fits in shared memory, as the caller has seen to.
        unsafe {
            rectangle::launch_unchecked(
                gpu.client(),
                gpu.cubes(memory.batch),
                CubeDim::new_1d(units as u32),
                address_type(memory.batch * m.max(n) * self.left.stride),
                input,
                left.map_or_else(unused, |[_, xy]| memory.arg(xy, m + n)),
                self.left.v.gpu_arg()?,
                self.right.v.gpu_arg()?,
                self.left.tau.gpu_arg()?,
                self.right.tau.gpu_arg()?,
                memory.arg(&self.diagonal, n),
                memory.arg(&self.off, n),
                memory.arg(&self.scale, 1),
                status,
                memory.batch as u32,
                m as u32,
                n as u32,
                first as u32,
                layout.tall as u32,
                layout.wide as u32,
                layout.pitch as u32,
                self.left.stride as u32,
                self.right.stride as u32,
                form,
                elems,
            );
        }
        Ok(())
    }

    fn first_column(&self, w: &Handle, c: &Handle) -> Result<()> {
        let (memory, m, stride) = (&self.memory, self.m, self.right.stride);
        let total = memory.batch * m;
        // SAFETY: there are `total` rows of `stride` elements.
        unsafe {
            first_columns::launch_unchecked(
                memory.gpu.client(),
                memory.gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                address_type(total * stride),
                memory.arg(w, m * stride),
                memory.arg(c, m),
                total,
                stride,
                memory.elem()?,
            );
        }
        Ok(())
    }

    /// Column and row `k` by several cubes for each matrix.
    fn step(&self, [w, c, xy]: [&Handle; 3], k: usize) -> Result<()> {
        let (memory, m, n, params) = (&self.memory, self.m, self.n, self.params);
        let gpu = memory.gpu;
        let (down, across) = (self.left.stride, self.right.stride);
        let address = address_type(memory.batch * m * across.max(n * down / m.max(1)));
        let row = memory.row(k + 1, across, params.units);
        let Row { width, units, held, planes } = row;
        let vectors = (across - (k + 1) / width * width).div_ceil(width).max(1);
        // Narrow stripes give every processor something to do, wide ones whole lines of memory.
        let lanes = [2, 4].into_iter().find(|lanes| vectors <= lanes * gpu.processors as usize).unwrap_or(8);
        let striped = (gpu.max_units as usize).min(params.striped);
        let stripes = vectors.div_ceil(lanes);
        let rows = m - k - 1;
        let cubes = (gpu.processors as usize).min(rows.div_ceil(params.rows)).max(rows.div_ceil(ROWS)).max(1);
        let code = Code {
            held,
            width,
            rows: Row::together(units, held),
            lanes,
            units: striped,
            planes,
            double: memory.double(),
        };
        // SAFETY: the buffers have these extents, past which the kernels touch nothing.
        unsafe {
            sides::left::launch_unchecked(
                gpu.client(),
                gpu.cubes(memory.batch * stripes),
                CubeDim::new_1d(striped as u32),
                address,
                width,
                memory.arg(w, m * across),
                memory.arg(c, m),
                memory.arg(xy, m + n),
                self.left.v.gpu_arg()?,
                self.right.v.gpu_arg()?,
                self.left.tau.gpu_arg()?,
                memory.arg(&self.diagonal, n),
                memory.batch,
                m as u32,
                n as u32,
                k as u32,
                down as u32,
                across as u32,
                stripes as u32,
                Code { held: 1, rows: 4, planes: memory.planes(striped), ..code },
                memory.elem()?,
            );
            sides::right::launch_unchecked(
                gpu.client(),
                gpu.cubes(memory.batch * cubes),
                CubeDim::new_1d(units as u32),
                address,
                width,
                memory.arg(w, m * across),
                memory.arg(c, m),
                memory.arg(xy, m + n),
                self.left.v.gpu_arg()?,
                self.right.v.gpu_arg()?,
                self.right.tau.gpu_arg()?,
                memory.arg(&self.off, n),
                memory.batch,
                m as u32,
                n as u32,
                k as u32,
                down as u32,
                across as u32,
                cubes as u32,
                Code { lanes: 1, units: 1, ..code },
                memory.elem()?,
            );
        }
        Ok(())
    }
}
