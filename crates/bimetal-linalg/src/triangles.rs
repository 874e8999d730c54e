//! Triangular systems on the CPU, `T·X = B` and then perhaps `Tᵀ·X = X`: batches of small ones with a system in each lane,
//! larger ones by rows of right-hand sides.

use crate::blocks::Place;
use crate::eliminate::{self, Rows, Triangle, shared};
use crate::lanes::{Entry, Mat, MatTo, Part, Real, gather, grain, scatter, threads_within, transpose};
use crate::qr::tiles::stride;
use crate::status::NOT_FINITE;
use crate::system::System;
use bimetal_core::DType;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};

/// The largest order whose batches are interleaved, the most right-hand sides of such systems, and the fewest systems. On two
/// cores with AVX-512, one right-hand side: 500 of 16×16 took 161 µs by faer and 26 µs so, 10000 of 32×32 7.3 and 2.3 ms; both
/// triangles of 200 of 48×48 0.63 and 0.09 ms. With 16 right-hand sides 200 of 48×48 took 0.28 ms by faer and 0.30 ms so.
const SMALL: [usize; 3] = [64, 8, 4];
/// Right-hand sides up to which large systems go to faer, as rows of them fill no vector then; 1024×1024, both triangles, with 64
/// of them took 6.5 ms by faer and 2.4 ms by rows.
const FEW_SIDES: usize = 16;

/// Which triangle, and where it and the right-hand sides are in the matrices of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    pub(crate) system: System,
    /// The triangle as it is stored, row-major.
    pub(crate) part: Part,
    pub(crate) unit: bool,
    /// Where the triangle that is solved with has its elements, and whether it is an upper one.
    pub(crate) triangle: Place,
    pub(crate) upper: bool,
    pub(crate) sides: Place,
    /// Whether to go on with the transpose.
    pub(crate) both: bool,
    pub(crate) alpha: f64,
}

/// Solves all systems.
pub(crate) fn solve<E: Entry>(form: Form, t: &[E], b: &[E], x: &mut [E], status: &mut [i32]) {
    let System { count, n, k } = form.system;
    if n == 0 || k == 0 {
        // Nothing to solve for, but a matrix may still be wrong.
        (0..count).for_each(|i| status[i] = inspect(form, &t[i * n * n..][..n * n]));
        return;
    }
    let [matrix, sides] = form.system.sizes();
    let (solutions, statuses) = (Shared::new(x), Shared::new(status));
    let single = size_of::<E::Real>() == 4;
    let small = single && n <= SMALL[0] && k <= SMALL[1] && count >= SMALL[2];
    let passes = 1 + usize::from(form.both);
    let flops = if small { n * n * (k * passes + 1) / 8 } else { passes * n * n * k / 2 };
    parallel::ranges(count, grain(flops, if small { MAX_LANES } else { 1 }), |range| {
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let (x, status) =
            unsafe { (solutions.slice(range.start * sides..range.end * sides), statuses.slice(range.clone())) };
        let (t, b) = (&t[range.start * matrix..range.end * matrix], &b[range.start * sides..range.end * sides]);
        if small {
            E::Real::scratch((matrix + sides) * MAX_LANES, |work| {
                dispatch(Interleaved { form, t, b, x, status, work })
            });
        } else {
            for (i, status) in status.iter_mut().enumerate() {
                let x = &mut x[i * sides..][..sides];
                *status = one(form, &t[i * matrix..][..matrix], &b[i * sides..][..sides], x);
                if *status != 0 {
                    x.fill(E::of(E::Real::NAN));
                }
            }
        }
    });
}

/// The status that a triangle gives.
fn inspect<E: Entry>(form: Form, t: &[E]) -> i32 {
    let n = form.system.n;
    let (mut sums, mut zero) = ([E::Real::default(); MAX_LANES], 0);
    for (i, row) in t.chunks_exact(n.max(1)).enumerate() {
        let mut columns = form.part.columns(i, n);
        if form.unit && form.part == Part::Lower {
            columns.end -= 1;
        } else if form.unit {
            columns.start += 1;
        } else if zero == 0 && row[i].real() == E::Real::default() {
            zero = i as i32 + 1;
        }
        // Zero times what is not finite is NaN, and stays; by lanes that do not wait for each other.
        let mut chunks = row[columns].chunks_exact(MAX_LANES);
        for chunk in chunks.by_ref() {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum = *sum + x.real() * E::Real::default());
        }
        sums.iter_mut().zip(chunks.remainder()).for_each(|(sum, x)| *sum = *sum + x.real() * E::Real::default());
    }
    if sums.iter().all(|sum| sum.finite()) { zero } else { NOT_FINITE }
}

