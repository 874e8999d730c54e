//! `A = Q·T·Qᵀ` with a tridiagonal `T` (LAPACK's `sytd2` of the upper triangle, whose columns are our rows): reflectors from the last row
//! up, each of which meets what is left in one pass that also makes up for the one before.

use crate::qr::real::reflector;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// Order from which two threads share a pass: they meet after each row.
const THREADS_FROM: usize = 400;
/// Parts of a shared pass, whatever the number of threads, because sums depend on them.
const PARTS: usize = 2;
/// Rows of a pass that share what they read of the vectors.
const ROWS: usize = 4;

/// A symmetric matrix that becomes tridiagonal: rows of its lower triangle, whose diagonal squares of [`MAX_LANES`] rows are
/// complete.
pub(crate) struct Symmetric<'a> {
    /// `n` rows that are `line` apart; row `i` becomes the reflector that took it to two elements, zeros after it.
    pub(crate) a: &'a mut [f32],
    pub(crate) n: usize,
    pub(crate) line: usize,
    /// `n` numbers: the diagonal, and what is beside it on the right.
    pub(crate) d: &'a mut [f32],
    pub(crate) e: &'a mut [f32],
    /// Of the reflector of each row.
    pub(crate) tau: &'a mut [f32],
}

/// Elements of memory that [`Symmetric::reduce`] takes.
pub(crate) const fn scratch(line: usize) -> usize {
    (2 + PARTS) * line
}

impl Symmetric<'_> {
    /// Reduces the matrix; if `shared`, on all threads.
    pub(crate) fn reduce(&mut self, memory: &mut [f32], shared: bool) {
        let (level, n, line) = (Level::current(), self.n, self.line);
        let memory = &mut memory[..scratch(line)];
        memory.fill(0.0);
        let (w, p) = memory.split_at_mut(2 * line);
        let (mut before, mut after) = w.split_at_mut(line);
        for i in (1..n).rev() {
            let row = &mut self.a[i * line..][..line];
            self.d[i] = row[i];
            let squares = dispatch_at(level, Squares(&row[..i - 1]));
            let made = reflector(row[i - 1], squares, || row[..i - 1].iter().copied());
            self.e[i - 1] = made.beta;
            self.tau[i] = made.tau;
            row[..i - 1].iter_mut().for_each(|x| *x *= made.factor);
            row[i - 1] = 1.0;
            row[i..].fill(0.0);
            if i == 1 {
                row.fill(0.0);
                self.d[0] = self.a[0] - 2.0 * before[0] * if n > 2 { self.a[2 * line] } else { 0.0 };
                break;
            }
            let (left, right) = self.a.split_at_mut(i * line);
            // The last reflector, of the row after this one, comes with the weights that are still to be subtracted.
            let (u, v) = right.split_at(line);
            let v = if i + 1 < n { &v[..line] } else { &*before };
            let columns = Columns { u, v, w: before, line };
            columns.pass(level, left, p, i, shared);
            dispatch_at(level, Weights { u, tau: made.tau, p, w: after, n: i });
            // The next row is needed before the next pass.
            let next = &mut left[(i - 1) * line..];
            dispatch_at(level, Row { x: next, u, w: after, n: i });
            std::mem::swap(&mut before, &mut after);
        }
        if n == 1 {
            self.d[0] = self.a[0];
        }
    }
}

/// What a pass subtracts, `v·wᵀ + w·vᵀ`, and the vector that it multiplies with.
#[derive(Clone, Copy)]
struct Columns<'a> {
    u: &'a [f32],
    v: &'a [f32],
    w: &'a [f32],
    line: usize,
}

impl Columns<'_> {
    /// Updates the first `n` rows and sets `p` to their product with `u`.
    fn pass(self, level: Level, a: &mut [f32], p: &mut [f32], n: usize, shared: bool) {
        let Self { line, .. } = self;
        p.fill(0.0);
        if !(shared && n >= THREADS_FROM) {
            return dispatch_at(level, Pass { columns: self, a, first: 0, end: n, p: &mut p[..line] });
        }
        // A part has rows of as many elements as the other: those of a triangle.
        let bound = |part: usize| {
            let share = (part as f32 / PARTS as f32).sqrt();
            if part == PARTS { n } else { (n as f32 * share) as usize / MAX_LANES * MAX_LANES }
        };
        let (rows, sums) = (Shared::new(a), Shared::new(p));
        parallel::ranges(PARTS, 1, |parts| {
            for part in parts {
                let (first, end) = (bound(part), bound(part + 1));
                // SAFETY: parts have rows and sums of their own.
                let (a, p) =
                    unsafe { (rows.slice(first * line..end * line), sums.slice(part * line..(part + 1) * line)) };
                dispatch_at(level, Pass { columns: self, a, first, end, p });
            }
        });
        let (sum, rest) = p.split_at_mut(line);
        for part in rest.chunks_exact(line) {
            sum[..n].iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// A pass over rows from `first` to `end`, those of `a`.
struct Pass<'a> {
    columns: Columns<'a>,
    a: &'a mut [f32],
    first: usize,
    end: usize,
    p: &'a mut [f32],
}

impl Kernel for Pass<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut row = self.first;
        while row < self.end {
            let start = row / S::LANES * S::LANES;
            let end = self.end.min(start + S::LANES);
            while row + ROWS <= end {
                self.rows::<S, ROWS>(s, row, start);
                row += ROWS;
            }
            while row < end {
                self.rows::<S, 1>(s, row, start);
                row += 1;
            }
        }
    }
}

