//! LU of large matrices in the device's memory, transposed: panels of columns, each followed by the columns of its block, blocks
//! by those of their group, and groups by all others, right-hand sides among them, mostly by products.

use super::super::Kind;
use super::super::cpu::Extents;
use super::lines::{self, Lines, LinesLaunch, MOVED, MOVERS};
use super::panels::{self, Code};
use crate::blocks::{BLOCK, Place, Work, working};
use crate::qr::gpu::blocked::{panel_units, widest};
use crate::qr::gpu::moves::{PART, TILE};
use bimetal_core::gpu::counted;
use bimetal_core::{DType, Device, Gpu, Result, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// How panels are given to units.
struct Params {
    /// Units that factor a panel, and that take a column after it.
    units: usize,
    following: usize,
    /// Elements that a unit holds of a panel: taller matrices have narrower panels.
    held: usize,
    /// Columns of a block and of a group.
    block: usize,
    group: usize,
}

const PARAMS: Params = Params { units: 512, following: 1024, held: 64, block: 64, group: 256 };

/// Units of the kernels for all elements.
pub(super) const UNITS: u32 = 256;

/// A panel's first column and its columns.
#[derive(Clone, Copy)]
struct Step {
    first: usize,
    used: usize,
}

/// Columns of the panels of a matrix of `m` rows, rows of each unit, and units: none in registers where there are too many.
fn code(gpu: &Gpu, dtype: DType, m: usize) -> Code {
    let most = PARAMS.units.min(gpu.max_units as usize).min(16 * gpu.plane.1 as usize);
    let mut width = widest(gpu);
    while width > 1 && m.div_ceil(most) * width > PARAMS.held {
        width /= 2;
    }
    let units = panel_units(gpu, m * width / PARAMS.held, m, most);
    let rows = m.div_ceil(units).next_power_of_two();
    let planes = units.div_ceil(gpu.plane.0 as usize);
    let packed = dtype != DType::F64 && matches!(gpu.device(), Device::Cuda(_));
    Code { width, rows: if rows > PARAMS.held { 0 } else { rows }, units, planes, packed }
}

/// Matrices and right-hand sides in working memory.
pub(super) struct Columns<'a> {
    pub(super) work: Work<'a>,
    pub(super) lines: Lines,
    pub(super) m: usize,
    code: Code,
    pivots: Handle,
    most_pivots: usize,
    moves: Handle,
}

/// Elements from one column to the next.
fn stride(gpu: &Gpu, m: usize) -> usize {
    m.next_multiple_of(if gpu.has_gemm() { 64 } else { 1 })
}

/// Elements of the list of moves for each matrix.
fn moves_of(code: Code, r: usize) -> usize {
    r.div_ceil(code.width) * 4 * code.width
}

pub(super) fn flags_of(m: usize, n: usize) -> usize {
    m.div_ceil(PART) * n.div_ceil(TILE)
}

/// Bytes that factors take beside inputs and outputs.
pub(super) fn scratch(gpu: &Gpu, [count, m, n]: [usize; 3], dtype: DType) -> usize {
    let columns = counted(count * n * stride(gpu, m) * working(dtype).size());
    columns + counted(count * flags_of(m, n) * 4) + counted(count * moves_of(code(gpu, dtype, m), m.min(n)) * 4)
}

pub(super) fn run(
    gpu: &Gpu,
    kind: Kind,
    extents: Extents,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let Extents { count, m, n, k } = extents;
    let r = m.min(n);
    let (last, first) = outputs.split_last().expect("the outputs were checked");
    let status: &Tensor = last;
    let pivots = match first.get(1) {
        Some(pivots) if kind == Kind::Lu => pivots.gpu_handle()?,
        _ => gpu.alloc(count * r * 4),
    };
    let sides = match kind {
        Kind::Inv => n,
        Kind::Solve => k,
        _ => 0,
    };
    let lines = Lines { batch: count, count: n + sides, stride: stride(gpu, m) };
    let code = code(gpu, working(inputs[0].dtype()), m);
    let columns = Columns {
        work: Work::new(gpu, inputs[0].dtype(), count, lines.count * lines.stride),
        lines,
        m,
        code,
        pivots,
        most_pivots: r,
        moves: gpu.alloc(count * moves_of(code, r) * 4),
    };
    let flags = columns.load(inputs[0], n, 0)?;
    let more = match (kind, inputs.get(1)) {
        (Kind::Solve, Some(b)) => Some(columns.load(b, k, n)?),
        _ => None,
    };
    let both: Vec<_> = std::iter::once(&flags).chain(&more).map(|(handle, count)| (handle, *count)).collect();
    columns.work.verdict(status, &both, None)?;
    if kind == Kind::Inv {
        columns.identities(n)?;
    }
    columns.factor(r, status)?;
    match kind {
        Kind::Solve | Kind::Inv => {
            columns.substitute(n, sides)?;
            columns.store(first[0], status, [n, sides], n, true)
        }
        Kind::Lu => {
            columns.store(first[0], status, [m, n], 0, false)?;
            columns.clear_pivots(status)
        }
        _ => columns.determinants(kind, n, first, status),
    }
}