/// Solves one system; gives its status.
fn one<E: Entry>(form: Form, t: &[E], b: &[E], x: &mut [E]) -> i32 {
    let System { count, n, k } = form.system;
    let found = inspect(form, t);
    if found == NOT_FINITE || b.iter().any(|b| !b.real().finite()) {
        return NOT_FINITE;
    }
    if found != 0 {
        return found;
    }
    let alpha = E::Real::of_f64(form.alpha);
    // A triangle of the computation's own dtype is read where it is.
    let given = E::DTYPE == if size_of::<E::Real>() == 4 { DType::F32 } else { DType::F64 };
    let copied = if given { 0 } else { n * n };
    let stride = stride::<E::Real>(k);
    E::Real::scratch(copied + n * stride, |work| {
        let (triangle, right) = work.split_at_mut(copied);
        triangle.iter_mut().zip(t).for_each(|(to, t)| *to = t.real());
        let p = if given { t.as_ptr().cast::<E::Real>() } else { triangle.as_ptr() };
        let rows = form.sides.column == 1;
        if rows {
            for (to, b) in right.chunks_exact_mut(stride).zip(b.chunks_exact(k)) {
                to.iter_mut().zip(b).for_each(|(to, b)| *to = b.real() * alpha);
                to[k..].fill(E::Real::default());
            }
        } else {
            right.fill(E::Real::default());
            transpose([k, n], (b, n), (&mut *right, stride), |b| b.real() * alpha);
        }
        let pass = |triangle: Place, upper: bool, right: *mut E::Real| {
            if k > FEW_SIDES {
                let t = Triangle { p, row: triangle.row, column: triangle.column, n, unit: form.unit, upper };
                // SAFETY: the triangle is there, and rows of right-hand sides are whole vectors.
                unsafe { eliminate::substitute(t, Rows { p: right, stride, width: k }, shared(count, n)) };
            } else {
                let t = Mat { p, extents: [n, n], strides: [triangle.row as isize, triangle.column as isize] };
                let x = MatTo { p: right, extents: [n, k], strides: [stride as isize, 1] };
                E::Real::triangular(t, form.unit, upper, x, threads_within(count, n));
            }
        };
        let memory = right.as_mut_ptr();
        pass(form.triangle, form.upper, memory);
        if form.both {
            pass(form.triangle.transposed(), !form.upper, memory);
        }
        if rows {
            for (x, from) in x.chunks_exact_mut(k).zip(right.chunks_exact(stride)) {
                x.iter_mut().zip(from).for_each(|(x, from)| *x = E::of(*from));
            }
        } else {
            transpose([n, k], (&*right, stride), (x, n), E::of);
        }
    });
    0
}

/// A batch of small systems.
struct Interleaved<'a, E: Entry> {
    form: Form,
    t: &'a [E],
    b: &'a [E],
    x: &'a mut [E],
    status: &'a mut [i32],
    work: &'a mut [E::Real],
}

impl<E: Entry> Kernel for Interleaved<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { form, t, b, x, status, work } = self;
        let System { n, k, .. } = form.system;
        let lanes = E::Real::lanes::<S>();
        // As `b` is stored.
        let extents = if form.sides.column == 1 { [n, k] } else { [k, n] };
        for first in (0..status.len()).step_by(lanes) {
            let group = lanes.min(status.len() - first);
            let (matrix, sides) = work.split_at_mut(n * n * lanes);
            let mut bad = gather::<S, E>(s, t, first, [n, n], matrix, if form.unit { Part::All } else { form.part });
            if form.unit {
                bad = strict::<S, E::Real>(s, n, matrix, form.part);
            }
            bad |= gather::<S, E>(s, b, first, extents, sides, Part::All);
            let mut zero = [0i32; MAX_LANES];
            if !form.unit {
                for i in (0..n).rev() {
                    for (zero, x) in zero.iter_mut().zip(&matrix[(i * n + i) * lanes..][..lanes]) {
                        *zero = if *x == E::Real::default() { i as i32 + 1 } else { *zero };
                    }
                }
            }
            if form.alpha != 1.0 {
                let alpha = E::Real::of_f64(form.alpha);
                sides[..n * k * lanes].iter_mut().for_each(|x| *x = *x * alpha);
            }
            let system =
                Lanes { s, n, k, unit: form.unit, t: matrix.as_ptr(), x: sides.as_mut_ptr(), sides: form.sides };
            // SAFETY: the memory holds `n·n` and `n·k` vectors.
            unsafe {
                system.pass(form.triangle, form.upper);
                if form.both {
                    system.pass(form.triangle.transposed(), !form.upper);
                }
            }
            let mut failed = bad;
            for lane in 0..group {
                let sound = bad >> lane & 1 == 0;
                status[first + lane] = if sound { zero[lane] } else { NOT_FINITE };
                failed |= u32::from(zero[lane] != 0) << lane;
            }
            scatter::<S, E>(s, sides, extents, &mut x[first * n * k..][..group * n * k], Part::All, failed);
        }
    }
}

