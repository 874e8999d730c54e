//! Batch norm and its gradients without spatial axes: samples are rows of channels and met in the order in which they lie in
//! memory, once for the statistics of all channels and once for the elements.

use super::SampleRows;
use crate::normalization::row_norm::cpu::{Affine, Moments, Scaling};
use bimetal_core::Scalar;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::row::{Values, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};

/// Most samples that are added in f32 before their sums go on in f64.
const SLAB_SAMPLES: usize = 64;

/// Bytes of a slab of samples, which is read twice, the second time from the L2 cache, while the next one comes there.
const SLAB_BYTES: usize = 256 << 10;

/// Most parts of the batch with statistics of their own, for the threads.
const BLOCKS: usize = 32;

/// Rows that are added together, so that sums are loaded and stored a quarter as often.
const GROUP: usize = 4;

/// Scratch memory for f64.
struct Doubles(Scratch, usize);

impl Doubles {
    fn take(n: usize) -> Self {
        Self(Scratch::take(2 * n + 2), n)
    }

    fn slice(&mut self) -> &mut [f64] {
        let start = self.0.as_mut_ptr().cast::<u8>();
        let start = start.wrapping_add(start.align_offset(align_of::<f64>())).cast();
        // SAFETY: the scratch memory is as long, aligned for f64, and initialised.
        unsafe { std::slice::from_raw_parts_mut(start, self.1) }
    }
}

/// The batch, and the gradient of its normalized elements if gradients are wanted.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a, E> {
    pub(super) x: &'a [E],
    pub(super) grad: Option<&'a [E]>,
    pub(super) channels: usize,
    pub(super) affine: Affine<'a, E>,
    pub(super) eps: f32,
    pub(super) stream: bool,
}

impl<E: Element + Scalar> Batch<'_, E> {
    /// Lines of statistics: mean and sum of squared deviations; Σg and Σg·(x − mean) for gradients.
    fn lines(&self) -> usize {
        if self.grad.is_some() { 4 } else { 2 }
    }

    /// Normalizes or differentiates the batch into `out`; `sums` get each channel's mean and sum of squared deviations, or the
    /// gradients of weight and bias.
    pub(super) fn run(self, out: &mut [E], sums: &mut [[f64; 2]]) {
        let (n, lines) = (self.channels, self.lines());
        let samples = self.x.len() / n;
        let block = samples.div_ceil(BLOCKS).next_multiple_of(SLAB_SAMPLES);
        let blocks = samples.div_ceil(block);
        let mut memory = Doubles::take(blocks * lines * n);
        let stats = memory.slice();
        let of_block = |k: usize| k * block * n..((k + 1) * block * n).min(self.x.len());
        let bytes = (lines / 2) * block * n * size_of::<E>();
        let grain = parallel::BYTES_PER_THREAD / bytes;
        let parts = &Shared::new(&mut *stats);
        parallel::ranges(blocks, grain, |range| {
            for k in range {
                // SAFETY: each block has statistics of its own.
                let stats = unsafe { parts.slice(k * lines * n..(k + 1) * lines * n) };
                let grad = self.grad.map(|g| &g[of_block(k)]);
                dispatch(Slabs { x: &self.x[of_block(k)], grad, channels: n, stats });
            }
        });
        dispatch(Merge { stats, samples, block, line: n });
        let mut lines_of_f32 = Scratch::take(4 * n);
        let coefficients = self.coefficients(samples as f64, &stats[..lines * n], &mut lines_of_f32, sums);
        let out = &Shared::new(out);
        // From the end, of which the caches may still hold something.
        parallel::ranges(blocks, grain, |range| {
            for k in range.map(|k| blocks - 1 - k) {
                // SAFETY: the blocks are disjoint.
                let (x, out) = (&self.x[of_block(k)], unsafe { out.slice(of_block(k)) });
                let [means, factors, shifts, _] = coefficients;
                match self.grad {
                    None => dispatch(SampleRows { x, y: out, means, factors, shifts, stream: self.stream }),
                    Some(grad) => {
                        dispatch(Gradients { x, grad: &grad[of_block(k)], dx: out, coefficients, stream: self.stream });
                    }
                }
            }
        });
    }

    /// For each channel `mean`, `factor`, `shift` and `slope`: elements are `(x − mean)·factor + shift`, gradients
    /// `grad·factor + (x − mean)·slope + shift`.
    fn coefficients<'m>(
        &self,
        count: f64,
        stats: &[f64],
        memory: &'m mut [f32],
        sums: &mut [[f64; 2]],
    ) -> [&'m [f32]; 4] {
        let n = self.channels;
        let (means, rest) = memory.split_at_mut(n);
        let (factors, rest) = rest.split_at_mut(n);
        let (shifts, slopes) = rest.split_at_mut(n);
        for (c, sums) in sums.iter_mut().enumerate() {
            let (mean, squares) = (stats[c], stats[n + c]);
            let scaling = Scaling::of(Moments { count, mean, squares }, self.eps);
            let (weight, bias) = self.affine.at(c);
            means[c] = scaling.mean;
            if self.grad.is_none() {
                factors[c] = scaling.rstd * weight;
                shifts[c] = bias - scaling.lost * factors[c];
                *sums = [mean, squares];
            } else {
                let rstd = f64::from(scaling.rstd);
                let (plain, scaled) = (stats[2 * n + c], stats[3 * n + c] * rstd);
                let factor = f64::from(weight) * rstd;
                let slope = -factor * rstd * scaled / count;
                factors[c] = factor as f32;
                slopes[c] = slope as f32;
                shifts[c] = (-factor * plain / count - slope * f64::from(scaling.lost)) as f32;
                *sums = [scaled, plain];
            }
        }
        [means, factors, shifts, slopes]
    }
}

