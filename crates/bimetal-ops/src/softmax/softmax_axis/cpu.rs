//! Softmax on the CPU: a row's exponentials stay in a cache-resident buffer between the passes, so that memory is read
//! once and written once; a long row is summed block by block and its exponentials are computed again.

use super::Kind;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::cpu::{math, parallel, scratch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Longest row whose exponentials are kept: 256 KiB of f32, a quarter of the L2 cache of the machines here.
const KEPT: usize = 64 << 10;

/// Elements that are added in f32 before their sum goes on in f64.
const BLOCK: usize = 2048;

pub(super) fn softmax_axis(kind: Kind, x: &Tensor, axis: usize, y: &mut Tensor) -> Result<()> {
    match x.dtype() {
        DType::F16 => typed::<f16>(kind, x, axis, y),
        DType::BF16 => typed::<bf16>(kind, x, axis, y),
        _ => typed::<f32>(kind, x, axis, y),
    }
}

fn typed<E: Element + Scalar>(kind: Kind, x: &Tensor, axis: usize, y: &mut Tensor) -> Result<()> {
    let (_, n, inner) = x.shape().around(axis);
    let (x, y) = (x.as_slice::<E>()?, y.as_mut_slice::<E>()?);
    if x.is_empty() {
        return Ok(());
    }
    let log = kind == Kind::LogSoftmax;
    let bytes_per_element = 2 * size_of::<E>();
    if inner == 1 {
        let stream = parallel::streams(2 * size_of_val(x));
        let grain = parallel::BYTES_PER_THREAD / (n * bytes_per_element).max(1);
        parallel::units_mut(y, n, grain, |first, y| {
            let x = &x[first * n..first * n + y.len()];
            dispatch(Rows { x, y, n, log, stream });
        });
    } else {
        let slab = n * inner;
        let grain = parallel::BYTES_PER_THREAD / (slab * bytes_per_element).max(1);
        parallel::units_mut(y, slab, grain, |first, y| {
            let x = &x[first * slab..first * slab + y.len()];
            dispatch(Columns { x, y, n, inner, log });
        });
    }
    Ok(())
}

struct Rows<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    n: usize,
    log: bool,
    stream: bool,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        scratch::with(self.n.min(KEPT), |kept| {
            for (x, y) in self.x.chunks_exact(self.n).zip(self.y.chunks_exact_mut(self.n)) {
                let row = Row { s, x, y, stream: self.stream };
                match (self.log, self.n <= KEPT) {
                    (false, true) => row.softmax_kept(kept),
                    (false, false) => row.softmax_twice(),
                    (true, _) => row.log_softmax(),
                }
            }
        });
        if self.stream {
            s.stream_fence();
        }
    }
}

struct Row<'a, S, E> {
    s: S,
    x: &'a [E],
    y: &'a mut [E],
    stream: bool,
}