/// The lanes with an element in the triangle without its diagonal that is not finite.
#[inline(always)]
fn strict<S: Simd, R: Real>(s: S, n: usize, matrix: &[R], part: Part) -> u32 {
    let lanes = R::lanes::<S>();
    let (mut sum, minus) = (R::splat(s, R::default()), R::splat(s, R::default()));
    for i in 0..n {
        for j in part.columns(i, n).filter(|&j| j != i) {
            // SAFETY: the matrix has `n·n` vectors.
            sum = R::neg_fma(s, minus, unsafe { R::load(s, matrix.as_ptr().add((i * n + j) * lanes)) }, sum);
        }
    }
    let mut sums = [R::default(); MAX_LANES];
    // SAFETY: the array holds a vector of any level.
    unsafe { R::store(s, sums.as_mut_ptr(), sum) };
    (0..lanes).fold(0, |bad, lane| bad | u32::from(!sums[lane].finite()) << lane)
}

/// Systems in lanes.
pub(crate) struct Lanes<S, R> {
    pub(crate) s: S,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) unit: bool,
    pub(crate) t: *const R,
    pub(crate) x: *mut R,
    pub(crate) sides: Place,
}

/// Right-hand sides that are computed together.
const SIDES: usize = 4;

impl<S: Simd, R: Real> Lanes<S, R> {
    /// Solves with a triangle in place.
    ///
    /// # Safety
    /// The memory holds `n·n` and `n·k` vectors.
    #[inline(always)]
    pub(crate) unsafe fn pass(&self, triangle: Place, upper: bool) {
        let whole = self.k / SIDES * SIDES;
        // SAFETY: the caller's promise.
        unsafe {
            if triangle.column != 1 {
                return self.columns(triangle, upper);
            }
            // Loops, because a closure is not sure to be compiled for the level.
            for j in (0..whole).step_by(SIDES) {
                self.sides::<SIDES, 1>(triangle, upper, j);
            }
            for j in whole..self.k {
                self.sides::<1, SIDES>(triangle, upper, j);
            }
        }
    }

    /// Solves column by column of a triangle whose columns are contiguous: each element's products are subtracted from those
    /// after it.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn columns(&self, triangle: Place, upper: bool) {
        let Self { s, n, k, .. } = *self;
        let lanes = R::lanes::<S>();
        let at = |i: usize, j: usize| self.x.wrapping_add((i * self.sides.row + j * self.sides.column) * lanes);
        let factor = |i: usize, l: usize| self.t.wrapping_add((i * triangle.row + l * triangle.column) * lanes);
        for step in 0..n {
            let l = if upper { n - 1 - step } else { step };
            let others = if upper { 0..l } else { l + 1..n };
            for j in 0..k {
                // SAFETY (this block): the caller's promise.
                unsafe {
                    let mut x = R::load(s, at(l, j));
                    if !self.unit {
                        x = R::quotient(s, x, R::load(s, factor(l, l)));
                        R::store(s, at(l, j), x);
                    }
                    for i in others.clone() {
                        let to = at(i, j);
                        R::store(s, to, R::neg_fma(s, R::load(s, factor(i, l)), x, R::load(s, to)));
                    }
                }
            }
        }
    }

    /// Solves for `B` right-hand sides: each element less the products of the ones before it, in `C` sums that do not wait
    /// for each other.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn sides<const B: usize, const C: usize>(&self, triangle: Place, upper: bool, first: usize) {
        let Self { s, n, .. } = *self;
        let lanes = R::lanes::<S>();
        let at =
            |i: usize, b: usize| self.x.wrapping_add((i * self.sides.row + (first + b) * self.sides.column) * lanes);
        for step in 0..n {
            let i = if upper { n - 1 - step } else { step };
            let others = if upper { i + 1..n } else { 0..i };
            // SAFETY (this block): the caller's promise.
            unsafe {
                let factor = |l: usize| self.t.wrapping_add((i * triangle.row + l * triangle.column) * lanes);
                let zero = R::splat(s, R::default());
                let mut sums = [[zero; B]; C];
                for (b, sum) in sums[0].iter_mut().enumerate() {
                    *sum = R::load(s, at(i, b));
                }
                let mut l = others.start;
                while l + C <= others.end {
                    for (c, sums) in sums.iter_mut().enumerate() {
                        let t = R::load(s, factor(l + c));
                        for (b, sum) in sums.iter_mut().enumerate() {
                            *sum = R::neg_fma(s, t, R::load(s, at(l + c, b)), *sum);
                        }
                    }
                    l += C;
                }
                for l in l..others.end {
                    let t = R::load(s, factor(l));
                    for (b, sum) in sums[0].iter_mut().enumerate() {
                        *sum = R::neg_fma(s, t, R::load(s, at(l, b)), *sum);
                    }
                }
                let minus = R::splat(s, -R::ONE);
                for b in 0..B {
                    let mut sum = sums[0][b];
                    for more in sums.iter().skip(1) {
                        sum = R::neg_fma(s, minus, more[b], sum);
                    }
                    if !self.unit {
                        sum = R::quotient(s, sum, R::load(s, factor(i)));
                    }
                    R::store(s, at(i, b), sum);
                }
            }
        }
    }
}
