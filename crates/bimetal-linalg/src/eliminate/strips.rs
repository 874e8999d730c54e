//! Substitution for many right-hand sides: a few rows of the triangle, packed, meet strips of columns, each of which is summed
//! and solved in registers, `X[i] ← T[i, i]⁻¹·(X[i] − Σₗ T[i, l]·X[l])`.

use super::{Rows, Triangle};
use crate::lanes::Real;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// Vectors of a strip's rows.
const VECTORS: usize = 3;
/// Pieces of a triangle that are fetched ahead.
const AHEAD: usize = 24;
/// Bytes of right-hand sides that are solved for together: they stay in the second cache. On two cores 256 of order 1024 took
/// 2955 µs by halves and products and 2143 µs so.
const TASK_BYTES: usize = 512 << 10;

/// Solves for all columns, on all threads if `shared`.
///
/// # Safety
/// Both exist, and rows of right-hand sides are whole vectors of any level.
pub(super) unsafe fn solve<R: Real>(t: Triangle<R>, x: Rows<R>, shared: bool) {
    let level = Level::current();
    let units = x.width.div_ceil(MAX_LANES);
    let most = TASK_BYTES / (t.n * size_of::<R>() * MAX_LANES);
    let tasks = units.div_ceil(most.max(VECTORS));
    let tasks =
        if shared { tasks.max(parallel::threads()).next_multiple_of(parallel::threads()).min(units) } else { tasks };
    let some = |range: std::ops::Range<usize>| {
        for task in range {
            let [from, to] = [task, task + 1].map(|task| task * units / tasks * MAX_LANES);
            // SAFETY: the column is within the rows. A method, so that the closure captures the whole.
            let x = Rows { p: unsafe { x.at(0, from) }, width: to - from, ..x };
            R::scratch(t.n * MOST_ROWS, |packed| dispatch_at(level, Strips { t, x, packed }));
        }
    };
    if shared { parallel::ranges(tasks, 1, some) } else { some(0..tasks) }
}

/// Most rows that are solved for together.
const MOST_ROWS: usize = 8;

/// The columns of one task.
struct Strips<'a, R> {
    t: Triangle<R>,
    x: Rows<R>,
    packed: &'a mut [R],
}

impl<R: Real> Kernel for Strips<'_, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match S::LEVEL {
            // SAFETY: whoever made this promises the triangle and the columns.
            Level::Avx512 | Level::Neon => unsafe { self.all::<S, MOST_ROWS>(s) },
            // SAFETY: as above.
            _ => unsafe { self.all::<S, 4>(s) },
        }
    }
}

