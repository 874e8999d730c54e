//! Gradients of layer norm and RMS norm on the GPU: rows in registers, each cube over many of them with its sums for the
//! parameters, then one launch that adds the cubes' sums up; rows too long for that in three launches.

use super::RowNormBackward;
use crate::normalization::row_norm::gpu::centered_squares;
use crate::normalization::row_norm::row_length;
use bimetal_core::gpu::kernel::{add_rows, address_type, row_sums, row_vector, vector_sum};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::gpu_row::{hold_row, hold_weights, keep_partials};
use cubecl::server::Handle;

/// How rows are given to units.
struct RowParams {
    /// Most elements of a row that a unit holds when a plane takes the row.
    plane_elements: usize,
    /// Most elements that a unit holds when a cube takes a row; the kernel keeps five vectors of that many. For 4096×4096 on
    /// an H200 layer norm's gradients take 79 µs with 8, 72 with 16 and 73 with 32 (RMS norm's 72, 68, 69).
    cube_elements: usize,
    /// Units of a cube, at most.
    cube_units: usize,
    /// Units of a cube whose planes take rows.
    plane_units: usize,
    /// Units that a multiprocessor is given; cubes go on to further rows beyond it.
    resident_units: usize,
}

const PARAMS: RowParams = RowParams {
    plane_elements: 16,
    cube_elements: 16,
    cube_units: 1024,
    plane_units: 256,
    resident_units: 512,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) centers: bool,
    pub(super) weight: bool,
    /// A plane takes a row rather than a cube.
    by_plane: bool,
}

struct Job<'a> {
    grad: &'a Tensor,
    x: &'a Tensor,
    /// `x` stands for a weight that is absent: kernels have a fixed list of arguments.
    weight: &'a Tensor,
    dx: &'a Tensor,
    rows: usize,
    n: usize,
    width: usize,
    form: Form,
    eps: f32,
}

pub(super) fn row_norm_backward(
    op: &RowNormBackward,
    gpu: &Gpu,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let n = row_length(inputs[1].shape(), inputs.get(2).map(|w| w.shape()));
    if n == 0 {
        return Ok(());
    }
    let form = Form {
        centers: op.kind.centers(),
        weight: op.weight,
        by_plane: n <= gpu.plane.0 as usize * PARAMS.plane_elements,
    };
    let job = Job {
        grad: inputs[0],
        x: inputs[1],
        weight: inputs.last().expect("the operation has inputs"),
        dx: outputs[0],
        rows: inputs[1].numel() / n,
        n,
        width: row_vector(gpu.vector(inputs[1].dtype()), n),
        form,
        eps: op.eps,
    };
    let (partials, count) = if job.rows == 0 {
        (gpu.alloc(0), 0)
    } else if form.by_plane || n <= PARAMS.cube_units.min(gpu.max_units as usize) * PARAMS.cube_elements {
        in_registers(gpu, &job)?
    } else {
        long_rows(gpu, &job)?
    };
    add_rows(gpu, partials, count, n, &outputs[1..])
}

fn in_registers(gpu: &Gpu, job: &Job<'_>) -> Result<(Handle, usize)> {
    let &Job { rows, n, width, form, .. } = job;
    let vectors = n / width;
    let (plane_min, plane_max) = (gpu.plane.0 as usize, gpu.plane.1 as usize);
    let largest = gpu.max_units as usize;
    let units = if form.by_plane {
        PARAMS.plane_units.min(largest)
    } else {
        n.div_ceil(PARAMS.cube_elements).next_multiple_of(plane_max).min(PARAMS.cube_units.min(largest))
    };
    let at_once = if form.by_plane { (units / plane_max).max(1) } else { 1 };
    let held = vectors.div_ceil(if form.by_plane { plane_min } else { units });
    let resident = gpu.processors as usize * (PARAMS.resident_units / units).max(1);
    let cubes = rows.div_ceil(at_once).min(resident);
    let columns = if form.centers { 2 * n } else { n };
    let partials = gpu.alloc(cubes * columns * size_of::<f32>());
    // SAFETY: `x`, `grad` and `dx` hold `rows` rows of `vectors` vectors, the weight one, the partial sums one or two for
    // each cube; the kernel drops what is past them.
    unsafe {
        gradient_in_registers::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(units as u32),
            address_type(job.x.numel()),
            width,
            job.grad.gpu_arg()?,
            job.x.gpu_arg()?,
            job.weight.gpu_arg()?,
            job.dx.gpu_arg()?,
            BufferArg::from_raw_parts(partials.clone(), cubes * columns),
            rows,
            cubes,
            vectors as u32,
            job.eps,
            held,
            // Not the vectors themselves: rows of many lengths share a kernel.
            if form.by_plane { held * plane_min } else { 1 },
            form,
            (units / plane_min).max(1),
            gpu.elem(job.x.dtype())?,
        );
    }
    Ok((partials, cubes))
}

