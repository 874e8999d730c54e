//! Cholesky on the CPU: batches of small matrices with a matrix in each lane, large ones by faer.

use crate::lanes::{Entry, Mat, MatTo, Part, Real, by_tiles, each_float, gather, grain, scatter, threads_within};
use crate::status::NOT_FINITE;
use crate::system::System;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{Result, Tensor};
use std::ops::Range;

/// The largest order whose batches are interleaved.
const SMALL: usize = 32;
/// Rows that are computed together, so that what they share is loaded once.
const ROWS: usize = 4;

pub(super) fn cholesky(upper: bool, [count, n]: [usize; 2], a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [l, status] = outputs else { unreachable!("the outputs were checked") };
    let status = status.as_mut_slice::<i32>()?;
    if n == 0 || count == 0 {
        status.fill(0);
        return Ok(());
    }
    each_float!(a.dtype(), T => {
        factor::<T>(upper, [count, n], a.as_slice()?, l.as_mut_slice()?, status);
    });
    Ok(())
}

fn factor<E: Entry>(upper: bool, [count, n]: [usize; 2], a: &[E], l: &mut [E], status: &mut [i32]) {
    let size = n * n;
    let (factors, statuses) = (Shared::new(l), Shared::new(status));
    let small = n <= SMALL;
    let flops = n * n * n / if small { 24 } else { 6 };
    parallel::ranges(count, grain(flops, if small { MAX_LANES } else { 1 }), |range| {
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let (l, status) =
            unsafe { (factors.slice(range.start * size..range.end * size), statuses.slice(range.clone())) };
        let a = &a[range.start * size..range.end * size];
        if small {
            // A closure would not be compiled with the level's instructions: the memory comes from outside.
            E::Real::scratch(size * MAX_LANES, |work| dispatch(Interleaved { n, upper, a, l, status, work }));
        } else {
            let threads = threads_within(count, n);
            E::Real::scratch(size, |work| {
                for i in 0..range.len() {
                    let (a, l) = (&a[i * size..][..size], &mut l[i * size..][..size]);
                    status[i] = one(n, upper, a, l, work, threads);
                }
            });
        }
    });
}

/// Factors a matrix by faer, which likes columns: our rows of the upper triangle are its columns of the lower one.
fn one<E: Entry>(n: usize, upper: bool, a: &[E], l: &mut [E], work: &mut [E::Real], threads: usize) -> i32 {
    let mut sound = true;
    if upper {
        for (i, (to, from)) in work.chunks_exact_mut(n).zip(a.chunks_exact(n)).enumerate() {
            for (to, from) in to[i..].iter_mut().zip(&from[i..]) {
                *to = from.real();
                sound &= to.finite();
            }
        }
    } else {
        by_tiles([n, n], |i, j| {
            if j <= i {
                let x = a[i * n + j].real();
                sound &= x.finite();
                work[j * n + i] = x;
            }
        });
    }
    let found = if sound { E::Real::cholesky(n, work, threads) } else { Ok(()) };
    match found {
        _ if !sound => {
            l.fill(E::of(E::Real::NAN));
            NOT_FINITE
        }
        Err(order) => {
            l.fill(E::of(E::Real::NAN));
            order as i32
        }
        Ok(()) => {
            by_tiles([n, n], |i, j| {
                let (row, column) = if upper { (j, i) } else { (i, j) };
                l[i * n + j] = E::of(if column <= row { work[column * n + row] } else { E::Real::default() });
            });
            0
        }
    }
}

struct Interleaved<'a, E: Entry> {
    n: usize,
    upper: bool,
    a: &'a [E],
    l: &'a mut [E],
    status: &'a mut [i32],
    work: &'a mut [E::Real],
}

impl<E: Entry> Kernel for Interleaved<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { n, upper, a, l, status, work } = self;
        let (size, lanes) = (n * n, E::Real::lanes::<S>());
            for first in (0..status.len()).step_by(lanes) {
                let group = lanes.min(status.len() - first);
                let part = if upper { Part::Upper } else { Part::Lower };
                let bad = gather::<S, E>(a, first, [n, n], work, part);
                let mut orders = [0i32; MAX_LANES];
                // Element (i, j) of the lower triangle is at i·n + j, or for an upper one at j·n + i.
                let strides = if upper { [lanes, n * lanes] } else { [n * lanes, lanes] };
                // SAFETY: `work` holds n·n vectors.
                unsafe { factor_lanes::<S, E::Real>(s, n, work.as_mut_ptr(), strides, &mut orders) };
                let mut failed = bad;
                for lane in 0..group {
                    let sound = bad >> lane & 1 == 0;
                    status[first + lane] = if sound { orders[lane] } else { NOT_FINITE };
                    failed |= u32::from(orders[lane] != 0) << lane;
                }
                scatter::<S, E>(work, [n, n], &mut l[first * size..(first + group) * size], part, failed);
            }
    }
}