impl Columns<'_> {
    pub(super) fn lines(&self) -> LinesLaunch {
        LinesLaunch::new(self.lines.batch, self.lines.count, self.lines.stride)
    }

    pub(super) fn pivots(&self) -> BufferArg {
        let total = self.lines.batch * self.most_pivots;
        // SAFETY: there are so many for each matrix.
        unsafe { BufferArg::from_raw_parts(self.pivots.clone(), total) }
    }

    fn moves(&self) -> BufferArg {
        let total = self.lines.batch * moves_of(self.code, self.most_pivots);
        // SAFETY: the buffer was allocated with this length.
        unsafe { BufferArg::from_raw_parts(self.moves.clone(), total) }
    }

    /// Where the moves of the panel that starts at a column are.
    fn moves_start(&self, first: usize) -> usize {
        first / self.code.width * self.lines.batch * 4 * self.code.width
    }

    /// Element (row, column), as rows and columns of the matrices.
    fn place(&self) -> Place {
        Place { start: 0, row: 1, column: self.lines.stride }
    }

    /// Factors the first `r` columns, and takes all other lines along.
    fn factor(&self, r: usize, status: &Tensor) -> Result<()> {
        let all = self.lines.count;
        let (block, group) = (PARAMS.block, PARAMS.group);
        for start in (0..r).step_by(group) {
            let group_end = r.min(start + group);
            for first in (start..group_end).step_by(block) {
                let end = group_end.min(first + block);
                for column in (first..end).step_by(self.code.width) {
                    let step = Step { first: column, used: self.code.width.min(end - column) };
                    self.panel(step, status)?;
                    self.follow(step, [first, end])?;
                }
                self.exchange([first, end], [end, group_end])?;
                self.update([first, end], [end, group_end])?;
            }
            self.exchange([start, group_end], [0, all])?;
            // The rows of the group, block by block, and then those below.
            for first in (start..group_end).step_by(block) {
                let end = group_end.min(first + block);
                self.solve([first, end], [group_end, all])?;
                self.subtract([end, group_end], [first, end], [group_end, all])?;
            }
            self.subtract([group_end, self.m], [start, group_end], [group_end, all])?;
        }
        Ok(())
    }

    fn panel(&self, step: Step, status: &Tensor) -> Result<()> {
        let Self { work, lines, m, code, .. } = self;
        let gpu = work.gpu;
        let moves = self.moves_start(step.first);
        // SAFETY: the panel lies within the matrices; there is room for its pivots and moves.
        unsafe {
            if code.rows == 0 {
                panels::long_column::launch_unchecked(
                    gpu.client(),
                    gpu.cubes(lines.batch),
                    CubeDim::new_1d(code.units as u32),
                    work.address(),
                    work.arg(),
                    self.pivots(),
                    self.moves(),
                    status.gpu_arg()?,
                    self.lines(),
                    *m as u32,
                    step.first as u32,
                    self.most_pivots,
                    moves,
                    *code,
                    gpu.elem(work.dtype)?,
                );
                return Ok(());
            }
            let height = m - step.first;
            let units = panel_units(gpu, height * code.width / PARAMS.held, height, code.units);
            let rows = height.div_ceil(units).next_power_of_two();
            panels::panel::launch_unchecked(
                gpu.client(),
                gpu.cubes(lines.batch),
                CubeDim::new_1d(units as u32),
                work.address(),
                work.arg(),
                self.pivots(),
                self.moves(),
                status.gpu_arg()?,
                self.lines(),
                *m as u32,
                step.first as u32,
                step.used as u32,
                self.most_pivots,
                moves,
                Code { rows, units, ..*code },
                gpu.elem(work.dtype)?,
            );
        }
        Ok(())
    }

    /// Takes the other columns `start..end` of a block along.
    fn follow(&self, step: Step, [start, end]: [usize; 2]) -> Result<()> {
        let Self { work, lines, m, code, .. } = self;
        let from = step.first + step.used;
        let (before, after) = (step.first - start, end - from);
        if before + after == 0 {
            return Ok(());
        }
        let most = PARAMS.following.min(work.gpu.max_units as usize);
        // A few rows for each unit, as they are read one after another.
        let units = ((m - step.first) / 2).next_power_of_two().clamp(64.min(most), most);
        // SAFETY: the panel and the lines lie within the matrices.
        unsafe {
            panels::follow::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(lines.batch * (before + after)),
                CubeDim::new_1d(units as u32),
                work.address(),
                work.arg(),
                self.moves(),
                self.lines(),
                *m as u32,
                step.first as u32,
                start,
                before,
                from,
                after,
                self.moves_start(step.first),
                Code { rows: 0, units, ..*code },
                work.gpu.elem(work.dtype)?,
            );
        }
        Ok(())
    }

    /// Exchanges rows by the pivots of the columns `first..end` in the lines `from..to`; those of these columns are taken along by
    /// the blocks after theirs only.
    fn exchange(&self, [first, end]: [usize; 2], [from, to]: [usize; 2]) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let Self { work, lines, code, .. } = self;
        let (units, elem) = (CubeDim::new_1d((MOVERS * MOVED) as u32), work.gpu.elem(work.dtype)?);
        // SAFETY: the rows and lines lie within the matrices.
        unsafe {
            lines::exchange::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes((lines.batch * (to - from)).div_ceil(MOVED)),
                units,
                work.address(),
                work.arg(),
                self.moves(),
                self.lines(),
                from,
                to - from,
                first,
                end,
                PARAMS.block,
                self.moves_start(first),
                (end - first).div_ceil(code.width) as u32,
                code.width,
                elem,
            );
        }
        Ok(())
    }

    /// What a block of columns does to the lines `from..to`, whose rows are exchanged already.
    fn update(&self, block: [usize; 2], lines: [usize; 2]) -> Result<()> {
        self.solve(block, lines)?;
        self.subtract([block[1], self.m], block, lines)
    }

    /// `X ← L⁻¹·X` with the triangle of a block of columns for its rows of the lines `from..to`.
    fn solve(&self, [first, end]: [usize; 2], [from, to]: [usize; 2]) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        for start in (first..end).step_by(BLOCK) {
            let next = end.min(start + BLOCK);
            let (corner, x) = (self.place().at(start, start), self.place().at(start, from));
            self.work.solve(None, corner, x, [next - start, to - from], [true, false])?;
            self.subtract([next, end], [start, next], [from, to])?;
        }
        Ok(())
    }

    /// Subtracts from rows of the lines `from..to` the product of these rows of some columns with the lines' rows of that number.
    fn subtract(&self, [top, bottom]: [usize; 2], [first, end]: [usize; 2], [from, to]: [usize; 2]) -> Result<()> {
        if top >= bottom || from >= to {
            return Ok(());
        }
        let at = self.place();
        let places = [at.at(top, from), at.at(top, first), at.at(first, from)];
        self.work.subtract_product(places, [bottom - top, to - from, end - first], false)
    }

    /// `X ← U⁻¹·X` for the right-hand sides.
    fn substitute(&self, n: usize, sides: usize) -> Result<()> {
        let at = self.place();
        let blocks = n.div_ceil(BLOCK);
        // Two small triangles for one product with all rows above.
        let pair = 2 * BLOCK;
        for block in (0..blocks).rev() {
            let (start, end) = (block * BLOCK, n.min((block + 1) * BLOCK));
            self.work.solve(None, at.at(start, start), at.at(start, n), [end - start, sides], [false, true])?;
            let top = start / pair * pair;
            self.subtract([top, start], [start, end], [n, n + sides])?;
            if start == top {
                self.subtract([0, start], [start, n.min(start + pair)], [n, n + sides])?;
            }
        }
        Ok(())
    }

    /// A matrix that is not finite has no pivots.
    fn clear_pivots(&self, status: &Tensor) -> Result<()> {
        let total = self.lines.batch * self.most_pivots;
        let gpu = self.work.gpu;
        // SAFETY: there are as many pivots, and a status for each matrix.
        unsafe {
            clear_pivots::launch_unchecked(
                gpu.client(),
                gpu.cubes(total.div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS),
                self.pivots(),
                status.gpu_arg()?,
                total as u32,
                self.most_pivots as u32,
            );
        }
        Ok(())
    }
}

#[cube(launch_unchecked)]
fn clear_pivots(pivots: &mut [i32], status: &[i32], total: u32, r: u32) {
    let e = ABSOLUTE_POS;
    if e < total as usize && status[e / r as usize] < 0i32 {
        pivots[e] = 0i32;
    }
}