fn long_rows(gpu: &Gpu, job: &Job<'_>) -> Result<(Handle, usize)> {
    let &Job { rows, n, width, form, .. } = job;
    let vectors = n / width;
    let largest = gpu.max_units as usize;
    let units = 1024.min(largest);
    let factors = gpu.alloc(rows * 5 * size_of::<f32>());
    let tile_units = 256.min(largest);
    let tiles = vectors.div_ceil(tile_units);
    let wanted = (gpu.processors as usize * 8).div_ceil(tiles).min(rows);
    let block = rows.div_ceil(wanted);
    let blocks = rows.div_ceil(block);
    let columns = if form.centers { 2 * n } else { n };
    let partials = gpu.alloc(blocks * columns * size_of::<f32>());
    let (address, elem) = (address_type(job.x.numel()), gpu.elem(job.x.dtype())?);
    // SAFETY: as in `in_registers`; there are five factors for each row and a partial sum for each block of rows.
    unsafe {
        row_factors::launch_unchecked(
            gpu.client(),
            gpu.cubes(rows),
            CubeDim::new_1d(units as u32),
            address,
            width,
            job.grad.gpu_arg()?,
            job.x.gpu_arg()?,
            job.weight.gpu_arg()?,
            BufferArg::from_raw_parts(factors.clone(), rows * 5),
            rows,
            vectors as u32,
            job.eps,
            form,
            (units / gpu.plane.0 as usize).max(1),
            elem,
        );
        gradient_by_columns::launch_unchecked(
            gpu.client(),
            gpu.cubes(tiles * blocks),
            CubeDim::new_1d(tile_units as u32),
            address,
            width,
            job.grad.gpu_arg()?,
            job.x.gpu_arg()?,
            job.weight.gpu_arg()?,
            BufferArg::from_raw_parts(factors, rows * 5),
            job.dx.gpu_arg()?,
            BufferArg::from_raw_parts(partials.clone(), blocks * columns),
            rows,
            tiles as u32,
            blocks,
            block as u32,
            vectors as u32,
            form,
            elem,
        );
    }
    Ok((partials, blocks))
}

/// The deviations from the mean in `values` become `x̂`; from the sums over a row (of the deviations, their squares, `ĝ`
/// and `ĝ·d`) the factors of a row: lost mean, rstd, mean(ĝ) and mean(ĝ·x̂).
#[cube]
fn finish_sums(sums: &mut Array<f32>, count: f32, eps: f32, #[comptime] form: Form) {
    let mut lost = 0.0f32;
    let mut squares = sums[1];
    if comptime!(form.centers) {
        lost = sums[0] / count;
        squares = centered_squares(sums[1], lost, count);
    }
    let rstd = 1.0f32 / (squares / count + eps).sqrt();
    let first = sums[2] / count;
    let second = (sums[3] / count - lost * first) * rstd;
    sums[0] = lost;
    sums[1] = rstd;
    sums[2] = first;
    sums[3] = second;
}

/// `rstd·(ĝ − first − x̂·second)`, without `first` for RMS norm.
#[cube]
fn slope<N: Size>(
    weighted: Vector<f32, N>,
    unit: Vector<f32, N>,
    rstd: f32,
    first: f32,
    second: f32,
    #[comptime] form: Form,
) -> Vector<f32, N> {
    let mut centered = weighted;
    if comptime!(form.centers) {
        centered = weighted - Vector::new(first);
    }
    (centered - unit * Vector::new(second)) * Vector::new(rstd)
}

