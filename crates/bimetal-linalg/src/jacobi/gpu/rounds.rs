//! Launches for matrices in the GPU's memory: one for each round of a sweep, and one for each output.

use super::plan::{Division, rounded};
use super::{Job, blocks};
use bimetal_core::Result;
use bimetal_core::gpu::kernel::ELEMENTWISE_UNITS;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// The launches that rotate.
pub(super) struct Rotations<'a> {
    pub job: &'a Job<'a>,
    pub w: &'a Handle,
    pub flags: &'a Handle,
    pub elements: usize,
    pub flag_count: usize,
    pub sweeps: usize,
    pub height: usize,
}

impl Rotations<'_> {
    pub fn of_blocks(&self, block: usize, division: Division) {
        let (job, gpu) = (self.job, self.job.gpu);
        let blocks = job.cols.div_ceil(block).next_multiple_of(2).max(2);
        let cubes = job.batch * blocks / 2;
        for launch in 0..self.sweeps * (blocks - 1) {
            let (sweep, round) = (launch / (blocks - 1), launch % (blocks - 1));
            // SAFETY: the tile holds two blocks; blocks past the last column are skipped by the kernel.
            unsafe {
                blocks::block_round::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(cubes),
                    CubeDim::new_1d(division.units as u32),
                    job.address(),
                    job.raw(self.w, self.elements),
                    job.raw(self.flags, self.flag_count),
                    cubes,
                    job.rows as u32,
                    job.cols as u32,
                    self.height as u32,
                    blocks as u32,
                    round as u32,
                    sweep as u32,
                    self.sweeps as u32,
                    division.team as u32,
                    job.tolerance,
                    job.negligible,
                    block as u32,
                    rounded(2 * block * division.height).min(gpu.shared_memory / job.size - division.slots),
                    division.slots,
                    division.lanes,
                    job.elems[1],
                );
            }
        }
    }

    pub fn of_pairs(&self) {
        let (job, gpu) = (self.job, self.job.gpu);
        let players = job.cols.next_multiple_of(2);
        let cubes = job.batch * players / 2;
        let units = 256.min(gpu.max_units as usize);
        for launch in 0..self.sweeps * (players - 1) {
            let (sweep, round) = (launch / (players - 1), launch % (players - 1));
            // SAFETY: columns past the last are skipped by the kernel.
            unsafe {
                blocks::pair_round::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(cubes),
                    CubeDim::new_1d(units as u32),
                    job.address(),
                    job.raw(self.w, self.elements),
                    job.raw(self.flags, self.flag_count),
                    cubes,
                    job.rows as u32,
                    job.cols as u32,
                    self.height as u32,
                    players as u32,
                    round as u32,
                    sweep as u32,
                    self.sweeps as u32,
                    job.tolerance,
                    job.negligible,
                    units.div_ceil(gpu.plane.0 as usize) * 3,
                    job.elems[1],
                );
            }
        }
    }
}

/// Rotated columns with their lengths and order.
pub(super) struct Columns<'a> {
    pub job: &'a Job<'a>,
    pub w: &'a Handle,
    pub height: usize,
    pub lengths: &'a Handle,
    pub order: &'a Handle,
}

impl Columns<'_> {
    /// Writes `count` rows from `start` on: the columns of unit length, or the rotations.
    pub fn write(&self, unit: bool, start: usize, count: usize) -> Result<()> {
        let (job, gpu) = (self.job, self.job.gpu);
        let (tensor, each, [along, across]) = match (unit, job.swapped) {
            (true, _) => {
                let (tensor, total, strides) = job.long();
                (tensor, total * job.rows, strides)
            }
            (false, true) => (job.targets.left, job.cols * job.cols, [job.cols, 1]),
            (false, false) => (job.targets.right, job.cols * job.cols, [1, job.cols]),
        };
        let total = job.batch * count * job.cols;
        // SAFETY: as for the rounds; the output has `each` elements for each matrix.
        unsafe {
            blocks::write::launch_unchecked(
                gpu.client(),
                gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                job.address(),
                job.raw(self.w, job.batch * job.cols * self.height),
                job.raw(self.lengths, job.batch * job.cols),
                job.raw(self.order, job.batch * job.cols),
                job.targets.status.gpu_arg()?,
                job.output(tensor)?,
                total,
                count as u32,
                job.cols as u32,
                start as u32,
                self.height as u32,
                along as u32,
                across as u32,
                each,
                job.negligible,
                unit,
                job.elems,
            );
        }
        Ok(())
    }
}
