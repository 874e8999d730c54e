//! Batch norm and its gradients on the GPU without spatial axes: a cube takes neighbouring channels side by side, a vector
//! of them for each unit, and a chunk of the samples; the next launch puts the chunks together.

use super::{BatchNorm, Kind};
use bimetal_core::gpu::kernel::{address_type, lane_sums, row_vector};
use bimetal_core::{Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// How columns are given to cubes. On an H200, 4096×2560 in f32: BENCHMARKS.md.
struct ColumnParams {
    /// Units of a cube.
    units: usize,
    /// Vectors of channels side by side: 512 bytes of each sample.
    lanes: usize,
    /// Least samples for each unit of a cube.
    unit_samples: usize,
    /// Cubes for each multiprocessor.
    cubes: usize,
    /// Most chunks: every cube reads the moments of all.
    chunks: usize,
}

const PARAMS: ColumnParams = ColumnParams { units: 256, lanes: 32, unit_samples: 4, cubes: 8, chunks: 128 };

/// Vectors that a unit loads at once.
const BATCH: usize = 4;

/// Moments of a chunk: mean, what its rounding lost, squared deviations; with gradients also `Σ grad·(x − mean)` and
/// `Σ grad`.
const MOMENTS: usize = 3;
const GRADIENT_MOMENTS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    weight: bool,
    bias: bool,
    backward: bool,
    lanes: usize,
    units: usize,
}

impl Form {
    /// Sums of the second pass: deviations and their squares, with gradients two more.
    fn sums(self) -> usize {
        if self.backward { 4 } else { 2 }
    }
}

/// The matrix in vectors, and how it is cut.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Extents {
    /// Vectors of a sample.
    channels: usize,
    samples: usize,
    /// Samples of a chunk.
    chunk: usize,
    chunks: usize,
    /// Cubes side by side.
    tiles: usize,
}

struct Job<'a> {
    op: &'a BatchNorm,
    gpu: &'a Gpu,
    x: &'a Tensor,
    extents: Extents,
    width: usize,
    form: Form,
    elem: ElemType,
}

impl Job<'_> {
    fn extents(&self) -> ExtentsLaunch {
        let Extents { channels, samples, chunk, chunks, tiles } = self.extents;
        ExtentsLaunch::new(channels, samples, chunk, chunks, tiles)
    }
}

pub(super) fn columns(op: &BatchNorm, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    let layout = op.layout(x.shape());
    let width = row_vector(gpu.vector(x.dtype()), layout.channels);
    let (channels, samples) = (layout.channels / width, layout.samples);
    if samples > i32::MAX as usize {
        let expected = format!("fewer than 2^31 samples, got shape {}", x.shape());
        return Err(Error::argument(op.kind.name(), "x", expected));
    }
    let units = PARAMS.units.min(gpu.max_units as usize);
    let lanes = PARAMS.lanes.min(units);
    let tiles = channels.div_ceil(lanes);
    let wanted = (gpu.processors as usize * PARAMS.cubes).div_ceil(tiles).min(PARAMS.chunks);
    let chunk = samples.div_ceil(wanted).max(units / lanes * PARAMS.unit_samples);
    let chunks = samples.div_ceil(chunk);
    let form = Form { weight: op.weight, bias: op.bias, backward: op.kind == Kind::Backward, lanes, units };
    let extents = Extents { channels, samples, chunk, chunks, tiles };
    let job = Job { op, gpu, x, extents, width, form, elem: gpu.elem(x.dtype())? };
    match op.kind {
        Kind::Training => training(&job, inputs, outputs),
        Kind::Inference => inference(&job, inputs, outputs),
        Kind::Backward => backward(&job, inputs, outputs),
    }
}

/// Launches a kernel of one unit for a vector of each row of the cube, with the arguments that all have in common.
macro_rules! launch {
    ($job:expr, $kernel:ident, $count:expr, $($argument:expr),* $(,)?) => {{
        let (job, address) = ($job, address_type($job.x.numel()));
        let (client, units) = (job.gpu.client(), CubeDim::new_1d(job.form.units as u32));
        let count = job.gpu.cubes($count);
        $kernel::launch_unchecked(client, count, units, address, job.width, $($argument),*, job.form, job.elem)
    }};
}

