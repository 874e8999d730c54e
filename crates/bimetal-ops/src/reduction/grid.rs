//! How the lines of a reduction are dealt to the units of a GPU.
//!
//! A tensor is seen as `[outer, steps, columns]` of vectors. Where the reduced axis is the last, there is one column and
//! the lanes of a vector belong to the same line; elsewhere each lane is a line of its own. A team of units takes the
//! steps of a chunk of a line in turns, and several teams share a cube. Lines longer than a chunk leave one state for
//! each chunk, which a second launch reduces like a tensor `[outer, chunks, columns]`.

use bimetal_core::gpu::Gpu;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: u32 = 256;

/// Vectors that a unit takes at least before a chunk is cut, and the number that it loads at once.
pub(crate) const BATCH: usize = 8;

/// Vectors that a unit takes at most: its f32 sums stay as short as its cube's tree is wide.
const LONGEST: usize = 64;

/// Cubes for each multiprocessor when long lines are cut: as many as run at once, so that none waits for another. That
/// depends on the kernel's registers. On an H200, in µs with 4 and with 3, 10 million elements: sum 18.5 and 15.5, argmax
/// 20.7 and 17.3, but max 16.5 and 19.3, l2_norm 15.7 and 18.2, variance 18.9 and 21.5; along axis 0 of 4096²: max 27.0
/// and 22.5, argmax 29.8 and 36.6, variance 23.9 and 30.1.
pub(crate) const FOUR_CUBES: usize = 4;
pub(crate) const THREE_CUBES: usize = 3;

/// Vector columns of a cube: 512 bytes of a row with vectors of 16 bytes.
const ACROSS: usize = 32;

/// The launch of one reduction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Elements in a vector.
    pub width: usize,
    /// Lines, or groups of lines, that are reduced apart.
    pub outer: usize,
    /// Vectors along the reduced axis.
    pub steps: usize,
    /// Vectors across it.
    pub columns: usize,
    /// Steps of a chunk, and chunks of a line.
    pub chunk: usize,
    /// Chunks of a line.
    pub chunks: usize,
    /// Elements after the last whole vector of the only line.
    pub tail: usize,
    /// Units of a cube.
    pub units: u32,
    /// Columns of a cube.
    pub across: u32,
    /// Units that share a line or column.
    pub team: u32,
    /// Whether the lanes of a vector belong to one line.
    pub lanes: bool,
}

impl Grid {
    /// The launch for `[outer, n, inner]` with vectors of at most `widest` elements. Lines are cut for that many cubes on
    /// each multiprocessor, or not at all.
    pub fn new(gpu: &Gpu, (outer, n, inner): (usize, usize, usize), widest: usize, cubes: Option<usize>) -> Self {
        let units = 1 << UNITS.min(gpu.max_units).ilog2();
        let lanes = inner == 1;
        let divided = if lanes { n } else { inner };
        let mut width = widest;
        // A single line starts on a vector whatever its length.
        while !divided.is_multiple_of(width) && !(lanes && outer == 1 && n >= width) {
            width /= 2;
        }
        let (steps, columns) = if lanes { (n / width, 1) } else { (n, inner / width) };
        let wasted = |a: usize| columns.next_multiple_of(a) - columns;
        let across = [ACROSS, ACROSS / 2, ACROSS / 4].into_iter().min_by_key(|&a| wasted(a)).unwrap_or(ACROSS);
        let across = across.min(columns.next_power_of_two()).min(units as usize);
        let most = units as usize / across;
        let team = steps.div_ceil(BATCH).next_power_of_two().min(most);
        let mut grid = Self {
            width,
            outer,
            steps,
            columns,
            chunk: steps.max(1),
            chunks: 1,
            tail: if lanes { n % width } else { 0 },
            units,
            across: across as u32,
            team: team as u32,
            lanes,
        };
        if let Some(cubes) = cubes.filter(|_| team == most) {
            let wanted = (gpu.processors as usize * cubes / (outer * columns.div_ceil(across))).max(1);
            let chunks = wanted.min(steps.div_ceil(team * BATCH)).max(steps.div_ceil(team * LONGEST)).max(1);
            grid.chunk = steps.div_ceil(chunks).next_multiple_of(team);
            grid.chunks = steps.div_ceil(grid.chunk).max(1);
        }
        grid
    }

