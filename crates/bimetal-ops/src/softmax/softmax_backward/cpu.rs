//! Gradients of softmax on the CPU: the row's sum, then the row again from the cache.

use super::Kind;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::row::{Values, load, part, write};
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::cpu::{math, parallel};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Elements that are added in f32 before their sum goes on in f64.
const BLOCK: usize = 2048;

pub(super) fn softmax_backward(kind: Kind, grad: &Tensor, y: &Tensor, axis: usize, dx: &mut Tensor) -> Result<()> {
    match y.dtype() {
        DType::F16 => typed::<f16>(kind, grad, y, axis, dx),
        DType::BF16 => typed::<bf16>(kind, grad, y, axis, dx),
        _ => typed::<f32>(kind, grad, y, axis, dx),
    }
}

fn typed<E: Element + Scalar>(kind: Kind, grad: &Tensor, y: &Tensor, axis: usize, dx: &mut Tensor) -> Result<()> {
    let (_, n, inner) = y.shape().around(axis);
    let (grad, y, dx) = (grad.as_slice::<E>()?, y.as_slice::<E>()?, dx.as_mut_slice::<E>()?);
    if y.is_empty() {
        return Ok(());
    }
    let log = kind == Kind::LogSoftmax;
    let slab = n * inner;
    let stream = parallel::streams(3 * size_of_val(y));
    let grain = parallel::BYTES_PER_THREAD / (slab * 3 * size_of::<E>()).max(1);
    parallel::units_mut(dx, slab, grain, |first, dx| {
        let part = first * slab..first * slab + dx.len();
        let (grad, y) = (&grad[part.clone()], &y[part]);
        if inner == 1 {
            dispatch(Rows { grad, y, dx, n, log, stream });
        } else {
            dispatch(Columns { grad, y, dx, n, inner, log });
        }
    });
    Ok(())
}

struct Rows<'a, E> {
    grad: &'a [E],
    y: &'a [E],
    dx: &'a mut [E],
    n: usize,
    log: bool,
    stream: bool,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.grad.chunks_exact(self.n).zip(self.y.chunks_exact(self.n));
        for ((grad, y), dx) in rows.zip(self.dx.chunks_exact_mut(self.n)) {
            let sum = s.splat(row_sum(s, grad, y, self.log) as f32);
            let next = [grad.as_ptr_range().end, y.as_ptr_range().end];
            if self.log {
                write(s, dx, self.stream, LogGradient { grad, y, sum }, next);
            } else {
                write(s, dx, self.stream, Gradient { grad, y, sum }, next);
            }
        }
        if self.stream {
            s.stream_fence();
        }
    }
}

/// Σ g, or Σ g·y.
#[inline(always)]
fn row_sum<S: Simd, E: Element>(s: S, grad: &[E], y: &[E], log: bool) -> f64 {
    let n = grad.len();
    let mut total = 0.0;
    let mut block = 0;
    while block < n {
        let end = (block + BLOCK).min(n);
        let mut sums = [s.splat(0.0); 4];
        let mut i = block;
        while i < end {
            for sum in &mut sums {
                if i < end {
                    // SAFETY: `i < end <= n`; lanes past the end are zero and add nothing.
                    let (g, y) = unsafe { (load(s, &grad[..end], i, 0.0), load(s, &y[..end], i, 0.0)) };
                    *sum = if log { s.add(*sum, g) } else { s.fma(g, y, *sum) };
                }
                i += S::LANES;
            }
        }
        let halves = [s.add(sums[0], sums[1]), s.add(sums[2], sums[3])];
        total += s.sum_f64(s.add(halves[0], halves[1]));
        block = end;
    }
    total
}

/// `y·(g − Σ)`.
struct Gradient<'a, E, F> {
    grad: &'a [E],
    y: &'a [E],
    sum: F,
}

impl<S: Simd, E: Element> Values<S> for Gradient<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        let (g, y) = unsafe { (part(s, self.grad, i, n), part(s, self.y, i, n)) };
        s.mul(y, s.sub(g, self.sum))
    }
}

/// `g − exp(y)·Σ`.
struct LogGradient<'a, E, F> {
    grad: &'a [E],
    y: &'a [E],
    sum: F,
}

impl<S: Simd, E: Element> Values<S> for LogGradient<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        let (g, y) = unsafe { (part(s, self.grad, i, n), part(s, self.y, i, n)) };
        s.neg_fma(math::exp(s, y), self.sum, g)
    }
}

/// The same down the columns of `[n, inner]` slabs, a vector of columns at a time.
struct Columns<'a, E> {
    grad: &'a [E],
    y: &'a [E],
    dx: &'a mut [E],
    n: usize,
    inner: usize,
    log: bool,
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, inner) = (self.n, self.inner);
        let slab = n * inner;
        for ((grad, y), dx) in self.grad.chunks_exact(slab).zip(self.y.chunks_exact(slab)).zip(self.dx.chunks_exact_mut(slab)) {
            for column in (0..inner).step_by(S::LANES) {
                let (mut sum, mut lost) = (s.splat(0.0), s.splat(0.0));
                for k in 0..n {
                    let row = k * inner..(k + 1) * inner;
                    // SAFETY: `column < inner`.
                    let (g, y) = unsafe { (load(s, &grad[row.clone()], column, 0.0), load(s, &y[row], column, 0.0)) };
                    // Kahan's sum: a column may be a million long.
                    let term = s.sub(if self.log { g } else { s.mul(g, y) }, lost);
                    let next = s.add(sum, term);
                    lost = s.sub(s.sub(next, sum), term);
                    sum = next;
                }
                for k in 0..n {
                    let row = k * inner..(k + 1) * inner;
                    let left = inner - column;
                    // SAFETY: `column < inner`, and `left` elements of the row remain from it on.
                    unsafe {
                        let (g, y) = (load(s, &grad[row.clone()], column, 0.0), load(s, &y[row.clone()], column, 0.0));
                        let v = if self.log { s.neg_fma(math::exp(s, y), sum, g) } else { s.mul(y, s.sub(g, sum)) };
                        let p = dx.as_mut_ptr().add(row.start + column);
                        if left >= S::LANES { E::store(s, p, v) } else { E::store_partial(s, p, left, v) }
                    }
                }
            }
        }
    }
}