/// `L` from the lower triangle, column by column: each element minus the product of the rows before it.
///
/// # Safety
/// `w` holds `n·n` vectors at these strides.
#[inline(always)]
unsafe fn factor_lanes<S: Simd, R: Real>(
    s: S,
    n: usize,
    w: *mut R,
    [row, column]: [usize; 2],
    orders: &mut [i32; MAX_LANES],
) {
    let lanes = R::lanes::<S>();
    for j in 0..n {
        // SAFETY (this block): all indices are below n.
        unsafe {
            sums::<S, R, 1>(s, w, [row, column], j, j);
            let diagonal = w.add(j * row + j * column);
            for lane in 0..lanes {
                let pivot = *diagonal.add(lane);
                let positive = pivot > R::default();
                if !positive && orders[lane] == 0 {
                    orders[lane] = j as i32 + 1;
                }
                *diagonal.add(lane) = if positive { pivot.root() } else { R::ONE };
            }
            let mut i = j + 1;
            while i + ROWS <= n {
                sums::<S, R, ROWS>(s, w, [row, column], i, j);
                i += ROWS;
            }
            while i < n {
                sums::<S, R, 1>(s, w, [row, column], i, j);
                i += 1;
            }
            let root = R::load(s, diagonal);
            for i in j + 1..n {
                let at = w.add(i * row + j * column);
                R::store(s, at, R::quotient(s, R::load(s, at), root));
            }
        }
    }
}

/// Elements (i…i+N, j) minus the products of their rows with row j, up to column j.
///
/// # Safety
/// `w` holds the vectors of these rows.
#[inline(always)]
unsafe fn sums<S: Simd, R: Real, const N: usize>(s: S, w: *mut R, [row, column]: [usize; 2], i: usize, j: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums: [R::V<S>; N] = std::array::from_fn(|r| R::load(s, w.add((i + r) * row + j * column)));
        for k in 0..j {
            let other = R::load(s, w.add(j * row + k * column));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = R::neg_fma(s, other, R::load(s, w.add((i + r) * row + k * column)), *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            R::store(s, w.add((i + r) * row + j * column), sum);
        }
    }
}

pub(super) fn solve(upper: bool, system: System, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    let status = status.as_mut_slice::<i32>()?;
    status.fill(0);
    if system.count == 0 || system.n == 0 {
        return Ok(());
    }
    each_float!(inputs[0].dtype(), T => {
        substitute::<T>(upper, system, inputs[0].as_slice()?, inputs[1].as_slice()?, x.as_mut_slice()?, status);
    });
    Ok(())
}

fn substitute<E: Entry>(upper: bool, system: System, l: &[E], b: &[E], x: &mut [E], status: &mut [i32]) {
    let System { count, n, k } = system;
    let [matrix, sides] = system.sizes();
    let (solutions, statuses) = (Shared::new(x), Shared::new(status));
    parallel::ranges(count, grain(n * n * k, 1), |range: Range<usize>| {
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let (x, status) =
            unsafe { (solutions.slice(range.start * sides..range.end * sides), statuses.slice(range.clone())) };
        let threads = threads_within(count, n);
        E::Real::scratch(matrix + sides, |work| {
            for (i, index) in range.enumerate() {
                let (triangle, right) = work.split_at_mut(matrix);
                let (l, b) = (&l[index * matrix..][..matrix], &b[index * sides..][..sides]);
                let mut found = 0;
                for r in 0..n {
                    for c in 0..n {
                        let inside = if upper { c >= r } else { c <= r };
                        let value = if inside { l[r * n + c].real() } else { E::Real::default() };
                        if !value.finite() {
                            found = NOT_FINITE;
                        }
                        triangle[r * n + c] = value;
                    }
                    if found == 0 && triangle[r * n + r] == E::Real::default() {
                        found = r as i32 + 1;
                    }
                }
                for (to, b) in right.iter_mut().zip(b) {
                    *to = b.real();
                    if !to.finite() {
                        found = NOT_FINITE;
                    }
                }
                // A non-finite element after a zero on the diagonal counts first.
                if triangle.iter().any(|t| !t.finite()) {
                    found = NOT_FINITE;
                }
                status[i] = found;
                let x = &mut x[i * sides..][..sides];
                if found != 0 {
                    x.fill(E::of(E::Real::NAN));
                    continue;
                }
                let rows = Mat { p: triangle.as_ptr(), extents: [n, n], strides: [n as isize, 1] };
                let columns = Mat { strides: [1, n as isize], ..rows };
                let (lower, other) = if upper { (columns, rows) } else { (rows, columns) };
                let right = MatTo { p: right.as_mut_ptr(), extents: [n, k], strides: [k as isize, 1] };
                E::Real::triangular(lower, false, false, right, threads);
                E::Real::triangular(other, false, true, right, threads);
                for (e, x) in x.iter_mut().enumerate() {
                    // SAFETY: the right-hand sides have as many elements.
                    *x = E::of(unsafe { *right.p.add(e) });
                }
            }
        });
    });
}