/// Launches the moments of every chunk. The gradient is `x` again where there is none.
fn launch_moments(job: &Job<'_>, grad: &Tensor) -> Result<(Handle, usize)> {
    let Extents { channels, chunks, tiles, .. } = job.extents;
    let each = if job.form.backward { GRADIENT_MOMENTS } else { MOMENTS };
    let n = each * chunks * channels * job.width;
    let moments = job.gpu.alloc(n * size_of::<f32>());
    // SAFETY: `x` and `grad` hold `samples` rows of `channels` vectors and there are `each` moments for each chunk and
    // channel; the kernel drops what is past them.
    unsafe {
        launch!(
            job,
            column_moments,
            tiles * chunks,
            job.x.gpu_arg()?,
            grad.gpu_arg()?,
            BufferArg::from_raw_parts(moments.clone(), n),
            job.extents(),
        );
    }
    Ok((moments, n))
}

fn training(job: &Job<'_>, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let (moments, n) = launch_moments(job, job.x)?;
    // SAFETY: as in `launch_moments`; parameters and statistics have an element for each channel. `x` stands for
    // parameters that are absent: kernels have a fixed list of arguments.
    unsafe {
        launch!(
            job,
            normalize_columns,
            job.extents.tiles * job.extents.chunks,
            job.x.gpu_arg()?,
            BufferArg::from_raw_parts(moments, n),
            job.op.weight(inputs).unwrap_or(&job.x).gpu_arg()?,
            job.op.bias(inputs).unwrap_or(&job.x).gpu_arg()?,
            inputs[1].gpu_arg()?,
            inputs[2].gpu_arg()?,
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            job.extents(),
            job.op.momentum,
            job.op.eps,
        );
    }
    Ok(())
}

fn inference(job: &Job<'_>, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let total = job.extents.samples * job.extents.channels;
    // SAFETY: `x` and `y` hold `total` vectors, of which the kernel drops the positions past the end; the rest is as in
    // `training`.
    unsafe {
        launch!(
            job,
            normalize_given,
            total.div_ceil(job.form.units),
            job.x.gpu_arg()?,
            job.op.weight(inputs).unwrap_or(&job.x).gpu_arg()?,
            job.op.bias(inputs).unwrap_or(&job.x).gpu_arg()?,
            inputs[1].gpu_arg()?,
            inputs[2].gpu_arg()?,
            outputs[0].gpu_arg()?,
            total,
            job.extents(),
            job.op.eps,
        );
    }
    Ok(())
}

fn backward(job: &Job<'_>, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let (moments, n) = launch_moments(job, inputs[0])?;
    // SAFETY: as in `training`.
    unsafe {
        launch!(
            job,
            column_gradients,
            job.extents.tiles * job.extents.chunks,
            inputs[0].gpu_arg()?,
            job.x.gpu_arg()?,
            job.op.weight(inputs).unwrap_or(&job.x).gpu_arg()?,
            BufferArg::from_raw_parts(moments, n),
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            job.extents(),
            job.op.eps,
        );
    }
    Ok(())
}

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

/// What is left of sums of squared deviations when the mean deviation is taken off; never negative, NaN if it was.
#[cube]
fn centered<N: Size>(squares: Vector<f32, N>, lost: Vector<f32, N>, count: f32) -> Vector<f32, N> {
    let zero = Vector::new(0.0f32);
    let left = squares - lost * lost * Vector::new(count);
    select_many(left.less_than(&zero), zero, left)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn column_moments<F: Float, N: Size>(
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
    while row < end {
        let values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
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
        let values = load_batch::<F, N>(x, row, step, end, channel, extents.channels);
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
        let size = (min((i + 1) * extents.chunk, extents.samples) - i * extents.chunk) as f32;
        sums[0] += moments[i * extents.channels + channel] * Vector::new(size / count);
        i += step;
    }
    lane_sums::<N>(&mut sums, scratch, 1usize, lanes);
    let mean = sums[0];
    #[unroll]
    for j in 0..comptime!(form.sums()) {
        sums[j] = Vector::new(0.0f32);
    }
    i = UNIT_POS as usize / lanes;
    while i < extents.chunks {
        let at = i * extents.channels + channel;
        let size = Vector::new((min((i + 1) * extents.chunk, extents.samples) - i * extents.chunk) as f32);
        let apart = moments[at] - mean;
        let d = apart + moments[at + stride];
        sums[0] += d * size;
        sums[1] += moments[at + 2 * stride] + d * d * size;
        if comptime!(form.backward) {
            let slopes = moments[at + 4 * stride];
            sums[2] += moments[at + 3 * stride] + apart * slopes;
            sums[3] += slopes;
        }
        i += step;
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
fn normalize_columns<F: Float, N: Size>(
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
fn normalize_given<F: Float, N: Size>(
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
fn column_gradients<F: Float, N: Size>(
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
