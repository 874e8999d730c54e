//! Panels of columns become blocks of reflectors: a unit of columns at a time by one pass over its rows for each reflector,
//! units and blocks of them by halves.

use super::real::{Real, Stored, reflector};
use super::tiles::{Block, Columns, Join, Target, UNIT, apply, padded, stride};
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};
use std::iter::StepBy;
use std::ops::Range;

/// Blocks of reflectors of a matrix, from its first columns on.
pub(crate) struct Panels<'a, T> {
    /// Rows of the matrix in whole units.
    rows: usize,
    /// Reflectors.
    k: usize,
    /// Columns of a panel.
    pub(crate) width: usize,
    pub(crate) shared: bool,
    /// For each panel its columns from its first row on.
    v: &'a mut [T],
    /// For each panel its triangle with the sign changed.
    t: &'a mut [T],
    /// A number for each reflector.
    pub(crate) tau: &'a mut [T],
}

impl<'a, T: Real> Panels<'a, T> {
    /// Elements that panels of `k` reflectors of `m` elements take.
    pub(crate) fn size(m: usize, k: usize, width: usize) -> usize {
        let panels = k.div_ceil(width);
        panels * (padded(m) * stride::<T>(width) + width * width) + padded(k)
    }

    /// Panels in memory of [`size`](Self::size).
    pub(crate) fn new(memory: &'a mut [T], m: usize, k: usize, width: usize, shared: bool) -> Self {
        let panels = k.div_ceil(width);
        let (t, memory) = memory.split_at_mut(panels * width * width);
        let (tau, v) = memory.split_at_mut(padded(k));
        t.fill(T::default());
        Self { rows: padded(m), k, width, shared, v, t, tau }
    }

    /// The first columns of the panels.
    pub(crate) fn starts(&self) -> StepBy<Range<usize>> {
        (0..self.k).step_by(self.width)
    }

    /// Whether no panel follows.
    pub(crate) fn is_last(&self, start: usize) -> bool {
        start + self.width >= self.k
    }

    /// Elements from row to row of V.
    fn step(&self) -> usize {
        stride::<T>(self.width)
    }

    /// Where the panel that begins at a column is in V: those before it have fewer rows each.
    fn place(&self, start: usize) -> usize {
        let panels = start / self.width;
        (panels * self.rows - self.width * (panels * panels.saturating_sub(1) / 2)) * self.step()
    }

    /// The row of a panel's reflectors that belongs to a row of the matrix.
    pub(crate) fn row(&self, start: usize, row: usize) -> &[T] {
        let at = self.place(start) + (row - start) * self.step();
        &self.v[at..at + self.columns_of(start)]
    }

    fn row_mut(&mut self, start: usize, row: usize) -> &mut [T] {
        let (at, width) = (self.place(start) + (row - start) * self.step(), self.columns_of(start));
        &mut self.v[at..at + width]
    }

    /// Columns of a panel, in whole units.
    fn columns_of(&self, start: usize) -> usize {
        self.width.min(padded(self.k - start))
    }

    /// The block of a panel.
    pub(crate) fn block(&mut self, start: usize) -> Block<T> {
        self.part(start, 0, self.columns_of(start))
    }

    /// Neighbouring reflectors of a panel.
    fn part(&mut self, start: usize, column: usize, count: usize) -> Block<T> {
        let (v_step, t_step) = (self.step(), self.width);
        Block {
            v: self.v[self.place(start) + column * v_step + column..].as_ptr(),
            v_step,
            rows: self.rows - start - column,
            count,
            t: self.t[start * t_step + column * t_step + column..].as_ptr(),
            t_step,
        }
    }

    /// Factorises the first columns of `x`, whose rows are `x_step` apart, and applies the reflectors to those beside them, up
    /// to column `n`: R is left on and above the diagonal.
    pub(crate) fn reduce(&mut self, x: &mut [T], x_step: usize, n: usize) {
        for start in self.starts() {
            self.factor(x, x_step, start);
            let block = self.block(start);
            // Where the last panel ends within a unit, it has done the columns that are left of it.
            let from = start + block.count;
            if from < n {
                let x = x[start * x_step + from..].as_mut_ptr();
                let target = Target { x, x_step, columns: padded(n) - from, known: Columns::Any };
                // SAFETY: the rows from `start` on of columns that are not the panel's.
                unsafe { apply(block, target, true, self.shared) };
            }
        }
    }