#[cube]
fn weigh<F: Float, N: Size>(g: Vector<f32, N>, weight: Vector<F, N>, #[comptime] form: Form) -> Vector<f32, N> {
    let mut weighted = g;
    if comptime!(form.weight) {
        weighted = g * Vector::cast_from(weight);
    }
    weighted
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradient_in_registers<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    partials: &mut [Vector<f32, N>],
    rows: usize,
    cubes: usize,
    vectors: u32,
    eps: f32,
    #[comptime] held: usize,
    #[comptime] shared: usize,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(4 * planes));
    let mut first = UNIT_POS;
    let mut step = CUBE_DIM;
    let mut at_once = 1u32;
    let mut slot = 0u32;
    if comptime!(form.by_plane) {
        first = UNIT_POS_PLANE;
        step = PLANE_DIM;
        at_once = CUBE_DIM / PLANE_DIM;
        slot = UNIT_POS / PLANE_DIM;
    }
    let mut dweight = Array::<Vector<f32, N>>::new(held);
    let mut dbias = Array::<Vector<f32, N>>::new(held);
    let mut weights = Array::<Vector<F, N>>::new(held);
    hold_weights(&mut dweight, &mut dbias, &mut weights, weight, first, step, vectors, held, form);
    let count = (vectors * N::value() as u32) as f32;
    // Every unit takes the same number of turns; those past the last row redo it without effect.
    let turn_rows = cubes * at_once as usize;
    for turn in 0..rows.div_ceil(turn_rows) {
        let wanted = turn * turn_rows + CUBE_POS * at_once as usize + slot as usize;
        let counts = wanted < rows && CUBE_POS < cubes;
        let start = min(wanted, rows - 1) * vectors as usize;
        let mut values = Array::<Vector<f32, N>>::new(held);
        let mut slopes = Array::<Vector<f32, N>>::new(held);
        let mut sums = Array::<f32>::new(4usize);
        sums[0] = hold_row(&mut values, &mut slopes, x, grad, start, first, step, vectors, held, form);
        let mut mean = 0.0f32;
        if comptime!(form.centers) {
            row_sums(&mut sums, &mut scratch, 1usize, form.by_plane);
            mean = sums[0] / count;
        }
        #[unroll]
        for j in 0..4 {
            sums[j] = 0.0f32;
        }
        #[unroll]
        for i in 0..held {
            if first + i as u32 * step < vectors {
                let d = values[i] - Vector::new(mean);
                values[i] = d;
                let weighted = weigh(slopes[i], weights[i], form);
                sums[0] += vector_sum(d);
                sums[1] += vector_sum(d * d);
                sums[2] += vector_sum(weighted);
                sums[3] += vector_sum(weighted * d);
            }
        }
        row_sums(&mut sums, &mut scratch, 4usize, form.by_plane);
        finish_sums(&mut sums, count, eps, form);
        #[unroll]
        for i in 0..held {
            let k = first + i as u32 * step;
            if k < vectors && counts {
                let unit = (values[i] - Vector::new(sums[0])) * Vector::new(sums[1]);
                let weighted = weigh(slopes[i], weights[i], form);
                dx[start + k as usize] = Vector::cast_from(slope(weighted, unit, sums[1], sums[2], sums[3], form));
                dweight[i] += slopes[i] * unit;
                dbias[i] += slopes[i];
            }
        }
    }
    if comptime!(form.by_plane) {
        gather_planes(&mut dweight, first, step, slot, at_once, vectors, held, shared);
        gather_planes(&mut dbias, first, step, slot, at_once, vectors, held, shared);
    }
    if slot == at_once - 1 && CUBE_POS < cubes {
        keep_partials(partials, &dweight, &dbias, first, step, vectors, held, form);
    }
}

