//! How matrices are laid out for the Jacobi kernels, and the memory that this takes beside inputs and outputs.

use super::step::Lanes;
use bimetal_core::Gpu;
use bimetal_core::gpu::counted;

/// Tunables.
pub(super) struct Params {
    /// Units of a cube at most.
    pub(super) units: usize,
    /// Units that share a pair of columns, at least: few, because each of them computes the rotation.
    lanes: usize,
    /// Elements of a column in the registers of a unit before more units share it; twice as many at most.
    kept: usize,
    /// Columns of a block where the memory of a cube allows.
    block: usize,
    /// Columns of a block at least, when smaller blocks give more processors something to do.
    least_block: usize,
    /// Sweeps at most in one launch.
    pub(super) sweeps: usize,
    /// Sweeps at most when every round is a launch; twice as many in f64, where noise beside exact zeros takes 20 to 40.
    launched_sweeps: usize,
    /// A matrix that fits in a cube is nevertheless shared by several cubes from this many columns on, if the batch leaves
    /// most processors idle.
    shared_from: usize,
}

pub(super) const PARAMS: Params = Params {
    units: 1024,
    lanes: 8,
    kept: 16,
    block: 16,
    least_block: 8,
    sweeps: 40,
    launched_sweeps: 20,
    shared_from: 160,
};

/// A batch of matrices, or of their transposes, that have no fewer rows than columns.
#[derive(Clone, Copy)]
pub(super) struct Extents<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) batch: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rotations are applied to an identity below each matrix.
    pub(super) carries: bool,
    /// Bytes of an element of the computation.
    pub(super) size: usize,
}

/// How the units of a cube share pairs of columns, and how columns are laid out for them.
#[derive(Clone, Copy)]
pub(super) struct Division {
    pub(super) units: usize,
    /// Planes that share a pair.
    pub(super) team: usize,
    pub(super) lanes: Lanes,
    /// Where the elements that are only rotated begin.
    pub(super) below: usize,
    /// Elements from one column to the next.
    pub(super) height: usize,
    pub(super) slots: usize,
}

/// A launch with a cube for each matrix.
pub(super) struct WholePlan {
    pub(super) division: Division,
    pub(super) elements: usize,
    pub(super) most_cols: usize,
}

/// The next power of two, or three quarters of it: few sizes of shared memory, so that few kernels are compiled.
pub(super) fn rounded(n: usize) -> usize {
    let power = n.next_power_of_two().max(1024);
    if power / 4 * 3 >= n { power / 4 * 3 } else { power }
}

impl Extents<'_> {
    /// Teams for `pairs` pairs of columns at a time.
    pub(super) fn division(&self, pairs: usize) -> Division {
        let (least, plane) = (self.gpu.plane.0 as usize, self.gpu.plane.1 as usize);
        let most = PARAMS.units.min(self.gpu.max_units as usize).max(plane);
        let pairs = pairs.max(1);
        let mut lanes = PARAMS.lanes.min(least);
        while self.rows > PARAMS.kept * lanes && 2 * lanes <= least.min(32) {
            lanes *= 2;
        }
        // Several planes for a pair of long columns, as far as there are units.
        let mut team = 1;
        while lanes == plane && self.rows > PARAMS.kept * lanes * team && 2 * team * pairs * plane <= most {
            team *= 2;
        }
        let kept = self.rows.div_ceil(lanes * team);
        let kept = if kept <= 2 * PARAMS.kept { kept } else { 0 };
        let below = if kept > 0 { kept * lanes * team } else { self.rows };
        let tail = if self.carries { self.cols } else { 0 };
        let tail_kept = if kept > 0 { tail.div_ceil(lanes * team) } else { 0 };
        let height = if kept > 0 { below + tail_kept * lanes * team } else { below + tail };
        // Teams side by side in a plane, which take neighbouring columns, hit different banks.
        let height = if lanes < 32 { height + (32 + lanes - height % 32) % 32 } else { height | 1 };
        let units = (pairs * team * lanes).next_multiple_of(plane).min(most / plane * plane).max(plane);
        let slots = units.div_ceil(least) * 3;
        let lanes = Lanes { lanes: lanes as u32, kept: kept as u32, tail: tail_kept as u32, joined: team > 1 };
        Division { units, team, lanes, below, height, slots }
    }

    /// How one cube takes a whole matrix, if its memory is large enough and there is work for most processors.
    pub(super) fn whole_plan(&self) -> Option<WholePlan> {
        let division = self.division(self.cols.div_ceil(2));
        let needed = self.cols * division.height;
        let most_cols = self.cols.next_multiple_of(32).max(32);
        let fixed = most_cols * (self.size + 4) + division.slots * self.size;
        let room = self.gpu.shared_memory.saturating_sub(fixed) / self.size;
        let idle = 2 * self.batch < self.gpu.processors as usize;
        if needed > room || (idle && self.cols >= PARAMS.shared_from) {
            return None;
        }
        Some(WholePlan { division, elements: rounded(needed).min(room), most_cols })
    }

    pub(super) fn launched_sweeps(&self) -> usize {
        PARAMS.launched_sweeps * if self.size == 8 { 2 } else { 1 }
    }

    /// Columns of a block, two of which a cube can hold.
    pub(super) fn block_width(&self) -> Option<usize> {
        let mut block = PARAMS.block;
        let cubes = |block: usize| self.batch * self.cols.div_ceil(block) / 2;
        while self.cols >= 1024 && block > PARAMS.least_block && 5 * cubes(block) < 2 * self.gpu.processors as usize {
            block /= 2;
        }
        loop {
            let division = self.division(block);
            let elements = 2 * block * division.height + division.slots;
            if elements * self.size <= self.gpu.shared_memory {
                return Some(block);
            }
            if block == 1 {
                return None;
            }
            block /= 2;
        }
    }

    /// Where the elements that are only rotated begin, and the elements from one column to the next, for blocks of so many
    /// columns.
    pub(super) fn heights(&self, block: Option<usize>) -> [usize; 2] {
        // Without blocks, columns have no zeros at their ends.
        let tail = if self.carries { self.cols } else { 0 };
        let division = self.division(block.unwrap_or(1));
        block.map_or([self.rows, self.rows + tail], |_| [division.below, division.height])
    }

    /// Bytes that are allocated beside inputs and outputs; `total` is the number of left or right vectors, whichever are
    /// longer.
    pub(super) fn scratch(&self, total: usize) -> usize {
        let Self { batch, rows, cols, size, .. } = *self;
        if batch == 0 {
            return 0;
        }
        let mut bytes = counted(batch * 4);
        if self.whole_plan().is_none() {
            let [_, height] = self.heights(self.block_width());
            let columns = batch * cols;
            bytes += counted(columns * height * size) + counted(columns * size) + counted(columns * 4);
            bytes += counted(batch * 2 * size) + counted(batch * (self.launched_sweeps() + 1) * 4);
        }
        if self.carries {
            bytes += 2 * counted(batch * rows * size) + counted(batch * total * size);
        }
        bytes
    }
}
