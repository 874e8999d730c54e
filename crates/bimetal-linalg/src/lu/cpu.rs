//! LU on the CPU: batches of small matrices with a matrix in each lane, larger ones by rows.

use super::Kind;
use crate::eliminate::{self, Rows, Threads, Triangle, padded, shared};
use crate::lanes::{Entry, Part, Real, each_float, gather, grain, scatter};
use crate::blocks::Place;
use crate::status::NOT_FINITE;
use crate::triangles::Lanes;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{Result, Tensor};

/// The largest extent of matrices that are interleaved, and the most right-hand sides beside them.
const SMALL: usize = 32;
/// The largest extent where the multipliers or all columns of the inverse are wanted: 10000 of 32×32 took 12.4 ms by rows and
/// 13.5 to 17 ms in lanes, their inverses 19.4 and 24 ms; 500 of 16×16 192 and 132 µs, 305 and 200 µs.
const MOST_WITH_ALL: usize = 16;
/// Matrices of f32 from which it pays, and the extent up to which it does in any case.
const LEAST_MATRICES: usize = 4;
const ALWAYS: usize = 8;

/// `count` matrices of `m`×`n` with `k` right-hand sides.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    pub(super) count: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// What becomes of a matrix: outputs for it alone, or for several.
struct Outputs<'a, E> {
    /// Factors, solutions, inverses, determinants or signs.
    first: &'a mut [E],
    /// Logarithms.
    second: &'a mut [E],
    pivots: &'a mut [i32],
    status: &'a mut [i32],
}

pub(super) fn run(kind: Kind, extents: Extents, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    each_float!(inputs[0].dtype(), T => {
        let (mut none, mut no_pivots) = ([], []);
        let (first, rest) = outputs.split_first_mut().expect("the outputs were checked");
        let (status, rest) = rest.split_last_mut().expect("the outputs were checked");
        let middle = rest.first_mut();
        let (second, pivots): (&mut [T], &mut [i32]) = match (kind, middle) {
            (Kind::Lu, Some(pivots)) => (&mut none, pivots.as_mut_slice()?),
            (_, Some(second)) => (second.as_mut_slice()?, &mut no_pivots),
            _ => (&mut none, &mut no_pivots),
        };
        let outputs = Outputs { first: first.as_mut_slice::<T>()?, second, pivots, status: status.as_mut_slice()? };
        let sides = match inputs.get(1) {
            Some(b) => b.as_slice::<T>()?,
            None => &[],
        };
        batch(kind, extents, inputs[0].as_slice::<T>()?, sides, outputs);
    });
    Ok(())
}

fn batch<E: Entry>(kind: Kind, extents: Extents, a: &[E], b: &[E], outputs: Outputs<E>) {
    let Extents { count, m, n, k } = extents;
    let r = m.min(n);
    if count == 0 {
        return;
    }
    let (first_size, second_size, pivots_size) =
        (outputs.first.len() / count, outputs.second.len() / count, outputs.pivots.len() / count);
    let (first, second) = (Shared::new(outputs.first), Shared::new(outputs.second));
    let (pivots, status) = (Shared::new(outputs.pivots), Shared::new(outputs.status));
    let most = if matches!(kind, Kind::Lu | Kind::Inv) { MOST_WITH_ALL } else { SMALL };
    let order = if size_of::<E::Real>() == 4 && count >= LEAST_MATRICES { most } else { ALWAYS };
    let small = m.max(n) <= order && k <= order && m * n > 0;
    let flops = m * n * r / 3 + n * n * k;
    // By rows, each step costs as much as some hundred operations.
    let (flops, group) = if small { (flops / 8, MAX_LANES) } else { (flops / 2 + 400 * r, 1) };
    parallel::ranges(count, grain(flops, group), |range| {
        let part = |size: usize| range.start * size..range.end * size;
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let outputs = unsafe {
            Outputs {
                first: first.slice(part(first_size)),
                second: second.slice(part(second_size)),
                pivots: pivots.slice(part(pivots_size)),
                status: status.slice(part(1)),
            }
        };
        let (a, b) = (&a[part(m * n)], if b.is_empty() { b } else { &b[part(n * k)] });
        if small {
            E::Real::scratch((m * n + n * k + n + k) * MAX_LANES, |work| {
                dispatch(Interleaved { kind, extents, a, b, outputs, work });
            });
        } else {
            each(kind, Extents { count: range.len(), ..extents }, shared(count, m.min(n)), a, b, outputs);
        }
    });
}

