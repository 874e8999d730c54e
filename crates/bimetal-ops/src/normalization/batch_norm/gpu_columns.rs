//! Batch norm and its gradients on the GPU without spatial axes: a cube takes neighbouring channels side by side, a vector
//! of them for each unit, and a chunk of the samples; the next launch puts the chunks together.

mod kernels;

use self::kernels::{column_gradients, column_moments, normalize_columns, normalize_given};
use super::{BatchNorm, Kind};
use bimetal_core::gpu::kernel::{address_type, row_vector};
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
    /// Cubes for each multiprocessor.
    cubes: usize,
    /// Most chunks: every cube reads the moments of all.
    chunks: usize,
}

const PARAMS: ColumnParams = ColumnParams { units: 256, lanes: 32, cubes: 8, chunks: 128 };

/// Vectors that a unit loads at once.
const BATCH: usize = 8;

/// Moments of a chunk: mean, what its rounding lost, squared deviations; with gradients also `Σ grad·(x − mean)` and
/// `Σ grad`.
const MOMENTS: usize = 3;
const GRADIENT_MOMENTS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    weight: bool,
    bias: bool,
    backward: bool,
    /// Units hold their elements of a chunk in registers.
    held: bool,
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
    // A batch for each unit stays in registers between the two passes.
    let batch = units / lanes * BATCH;
    let held = samples.div_ceil(batch) <= PARAMS.chunks;
    let chunk = if held { batch } else { samples.div_ceil(wanted).next_multiple_of(batch) };
    let chunks = samples.div_ceil(chunk);
    let form = Form { weight: op.weight, bias: op.bias, backward: op.kind == Kind::Backward, held, lanes, units };
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

