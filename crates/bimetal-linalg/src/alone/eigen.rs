//! Eigenvalues and eigenvectors of one symmetric matrix of f32.

use super::back::Reflectors;
use super::counts::{Sturm, prepare};
use super::divide::{Bands, Room};
use super::line;
use super::tridiagonal::{self, Symmetric};
use super::turned::Turned;
use super::values::eigenvalues;
use crate::interleaved::scale_of;
use crate::qr::real::{Memory, Stored};
use bimetal_core::cpu::simd::{Level, dispatch_at};

/// Order from which threads share the work.
const THREADS_FROM: usize = 100;

/// Order from which bisection in lanes is faster than an iteration in f64, which gives integers as they are.
const COUNTS_FROM: usize = 48;

/// Decomposes the matrix of order `n` of which `row(i, out)` gives the lower triangle's row `i`: values in ascending order, and
/// vectors as columns if there is room for them; if `alone`, threads share the work. Whether all iterations ended. The
/// elements are finite.
pub(crate) fn decompose<E: Stored<Work = f32>>(
    n: usize,
    row: impl Fn(usize, &mut [f32]),
    values: &mut [E],
    vectors: Option<&mut [E]>,
    alone: bool,
) -> bool {
    if n == 0 {
        return true;
    }
    let (line, shared) = (line(n), alone && n >= THREADS_FROM);
    let matrices = if vectors.is_some() { 4 } else { 1 };
    let mut memory = Memory::<f32>::take(matrices * n * line + 3 * line + tridiagonal::scratch(line));
    let (a, rest) = memory.slice().split_at_mut(n * line);
    let (room, rest) = rest.split_at_mut((matrices - 1) * n * line);
    let (bands, spare) = rest.split_at_mut(3 * line);
    for (i, to) in a.chunks_exact_mut(line).enumerate() {
        row(i, &mut to[..=i]);
        to[i + 1..].fill(0.0);
    }
    let scale = scale_of((0..n).fold(0.0f32, |m, i| a[i * line..][..=i].iter().fold(m, |m, x| m.max(x.abs()))));
    complete(a, n, line, scale);
    let [d, e, tau] = bands.chunks_exact_mut(line).collect::<Vec<_>>().try_into().expect("three lines");
    Symmetric { a, n, line, d, e, tau }.reduce(spare, shared);
    let (d, e) = (&mut d[..n], &mut e[..n]);
    let Some(vectors) = vectors else {
        let mut found = vec![0.0; n];
        let done = values_alone(d, e, &mut found, shared);
        values.iter_mut().zip(found).for_each(|(out, x)| *out = E::narrow(x / scale));
        return done;
    };
    let [right, mix, spare] = room.chunks_exact_mut(n * line).collect::<Vec<_>>().try_into().expect("three matrices");
    let room = Room { right: &mut *right, left: &mut [], spare, mix: &mut *mix, line };
    let Some(found) = (Bands { d, e }).eigen(room, shared) else { return false };
    for (out, &row) in values.iter_mut().zip(&found.order) {
        *out = E::narrow(found.values[row as usize] / scale);
    }
    dispatch_at(Level::current(), Turned { from: right, line, order: &found.order, rows: n, to: mix, step: line });
    Reflectors { v: a, line, tau, len: n }.downwards(mix, [n, line], shared);
    for (to, from) in vectors.chunks_exact_mut(n).zip(mix.chunks_exact(line)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(*from));
    }
    true
}

/// Eigenvalues of the tridiagonal matrix; whether the iteration ended.
fn values_alone(d: &[f32], e: &[f32], values: &mut [f32], shared: bool) -> bool {
    if e[..d.len() - 1].iter().all(|e| *e == 0.0) {
        values.copy_from_slice(d);
        values.sort_unstable_by(f32::total_cmp);
        return true;
    }
    if d.len() < COUNTS_FROM {
        let [mut d, mut e] = [d, e].map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let done = eigenvalues(&mut d, &mut e);
        values.iter_mut().zip(d).for_each(|(out, x)| *out = x as f32);
        return done;
    }
    let (squares, bounds) = prepare(d, e);
    Sturm { d, squares: &squares, bounds, first: 0 }.find(values, shared);
    true
}

/// Scales the lower triangle and completes the squares on the diagonal.
fn complete(a: &mut [f32], n: usize, line: usize, scale: f32) {
    let side = bimetal_core::cpu::simd::MAX_LANES;
    if scale != 1.0 {
        a.iter_mut().for_each(|x| *x *= scale);
    }
    for i in 0..n {
        for j in i / side * side..i {
            a[j * line + i] = a[i * line + j];
        }
    }
}
