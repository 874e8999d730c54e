//! Group norm and its gradients on the CPU: a group is a contiguous row, whose statistics, sums and elements are computed
//! while it is in the cache; the gradients of the parameters are kept for each sample and added up in pairs.

use super::{GroupNorm, Kind, Layout};
use crate::normalization::row_norm::cpu::{Affine, Moments, Scaling, moments, normalize, slice};
use crate::normalization::row_norm_backward::cpu::{add_up, parameters_mut, products};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::row::{Values, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::ops::Range;

/// Elements over which gradients are added in f32 before their sum goes on in f64.
const BLOCK: usize = 1024;

pub(super) fn group_norm(op: &GroupNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    match inputs[0].dtype() {
        DType::F16 => typed::<f16>(op, inputs, outputs),
        DType::BF16 => typed::<bf16>(op, inputs, outputs),
        _ => typed::<f32>(op, inputs, outputs),
    }
}

fn typed<E: Element + Scalar>(op: &GroupNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    let layout = op.layout(x.shape());
    let x = x.as_slice::<E>()?;
    let affine = Affine { weight: slice::<E>(op.weight(inputs))?, bias: slice::<E>(op.bias(inputs))? };
    let (out, parameters) = outputs.split_first_mut().expect("the operation has outputs");
    let out = Shared::new(out.as_mut_slice::<E>()?);
    let size = layout.group();
    let rows = if x.is_empty() { 0 } else { layout.samples * layout.groups };
    let tensors = if op.kind == Kind::Forward { 2 } else { 3 };
    let stream = parallel::streams(tensors * size_of_val(x));
    let grain = parallel::BYTES_PER_THREAD / (tensors * size * size_of::<E>()).max(1);
    if op.kind == Kind::Forward {
        parallel::ranges(rows, grain, |rows| {
            let range = rows.start * size..rows.end * size;
            // SAFETY: the ranges of rows are disjoint.
            let y = unsafe { out.slice(range.clone()) };
            dispatch(Forward { x: &x[range], y, affine, layout, first: rows.start, eps: op.eps, stream });
        });
        return Ok(());
    }
    let grad = inputs[0].as_slice::<E>()?;
    let width = 2 * layout.channels;
    let mut partials = Scratch::take(layout.samples.max(1) * width);
    if rows == 0 {
        partials.fill(0.0);
    }
    let sums = Shared::new(&mut partials[..]);
    parallel::ranges(rows, grain, |rows| {
        let range = rows.start * size..rows.end * size;
        let (grad, x) = (&grad[range.clone()], &x[range.clone()]);
        // SAFETY: the ranges of rows are disjoint.
        let dx = unsafe { out.slice(range) };
        let (weight, sums, eps) = (affine.weight, &sums, op.eps);
        dispatch(Backward { grad, x, weight, dx, sums, layout, rows, eps, stream });
    });
    let [dweight, dbias] = parameters_mut::<E>(parameters)?;
    let samples = if rows == 0 { 0 } else { layout.samples };
    add_up(&mut partials, samples, width, [(0..layout.channels, dweight), (layout.channels..width, dbias)]);
    Ok(())
}

struct Forward<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    affine: Affine<'a, E>,
    layout: Layout,
    /// The first row's number.
    first: usize,
    eps: f32,
    stream: bool,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, y, affine, layout, first, eps, stream } = self;
        let (size, members, spatial) = (layout.group(), layout.members(), layout.spatial);
        for (i, (x, y)) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)).enumerate() {
            let scaling = Scaling::of(moments(s, x), eps);
            let channel = (first + i) % layout.groups * members;
            let channels = channel..channel + members;
            if spatial == 1 {
                normalize(s, x, affine.part(channels), y, scaling, stream, [x.as_ptr_range().end]);
                continue;
            }
            for (c, (x, y)) in channels.zip(x.chunks_exact(spatial).zip(y.chunks_exact_mut(spatial))) {
                channel_forward(s, x, y, scaling, affine.at(c), stream, size);
            }
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// Normalizes one channel; the next of its kind is `ahead` elements further.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn channel_forward<S: Simd, E: Element>(
    s: S,
    x: &[E],
    y: &mut [E],
    scaling: Scaling,
    (weight, bias): (f32, f32),
    stream: bool,
    ahead: usize,
) {
    let factor = scaling.rstd * weight;
    let shift = s.splat(bias - scaling.lost * factor);
    let values = Scaled { x, mean: s.splat(scaling.mean), factor: s.splat(factor), shift };
    write(s, y, stream, values, [x.as_ptr().wrapping_add(ahead)]);
}

