//! Cholesky on the CPU: batches of small matrices with a matrix in each lane, larger ones by rows.

use crate::eliminate::{self, Rows, Threads, padded, shared};
use crate::blocks::Place;
use crate::lanes::{Entry, Part, Real, each_float, gather, grain, scatter, transpose};
use crate::status::NOT_FINITE;
use crate::system::System;
use crate::triangles::{self, Form};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{Result, Tensor};
use std::ops::Range;

/// The largest order whose batches are interleaved: on two cores with AVX-512, 500 of 16×16 took 119 µs so and 181 µs by
/// rows, 10000 of 32×32 9.4 and 11.8 to 15.1 ms.
const SMALL: usize = 32;
/// Matrices from which it pays, and the order up to which it does in any case.
const LEAST_MATRICES: usize = 4;
const ALWAYS: usize = 8;
/// The largest order whose lower triangle is factored as it is.
const AS_GIVEN: usize = 96;
/// Rows of a lower triangle that are transposed together.
const STRIPE: usize = 32;
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
    let small = n <= SMALL && (count >= LEAST_MATRICES || n <= ALWAYS);
    // By rows, each step costs as much as some hundred operations.
    let flops = if small { n * n * n / 24 } else { n * n * n / 6 + 300 * n };
    parallel::ranges(count, grain(flops, if small { MAX_LANES } else { 1 }), |range| {
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let (l, status) =
            unsafe { (factors.slice(range.start * size..range.end * size), statuses.slice(range.clone())) };
        let a = &a[range.start * size..range.end * size];
        if small {
            // A closure would not be compiled with the level's instructions: the memory comes from outside.
            E::Real::scratch(size * MAX_LANES, |work| dispatch(Interleaved { n, upper, a, l, status, work }));
        } else {
            let threads = shared(count, n);
            E::Real::scratch(n * padded(n), |work| {
                for i in 0..range.len() {
                    let (a, l) = (&a[i * size..][..size], &mut l[i * size..][..size]);
                    status[i] = one(n, upper, a, l, work, threads);
                }
            });
        }
    });
}

/// Factors a matrix by rows; a large lower triangle becomes an upper one, whose rows need no transposition.
fn one<E: Entry>(n: usize, upper: bool, a: &[E], l: &mut [E], work: &mut [E::Real], threads: Threads) -> i32 {
    let (stride, zero) = (padded(n), E::Real::default());
    let turned = !upper && n > AS_GIVEN;
    let mut sound = true;
    if turned {
        for (i, row) in a.chunks_exact(n).enumerate() {
            sound &= row[..=i].iter().fold(true, |sound, x| sound & x.real().finite());
        }
        for_stripes(n, |rows| {
            let to = &mut work[rows.start..];
            transpose([rows.len(), rows.end], (&a[rows.start * n..], n), (to, stride), |x| x.real());
        });
        work.chunks_exact_mut(stride).for_each(|row| row[n..].fill(zero));
    } else {
        let part = if upper { Part::Upper } else { Part::Lower };
        for (i, (to, from)) in work.chunks_exact_mut(stride).zip(a.chunks_exact(n)).enumerate() {
            let columns = part.columns(i, n);
            to[..columns.start].fill(zero);
            to[columns.end..].fill(zero);
            for (to, from) in to[columns.clone()].iter_mut().zip(&from[columns]) {
                *to = from.real();
                sound &= to.finite();
            }
        }
    }
    let rows = Rows { p: work.as_mut_ptr(), stride, width: n };
    // SAFETY: the memory has `n` rows of whole vectors.
    let found = if sound { unsafe { eliminate::cholesky(upper || turned, rows, threads) } } else { Ok(()) };
    if !sound || found.is_err() {
        l.fill(E::of(E::Real::NAN));
        return found.map_or_else(|order| order as i32, |()| NOT_FINITE);
    }
    if turned {
        for_stripes(n, |rows| {
            let (from, to) = (&work[rows.start..], &mut l[rows.start * n..]);
            transpose([rows.end, rows.len()], (from, stride), (to, n), E::of);
        });
        l.chunks_exact_mut(n).enumerate().for_each(|(i, row)| row[i + 1..].fill(E::of(zero)));
    } else {
        let part = if upper { Part::Upper } else { Part::Lower };
        for (i, (to, from)) in l.chunks_exact_mut(n).zip(work.chunks_exact(stride)).enumerate() {
            let columns = part.columns(i, n);
            to.fill(E::of(zero));
            to[columns.clone()].iter_mut().zip(&from[columns]).for_each(|(to, from)| *to = E::of(*from));
        }
    }
    0
}

/// Stripes of rows of a triangle, which end at the diagonal.
fn for_stripes(n: usize, mut f: impl FnMut(Range<usize>)) {
    (0..n).step_by(STRIPE).for_each(|start| f(start..(start + STRIPE).min(n)));
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
                let bad = gather::<S, E>(s, a, first, [n, n], work, part);
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
                scatter::<S, E>(s, work, [n, n], &mut l[first * size..(first + group) * size], part, failed);
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

/// `L·Lᵀ·X = B`, for an upper factor `Uᵀ·U·X = B`.
pub(super) fn solve(upper: bool, system: System, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    let status = status.as_mut_slice::<i32>()?;
    let rows = Place { start: 0, row: system.n, column: 1 };
    let (part, triangle) = if upper { (Part::Upper, rows.transposed()) } else { (Part::Lower, rows) };
    let sides = Place { start: 0, row: system.k, column: 1 };
    let form = Form { system, part, unit: false, triangle, upper: false, sides, both: true, alpha: 1.0 };
    each_float!(inputs[0].dtype(), T => {
        triangles::solve::<T>(form, inputs[0].as_slice()?, inputs[1].as_slice()?, x.as_mut_slice()?, status);
    });
    Ok(())
}
