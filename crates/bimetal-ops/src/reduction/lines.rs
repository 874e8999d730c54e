//! Reductions on the CPU: each line of elements is cut into runs of a fixed length, runs are reduced on their own and
//! their states merged in order, so that the bits of a result do not depend on the number of threads.

use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use std::ops::Range;

/// Elements of a contiguous line that are reduced without a merge: 256 KiB of f32, a few microseconds of one core.
const RUN: usize = 64 << 10;

/// Rows of a slab of columns that are reduced without a merge.
const ROWS: usize = 512;

/// Columns that are reduced together: a page of f32, so that accumulators stay in the L1 cache.
const TILE: usize = 1024;

/// Slabs narrower than this are reduced as if several of their rows were one.
const NARROW: usize = 256;

/// Bytes ahead of a read that are asked for: 10 million f32, of which the last-level cache holds most, are added in
/// 417 µs instead of 545; what comes from memory takes as long.
const AHEAD: usize = 256;

/// A reduction of lines of `E`.
pub(crate) trait Fold<E>: Copy + Send + Sync {
    /// What is known of the elements so far.
    type State: Copy + Send + Sync;
    /// An element of the result.
    type Out: Copy + Send;

    /// The state of no elements.
    fn empty(self) -> Self::State;
    /// The state of contiguous elements, at least one.
    fn run<S: Simd>(self, s: S, x: &[E]) -> Self::State;
    /// The state of each column of a slab of at least one row.
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [Self::State]);
    /// The state of the elements of both.
    fn merge(self, a: Self::State, b: Self::State) -> Self::State;
    /// The state after each element's index `i` has become `i·scale + offset`.
    #[inline(always)]
    fn moved(self, state: Self::State, _scale: usize, _offset: usize) -> Self::State {
        state
    }
    /// The result.
    fn finish(self, state: Self::State) -> Self::Out;
}

/// Some columns of consecutive rows.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a, E> {
    x: &'a [E],
    pitch: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
}

impl<'a, E> Slab<'a, E> {
    /// A row's columns.
    #[inline(always)]
    pub fn row(&self, k: usize) -> &'a [E] {
        &self.x[k * self.pitch..][..self.columns]
    }

    /// Some of the rows.
    #[inline(always)]
    pub fn part(&self, rows: Range<usize>) -> Self {
        Self { x: &self.x[rows.start * self.pitch..], rows: rows.len(), ..*self }
    }
}

/// What a vector adds to an accumulator. A type rather than a closure, because a closure that is not inlined is not
/// compiled for the level.
pub(crate) trait Step: Copy {
    /// The accumulator's first value and that of lanes without an element: `step` with it changes nothing.
    const NEUTRAL: f32;
    /// The accumulator after `v`.
    fn step<S: Simd>(self, s: S, a: S::F, v: S::F) -> S::F;
    /// Two accumulators as one.
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F;
}

/// Folds all vectors of `x` into eight accumulators and joins them in pairs.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, E: Element, T: Step>(s: S, x: &[E], t: T) -> S::F {
    let (p, n) = (x.as_ptr(), x.len());
    if n < 8 * S::LANES {
        return accumulate_short(s, x, t);
    }
    let mut a = [s.splat(T::NEUTRAL); 8];
    let mut i = 0;
    // SAFETY (this block): `i` plus what is read stays within `x`.
    unsafe {
        while i + 8 * S::LANES <= n {
            for (k, a) in a.iter_mut().enumerate() {
                let p = p.add(i + k * S::LANES);
                s.prefetch(p.cast::<u8>().wrapping_add(AHEAD));
                *a = t.step(s, *a, E::load(s, p));
            }
            i += 8 * S::LANES;
        }
        for a in &mut a {
            if i + S::LANES > n {
                break;
            }
            *a = t.step(s, *a, E::load(s, p.add(i)));
            i += S::LANES;
        }
        if i < n {
            a[7] = t.step(s, a[7], E::load_partial(s, p.add(i), n - i, T::NEUTRAL));
        }
    }
    join_eight(s, a, t)
}

