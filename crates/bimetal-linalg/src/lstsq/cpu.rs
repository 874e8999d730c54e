//! Least squares on the CPU: reflectors, their transpose times `b`, and substitution.

use super::{Dims, rank_tolerance};
use crate::qr::large::{largest, width};
use crate::qr::panel::Panels;
use crate::qr::real::{Memory, Real, Stored, scale};
use crate::qr::tiles::{padded, stride};
use crate::status::NOT_FINITE;
use crate::{householder, qr};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::op::run_here;
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Columns from which right-hand sides go beside the matrix: on two cores 100 of 64x32 took 1509 µs by lanes and 734 µs so.
const BESIDE: usize = 16;

pub(super) fn solve(dims: &Dims, a: &Tensor, b: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    match a.dtype() {
        DType::F64 => solve_of::<f64>(dims, a, b, outputs),
        DType::F16 => solve_of::<f16>(dims, a, b, outputs),
        DType::BF16 => solve_of::<bf16>(dims, a, b, outputs),
        _ => solve_of::<f32>(dims, a, b, outputs),
    }
}

fn solve_of<E: Stored>(dims: &Dims, a: &Tensor, b: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()>
where
    E::Work: Scalar,
{
    let Dims { batch, m, n, p } = *dims;
    let [x, status] = outputs else { unreachable!("outputs were checked") };
    let dtype = <E::Work as Scalar>::DTYPE;
    let (tall, k) = (m.max(n), m.min(n));
    let (a, b) = (a.as_slice::<E>()?, b.as_slice::<E>()?);
    let limit = E::Work::from_f64(rank_tolerance(m, n, E::DTYPE));
    if m >= n && n >= BESIDE && p > 0 {
        let (x, status) = (Shared::new(x.as_mut_slice::<E>()?), Shared::new(status.as_mut_slice::<i32>()?));
        let shared = batch < parallel::threads();
        let one = |i: usize| {
            // SAFETY: each matrix is given out once.
            let (x, status) = unsafe { (x.slice(i * n * p..(i + 1) * n * p), status.slice(i..i + 1)) };
            let (a, b) = (&a[i * m * n..][..m * n], &b[i * m * p..][..m * p]);
            status[0] = beside(dims, a, b, x, limit, shared);
            if status[0] != 0 {
                x.fill(E::NAN);
            }
        };
        if shared {
            (0..batch).for_each(one);
        } else {
            parallel::ranges(batch, 1, |range| range.for_each(one));
        }
        return Ok(());
    }
    let mut wanted = Tensor::empty(&[batch, tall, k], dtype)?;
    for (i, matrix) in wanted.as_mut_slice::<E::Work>()?.chunks_exact_mut((m * n).max(1)).enumerate() {
        for (at, to) in matrix.iter_mut().enumerate() {
            let from = if m >= n { at } else { at % k * n + at / k };
            *to = a[i * m * n + from].widen();
        }
    }
    let mut packed = Tensor::empty(&[batch, tall, k], dtype)?;
    let mut tau = Tensor::empty(&[batch, k], dtype)?;
    let mut found = Tensor::empty(&[batch], DType::I32)?;
    run_here(&qr::reflectors(), &[&wanted], &mut [&mut packed, &mut tau, &mut found])?;
    let status = status.as_mut_slice::<i32>()?;
    let factors = packed.as_slice::<E::Work>()?;
    for ((i, status), found) in status.iter_mut().enumerate().zip(found.as_slice::<i32>()?) {
        *status = if *found == 0 { deficient(&factors[i * tall * k..], k, k, limit) } else { *found };
    }
    let mut c = Tensor::zeros(&[batch, tall, p], dtype)?;
    let right = c.as_mut_slice::<E::Work>()?;
    for i in 0..batch {
        let right = &mut right[i * tall * p..][..tall * p];
        right.iter_mut().zip(&b[i * m * p..][..m * p]).for_each(|(to, from)| *to = from.widen());
        if m < n && status[i] == 0 {
            substitute(&factors[i * tall * k..], right, k, p, true);
        }
    }
    let mut y = Tensor::empty(&[batch, tall, p], dtype)?;
    run_here(&householder::from_left(m >= n), &[&packed, &tau, &c], &mut [&mut y])?;
    let solutions = y.as_mut_slice::<E::Work>()?;
    let x = x.as_mut_slice::<E>()?;
    for i in 0..batch {
        let y = &mut solutions[i * tall * p..][..tall * p];
        if m >= n && status[i] == 0 {
            substitute(&factors[i * tall * k..], y, k, p, false);
        }
        for (to, from) in x[i * n * p..][..n * p].iter_mut().zip(y.iter()) {
            *to = if status[i] == 0 { E::narrow(*from) } else { E::NAN };
        }
    }
    Ok(())
}

/// One tall matrix: its reflectors meet the right-hand sides as columns beside it. Gives the status.
fn beside<E: Stored>(dims: &Dims, a: &[E], b: &[E], x: &mut [E], limit: E::Work, shared: bool) -> i32 {
    let Dims { m, n, p, .. } = *dims;
    let Some(largest) = largest(a, shared) else { return NOT_FINITE };
    let (zero, scale, width) = (E::Work::default(), scale(largest), width(n));
    let (rows, step) = (padded(m), stride::<E::Work>(n + p));
    let mut memory = Memory::take(rows * step + Panels::<E::Work>::size(m, n, width));
    let (both, rest) = memory.slice().split_at_mut(rows * step);
    for (i, row) in both.chunks_exact_mut(step).enumerate() {
        if i < m {
            row[..n].iter_mut().zip(&a[i * n..]).for_each(|(to, a)| *to = a.widen() * scale);
            row[n..n + p].iter_mut().zip(&b[i * p..]).for_each(|(to, b)| *to = b.widen());
            row[n + p..].fill(zero);
        } else {
            row.fill(zero);
        }
    }
    Panels::new(rest, m, n, width, shared).reduce(both, step, n + p);
    // R is scaled back, exactly.
    for (i, row) in both.chunks_exact_mut(step).enumerate().take(n) {
        row[i..n].iter_mut().for_each(|r| *r = *r / scale);
    }
    let found = deficient(both, step, n, limit);
    if found == 0 {
        dispatch(Substitute { both, step, n, p });
        for (to, from) in x.chunks_exact_mut(p).zip(both.chunks_exact(step)) {
            to.iter_mut().zip(&from[n..]).for_each(|(to, x)| *to = E::narrow(*x));
        }
    }
    found
}

/// Solves `R·x = y` in place for rows of R with y beside them.
struct Substitute<'a, T> {
    both: &'a mut [T],
    step: usize,
    n: usize,
    p: usize,
}

