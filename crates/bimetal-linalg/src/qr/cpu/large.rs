//! Large matrices: panels by reflectors, and what is beside them by products, `A − V·Tᵀ·(Vᵀ·A)`.

use super::real::{Memory, Real, Stored, scale, scan};
use super::rows::factor as factor_rows;
use super::{Form, Parts};
use crate::matmul::update::{Store, View};
use crate::qr::Dims;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};

/// Columns of a panel: fewer where the smaller extent is below the last number.
const WIDTHS: [usize; 3] = [32, 64, 300];
/// Elements of a matrix from which products use all threads.
const THREADS_FROM: usize = 400 * 400;

/// Factorises one matrix with at most this many threads.
pub(super) fn factor<E: Stored>(form: Form, dims: &Dims, a: &[E], parts: Parts<E>, threads: usize) {
    let Dims { m, n, k, .. } = *dims;
    let Parts { first, second, status } = parts;
    let (largest, finite) = scan(a);
    status[0] = if finite { 0 } else { NOT_FINITE };
    if !finite {
        first.fill(E::NAN);
        second.fill(E::NAN);
        return;
    }
    let scale = scale(largest);
    let shared = threads > 1 && m * n >= THREADS_FROM;
    let width = WIDTHS[usize::from(k >= WIDTHS[2])];
    let columns = form.columns(dims);
    let mut memory = Memory::take(m * n + m * columns + k * m + k + k * width + 2 * width * n.max(columns) + width * width);
    let (x, rest) = memory.slice().split_at_mut(m * n);
    let (q, rest) = rest.split_at_mut(m * columns);
    let (v, rest) = rest.split_at_mut(k * m);
    let (tau, rest) = rest.split_at_mut(k);
    let (t, spare) = rest.split_at_mut(k * width);
    x.iter_mut().zip(a).for_each(|(x, a)| *x = a.widen() * scale);
    let mut work = Work { m, width, shared, v, tau, t, spare };
    for start in (0..k).step_by(width) {
        work.panel(x, n, start, k);
        let from = start + width.min(k - start);
        work.apply(x, n, start, k, from, true);
    }
    if form == Form::Packed {
        for (i, row) in first.chunks_exact_mut(n).enumerate() {
            for (j, out) in row.iter_mut().enumerate() {
                *out = if j < i && j < k { E::narrow(work.element(i, j)) } else { E::narrow(x[i * n + j] / scale) };
            }
        }
        second.iter_mut().zip(work.tau.iter()).for_each(|(out, tau)| *out = E::narrow(*tau));
        return;
    }
    for (i, row) in second.chunks_exact_mut(n).enumerate() {
        row[..i.min(n)].fill(E::narrow(E::Work::default()));
        row.iter_mut().enumerate().skip(i).for_each(|(j, out)| *out = E::narrow(x[i * n + j] / scale));
    }
    q.fill(E::Work::default());
    (0..columns).for_each(|i| q[i * columns + i] = E::Work::ONE);
    for start in (0..k).step_by(width).rev() {
        work.apply(q, columns, start, k, start, false);
    }
    first.iter_mut().zip(q.iter()).for_each(|(out, q)| *out = E::narrow(*q));
}

/// Reflectors so far.
struct Work<'a, T> {
    m: usize,
    width: usize,
    shared: bool,
    /// For each panel its reflectors as lines, from the panel's first row on.
    v: &'a mut [T],
    tau: &'a mut [T],
    /// For each panel the triangular factor.
    t: &'a mut [T],
    spare: &'a mut [T],
}

