//! Batch norm under given statistics: elements in the order in which they lie in memory.

use crate::normalization::group_norm::cpu::channel_forward;
use crate::normalization::row_norm::cpu::{Affine, Scaling};
use bimetal_core::Scalar;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::row::{Values, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};

/// Elements of a channel in one sample up to which samples are rows with a mean, factor and shift for each element:
/// vectors would be cut short at each channel's end.
const SHORT: usize = 64;

/// The statistics and parameters of all channels.
pub(super) struct Given<'a, E> {
    pub mean: &'a [f32],
    pub var: &'a [f32],
    pub affine: Affine<'a, E>,
    pub eps: f32,
}

impl<E: Element> Given<'_, E> {
    #[inline(always)]
    fn scaling(&self, channel: usize) -> Scaling {
        Scaling { mean: self.mean[channel], ..Scaling::without_mean(f64::from(self.var[channel]), self.eps) }
    }
}

/// Normalizes samples of `spatial` elements for each channel.
pub(super) fn normalize<E: Element + Scalar>(x: &[E], given: Given<'_, E>, spatial: usize, y: &mut [E], stream: bool) {
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
        dispatch(Rows { x, y, means, factors, shifts, stream });
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
struct Rows<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    means: &'a [f32],
    factors: &'a [f32],
    shifts: &'a [f32],
    stream: bool,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { means, factors, shifts, stream, .. } = self;
        for (x, y) in self.x.chunks_exact(means.len()).zip(self.y.chunks_exact_mut(means.len())) {
            write(s, y, stream, Row { x, means, factors, shifts }, [x.as_ptr_range().end]);
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// `(x − mean)·factor + shift` of each element.
struct Row<'a, E> {
    x: &'a [E],
    means: &'a [f32],
    factors: &'a [f32],
    shifts: &'a [f32],
}

impl<S: Simd, E: Element> Values<S> for Row<'_, E> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise; all four slices are as long as the row.
        unsafe {
            let x = s.sub(part(s, self.x, i, n), part(s, self.means, i, n));
            s.fma(x, part(s, self.factors, i, n), part(s, self.shifts, i, n))
        }
    }
}
