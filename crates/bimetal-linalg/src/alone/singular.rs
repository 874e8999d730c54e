//! Singular values and vectors of one matrix of f32.

use super::back::{Reflectors, Vectors};
use super::bidiagonal::{self, Rectangle};
use super::counts::{Sturm, prepare};
use super::divide::{Bands, Room};
use super::line;
use super::turned::Turned;
use super::values::eigenvalues;
use crate::interleaved::scale_of;
use crate::qr::real::{Memory, Stored};
use bimetal_core::cpu::simd::{Level, dispatch_at};

/// Smaller extent from which threads share the work.
const THREADS_FROM: usize = 100;

/// Smaller extent from which bisection in lanes is faster than an iteration in f64, which gives integers as they are.
const COUNTS_FROM: usize = 24;

/// The vectors that are wanted: `m`×`k` and `k`×`n` for a matrix of `m`×`n` elements, whose smaller extent is `k`.
pub(crate) struct Wanted<'a, E> {
    pub(crate) u: &'a mut [E],
    pub(crate) vh: &'a mut [E],
}

/// Decomposes the matrix `a` of finite elements and at least one row and one column: values in descending order, and vectors if
/// there is room for them; if `alone`, threads share the work. Whether all iterations ended.
pub(crate) fn decompose<E: Stored<Work = f32>>(
    a: &[E],
    [rows, columns]: [usize; 2],
    values: &mut [E],
    vectors: Option<Wanted<E>>,
    alone: bool,
) -> bool {
    let (m, n) = (rows.max(columns), rows.min(columns));
    let (long, across, shared) = (line(m), line(n), alone && n >= THREADS_FROM);
    let matrices = if vectors.is_some() { 5 } else { 1 };
    let transposed = if rows >= columns { m * across } else { 0 };
    let sides = if vectors.is_some() { m * across + n * long } else { 0 };
    let working = (matrices - 1) * n * across + transposed.max(sides);
    let mut memory =
        Memory::<f32>::take(n * long + n * across + 4 * across + bidiagonal::scratch(long, across) + working);
    let (x, rest) = memory.slice().split_at_mut(n * long);
    let (right, rest) = rest.split_at_mut(n * across);
    let (bands, rest) = rest.split_at_mut(4 * across);
    let (spare, working) = rest.split_at_mut(bidiagonal::scratch(long, across));
    let scale = scale_of(a.iter().fold(0.0f32, |most, x| most.max(x.widen().abs())));
    gather(a, [rows, columns], x, long, working, across, scale);
    let [d, e, left_tau, right_tau] =
        bands.chunks_exact_mut(across).collect::<Vec<_>>().try_into().expect("four lines");
    let (d, e) = (&mut d[..n], &mut e[..n]);
    Rectangle { a: x, m, n, line: long, rows: right, across, d, e, tau: [&mut *left_tau, &mut *right_tau] }
        .reduce(spare, shared);
    let Some(Wanted { u, vh }) = vectors else { return values_alone(d, e, scale, values, shared) };
    let (matrices, sides) = working.split_at_mut(4 * n * across);
    let [rights, lefts, mix, spare] =
        matrices.chunks_exact_mut(n * across).collect::<Vec<_>>().try_into().expect("four matrices");
    let room = Room { right: &mut *rights, left: &mut *lefts, spare, mix, line: across };
    let Some(mut found) = (Bands { d, e }).singular(room, shared) else { return false };
    found.order.reverse();
    for (out, &row) in values.iter_mut().zip(&found.order) {
        *out = E::narrow(found.values[row as usize] / scale);
    }
    let long_side = Reflectors { v: x, line: long, tau: &left_tau[..n], len: m };
    let short_side = Reflectors { v: right, line: across, tau: &right_tau[..n - 1], len: n };
    let (long_vectors, short_vectors) = (
        Found { rows: lefts, n, line: across, order: &found.order },
        Found { rows: rights, n, line: across, order: &found.order },
    );
    let (as_columns, as_rows) = sides.split_at_mut(m * across);
    if rows >= columns {
        long_vectors.columns(long_side, 0, as_columns, u, shared);
        short_vectors.rows(short_side, 1, as_rows, vh, shared);
    } else {
        short_vectors.columns(short_side, 1, as_columns, u, shared);
        long_vectors.rows(long_side, 0, as_rows, vh, shared);
    }
    true
}

