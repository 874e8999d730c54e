//! What comes before and after large factorisations: columns come in scaled, factors go out.

use super::blocked::Work;
use super::moves::{self, Stores, TILE, TILE_UNITS};
use bimetal_core::gpu::kernel::ELEMENTWISE_UNITS;
use bimetal_core::{DType, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Parts into which columns are cut to measure them.
pub(super) fn parts(m: usize) -> usize {
    m.div_ceil(moves::PART).clamp(1, moves::PARTS)
}

/// Matrices, the powers of two that their columns are multiplied with, and whether they are finite.
pub(super) struct Ends<'a> {
    pub(super) work: &'a Work<'a>,
    pub(super) scales: Tensor,
    pub(super) status: &'a Tensor,
    /// Storage and computation.
    pub(super) elems: [ElemType; 2],
}

impl Ends<'_> {
    fn double(&self) -> bool {
        self.scales.dtype() == DType::F64
    }

    fn tiles(&self, rows: usize, columns: usize) -> CubeCount {
        self.work.gpu.cubes(self.work.dims.batch * rows.div_ceil(TILE) * columns.div_ceil(TILE))
    }

    /// Fills the columns, scaled, and sets the statuses.
    pub(super) fn load(&self, a: &Tensor) -> Result<()> {
        let Work { gpu, dims, stride, .. } = self.work;
        let (batch, m, n) = (dims.batch, dims.m, dims.n);
        let parts = parts(m);
        let sizes = gpu.alloc(batch * parts * n * 4);
        let units = CubeDim::new_1d(TILE_UNITS as u32);
        // SAFETY: the kernels drop what is past these extents, which are those of the buffers.
        unsafe {
            moves::column_sizes::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * parts * n.div_ceil(TILE)),
                units,
                self.work.address,
                a.gpu_arg()?,
                BufferArg::from_raw_parts(sizes.clone(), batch * parts * n),
                batch,
                m,
                n,
                parts,
                self.double(),
                self.elems,
            );
            moves::column_scales::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch),
                units,
                self.work.address,
                BufferArg::from_raw_parts(sizes, batch * parts * n),
                self.scales.gpu_arg()?,
                self.status.gpu_arg()?,
                batch,
                n,
                parts,
                self.double(),
                self.elems[1],
            );
            moves::load::launch_unchecked(
                gpu.client(),
                self.tiles(*stride, n),
                units,
                self.work.address,
                a.gpu_arg()?,
                self.scales.gpu_arg()?,
                self.work.x.gpu_arg()?,
                batch,
                m,
                n,
                *stride,
                true,
                self.elems,
            );
        }
        Ok(())
    }

    /// Stores columns as matrices of these extents.
    pub(super) fn store(&self, x: &Tensor, out: &Tensor, [rows, columns]: [usize; 2], stores: Stores) -> Result<()> {
        let work = self.work;
        // SAFETY: as above.
        unsafe {
            moves::store::launch_unchecked(
                work.gpu.client(),
                self.tiles(rows, columns),
                CubeDim::new_1d(TILE_UNITS as u32),
                work.address,
                x.gpu_arg()?,
                work.v.gpu_arg()?,
                self.scales.gpu_arg()?,
                self.status.gpu_arg()?,
                out.gpu_arg()?,
                work.dims.batch,
                rows,
                columns,
                work.reflectors,
                work.stride,
                stores,
                self.double(),
                self.elems,
            );
        }
        Ok(())
    }

    pub(super) fn store_tau(&self, out: &Tensor) -> Result<()> {
        let work = self.work;
        let total = work.dims.batch * work.dims.k;
        // SAFETY: as above.
        unsafe {
            moves::store_tau::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                work.address,
                work.tau.gpu_arg()?,
                self.status.gpu_arg()?,
                out.gpu_arg()?,
                total,
                work.dims.k,
                work.reflectors,
                self.elems,
            );
        }
        Ok(())
    }
}

impl Work<'_> {
    /// Fills `x` with matrices that are not scaled: with their columns, or with their rows.
    pub(crate) fn load_plain(
        &self,
        c: &Tensor,
        rows: usize,
        columns: usize,
        by_rows: bool,
        elems: [ElemType; 2],
    ) -> Result<()> {
        let (gpu, batch) = (self.gpu, self.dims.batch);
        let total = self.x.numel();
        // SAFETY: the buffers have these extents; no scale is read.
        unsafe {
            if by_rows {
                moves::copy_lines::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                    CubeDim::new_1d(ELEMENTWISE_UNITS),
                    self.address,
                    c.gpu_arg()?,
                    self.x.gpu_arg()?,
                    total,
                    columns,
                    self.stride,
                    false,
                    elems,
                );
            } else {
                moves::load::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(batch * self.stride.div_ceil(TILE) * columns.div_ceil(TILE)),
                    CubeDim::new_1d(TILE_UNITS as u32),
                    self.address,
                    c.gpu_arg()?,
                    self.tau.gpu_arg()?,
                    self.x.gpu_arg()?,
                    batch,
                    rows,
                    columns,
                    self.stride,
                    false,
                    elems,
                );
            }
        }
        Ok(())
    }

    /// Stores the columns in `x` as rows.
    pub(crate) fn store_lines(&self, out: &Tensor, elems: [ElemType; 2]) -> Result<()> {
        let (gpu, total) = (self.gpu, out.numel());
        // SAFETY: `out` has as many lines as `x`, of `m` elements.
        unsafe {
            moves::copy_lines::launch_unchecked(
                gpu.client(),
                gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address,
                self.x.gpu_arg()?,
                out.gpu_arg()?,
                total,
                self.dims.m,
                self.stride,
                true,
                [elems[1], elems[0]],
            );
        }
        Ok(())
    }
}
