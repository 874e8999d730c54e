//! Elimination of large matrices: halves, so that nearly all of it is products.

use super::strips;
use super::{Cholesky, Lu, Rows, Substitute, Triangle, padded};
use crate::lanes::Real;
use crate::matmul::update::{Store, View};
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::{Level, dispatch_at};

/// Columns of a panel that is eliminated column by column.
const PANEL: usize = 32;
/// Order up to which a whole matrix is eliminated column by column.
const WHOLE: usize = 128;
/// Order of a triangle up to which, and columns of right-hand sides up to which, rows are solved for one by one.
const ROWS: usize = 16;
const FEW: usize = 16;
/// Columns that one thread solves for at a time.
const CHUNK: usize = 64;
/// Multiply-adds of a substitution for which a second thread is woken.
const SHARED_WORK: usize = 1 << 19;

/// Whether work is shared between threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    One,
    All,
}

/// Order of a matrix from which threads share its work.
const SHARED_FROM: usize = 400;

/// Threads within one of `count` matrices of order `n`: several only for a few large ones.
pub(crate) fn shared(count: usize, n: usize) -> Threads {
    if count < parallel::threads() && n >= SHARED_FROM { Threads::All } else { Threads::One }
}

/// LU with partial pivoting of an `m`-row matrix in place, a pivot for each of the first columns, and `L⁻¹·P·B` of
/// right-hand sides; gives the first pivot that is zero, from 1.
///
/// # Safety
/// Rows exist and are whole vectors, all of whose elements are finite.
pub(crate) unsafe fn lu<R: Real>(
    m: usize,
    a: Rows<R>,
    sides: Option<Rows<R>>,
    pivots: &mut [usize],
    threads: Threads,
) -> i32 {
    let level = Level::current();
    let n = a.width;
    if m * n <= WHOLE * WHOLE || pivots.len() <= PANEL {
        return R::scratch(padded(n) + padded(m), |spare| dispatch_at(level, Lu { m, a, sides, pivots, spare }));
    }
    if n > pivots.len() {
        // SAFETY: the caller's promise.
        return unsafe { wide(m, a, sides, pivots, threads) };
    }
    R::scratch(m * PANEL + 2 * PANEL + padded(m), |spare| {
        let mut work = Work { m, a, level, shared: threads == Threads::All, pivots, spare, info: 0 };
        // SAFETY: the caller's promise.
        unsafe {
            work.columns(0, n);
            if let Some(sides) = sides {
                work.swap(sides, 0..sides.width, 0..n);
                let t = Triangle { p: a.p, row: a.stride, column: 1, n, unit: true, upper: false };
                substitute(t, sides, threads);
            }
        }
        work.info
    })
}

/// [`lu`] of more columns than rows: those past the square are right-hand sides.
///
/// # Safety
/// As there; there are no other right-hand sides.
unsafe fn wide<R: Real>(m: usize, a: Rows<R>, none: Option<Rows<R>>, pivots: &mut [usize], threads: Threads) -> i32 {
    debug_assert!(none.is_none(), "systems are square");
    let r = pivots.len();
    let width = a.width - r;
    let stride = padded(width);
    R::scratch(m * stride, |memory| {
        let sides = Rows { p: memory.as_mut_ptr(), stride, width };
        // SAFETY (this block): rows and columns are within the matrix.
        unsafe {
            for i in 0..m {
                std::ptr::copy_nonoverlapping(a.at(i, r), sides.at(i, 0), width);
                sides.at(i, width).write_bytes(0, stride - width);
            }
            let info = lu(m, Rows { width: r, ..a }, Some(sides), pivots, threads);
            (0..m).for_each(|i| std::ptr::copy_nonoverlapping(sides.at(i, 0), a.at(i, r), width));
            info
        }
    })
}

struct Work<'a, R> {
    m: usize,
    a: Rows<R>,
    level: Level,
    shared: bool,
    pivots: &'a mut [usize],
    spare: &'a mut [R],
    info: i32,
}

