//! Elimination on the CPU for one matrix, whose rows are whole vectors: `P·A = L·U`, `A = UᵀU = L·Lᵀ`, and substitution.

mod blocked;
mod strips;

pub(crate) use blocked::{Threads, cholesky, lu, shared, substitute};

use crate::lanes::Real;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd};
use std::hint::select_unpredictable;
use std::ops::Range;

/// Elements of a column up to which its largest is found as it is read: what was just written is read late by vectors.
const SHORT: usize = 128;

/// Rows of whole vectors, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<R> {
    pub(crate) p: *mut R,
    pub(crate) stride: usize,
    /// Elements of a row that count.
    pub(crate) width: usize,
}

// SAFETY: every user reads and writes its own part only.
unsafe impl<R: Send> Send for Rows<R> {}
// SAFETY: as above.
unsafe impl<R: Send> Sync for Rows<R> {}

impl<R: Real> Rows<R> {
    /// Element (`i`, `j`).
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    pub(crate) unsafe fn at(self, i: usize, j: usize) -> *mut R {
        // SAFETY: the caller's promise.
        unsafe { self.p.add(i * self.stride + j) }
    }
}

/// Elements of a row of `n` that is filled up to whole vectors of any level.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(MAX_LANES)
}

/// LU of `m` rows in place by columns, the right-hand sides beside them likewise: `L⁻¹·P·B`. Gives the first pivot that is
/// zero, from 1; rows below are past it are left as they are.
///
/// The rows of both are whole vectors, of which what does not count is finite.
pub(super) struct Lu<'a, R> {
    pub(super) m: usize,
    pub(super) a: Rows<R>,
    pub(super) sides: Option<Rows<R>>,
    /// A pivot for each of the first columns.
    pub(super) pivots: &'a mut [usize],
    /// As many elements as a padded row and a padded column have.
    pub(super) spare: &'a mut [R],
}

impl<R: Real> Kernel for Lu<'_, R> {
    type Out = i32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let Self { m, a, sides, pivots, spare } = self;
        let (lanes, zero) = (R::lanes::<S>(), R::default());
        let (row, column) = spare.split_at_mut(padded(a.width));
        let column = &mut column[..padded(m)];
        column[m..].fill(zero);
        let mut info = 0;
        for (k, pivot) in pivots.iter_mut().enumerate() {
            // SAFETY (this block): rows below m and columns below the padded width.
            unsafe {
                let (mut most, mut p) = (0, k);
                for (i, x) in column.iter_mut().enumerate().take(m).skip(k) {
                    *x = *a.at(i, k);
                    if m - k <= SHORT {
                        let bits = x.magnitude_bits();
                        p = select_unpredictable(bits > most, i, p);
                        most = most.max(bits);
                    }
                }
                if m - k > SHORT {
                    p = k + largest(&column[k..m]);
                }
                *pivot = p;
                if p != k {
                    column.swap(k, p);
                    swap_rows(s, a, k, p);
                    if let Some(sides) = sides {
                        swap_rows(s, sides, k, p);
                    }
                }
                let head = column[k];
                if head == zero {
                    info = if info == 0 { k as i32 + 1 } else { info };
                    continue;
                }
                let first = (k + 1) / lanes * lanes;
                let whole = a.width.next_multiple_of(lanes);
                copy_row(s, a.at(k, first), row.as_mut_ptr().add(first), whole - first.min(whole));
                // Columns up to k are done with.
                row[first.min(whole)..(k + 1).min(whole)].fill(zero);
                // Whole vectors of quotients, of which those above the diagonal are not used.
                let divisor = R::splat(s, head);
                for i in (first..m).step_by(lanes) {
                    let x = column.as_mut_ptr().add(i);
                    R::store(s, x, R::quotient(s, R::load(s, x), divisor));
                }
                update(s, a, row.as_ptr(), first..whole, column.as_ptr(), k + 1..m);
                if let Some(sides) = sides {
                    update(s, sides, sides.at(k, 0), 0..sides.width.next_multiple_of(lanes), column.as_ptr(), k + 1..m);
                }
                // Last, because a vector is read late that was written in part just before.
                for (i, x) in column.iter().enumerate().take(m).skip(k + 1) {
                    *a.at(i, k) = *x;
                }
            }
        }
        info
    }
}

