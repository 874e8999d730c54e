//! Batch norm and its gradients on the CPU: a channel at a time while it is in the cache; without spatial axes, a vector of
//! channels at a time down the samples. Under given statistics elements go in the order in which they lie in memory.

use super::{BatchNorm, Kind, Layout};
use crate::normalization::group_norm::cpu::{channel_backward, channel_forward, channel_sums};
use crate::normalization::row_norm::cpu::{Affine, Moments, Scaling, moments, slice};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::row::{Values, load, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::ops::Range;

/// Samples over which a column is added in f32 before its sum goes on in f64.
const BLOCK_SAMPLES: usize = 64;

pub(super) fn batch_norm(op: &BatchNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    match inputs[0].dtype() {
        DType::F16 => typed::<f16>(op, inputs, outputs),
        DType::BF16 => typed::<bf16>(op, inputs, outputs),
        _ => typed::<f32>(op, inputs, outputs),
    }
}

fn typed<E: Element + Scalar>(op: &BatchNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    let layout = op.layout(x.shape());
    let x = x.as_slice::<E>()?;
    if x.is_empty() {
        return Ok(());
    }
    let affine = Affine { weight: slice::<E>(op.weight(inputs))?, bias: slice::<E>(op.bias(inputs))? };
    let (first, more) = outputs.split_first_mut().expect("the operation has outputs");
    let tensors = if op.kind == Kind::Backward { 3 } else { 2 };
    let stream = parallel::streams(tensors * size_of_val(x));
    if op.kind == Kind::Inference {
        let given = Given { mean: inputs[1].as_slice::<f32>()?, var: inputs[2].as_slice::<f32>()?, affine, eps: op.eps };
        normalize_given(x, given, layout.spatial, first.as_mut_slice::<E>()?, stream);
        return Ok(());
    }
    let out = &Shared::new(first.as_mut_slice::<E>()?);
    let grain = parallel::BYTES_PER_THREAD / (tensors * layout.count() * size_of::<E>());
    let mut sums = vec![[0.0f64; 2]; layout.channels];
    let channel_sums = &Shared::new(&mut sums[..]);
    let source = match op.kind {
        Kind::Backward => Source::Gradient { grad: inputs[0].as_slice::<E>()? },
        _ => Source::Batch,
    };
    let over = |channels: Range<usize>| {
        // SAFETY: the ranges of channels are disjoint, and so are their sums.
        let sums = unsafe { channel_sums.slice(channels.clone()) };
        let work = Channels { x, source, affine, out, sums, layout, channels, eps: op.eps, stream };
        if layout.spatial == 1 { dispatch(Columns(work)) } else { dispatch(work) }
    };
    if layout.spatial == 1 {
        // Whole cache lines of channels for each thread.
        let tiles = layout.channels.div_ceil(MAX_LANES);
        parallel::ranges(tiles, grain.div_ceil(MAX_LANES), |tiles| {
            over(tiles.start * MAX_LANES..(tiles.end * MAX_LANES).min(layout.channels));
        });
    } else {
        parallel::ranges(layout.channels, grain, over);
    }
    match op.kind {
        Kind::Training => update_running(op, layout, inputs, more, &sums),
        Kind::Inference => unreachable!("inference has returned"),
        Kind::Backward => {
            for (k, output) in more.iter_mut().enumerate() {
                for (output, sums) in output.as_mut_slice::<E>()?.iter_mut().zip(&sums) {
                    *output = <E as Element>::from_f32(sums[k] as f32);
                }
            }
            Ok(())
        }
    }
}

/// `(1 − momentum)·running + momentum·batch` from each channel's mean and sum of squared deviations.
fn update_running(
    op: &BatchNorm,
    layout: Layout,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
    sums: &[[f64; 2]],
) -> Result<()> {
    let momentum = f64::from(op.momentum);
    for (k, output) in outputs.iter_mut().enumerate() {
        let count = if k == 0 { 1.0 } else { layout.count() as f64 - 1.0 };
        let old = inputs[k + 1].as_slice::<f32>()?;
        for ((new, old), sums) in output.as_mut_slice::<f32>()?.iter_mut().zip(old).zip(sums) {
            *new = ((1.0 - momentum) * f64::from(*old) + momentum * sums[k] / count) as f32;
        }
    }
    Ok(())
}

/// Where the statistics come from, and whether the gradient is wanted.
#[derive(Clone, Copy)]
enum Source<'a, E> {
    Batch,
    Gradient { grad: &'a [E] },
}

struct Channels<'a, E> {
    x: &'a [E],
    source: Source<'a, E>,
    affine: Affine<'a, E>,
    out: &'a Shared<E>,
    /// Of each channel of the range: mean and sum of squared deviations, or the gradients of weight and bias.
    sums: &'a mut [[f64; 2]],
    layout: Layout,
    channels: Range<usize>,
    eps: f32,
    stream: bool,
}