impl<R: Real> Work<'_, R> {
    /// Factorises columns from the diagonal down; rows are exchanged in these columns only.
    ///
    /// # Safety
    /// As [`lu`].
    unsafe fn columns(&mut self, start: usize, end: usize) {
        let (m, a) = (self.m, self.a);
        // SAFETY (this block): the parts are within the matrix and do not overlap.
        unsafe {
            if end - start <= PANEL {
                return self.panel(start, end);
            }
            let middle = start + ((end - start) / 2).next_multiple_of(PANEL);
            self.columns(start, middle);
            self.swap(a, middle..end, start..middle);
            let half = middle - start;
            let t = Triangle { p: a.at(start, start), row: a.stride, column: 1, n: half, unit: true, upper: false };
            let right = Rows { p: a.at(start, middle), width: end - middle, ..a };
            let threads = if self.shared { Threads::All } else { Threads::One };
            substitute(t, right, threads);
            let left = View { p: a.at(middle, start).cast_const(), row: a.stride, column: 1 };
            let above = View { p: right.p.cast_const(), row: a.stride, column: 1 };
            let extents = [m - middle, half, end - middle];
            R::multiply(Store::Subtract, extents, [left, above], a.at(middle, middle), a.stride, self.shared);
            self.columns(middle, end);
            self.swap(a, start..middle, middle..end);
        }
    }

    /// Factorises a few columns in memory of their own, where rows are close to each other.
    ///
    /// # Safety
    /// As above.
    unsafe fn panel(&mut self, start: usize, end: usize) {
        let (rows, width) = (self.m - start, end - start);
        let (copy, spare) = self.spare.split_at_mut(rows * PANEL);
        for (i, line) in copy.chunks_exact_mut(PANEL).enumerate() {
            // SAFETY: the columns are within the matrix.
            unsafe { std::ptr::copy_nonoverlapping(self.a.at(start + i, start), line.as_mut_ptr(), width) };
            line[width..].fill(R::default());
        }
        let a = Rows { p: copy.as_mut_ptr(), stride: PANEL, width };
        let pivots = &mut self.pivots[start..end];
        let found = dispatch_at(self.level, Lu { m: rows, a, sides: None, pivots, spare });
        if found > 0 && self.info == 0 {
            self.info = start as i32 + found;
        }
        self.pivots[start..end].iter_mut().for_each(|p| *p += start);
        for (i, line) in copy.chunks_exact(PANEL).enumerate() {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), self.a.at(start + i, start), width) };
        }
    }

    /// Exchanges rows of some columns by the pivots of others.
    ///
    /// # Safety
    /// The columns exist.
    unsafe fn swap(&self, rows: Rows<R>, columns: std::ops::Range<usize>, pivots: std::ops::Range<usize>) {
        for i in pivots {
            let p = self.pivots[i];
            if p != i && !columns.is_empty() {
                // SAFETY: different rows do not overlap.
                unsafe {
                    std::ptr::swap_nonoverlapping(rows.at(i, columns.start), rows.at(p, columns.start), columns.len())
                };
            }
        }
    }
}

/// Cholesky's factor in place of an `n`-row matrix in its lower or upper triangle, if it is small or `upper`; the order of
/// the first leading minor that is not positive. What is in the other triangle has no meaning afterwards.
///
/// # Safety
/// Rows exist and are whole vectors.
pub(crate) unsafe fn cholesky<R: Real>(upper: bool, a: Rows<R>, threads: Threads) -> Result<(), usize> {
    let n = a.width;
    if n <= WHOLE {
        let level = Level::current();
        return R::scratch(padded(n), |spare| dispatch_at(level, Cholesky { n, upper, a, spare }));
    }
    debug_assert!(upper, "large matrices are given by their upper triangle");
    let half = (n / 2).next_multiple_of(PANEL);
    let shared = threads == Threads::All;
    // SAFETY (this block): the parts are within the matrix and do not overlap.
    unsafe {
        cholesky(upper, Rows { width: half, ..a }, threads)?;
        // Uᵀ·X = A, where U is above.
        let t = Triangle { p: a.p, row: 1, column: a.stride, n: half, unit: false, upper: false };
        let right = Rows { p: a.at(0, half), width: n - half, ..a };
        substitute(t, right, threads);
        let below = Rows { p: a.at(half, half), width: n - half, ..a };
        square(right, half, below, shared);
        cholesky(upper, below, threads).map_err(|order| half + order)
    }
}

/// Subtracts `XᵀX` of `k` rows from an upper triangle.
///
/// # Safety
/// The rows exist.
unsafe fn square<R: Real>(x: Rows<R>, k: usize, a: Rows<R>, shared: bool) {
    let view = |x: Rows<R>| View { p: x.p.cast_const(), row: x.stride, column: 1 };
    let n = a.width;
    // SAFETY (this block): the parts are within the matrices.
    unsafe {
        if n <= 2 * WHOLE {
            return R::multiply(Store::Subtract, [n, k, n], [view(x).transposed(), view(x)], a.p, a.stride, shared);
        }
        let half = (n / 2).next_multiple_of(PANEL);
        let right = Rows { p: x.at(0, half), width: n - half, ..x };
        square(Rows { width: half, ..x }, k, Rows { width: half, ..a }, shared);
        let extents = [half, k, n - half];
        R::multiply(Store::Subtract, extents, [view(x).transposed(), view(right)], a.at(0, half), a.stride, shared);
        square(right, k, Rows { p: a.at(half, half), width: n - half, ..a }, shared);
    }
}

/// Solves with a triangle for rows of right-hand sides, in place.
///
/// # Safety
/// Both exist, and rows of right-hand sides are whole vectors.
pub(crate) unsafe fn substitute<R: Real>(t: Triangle<R>, x: Rows<R>, threads: Threads) {
    let level = Level::current();
    let shared = threads == Threads::All && t.n * t.n * x.width / 2 >= SHARED_WORK;
    if t.n > ROWS && x.width > FEW {
        // SAFETY: the caller's promise.
        return unsafe { strips::solve(t, x, shared) };
    }
    let chunks = x.width.div_ceil(CHUNK);
    let some = |range: std::ops::Range<usize>| {
        let columns = range.start * CHUNK..(range.end * CHUNK).min(x.width);
        dispatch_at(level, Substitute { t, x, columns });
    };
    if shared { parallel::ranges(chunks, 1, some) } else { some(0..chunks) }
}
