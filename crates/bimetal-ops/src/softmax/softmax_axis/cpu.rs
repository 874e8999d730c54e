//! Softmax on the CPU: a row's exponentials stay in a cache-resident buffer until they are written while the next row's are
//! computed, so that memory is read once and written once; a long row's exponentials are computed again.

use super::Kind;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::cpu::row::{Values, load, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::{math, parallel};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Longest row whose exponentials are kept: 512 KiB of f32, half of the L2 cache of the machines here.
const KEPT: usize = 128 << 10;

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
        let Self { x, y, n, log, stream, fetch } = self;
        let keep = n <= KEPT;
        let mut kept = Scratch::take(if log || !keep { 0 } else { n });
        let kept = kept.as_mut_ptr();
        // A row is written while the next one's exponentials are computed, so that neither waits for the other.
        let mut pending: Option<(&mut [E], Done<'_, S, E>)> = None;
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            let row = Row { s, x, fetch: fetch && keep };
            let m = row.max();
            let sum = match (pending.take(), log) {
                (None, false) if keep => row.sum_exp::<_, true>(m, kept, Nothing),
                (None, _) => row.sum_exp::<_, false>(m, kept, Nothing),
                (Some((y, done)), false) => {
                    let factor = done.second;
                    row.sum_exp::<_, true>(m, kept, Writing::new(y, stream, Kept { kept, factor }))
                }
                (Some((y, done)), true) => {
                    row.sum_exp::<_, false>(m, kept, Writing::new(y, stream, Logarithm::of(done)))
                }
            };
            let second = s.splat(if log { sum.ln() } else { 1.0 / sum } as f32);
            let done = Done { x, shift: s.splat(m), second };
            if keep {
                pending = Some((y, done));
            } else if log {
                write(s, y, stream, Logarithm::of(done), [x.as_ptr_range().end]);
            } else {
                write(s, y, stream, Again { x, shift: done.shift, inverse: second }, [x.as_ptr_range().end]);
            }
        }
        match pending {
            Some((y, done)) if log => write(s, y, stream, Logarithm::of(done), []),
            Some((y, done)) => write(s, y, stream, Kept { kept, factor: done.second }, []),
            None => {}
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// A row whose sum is known: its largest element, and the logarithm of the sum or its inverse.
struct Done<'a, S: Simd, E> {
    x: &'a [E],
    shift: S::F,
    second: S::F,
}

/// Writes vectors of an earlier row.
trait Earlier<S: Simd> {
    /// Writes the `n` elements from `i` on.
    ///
    /// # Safety
    /// The row has them.
    unsafe fn put(&self, s: S, i: usize, n: usize);
}

/// No row is waiting.
struct Nothing;

impl<S: Simd> Earlier<S> for Nothing {
    #[inline(always)]
    unsafe fn put(&self, _: S, _: usize, _: usize) {}
}

/// A row that is waiting for its values.
struct Writing<E, V> {
    y: *mut E,
    stream: bool,
    values: V,
}

impl<E: Element, V> Writing<E, V> {
    /// A row that goes past the caches if `stream` is set and it is aligned.
    #[inline(always)]
    fn new(y: &mut [E], stream: bool, values: V) -> Self {
        let y = y.as_mut_ptr();
        Self { y, stream: stream && (y as usize).is_multiple_of(MAX_LANES * size_of::<E>()), values }
    }
}

impl<S: Simd, E: Element, V: Values<S>> Earlier<S> for Writing<E, V> {
    #[inline(always)]
    unsafe fn put(&self, s: S, i: usize, n: usize) {
        // SAFETY: the caller's promise; vectors of an aligned row are aligned.
        unsafe {
            let (p, v) = (self.y.add(i), self.values.at(s, i, n));
            if n < S::LANES {
                E::store_partial(s, p, n, v);
            } else if self.stream {
                E::stream(s, p, v);
            } else {
                E::store(s, p, v);
            }
        }
    }
}

struct Row<'a, S, E> {
    s: S,
    x: &'a [E],
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

    /// Σ exp(x − m), block by block; the exponentials go to `kept` if `KEEP`, after an earlier row's have been written, and
    /// meanwhile the next row comes into the cache if this one is there.
    #[inline(always)]
    fn sum_exp<P: Earlier<S>, const KEEP: bool>(&self, m: f32, kept: *mut f32, earlier: P) -> f64 {
        let (s, n) = (self.s, self.x.len());
        let shift = s.splat(m);
        let mut total = 0.0;
        let next = self.x.as_ptr_range().end;
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
                        if self.fetch {
                            s.prefetch_far(next.wrapping_add(at));
                        }
                        let e = math::exp(s, s.sub(E::load(s, self.x.as_ptr().add(at)), shift));
                        earlier.put(s, at, S::LANES);
                        if KEEP {
                            s.store(kept.add(at), e);
                        }
                        *sum = s.add(*sum, e);
                    }
                    i += 4 * S::LANES;
                }
                while i < end {
                    let left = (end - i).min(S::LANES);
                    let e = math::exp(s, s.sub(load(s, &self.x[..end], i, f32::NEG_INFINITY), shift));
                    earlier.put(s, i, left);
                    if left >= S::LANES {
                        if KEEP {
                            s.store(kept.add(i), e);
                        }
                        sums[0] = s.add(sums[0], e);
                    } else {
                        if KEEP {
                            s.store_partial(kept.add(i), left, e);
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
}

/// Kept exponentials over their sum.
struct Kept<F> {
    kept: *const f32,
    factor: F,
}

impl<S: Simd> Values<S> for Kept<S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the buffer is as long as the row.
        unsafe {
            let p = self.kept.add(i);
            s.mul(if n >= S::LANES { s.load(p) } else { s.load_partial(p, n, 0.0) }, self.factor)
        }
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

impl<'a, E, F> Logarithm<'a, E, F> {
    #[inline(always)]
    fn of<S: Simd<F = F>>(done: Done<'a, S, E>) -> Self {
        Self { x: done.x, shift: done.shift, log_sum: done.second }
    }
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
