//! Batch norm and its gradients on the GPU: each channel in chunks, whose moments and sums the next launch puts together.
//! Without spatial axes channels lie side by side, which has kernels of its own.

use super::gpu_backward::{add_products, channel_gradients};
use super::gpu_columns::columns;
use super::{BatchNorm, Kind};
use crate::normalization::row_norm::gpu::centered_squares;
use bimetal_core::gpu::kernel::{address_type, row_sums, row_vector, vector_sum};
use bimetal_core::{Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// How channels are given to cubes.
struct ChannelParams {
    /// Units of a cube.
    units: usize,
    /// Cubes for each multiprocessor.
    cubes: usize,
    /// Most chunks of a channel: every unit reads the moments of all.
    chunks: usize,
}

const PARAMS: ChannelParams = ChannelParams { units: 256, cubes: 8, chunks: 64 };

/// Vectors that a unit loads at once.
pub(super) const BATCH: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) weight: bool,
    bias: bool,
    pub(super) backward: bool,
    /// Units hold their elements of a chunk in registers.
    held: bool,
    units: usize,
    pub(super) planes: usize,
}

/// A tensor's extents in vectors, and how its channels are cut.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Extents {
    /// Cubes that have a chunk; a launch may have more.
    pub(super) cubes: u32,
    pub(super) channels: u32,
    pub(super) spatial: u32,
    /// Vectors of a channel.
    pub(super) vectors: u32,
    /// Of these, in a chunk.
    pub(super) chunk: u32,
    pub(super) chunks: u32,
}

impl Form {
    /// Numbers of a chunk: mean, what its rounding lost, squared deviations; with gradients also `Σ grad·(x − mean)` and
    /// `Σ grad`.
    pub(super) fn moments(self) -> usize {
        if self.backward { 5 } else { 3 }
    }

    /// Sums of the second pass: deviations and their squares, with gradients two more.
    pub(super) fn sums(self) -> usize {
        if self.backward { 4 } else { 2 }
    }
}

/// What every launch needs.
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
        let Extents { cubes, channels, spatial, vectors, chunk, chunks } = self.extents;
        ExtentsLaunch::new(cubes, channels, spatial, vectors, chunk, chunks)
    }

    fn count(&self) -> CubeCount {
        self.gpu.cubes(self.extents.cubes as usize)
    }
}

pub(super) fn batch_norm(op: &BatchNorm, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    if x.numel() == 0 {
        return Ok(());
    }
    let layout = op.layout(x.shape());
    if layout.spatial == 1 {
        return columns(op, gpu, inputs, outputs);
    }
    let width = row_vector(gpu.vector(x.dtype()), layout.spatial);
    let (channels, spatial, vectors) = (layout.channels, layout.spatial / width, layout.count() / width);
    if vectors.max(channels * PARAMS.chunks) > i32::MAX as usize {
        let expected = format!("fewer than 2^25 channels of fewer than 2^31 values, got shape {}", x.shape());
        return Err(Error::argument(op.kind.name(), "x", expected));
    }
    let units = PARAMS.units.min(gpu.max_units as usize);
    let wanted = (gpu.processors as usize * PARAMS.cubes).div_ceil(channels).min(PARAMS.chunks);
    // A batch for each unit stays in registers between the two passes; only channels that would make too many chunks
    // are read twice.
    let mut chunk = units * BATCH;
    let held = vectors.div_ceil(chunk) <= PARAMS.chunks;
    if !held {
        chunk = vectors.div_ceil(wanted);
    }
    let chunks = vectors.div_ceil(chunk);
    let planes = (units / gpu.plane.0 as usize).max(1);
    let form = Form { weight: op.weight, bias: op.bias, backward: op.kind == Kind::Backward, held, units, planes };
    let extents = Extents {
        cubes: (channels * chunks) as u32,
        channels: channels as u32,
        spatial: spatial as u32,
        vectors: vectors as u32,
        chunk: chunk as u32,
        chunks: chunks as u32,
    };
    let job = Job { op, gpu, x, extents, width, form, elem: gpu.elem(x.dtype())? };
    match op.kind {
        Kind::Training => training(&job, inputs, outputs),
        Kind::Inference => inference(&job, inputs, outputs),
        Kind::Backward => backward(&job, inputs, outputs),
    }
}

/// Launches a kernel with the arguments that all have in common around its own.
macro_rules! launch {
    ($job:expr, $kernel:ident, $count:expr, $($argument:expr),* $(,)?) => {{
        let (job, address) = ($job, address_type($job.x.numel()));
        let (client, units) = (job.gpu.client(), CubeDim::new_1d(job.form.units as u32));
        $kernel::launch_unchecked(client, $count, units, address, job.width, $($argument),*, job.form, job.elem)
    }};
}