impl Pass<'_> {
    /// `R` rows, whose diagonal square starts at column `start`.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&mut self, s: S, row: usize, start: usize) {
        let Columns { u, v, w, line } = self.columns;
        let a = self.a[(row - self.first) * line..][..R * line].as_mut_ptr();
        let at = |x: &[f32]| -> [S::F; R] { std::array::from_fn(|r| s.splat(x[row + r])) };
        let (vs, ws, us) = (at(v), at(w), at(u));
        let mut sums = [s.splat(0.0); R];
        assert!(start + S::LANES <= line && [u.len(), v.len(), w.len(), self.p.len()].iter().all(|n| *n >= line));
        let (u, v, w, p) = (u.as_ptr(), v.as_ptr(), w.as_ptr(), self.p.as_mut_ptr());
        // SAFETY: the vector at the diagonal is within a line, and all have a line.
        unsafe {
            for c in (0..start).step_by(S::LANES) {
                let (vc, wc, uc) = (s.load(v.add(c)), s.load(w.add(c)), s.load(u.add(c)));
                let mut pc = s.load(p.add(c));
                for r in 0..R {
                    let to = a.add(r * line + c);
                    let x = s.neg_fma(ws[r], vc, s.neg_fma(vs[r], wc, s.load(to)));
                    s.store(to, x);
                    sums[r] = s.fma(x, uc, sums[r]);
                    pc = s.fma(x, us[r], pc);
                }
                s.store(p.add(c), pc);
            }
            let (vc, wc, uc) = (s.load(v.add(start)), s.load(w.add(start)), s.load(u.add(start)));
            for r in 0..R {
                let to = a.add(r * line + start);
                let x = s.neg_fma(ws[r], vc, s.neg_fma(vs[r], wc, s.load(to)));
                s.store(to, x);
                sums[r] = s.fma(x, uc, sums[r]);
            }
            for r in 0..R {
                *p.add(row + r) += s.reduce_add(sums[r]);
            }
        }
    }
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

/// The product of two vectors.
#[inline(always)]
pub(super) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let n = x.len().min(y.len());
    let whole = n / S::LANES * S::LANES;
    let mut sums = [s.splat(0.0); 2];
    // SAFETY: vectors within both.
    unsafe {
        for (k, i) in (0..whole).step_by(S::LANES).enumerate() {
            sums[k & 1] = s.fma(s.load(x.as_ptr().add(i)), s.load(y.as_ptr().add(i)), sums[k & 1]);
        }
    }
    let rest: f32 = x[whole..n].iter().zip(&y[whole..n]).map(|(x, y)| x * y).sum();
    s.reduce_add(s.add(sums[0], sums[1])) + rest
}

/// `w = τ·p − ½·τ²·(p·u)·u` of `n` elements, zeros after them.
struct Weights<'a> {
    u: &'a [f32],
    tau: f32,
    p: &'a [f32],
    w: &'a mut [f32],
    n: usize,
}

impl Kernel for Weights<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { u, tau, p, w, n } = self;
        let half = 0.5 * tau * tau * dot(s, &p[..n], &u[..n]);
        for ((w, p), u) in w[..n].iter_mut().zip(p).zip(u) {
            *w = (-half).mul_add(*u, tau * p);
        }
        w[n..].fill(0.0);
    }
}

/// Row `n − 1` less what the reflector and its weights take from it.
struct Row<'a> {
    x: &'a mut [f32],
    u: &'a [f32],
    w: &'a [f32],
    n: usize,
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, u, w, n } = self;
        let (ul, wl) = (u[n - 1], w[n - 1]);
        for ((x, u), w) in x[..n].iter_mut().zip(u).zip(w) {
            *x = (-wl).mul_add(*u, (-ul).mul_add(*w, *x));
        }
    }
}
