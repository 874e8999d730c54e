//! Group norm and its gradients on the GPU: a cube takes a group and passes over it while it is in the caches; a second
//! launch adds up the samples' gradients of the parameters.

use super::{GroupNorm, Kind, Layout};
use crate::normalization::row_norm::gpu::centered_squares;
use bimetal_core::gpu::kernel::{add_rows, address_type, row_sums, row_vector, vector_sum};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Vectors of a group for each unit of its cube, as far as the largest cube allows: enough loads in flight.
const UNIT_VECTORS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    weight: bool,
    bias: bool,
    /// In the gradients, a plane rather than the cube adds up a channel.
    by_plane: bool,
}

pub(super) fn group_norm(op: &GroupNorm, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let x = inputs[op.x()];
    let layout = op.layout(x.shape());
    let Layout { samples, channels, spatial, groups } = layout;
    let empty = x.numel() == 0;
    if empty && (op.kind == Kind::Forward || channels == 0) {
        return Ok(());
    }
    let partials = gpu.alloc(samples * channels * 2 * size_of::<f32>());
    if empty {
        return add_rows(gpu, partials, 0, channels, &outputs[1..]);
    }
    let rows = samples * groups;
    let width = row_vector(gpu.vector(x.dtype()), spatial);
    let (vectors, spatial) = (layout.group() / width, spatial / width);
    let wanted = vectors.div_ceil(UNIT_VECTORS).next_multiple_of(gpu.plane.1 as usize);
    let units = wanted.clamp(gpu.plane.1 as usize, 1024.min(gpu.max_units as usize));
    let planes = (units / gpu.plane.0 as usize).max(1);
    // `x` stands for parameters that are absent: kernels have a fixed list of arguments.
    let weight = op.weight(inputs).unwrap_or(&x);
    let bias = op.bias(inputs).unwrap_or(&x);
    let form = Form { weight: op.weight, bias: op.bias, by_plane: spatial < units };
    let (address, elem) = (address_type(x.numel()), gpu.elem(x.dtype())?);
    let members = layout.members() as u32;
    // SAFETY (both launches): the tensors of `x`'s shape hold `rows` groups of `vectors` vectors, the parameters
    // `channels` elements and the partial sums two rows of that for each sample; the kernels drop what is past them.
    if op.kind == Kind::Forward {
        unsafe {
            normalize_groups::launch_unchecked(
                gpu.client(),
                gpu.cubes(rows),
                CubeDim::new_1d(units as u32),
                address,
                width,
                x.gpu_arg()?,
                weight.gpu_arg()?,
                bias.gpu_arg()?,
                outputs[0].gpu_arg()?,
                rows,
                vectors as u32,
                spatial as u32,
                groups as u32,
                members,
                op.eps,
                form,
                planes,
                elem,
            );
        }
        return Ok(());
    }
    unsafe {
        group_gradients::launch_unchecked(
            gpu.client(),
            gpu.cubes(rows),
            CubeDim::new_1d(units as u32),
            address,
            width,
            inputs[0].gpu_arg()?,
            x.gpu_arg()?,
            weight.gpu_arg()?,
            outputs[0].gpu_arg()?,
            BufferArg::from_raw_parts(partials.clone(), samples * channels * 2),
            rows,
            vectors as u32,
            spatial as u32,
            groups as u32,
            members,
            op.eps,
            form,
            planes,
            elem,
        );
    }
    add_rows(gpu, partials, samples, channels, &outputs[1..])
}