/// Fewer than eight vectors, one after the other.
#[inline(always)]
fn accumulate_short<S: Simd, E: Element, T: Step>(s: S, x: &[E], t: T) -> S::F {
    let (p, n) = (x.as_ptr(), x.len());
    let mut a = s.splat(T::NEUTRAL);
    let mut i = 0;
    // SAFETY (this block): `i` plus what is read stays within `x`.
    unsafe {
        while i + S::LANES <= n {
            a = t.step(s, a, E::load(s, p.add(i)));
            i += S::LANES;
        }
        if i < n {
            a = t.step(s, a, E::load_partial(s, p.add(i), n - i, T::NEUTRAL));
        }
    }
    a
}

/// Eight accumulators as one, in pairs.
#[inline(always)]
pub(crate) fn join_eight<S: Simd, T: Step>(s: S, a: [S::F; 8], t: T) -> S::F {
    let left = t.join(s, t.join(s, a[0], a[1]), t.join(s, a[2], a[3]));
    let right = t.join(s, t.join(s, a[4], a[5]), t.join(s, a[6], a[7]));
    t.join(s, left, right)
}

/// A vector from `p`, of which `left` elements are in bounds; the other lanes are `fill`.
///
/// # Safety
/// `left` elements from `p` on are in bounds.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd, E: Element>(s: S, p: *const E, left: usize, fill: f32) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if left >= S::LANES { E::load(s, p) } else { E::load_partial(s, p, left, fill) } }
}

/// Writes the lanes that are in bounds.
///
/// # Safety
/// `left` elements from `p` on are in bounds.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(s: S, p: *mut f32, left: usize, v: S::F) {
    // SAFETY: the caller's promise.
    unsafe { if left >= S::LANES { s.store(p, v) } else { s.store_partial(p, left, v) } }
}

/// Folds each column of a slab into `out`: eight rows are joined in pairs, their results one after the other.
#[inline(always)]
pub(crate) fn fold_rows<S: Simd, E: Element, T: Step>(s: S, slab: Slab<'_, E>, out: &mut [f32], t: T) {
    let columns = slab.columns;
    let out = out[..columns].as_mut_ptr();
    let neutral = s.splat(T::NEUTRAL);
    for first in (0..slab.rows).step_by(8) {
        let rows = (slab.rows - first).min(8);
        let mut row = [slab.row(first).as_ptr(); 8];
        for (k, row) in row.iter_mut().enumerate().take(rows) {
            *row = slab.row(first + k).as_ptr();
        }
        for j in (0..columns).step_by(S::LANES) {
            let left = columns - j;
            let mut terms = [neutral; 8];
            // SAFETY (this block): `left` elements of the rows and of `out` remain from `j` on.
            unsafe {
                if rows == 8 && left >= S::LANES {
                    for (term, row) in terms.iter_mut().zip(&row) {
                        *term = t.step(s, neutral, E::load(s, row.add(j)));
                    }
                } else {
                    for (term, row) in terms.iter_mut().zip(&row).take(rows) {
                        *term = t.step(s, neutral, load(s, row.add(j), left, T::NEUTRAL));
                    }
                }
                let mut total = join_eight(s, terms, t);
                if first > 0 {
                    total = t.join(s, load(s, out.add(j).cast_const(), left, T::NEUTRAL), total);
                }
                store(s, out.add(j), left, total);
            }
        }
    }
}

/// Reduces the middle axis of `x`, seen as `[outer, n, inner]`, into `y`, `[outer, inner]`.
pub(crate) fn reduce<E: Element, R: Fold<E>>(fold: R, x: &[E], dims: (usize, usize, usize), y: &mut [R::Out]) {
    let (_, n, inner) = dims;
    if n == 0 {
        y.fill(fold.finish(fold.empty()));
    } else if y.is_empty() {
    } else if inner > 1 {
        columns(fold, x, n, inner, y);
    } else if n <= RUN {
        parallel::units_mut(y, 1, grain::<E>(n), |first, y| {
            dispatch(Rows { fold, x: &x[first * n..(first + y.len()) * n], n, y });
        });
    } else {
        long_rows(fold, x, n, y);
    }
}