    /// Cubes of the launch.
    pub fn cubes(&self) -> usize {
        let teams = (self.units / (self.across * self.team)) as usize;
        (self.outer * self.chunks * self.columns.div_ceil(self.across as usize)).div_ceil(teams)
    }

    /// States, or results, that the launch leaves.
    pub fn results(&self) -> usize {
        self.outer * self.chunks * self.columns * if self.lanes { 1 } else { self.width }
    }

    /// 64-bit addresses only where 32 bits cannot reach the last element.
    pub fn address(&self) -> AddressType {
        let elements = self.outer * self.steps * self.columns * self.width;
        if elements > i32::MAX as usize { AddressType::U64 } else { AddressType::U32 }
    }
}

/// Where a unit finds its elements.
#[derive(CubeType)]
pub(crate) struct Place {
    /// Line and chunk of it, counted together.
    pub line: usize,
    /// The column.
    pub column: usize,
    /// Whether there is such a line and column.
    pub active: bool,
    /// Steps of the chunk; 0 for an inactive unit.
    pub count: u32,
    /// Index of the chunk's first vector.
    pub base: usize,
    /// This unit's number in its team.
    pub member: u32,
    /// Whether the chunk is its line's last.
    pub last: bool,
}

/// The place of this unit in a [`Grid`] of these dimensions.
#[cube]
pub(crate) fn place(
    outer: usize,
    steps: usize,
    columns: usize,
    chunk: usize,
    chunks: usize,
    across: u32,
    team: u32,
) -> Place {
    let teams = CUBE_DIM / (across * team);
    let blocks = columns.div_ceil(across as usize);
    let block = CUBE_POS * teams as usize + (UNIT_POS / (across * team)) as usize;
    let wanted = block / blocks;
    let column_wanted = block % blocks * across as usize + (UNIT_POS % across) as usize;
    let active = wanted < outer * chunks && column_wanted < columns;
    let line = min(wanted, outer * chunks - 1);
    let column = min(column_wanted, columns - 1);
    let begin = line % chunks * chunk;
    Place {
        line,
        column,
        active,
        count: select(active, min(chunk, steps - begin) as u32, 0u32),
        base: (line / chunks * steps + begin) * columns + column,
        member: UNIT_POS / across % team,
        last: line % chunks == chunks - 1,
    }
}

/// Whether `v` is NaN, by its bits: compilers of shading languages may assume that no value is.
#[cube]
pub(crate) fn is_nan_bits(v: f32) -> bool {
    (u32::reinterpret(v) & 0x7fff_ffffu32) > 0x7f80_0000u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::devices;

    #[test]
    fn chunks_cover_their_lines() {
        let Some(gpu) = devices().0.iter().find(|d| d.device.is_gpu()).and_then(|d| Gpu::get(d.device).ok()) else {
            return println!("skipped: no GPU on this machine");
        };
        for dims in [(1, 10_000_000, 1), (10, 1_000_000, 1), (1, 4096, 4096), (3, 7, 5), (1, 3, 1), (1 << 20, 10, 1)] {
            let grid = Grid::new(gpu, dims, 4, Some(FOUR_CUBES));
            assert!(grid.chunk * grid.chunks >= grid.steps && grid.chunk * (grid.chunks - 1) <= grid.steps, "{grid:?}");
            assert!(
                grid.across * grid.team <= grid.units && grid.units.is_multiple_of(grid.across * grid.team),
                "{grid:?}"
            );
            let elements = grid.outer * grid.steps * grid.columns * grid.width + grid.tail;
            assert_eq!(elements, dims.0 * dims.1 * dims.2, "{grid:?}");
        }
    }
}
