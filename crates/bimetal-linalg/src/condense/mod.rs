//! Reduction of matrices to condensed form on a GPU by reflections, `A = Q·T·Qᵀ` with `T` tridiagonal and `A = U·B·Vᵀ`
//! with `B` upper bidiagonal, and the way back of their vectors.

mod back;
mod bidiagonal;
mod bytes;
mod load;
mod parts;
mod rectangle;
mod sides;
mod step;
mod tridiagonal;
mod whole;

pub(crate) use bidiagonal::{Bidiagonal, bidiagonal};
pub(crate) use bytes::{bidiagonal_bytes, tridiagonal_bytes};
pub(crate) use tridiagonal::tridiagonal;

use crate::qr::gpu::blocked::group;
use crate::qr::gpu::moves;
use crate::qr::gpu::wy::{self, Groups, Lines};
use back::Code;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;
use load::{PARTS, Source, TILE, UNITS};

/// Elements of a matrix for which another cube measures.
const MEASURED: usize = 16384;
/// Units that transform rows back, elements that each of them holds at most, and bytes of reflectors in shared memory.
const ROW_UNITS: usize = 256;
const HELD: [usize; 5] = [4, 8, 16, 32, 64];
const STAGED: usize = 16384;
/// Elements of a row from which the vendor's products are used.
const PRODUCTS: usize = 2049;
/// Elements of a row come in multiples of this for them.
const STRIDE: usize = 64;

/// Memory of the computation's dtype for a batch.
pub(crate) struct Memory<'a> {
    gpu: &'a Gpu,
    dtype: DType,
    batch: usize,
}

/// Units that share a row, vectors of `width` elements that each of them holds, and planes at most.
struct Row {
    width: usize,
    units: usize,
    held: usize,
    planes: usize,
}

impl Row {
    /// Rows that are taken together: as many as registers hold.
    fn together(units: usize, held: usize) -> usize {
        (if units > 512 { 4 } else { 8 } / held).max(1)
    }
}

impl Memory<'_> {
    fn alloc(&self, elements: usize) -> Handle {
        self.gpu.alloc((self.batch * elements).max(1) * self.dtype.size())
    }

    /// A buffer of so many elements for each matrix as an argument.
    fn arg(&self, handle: &Handle, elements: usize) -> BufferArg {
        // SAFETY: callers give the length with which the buffer was allocated.
        unsafe { BufferArg::from_raw_parts(handle.clone(), (self.batch * elements).max(1)) }
    }

    /// A tensor of the computation's dtype.
    fn tensor(&self, extents: &[usize]) -> Result<Tensor> {
        Tensor::empty_on(Spec::new(Shape::new(extents)?, self.dtype), self.gpu.device())
    }

    /// Sets elements to zero.
    fn clear(&self, x: BufferArg, total: usize) -> Result<()> {
        // SAFETY: callers give the number of elements.
        unsafe {
            wy::clear::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                address_type(total),
                x,
                total,
                self.elem()?,
            );
        }
        Ok(())
    }

    fn elem(&self) -> Result<ElemType> {
        self.gpu.elem(self.dtype)
    }

    /// Storage of `a` and the computation's dtype.
    fn elems(&self, a: &Tensor) -> Result<[ElemType; 2]> {
        Ok([self.gpu.elem(a.dtype())?, self.elem()?])
    }

    /// How the units of a cube share a row of `stride` elements from element `first` on.
    fn row(&self, first: usize, stride: usize, units: usize) -> Row {
        let gpu = self.gpu;
        let width = gpu.vector(self.dtype);
        let vectors = (stride - first / width * width).div_ceil(width).max(1);
        let plane = (gpu.plane.1 as usize).max(32);
        // Sums of planes go to shared memory.
        let largest = (gpu.max_units as usize).min(units).min(64 * gpu.plane.0 as usize) / plane * plane;
        let held = vectors.div_ceil(largest).next_power_of_two();
        let units = vectors.div_ceil(held).next_multiple_of(plane).min(largest);
        Row { width, units, held, planes: self.planes(largest) }
    }

    fn double(&self) -> bool {
        self.dtype == DType::F64
    }

    /// Most planes that so many units make.
    fn planes(&self, units: usize) -> usize {
        units.div_ceil(self.gpu.plane.0 as usize)
    }

    /// Copies `m`×`n` matrices to rows of `stride` elements, scaled; zeros where they are not finite, with status −1.
    fn load(
        &self,
        a: &Tensor,
        source: Source,
        [m, n, stride]: [usize; 3],
        [w, scale]: [&Handle; 2],
        status: &Tensor,
    ) -> Result<()> {
        let (gpu, batch) = (self.gpu, self.batch);
        let parts = (m * n).div_ceil(MEASURED).clamp(1, PARTS);
        let marks = gpu.alloc(batch * parts * 4);
        let address = address_type(batch * m * stride);
        let squares = m.div_ceil(TILE) * stride.div_ceil(TILE);
        // SAFETY: the buffers have these extents, past which the kernels touch nothing.
        unsafe {
            load::measure::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * parts),
                CubeDim::new_1d(UNITS as u32),
                address,
                a.gpu_arg()?,
                BufferArg::from_raw_parts(marks.clone(), batch * parts),
                batch,
                m * n,
                n,
                parts,
                source,
                self.double(),
                self.elems(a)?,
            );
            load::fill::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * squares),
                CubeDim::new_1d(UNITS as u32),
                address,
                a.gpu_arg()?,
                BufferArg::from_raw_parts(marks, batch * parts),
                self.arg(w, m * stride),
                self.arg(scale, 1),
                status.gpu_arg()?,
                batch,
                m,
                n,
                stride,
                parts,
                source,
                self.double(),
                self.elems(a)?,
            );
        }
        Ok(())
    }
}

