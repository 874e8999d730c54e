//! Batch norm and its gradients on the CPU: a channel at a time while it is in the cache; without spatial axes, and under
//! given statistics, in the order in which elements lie in memory.

mod rows;

use super::{BatchNorm, Kind, Layout};
use crate::normalization::group_norm::cpu::{channel_backward, channel_forward, channel_sums};
use crate::normalization::row_norm::cpu::{Affine, Moments, Scaling, moments, slice};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::row::{Values, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::ops::Range;

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
    let out = first.as_mut_slice::<E>()?;
    let mut sums = vec![[0.0f64; 2]; layout.channels];
    let grad = if op.kind == Kind::Backward { Some(inputs[0].as_slice::<E>()?) } else { None };
    if layout.spatial == 1 {
        rows::Batch { x, grad, channels: layout.channels, affine, eps: op.eps, stream }.run(out, &mut sums);
    } else {
        let (out, channel_sums) = (&Shared::new(out), &Shared::new(&mut sums[..]));
        let grain = parallel::BYTES_PER_THREAD / (tensors * layout.count() * size_of::<E>());
        parallel::ranges(layout.channels, grain, |channels| {
            // SAFETY: the ranges of channels are disjoint, and so are their sums.
            let sums = unsafe { channel_sums.slice(channels.clone()) };
            dispatch(Channels { x, grad, affine, out, sums, layout, channels, eps: op.eps, stream });
        });
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

struct Channels<'a, E> {
    x: &'a [E],
    /// If gradients are wanted.
    grad: Option<&'a [E]>,
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
            let sums = match self.grad {
                None => {
                    let moments = self.moments(s, channel);
                    self.normalize(s, channel, Scaling::of(moments, self.eps));
                    [moments.mean, moments.squares]
                }
                Some(grad) => self.gradient(s, channel, grad),
            };
            self.sums[channel - self.channels.start] = sums;
        }
        if self.stream {
            s.stream_fence();
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