    /// Takes reflectors as LAPACK packs them, below the diagonal of rows of `n` elements.
    pub(crate) fn unpack<E: Stored<Work = T>>(&mut self, packed: &[E], n: usize, tau: &[E]) {
        let (k, zero) = (self.k, T::default());
        self.tau.iter_mut().zip(tau).for_each(|(to, tau)| *to = tau.widen());
        for start in self.starts() {
            for i in start..self.rows {
                let to = self.row_mut(start, i);
                let Some(from) = packed.get(i * n..(i + 1) * n) else {
                    to.fill(zero);
                    continue;
                };
                let below = (i - start).min(k - start).min(to.len());
                to.iter_mut().zip(&from[start..start + below]).for_each(|(to, from)| *to = from.widen());
                to[below..].fill(zero);
                if i < k && below < to.len() {
                    to[below] = T::ONE;
                }
            }
            let count = self.block(start).count;
            self.triangles(start, 0, count);
        }
    }

    /// Applies the product of the reflectors, or its transpose, to the first `n` columns of `x`.
    pub(crate) fn product(&mut self, x: &mut [T], x_step: usize, n: usize, transpose: bool) {
        let starts = self.starts();
        let starts: Vec<usize> = if transpose { starts.collect() } else { starts.rev().collect() };
        for start in starts {
            let block = self.block(start);
            let x = x[start * x_step..].as_mut_ptr();
            let target = Target { x, x_step, columns: padded(n), known: Columns::Any };
            // SAFETY: the rows from `start` on.
            unsafe { apply(block, target, transpose, self.shared) };
        }
    }

    /// Factorises a panel of `x`, whose rows are `x_step` apart: R goes to `x`, where what is below it loses its meaning.
    fn factor(&mut self, x: &mut [T], x_step: usize, start: usize) {
        let width = self.columns_of(start);
        for row in start..self.rows {
            self.row_mut(start, row).copy_from_slice(&x[row * x_step + start..][..width]);
        }
        self.columns(x, x_step, start, 0, width);
    }

    /// Factorises `width` columns of a panel from `column` on.
    fn columns(&mut self, x: &mut [T], x_step: usize, start: usize, column: usize, width: usize) {
        if width > UNIT {
            let half = (width / 2).next_multiple_of(UNIT);
            self.columns(x, x_step, start, column, half);
            let block = self.part(start, column, half);
            let place = self.place(start) + column * block.v_step + column + half;
            let to = self.v[place..].as_mut_ptr();
            let target = Target { x: to, x_step: block.v_step, columns: width - half, known: Columns::Any };
            // SAFETY: the columns are beside those of the block.
            unsafe { apply(block, target, true, self.shared) };
            self.columns(x, x_step, start, column + half, width - half);
            self.join(start, column, [half, width - half]);
            return;
        }
        let (place, step, rows) = (self.place(start), self.step(), self.rows - start - column);
        let count = UNIT.min(self.k - start - column);
        let v = &mut self.v[place + column..];
        let tau = &mut self.tau[start + column..][..count];
        let mut factors = [T::default(); UNIT];
        let level = Level::current();
        dispatch_at(level, Factor { x: &mut v[column * step..], step, rows, tau, factors: &mut factors });
        // R and the columns past the last reflector; then ones and zeros where they were.
        for (row, v) in v.chunks_mut(step).enumerate().take(column + rows) {
            let to = &mut x[(start + row) * x_step + start + column..][..UNIT];
            if row < column {
                to.copy_from_slice(&v[..UNIT]);
                v[..UNIT].fill(T::default());
            } else if row < column + UNIT {
                to.copy_from_slice(&v[..UNIT]);
                for (c, (v, factor)) in v.iter_mut().zip(factors).enumerate() {
                    *v = match (c + column).cmp(&row) {
                        _ if c >= count => T::default(),
                        std::cmp::Ordering::Less => *v * factor,
                        std::cmp::Ordering::Equal => T::ONE,
                        std::cmp::Ordering::Greater => T::default(),
                    };
                }
            } else if count < UNIT {
                to[count..].copy_from_slice(&v[count..UNIT]);
            } else {
                break;
            }
        }
        if rows > UNIT {
            dispatch_at(level, Scale { x: &mut v[(column + UNIT) * step..], step, rows: rows - UNIT, factors });
        }
        self.triangle(start, column, count);
    }