/// A matrix after the other, by rows.
fn each<E: Entry>(kind: Kind, extents: Extents, threads: Threads, a: &[E], b: &[E], outputs: Outputs<E>) {
    let Extents { count, m, n, k } = extents;
    let (r, stride, across, zero) = (m.min(n), padded(n), padded(k), E::Real::default());
    let mut pivots = vec![0; r];
    E::Real::scratch(m * stride + n * across, |work| {
        let (lu, x) = work.split_at_mut(m * stride);
        for i in 0..count {
            let mut sound = load(&a[i * m * n..][..m * n], n, lu, stride);
            if kind == Kind::Solve {
                sound &= load(&b[i * n * k..][..n * k], k, x, across);
            } else if k > 0 {
                x.fill(zero);
                (0..n).for_each(|i| x[i * across + i] = E::Real::ONE);
            }
            let rows = Rows { p: lu.as_mut_ptr(), stride, width: n };
            let sides = (k > 0).then_some(Rows { p: x.as_mut_ptr(), stride: across, width: k });
            // SAFETY: the memory has rows of whole vectors, of finite elements.
            let mut info = if sound { unsafe { eliminate::lu(m, rows, sides, &mut pivots, threads) } } else { NOT_FINITE };
            let size = outputs.first.len() / count;
            let out = &mut outputs.first[i * size..][..size];
            match kind {
                Kind::Lu => {
                    let places = outputs.pivots[i * r..][..r].iter_mut();
                    places.zip(&pivots).for_each(|(to, p)| *to = if sound { *p as i32 + 1 } else { 0 });
                    store(lu, stride, out, n);
                }
                Kind::Solve | Kind::Inv if info == 0 => {
                    if let Some(sides) = sides {
                        let t = Triangle { p: rows.p, row: stride, column: 1, n, unit: false, upper: true };
                        // SAFETY: as above.
                        unsafe { eliminate::substitute(t, sides, threads) };
                        store(x, across, out, k);
                    }
                }
                Kind::Solve | Kind::Inv => {}
                Kind::Det | Kind::Slogdet => {
                    let diagonal = |j: usize| lu[j * stride + j];
                    let (sign, det, log) = determinant(n, diagonal, |j| pivots[j] != j);
                    out[0] = E::of(if kind == Kind::Det { det } else { sign });
                    if kind == Kind::Slogdet {
                        outputs.second[i] = E::of(if sound { log } else { E::Real::NAN });
                    }
                    info = info.min(0);
                }
            }
            if info < 0 || info > 0 && kind != Kind::Lu {
                out.fill(E::of(E::Real::NAN));
            }
            outputs.status[i] = info;
        }
    });
}

/// Copies rows of `n` into padded ones; whether all elements are finite.
fn load<E: Entry>(from: &[E], n: usize, to: &mut [E::Real], stride: usize) -> bool {
    let mut sound = true;
    for (to, from) in to.chunks_exact_mut(stride.max(1)).zip(from.chunks_exact(n.max(1))) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.real();
            sound &= to.finite();
        }
        to[n..].fill(E::Real::default());
    }
    sound
}

/// The reverse of [`load`].
fn store<E: Entry>(from: &[E::Real], stride: usize, to: &mut [E], n: usize) {
    for (to, from) in to.chunks_exact_mut(n.max(1)).zip(from.chunks_exact(stride.max(1))) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = E::of(*from));
    }
}

/// The sign, the determinant and the logarithm of its magnitude; a power of two is kept apart, so that only the result can
/// overflow.
#[inline(always)]
fn determinant<R: Real>(n: usize, diagonal: impl Fn(usize) -> R, exchanged: impl Fn(usize) -> bool) -> (R, R, R) {
    let (mut sign, mut product, mut power, mut log) = (1.0, 1.0, 0i32, 0.0);
    for j in 0..n {
        let u = diagonal(j).to_f64();
        sign *= if u == 0.0 { 0.0 } else { u.signum() } * if exchanged(j) { -1.0 } else { 1.0 };
        log += u.abs().ln();
        product *= u.abs();
        while product >= 1e30 {
            (product, power) = (product * 2f64.powi(-64), power + 64);
        }
        while product > 0.0 && product < 1e-30 {
            (product, power) = (product * 2f64.powi(64), power - 64);
        }
    }
    let half = power / 2;
    let value = sign * product * 2f64.powi(half) * 2f64.powi(power - half);
    (R::of_f64(sign), R::of_f64(value), R::of_f64(log))
}