/// Merges the statistics of blocks into those of the first.
struct Merge<'a> {
    stats: &'a mut [f64],
    samples: usize,
    block: usize,
    line: usize,
}

impl Kernel for Merge<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { stats, samples, block, line } = self;
        let lines = stats.len() / line / samples.div_ceil(block);
        let (all, more) = stats.split_at_mut(lines * line);
        let mut count = block.min(samples);
        for other in more.chunks_exact(lines * line) {
            let next = block.min(samples - count);
            merge(line, all, count as f64, other, next as f64);
            count += next;
        }
    }
}

/// Adds statistics of other samples (Chan, Golub and LeVeque, 1979).
#[inline(always)]
fn merge(n: usize, all: &mut [f64], count: f64, other: &[f64], more: f64) {
    let share = more / (count + more);
    let (mean, rest) = all.split_at_mut(n);
    let (squares, rest) = rest.split_at_mut(n);
    let (other_mean, other) = other.split_at(n);
    let (other_squares, other) = other.split_at(n);
    if !rest.is_empty() {
        let (plain, scaled) = rest.split_at_mut(n);
        let (other_plain, other_scaled) = other.split_at(n);
        let scaled = scaled.iter_mut().zip(other_scaled);
        let plain = plain.iter_mut().zip(other_plain);
        for (((scaled, other_scaled), (plain, other_plain)), (mean, other_mean)) in
            scaled.zip(plain).zip(mean.iter().zip(other_mean))
        {
            let delta = other_mean - mean;
            *scaled += other_scaled + delta * (other_plain * (1.0 - share) - *plain * share);
            *plain += other_plain;
        }
    }
    let squares = squares.iter_mut().zip(other_squares);
    for ((mean, other_mean), (squares, other_squares)) in mean.iter_mut().zip(other_mean).zip(squares) {
        let delta = other_mean - *mean;
        *mean += delta * share;
        *squares += other_squares + delta * delta * count * share;
    }
}

/// The statistics of a block, slab by slab: in each the means first, then the deviations from them.
struct Slabs<'a, E> {
    x: &'a [E],
    grad: Option<&'a [E]>,
    channels: usize,
    stats: &'a mut [f64],
}

impl<E: Element> Kernel for Slabs<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, grad, channels: n, stats } = self;
        let tensors = 1 + usize::from(grad.is_some());
        let rows = (SLAB_BYTES / (tensors * n * size_of::<E>())).clamp(2 * GROUP, SLAB_SAMPLES) / GROUP * GROUP;
        let line = n.next_multiple_of(MAX_LANES);
        let mut memory = Scratch::take(LINES * line);
        let mut of_slab = Doubles::take(stats.len());
        let of_slab = of_slab.slice();
        for (k, x) in x.chunks(rows * n).enumerate() {
            let samples = x.len() / n;
            let grad = grad.map(|g| &g[k * rows * n..][..x.len()]);
            memory.fill(0.0);
            let sums = memory.as_mut_ptr();
            // SAFETY: the slab has these rows, and there are as many lines of sums, of whole vectors.
            // Loops, because a closure is not sure to be compiled for the level.
            unsafe {
                let (first, slopes) = (x.as_ptr(), grad.map_or(std::ptr::null(), |g| g.as_ptr()));
                let whole = samples / GROUP * GROUP;
                for row in (0..whole).step_by(GROUP) {
                    add_rows::<S, E, GROUP>(s, first.add(row * n), n, sums);
                }
                for row in whole..samples {
                    add_rows::<S, E, 1>(s, first.add(row * n), n, sums);
                }
                memory[..n].iter_mut().for_each(|sum| *sum /= samples as f32);
                let (next, sums) = (rows * n, [sums, sums.add(line)]);
                for row in (0..whole).step_by(GROUP) {
                    let at = (first.add(row * n), slopes.wrapping_add(row * n));
                    match grad {
                        None => deviate::<S, E, GROUP, false>(s, at, next, n, sums, line),
                        Some(_) => deviate::<S, E, GROUP, true>(s, at, next, n, sums, line),
                    }
                }
                for row in whole..samples {
                    let at = (first.add(row * n), slopes.wrapping_add(row * n));
                    match grad {
                        None => deviate::<S, E, 1, false>(s, at, next, n, sums, line),
                        Some(_) => deviate::<S, E, 1, true>(s, at, next, n, sums, line),
                    }
                }
            }
            widen(n, &memory, line, samples as f64, if k == 0 { &mut *stats } else { &mut *of_slab });
            if k > 0 {
                merge(n, stats, (k * rows) as f64, of_slab, samples as f64);
            }
        }
    }
}