    /// Makes the triangles of a panel whose reflectors and τ are there.
    fn triangles(&mut self, start: usize, column: usize, width: usize) {
        if width <= UNIT {
            return self.triangle(start, column, UNIT.min(self.k - start - column));
        }
        let half = (width / 2).next_multiple_of(UNIT);
        self.triangles(start, column, half);
        self.triangles(start, column + half, width - half);
        self.join(start, column, [half, width - half]);
    }

    /// The triangle of one unit.
    fn triangle(&mut self, start: usize, column: usize, count: usize) {
        let block = self.part(start, column, UNIT);
        let tau = &self.tau[start + column..][..count];
        let t = self.t[start * block.t_step + column * block.t_step + column..].as_mut_ptr();
        dispatch_at(Level::current(), Triangle { block, tau, t });
    }

    /// Joins neighbouring blocks of a panel.
    fn join(&mut self, start: usize, column: usize, counts: [usize; 2]) {
        let first = self.part(start, column, counts[0]);
        let t = self.t[start * first.t_step + column * first.t_step + column..].as_mut_ptr();
        dispatch_at(Level::current(), Join { first, count: counts[1], t });
    }
}

/// Factorises a unit of columns. What is below the diagonal has to be multiplied with the columns' `factors` to give the
/// reflectors.
struct Factor<'a, T> {
    x: &'a mut [T],
    step: usize,
    rows: usize,
    tau: &'a mut [T],
    factors: &'a mut [T; UNIT],
}

impl<T: Real> Kernel for Factor<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY (of all): the panel has that many rows of whole units.
        unsafe {
            match UNIT / T::lanes::<S>() {
                1 => self.all::<S, 1, 4>(s),
                2 => self.all::<S, 2, 2>(s),
                4 => self.all::<S, 4, 2>(s),
                8 => self.all::<S, 8, 1>(s),
                _ => self.all::<S, 16, 1>(s),
            }
        }
    }
}

impl<T: Real> Factor<'_, T> {
    /// The columns as `B` vectors, `U` rows at a time.
    ///
    /// # Safety
    /// The rows exist.
    #[inline(always)]
    unsafe fn all<S: Simd, const B: usize, const U: usize>(self, s: S) {
        let Self { x, step, rows, tau, factors } = self;
        let (lanes, x) = (T::lanes::<S>(), x.as_mut_ptr());
        // SAFETY (this function): rows below `rows` and columns of the unit.
        unsafe {
            // The products of column j with all, below row j.
            let mut dots = pass::<S, T, B, U>(s, x.add(step), step, rows - 1, None, 0);
            for (j, tau) in tau.iter_mut().enumerate() {
                let head = std::slice::from_raw_parts_mut(x.add(j * step), UNIT);
                let column = |i: usize| x.add(i * step + j);
                let [low, high] = T::SQUARES;
                let made = reflector(head[j], dots[j], || (j + 1..rows).map(|i| *column(i)));
                let all = head[j].fused(head[j], dots[j]);
                factors[j] = made.factor;
                if !(dots[j] >= low && all <= high) {
                    // Products that may have lost something: again, with the reflector itself.
                    (j + 1..rows).for_each(|i| *column(i) = *column(i) * made.factor);
                    dots = pass::<S, T, B, U>(s, x.add((j + 1) * step), step, rows - j - 1, None, j);
                    factors[j] = T::ONE;
                }
                *tau = made.tau;
                let mut w = [T::default(); UNIT];
                for c in 0..UNIT {
                    let weight = made.tau * dots[c].fused(factors[j], head[c]);
                    let after = if c > j { T::ONE } else { T::default() };
                    let weight = weight * after;
                    head[c] = head[c] - weight;
                    w[c] = -(weight * factors[j]);
                }
                head[j] = made.beta;
                if j + 1 == rows {
                    break;
                }
                // The next row is the next head, which is not among the products.
                let next = x.add((j + 1) * step);
                let first = T::splat(s, *next.add(j));
                for b in 0..B {
                    let w = T::load(s, w.as_ptr().add(b * lanes));
                    T::store(s, next.add(b * lanes), T::fma(s, first, w, T::load(s, next.add(b * lanes))));
                }
                dots = pass::<S, T, B, U>(s, x.add((j + 2) * step), step, rows - j - 2, Some((&w, j)), j + 1);
            }
        }
    }
}