/// Where the largest magnitude is; the first of equals. Without branches, by the bits of magnitudes.
#[inline(always)]
fn largest<R: Real>(column: &[R]) -> usize {
    let most = column.iter().fold(0, |most: u64, x| most.max(x.magnitude_bits()));
    let at = |(i, x): (usize, &R)| if x.magnitude_bits() == most { i as u32 } else { u32::MAX };
    column.iter().enumerate().map(at).fold(u32::MAX, |first, i| first.min(i)) as usize
}

/// Copies whole vectors.
///
/// # Safety
/// Both have `n` elements, whole vectors.
#[inline(always)]
unsafe fn copy_row<S: Simd, R: Real>(s: S, from: *const R, to: *mut R, n: usize) {
    for j in (0..n).step_by(R::lanes::<S>()) {
        // SAFETY: the caller's promise.
        unsafe { R::store(s, to.add(j), R::load(s, from.add(j))) };
    }
}

/// Exchanges two rows.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn swap_rows<S: Simd, R: Real>(s: S, a: Rows<R>, i: usize, j: usize) {
    for c in (0..a.width).step_by(R::lanes::<S>()) {
        // SAFETY: rows are whole vectors.
        unsafe {
            let (x, y) = (R::load(s, a.at(i, c)), R::load(s, a.at(j, c)));
            R::store(s, a.at(i, c), y);
            R::store(s, a.at(j, c), x);
        }
    }
}

/// Subtracts multiples of a row from others, `a[i, j] ← a[i, j] − factors[i]·row[j]`, for whole vectors of columns.
///
/// # Safety
/// The rows and columns exist.
#[inline(always)]
unsafe fn update<S: Simd, R: Real>(
    s: S,
    a: Rows<R>,
    row: *const R,
    columns: Range<usize>,
    factors: *const R,
    rows: Range<usize>,
) {
    let (lanes, mut j) = (R::lanes::<S>(), columns.start);
    // SAFETY: the caller's promise.
    unsafe {
        while j + 4 * lanes <= columns.end {
            update_some::<S, R, 4>(s, a, row, j, factors, rows.clone());
            j += 4 * lanes;
        }
        while j + 2 * lanes <= columns.end {
            update_some::<S, R, 2>(s, a, row, j, factors, rows.clone());
            j += 2 * lanes;
        }
        if j < columns.end {
            update_some::<S, R, 1>(s, a, row, j, factors, rows);
        }
    }
}

/// [`update`] for `B` vectors of columns from `j` on.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn update_some<S: Simd, R: Real, const B: usize>(
    s: S,
    a: Rows<R>,
    row: *const R,
    j: usize,
    factors: *const R,
    rows: Range<usize>,
) {
    let lanes = R::lanes::<S>();
    // SAFETY (this function): the caller's promise.
    unsafe {
        let row: [R::V<S>; B] = std::array::from_fn(|b| R::load(s, row.add(j + b * lanes)));
        for i in rows {
            let factor = R::splat(s, *factors.add(i));
            for (b, row) in row.iter().enumerate() {
                let p = a.at(i, j + b * lanes);
                R::store(s, p, R::neg_fma(s, factor, *row, R::load(s, p)));
            }
        }
    }
}

/// Cholesky's factor of `n` rows in place, from and to the lower or the upper triangle; the order of the first leading
/// minor that is not positive. The other triangle is overwritten with what has no meaning.
pub(super) struct Cholesky<'a, R> {
    pub(super) n: usize,
    pub(super) upper: bool,
    pub(super) a: Rows<R>,
    /// As many elements as a padded row has.
    pub(super) spare: &'a mut [R],
}