impl<E: Element> Channels<'_, E> {
    /// The elements of a channel in one sample.
    #[inline(always)]
    fn part(&self, sample: usize, channel: usize) -> Range<usize> {
        let start = (sample * self.layout.channels + channel) * self.layout.spatial;
        start..start + self.layout.spatial
    }

    #[inline(always)]
    fn moments<S: Simd>(&self, s: S, channel: usize) -> Moments {
        let mut all = Moments::default();
        for sample in 0..self.layout.samples {
            all = all.merge(moments(s, &self.x[self.part(sample, channel)]));
        }
        all
    }

    /// A channel with given statistics.
    #[inline(always)]
    fn normalize<S: Simd>(&self, s: S, channel: usize, scaling: Scaling) {
        for sample in 0..self.layout.samples {
            let part = self.part(sample, channel);
            // SAFETY: a channel is one thread's.
            let y = unsafe { self.out.slice(part.clone()) };
            let spatial = self.layout.spatial;
            channel_forward(s, &self.x[part], y, scaling, self.affine.at(channel), self.stream, spatial);
        }
    }

    /// A channel's gradients: returns those of weight and bias.
    #[inline(always)]
    fn gradient<S: Simd>(&self, s: S, channel: usize, grad: &[E]) -> [f64; 2] {
        let moments = self.moments(s, channel);
        let scaling = Scaling::of(moments, self.eps);
        let (mut dweight, mut dbias) = (0.0, 0.0);
        for sample in 0..self.layout.samples {
            let part = self.part(sample, channel);
            let [plain, scaled] = channel_sums(s, &grad[part.clone()], &self.x[part], moments, scaling);
            dweight += scaled;
            dbias += plain;
        }
        let weight = self.affine.at(channel).0;
        let scale = f64::from(weight) / moments.count;
        let means = [(dbias * scale) as f32, (dweight * scale) as f32];
        for sample in 0..self.layout.samples {
            let part = self.part(sample, channel);
            // SAFETY: a channel is one thread's.
            let dx = unsafe { self.out.slice(part.clone()) };
            let (grad, x, spatial) = (&grad[part.clone()], &self.x[part], self.layout.spatial);
            channel_backward(s, grad, x, dx, scaling, weight, means, self.stream, spatial);
        }
        [dweight, dbias]
    }
}

impl<E: Element> Kernel for Channels<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for channel in self.channels.clone() {
            let sums = match self.source {
                Source::Batch => {
                    let moments = self.moments(s, channel);
                    self.normalize(s, channel, Scaling::of(moments, self.eps));
                    [moments.mean, moments.squares]
                }
                Source::Gradient { grad } => self.gradient(s, channel, grad),
            };
            self.sums[channel - self.channels.start] = sums;
        }
        if self.stream {
            s.stream_fence();
        }
    }
}

/// Channels that lie side by side, a vector of them at a time.
struct Columns<'a, E>(Channels<'a, E>);

impl<E: Element> Kernel for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut work = self.0;
        let results = std::mem::take(&mut work.sums);
        let range = work.channels.clone();
        for channel in range.clone().step_by(S::LANES) {
            let column = Column { s, work: &work, channel, lanes: (range.end - channel).min(S::LANES) };
            let mut stats = [Moments::default(); MAX_LANES];
            let mut sums = [[0.0; 2]; MAX_LANES];
            match work.source {
                Source::Batch => {
                    column.moments(&mut stats);
                    for (sums, moments) in sums.iter_mut().zip(&stats) {
                        *sums = [moments.mean, moments.squares];
                    }
                    column.normalize(&column.scalings(&stats));
                }
                Source::Gradient { grad } => {
                    column.moments(&mut stats);
                    column.gradient(grad, &stats, &mut sums);
                }
            }
            let start = channel - range.start;
            results[start..start + column.lanes].copy_from_slice(&sums[..column.lanes]);
        }
    }
}

/// A vector of channels.
struct Column<'a, 'b, S, E> {
    s: S,
    work: &'a Channels<'b, E>,
    channel: usize,
    lanes: usize,
}

impl<S: Simd, E: Element> Column<'_, '_, S, E> {
    /// The channels' values in one sample.
    #[inline(always)]
    fn load(&self, x: &[E], sample: usize) -> S::F {
        let start = sample * self.work.layout.channels + self.channel;
        // SAFETY: the slice has a value for each channel, of which there is at least one.
        unsafe { load(self.s, &x[start..start + self.lanes], 0, 0.0) }
    }