/// The mean of a group, what its rounding lost, and rstd, in `sums[0..3]`.
#[cube]
fn group_scaling<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sums: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    start: usize,
    vectors: u32,
    eps: f32,
) {
    let count = vectors as f32 * N::value() as f32;
    sums[0] = 0.0f32;
    let mut k = UNIT_POS;
    while k < vectors {
        let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        sums[0] += vector_sum(v);
        k += CUBE_DIM;
    }
    row_sums(sums, scratch, 1usize, false);
    let mean = sums[0] / count;
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    k = UNIT_POS;
    while k < vectors {
        let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        let d = v - Vector::new(mean);
        sums[0] += vector_sum(d);
        sums[1] += vector_sum(d * d);
        k += CUBE_DIM;
    }
    row_sums(sums, scratch, 2usize, false);
    let lost = sums[0] / count;
    let squares = centered_squares(sums[1], lost, count);
    sums[0] = mean;
    sums[1] = lost;
    sums[2] = 1.0f32 / (squares / count + eps).sqrt();
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize_groups<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[F],
    bias: &[F],
    y: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    spatial: u32,
    groups: u32,
    members: u32,
    eps: f32,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    let row = min(CUBE_POS, rows - 1);
    let start = row * vectors as usize;
    let channel = (row % groups as usize) as u32 * members;
    let mut sums = Array::<f32>::new(3usize);
    group_scaling(x, &mut sums, &mut scratch, start, vectors, eps);
    let mut k = UNIT_POS;
    while k < vectors && CUBE_POS < rows {
        let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        let c = (channel + k / spatial) as usize;
        let mut unit = ((v - Vector::new(sums[0])) - Vector::new(sums[1])) * Vector::new(sums[2]);
        if comptime!(form.weight) {
            unit *= Vector::new(f32::cast_from(weight[c]));
        }
        if comptime!(form.bias) {
            unit += Vector::new(f32::cast_from(bias[c]));
        }
        y[start + k as usize] = Vector::cast_from(unit);
        k += CUBE_DIM;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn group_gradients<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[F],
    dx: &mut [Vector<F, N>],
    partials: &mut [f32],
    rows: usize,
    vectors: u32,
    spatial: u32,
    groups: u32,
    members: u32,
    eps: f32,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    let row = min(CUBE_POS, rows - 1);
    let start = row * vectors as usize;
    let channel = (row % groups as usize) as u32 * members;
    let mut scaling = Array::<f32>::new(3usize);
    group_scaling(x, &mut scaling, &mut scratch, start, vectors, eps);
    let mut lane = UNIT_POS;
    let mut step = CUBE_DIM;
    let mut at_once = 1u32;
    let mut slot = 0u32;
    if comptime!(form.by_plane) {
        lane = UNIT_POS_PLANE;
        step = PLANE_DIM;
        at_once = CUBE_DIM / PLANE_DIM;
        slot = UNIT_POS / PLANE_DIM;
    }
    let mut means = Array::<f32>::new(2usize);
    means[0] = 0.0f32;
    means[1] = 0.0f32;
    let sample = row / groups as usize * 2 * (groups * members) as usize;
    for turn in 0..members.div_ceil(at_once) {
        let wanted = turn * at_once + slot;
        let c = min(wanted, members - 1);
        let begin = start + (c * spatial) as usize;
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = 0.0f32;
        sums[1] = 0.0f32;
        let mut k = lane;
        while k < spatial {
            let g: Vector<f32, N> = Vector::cast_from(grad[begin + k as usize]);
            let v: Vector<f32, N> = Vector::cast_from(x[begin + k as usize]);
            let d = (v - Vector::new(scaling[0])) - Vector::new(scaling[1]);
            sums[0] += vector_sum(g);
            sums[1] += vector_sum(g * d);
            k += step;
        }
        row_sums(&mut sums, &mut scratch, 2usize, form.by_plane);
        if lane == 0 && wanted < members && CUBE_POS < rows {
            let scaled = sums[1] * scaling[2];
            let at = sample + (channel + c) as usize;
            partials[at] = scaled;
            partials[at + (groups * members) as usize] = sums[0];
            let mut w = 1.0f32;
            if comptime!(form.weight) {
                w = f32::cast_from(weight[(channel + c) as usize]);
            }
            means[0] += w * sums[0];
            means[1] += w * scaled;
        }
    }
    row_sums(&mut means, &mut scratch, 2usize, false);
    let count = vectors as f32 * N::value() as f32;
    let first = means[0] / count;
    let second = means[1] / count;
    let mut k = UNIT_POS;
    while k < vectors && CUBE_POS < rows {
        let at = start + k as usize;
        let v: Vector<f32, N> = Vector::cast_from(x[at]);
        let mut weighted: Vector<f32, N> = Vector::cast_from(grad[at]);
        let unit = ((v - Vector::new(scaling[0])) - Vector::new(scaling[1])) * Vector::new(scaling[2]);
        if comptime!(form.weight) {
            weighted *= Vector::new(f32::cast_from(weight[(channel + k / spatial) as usize]));
        }
        let slope = (weighted - Vector::new(first) - unit * Vector::new(second)) * Vector::new(scaling[2]);
        dx[at] = Vector::cast_from(slope);
        k += CUBE_DIM;
    }
}