/// The columns of a matrix that is not wider than it is high, or the rows of one that is, scaled, as lines with zeros after them.
fn gather<E: Stored<Work = f32>>(
    a: &[E],
    [rows, columns]: [usize; 2],
    x: &mut [f32],
    line: usize,
    working: &mut [f32],
    across: usize,
    scale: f32,
) {
    if rows < columns {
        for (to, from) in x.chunks_exact_mut(line).zip(a.chunks_exact(columns)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen() * scale);
            to[columns..].fill(0.0);
        }
        return;
    }
    let copy = &mut working[..rows * across];
    for (to, from) in copy.chunks_exact_mut(across).zip(a.chunks_exact(columns)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen() * scale);
    }
    let order: Vec<u32> = (0..rows as u32).collect();
    let turned = Turned { from: copy, line: across, order: &order, rows: columns, to: &mut *x, step: line };
    dispatch_at(Level::current(), turned);
    x.chunks_exact_mut(line).for_each(|line| line[rows..].fill(0.0));
}

/// Singular values alone: the nonnegative eigenvalues of `[[0, B], [Bᵀ, 0]]`, which is tridiagonal in another order.
fn values_alone<E: Stored<Work = f32>>(d: &[f32], e: &[f32], scale: f32, values: &mut [E], shared: bool) -> bool {
    let n = d.len();
    if e[..n - 1].iter().all(|e| *e == 0.0) {
        let mut found: Vec<f32> = d.iter().map(|d| d.abs()).collect();
        found.sort_unstable_by(|a, b| b.total_cmp(a));
        values.iter_mut().zip(found).for_each(|(out, x)| *out = E::narrow(x / scale));
        return true;
    }
    let beside: Vec<f32> = d.iter().zip(e).flat_map(|(d, e)| [*d, *e]).collect();
    if n < COUNTS_FROM {
        let mut diagonal = vec![0.0f64; 2 * n];
        let mut beside: Vec<f64> = beside.into_iter().map(f64::from).collect();
        let done = eigenvalues(&mut diagonal, &mut beside);
        for (out, x) in values.iter_mut().zip(diagonal.iter().rev()) {
            *out = E::narrow((x.max(0.0) / f64::from(scale)) as f32);
        }
        return done;
    }
    let (diagonal, mut found) = (vec![0.0; 2 * n], vec![0.0; n]);
    let (squares, [_, high]) = prepare(&diagonal, &beside);
    Sturm { d: &diagonal, squares: &squares, bounds: [0.0, high], first: n }.find(&mut found, shared);
    values.iter_mut().zip(found.iter().rev()).for_each(|(out, x)| *out = E::narrow(x / scale));
    true
}

/// Vectors of the bidiagonal matrix, as rows, and their order.
struct Found<'a> {
    rows: &'a [f32],
    n: usize,
    line: usize,
    order: &'a [u32],
}

impl Found<'_> {
    /// The vectors of the matrix as columns of `out`.
    fn columns<E: Stored<Work = f32>>(
        &self,
        back: Reflectors,
        offset: usize,
        x: &mut [f32],
        out: &mut [E],
        shared: bool,
    ) {
        let Self { rows: from, n, line, order } = *self;
        let x = &mut x[..back.len * line];
        dispatch_at(Level::current(), Turned { from, line, order, rows: n, to: &mut *x, step: line });
        x[n * line..].fill(0.0);
        back.upwards(x, Vectors::Columns, [n, line], offset, shared);
        for (to, from) in out.chunks_exact_mut(n).zip(x.chunks_exact(line)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(*from));
        }
    }

    /// The vectors of the matrix as rows of `out`.
    fn rows<E: Stored<Work = f32>>(&self, back: Reflectors, offset: usize, x: &mut [f32], out: &mut [E], shared: bool) {
        let Self { rows: from, n, line, order } = *self;
        let (len, long) = (back.len, super::line(back.len));
        for (to, &row) in x.chunks_exact_mut(long).zip(order) {
            to[..n].copy_from_slice(&from[row as usize * line..][..n]);
            to[n..].fill(0.0);
        }
        back.upwards(&mut x[..n * long], Vectors::Rows, [n, long], offset, shared);
        for (to, from) in out.chunks_exact_mut(len).zip(x.chunks_exact(long)) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(*from));
        }
    }
}
