//! Tridiagonal form of symmetric matrices, `A = Q·T·Qᵀ` (LAPACK's `sytrd`): launched column by column until a cube can hold what is left.

use super::load::Source;
use super::step::{Code, ROWS, step, steps_together};
use super::whole::{Form, STEP, whole};
use super::{Memory, Reflectors, Row};
use crate::blocks::working;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Device, Gpu, Result, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Tunables.
#[derive(Clone, Copy)]
pub(super) struct Params {
    /// Units of a launched column at most.
    pub(super) units: usize,
    /// Rows for which another cube takes part in a column.
    pub(super) rows: usize,
    /// Rows and columns that a cube takes over at most: beyond, a launch is faster than one processor.
    pub(super) taken: usize,
    /// Neighbouring units that share a column in a cube, twice as many up to `small` columns.
    pub(super) lanes: usize,
    pub(super) small: usize,
    /// Columns share launches where the device is known to run all cubes at once.
    pub(super) waiting: bool,
    /// Columns that are left when a launch with fewer units no longer pays.
    pub(super) least: usize,
}

pub(super) const PARAMS: Params =
    Params { units: 1024, rows: 4, taken: 192, lanes: 2, small: 32, waiting: true, least: 256 };

/// Symmetric matrices as `scale·Q·T·Qᵀ`, with the tridiagonal `T` of `diagonal` and `off`.
pub(crate) struct Tridiagonal<'a> {
    pub(super) memory: Memory<'a>,
    params: Params,
    n: usize,
    pub(super) reflectors: Reflectors,
    /// The diagonals, batch × n, in the dtype of the computation (f32, or f64 for f64).
    pub diagonal: Handle,
    /// What is beside them, batch × n: element i couples i and i + 1, the last is 0.
    pub off: Handle,
    /// For each matrix the power of two that its eigenvalues are to be multiplied by.
    pub scale: Handle,
}

/// A cube's share of a matrix in shared memory.
struct Layout {
    tall: usize,
    pitch: usize,
    elements: usize,
    most: usize,
    lanes: usize,
}

impl Layout {
    fn new(gpu: &Gpu, size: usize, params: Params) -> Self {
        let mut lanes = if size <= params.small { 2 * params.lanes } else { params.lanes };
        while lanes > 1 && !(gpu.plane.0 as usize).is_multiple_of(lanes) {
            lanes /= 2;
        }
        let tall = size.next_multiple_of(STEP as usize * lanes).max(STEP as usize * lanes);
        // Neighbours in rows and columns hit different banks.
        let bank = 32 / lanes;
        let pitch =
            if tall % (2 * bank) <= bank { tall / (2 * bank) * 2 * bank } else { tall.next_multiple_of(2 * bank) };
        let pitch = pitch + bank;
        let rounded = |x: usize| if x <= 64 { x.next_power_of_two() } else { x.next_multiple_of(32) };
        Self { tall, pitch, elements: (tall * pitch).next_multiple_of(2048), most: rounded(tall), lanes }
    }

    fn bytes(&self, dtype: DType) -> usize {
        // Slots for planes are at most one for each of 1024 units.
        (self.elements + 4 * self.most + 2) * dtype.size() + 1024
    }
}

impl Memory<'_> {
    /// The largest matrix that a cube can hold, at most `limit`.
    fn fitting(&self, limit: usize, params: Params) -> usize {
        (1..=limit)
            .rev()
            .find(|&n| Layout::new(self.gpu, n, params).bytes(self.dtype) <= self.gpu.shared_memory)
            .unwrap_or(1)
    }
}

/// Reduces the matrices of which `a` holds the upper or the lower triangle; the other one is not read. The status becomes 0,
/// or −1 where an element is not finite: such a matrix is replaced by zeros. Without `vectors` there is no way back.
pub(crate) fn tridiagonal<'a>(
    gpu: &'a Gpu,
    upper: bool,
    a: &Tensor,
    status: &Tensor,
    vectors: bool,
) -> Result<Tridiagonal<'a>> {
    reduced(gpu, upper, a, status, vectors, PARAMS)
}

