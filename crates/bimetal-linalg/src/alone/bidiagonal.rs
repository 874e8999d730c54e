//! `A = Q·B·Pᵀ` with an upper bidiagonal `B` (LAPACK's `gebd2`) of a matrix with at least as many rows as columns: for each column
//! one pass over those after it, which makes up for the last reflectors and finds both products with the new ones.

use super::tridiagonal::dot;
use crate::qr::real::reflector;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};
use std::ops::Range;

/// Elements that are left, from which two threads share a pass.
const THREADS_FROM: usize = 250 * 250;
/// Parts of a shared pass, whatever the number of threads, because sums depend on them.
const PARTS: usize = 2;
/// Columns of a pass that share what they read of the vectors.
const COLUMNS: usize = 4;

/// A matrix that becomes bidiagonal.
pub(super) struct Rectangle<'a> {
    /// `n` columns, `line` apart, of `m` ≥ `n` elements and zeros after them; column `j` becomes the reflector of its own.
    pub(super) a: &'a mut [f32],
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) line: usize,
    /// The reflectors of rows, `across` apart.
    pub(super) rows: &'a mut [f32],
    pub(super) across: usize,
    /// The diagonal, and what is beside it on the right.
    pub(super) d: &'a mut [f32],
    pub(super) e: &'a mut [f32],
    /// Of the reflectors of columns and of rows.
    pub(super) tau: [&'a mut [f32]; 2],
}

/// Elements of memory that [`Rectangle::reduce`] takes.
pub(super) const fn scratch(line: usize, across: usize) -> usize {
    (1 + PARTS) * line + 2 * across
}

impl Rectangle<'_> {
    /// Reduces the matrix; if `shared`, on all threads.
    pub(super) fn reduce(&mut self, memory: &mut [f32], shared: bool) {
        let (level, m, n, line, across) = (Level::current(), self.m, self.n, self.line, self.across);
        let (x, rest) = memory.split_at_mut(line);
        let (sums, rest) = rest.split_at_mut(PARTS * line);
        let (y, r) = rest[..2 * across].split_at_mut(across);
        x.fill(0.0);
        y.fill(0.0);
        self.rows.fill(0.0);
        for k in 0..n {
            let (before, rest) = self.a.split_at_mut(k * line);
            let (column, after) = rest.split_at_mut(line);
            let (old_u, old_v) = match k.checked_sub(1) {
                Some(last) => (&before[last * line..], &self.rows[last * across..][..across]),
                None => (&*x, &self.rows[..across]),
            };
            let old = Old { u: old_u, v: old_v, x, first: k };
            if k > 0 {
                dispatch_at(level, Column { a: column, old, y: y[k], v: old_v[k], m });
            }
            let squares = dispatch_at(level, Squares(&column[k + 1..m]));
            let made = reflector(column[k], squares, || column[k + 1..m].iter().copied());
            self.d[k] = made.beta;
            self.tau[0][k] = made.tau;
            column[..k].fill(0.0);
            column[k] = 1.0;
            column[k + 1..m].iter_mut().for_each(|x| *x *= made.factor);
            if k + 1 == n {
                break;
            }
            let pass = Pass { old, u: column, tau: made.tau, m, line, columns: k + 1..n };
            pass.run(level, after, [&mut *y, &mut *r], sums, shared);
            let (head, row) = (r[k + 1], &r[k + 2..n]);
            let squares = dispatch_at(level, Squares(row));
            let made = reflector(head, squares, || row.iter().copied());
            self.e[k] = made.beta;
            self.tau[1][k] = made.tau;
            let v = &mut self.rows[k * across..][..across];
            v[k + 1] = 1.0;
            v[k + 2..n].iter_mut().zip(row).for_each(|(v, x)| *v = x * made.factor);
            let weights = [made.factor, made.factor * head, made.tau];
            dispatch_at(
                level,
                Weights { u: column, y: &y[k + 1..n], v: &v[k + 1..n], sums, next: after, x, weights, rows: k + 1..m },
            );
        }
    }
}

/// What the last reflectors still have to take from the columns: `y·u + v·x` from row `first` on.
#[derive(Clone, Copy)]
struct Old<'a> {
    u: &'a [f32],
    v: &'a [f32],
    x: &'a [f32],
    first: usize,
}

/// The sum of squares.
struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        dot(s, self.0, self.0)
    }
}

/// Makes up for the last reflectors in one column.
struct Column<'a> {
    a: &'a mut [f32],
    old: Old<'a>,
    y: f32,
    v: f32,
    m: usize,
}

impl Kernel for Column<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { a, old, y, v, m } = self;
        let rows = old.first..m;
        for ((a, u), x) in a[rows.clone()].iter_mut().zip(&old.u[rows.clone()]).zip(&old.x[rows]) {
            *a = (-v).mul_add(*x, (-y).mul_add(*u, *a));
        }
    }
}

/// A pass over columns.
#[derive(Clone)]
struct Pass<'a> {
    old: Old<'a>,
    u: &'a [f32],
    tau: f32,
    m: usize,
    line: usize,
    columns: Range<usize>,
}