impl<R: Real> Kernel for Cholesky<'_, R> {
    type Out = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), usize> {
        let Self { n, upper, a, spare: line } = self;
        let lanes = R::lanes::<S>();
        line[..padded(n)].fill(R::default());
        for k in 0..n {
            // SAFETY (this block): rows below n and columns below the padded width.
            unsafe {
                let pivot = *a.at(k, k);
                if !(pivot > R::default() && pivot.finite()) {
                    return Err(k + 1);
                }
                let root = pivot.root();
                *a.at(k, k) = root;
                let first = (k + 1) / lanes * lanes;
                let whole = n.next_multiple_of(lanes);
                if upper {
                    copy_row(s, a.at(k, first), line.as_mut_ptr().add(first), whole - first.min(whole));
                } else {
                    for (i, x) in line.iter_mut().enumerate().take(n).skip(k + 1) {
                        *x = *a.at(i, k);
                    }
                }
                let divisor = R::splat(s, root);
                for i in (first..whole).step_by(lanes) {
                    let x = line.as_mut_ptr().add(i);
                    R::store(s, x, R::quotient(s, R::load(s, x), divisor));
                }
                line[first..k + 1].fill(R::default());
                line[n..whole].fill(R::default());
                for j in (first..whole).step_by(2 * lanes) {
                    let end = (j + 2 * lanes).min(whole);
                    let rows = if upper { k + 1..end.min(n) } else { j.max(k + 1)..n };
                    update(s, a, line.as_ptr(), j..end, line.as_ptr(), rows);
                }
                // Last, because a vector is read late that was written in part just before.
                for (i, x) in line.iter().enumerate().take(n).skip(k + 1) {
                    *(if upper { a.at(k, i) } else { a.at(i, k) }) = *x;
                }
            }
        }
        Ok(())
    }
}

/// A triangle to substitute with, read at any strides.
#[derive(Clone, Copy)]
pub(crate) struct Triangle<R> {
    pub(crate) p: *const R,
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) n: usize,
    pub(crate) unit: bool,
    pub(crate) upper: bool,
}

// SAFETY: a triangle is only read.
unsafe impl<R: Sync> Sync for Triangle<R> {}

/// Solves with a triangle for rows of right-hand sides in place, some of their columns.
pub(super) struct Substitute<R> {
    pub(super) t: Triangle<R>,
    pub(super) x: Rows<R>,
    pub(super) columns: Range<usize>,
}

impl<R: Real> Kernel for Substitute<R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lanes, mut j) = (R::lanes::<S>(), self.columns.start);
        // SAFETY: the columns exist, in whole vectors.
        unsafe {
            while j + 4 * lanes <= self.columns.end {
                self.some::<S, 4, 1>(s, j);
                j += 4 * lanes;
            }
            while j + 2 * lanes <= self.columns.end {
                self.some::<S, 2, 2>(s, j);
                j += 2 * lanes;
            }
            while j < self.columns.end {
                self.some::<S, 1, 4>(s, j);
                j += lanes;
            }
        }
    }
}

impl<R: Real> Substitute<R> {
    /// Solves `B` vectors of columns from `j` on, each by `C` sums that do not wait for each other.
    ///
    /// # Safety
    /// The columns exist.
    #[inline(always)]
    unsafe fn some<S: Simd, const B: usize, const C: usize>(&self, s: S, j: usize) {
        let Self { t, x, .. } = self;
        let (lanes, zero) = (R::lanes::<S>(), R::splat(s, R::default()));
        for step in 0..t.n {
            let i = if t.upper { t.n - 1 - step } else { step };
            let others = if t.upper { i + 1..t.n } else { 0..i };
            // SAFETY (this block): rows and columns are below n, columns of `x` exist.
            unsafe {
                let mut sums = [[zero; B]; C];
                sums[0] = std::array::from_fn(|b| R::load(s, x.at(i, j + b * lanes)));
                let factor = |l: usize| R::splat(s, *t.p.add(i * t.row + l * t.column));
                let mut l = others.start;
                while l + C <= others.end {
                    for (c, sums) in sums.iter_mut().enumerate() {
                        let factor = factor(l + c);
                        for (b, sum) in sums.iter_mut().enumerate() {
                            *sum = R::neg_fma(s, factor, R::load(s, x.at(l + c, j + b * lanes)), *sum);
                        }
                    }
                    l += C;
                }
                while l < others.end {
                    let factor = factor(l);
                    for (b, sum) in sums[0].iter_mut().enumerate() {
                        *sum = R::neg_fma(s, factor, R::load(s, x.at(l, j + b * lanes)), *sum);
                    }
                    l += 1;
                }
                let one = R::splat(s, -R::ONE);
                for b in 0..B {
                    let mut sum = sums[0][b];
                    for more in sums.iter().skip(1) {
                        sum = R::neg_fma(s, one, more[b], sum);
                    }
                    if !t.unit {
                        sum = R::quotient(s, sum, factor(i));
                    }
                    R::store(s, x.at(i, j + b * lanes), sum);
                }
            }
        }
    }
}