struct Interleaved<'a, E: Entry> {
    kind: Kind,
    extents: Extents,
    a: &'a [E],
    b: &'a [E],
    outputs: Outputs<'a, E>,
    work: &'a mut [E::Real],
}

impl<E: Entry> Kernel for Interleaved<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kind, extents: Extents { m, n, k, .. }, a, b, outputs, work } = self;
        let (r, lanes) = (m.min(n), E::Real::lanes::<S>());
        let Outputs { first: out, second, pivots, status } = outputs;
        for first in (0..status.len()).step_by(lanes) {
            let group = lanes.min(status.len() - first);
            let (matrix, rest) = work.split_at_mut(m * n * lanes);
            let (sides, line) = rest.split_at_mut(n * k * lanes);
            let line = line.as_mut_ptr();
            let mut bad = gather::<S, E>(s, a, first, [m, n], matrix, Part::All);
            if kind == Kind::Solve && k > 0 {
                bad |= gather::<S, E>(s, b, first, [n, k], sides, Part::All);
            } else if kind == Kind::Inv {
                sides[..n * k * lanes].fill(E::Real::default());
                (0..n).for_each(|i| sides[(i * k + i) * lanes..][..lanes].fill(E::Real::ONE));
            }
            let mut swaps = [[0u8; MAX_LANES]; SMALL];
            let mut info = [0i32; MAX_LANES];
            let (p, x) = (matrix.as_mut_ptr(), sides.as_mut_ptr());
            let eliminate = Eliminate { s, m, n, sides: k, w: p, x, line, keep: kind == Kind::Lu };
            // SAFETY: `matrix` holds m·n vectors, `sides` n·k, and there is a row of both.
            unsafe { eliminate.run(&mut swaps, &mut info) };
            if k > 0 {
                let [triangle, sides] = [n, k].map(|row| Place { start: 0, row, column: 1 });
                // SAFETY: as above.
                unsafe { Lanes { s, n, k, unit: false, t: p, x, sides }.pass(triangle, true) };
            }
            let mut failed = bad;
            for lane in 0..group {
                let sound = bad >> lane & 1 == 0;
                let singular = info[lane] != 0 && matches!(kind, Kind::Solve | Kind::Inv);
                failed |= u32::from(singular) << lane;
                let i = first + lane;
                let found = if matches!(kind, Kind::Det | Kind::Slogdet) { 0 } else { info[lane] };
                status[i] = if sound { found } else { NOT_FINITE };
                if kind == Kind::Lu {
                    for j in 0..r {
                        pivots[i * r + j] = if sound { i32::from(swaps[j][lane]) + 1 } else { 0 };
                    }
                }
                if matches!(kind, Kind::Det | Kind::Slogdet) {
                    let diagonal = |j: usize| matrix[(j * n + j) * lanes + lane];
                    let (sign, det, log) = determinant(n, diagonal, |j| usize::from(swaps[j][lane]) != j);
                    let value = if kind == Kind::Det { det } else { sign };
                    out[i] = E::of(if sound { value } else { E::Real::NAN });
                    if kind == Kind::Slogdet {
                        second[i] = E::of(if sound { log } else { E::Real::NAN });
                    }
                }
            }
            match kind {
                Kind::Lu => scatter::<S, E>(s, matrix, [m, n], &mut out[first * m * n..][..group * m * n], Part::All, failed),
                Kind::Solve | Kind::Inv if k > 0 => {
                    scatter::<S, E>(s, sides, [n, k], &mut out[first * n * k..][..group * n * k], Part::All, failed);
                }
                _ => {}
            }
        }
    }
}

/// Right-looking elimination of matrices in lanes, each with pivots of its own, and of the right-hand sides beside them.
struct Eliminate<S, R> {
    s: S,
    m: usize,
    n: usize,
    sides: usize,
    /// `m·n` vectors, `m·sides` and room for a row of both.
    w: *mut R,
    x: *mut R,
    line: *mut R,
    /// Whether the multipliers are wanted, in the order of the rows.
    keep: bool,
}

