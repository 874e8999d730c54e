//! Batch norm and its gradients on the GPU: each channel in chunks, whose moments and sums the next launch puts together;
//! without spatial axes a cube takes neighbouring channels side by side, so that its loads stay contiguous.

use super::{BatchNorm, Kind};
use crate::normalization::row_norm::gpu::{centered_squares, row_sums};
use bimetal_core::gpu::kernel::{address_type, row_vector, vector_sum};
use bimetal_core::{Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// How channels are given to cubes.
struct ChannelParams {
    /// Units of a cube.
    units: usize,
    /// Channels side by side in a cube where there are no spatial axes.
    lanes: usize,
    /// Least vectors of a chunk for each of its units.
    unit_vectors: usize,
    /// Cubes for each multiprocessor.
    cubes: usize,
    /// Most chunks of a channel: every unit reads the moments of all.
    chunks: usize,
}

const PARAMS: ChannelParams = ChannelParams { units: 256, lanes: 32, unit_vectors: 4, cubes: 8, chunks: 64 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    weight: bool,
    bias: bool,
    /// Channels side by side in a cube.
    lanes: usize,
    units: usize,
    planes: usize,
}

/// A tensor's extents in vectors, and how they are cut.
struct Extents {
    width: usize,
    channels: usize,
    spatial: usize,
    /// Vectors of a channel.
    vectors: usize,
    /// Of these, in a chunk.
    chunk: usize,
    chunks: usize,
    cubes: usize,
}

pub(super) fn batch_norm(op: &BatchNorm, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    if x.numel() == 0 {
        return Ok(());
    }
    let layout = op.layout(x.shape());
    let width = row_vector(gpu.vector(x.dtype()), layout.spatial);
    let (channels, spatial, vectors) = (layout.channels, layout.spatial / width, layout.count() / width);
    if vectors > i32::MAX as usize || channels > i32::MAX as usize {
        let expected = format!("channels of fewer than 2^31 values, got shape {}", x.shape());
        return Err(Error::argument(op.kind.name(), "x", expected));
    }
    let units = PARAMS.units.min(gpu.max_units as usize);
    let lanes = if layout.spatial == 1 { PARAMS.lanes.min(units) } else { 1 };
    let tiles = channels.div_ceil(lanes);
    let wanted = (gpu.processors as usize * PARAMS.cubes).div_ceil(tiles).min(PARAMS.chunks);
    let chunk = vectors.div_ceil(wanted).max(units / lanes * PARAMS.unit_vectors);
    let chunks = vectors.div_ceil(chunk);
    let extents = Extents { width, channels, spatial, vectors, chunk, chunks, cubes: tiles * chunks };
    let planes = (units / gpu.plane.0 as usize).max(1);
    let form = Form { weight: op.weight, bias: op.bias, lanes, units, planes };
    match op.kind {
        Kind::Training => training(op, gpu, inputs, outputs, &extents, form),
        Kind::Inference => inference(op, gpu, inputs, outputs, &extents, form),
        Kind::Backward => backward(op, gpu, inputs, outputs, &extents, form),
    }
}

/// Launches the moments of every chunk: three numbers each, chunk after chunk of a channel.
fn launch_moments(gpu: &Gpu, x: &Tensor, extents: &Extents, form: Form) -> Result<Handle> {
    let &Extents { width, channels, spatial, vectors, chunk, chunks, cubes } = extents;
    let moments = gpu.alloc(channels * chunks * 3 * size_of::<f32>());
    // SAFETY: `x` holds `vectors` vectors for each channel and there are three moments for each chunk; the kernel drops
    // what is past them.
    unsafe {
        channel_moments::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(form.units as u32),
            address_type(x.numel()),
            width,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(moments.clone(), channels * chunks * 3),
            cubes,
            channels as u32,
            spatial as u32,
            vectors as u32,
            chunk as u32,
            chunks as u32,
            form,
            gpu.elem(x.dtype())?,
        );
    }
    Ok(moments)
}

