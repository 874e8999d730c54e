//! The product on the CPU: tiles of the upper half of small ones, `C[i, j] = Σₗ A[l, i]·A[l, j]`, and the mirror of it; large
//! ones by `matmul`.

use super::SyrkParams;
use crate::lanes::transpose;
use crate::matmul::Product;
use crate::qr::real::{Memory, Real};
use crate::qr::tiles::{UNIT, padded, stride, tile};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};
use bimetal_core::op::Op;
use bimetal_core::{DType, Result, Scalar, Tensor};

/// Bytes of a matrix and its product up to which a batch is multiplied by tiles that are not packed: they stay in the first
/// caches. On two cores 200 of 64x64 took 1280 µs by `matmul` and 655 µs so.
const SMALL: usize = 256 << 10;

pub(super) fn syrk(product: &Product, params: SyrkParams, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [leading @ .., m, n] = a.shape().dims() else { unreachable!("the shape was checked") };
    let (order, terms) = if params.transpose { (*n, *m) } else { (*m, *n) };
    let bytes = (m * n + order * order) * a.dtype().size();
    let count = leading.iter().product::<usize>();
    let small = count >= 2 * parallel::threads() && order >= UNIT / 2 && terms > 0 && bytes <= SMALL;
    match a.dtype() {
        DType::F32 if small => batch::<f32>([count, order, terms], params, a, outputs[0]),
        DType::F64 if small => batch::<f64>([count, order, terms], params, a, outputs[0]),
        _ => product.cpu(&[a, a], outputs),
    }
}

fn batch<T: Real + Scalar>(
    [count, order, terms]: [usize; 3],
    params: SyrkParams,
    a: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let a = a.as_slice::<T>()?;
    let out = Shared::new(out.as_mut_slice::<T>()?);
    let grain = WORK / (order * order * terms) + 1;
    let alpha = <T as Scalar>::from_f64(params.alpha);
    parallel::ranges(count, grain, |range| {
        let step = stride::<T>(order);
        let mut memory = Memory::take((terms + padded(order)) * step);
        let (columns, sums) = memory.slice().split_at_mut(terms * step);
        columns.fill(T::default());
        for i in range {
            let a = &a[i * order * terms..][..order * terms];
            if params.transpose {
                columns
                    .chunks_exact_mut(step)
                    .zip(a.chunks_exact(order))
                    .for_each(|(to, a)| to[..order].copy_from_slice(a));
            } else {
                transpose([order, terms], (a, terms), (&mut *columns, step), |x| x);
            }
            dispatch_at(Level::current(), Upper { columns, sums: sums.as_mut_ptr(), step, order, terms });
            // SAFETY: each product is written once.
            let out = unsafe { out.slice(i * order * order..(i + 1) * order * order) };
            for first in (0..order).step_by(UNIT) {
                let rows = UNIT.min(order - first);
                for row in first..first + rows {
                    let to = &mut out[row * order + first..(row + 1) * order];
                    to.iter_mut().zip(&sums[row * step + first..]).for_each(|(to, x)| *to = *x * alpha);
                }
                if first > 0 {
                    transpose([first, rows], (&sums[first..], step), (&mut out[first * order..], order), |x| x * alpha);
                }
            }
        }
    });
    Ok(())
}

/// Multiply-adds for which a second thread is woken.
const WORK: usize = 1 << 19;

/// Units of rows of the product, from the diagonal on.
struct Upper<'a, T> {
    columns: &'a [T],
    sums: *mut T,
    step: usize,
    order: usize,
    terms: usize,
}

impl<T: Real> Kernel for Upper<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match S::LEVEL {
            // SAFETY: rows and columns are filled up to whole units.
            Level::Avx512 | Level::Neon => unsafe { self.all::<S, 8>(s) },
            // SAFETY: as above.
            _ => unsafe { self.all::<S, 4>(s) },
        }
    }
}

impl<T: Real> Upper<'_, T> {
    /// By tiles of `R` rows.
    ///
    /// # Safety
    /// Rows of both matrices are whole units, and so is the number of those of the sums.
    #[inline(always)]
    unsafe fn all<S: Simd, const R: usize>(self, s: S) {
        let (lanes, end) = (T::lanes::<S>(), padded(self.order));
        for row in (0..self.order).step_by(R) {
            let mut column = row / UNIT * UNIT;
            // SAFETY: the caller's promise.
            unsafe {
                while column + 3 * lanes <= end {
                    self.tile::<S, R, 3>(s, row, column);
                    column += 3 * lanes;
                }
                if column + 2 * lanes <= end {
                    self.tile::<S, R, 2>(s, row, column);
                    column += 2 * lanes;
                }
                if column < end {
                    self.tile::<S, R, 1>(s, row, column);
                }
            }
        }
    }

    /// # Safety
    /// As [`Upper::all`].
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const B: usize>(&self, s: S, row: usize, column: usize) {
        let (from, step) = (self.columns.as_ptr(), self.step);
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.sums.add(row * step + column);
            let operands = [from.add(row), from.add(column)];
            tile::<S, T, R, B, true>(s, operands, [step, step], self.terms, [to, to], step, false);
        }
    }
}