/// One pass over rows: adds multiples of `w`, given by the column beside it, and gives the products of `column` with all
/// columns.
///
/// # Safety
/// `rows` rows from `x` on exist.
#[inline(always)]
unsafe fn pass<S: Simd, T: Real, const B: usize, const U: usize>(
    s: S,
    x: *mut T,
    step: usize,
    rows: usize,
    update: Option<(&[T; UNIT], usize)>,
    column: usize,
) -> [T; UNIT] {
    let lanes = T::lanes::<S>();
    let zero = T::splat(s, T::default());
    let mut sums = [[zero; B]; U];
    let column = column.min(UNIT - 1);
    // SAFETY (this function): the caller's promise.
    unsafe {
        if let Some((w, by)) = update {
            let own = w[column];
            let mut weights = [zero; B];
            for (b, weight) in weights.iter_mut().enumerate() {
                *weight = T::load(s, w.as_ptr().add(b * lanes));
            }
            let whole = rows / U * U;
            for i in (0..whole).step_by(U) {
                for (u, sums) in sums.iter_mut().enumerate() {
                    updated(s, x.add((i + u) * step), [by, column], own, &weights, sums);
                }
            }
            for i in whole..rows {
                updated(s, x.add(i * step), [by, column], own, &weights, &mut sums[0]);
            }
        } else {
            for i in 0..rows {
                let row = x.add(i * step);
                let y = T::splat(s, *row.add(column));
                for (b, sum) in sums[i % U].iter_mut().enumerate() {
                    *sum = T::fma(s, y, T::load(s, row.add(b * lanes)), *sum);
                }
            }
        }
        let mut dots = [T::default(); UNIT];
        for b in 0..B {
            let mut sum = sums[0][b];
            for more in sums.iter().skip(1) {
                sum = T::fma(s, T::splat(s, T::ONE), more[b], sum);
            }
            T::store(s, dots.as_mut_ptr().add(b * lanes), sum);
        }
        dots
    }
}

/// One row of [`pass`]. The element of the next column is computed on its own, which is sooner than from the vector.
///
/// # Safety
/// The row exists.
#[inline(always)]
unsafe fn updated<S: Simd, T: Real, const B: usize>(
    s: S,
    row: *mut T,
    [by, column]: [usize; 2],
    own: T,
    weights: &[T::V<S>; B],
    sums: &mut [T::V<S>; B],
) {
    let lanes = T::lanes::<S>();
    // SAFETY (this function): the caller's promise.
    unsafe {
        let factor = *row.add(by);
        let y = T::splat(s, factor.fused(own, *row.add(column)));
        let factor = T::splat(s, factor);
        for b in 0..B {
            let p = row.add(b * lanes);
            let x = T::fma(s, factor, weights[b], T::load(s, p));
            T::store(s, p, x);
            sums[b] = T::fma(s, y, x, sums[b]);
        }
    }
}

/// Multiplies columns with their factors.
struct Scale<'a, T> {
    x: &'a mut [T],
    step: usize,
    rows: usize,
    factors: [T; UNIT],
}

impl<T: Real> Kernel for Scale<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for row in self.x.chunks_mut(self.step).take(self.rows) {
            row[..UNIT].iter_mut().zip(&self.factors).for_each(|(x, factor)| *x = *x * *factor);
        }
    }
}

/// Makes −T of a unit of reflectors, column by column from their products.
struct Triangle<'a, T> {
    block: Block<T>,
    tau: &'a [T],
    t: *mut T,
}

impl<T: Real> Kernel for Triangle<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block, tau, t } = self;
        let mut gram = [T::default(); UNIT * MAX_LANES];
        // SAFETY (this function): the block has whole units, and its triangle room for one.
        unsafe {
            super::tiles::gram(s, block, gram.as_mut_ptr());
            let mut columns = [[T::default(); UNIT]; UNIT];
            for (j, tau) in tau.iter().enumerate() {
                let mut sums = [T::default(); UNIT];
                for l in 0..j {
                    let g = gram[l * UNIT + j];
                    for (sum, x) in sums.iter_mut().zip(columns[l]) {
                        *sum = x.fused(g, *sum);
                    }
                }
                for (x, sum) in columns[j].iter_mut().zip(sums) {
                    *x = -(*tau * sum);
                }
                columns[j][j] = -*tau;
            }
            for i in 0..UNIT {
                for j in 0..UNIT {
                    *t.add(i * block.t_step + j) = columns[j][i];
                }
            }
        }
    }
}