fn training(
    op: &BatchNorm,
    gpu: &Gpu,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
    extents: &Extents,
    form: Form,
) -> Result<()> {
    let x = inputs[0];
    let moments = launch_moments(gpu, x, extents, form)?;
    let &Extents { width, channels, spatial, vectors, chunk, chunks, cubes } = extents;
    // SAFETY: as in `launch_moments`; parameters and statistics have an element for each channel. `x` stands for
    // parameters that are absent: kernels have a fixed list of arguments.
    unsafe {
        normalize_batch::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(form.units as u32),
            address_type(x.numel()),
            width,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(moments, channels * chunks * 3),
            op.weight(inputs).unwrap_or(&x).gpu_arg()?,
            op.bias(inputs).unwrap_or(&x).gpu_arg()?,
            inputs[1].gpu_arg()?,
            inputs[2].gpu_arg()?,
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            cubes,
            channels as u32,
            spatial as u32,
            vectors as u32,
            chunk as u32,
            chunks as u32,
            op.momentum,
            op.eps,
            form,
            gpu.elem(x.dtype())?,
        );
    }
    Ok(())
}

fn inference(
    op: &BatchNorm,
    gpu: &Gpu,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
    extents: &Extents,
    form: Form,
) -> Result<()> {
    let x = inputs[0];
    let total = extents.vectors * extents.channels;
    // SAFETY: `x` and `y` hold `total` vectors, of which the kernel drops the positions past the end; the rest is as in
    // `training`.
    unsafe {
        normalize_given::launch_unchecked(
            gpu.client(),
            gpu.cubes(total.div_ceil(form.units)),
            CubeDim::new_1d(form.units as u32),
            address_type(x.numel()),
            extents.width,
            x.gpu_arg()?,
            op.weight(inputs).unwrap_or(&x).gpu_arg()?,
            op.bias(inputs).unwrap_or(&x).gpu_arg()?,
            inputs[1].gpu_arg()?,
            inputs[2].gpu_arg()?,
            outputs[0].gpu_arg()?,
            total,
            extents.channels as u32,
            extents.spatial as u32,
            op.eps,
            form,
            gpu.elem(x.dtype())?,
        );
    }
    Ok(())
}

fn backward(
    op: &BatchNorm,
    gpu: &Gpu,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
    extents: &Extents,
    form: Form,
) -> Result<()> {
    let (grad, x) = (inputs[0], inputs[1]);
    let moments = launch_moments(gpu, x, extents, form)?;
    let &Extents { width, channels, spatial, vectors, chunk, chunks, cubes } = extents;
    let products = gpu.alloc(channels * chunks * 2 * size_of::<f32>());
    let (address, elem) = (address_type(x.numel()), gpu.elem(x.dtype())?);
    // SAFETY: as in `training`; there are two products for each chunk.
    unsafe {
        channel_products::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(form.units as u32),
            address,
            width,
            grad.gpu_arg()?,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(moments.clone(), channels * chunks * 3),
            BufferArg::from_raw_parts(products.clone(), channels * chunks * 2),
            cubes,
            channels as u32,
            spatial as u32,
            vectors as u32,
            chunk as u32,
            chunks as u32,
            op.eps,
            form,
            elem,
        );
        channel_gradients::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(form.units as u32),
            address,
            width,
            grad.gpu_arg()?,
            x.gpu_arg()?,
            op.weight(inputs).unwrap_or(&x).gpu_arg()?,
            BufferArg::from_raw_parts(moments, channels * chunks * 3),
            BufferArg::from_raw_parts(products, channels * chunks * 2),
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            cubes,
            channels as u32,
            spatial as u32,
            vectors as u32,
            chunk as u32,
            chunks as u32,
            op.eps,
            form,
            elem,
        );
    }
    Ok(())
}

/// Where vector `e` of a channel lies.
#[cube]
fn address(e: u32, channel: u32, channels: u32, spatial: u32) -> usize {
    ((e / spatial) as usize * channels as usize + channel as usize) * spatial as usize + (e % spatial) as usize
}

/// Replaces each of a unit's `count` values by its sum over the units of the same channel.
#[cube]
fn lane_sums(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] count: usize,
    #[comptime] form: Form,
) {
    if comptime!(form.lanes == 1) {
        row_sums(values, scratch, count, false);
    } else {
        #[unroll]
        for j in 0..count {
            sync_cube();
            scratch[UNIT_POS as usize] = values[j];
            let mut half = CUBE_DIM / 2;
            while half >= comptime!(form.lanes as u32) {
                sync_cube();
                if UNIT_POS < half {
                    scratch[UNIT_POS as usize] += scratch[(UNIT_POS + half) as usize];
                }
                half /= 2;
            }
            sync_cube();
            values[j] = scratch[(UNIT_POS % comptime!(form.lanes as u32)) as usize];
        }
    }
}

