//! A product in blocks: both operands are packed into panels as wide as a register tile, and each block of the result is
//! summed over the whole inner dimension before it is stored.
//!
//! Edges are padded with zeros in the panels, so that a tile is always whole.

use bimetal_core::cpu::parallel;
use bimetal_core::cpu::scratch::Scratch;
use std::ops::Range;

/// Vectors of a tile's row.
pub(super) const TILE_VECTORS: usize = 3;

/// Bytes of a line of a panel: with tiles of 48 columns a panel of B takes 36 KiB. On a 2-core EPYC with 1 MiB of L2
/// cache a product of 1536³ took 40.7 ms in f32 and 20.7 ms in bf16 with 1536 bytes and blocks of 192×480, and 38.2 and
/// 19.8 ms with these three.
const DEPTH_BYTES: usize = 768;

/// Rows of a block of the result: its panels of A take 72 KiB.
const BLOCK_ROWS: usize = 96;

/// Columns of a block of the result; its sums take 360 KiB.
const BLOCK_COLUMNS: usize = 960;

/// Bytes of packed panels of one operand.
const PACKED_BYTES: usize = 64 << 20;

/// Multiply-adds from which a second thread pays: one thread takes 8 µs for them here, about what waking another costs.
const SHARED_WORK: usize = 1 << 20;

/// Lines (rows of A, columns of B) of an operand: element `l` of line `i` is at `ptr + i·line + l·step`.
#[derive(Clone, Copy)]
pub(super) struct Lines<T> {
    pub ptr: *const T,
    /// From line to line.
    pub line: usize,
    /// Along a line.
    pub step: usize,
}

// SAFETY: the elements are only read, and the borrow that they come from outlives the parallel regions that use them.
unsafe impl<T: Sync> Send for Lines<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Lines<T> {}

impl<T> Lines<T> {
    /// The lines from `line` on, from element `element` on.
    ///
    /// # Safety
    /// That element exists, or nothing is read.
    #[inline(always)]
    unsafe fn from(self, line: usize, element: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { ptr: unsafe { self.ptr.add(line * self.line + element * self.step) }, ..self }
    }
}

/// A pointer into memory that threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Target<T>(pub *mut T);

// SAFETY: every user writes its own part only.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// The pointer to element `at`. A method, so that closures capture the whole.
    #[inline(always)]
    pub unsafe fn at(self, at: usize) -> *mut T {
        // SAFETY: the caller keeps within the memory.
        unsafe { self.0.add(at) }
    }
}

/// How a product is computed: what panels hold and how tiles are summed.
pub(super) trait Path: Copy + Send + Sync {
    /// An operand's element.
    type Source: Copy + Send + Sync;
    /// What a panel holds: [`GROUP`](Path::GROUP) consecutive elements of a line.
    type Unit: Copy + Send + Sync;
    /// What is summed.
    type Sum: Copy + Send + Sync;
    /// The result's element.
    type Out: Copy + Send + Sync;
    /// Elements in a unit.
    const GROUP: usize;

    /// Rows and columns of a tile.
    fn tile(&self) -> (usize, usize);

    /// Packs `k` elements of `lines` lines into a panel of `width` lines, unit by unit.
    ///
    /// # Safety
    /// The lines exist, and `panel` has room for `width·⌈k / GROUP⌉` units.
    unsafe fn pack(&self, left: bool, from: Lines<Self::Source>, lines: usize, k: usize, panel: *mut Self::Unit);

    /// Adds the product of `count` panels of A, one after the other, with a panel of B to tiles of `sums`, which lie below
    /// each other in rows `stride` apart; overwrites them if `first`.
    ///
    /// # Safety
    /// Panels of `units` units a line and tiles of that many rows exist.
    unsafe fn multiply(&self, panels: Panels<Self::Unit>, sums: *mut Self::Sum, stride: usize, first: bool);

    /// Stores `n` sums as results.
    ///
    /// # Safety
    /// Both have that many elements.
    unsafe fn finish(&self, sums: *mut Self::Sum, out: *mut Self::Out, n: usize);
}