pub(super) fn reduced<'a>(
    gpu: &'a Gpu,
    upper: bool,
    a: &Tensor,
    status: &Tensor,
    vectors: bool,
    params: Params,
) -> Result<Tridiagonal<'a>> {
    let dims = a.shape().dims();
    let n = dims[dims.len() - 1];
    let memory = Memory { gpu, dtype: working(a.dtype()), batch: status.numel() };
    let stride = n.next_multiple_of(if n > 256 { 64 } else { 4 });
    let held = Tridiagonal::held(&memory, n, params);
    let made = Tridiagonal {
        params,
        reflectors: Reflectors::new(&memory, [n.saturating_sub(2), n.max(1), stride.max(1), 1], !held)?,
        diagonal: memory.alloc(n),
        off: memory.alloc(n),
        scale: memory.alloc(1),
        n,
        memory,
    };
    if made.memory.batch == 0 {
        return Ok(made);
    }
    if held {
        made.whole(Some((a, upper, status)), None, 0, vectors)?;
        return Ok(made);
    }
    let p = made.memory.alloc(2 * n);
    let w = made.memory.alloc(n * stride);
    let source = if upper { Source::Upper } else { Source::Lower };
    made.memory.load(a, source, [n, n, stride], [&w, &made.scale], status)?;
    let first = n - made.memory.fitting(params.taken.min(n), params);
    if !made.steps(&w, &p, first)? {
        for k in 0..first {
            made.step(&w, &p, k)?;
        }
    }
    made.whole(None, Some([&w, &p]), first, true)?;
    Ok(made)
}

