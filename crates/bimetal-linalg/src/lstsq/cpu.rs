//! Least squares on the CPU: reflectors, their transpose times `b`, and substitution.

use super::{Dims, rank_tolerance};
use crate::qr::real::{Real, Stored};
use crate::{householder, qr};
use bimetal_core::op::run_here;
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

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
    let limit = E::Work::from_f64(rank_tolerance(m, n, E::DTYPE));
    let factors = packed.as_slice::<E::Work>()?;
    for ((i, status), found) in status.iter_mut().enumerate().zip(found.as_slice::<i32>()?) {
        *status = if *found == 0 { deficient(&factors[i * tall * k..], k, limit) } else { *found };
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

/// The first column of R, from 1, that depends on those before it; 0 for full rank.
fn deficient<T: Real>(r: &[T], k: usize, limit: T) -> i32 {
    let largest = |j: usize| (0..=j).map(|i| r[i * k + j].magnitude()).fold(T::default(), |a, x| if x > a { x } else { a });
    (0..k).find(|&j| r[j * k + j].magnitude() <= limit * largest(j)).map_or(0, |j| j as i32 + 1)
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