impl Pass<'_> {
    /// Updates the columns `a`, and sets `y` to `τ·Aᵀ·u`, `r` to what is left of the row then, and the sums to `A·r`.
    fn run(self, level: Level, a: &mut [f32], [y, r]: [&mut [f32]; 2], sums: &mut [f32], shared: bool) {
        let line = self.line;
        sums.fill(0.0);
        let count = self.columns.len();
        if !(shared && count * (self.m - self.old.first) >= THREADS_FROM) {
            let (y, r) = (&mut y[self.columns.clone()], &mut r[self.columns.clone()]);
            return dispatch_at(level, Part { pass: self, a, y, r, sums: &mut sums[..line] });
        }
        let first = self.columns.start;
        let bound = |part: usize| (count * part).div_ceil(PARTS);
        let (columns, all) = (Shared::new(a), Shared::new(&mut *sums));
        let (y, r) = (Shared::new(y), Shared::new(r));
        parallel::ranges(PARTS, 1, |parts| {
            for part in parts {
                let (begin, end) = (bound(part), bound(part + 1));
                // SAFETY: parts have columns, elements and sums of their own.
                let (a, y, r, sums) = unsafe {
                    let elements = first + begin..first + end;
                    let a = columns.slice(begin * line..end * line);
                    (a, y.slice(elements.clone()), r.slice(elements), all.slice(part * line..(part + 1) * line))
                };
                let pass = Pass { columns: first + begin..first + end, ..self.clone() };
                dispatch_at(level, Part { pass, a, y, r, sums });
            }
        });
        let (sum, rest) = sums.split_at_mut(line);
        for part in rest.chunks_exact(line) {
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// The columns of a part of a pass, with their elements of both vectors.
struct Part<'a> {
    pass: Pass<'a>,
    a: &'a mut [f32],
    y: &'a mut [f32],
    r: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let count = self.pass.columns.len();
        let whole = count / COLUMNS * COLUMNS;
        for at in (0..whole).step_by(COLUMNS) {
            self.columns::<S, COLUMNS>(s, at);
        }
        for at in whole..count {
            self.columns::<S, 1>(s, at);
        }
    }
}

impl Part<'_> {
    /// `C` columns from the one that is `at` in this part.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(&mut self, s: S, at: usize) {
        let Pass { old, u, tau, m, line, ref columns } = self.pass;
        let row = old.first;
        let a = self.a[at * line..][..C * line].as_mut_ptr();
        let y: [S::F; C] = std::array::from_fn(|c| s.splat(self.y[at + c]));
        let v: [S::F; C] = std::array::from_fn(|c| s.splat(old.v[columns.start + at + c]));
        let begin = old.first / S::LANES * S::LANES;
        assert!(
            m <= line
                && line.is_multiple_of(S::LANES)
                && [u.len(), old.u.len(), old.x.len(), self.sums.len()].iter().all(|n| *n >= line)
        );
        let (u, old_u, x, total) = (u.as_ptr(), old.u.as_ptr(), old.x.as_ptr(), self.sums.as_mut_ptr());
        let mut sums = [s.splat(0.0); C];
        // SAFETY: vectors of whole lines, which all of these have.
        unsafe {
            for i in (begin..m).step_by(S::LANES) {
                let (ui, oi, xi) = (s.load(u.add(i)), s.load(old_u.add(i)), s.load(x.add(i)));
                for c in 0..C {
                    let to = a.add(c * line + i);
                    let z = s.neg_fma(v[c], xi, s.neg_fma(y[c], oi, s.load(to)));
                    s.store(to, z);
                    sums[c] = s.fma(z, ui, sums[c]);
                }
            }
            let mut rest = [s.splat(0.0); C];
            for c in 0..C {
                let product = tau * s.reduce_add(sums[c]);
                let left = *a.add(c * line + row) - product;
                (self.y[at + c], self.r[at + c]) = (product, left);
                rest[c] = s.splat(left);
            }
            for i in (begin..m).step_by(S::LANES) {
                let mut sum = s.load(total.add(i));
                for c in 0..C {
                    sum = s.fma(rest[c], s.load(a.add(c * line + i)), sum);
                }
                s.store(total.add(i), sum);
            }
        }
    }
}

/// `x = τ·(A − u·yᵀ)·v`, from `A·r`, where `v` is `r` times a factor but for its first element, which is 1.
struct Weights<'a> {
    u: &'a [f32],
    y: &'a [f32],
    v: &'a [f32],
    sums: &'a [f32],
    /// The column of that element.
    next: &'a [f32],
    x: &'a mut [f32],
    /// The factor, the factor times the first element of `r`, and τ.
    weights: [f32; 3],
    rows: Range<usize>,
}

impl Kernel for Weights<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { u, y, v, sums, next, x, weights: [factor, taken, tau], rows } = self;
        let product = dot(s, y, v);
        x[..rows.start].fill(0.0);
        let own = 1.0 - taken;
        for (((x, sum), next), u) in
            x[rows.clone()].iter_mut().zip(&sums[rows.clone()]).zip(&next[rows.clone()]).zip(&u[rows])
        {
            *x = tau * (-product).mul_add(*u, own.mul_add(*next, factor * *sum));
        }
    }
}