/// Lines of a slab's sums: means, then deviations, their squares, gradients, and gradients times deviations.
const LINES: usize = 5;

/// Statistics of a slab's sums, in f64.
#[inline(always)]
fn widen(n: usize, sums: &[f32], line: usize, count: f64, stats: &mut [f64]) {
    let sums: [&[f32]; LINES] = std::array::from_fn(|k| &sums[k * line..][..n]);
    let share = 1.0 / count;
    let (mean, rest) = stats.split_at_mut(n);
    let (squares, rest) = rest.split_at_mut(n);
    for c in 0..n {
        let first = f64::from(sums[1][c]);
        mean[c] = f64::from(sums[0][c]) + first * share;
        let least = f64::from(sums[2][c]) - first * first * share;
        // A comparison keeps NaN, which `max` would drop.
        squares[c] = if least < 0.0 { 0.0 } else { least };
    }
    if !rest.is_empty() {
        let (plain, scaled) = rest.split_at_mut(n);
        for c in 0..n {
            plain[c] = f64::from(sums[3][c]);
            scaled[c] = f64::from(sums[4][c]) - f64::from(sums[1][c]) * share * plain[c];
        }
    }
}

/// `w` elements, then zeros.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn get<S: Simd, E: Element>(s: S, p: *const E, w: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if w >= S::LANES { E::load(s, p) } else { E::load_partial(s, p, w, 0.0) } }
}

/// Adds `R` rows of `n` to a line of sums.
///
/// # Safety
/// The rows exist, and the line has whole vectors.
#[inline(always)]
unsafe fn add_rows<S: Simd, E: Element, const R: usize>(s: S, x: *const E, n: usize, sums: *mut f32) {
    for j in (0..n).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = get(s, x.add(j), n - j);
            for r in 1..R {
                sum = s.add(sum, get(s, x.add(r * n + j), n - j));
            }
            s.store(sums.add(j), s.add(s.load(sums.add(j)), sum));
        }
    }
}

/// Adds the deviations of `R` rows of `n` from the means to the sums, which are `line` apart, and those of the gradients if
/// `GRAD`; meanwhile the rows `next` elements on come into the cache.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn deviate<S: Simd, E: Element, const R: usize, const GRAD: bool>(
    s: S,
    (x, grad): (*const E, *const E),
    next: usize,
    n: usize,
    [means, sums]: [*mut f32; 2],
    line: usize,
) {
    for j in (0..n).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let used = if GRAD { 4 } else { 2 };
            let mut totals = [s.splat(0.0); 4];
            for (k, total) in totals.iter_mut().enumerate().take(used) {
                *total = s.load(sums.add(k * line + j));
            }
            let mean = s.load(means.add(j));
            for r in 0..R {
                let at = r * n + j;
                s.prefetch_far(x.wrapping_add(at + next));
                let d = s.sub(get(s, x.add(at), n - j), mean);
                totals[0] = s.add(totals[0], d);
                totals[1] = s.fma(d, d, totals[1]);
                if GRAD {
                    s.prefetch_far(grad.wrapping_add(at + next));
                    let g = get(s, grad.add(at), n - j);
                    totals[2] = s.add(totals[2], g);
                    totals[3] = s.fma(g, d, totals[3]);
                }
            }
            for (k, total) in totals.into_iter().enumerate().take(used) {
                s.store(sums.add(k * line + j), total);
            }
        }
    }
}

/// Gradients of the elements of samples.
struct Gradients<'a, E> {
    x: &'a [E],
    grad: &'a [E],
    dx: &'a mut [E],
    coefficients: [&'a [f32]; 4],
    stream: bool,
}

impl<E: Element> Kernel for Gradients<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, grad, dx, coefficients, stream } = self;
        let n = coefficients[0].len();
        let rows = x.chunks_exact(n).zip(grad.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
        for ((x, grad), dx) in rows {
            let next = [x.as_ptr_range().end, grad.as_ptr_range().end];
            write(s, dx, stream, GradientRow { x, grad, coefficients }, next);
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// `grad·factor + (x − mean)·slope + shift` of each element.
struct GradientRow<'a, E> {
    x: &'a [E],
    grad: &'a [E],
    coefficients: [&'a [f32]; 4],
}

impl<S: Simd, E: Element> Values<S> for GradientRow<'_, E> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise; all slices are as long as the row.
        unsafe {
            let [mean, factor, shift, slope] = self.coefficients;
            let d = s.sub(part(s, self.x, i, n), part(s, mean, i, n));
            let own = s.fma(part(s, self.grad, i, n), part(s, factor, i, n), part(s, shift, i, n));
            s.fma(d, part(s, slope, i, n), own)
        }
    }
}