impl<T: Real> Kernel for Substitute<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { both, step, n, p } = self;
        for j in (0..n).rev() {
            let (above, below) = both[j * step..].split_at_mut(step);
            let (r, y) = above.split_at_mut(n);
            for (factor, x) in r[j + 1..].iter().zip(below.chunks(step)) {
                y[..p].iter_mut().zip(&x[n..]).for_each(|(y, x)| *y = (-*factor).fused(*x, *y));
            }
            y[..p].iter_mut().for_each(|y| *y = *y / r[j]);
        }
    }
}

/// The first column of R, from 1, that depends on those before it; 0 for full rank.
fn deficient<T: Real>(r: &[T], step: usize, k: usize, limit: T) -> i32 {
    let largest =
        |j: usize| (0..=j).map(|i| r[i * step + j].magnitude()).fold(T::default(), |a, x| if x > a { x } else { a });
    (0..k).find(|&j| r[j * step + j].magnitude() <= limit * largest(j)).map_or(0, |j| j as i32 + 1)
}

/// Solves `R·x = y`, or `Rᵀ·x = y`, in place, for R in the first rows of a matrix of `k` columns.
fn substitute<T: Real>(r: &[T], y: &mut [T], k: usize, p: usize, transposed: bool) {
    for step in 0..k {
        let j = if transposed { step } else { k - 1 - step };
        let diagonal = r[j * k + j];
        y[j * p..][..p].iter_mut().for_each(|y| *y = *y / diagonal);
        for i in if transposed { j + 1..k } else { 0..j } {
            let factor = if transposed { r[j * k + i] } else { r[i * k + j] };
            for l in 0..p {
                y[i * p + l] = (-factor).fused(y[j * p + l], y[i * p + l]);
            }
        }
    }
}
