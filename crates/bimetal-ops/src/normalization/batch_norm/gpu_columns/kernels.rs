//! The kernels of batch norm without spatial axes.

use super::{BATCH, Extents, Form, GRADIENT_MOMENTS, MOMENTS};
use bimetal_core::gpu::kernel::lane_sums;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Chunks whose moments a unit loads at once in the second pass over them.
const MOMENT_BATCH: usize = 4;

/// The vectors of a channel's samples `row`, `row + step`, …, all on their way at once; past the end the last stands in.
#[cube]
fn load_batch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    row: usize,
    step: usize,
    end: usize,
    channel: usize,
    channels: usize,
) -> Array<Vector<f32, N>> {
    let mut values = Array::<Vector<f32, N>>::new(BATCH);
    #[unroll]
    for i in 0..BATCH {
        values[i] = Vector::cast_from(x[min(row + i * step, end - 1) * channels + channel]);
    }
    values
}

/// Samples of a chunk.
#[cube]
fn chunk_size(part: usize, extents: &Extents) -> f32 {
    (min((part + 1) * extents.chunk, extents.samples) - part * extents.chunk) as f32
}

/// What is left of sums of squared deviations when the mean deviation is taken off; never negative, NaN if it was.
#[cube]
fn centered<N: Size>(squares: Vector<f32, N>, lost: Vector<f32, N>, count: f32) -> Vector<f32, N> {
    let zero = Vector::new(0.0f32);
    let left = squares - lost * lost * Vector::new(count);
    select_many(left.less_than(&zero), zero, left)
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn column_moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    moments: &mut [Vector<f32, N>],
    extents: Extents,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[Vector<f32, N>]>::new_slice(form.units);
    let lanes = comptime!(form.lanes);
    let position = min(CUBE_POS, extents.tiles * extents.chunks - 1);
    let part = position / extents.tiles;
    let wanted = position % extents.tiles * lanes + UNIT_POS as usize % lanes;
    let channel = min(wanted, extents.channels - 1);
    let first = part * extents.chunk + UNIT_POS as usize / lanes;
    let end = min((part + 1) * extents.chunk, extents.samples);
    let count = (end - part * extents.chunk) as f32;
    let step = CUBE_DIM as usize / lanes;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(form.sums()));
    sums[0] = Vector::new(0.0f32);
    let mut row = first;
    let mut values = Array::<Vector<f32, N>>::new(BATCH);
    while row < end {
        values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
        #[unroll]
        for i in 0..BATCH {
            if row + i * step < end {
                sums[0] += values[i];
            }
        }
        row += BATCH * step;
    }
    lane_sums::<N>(&mut sums, &mut scratch, 1usize, lanes);
    let mean = sums[0] / Vector::new(count);
    #[unroll]
    for j in 0..comptime!(form.sums()) {
        sums[j] = Vector::new(0.0f32);
    }
    row = first;
    while row < end {
        if comptime!(!form.held) {
            values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
        }
        if comptime!(form.backward) {
            let slopes = load_batch::<F, N>(grad, row, step, end, channel, extents.channels);
            #[unroll]
            for i in 0..BATCH {
                if row + i * step < end {
                    sums[2] += slopes[i] * (values[i] - mean);
                    sums[3] += slopes[i];
                }
            }
        }
        #[unroll]
        for i in 0..BATCH {
            if row + i * step < end {
                let d = values[i] - mean;
                sums[0] += d;
                sums[1] += d * d;
            }
        }
        row += BATCH * step;
    }
    lane_sums::<N>(&mut sums, &mut scratch, comptime!(form.sums()), lanes);
    if (UNIT_POS as usize) < lanes && wanted < extents.channels && CUBE_POS < extents.tiles * extents.chunks {
        let stride = extents.chunks * extents.channels;
        let at = part * extents.channels + channel;
        let lost = sums[0] / Vector::new(count);
        moments[at] = mean;
        moments[at + stride] = lost;
        moments[at + 2 * stride] = centered::<N>(sums[1], lost, count);
        if comptime!(form.backward) {
            moments[at + 3 * stride] = sums[2];
            moments[at + 4 * stride] = sums[3];
        }
    }
}