impl Tridiagonal<'_> {
    /// Whether a cube takes a whole matrix.
    pub(super) fn held(memory: &Memory, n: usize, params: Params) -> bool {
        n <= memory.fitting(n.min(256), params)
    }

    /// Every row of the batch × n × n elements of `z`, an eigenvector of T, becomes Q times itself.
    pub(crate) fn back(&self, z: &Handle) -> Result<()> {
        self.reflectors.apply(&self.memory, z, [self.n, self.n])
    }

    /// What is left from row and column `first` on, by a cube for each matrix.
    fn whole(
        &self,
        fresh: Option<(&Tensor, bool, &Tensor)>,
        left: Option<[&Handle; 2]>,
        first: usize,
        vectors: bool,
    ) -> Result<()> {
        let (memory, n, stride) = (&self.memory, self.n, self.reflectors.stride);
        let gpu = memory.gpu;
        let size = n - first;
        let layout = Layout::new(gpu, size, self.params);
        let most = (gpu.max_units as usize).min(1024) / gpu.plane.1 as usize * gpu.plane.1 as usize;
        let units = (size.max(1) * layout.lanes).next_multiple_of(gpu.plane.1 as usize).min(most);
        let dummy = gpu.alloc(8);
        // SAFETY: allocations have at least 256 bytes, and a dummy is not touched.
        let unused = || unsafe { BufferArg::from_raw_parts(dummy.clone(), 1) };
        let form = Form {
            fresh: fresh.is_some(),
            upper: fresh.is_some_and(|(_, upper, _)| upper),
            vectors,
            double: memory.double(),
            lanes: layout.lanes as u32,
            elements: layout.elements,
            most: layout.most,
            planes: memory.planes(most).min(256),
            held: layout.most.div_ceil(gpu.plane.0 as usize),
        };
        let (input, status, elems) = match fresh {
            Some((a, _, status)) => (a.gpu_arg()?, status.gpu_arg()?, memory.elems(a)?),
            None => (left.map_or_else(unused, |[w, _]| memory.arg(w, n * stride)), unused(), [memory.elem()?; 2]),
        };
        // SAFETY: the buffers have these extents; the matrix fits in shared memory, as the caller has seen to.
        unsafe {
            whole::launch_unchecked(
                gpu.client(),
                gpu.cubes(memory.batch),
                CubeDim::new_1d(units as u32),
                address_type(memory.batch * n * stride),
                input,
                left.map_or_else(unused, |[_, p]| memory.arg(p, 2 * n)),
                self.reflectors.v.gpu_arg()?,
                self.reflectors.tau.gpu_arg()?,
                memory.arg(&self.diagonal, n),
                memory.arg(&self.off, n),
                memory.arg(&self.scale, 1),
                status,
                memory.batch as u32,
                n as u32,
                first as u32,
                stride as u32,
                layout.tall as u32,
                layout.pitch as u32,
                (first % 2) as u32,
                form,
                elems,
            );
        }
        Ok(())
    }

    /// Columns up to `first` in few launches, in which the cubes of a matrix wait for each other; false, and nothing done, where not
    /// all of them are sure to run at once.
    fn steps(&self, w: &Handle, p: &Handle, first: usize) -> Result<bool> {
        let (memory, n, stride) = (&self.memory, self.n, self.reflectors.stride);
        let gpu = memory.gpu;
        // A cube for each processor, and none that is left over. Several matrices are faster by launches with more cubes.
        let cubes = gpu.processors as usize;
        let sure = self.params.waiting && matches!(gpu.device(), Device::Cuda(_));
        if !sure || memory.batch > 1 || n.div_ceil(cubes) > ROWS {
            return Ok(false);
        }
        // The parts of the way over which a cube has as many units.
        let mut parts = vec![0];
        while let Some(k) = parts.last().filter(|k| **k < first) {
            let next = if n - k > 2 * self.params.least { (n + k) / 2 } else { first };
            parts.push(next.min(first));
        }
        let arrived = memory.alloc(parts.len());
        let counters = memory.batch * parts.len();
        memory.clear(memory.arg(&arrived, parts.len()), counters)?;
        for (part, ends) in parts.windows(2).enumerate() {
            let Row { width, units, held, planes } = memory.row(ends[0], stride, self.params.units);
            let cubes = cubes.min((n - ends[0]).div_ceil(self.params.rows)).max(1);
            let code = Code { held, width, rows: Row::together(units, held), planes, double: memory.double() };
            // SAFETY: the buffers have these extents, past which the kernel touches nothing; there are no more cubes than
            // processors.
            unsafe {
                steps_together::launch_unchecked(
                    gpu.client(),
                    CubeCount::Static((memory.batch * cubes) as u32, 1, 1),
                    CubeDim::new_1d(units as u32),
                    address_type(memory.batch * n * stride),
                    width,
                    memory.arg(w, n * stride),
                    memory.arg(p, 2 * n),
                    self.reflectors.v.gpu_arg()?,
                    self.reflectors.tau.gpu_arg()?,
                    memory.arg(&self.diagonal, n),
                    memory.arg(&self.off, n),
                    BufferArg::from_raw_parts(arrived.clone(), counters),
                    n as u32,
                    stride as u32,
                    ends[0] as u32,
                    ends[1] as u32,
                    cubes as u32,
                    (part * memory.batch) as u32,
                    code,
                    memory.elem()?,
                );
            }
        }
        Ok(true)
    }

    /// Column `k` by several cubes for each matrix.
    fn step(&self, w: &Handle, p: &Handle, k: usize) -> Result<()> {
        let (memory, n, stride) = (&self.memory, self.n, self.reflectors.stride);
        let gpu = memory.gpu;
        let rows = n - k - 1;
        let cubes = (gpu.processors as usize).min(rows.div_ceil(self.params.rows)).max(rows.div_ceil(ROWS)).max(1);
        let Row { width, units, held, planes } = memory.row(k, stride, self.params.units);
        let code = Code { held, width, rows: Row::together(units, held), planes, double: memory.double() };
        // SAFETY: the buffers have these extents, past which the kernel touches nothing.
        unsafe {
            step::launch_unchecked(
                gpu.client(),
                gpu.cubes(memory.batch * cubes),
                CubeDim::new_1d(units as u32),
                address_type(memory.batch * n * stride),
                width,
                memory.arg(w, n * stride),
                memory.arg(p, 2 * n),
                self.reflectors.v.gpu_arg()?,
                self.reflectors.tau.gpu_arg()?,
                memory.arg(&self.diagonal, n),
                memory.arg(&self.off, n),
                memory.batch,
                n as u32,
                stride as u32,
                k as u32,
                cubes as u32,
                code,
                memory.elem()?,
            );
        }
        Ok(())
    }
}