impl<T: Real> Work<'_, T> {
    /// Where a panel's reflectors are.
    fn place(&self, start: usize) -> usize {
        // Panels before it have `width` lines of `m`, `m − width`, … elements.
        let panels = start / self.width;
        self.width * (panels * self.m - self.width * (panels * panels.saturating_sub(1) / 2))
    }

    /// An element of a reflector.
    fn element(&self, i: usize, j: usize) -> T {
        let start = j / self.width * self.width;
        self.v[self.place(start) + (j - start) * (self.m - start) + i - start]
    }

    /// Factorises the columns from `start` on.
    fn panel(&mut self, x: &mut [T], n: usize, start: usize, k: usize) {
        let (rows, count) = (self.m - start, self.width.min(k - start));
        let place = self.place(start);
        let v = &mut self.v[place..][..count * rows];
        let tau = &mut self.tau[start..start + count];
        dispatch_at(Level::current(), Panel { x: &mut x[start * n + start..], n, rows, v, tau });
        // T, column by column, from the products of the reflectors.
        let gram = &mut self.spare[..count * count];
        let lines = View { p: v.as_ptr(), row: rows, column: 1 };
        // SAFETY: there are `count` reflectors of as many elements, and room for their products.
        unsafe {
            let operands = [lines, lines.transposed()];
            T::multiply(Store::Replace, [count, rows, count], operands, gram.as_mut_ptr(), count, self.shared);
        }
        let t = &mut self.t[start * self.width..][..count * count];
        t.fill(T::default());
        for j in 0..count {
            for i in 0..j {
                let sum = (i..j).fold(T::default(), |sum, l| t[i * count + l].fused(gram[l * count + j], sum));
                t[i * count + j] = -(tau[j] * sum);
            }
            t[j * count + j] = tau[j];
        }
    }

    /// Applies a panel, transposed if `forward`, to the columns of `x` from `from` on.
    fn apply(&mut self, x: &mut [T], columns: usize, start: usize, k: usize, from: usize, forward: bool) {
        if from >= columns {
            return;
        }
        let (rows, count, across) = (self.m - start, self.width.min(k - start), columns - from);
        let place = self.place(start);
        let view = |x: &[T], row: usize| View { p: x.as_ptr(), row, column: 1 };
        let v = view(&self.v[place..][..count * rows], rows);
        let t = view(&self.t[start * self.width..][..count * count], count);
        let t = if forward { t.transposed() } else { t };
        let (products, weights) = self.spare.split_at_mut(count * across);
        let weights = &mut weights[..count * across];
        let x = &mut x[start * columns + from..][..(rows - 1) * columns + across];
        // SAFETY: the extents are those of the slices.
        unsafe {
            let multiply = |store, extents, operands, d: &mut [T], line| {
                T::multiply(store, extents, operands, d.as_mut_ptr(), line, self.shared);
            };
            multiply(Store::Replace, [count, rows, across], [v, view(x, columns)], products, across);
            multiply(Store::Replace, [count, count, across], [t, view(products, across)], weights, across);
            multiply(Store::Subtract, [rows, count, across], [v.transposed(), view(weights, across)], x, columns);
        }
    }
}

/// The columns of a panel, which are copied together.
struct Panel<'a, T> {
    x: &'a mut [T],
    n: usize,
    rows: usize,
    v: &'a mut [T],
    tau: &'a mut [T],
}

impl<T: Real> Kernel for Panel<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, n, rows, v, tau } = self;
        let count = tau.len();
        let step = count.next_multiple_of(T::lanes::<S>());
        let mut memory = Memory::take(rows * step);
        let panel = memory.slice();
        for (to, from) in panel.chunks_exact_mut(step).zip(x.chunks(n)) {
            to[..count].copy_from_slice(&from[..count]);
            to[count..].fill(T::default());
        }
        factor_rows(s, panel, step, v, tau, rows);
        for (i, (from, to)) in panel.chunks_exact(step).zip(x.chunks_mut(n)).take(count).enumerate() {
            to[i..count].copy_from_slice(&from[i..count]);
        }
        for (j, line) in v.chunks_exact_mut(rows).enumerate() {
            line[..j].fill(T::default());
            line[j] = T::ONE;
        }
    }
}