impl<R: Real> Strips<'_, R> {
    /// Blocks of `H` rows; those that are left of the last one by one.
    ///
    /// # Safety
    /// The triangle and the columns exist.
    #[inline(always)]
    unsafe fn all<S: Simd, const H: usize>(&mut self, s: S) {
        let whole = self.t.n / H * H;
        // SAFETY: rows below n.
        unsafe {
            if self.t.upper {
                for row in (whole..self.t.n).rev() {
                    self.rows::<S, 1>(s, row);
                }
                for row in (0..whole).step_by(H).rev() {
                    self.rows::<S, H>(s, row);
                }
            } else {
                for row in (0..whole).step_by(H) {
                    self.rows::<S, H>(s, row);
                }
                for row in whole..self.t.n {
                    self.rows::<S, 1>(s, row);
                }
            }
        }
    }

    /// Solves for `H` rows from `row` on.
    ///
    /// # Safety
    /// They exist, and those that they depend on are solved.
    #[inline(always)]
    unsafe fn rows<S: Simd, const H: usize>(&mut self, s: S, row: usize) {
        let Self { t, x, packed } = self;
        let (first, end) = if t.upper { (row + H, t.n) } else { (0, row) };
        // SAFETY (this function): rows and columns below n, and vectors of whole rows.
        unsafe {
            let at = |i: usize, l: usize| t.p.add((row + i) * t.row + l * t.column);
            // Pieces of rows, as rows of some strides push each other out of the cache.
            let piece = if t.column == 1 { MAX_LANES } else { 1 };
            for start in (first..end).step_by(piece) {
                let to = packed.as_mut_ptr().add((start - first) * H);
                // Columns of large triangles are pages apart, which only this bridges.
                s.prefetch(t.p.wrapping_add((row * t.row).wrapping_add((start + AHEAD * piece) * t.column)));
                for i in 0..H {
                    for l in 0..piece.min(end - start) {
                        *to.add(l * H + i) = *at(i, start + l);
                    }
                }
            }
            let mut corner = [[R::default(); H]; H];
            for (i, line) in corner.iter_mut().enumerate() {
                for (l, to) in line.iter_mut().enumerate() {
                    *to = if (l > i) == t.upper && l != i || l == i && !t.unit { *at(i, row + l) } else { R::ONE };
                }
            }
            let terms = end - first;
            let (a, mut column) = (packed.as_ptr(), 0);
            let lanes = R::lanes::<S>();
            let width = x.width.next_multiple_of(lanes);
            while column + VECTORS * lanes <= width {
                strip::<S, R, H, VECTORS>(s, [a, x.at(first, column)], terms, x.at(row, column), x.stride, &corner, *t);
                column += VECTORS * lanes;
            }
            if column + 2 * lanes <= width {
                strip::<S, R, H, 2>(s, [a, x.at(first, column)], terms, x.at(row, column), x.stride, &corner, *t);
                column += 2 * lanes;
            }
            if column < width {
                strip::<S, R, H, 1>(s, [a, x.at(first, column)], terms, x.at(row, column), x.stride, &corner, *t);
            }
        }
    }
}

/// `B` vectors of `H` rows: less the products of `terms` rows with packed factors, then through the corner.
///
/// # Safety
/// The rows exist.
#[inline(always)]
unsafe fn strip<S: Simd, R: Real, const H: usize, const B: usize>(
    s: S,
    [mut a, mut b]: [*const R; 2],
    terms: usize,
    to: *mut R,
    stride: usize,
    corner: &[[R; H]; H],
    t: Triangle<R>,
) {
    let lanes = R::lanes::<S>();
    let zero = R::splat(s, R::default());
    let mut sums = [[zero; B]; H];
    // SAFETY (this function): the caller's promise.
    unsafe {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = R::load(s, to.add(i * stride + j * lanes));
            }
        }
        for _ in 0..terms {
            let mut row = [zero; B];
            for (j, y) in row.iter_mut().enumerate() {
                *y = R::load(s, b.add(j * lanes));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = R::splat(s, *a.add(i));
                for (sum, y) in sums.iter_mut().zip(row) {
                    *sum = R::neg_fma(s, factor, y, *sum);
                }
            }
            a = a.add(H);
            b = b.add(stride);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                R::store(s, to.add(i * stride + j * lanes), *sum);
            }
        }
        // In memory, as an index that is not known would keep the sums out of registers above.
        for turn in 0..H {
            let i = if t.upper { H - 1 - turn } else { turn };
            let row = to.add(i * stride);
            let mut solved = [zero; B];
            let divisor = R::splat(s, corner[i][i]);
            for (j, x) in solved.iter_mut().enumerate() {
                *x = R::load(s, row.add(j * lanes));
                if !t.unit {
                    *x = R::quotient(s, *x, divisor);
                    R::store(s, row.add(j * lanes), *x);
                }
            }
            for next in turn + 1..H {
                let other = if t.upper { H - 1 - next } else { next };
                let factor = R::splat(s, corner[other][i]);
                for (j, x) in solved.iter().enumerate() {
                    let p = to.add(other * stride + j * lanes);
                    R::store(s, p, R::neg_fma(s, factor, *x, R::load(s, p)));
                }
            }
        }
    }
}