impl<S: Simd, R: Real> Eliminate<S, R> {
    /// Gives for each step each lane's pivot row, and for each lane the first pivot that is zero, from 1.
    ///
    /// # Safety
    /// The memory is as large.
    #[inline(always)]
    unsafe fn run(&self, swaps: &mut [[u8; MAX_LANES]; SMALL], info: &mut [i32; MAX_LANES]) {
        let Self { s, m, n, sides, w, x, line, keep } = *self;
        let lanes = R::lanes::<S>();
        // SAFETY (this function): indices are below m, n and the number of sides.
        unsafe {
            for k in 0..m.min(n) {
                let mut best = [R::splat(s, R::default()), R::splat(s, R::of_f64(k as f64))];
                for i in k..m {
                    best = R::larger(s, best, R::load(s, w.add((i * n + k) * lanes)), i);
                }
                let at = best[1];
                let mut rows = [R::default(); MAX_LANES];
                R::store(s, rows.as_mut_ptr(), at);
                // The pivots' rows, while row k stays where it is for those who get it.
                let from = if keep { 0 } else { k };
                let (row, side) = (w.add(k * n * lanes), x.wrapping_add(k * sides * lanes));
                let parts = [(row.add(from * lanes), n - from), (side, sides)];
                let pivots = [line.add(from * lanes), line.add(n * lanes)];
                for (to, (row, count)) in pivots.into_iter().zip(parts) {
                    std::ptr::copy_nonoverlapping(row, to, count * lanes);
                }
                for i in k + 1..m {
                    if !R::meets(s, at, i) {
                        continue;
                    }
                    let others = [w.add((i * n + from) * lanes), x.wrapping_add(i * sides * lanes)];
                    for ((to, other), (_, count)) in pivots.into_iter().zip(others).zip(parts) {
                        for e in (0..count * lanes).step_by(lanes) {
                            R::store(s, to.add(e), R::pick(s, at, i, R::load(s, other.add(e)), R::load(s, to.add(e))));
                        }
                    }
                }
                let pivot = line.add(k * lanes);
                for lane in 0..lanes {
                    swaps[k][lane] = rows[lane].to_f64() as u8;
                    let zero = *pivot.add(lane) == R::default();
                    info[lane] = if zero && info[lane] == 0 { k as i32 + 1 } else { info[lane] };
                    // The column below a pivot that is zero is zero as well.
                    rows[lane] = if zero { R::ONE } else { *pivot.add(lane) };
                }
                let divisor = R::load(s, rows.as_ptr());
                for i in k + 1..m {
                    let own = w.add(i * n * lanes);
                    let parts = [
                        (row.add((k + 1) * lanes), pivot.add(lanes), own.add((k + 1) * lanes), n - k - 1),
                        (side, pivots[1], x.wrapping_add(i * sides * lanes), sides),
                    ];
                    let head = own.add(k * lanes);
                    if R::meets(s, at, i) {
                        let value = R::pick(s, at, i, R::load(s, row.add(k * lanes)), R::load(s, head));
                        let factor = R::quotient(s, value, divisor);
                        R::store(s, head, factor);
                        for (row, pivot, own, count) in parts {
                            for e in (0..count * lanes).step_by(lanes) {
                                let x = R::pick(s, at, i, R::load(s, row.add(e)), R::load(s, own.add(e)));
                                R::store(s, own.add(e), R::neg_fma(s, factor, R::load(s, pivot.add(e)), x));
                            }
                        }
                        for e in (0..if keep { k * lanes } else { 0 }).step_by(lanes) {
                            let x = R::pick(s, at, i, R::load(s, row.add(e)), R::load(s, own.add(e)));
                            R::store(s, own.add(e), x);
                        }
                    } else {
                        let factor = R::quotient(s, R::load(s, head), divisor);
                        R::store(s, head, factor);
                        for (_, pivot, own, count) in parts {
                            for e in (0..count * lanes).step_by(lanes) {
                                let x = R::load(s, own.add(e));
                                R::store(s, own.add(e), R::neg_fma(s, factor, R::load(s, pivot.add(e)), x));
                            }
                        }
                    }
                }
                for (from, (row, count)) in pivots.into_iter().zip(parts) {
                    std::ptr::copy_nonoverlapping(from, row, count * lanes);
                }
            }
        }
    }
}