/// Packed panels that are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Panels<U> {
    pub a: *const U,
    /// Panels of A.
    pub count: usize,
    pub b: *const U,
    /// Units of a line.
    pub units: usize,
}

/// The extents of a product.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Extents {
    /// Whether threads should share the product.
    pub fn is_shared_work(self) -> bool {
        self.m.saturating_mul(self.n).saturating_mul(self.k) >= SHARED_WORK
    }
}

/// Runs `f` over ranges of `0..units`, on several threads if `shared`.
fn each(shared: bool, units: usize, f: impl Fn(Range<usize>) + Sync) {
    if shared { parallel::ranges(units, 1, f) } else { f(0..units) }
}

/// `n` units of scratch memory that starts on a cache line.
struct Workspace(Scratch);

impl Workspace {
    fn new(bytes: usize) -> Self {
        Self(Scratch::take(bytes.div_ceil(4) + 16))
    }

    fn start(&mut self) -> *mut u8 {
        let p = self.0.as_mut_ptr().cast::<u8>();
        p.wrapping_add(p.align_offset(64))
    }
}

fn lines_of_cache(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// The sizes of blocks for a product.
struct Blocks {
    mr: usize,
    nr: usize,
    /// Units of a whole line, and of a line of a panel.
    units: usize,
    depth: usize,
    /// Rows and columns of a block.
    rows: usize,
    columns: usize,
    /// Rows and columns that are packed together.
    packed_rows: usize,
    packed_columns: usize,
}

impl Blocks {
    fn new<P: Path>(path: P, Extents { m, n, k }: Extents, shared: bool) -> Self {
        let (mr, nr) = path.tile();
        let unit = size_of::<P::Unit>();
        let units = k.div_ceil(P::GROUP);
        let most = |width: usize, whole: usize| {
            let lines = PACKED_BYTES / (units * unit) / width * width;
            lines.max(width).min(whole.next_multiple_of(width))
        };
        let columns = (BLOCK_COLUMNS / nr * nr).max(nr).min(n.next_multiple_of(nr));
        let mut rows = (BLOCK_ROWS / mr * mr).min(m.next_multiple_of(mr));
        // Threads that share a product want several blocks each.
        while shared && rows >= 4 * mr && m.div_ceil(rows) * n.div_ceil(columns) < 4 * parallel::threads() {
            rows = (rows / 2).next_multiple_of(mr);
        }
        let (packed_rows, packed_columns) = (most(mr, m), most(nr, n));
        Self { mr, nr, units, depth: DEPTH_BYTES / unit, rows, columns, packed_rows, packed_columns }
    }

    /// Bytes of the packed operands and of a block's sums.
    fn bytes<P: Path>(&self) -> [usize; 3] {
        let packed = |lines: usize| lines_of_cache(lines * self.units * size_of::<P::Unit>());
        let sums = lines_of_cache(self.rows * self.columns * size_of::<P::Sum>());
        [packed(self.packed_columns), packed(self.packed_rows), sums]
    }
}

/// `d = a·b`, with rows of `d` that are `line` apart.
///
/// # Safety
/// `a` has `m` lines and `b` `n` lines of `k` > 0 elements, and `d` has room for `m` rows of `n`.
pub(super) unsafe fn product<P: Path>(
    path: P,
    extents: Extents,
    a: Lines<P::Source>,
    b: Lines<P::Source>,
    d: Target<P::Out>,
    line: usize,
    shared: bool,
) {
    let Extents { m, n, k } = extents;
    let blocks = Blocks::new(path, extents, shared);
    let [b_bytes, a_bytes, sums_bytes] = blocks.bytes::<P>();
    let mut workspace = Workspace::new(b_bytes + a_bytes + if shared { 0 } else { sums_bytes });
    let start = workspace.start();
    let b_packed = Target(start.cast::<P::Unit>());
    let a_packed = Target(start.wrapping_add(b_bytes).cast::<P::Unit>());
    let own_sums = Target(start.wrapping_add(b_bytes + a_bytes).cast::<P::Sum>());
    for j in (0..n).step_by(blocks.packed_columns) {
        let columns = blocks.packed_columns.min(n - j);
        // SAFETY: the columns exist, and the workspace holds their panels.
        unsafe { pack_all(path, &blocks, false, b.from(j, 0), columns, k, b_packed, shared) };
        for i in (0..m).step_by(blocks.packed_rows) {
            let rows = blocks.packed_rows.min(m - i);
            // SAFETY: as above.
            unsafe { pack_all(path, &blocks, true, a.from(i, 0), rows, k, a_packed, shared) };
            let row_blocks = rows.div_ceil(blocks.rows);
            let tasks = row_blocks * columns.div_ceil(blocks.columns);
            each(shared, tasks, |tasks| {
                let mut own = shared.then(|| Workspace::new(sums_bytes));
                let sums = own.as_mut().map_or(own_sums, |own| Target(own.start().cast()));
                for task in tasks {
                    let (row, column) = (task % row_blocks * blocks.rows, task / row_blocks * blocks.columns);
                    let block = Block {
                        row,
                        column,
                        height: blocks.rows.min(rows - row),
                        width: blocks.columns.min(columns - column),
                        rows,
                        columns,
                    };
                    // SAFETY: the operands are packed, the sums are this thread's, and blocks of `d` are disjoint.
                    unsafe { block.run(path, &blocks, [a_packed, b_packed], sums, d.at((i + row) * line + j + column), line) };
                }
            });
        }
    }
}

/// Packs `count` lines of an operand: for each depth all panels, one after the other.
///
/// # Safety
/// The lines exist, and `packed` has room for their panels.
#[allow(clippy::too_many_arguments)]
unsafe fn pack_all<P: Path>(
    path: P,
    blocks: &Blocks,
    left: bool,
    from: Lines<P::Source>,
    count: usize,
    k: usize,
    packed: Target<P::Unit>,
    shared: bool,
) {
    let width = if left { blocks.mr } else { blocks.nr };
    let panels = count.div_ceil(width);
    let depths = blocks.units.div_ceil(blocks.depth);
    each(shared, panels * depths, |tasks| {
        for task in tasks {
            let (first, panel) = (task / panels * blocks.depth, task % panels);
            let units = blocks.depth.min(blocks.units - first);
            let (line, element) = (panel * width, first * P::GROUP);
            // SAFETY: the panel's lines and elements are within the operand, and its place within `packed`.
            unsafe {
                let to = packed.at(first * panels * width + panel * units * width);
                let elements = (units * P::GROUP).min(k - element);
                path.pack(left, from.from(line, element), width.min(count - line), elements, to);
            }
        }
    });
}

/// A block of the result, within what is packed.
struct Block {
    row: usize,
    column: usize,
    height: usize,
    width: usize,
    /// Rows and columns that are packed.
    rows: usize,
    columns: usize,
}

impl Block {
    /// Sums the block and stores it in rows of `d` that are `line` apart.
    ///
    /// # Safety
    /// The operands are packed for it, `sums` has room for the block and `d` for its part of the result.
    unsafe fn run<P: Path>(
        &self,
        path: P,
        blocks: &Blocks,
        [a, b]: [Target<P::Unit>; 2],
        sums: Target<P::Sum>,
        d: *mut P::Out,
        line: usize,
    ) {
        let (mr, nr) = (blocks.mr, blocks.nr);
        let (a_lines, b_lines) = (self.rows.next_multiple_of(mr), self.columns.next_multiple_of(nr));
        for first in (0..blocks.units).step_by(blocks.depth) {
            let units = blocks.depth.min(blocks.units - first);
            for column in (0..self.width).step_by(nr) {
                // SAFETY: the panels were packed in this order, and the tiles are within the block's padded sums.
                unsafe {
                    let panels = Panels {
                        a: a.at(first * a_lines + self.row * units),
                        count: self.height.div_ceil(mr),
                        b: b.at(first * b_lines + (self.column + column) * units),
                        units,
                    };
                    path.multiply(panels, sums.at(column), blocks.columns, first == 0);
                }
            }
        }
        for row in 0..self.height {
            // SAFETY: the row is within the block.
            unsafe { path.finish(sums.at(row * blocks.columns), d.add(row * line), self.width) };
        }
    }
}