/// `(x − mean)·factor + shift`.
struct Scaled<'a, E, F> {
    x: &'a [E],
    mean: F,
    factor: F,
    shift: F,
}

impl<S: Simd, E: Element> Values<S> for Scaled<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        s.fma(s.sub(unsafe { part(s, self.x, i, n) }, self.mean), self.factor, self.shift)
    }
}

struct Backward<'a, E> {
    grad: &'a [E],
    x: &'a [E],
    weight: Option<&'a [E]>,
    dx: &'a mut [E],
    /// For each sample the channels' gradients of the weight, then those of the bias.
    sums: &'a Shared<f32>,
    layout: Layout,
    rows: Range<usize>,
    eps: f32,
    stream: bool,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { grad, x, weight, dx, sums, layout, rows, eps, stream } = self;
        let (size, members, spatial) = (layout.group(), layout.members(), layout.spatial);
        let rows_of = grad.chunks_exact(size).zip(x.chunks_exact(size)).zip(dx.chunks_exact_mut(size));
        for (row, ((grad, x), dx)) in rows.zip(rows_of) {
            let moments = moments(s, x);
            let scaling = Scaling::of(moments, eps);
            let channel = row % layout.groups * members;
            let start = row / layout.groups * 2 * layout.channels + channel;
            // SAFETY: a row's channels of a sample are its own.
            let [dweight, dbias] =
                [start, start + layout.channels].map(|start| unsafe { sums.slice(start..start + members) });
            let weight = |c: usize| weight.map_or(1.0, |w| w[channel + c].to_f32());
            let (mut first, mut second) = (0.0, 0.0);
            for (c, (grad, x)) in grad.chunks_exact(spatial).zip(x.chunks_exact(spatial)).enumerate() {
                let [plain, scaled] = channel_sums(s, grad, x, moments, scaling);
                (dweight[c], dbias[c]) = (scaled as f32, plain as f32);
                first += plain * f64::from(weight(c));
                second += scaled * f64::from(weight(c));
            }
            let means = [first, second].map(|sum| (sum / size as f64) as f32);
            let channels = grad.chunks_exact(spatial).zip(x.chunks_exact(spatial)).zip(dx.chunks_exact_mut(spatial));
            for (c, ((grad, x), dx)) in channels.enumerate() {
                channel_backward(s, grad, x, dx, scaling, weight(c), means, stream, size);
            }
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// `Σ grad` and `Σ grad·x̂` over one channel.
#[inline(always)]
pub(crate) fn channel_sums<S: Simd, E: Element>(
    s: S,
    grad: &[E],
    x: &[E],
    moments: Moments,
    scaling: Scaling,
) -> [f64; 2] {
    let (mut plain, mut scaled) = (0.0, 0.0);
    for (grad, x) in grad.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let [sum, product, ..] = products::<S, E, true, false>(s, grad, x, None, scaling.mean);
        plain += f64::from(sum);
        scaled += f64::from(product);
    }
    let lost = moments.mean - f64::from(scaling.mean);
    [plain, (scaled - lost * plain) * f64::from(scaling.rstd)]
}

/// `rstd·(grad·weight − means[0] − x̂·means[1])` over one channel; the next of its kind is `ahead` elements further.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn channel_backward<S: Simd, E: Element>(
    s: S,
    grad: &[E],
    x: &[E],
    dx: &mut [E],
    scaling: Scaling,
    weight: f32,
    means: [f32; 2],
    stream: bool,
    ahead: usize,
) {
    let Scaling { mean, lost, rstd } = scaling;
    let slope = Slope {
        grad,
        x,
        mean: s.splat(mean),
        rstd: s.splat(rstd),
        shift: s.splat(-lost * rstd),
        weight: s.splat(weight * rstd),
        first: s.splat(-means[0] * rstd),
        second: s.splat(means[1] * rstd),
    };
    write(s, dx, stream, slope, [grad, x].map(|t| t.as_ptr().wrapping_add(ahead)));
}

/// `grad·weight + first − x̂·second`.
struct Slope<'a, E, F> {
    grad: &'a [E],
    x: &'a [E],
    mean: F,
    rstd: F,
    shift: F,
    weight: F,
    first: F,
    second: F,
}

impl<S: Simd, E: Element> Values<S> for Slope<'_, E, S::F> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        let (g, x) = unsafe { (part(s, self.grad, i, n), part(s, self.x, i, n)) };
        let unit = s.fma(s.sub(x, self.mean), self.rstd, self.shift);
        s.neg_fma(unit, self.second, s.fma(g, self.weight, self.first))
    }
}