/// Adds up the sums of a cube's planes, plane after plane; the last one has the total.
#[cube]
fn gather_planes<N: Size>(
    sums: &mut Array<Vector<f32, N>>,
    first: u32,
    step: u32,
    slot: u32,
    planes: u32,
    vectors: u32,
    #[comptime] held: usize,
    #[comptime] shared: usize,
) {
    let mut total = Shared::<[Vector<f32, N>]>::new_slice(shared);
    sync_cube();
    for plane in 0..planes {
        if slot == plane {
            #[unroll]
            for i in 0..held {
                let k = first + i as u32 * step;
                if k < vectors {
                    if plane > 0 {
                        sums[i] += total[k as usize];
                    }
                    total[k as usize] = sums[i];
                }
            }
        }
        sync_cube();
    }
}

/// For each row: the mean, what its rounding lost, rstd, mean(ĝ) and mean(ĝ·x̂).
#[cube(launch_unchecked, address_type = "dynamic")]
fn row_factors<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    factors: &mut [f32],
    rows: usize,
    vectors: u32,
    eps: f32,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(4 * planes));
    let row = min(CUBE_POS, rows - 1);
    let start = row * vectors as usize;
    let count = vectors as f32 * N::value() as f32;
    let mut sums = Array::<f32>::new(4usize);
    let mut mean = 0.0f32;
    if comptime!(form.centers) {
        sums[0] = 0.0f32;
        let mut k = UNIT_POS;
        while k < vectors {
            let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
            sums[0] += vector_sum(v);
            k += CUBE_DIM;
        }
        row_sums(&mut sums, &mut scratch, 1usize, false);
        mean = sums[0] / count;
    }
    #[unroll]
    for j in 0..4 {
        sums[j] = 0.0f32;
    }
    let mut k = UNIT_POS;
    while k < vectors {
        let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        let g: Vector<f32, N> = Vector::cast_from(grad[start + k as usize]);
        let d = v - Vector::new(mean);
        let mut w = x[start + k as usize];
        if comptime!(form.weight) {
            w = weight[k as usize];
        }
        let weighted = weigh(g, w, form);
        sums[0] += vector_sum(d);
        sums[1] += vector_sum(d * d);
        sums[2] += vector_sum(weighted);
        sums[3] += vector_sum(weighted * d);
        k += CUBE_DIM;
    }
    row_sums(&mut sums, &mut scratch, 4usize, false);
    finish_sums(&mut sums, count, eps, form);
    if UNIT_POS == 0 && CUBE_POS < rows {
        factors[5 * row] = mean;
        #[unroll]
        for j in 0..4 {
            factors[5 * row + 1 + j] = sums[j];
        }
    }
}

/// A unit takes one vector of columns through a block of rows.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gradient_by_columns<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    factors: &[f32],
    dx: &mut [Vector<F, N>],
    partials: &mut [Vector<f32, N>],
    rows: usize,
    tiles: u32,
    blocks: usize,
    block: u32,
    vectors: u32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let part = CUBE_POS / tiles as usize;
    let k = (CUBE_POS % tiles as usize) as u32 * CUBE_DIM + UNIT_POS;
    if part < blocks && k < vectors {
        let mut dweight = Vector::<f32, N>::new(0.0f32);
        let mut dbias = Vector::<f32, N>::new(0.0f32);
        let begin = part * block as usize;
        let end = min(begin + block as usize, rows);
        for row in begin..end {
            let at = row * vectors as usize + k as usize;
            let v: Vector<f32, N> = Vector::cast_from(x[at]);
            let g: Vector<f32, N> = Vector::cast_from(grad[at]);
            let rstd = factors[5 * row + 2];
            let centered = (v - Vector::new(factors[5 * row])) - Vector::new(factors[5 * row + 1]);
            let unit = centered * Vector::new(rstd);
            let mut w = x[at];
            if comptime!(form.weight) {
                w = weight[k as usize];
            }
            let weighted = weigh(g, w, form);
            let d = slope(weighted, unit, rstd, factors[5 * row + 3], factors[5 * row + 4], form);
            dx[at] = Vector::cast_from(d);
            dweight += g * unit;
            dbias += g;
        }
        if comptime!(form.centers) {
            let at = part * 2 * vectors as usize + k as usize;
            partials[at] = dweight;
            partials[at + vectors as usize] = dbias;
        } else {
            partials[part * vectors as usize + k as usize] = dweight;
        }
    }
}