    #[inline(always)]
    fn store(&self, sample: usize, v: S::F) {
        let start = sample * self.work.layout.channels + self.channel;
        // SAFETY: a channel is one thread's, and the slice has a value for each.
        unsafe {
            let out = self.work.out.slice(start..start + self.lanes).as_mut_ptr();
            if self.lanes >= S::LANES { E::store(self.s, out, v) } else { E::store_partial(self.s, out, self.lanes, v) }
        }
    }

    #[inline(always)]
    fn moments(&self, stats: &mut [Moments; MAX_LANES]) {
        let (s, samples) = (self.s, self.work.layout.samples);
        for start in (0..samples).step_by(BLOCK_SAMPLES) {
            let block = start..(start + BLOCK_SAMPLES).min(samples);
            let mut sum = s.splat(0.0);
            for sample in block.clone() {
                sum = s.add(sum, self.load(self.work.x, sample));
            }
            let center = s.div(sum, s.splat(block.len() as f32));
            let (mut first, mut second) = (s.splat(0.0), s.splat(0.0));
            for sample in block.clone() {
                let d = s.sub(self.load(self.work.x, sample), center);
                first = s.add(first, d);
                second = s.fma(d, d, second);
            }
            let [centers, first, second] = [s.to_array(center), s.to_array(first), s.to_array(second)];
            for (k, stats) in stats[..self.lanes].iter_mut().enumerate() {
                let (first, second) = (f64::from(first[k]), f64::from(second[k]));
                *stats = stats.merge(Moments::about(block.len() as f64, centers[k], first, second));
            }
        }
    }

    #[inline(always)]
    fn scalings(&self, stats: &[Moments; MAX_LANES]) -> [Scaling; MAX_LANES] {
        let mut scalings = [Scaling { mean: 0.0, lost: 0.0, rstd: 1.0 }; MAX_LANES];
        for (scaling, stats) in scalings[..self.lanes].iter_mut().zip(stats) {
            *scaling = Scaling::of(*stats, self.work.eps);
        }
        scalings
    }

    #[inline(always)]
    fn normalize(&self, scalings: &[Scaling; MAX_LANES]) {
        let s = self.s;
        let [mut means, mut factors, mut shifts] = [[0.0; MAX_LANES]; 3];
        for (k, scaling) in scalings[..self.lanes].iter().enumerate() {
            let (weight, bias) = self.work.affine.at(self.channel + k);
            means[k] = scaling.mean;
            factors[k] = scaling.rstd * weight;
            shifts[k] = bias - scaling.lost * factors[k];
        }
        // SAFETY: the arrays hold a vector of any level.
        let (mean, factor, shift) = unsafe { (s.load(means.as_ptr()), s.load(factors.as_ptr()), s.load(shifts.as_ptr())) };
        for sample in 0..self.work.layout.samples {
            self.store(sample, s.fma(s.sub(self.load(self.work.x, sample), mean), factor, shift));
        }
    }

    #[inline(always)]
    fn gradient(&self, grad: &[E], stats: &[Moments; MAX_LANES], sums: &mut [[f64; 2]; MAX_LANES]) {
        let (s, samples) = (self.s, self.work.layout.samples);
        let scalings = self.scalings(stats);
        let [mut means, mut shifts, mut rstds] = [[0.0; MAX_LANES]; 3];
        for (k, scaling) in scalings.iter().enumerate() {
            (means[k], shifts[k], rstds[k]) = (scaling.mean, -scaling.lost * scaling.rstd, scaling.rstd);
        }
        // SAFETY: the arrays hold a vector of any level.
        let (mean, shift, rstd) = unsafe { (s.load(means.as_ptr()), s.load(shifts.as_ptr()), s.load(rstds.as_ptr())) };
        for start in (0..samples).step_by(BLOCK_SAMPLES) {
            let (mut plain, mut scaled) = (s.splat(0.0), s.splat(0.0));
            for sample in start..(start + BLOCK_SAMPLES).min(samples) {
                let g = self.load(grad, sample);
                let unit = s.fma(s.sub(self.load(self.work.x, sample), mean), rstd, shift);
                plain = s.add(plain, g);
                scaled = s.fma(g, unit, scaled);
            }
            let [plain, scaled] = [s.to_array(plain), s.to_array(scaled)];
            for (k, sums) in sums[..self.lanes].iter_mut().enumerate() {
                sums[0] += f64::from(scaled[k]);
                sums[1] += f64::from(plain[k]);
            }
        }
        let [mut factors, mut firsts, mut seconds] = [[0.0; MAX_LANES]; 3];
        for (k, sums) in sums[..self.lanes].iter().enumerate() {
            let factor = f64::from(self.work.affine.at(self.channel + k).0) * f64::from(rstds[k]);
            factors[k] = factor as f32;
            firsts[k] = (-factor * sums[1] / samples as f64) as f32;
            seconds[k] = (factor * sums[0] / samples as f64) as f32;
        }
        // SAFETY: as above.
        let (factor, first, second) =
            unsafe { (s.load(factors.as_ptr()), s.load(firsts.as_ptr()), s.load(seconds.as_ptr())) };
        for sample in 0..samples {
            let unit = s.fma(s.sub(self.load(self.work.x, sample), mean), rstd, shift);
            self.store(sample, s.neg_fma(unit, second, s.fma(self.load(grad, sample), factor, first)));
        }
    }
}