/// Launches the moments of every chunk, chunk after chunk of a channel. The gradient is `x` again where there is none.
fn launch_moments(job: &Job<'_>, grad: &Tensor) -> Result<(Handle, usize)> {
    let n = job.extents.channels as usize * job.extents.chunks as usize * job.form.moments();
    let moments = job.gpu.alloc(n * size_of::<f32>());
    // SAFETY: `x` and `grad` hold `vectors` vectors for each channel and every chunk has its moments; the kernel drops
    // what is past them.
    unsafe {
        launch!(
            job,
            channel_moments,
            job.count(),
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
            normalize_batch,
            job.count(),
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
    let total = job.extents.vectors as usize * job.extents.channels as usize;
    // SAFETY: `x` and `y` hold `total` vectors, of which the kernel drops the positions past the end; the rest is as in
    // `training`.
    unsafe {
        launch!(
            job,
            normalize_given,
            job.gpu.cubes(total.div_ceil(job.form.units)),
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
            channel_gradients,
            job.count(),
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

/// Where vector `e` of a channel lies.
#[cube]
pub(super) fn address(e: u32, channel: u32, extents: &Extents) -> usize {
    let row = (e / extents.spatial) as usize * extents.channels as usize + channel as usize;
    row * extents.spatial as usize + (e % extents.spatial) as usize
}

/// The vectors `e`, `e + step`, … of a channel, all on their way at once; past the end the last one stands in.
#[cube]
pub(super) fn load_batch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    e: u32,
    step: u32,
    end: u32,
    channel: u32,
    extents: &Extents,
) -> Array<Vector<f32, N>> {
    let mut values = Array::<Vector<f32, N>>::new(BATCH);
    #[unroll]
    for i in 0..BATCH {
        values[i] = Vector::cast_from(x[address(min(e + i as u32 * step, end - 1), channel, extents)]);
    }
    values
}

/// Mean, what its rounding lost, and rstd of a channel in `stats[0..3]`, its sum of squared deviations in `stats[3]`; with
/// gradients `Σ grad·(x − mean)` and `Σ grad` in `stats[4..6]`. The cube's units share the chunks; all must call it.
#[cube]
pub(super) fn put_together(
    moments: &[f32],
    stats: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    channel: u32,
    extents: &Extents,
    width: u32,
    eps: f32,
    #[comptime] form: Form,
) {
    let each = comptime!(form.moments());
    let base = channel as usize * extents.chunks as usize * each;
    let count = extents.vectors as f32 * width as f32;
    let mut sums = Array::<f32>::new(comptime!(form.sums()));
    sums[0] = 0.0f32;
    let mut i = UNIT_POS;
    while i < extents.chunks {
        sums[0] += moments[base + each * i as usize] * (chunk_size(i, extents, width) / count);
        i += CUBE_DIM;
    }
    row_sums(&mut sums, scratch, 1usize, false);
    let mean = sums[0];
    #[unroll]
    for j in 0..comptime!(form.sums()) {
        sums[j] = 0.0f32;
    }
    i = UNIT_POS;
    while i < extents.chunks {
        let at = base + each * i as usize;
        let size = chunk_size(i, extents, width);
        let apart = moments[at] - mean;
        let d = apart + moments[at + 1];
        sums[0] += d * size;
        sums[1] += moments[at + 2] + d * d * size;
        if comptime!(form.backward) {
            let slopes = moments[at + 4];
            sums[2] += moments[at + 3] + apart * slopes;
            sums[3] += slopes;
        }
        i += CUBE_DIM;
    }
    row_sums(&mut sums, scratch, comptime!(form.sums()), false);
    let lost = sums[0] / count;
    let squares = centered_squares(sums[1], lost, count);
    stats[0] = mean;
    stats[1] = lost;
    stats[2] = 1.0f32 / (squares / count + eps).sqrt();
    stats[3] = squares;
    if comptime!(form.backward) {
        stats[4] = sums[2] - lost * sums[3];
        stats[5] = sums[3];
    }
}

/// Elements of a chunk.
#[cube]
fn chunk_size(part: u32, extents: &Extents, width: u32) -> f32 {
    let vectors = min((part + 1) * extents.chunk, extents.vectors) - part * extents.chunk;
    vectors as f32 * width as f32
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn channel_moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    moments: &mut [f32],
    extents: Extents,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(form.sums() * form.planes));
    let position = min(CUBE_POS, extents.cubes as usize - 1);
    let part = (position % extents.chunks as usize) as u32;
    let channel = (position / extents.chunks as usize) as u32;
    let first = part * extents.chunk + UNIT_POS;
    let end = min((part + 1) * extents.chunk, extents.vectors);
    let count = (end - part * extents.chunk) as f32 * N::value() as f32;
    let step = CUBE_DIM;
    let mut sums = Array::<f32>::new(comptime!(form.sums()));
    sums[0] = 0.0f32;
    let mut e = first;
    let mut values = Array::<Vector<f32, N>>::new(BATCH);
    while e < end {
        values = load_batch::<F, N>(x, e, step, end, channel, &extents);
        #[unroll]
        for i in 0..BATCH {
            if e + (i as u32) * step < end {
                sums[0] += vector_sum(values[i]);
            }
        }
        e += BATCH as u32 * step;
    }
    row_sums(&mut sums, &mut scratch, 1usize, false);
    let mean = sums[0] / count;
    #[unroll]
    for j in 0..comptime!(form.sums()) {
        sums[j] = 0.0f32;
    }
    e = first;
    while e < end {
        if comptime!(!form.held) {
            values = load_batch::<F, N>(x, e, step, end, channel, &extents);
        }
        if comptime!(form.backward) {
            let slopes = load_batch::<F, N>(grad, e, step, end, channel, &extents);
            add_products::<N>(&mut sums, &slopes, &values, mean, end - e, step);
        }
        #[unroll]
        for i in 0..BATCH {
            if e + (i as u32) * step < end {
                let d = values[i] - Vector::new(mean);
                sums[0] += vector_sum(d);
                sums[1] += vector_sum(d * d);
            }
        }
        e += BATCH as u32 * step;
    }
    row_sums(&mut sums, &mut scratch, comptime!(form.sums()), false);
    if UNIT_POS == 0 && CUBE_POS < extents.cubes as usize {
        let at = comptime!(form.moments()) * (channel as usize * extents.chunks as usize + part as usize);
        let lost = sums[0] / count;
        moments[at] = mean;
        moments[at + 1] = lost;
        moments[at + 2] = centered_squares(sums[1], lost, count);
        if comptime!(form.backward) {
            moments[at + 3] = sums[2];
            moments[at + 4] = sums[3];
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize_batch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    moments: &[f32],
    weight: &[F],
    bias: &[F],
    running_mean: &[f32],
    running_var: &[f32],
    y: &mut [Vector<F, N>],
    new_mean: &mut [f32],
    new_var: &mut [f32],
    extents: Extents,
    momentum: f32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(form.sums() * form.planes));
    let step = CUBE_DIM;
    let position = min(CUBE_POS, extents.cubes as usize - 1);
    let part = (position % extents.chunks as usize) as u32;
    let channel = (position / extents.chunks as usize) as u32;
    let mut stats = Array::<f32>::new(4usize);
    put_together(moments, &mut stats, &mut scratch, channel, &extents, N::value() as u32, eps, form);
    if CUBE_POS < extents.cubes as usize {
        let c = channel as usize;
        if part == 0 && UNIT_POS == 0 {
            let count = extents.vectors as f32 * N::value() as f32;
            new_mean[c] = (1.0f32 - momentum) * running_mean[c] + momentum * (stats[0] + stats[1]);
            new_var[c] = (1.0f32 - momentum) * running_var[c] + momentum * (stats[3] / (count - 1.0f32));
        }
        let mut factor = stats[2];
        let mut shift = 0.0f32;
        if comptime!(form.weight) {
            factor *= f32::cast_from(weight[c]);
        }
        if comptime!(form.bias) {
            shift = f32::cast_from(bias[c]);
        }
        let end = min((part + 1) * extents.chunk, extents.vectors);
        let mut e = part * extents.chunk + UNIT_POS;
        while e < end {
            let values = load_batch::<F, N>(x, e, step, end, channel, &extents);
            #[unroll]
            for i in 0..BATCH {
                let own = e + i as u32 * step;
                if own < end {
                    let d = (values[i] - Vector::new(stats[0])) - Vector::new(stats[1]);
                    let scaled = d * Vector::new(factor) + Vector::new(shift);
                    y[address(own, channel, &extents)] = Vector::cast_from(scaled);
                }
            }
            e += BATCH as u32 * step;
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize_given<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[F],
    bias: &[F],
    mean: &[f32],
    var: &[f32],
    y: &mut [Vector<F, N>],
    total: usize,
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let c = at / extents.spatial as usize % extents.channels as usize;
        let v: Vector<f32, N> = Vector::cast_from(x[at]);
        let mut factor = 1.0f32 / (var[c] + eps).sqrt();
        let mut shift = 0.0f32;
        if comptime!(form.weight) {
            factor *= f32::cast_from(weight[c]);
        }
        if comptime!(form.bias) {
            shift = f32::cast_from(bias[c]);
        }
        y[at] = Vector::cast_from((v - Vector::new(mean[c])) * Vector::new(factor) + Vector::new(shift));
    }
}
