//! Softmax on the CPU: a row's exponentials stay in a cache-resident buffer between the passes, so that memory is read
//! once and written once; a long row is summed block by block and its exponentials are computed again.

use super::Kind;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::cpu::row::{Values, load, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::{math, parallel};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Longest row whose exponentials are kept: 256 KiB of f32, a quarter of the L2 cache of the machines here.
const KEPT: usize = 64 << 10;

/// Memory traffic of a call that the caches next to the cores may hold.
const NEAR: usize = 4 << 20;

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
        let fetch = 2 * size_of_val(x) > NEAR;
        let grain = parallel::BYTES_PER_THREAD / (n * bytes_per_element).max(1);
        parallel::units_mut(y, n, grain, |first, y| {
            let x = &x[first * n..first * n + y.len()];
            dispatch(Rows { x, y, n, log, stream, fetch });
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
    /// The next row is not in the nearer caches yet.
    fetch: bool,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut kept = Scratch::take(self.n.min(KEPT));
        for (x, y) in self.x.chunks_exact(self.n).zip(self.y.chunks_exact_mut(self.n)) {
            let row = Row { s, x, y, stream: self.stream, fetch: self.fetch };
            match (self.log, self.n <= KEPT) {
                (false, true) => row.softmax_kept(&mut kept),
                (false, false) => row.softmax_twice(),
                (true, _) => row.log_softmax(),
            }
        }
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
    fetch: bool,
}

impl<S: Simd, E: Element> Row<'_, S, E> {
    /// The largest element. NaN is passed over: its exponential makes the sum NaN.
    #[inline(always)]
    fn max(&self) -> f32 {
        let (s, n) = (self.s, self.x.len());
        let mut largest = [s.splat(f32::NEG_INFINITY); 4];
        let step = 4 * S::LANES;
        let mut i = 0;
        // SAFETY (this block): `i` plus what is read stays within the row.
        unsafe {
            while i + step <= n {
                for (k, m) in largest.iter_mut().enumerate() {
                    *m = s.max(E::load(s, self.x.as_ptr().add(i + k * S::LANES)), *m);
                }
                i += step;
            }
            while i < n {
                let v = load(s, self.x, i, f32::NEG_INFINITY);
                largest[0] = s.max(v, largest[0]);
                i += S::LANES;
            }
        }
        let halves = [s.max(largest[0], largest[1]), s.max(largest[2], largest[3])];
        s.reduce_max(s.max(halves[0], halves[1]))
    }

    /// Σ exp(x − m), block by block; the exponentials go to `kept` if it is given, and meanwhile the next row comes into
    /// the cache if this one is there.
    #[inline(always)]
    fn sum_exp(&self, m: f32, kept: Option<&mut [f32]>) -> f64 {
        let (s, n) = (self.s, self.x.len());
        let shift = s.splat(m);
        let mut total = 0.0;
        let keep = kept.map_or(std::ptr::null_mut(), |k| k.as_mut_ptr());
        let next = self.x.as_ptr_range().end;
        let fetch = self.fetch && n <= KEPT;
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
                        if fetch {
                            s.prefetch_far(next.wrapping_add(at));
                        }
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
    fn softmax_kept(self, kept: &mut [f32]) {
        let m = self.max();
        let sum = self.sum_exp(m, Some(kept));
        let inverse = self.s.splat((1.0 / sum) as f32);
        write(self.s, self.y, self.stream, Kept { kept, inverse }, []);
    }

    #[inline(always)]
    fn softmax_twice(self) {
        let m = self.max();
        let sum = self.sum_exp(m, None);
        let (s, x) = (self.s, self.x);
        let values = Again { x, shift: s.splat(m), inverse: s.splat((1.0 / sum) as f32) };
        write(s, self.y, self.stream, values, [x.as_ptr_range().end]);
    }

    #[inline(always)]
    fn log_softmax(self) {
        let m = self.max();
        let sum = self.sum_exp(m, None);
        let (s, x) = (self.s, self.x);
        let values = Logarithm { x, shift: s.splat(m), log_sum: s.splat(sum.ln() as f32) };
        write(s, self.y, self.stream, values, [x.as_ptr_range().end]);
    }
}

/// Kept exponentials over their sum.
struct Kept<'a, F> {
    kept: &'a [f32],
    inverse: F,
}

impl<S: Simd> Values<S> for Kept<'_, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the buffer is as long as the row.
        s.mul(unsafe { part(s, self.kept, i, n) }, self.inverse)
    }
}

/// Exponentials computed again, over their sum.
struct Again<'a, E, F> {
    x: &'a [E],
    shift: F,
    inverse: F,
}

impl<S: Simd, E: Element> Values<S> for Again<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        let x = unsafe { part(s, self.x, i, n) };
        s.mul(math::exp(s, s.sub(x, self.shift)), self.inverse)
    }
}

/// `x − m − ln Σ`.
struct Logarithm<'a, E, F> {
    x: &'a [E],
    shift: F,
    log_sum: F,
}

impl<S: Simd, E: Element> Values<S> for Logarithm<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        let x = unsafe { part(s, self.x, i, n) };
        s.sub(s.sub(x, self.shift), self.log_sum)
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