impl<S: Simd, E: Element> Row<'_, S, E> {
    #[inline(always)]
    fn max(&self) -> f32 {
        let (s, n) = (self.s, self.x.len());
        let lowest = s.splat(f32::NEG_INFINITY);
        let mut largest = [lowest; 4];
        let step = 4 * S::LANES;
        let mut i = 0;
        // SAFETY (this block): `i` plus what is read stays within the row.
        unsafe {
            while i + step <= n {
                for (k, m) in largest.iter_mut().enumerate() {
                    *m = s.max_nan(*m, E::load(s, self.x.as_ptr().add(i + k * S::LANES)));
                }
                i += step;
            }
            while i < n {
                let v = load(s, self.x, i, f32::NEG_INFINITY);
                largest[0] = s.max_nan(largest[0], v);
                i += S::LANES;
            }
        }
        let halves = [s.max_nan(largest[0], largest[1]), s.max_nan(largest[2], largest[3])];
        s.reduce_max(s.max_nan(halves[0], halves[1]))
    }

    /// Σ exp(x − m) in blocks, with each block's exponentials handed to `keep`.
    #[inline(always)]
    fn sum_exp(&self, m: f32, kept: Option<&mut [f32]>) -> f64 {
        let (s, n) = (self.s, self.x.len());
        let shift = s.splat(m);
        let mut total = 0.0;
        let keep = kept.map_or(std::ptr::null_mut(), |k| k.as_mut_ptr());
        let mut block = 0;
        while block < n {
            let end = (block + BLOCK).min(n);
            let mut sums = [s.splat(0.0); 4];
            let mut i = block;
            // SAFETY (this block): `i` plus what is read or written stays below `end`, the row's and the buffer's end.
            unsafe {
                while i + 4 * S::LANES <= end {
                    for (k, sum) in sums.iter_mut().enumerate() {
                        let at = i + k * S::LANES;
                        let e = math::exp(s, s.sub(E::load(s, self.x.as_ptr().add(at)), shift));
                        if !keep.is_null() {
                            s.store(keep.add(at), e);
                        }
                        *sum = s.add(*sum, e);
                    }
                    i += 4 * S::LANES;
                }
                while i < end {
                    let left = end - i;
                    let e = math::exp(s, s.sub(load(s, &self.x[..end], i, f32::NEG_INFINITY), shift));
                    if left >= S::LANES {
                        if !keep.is_null() {
                            s.store(keep.add(i), e);
                        }
                        sums[0] = s.add(sums[0], e);
                    } else {
                        if !keep.is_null() {
                            s.store_partial(keep.add(i), left, e);
                        }
                        total += s.to_array(e)[..left].iter().map(|&v| f64::from(v)).sum::<f64>();
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

    #[inline(always)]
    fn softmax_kept(mut self, kept: &mut [f32]) {
        let m = self.max();
        let sum = self.sum_exp(m, Some(kept));
        let inverse = self.s.splat((1.0 / sum) as f32);
        let s = self.s;
        // SAFETY: `kept` has the row's length; `write` asks for `LANES` or the remaining values.
        self.write(|i, left| unsafe {
            let p = kept.as_ptr().add(i);
            let e = if left >= S::LANES { s.load(p) } else { s.load_partial(p, left, 0.0) };
            s.mul(e, inverse)
        });
    }

    #[inline(always)]
    fn softmax_twice(mut self) {
        let m = self.max();
        let sum = self.sum_exp(m, None);
        let (s, x) = (self.s, self.x);
        let (shift, inverse) = (s.splat(m), s.splat((1.0 / sum) as f32));
        // SAFETY: `write` stays within the row.
        self.write(|i, _| s.mul(math::exp(s, s.sub(unsafe { load(s, x, i, 0.0) }, shift)), inverse));
    }

    #[inline(always)]
    fn log_softmax(mut self) {
        let m = self.max();
        let sum = self.sum_exp(m, None);
        let (s, x) = (self.s, self.x);
        let (shift, log_sum) = (s.splat(m), s.splat(sum.ln() as f32));
        // SAFETY: `write` stays within the row.
        self.write(|i, _| s.sub(s.sub(unsafe { load(s, x, i, 0.0) }, shift), log_sum));
    }

    /// Writes `value(i, elements left)` over the row, past the caches if the tensor is larger than they are.
    #[inline(always)]
    fn write(&mut self, value: impl Fn(usize, usize) -> S::F) {
        let (s, n) = (self.s, self.y.len());
        let p = self.y.as_mut_ptr();
        let vector = S::LANES * size_of::<E>();
        let stream = self.stream && (p as usize).is_multiple_of(vector);
        let mut i = 0;
        // SAFETY (this block): `i` plus what is written stays within the row; streaming needs and has aligned vectors.
        unsafe {
            while i + S::LANES <= n {
                let v = value(i, n - i);
                if stream {
                    E::stream(s, p.add(i), v);
                } else {
                    E::store(s, p.add(i), v);
                }
                i += S::LANES;
            }
            if i < n {
                E::store_partial(s, p.add(i), n - i, value(i, n - i));
            }
        }
    }
}

/// A vector from `x[i..]`, its lanes past the end filled.
///
/// # Safety
/// `i < x.len()`.
#[inline(always)]
unsafe fn load<S: Simd, E: Element>(s: S, x: &[E], i: usize, fill: f32) -> S::F {
    let left = x.len() - i;
    // SAFETY: `left` elements remain from `i` on.
    unsafe {
        if left >= S::LANES { E::load(s, x.as_ptr().add(i)) } else { E::load_partial(s, x.as_ptr().add(i), left, fill) }
    }
}

/// Softmax down the columns of `[n, inner]` slabs, a vector of columns at a time.
struct Columns<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    n: usize,
    inner: usize,
    log: bool,
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, inner) = (self.n, self.inner);
        for (x, y) in self.x.chunks_exact(n * inner).zip(self.y.chunks_exact_mut(n * inner)) {
            for column in (0..inner).step_by(S::LANES) {
                let left = inner - column;
                let row = |k: usize| &x[k * inner..(k + 1) * inner];
                let mut largest = s.splat(f32::NEG_INFINITY);
                for k in 0..n {
                    // SAFETY: `column < inner`.
                    largest = s.max_nan(largest, unsafe { load(s, row(k), column, 0.0) });
                }
                let mut sum = s.splat(0.0);
                let mut lost = s.splat(0.0);
                for k in 0..n {
                    // SAFETY: `column < inner`.
                    let e = math::exp(s, s.sub(unsafe { load(s, row(k), column, 0.0) }, largest));
                    // Kahan's sum: a column may be a million long.
                    let term = s.sub(e, lost);
                    let next = s.add(sum, term);
                    lost = s.sub(s.sub(next, sum), term);
                    sum = next;
                }
                let inverse = s.div(s.splat(1.0), sum);
                let log_sum = math::log(s, sum);
                for k in 0..n {
                    // SAFETY: `column < inner`, and `left` elements of the row remain from it on.
                    unsafe {
                        let shifted = s.sub(load(s, row(k), column, 0.0), largest);
                        let v = if self.log { s.sub(shifted, log_sum) } else { s.mul(math::exp(s, shifted), inverse) };
                        let p = y.as_mut_ptr().add(k * inner + column);
                        if left >= S::LANES { E::store(s, p, v) } else { E::store_partial(s, p, left, v) }
                    }
                }
            }
        }
    }
}