/// Units of `elements` elements that are worth a thread.
fn grain<E: Element>(elements: usize) -> usize {
    parallel::BYTES_PER_THREAD / (elements * E::BYTES).max(1)
}

struct Rows<'a, E, R: Fold<E>> {
    fold: R,
    x: &'a [E],
    n: usize,
    y: &'a mut [R::Out],
}

impl<E: Element, R: Fold<E>> Kernel for Rows<'_, E, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_exact(self.n).zip(self.y) {
            *y = self.fold.finish(self.fold.run(s, x));
        }
    }
}

fn long_rows<E: Element, R: Fold<E>>(fold: R, x: &[E], n: usize, y: &mut [R::Out]) {
    let runs = n.div_ceil(RUN);
    let mut states = vec![fold.empty(); runs * y.len()];
    parallel::units_mut(&mut states, 1, grain::<E>(RUN), |first, states| {
        dispatch(Runs { fold, x, n, runs, first, states });
    });
    for (y, states) in y.iter_mut().zip(states.chunks_exact(runs)) {
        let moved = states.iter().enumerate().map(|(k, &state)| fold.moved(state, 1, k * RUN));
        *y = fold.finish(moved.reduce(|a, b| fold.merge(a, b)).unwrap_or(fold.empty()));
    }
}

struct Runs<'a, E, R: Fold<E>> {
    fold: R,
    x: &'a [E],
    n: usize,
    runs: usize,
    first: usize,
    states: &'a mut [R::State],
}

impl<E: Element, R: Fold<E>> Kernel for Runs<'_, E, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, state) in self.states.iter_mut().enumerate() {
            let (row, k) = ((self.first + i) / self.runs, (self.first + i) % self.runs);
            let row = &self.x[row * self.n..][..self.n];
            *state = self.fold.run(s, &row[k * RUN..self.n.min((k + 1) * RUN)]);
        }
    }
}

/// How the columns of `[n, inner]` are divided: `group` rows of them count as one row of `width` columns.
#[derive(Clone, Copy)]
struct Grid {
    n: usize,
    inner: usize,
    group: usize,
    rows: usize,
    width: usize,
    chunks: usize,
    tiles: usize,
}

impl Grid {
    fn new(n: usize, inner: usize) -> Self {
        let group = if inner < NARROW { NARROW.div_ceil(inner).min(n / 16).max(1) } else { 1 };
        let (rows, width) = (n / group, group * inner);
        // A group is one tile, because its columns are merged with each other.
        let tiles = if group > 1 { 1 } else { width.div_ceil(TILE) };
        Self { n, inner, group, rows, width, chunks: rows.div_ceil(ROWS), tiles }
    }

    fn tile(&self, tile: usize) -> Range<usize> {
        if self.tiles == 1 { 0..self.width } else { tile * TILE..self.width.min((tile + 1) * TILE) }
    }

    fn slab<'a, E>(&self, x: &'a [E], outer: usize, chunk: usize, columns: Range<usize>) -> Slab<'a, E> {
        let rows = chunk * ROWS..self.rows.min((chunk + 1) * ROWS);
        let start = outer * self.n * self.inner + rows.start * self.width + columns.start;
        Slab { x: &x[start..], pitch: self.width, rows: rows.len(), columns: columns.len() }
    }
}