/// Mean, what its rounding lost, and rstd of a channel in `stats[0..3]`, its sum of squared deviations in `stats[3]`.
#[cube]
fn put_together(
    moments: &[f32],
    stats: &mut Array<f32>,
    channel: u32,
    vectors: u32,
    chunk: u32,
    chunks: u32,
    width: u32,
    eps: f32,
) {
    let base = channel as usize * chunks as usize * 3;
    let count = vectors as f32 * width as f32;
    let mut mean = 0.0f32;
    for i in 0..chunks {
        let size = (min((i + 1) * chunk, vectors) - i * chunk) as f32 * width as f32;
        mean += moments[base + 3 * i as usize] * (size / count);
    }
    let mut deviation = 0.0f32;
    let mut squares = 0.0f32;
    for i in 0..chunks {
        let at = base + 3 * i as usize;
        let size = (min((i + 1) * chunk, vectors) - i * chunk) as f32 * width as f32;
        let d = (moments[at] - mean) + moments[at + 1];
        deviation += d * size;
        squares += moments[at + 2] + d * d * size;
    }
    let lost = deviation / count;
    squares = centered_squares(squares, lost, count);
    stats[0] = mean;
    stats[1] = lost;
    stats[2] = 1.0f32 / (squares / count + eps).sqrt();
    stats[3] = squares;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn channel_moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    moments: &mut [f32],
    cubes: usize,
    channels: u32,
    spatial: u32,
    vectors: u32,
    chunk: u32,
    chunks: u32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(if form.lanes == 1 { 2 * form.planes } else { form.units }));
    let lanes = comptime!(form.lanes as u32);
    let position = min(CUBE_POS, cubes - 1);
    let part = (position % chunks as usize) as u32;
    let wanted = (position / chunks as usize) as u32 * lanes + UNIT_POS % lanes;
    let channel = min(wanted, channels - 1);
    let first = part * chunk + UNIT_POS / lanes;
    let end = min((part + 1) * chunk, vectors);
    let count = (end - part * chunk) as f32 * N::value() as f32;
    let mut sums = Array::<f32>::new(2usize);
    sums[0] = 0.0f32;
    let mut e = first;
    while e < end {
        let v: Vector<f32, N> = Vector::cast_from(x[address(e, channel, channels, spatial)]);
        sums[0] += vector_sum(v);
        e += CUBE_DIM / lanes;
    }
    lane_sums(&mut sums, &mut scratch, 1usize, form);
    let mean = sums[0] / count;
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    e = first;
    while e < end {
        let v: Vector<f32, N> = Vector::cast_from(x[address(e, channel, channels, spatial)]);
        let d = v - Vector::new(mean);
        sums[0] += vector_sum(d);
        sums[1] += vector_sum(d * d);
        e += CUBE_DIM / lanes;
    }
    lane_sums(&mut sums, &mut scratch, 2usize, form);
    if UNIT_POS < lanes && wanted < channels && CUBE_POS < cubes {
        let at = 3 * (channel as usize * chunks as usize + part as usize);
        let lost = sums[0] / count;
        moments[at] = mean;
        moments[at + 1] = lost;
        moments[at + 2] = centered_squares(sums[1], lost, count);
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
    cubes: usize,
    channels: u32,
    spatial: u32,
    vectors: u32,
    chunk: u32,
    chunks: u32,
    momentum: f32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let lanes = comptime!(form.lanes as u32);
    let part = (CUBE_POS % chunks as usize) as u32;
    let channel = (CUBE_POS / chunks as usize) as u32 * lanes + UNIT_POS % lanes;
    if channel < channels && CUBE_POS < cubes {
        let mut stats = Array::<f32>::new(4usize);
        put_together(moments, &mut stats, channel, vectors, chunk, chunks, N::value() as u32, eps);
        let c = channel as usize;
        if part == 0 && UNIT_POS < lanes {
            let count = vectors as f32 * N::value() as f32;
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
        let end = min((part + 1) * chunk, vectors);
        let mut e = part * chunk + UNIT_POS / lanes;
        while e < end {
            let at = address(e, channel, channels, spatial);
            let v: Vector<f32, N> = Vector::cast_from(x[at]);
            let d = (v - Vector::new(stats[0])) - Vector::new(stats[1]);
            y[at] = Vector::cast_from(d * Vector::new(factor) + Vector::new(shift));
            e += CUBE_DIM / lanes;
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
    channels: u32,
    spatial: u32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let c = at / spatial as usize % channels as usize;
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

/// `Σ grad·x̂` and `Σ grad` of each chunk.
#[cube(launch_unchecked, address_type = "dynamic")]
fn channel_products<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    moments: &[f32],
    products: &mut [f32],
    cubes: usize,
    channels: u32,
    spatial: u32,
    vectors: u32,
    chunk: u32,
    chunks: u32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(if form.lanes == 1 { 2 * form.planes } else { form.units }));
    let lanes = comptime!(form.lanes as u32);
    let position = min(CUBE_POS, cubes - 1);
    let part = (position % chunks as usize) as u32;
    let wanted = (position / chunks as usize) as u32 * lanes + UNIT_POS % lanes;
    let channel = min(wanted, channels - 1);
    let mut stats = Array::<f32>::new(4usize);
    put_together(moments, &mut stats, channel, vectors, chunk, chunks, N::value() as u32, eps);
    let mut sums = Array::<f32>::new(2usize);
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    let end = min((part + 1) * chunk, vectors);
    let mut e = part * chunk + UNIT_POS / lanes;
    while e < end {
        let at = address(e, channel, channels, spatial);
        let v: Vector<f32, N> = Vector::cast_from(x[at]);
        let g: Vector<f32, N> = Vector::cast_from(grad[at]);
        let d = (v - Vector::new(stats[0])) - Vector::new(stats[1]);
        sums[0] += vector_sum(g * d);
        sums[1] += vector_sum(g);
        e += CUBE_DIM / lanes;
    }
    lane_sums(&mut sums, &mut scratch, 2usize, form);
    if UNIT_POS < lanes && wanted < channels && CUBE_POS < cubes {
        let at = 2 * (channel as usize * chunks as usize + part as usize);
        products[at] = sums[0] * stats[2];
        products[at + 1] = sums[1];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn channel_gradients<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[F],
    moments: &[f32],
    products: &[f32],
    dx: &mut [Vector<F, N>],
    dweight: &mut [F],
    dbias: &mut [F],
    cubes: usize,
    channels: u32,
    spatial: u32,
    vectors: u32,
    chunk: u32,
    chunks: u32,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let lanes = comptime!(form.lanes as u32);
    let part = (CUBE_POS % chunks as usize) as u32;
    let channel = (CUBE_POS / chunks as usize) as u32 * lanes + UNIT_POS % lanes;
    if channel < channels && CUBE_POS < cubes {
        let mut stats = Array::<f32>::new(4usize);
        put_together(moments, &mut stats, channel, vectors, chunk, chunks, N::value() as u32, eps);
        let mut scaled = 0.0f32;
        let mut plain = 0.0f32;
        for i in 0..chunks {
            let at = 2 * (channel as usize * chunks as usize + i as usize);
            scaled += products[at];
            plain += products[at + 1];
        }
        if part == 0 && UNIT_POS < lanes {
            dweight[channel as usize] = F::cast_from(scaled);
            dbias[channel as usize] = F::cast_from(plain);
        }
        let count = vectors as f32 * N::value() as f32;
        let first = plain / count;
        let second = scaled / count;
        let mut factor = stats[2];
        if comptime!(form.weight) {
            factor *= f32::cast_from(weight[channel as usize]);
        }
        let end = min((part + 1) * chunk, vectors);
        let mut e = part * chunk + UNIT_POS / lanes;
        while e < end {
            let at = address(e, channel, channels, spatial);
            let v: Vector<f32, N> = Vector::cast_from(x[at]);
            let g: Vector<f32, N> = Vector::cast_from(grad[at]);
            let unit = ((v - Vector::new(stats[0])) - Vector::new(stats[1])) * Vector::new(stats[2]);
            let slope = g - Vector::new(first) - unit * Vector::new(second);
            dx[at] = Vector::cast_from(slope * Vector::new(factor));
            e += CUBE_DIM / lanes;
        }
    }
}