/// Elements of a channel in one sample up to which samples are rows with a mean, factor and shift for each element:
/// vectors would be cut short at each channel's end.
const SHORT: usize = 64;

/// The statistics and parameters of all channels.
struct Given<'a, E> {
    mean: &'a [f32],
    var: &'a [f32],
    affine: Affine<'a, E>,
    eps: f32,
}

impl<E: Element> Given<'_, E> {
    #[inline(always)]
    fn scaling(&self, channel: usize) -> Scaling {
        Scaling { mean: self.mean[channel], ..Scaling::without_mean(f64::from(self.var[channel]), self.eps) }
    }
}

/// Normalizes samples of `spatial` elements for each channel.
fn normalize_given<E: Element + Scalar>(x: &[E], given: Given<'_, E>, spatial: usize, y: &mut [E], stream: bool) {
    let channels = given.mean.len();
    let grain = |unit: usize| parallel::BYTES_PER_THREAD / (2 * unit * size_of::<E>());
    if spatial > SHORT {
        return parallel::units_mut(y, spatial, grain(spatial), |first, y| {
            let x = &x[first * spatial..first * spatial + y.len()];
            dispatch(Parts { x, y, given: &given, first, spatial, stream });
        });
    }
    let n = channels * spatial;
    let [mut means, mut factors, mut shifts] = [Scratch::take(n), Scratch::take(n), Scratch::take(n)];
    for channel in 0..channels {
        let (scaling, (weight, bias)) = (given.scaling(channel), given.affine.at(channel));
        let elements = channel * spatial..(channel + 1) * spatial;
        means[elements.clone()].fill(scaling.mean);
        factors[elements.clone()].fill(scaling.rstd * weight);
        shifts[elements].fill(bias);
    }
    let (means, factors, shifts) = (&means[..n], &factors[..n], &shifts[..n]);
    parallel::units_mut(y, n, grain(n), |first, y| {
        let x = &x[first * n..first * n + y.len()];
        dispatch(SampleRows { x, y, means, factors, shifts, stream });
    });
}

/// Channels of samples, one after the other, from the channel of all samples with index `first` on.
struct Parts<'a, 'b, E> {
    x: &'a [E],
    y: &'a mut [E],
    given: &'a Given<'b, E>,
    first: usize,
    spatial: usize,
    stream: bool,
}

impl<E: Element> Kernel for Parts<'_, '_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { given, spatial, stream, .. } = self;
        let parts = self.x.chunks_exact(spatial).zip(self.y.chunks_exact_mut(spatial));
        for (i, (x, y)) in (self.first..).zip(parts) {
            let channel = i % given.mean.len();
            channel_forward(s, x, y, given.scaling(channel), given.affine.at(channel), stream, spatial);
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// Samples as rows.
struct SampleRows<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    means: &'a [f32],
    factors: &'a [f32],
    shifts: &'a [f32],
    stream: bool,
}

impl<E: Element> Kernel for SampleRows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { means, factors, shifts, stream, .. } = self;
        for (x, y) in self.x.chunks_exact(means.len()).zip(self.y.chunks_exact_mut(means.len())) {
            write(s, y, stream, SampleRow { x, means, factors, shifts }, [x.as_ptr_range().end]);
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// `(x − mean)·factor + shift` of each element.
struct SampleRow<'a, E> {
    x: &'a [E],
    means: &'a [f32],
    factors: &'a [f32],
    shifts: &'a [f32],
}

impl<S: Simd, E: Element> Values<S> for SampleRow<'_, E> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise; all four slices are as long as the row.
        unsafe {
            let x = s.sub(part(s, self.x, i, n), part(s, self.means, i, n));
            s.fma(x, part(s, self.factors, i, n), part(s, self.shifts, i, n))
        }
    }
}