fn columns<E: Element, R: Fold<E>>(fold: R, x: &[E], n: usize, inner: usize, y: &mut [R::Out]) {
    let grid = Grid::new(n, inner);
    let outer = y.len() / inner;
    let units = outer * grid.tiles;
    let mut partials = Vec::new();
    // Chunks are reduced side by side only where whole columns would leave threads idle; the merges are the same.
    if grid.chunks > 1 && units < 4 * parallel::threads() {
        partials = vec![fold.empty(); outer * grid.chunks * grid.width];
        let shared = Shared::new(&mut partials);
        parallel::ranges(units * grid.chunks, 1, |range| {
            for unit in range {
                let (tile, above) = (unit % grid.tiles, unit / grid.tiles);
                let columns = grid.tile(tile);
                let at = above * grid.width;
                // SAFETY: each unit has its own chunk and tile.
                let states = unsafe { shared.slice(at + columns.start..at + columns.end) };
                let slab = grid.slab(x, above / grid.chunks, above % grid.chunks, columns);
                dispatch(Chunk { fold, slab, states });
            }
        });
    }
    let out = Shared::new(y);
    let width = grid.tile(0).len();
    parallel::ranges(units, if partials.is_empty() { grain::<E>(n * width) } else { 4 }, |range| {
        let (mut states, mut part) = (vec![fold.empty(); width], vec![fold.empty(); width]);
        for unit in range {
            let (outer, tile) = (unit / grid.tiles, grid.tile(unit % grid.tiles));
            let at = outer * inner + tile.start;
            // SAFETY: each unit has its own outer index and tile.
            let y = unsafe { out.slice(at..at + if grid.group > 1 { inner } else { tile.len() }) };
            merge_chunks(fold, grid, x, outer, tile, &partials, &mut states, &mut part);
            finish_columns(fold, grid, x, outer, &mut states, &mut part, y);
        }
    });
}

/// The states of all rows of a tile of columns, from its chunks' states, computed here or before.
#[allow(clippy::too_many_arguments)]
fn merge_chunks<E: Element, R: Fold<E>>(
    fold: R,
    grid: Grid,
    x: &[E],
    outer: usize,
    tile: Range<usize>,
    partials: &[R::State],
    states: &mut [R::State],
    part: &mut [R::State],
) {
    let (states, part) = (&mut states[..tile.len()], &mut part[..tile.len()]);
    for chunk in 0..grid.chunks {
        let target = if chunk == 0 { &mut *states } else { &mut *part };
        if partials.is_empty() {
            dispatch(Chunk { fold, slab: grid.slab(x, outer, chunk, tile.clone()), states: target });
        } else {
            let at = (outer * grid.chunks + chunk) * grid.width;
            target.copy_from_slice(&partials[at + tile.start..at + tile.end]);
        }
        if chunk > 0 {
            for (state, &part) in states.iter_mut().zip(&*part) {
                *state = fold.merge(*state, fold.moved(part, 1, chunk * ROWS));
            }
        }
    }
}

/// Merges the columns of a group, and the rows that fill no group.
fn finish_columns<E: Element, R: Fold<E>>(
    fold: R,
    grid: Grid,
    x: &[E],
    outer: usize,
    states: &mut [R::State],
    part: &mut [R::State],
    y: &mut [R::Out],
) {
    let Grid { n, inner, group, .. } = grid;
    let done = grid.rows * group;
    if done < n {
        let slab = Slab { x: &x[(outer * n + done) * inner..], pitch: inner, rows: n - done, columns: inner };
        dispatch(Chunk { fold, slab, states: &mut part[..inner] });
    }
    for (j, y) in y.iter_mut().enumerate() {
        let mut total = fold.moved(states[j], group, 0);
        for g in 1..group {
            total = fold.merge(total, fold.moved(states[g * inner + j], group, g));
        }
        if done < n {
            total = fold.merge(total, fold.moved(part[j], 1, done));
        }
        *y = fold.finish(total);
    }
}

struct Chunk<'a, E, R: Fold<E>> {
    fold: R,
    slab: Slab<'a, E>,
    states: &'a mut [R::State],
}

impl<E: Element, R: Fold<E>> Kernel for Chunk<'_, E, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.fold.columns(s, self.slab, self.states);
    }
}