/// Reflections `1 − τ·v·vᵀ` of each matrix: rows of `stride` elements, of which number `r` starts at element `r + shift`.
pub(crate) struct Reflectors {
    v: Tensor,
    tau: Tensor,
    /// How many there are, and for how many there is room.
    count: usize,
    most: usize,
    stride: usize,
    shift: usize,
}

impl Reflectors {
    /// Room for `most` reflections of `stride` elements, of which `count` will count. Zeros if they are not made by one cube, or
    /// are applied by products.
    fn new(memory: &Memory, [count, most, stride, shift]: [usize; 4], zeros: bool) -> Result<Self> {
        // Groups of one matrix are filled up.
        let most = if zeros && memory.batch == 1 { most.next_multiple_of(group(most)) } else { most };
        let made = Self {
            v: memory.tensor(&[memory.batch, most, stride])?,
            tau: memory.tensor(&[memory.batch, most])?,
            count,
            most,
            stride,
            shift,
        };
        let total = made.v.numel();
        if zeros && total > 0 {
            memory.clear(made.v.gpu_arg()?, total)?;
            memory.clear(made.tau.gpu_arg()?, made.tau.numel())?;
        }
        Ok(made)
    }

    /// The same as [`Reflectors::apply`] by the vendor's products; false, and nothing done, where there are none.
    fn apply_products(&self, memory: &Memory, z: &Handle, [lines, m]: [usize; 2]) -> Result<bool> {
        let (gpu, batch, stride) = (memory.gpu, memory.batch, self.stride);
        if !gpu.has_gemm() || !stride.is_multiple_of(STRIDE) {
            return Ok(false);
        }
        let x = memory.tensor(&[batch, lines, stride])?;
        let address = address_type(batch * lines.max(self.most) * stride);
        let copy = |back: bool| -> Result<()> {
            let total = batch * lines * if back { m } else { stride };
            let (z, x) = (memory.arg(z, lines * m), x.gpu_arg()?);
            let [from, to] = if back { [x, z] } else { [z, x] };
            // SAFETY: both hold as many lines, of `m` and of `stride` elements.
            unsafe {
                moves::copy_lines::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                    CubeDim::new_1d(ELEMENTWISE_UNITS),
                    address,
                    from,
                    to,
                    total,
                    m,
                    stride,
                    back,
                    [memory.elem()?; 2],
                );
            }
            Ok(())
        };
        copy(false)?;
        let groups = Groups::new(gpu, [&self.v, &self.tau], [self.count, group(self.count), lines], memory.elem()?)?;
        groups.prepare(self.count)?;
        groups.apply_all(self.count, Lines { x: &x, count: lines }, false, |_| 0)?;
        copy(true)?;
        Ok(true)
    }

    /// Multiplies `lines` rows of `m` elements of each matrix, in place, by the product of the reflections.
    fn apply(&self, memory: &Memory, z: &Handle, [lines, m]: [usize; 2]) -> Result<()> {
        if memory.batch * lines * m == 0 || self.count == 0 {
            return Ok(());
        }
        if m >= PRODUCTS && self.apply_products(memory, z, [lines, m])? {
            return Ok(());
        }
        self.apply_registers(memory, z, [lines, m])
    }

    /// The same as [`Reflectors::apply`] by kernels of our own.
    fn apply_registers(&self, memory: &Memory, z: &Handle, [lines, m]: [usize; 2]) -> Result<()> {
        let (gpu, batch) = (memory.gpu, memory.batch);
        let address = address_type(batch * (lines * m).max(self.most * self.stride));
        let lanes = [4, 8, 16, 32].into_iter().find(|lanes| lanes * 32 >= m).unwrap_or(32).min(gpu.plane.0 as usize);
        let lanes = if lanes.is_power_of_two() { lanes } else { 1 };
        let held = HELD.into_iter().find(|held| held * lanes >= m);
        // SAFETY: the buffers have these extents, past which the kernels touch nothing.
        unsafe {
            if let Some(held) = held {
                let staged = (STAGED / (lanes * held * memory.dtype.size())).clamp(1, 32);
                let cubes = lines.div_ceil(ROW_UNITS / lanes);
                back::rows::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(batch * cubes),
                    CubeDim::new_1d(ROW_UNITS as u32),
                    address,
                    memory.arg(z, lines * m),
                    self.v.gpu_arg()?,
                    self.tau.gpu_arg()?,
                    batch,
                    lines as u32,
                    m as u32,
                    self.count as u32,
                    self.most as u32,
                    self.stride as u32,
                    self.shift as u32,
                    cubes as u32,
                    Code { lanes: lanes as u32, held, units: ROW_UNITS, staged },
                    memory.elem()?,
                );
            } else {
                let units = UNITS.min(gpu.max_units as usize);
                back::long_rows::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(batch * lines),
                    CubeDim::new_1d(units as u32),
                    address,
                    memory.arg(z, lines * m),
                    self.v.gpu_arg()?,
                    self.tau.gpu_arg()?,
                    batch,
                    lines as u32,
                    m as u32,
                    self.count as u32,
                    self.most as u32,
                    self.stride as u32,
                    self.shift as u32,
                    memory.planes(units),
                    memory.elem()?,
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