/// Mean, what its rounding lost, rstd and the sum of squared deviations of a unit's channels in `stats[0..4]`; with
/// gradients `Σ grad·(x − mean)` and `Σ grad` in `stats[4..6]`. The units of a lane share the chunks.
#[cube]
fn put_together<N: Size>(
    moments: &[Vector<f32, N>],
    stats: &mut Array<Vector<f32, N>>,
    scratch: &mut Shared<[Vector<f32, N>]>,
    channel: usize,
    extents: &Extents,
    eps: f32,
    #[comptime] form: Form,
) {
    let lanes = comptime!(form.lanes);
    let step = CUBE_DIM as usize / lanes;
    let stride = extents.chunks * extents.channels;
    let count = extents.samples as f32;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(form.sums()));
    sums[0] = Vector::new(0.0f32);
    let mut i = UNIT_POS as usize / lanes;
    while i < extents.chunks {
        let mut means = Array::<Vector<f32, N>>::new(BATCH);
        #[unroll]
        for k in 0..BATCH {
            means[k] = moments[min(i + k * step, extents.chunks - 1) * extents.channels + channel];
        }
        #[unroll]
        for k in 0..BATCH {
            if i + k * step < extents.chunks {
                sums[0] += means[k] * Vector::new(chunk_size(i + k * step, extents) / count);
            }
        }
        i += BATCH * step;
    }
    lane_sums::<N>(&mut sums, scratch, 1usize, lanes);
    let mean = sums[0];
    #[unroll]
    for j in 0..comptime!(form.sums()) {
        sums[j] = Vector::new(0.0f32);
    }
    let each = comptime!(if form.backward { GRADIENT_MOMENTS } else { MOMENTS });
    i = UNIT_POS as usize / lanes;
    while i < extents.chunks {
        let mut parts = Array::<Vector<f32, N>>::new(comptime!(each * MOMENT_BATCH));
        #[unroll]
        for k in 0..MOMENT_BATCH {
            let at = min(i + k * step, extents.chunks - 1) * extents.channels + channel;
            #[unroll]
            for j in 0..each {
                parts[k * each + j] = moments[j * stride + at];
            }
        }
        #[unroll]
        for k in 0..MOMENT_BATCH {
            let first = comptime!(k * each);
            if i + k * step < extents.chunks {
                let size = Vector::new(chunk_size(i + k * step, extents));
                let apart = parts[first] - mean;
                let d = apart + parts[first + 1];
                sums[0] += d * size;
                sums[1] += parts[first + 2] + d * d * size;
                if comptime!(form.backward) {
                    sums[2] += parts[first + 3] + apart * parts[first + 4];
                    sums[3] += parts[first + 4];
                }
            }
        }
        i += MOMENT_BATCH * step;
    }
    lane_sums::<N>(&mut sums, scratch, comptime!(form.sums()), lanes);
    let lost = sums[0] / Vector::new(count);
    let squares = centered::<N>(sums[1], lost, count);
    stats[0] = mean;
    stats[1] = lost;
    stats[2] = Vector::new(1.0f32) / (squares / Vector::new(count) + Vector::new(eps)).sqrt();
    stats[3] = squares;
    if comptime!(form.backward) {
        stats[4] = sums[2] - lost * sums[3];
        stats[5] = sums[3];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn normalize_columns<F: Float, N: Size>(
    x: &[Vector<F, N>],
    moments: &[Vector<f32, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    running_mean: &[Vector<f32, N>],
    running_var: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    new_mean: &mut [Vector<f32, N>],
    new_var: &mut [Vector<f32, N>],
    extents: Extents,
    momentum: f32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[Vector<f32, N>]>::new_slice(form.units);
    let lanes = comptime!(form.lanes);
    let step = CUBE_DIM as usize / lanes;
    let position = min(CUBE_POS, extents.tiles * extents.chunks - 1);
    let part = position / extents.tiles;
    let wanted = position % extents.tiles * lanes + UNIT_POS as usize % lanes;
    let channel = min(wanted, extents.channels - 1);
    let mut stats = Array::<Vector<f32, N>>::new(4usize);
    put_together::<N>(moments, &mut stats, &mut scratch, channel, &extents, eps, form);
    if wanted < extents.channels && CUBE_POS < extents.tiles * extents.chunks {
        if part == 0 && (UNIT_POS as usize) < lanes {
            let (old, new) = (Vector::new(1.0f32 - momentum), Vector::new(momentum));
            let others = Vector::new(extents.samples as f32 - 1.0f32);
            new_mean[channel] = old * running_mean[channel] + new * (stats[0] + stats[1]);
            new_var[channel] = old * running_var[channel] + new * (stats[3] / others);
        }
        let mut factor = stats[2];
        let mut shift = Vector::new(0.0f32);
        if comptime!(form.weight) {
            factor *= Vector::cast_from(weight[channel]);
        }
        if comptime!(form.bias) {
            shift = Vector::cast_from(bias[channel]);
        }
        let end = min((part + 1) * extents.chunk, extents.samples);
        let mut row = part * extents.chunk + UNIT_POS as usize / lanes;
        while row < end {
            let values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
            #[unroll]
            for i in 0..BATCH {
                let own = row + i * step;
                if own < end {
                    let d = (values[i] - stats[0]) - stats[1];
                    y[own * extents.channels + channel] = Vector::cast_from(d * factor + shift);
                }
            }
            row += BATCH * step;
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn normalize_given<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    mean: &[Vector<f32, N>],
    var: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    total: usize,
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let c = at % extents.channels;
        let v: Vector<f32, N> = Vector::cast_from(x[at]);
        let mut factor = Vector::new(1.0f32) / (var[c] + Vector::new(eps)).sqrt();
        let mut shift = Vector::new(0.0f32);
        if comptime!(form.weight) {
            factor *= Vector::cast_from(weight[c]);
        }
        if comptime!(form.bias) {
            shift = Vector::cast_from(bias[c]);
        }
        y[at] = Vector::cast_from((v - mean[c]) * factor + shift);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn column_gradients<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    moments: &[Vector<f32, N>],
    dx: &mut [Vector<F, N>],
    dweight: &mut [Vector<F, N>],
    dbias: &mut [Vector<F, N>],
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[Vector<f32, N>]>::new_slice(form.units);
    let lanes = comptime!(form.lanes);
    let step = CUBE_DIM as usize / lanes;
    let position = min(CUBE_POS, extents.tiles * extents.chunks - 1);
    let part = position / extents.tiles;
    let wanted = position % extents.tiles * lanes + UNIT_POS as usize % lanes;
    let channel = min(wanted, extents.channels - 1);
    let mut stats = Array::<Vector<f32, N>>::new(6usize);
    put_together::<N>(moments, &mut stats, &mut scratch, channel, &extents, eps, form);
    if wanted < extents.channels && CUBE_POS < extents.tiles * extents.chunks {
        let scaled = stats[4] * stats[2];
        if part == 0 && (UNIT_POS as usize) < lanes {
            dweight[channel] = Vector::cast_from(scaled);
            dbias[channel] = Vector::cast_from(stats[5]);
        }
        let count = Vector::new(extents.samples as f32);
        let first = stats[5] / count;
        let second = scaled / count * stats[2];
        let mut factor = stats[2];
        if comptime!(form.weight) {
            factor *= Vector::cast_from(weight[channel]);
        }
        let end = min((part + 1) * extents.chunk, extents.samples);
        let mut row = part * extents.chunk + UNIT_POS as usize / lanes;
        while row < end {
            let values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
            let slopes = load_batch::<F, N>(grad, row, step, end, channel, extents.channels);
            #[unroll]
            for i in 0..BATCH {
                let own = row + i * step;
                if own < end {
                    let d = (values[i] - stats[0]) - stats[1];
                    let slope = slopes[i] - first - d * second;
                    dx[own * extents.channels + channel] = Vector::cast_from(slope * factor);
                }
            }
            row += BATCH * step;
        }
    }
}
