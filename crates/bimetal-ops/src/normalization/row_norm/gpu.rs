//! Layer norm and RMS norm on the GPU: a row in the registers of a plane or a cube, read once in one launch; longer rows
//! in chunks, whose moments a second launch puts together.

use super::{Arguments, RowNorm, row_length};
use bimetal_core::gpu::kernel::{address_type, row_sums, row_vector, vector_sum};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How rows are given to units.
struct RowParams {
    /// Most elements of a row that a unit holds when a plane takes the row.
    plane_elements: usize,
    /// Most elements that a unit holds when a cube takes a row.
    cube_elements: usize,
    /// Elements for each unit of a cube that takes one of many rows, as far as the largest cube allows. What a row costs
    /// beside its elements counts by the unit: layer norm of 4096×4096 on an H200 takes 59 µs with 8, 47 with 16 and 42
    /// with 32 (RMS norm 47, 41, 41). Loading the next row before the current one is reduced takes 1 to 7 µs more.
    target_elements: usize,
    /// The same where there are no more than two rows for each multiprocessor, which has units to spare then.
    few_elements: usize,
    /// Units of a cube that takes a row, at most.
    cube_units: u32,
    /// Most elements for which a unit also holds the weight and the bias from row to row.
    held_elements: usize,
    /// Units that a multiprocessor is given; cubes go on to further rows beyond it.
    resident_units: u32,
}

const PARAMS: RowParams = RowParams {
    plane_elements: 32,
    cube_elements: 32,
    target_elements: 32,
    few_elements: 8,
    cube_units: 1024,
    held_elements: 16,
    resident_units: 1024,
};

/// What a kernel does to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    centers: bool,
    adds: bool,
    weight: bool,
    bias: bool,
    /// A plane takes a row rather than a cube.
    by_plane: bool,
    /// The weight and the bias stay in registers.
    holds: bool,
}

pub(super) fn row_norm(op: &RowNorm, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let Arguments { x, residual, weight, bias } = op.arguments(inputs);
    let n = row_length(x.shape(), weight.or(bias).map(|p| p.shape()));
    if x.numel() == 0 {
        return Ok(());
    }
    let widest = gpu.vector(x.dtype());
    let width = row_vector(widest, n);
    let vectors = n / width;
    let (plane_min, plane_max) = (gpu.plane.0 as usize, gpu.plane.1 as usize);
    let rows = x.numel() / n;
    let form = Form {
        centers: op.kind.centers(),
        adds: op.kind.adds(),
        weight: op.weight,
        bias: op.bias,
        by_plane: n <= plane_min * PARAMS.plane_elements,
        holds: false,
    };
    // An argument that a form does not use stands for one that it does: kernels have a fixed list of them.
    let buffers = Buffers {
        x,
        residual: residual.unwrap_or(x),
        weight: weight.unwrap_or(x),
        bias: bias.unwrap_or(x),
        y: outputs[0],
        h: outputs.last().expect("there is an output"),
    };
    let largest = PARAMS.cube_units.min(gpu.max_units) as usize;
    let units = if form.by_plane {
        128.min(largest)
    } else {
        let many = rows > 2 * gpu.processors as usize;
        n.div_ceil(if many { PARAMS.target_elements } else { PARAMS.few_elements }).next_multiple_of(plane_max).min(largest)
    };
    let taking = if form.by_plane { plane_min } else { units };
    let held = vectors.div_ceil(taking);
    if held * width > PARAMS.cube_elements {
        return long_rows(gpu, op.eps, form, &buffers, Rows { rows, vectors, width });
    }
    let form = Form { holds: held * width <= PARAMS.held_elements, ..form };
    let at_once = if form.by_plane { (units / plane_max).max(1) } else { 1 };
    let resident = gpu.processors as usize * (PARAMS.resident_units as usize / units).max(1);
    let elem = gpu.elem(x.dtype())?;
    // SAFETY: `x`, `residual`, `y` and `h` hold `rows` rows of `vectors` vectors, the parameters one; the kernel drops
    // what is past them.
    unsafe {
        row_in_registers::launch_unchecked(
            gpu.client(),
            gpu.cubes(rows.div_ceil(at_once).min(resident)),
            CubeDim::new_1d(units as u32),
            address_type(x.numel()),
            width,
            x.gpu_arg()?,
            buffers.residual.gpu_arg()?,
            buffers.weight.gpu_arg()?,
            buffers.bias.gpu_arg()?,
            buffers.y.gpu_arg()?,
            buffers.h.gpu_arg()?,
            rows,
            vectors as u32,
            op.eps,
            held,
            form,
            (units / plane_min).max(1),
            elem,
        );
    }
    Ok(())
}

struct Buffers<'a> {
    x: &'a Tensor,
    residual: &'a Tensor,
    weight: &'a Tensor,
    bias: &'a Tensor,
    y: &'a Tensor,
    h: &'a Tensor,
}

struct Rows {
    rows: usize,
    vectors: usize,
    width: usize,
}

fn long_rows(gpu: &Gpu, eps: f32, form: Form, buffers: &Buffers<'_>, shape: Rows) -> Result<()> {
    let Rows { rows, vectors, width } = shape;
    let units = 256.min(gpu.max_units as usize);
    let planes = (units / gpu.plane.0 as usize).max(1);
    let held = PARAMS.cube_elements / width;
    let chunk = units * held;
    let chunks = vectors.div_ceil(chunk);
    let moments = gpu.alloc(rows * chunks * 3 * size_of::<f32>());
    // SAFETY: the buffer has that many elements.
    let moments = || unsafe { BufferArg::from_raw_parts(moments.clone(), rows * chunks * 3) };
    let (x, address, elem) = (buffers.x, address_type(buffers.x.numel()), gpu.elem(buffers.x.dtype())?);
    // SAFETY: as in `row_norm`; there are three moments for each chunk.
    unsafe {
        chunk_moments::launch_unchecked(
            gpu.client(),
            gpu.cubes(rows * chunks),
            CubeDim::new_1d(units as u32),
            address,
            width,
            x.gpu_arg()?,
            buffers.residual.gpu_arg()?,
            buffers.h.gpu_arg()?,
            moments(),
            rows * chunks,
            vectors as u32,
            chunks as u32,
            held,
            form,
            planes,
            elem,
        );
        normalize_chunks::launch_unchecked(
            gpu.client(),
            gpu.cubes(rows * chunks),
            CubeDim::new_1d(units as u32),
            address,
            width,
            if form.adds { buffers.h.gpu_arg()? } else { x.gpu_arg()? },
            buffers.weight.gpu_arg()?,
            buffers.bias.gpu_arg()?,
            moments(),
            buffers.y.gpu_arg()?,
            rows * chunks,
            vectors as u32,
            chunks as u32,
            eps,
            held,
            form,
            planes,
            elem,
        );
    }
    Ok(())
}

/// Loads a unit's vectors of a row (those past its end are zeros), adds the residual and stores the sum as `h`; returns
/// the unit's sum of the elements, or of their squares.
#[cube]
fn load_row<F: Float, N: Size>(
    x: &[Vector<F, N>],
    residual: &[Vector<F, N>],
    h: &mut [Vector<F, N>],
    values: &mut Array<Vector<f32, N>>,
    start: usize,
    first: u32,
    step: u32,
    end: u32,
    stores: bool,
    #[comptime] held: usize,
    #[comptime] form: Form,
) -> f32 {
    // Loads past the end repeat the last vector: a load under a condition waits for the one before it.
    #[unroll]
    for i in 0..held {
        values[i] = Vector::cast_from(x[start + min(first + i as u32 * step, end - 1) as usize]);
    }
    if comptime!(form.adds) {
        #[unroll]
        for i in 0..held {
            let k = first + i as u32 * step;
            let at = start + min(k, end - 1) as usize;
            let added: Vector<f32, N> = Vector::cast_from(residual[at]);
            let stored: Vector<F, N> = Vector::cast_from(values[i] + added);
            values[i] = Vector::cast_from(stored);
            if stores && k < end {
                h[at] = stored;
            }
        }
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..held {
        values[i] = select(first + i as u32 * step < end, values[i], Vector::new(0.0f32));
        if comptime!(form.centers) {
            sum += vector_sum(values[i]);
        } else {
            sum += vector_sum(values[i] * values[i]);
        }
    }
    sum
}

/// Turns a unit's vectors into deviations from `mean`; adds these up in `sums[0]` and their squares in `sums[1]`.
#[cube]
fn deviate<N: Size>(
    values: &mut Array<Vector<f32, N>>,
    sums: &mut Array<f32>,
    mean: f32,
    first: u32,
    step: u32,
    end: u32,
    #[comptime] held: usize,
) {
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    #[unroll]
    for i in 0..held {
        if first + i as u32 * step < end {
            let d = values[i] - Vector::new(mean);
            values[i] = d;
            sums[0] += vector_sum(d);
            sums[1] += vector_sum(d * d);
        }
    }
}

/// What is left of the sum of squared deviations when their mean `lost` is taken off; never negative, NaN if it was.
#[cube]
pub(crate) fn centered_squares(squares: f32, lost: f32, count: f32) -> f32 {
    let left = squares - lost * lost * count;
    select(left < 0.0f32, 0.0f32, left)
}

#[cube]
fn affine<F: Float, N: Size>(
    unit: Vector<f32, N>,
    weight: Vector<F, N>,
    bias: Vector<F, N>,
    #[comptime] form: Form,
) -> Vector<F, N> {
    let mut y = unit;
    if comptime!(form.weight) {
        y *= Vector::cast_from(weight);
    }
    if comptime!(form.bias) {
        y += Vector::cast_from(bias);
    }
    Vector::cast_from(y)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn row_in_registers<F: Float, N: Size>(
    x: &[Vector<F, N>],
    residual: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    h: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    eps: f32,
    #[comptime] held: usize,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * planes));
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
    let mut weights = Array::<Vector<F, N>>::new(held);
    let mut biases = Array::<Vector<F, N>>::new(held);
    #[unroll]
    for i in 0..held {
        let k = first + i as u32 * step;
        if comptime!(form.holds) && k < vectors {
            if comptime!(form.weight) {
                weights[i] = weight[k as usize];
            }
            if comptime!(form.bias) {
                biases[i] = bias[k as usize];
            }
        }
    }
    let count = (vectors * N::value() as u32) as f32;
    // Every unit takes the same number of turns; those past the last row redo it without storing.
    let turn_rows = CUBE_COUNT * at_once as usize;
    for turn in 0..rows.div_ceil(turn_rows) {
        let wanted = turn * turn_rows + CUBE_POS * at_once as usize + slot as usize;
        let stores = wanted < rows;
        let start = min(wanted, rows - 1) * vectors as usize;
        let mut values = Array::<Vector<f32, N>>::new(held);
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = load_row(x, residual, h, &mut values, start, first, step, vectors, stores, held, form);
        row_sums(&mut sums, &mut scratch, 1usize, form.by_plane);
        let mut lost = 0.0f32;
        let mut squares = sums[0];
        if comptime!(form.centers) {
            deviate(&mut values, &mut sums, squares / count, first, step, vectors, held);
            row_sums(&mut sums, &mut scratch, 2usize, form.by_plane);
            lost = sums[0] / count;
            squares = centered_squares(sums[1], lost, count);
        }
        let rstd = 1.0f32 / (squares / count + eps).sqrt();
        #[unroll]
        for i in 0..held {
            let k = first + i as u32 * step;
            if k < vectors && stores {
                if comptime!(!form.holds) {
                    if comptime!(form.weight) {
                        weights[i] = weight[k as usize];
                    }
                    if comptime!(form.bias) {
                        biases[i] = bias[k as usize];
                    }
                }
                let unit = (values[i] - Vector::new(lost)) * Vector::new(rstd);
                y[start + k as usize] = affine(unit, weights[i], biases[i], form);
            }
        }
    }
}

/// The mean of each chunk in two parts (as rounded, and what that lost) and its sum of squared deviations.
#[cube(launch_unchecked, address_type = "dynamic")]
fn chunk_moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    residual: &[Vector<F, N>],
    h: &mut [Vector<F, N>],
    moments: &mut [f32],
    total: usize,
    vectors: u32,
    chunks: u32,
    #[comptime] held: usize,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    let position = min(CUBE_POS, total - 1);
    let start = position / chunks as usize * vectors as usize;
    let chunk = held as u32 * CUBE_DIM;
    let begin = (position % chunks as usize) as u32 * chunk;
    let end = min(begin + chunk, vectors);
    let first = begin + UNIT_POS;
    let mut values = Array::<Vector<f32, N>>::new(held);
    let stores = CUBE_POS < total;
    let mut sums = Array::<f32>::new(2usize);
    sums[0] = load_row(x, residual, h, &mut values, start, first, CUBE_DIM, end, stores, held, form);
    row_sums(&mut sums, &mut scratch, 1usize, false);
    let mut squares = sums[0];
    let mut mean = 0.0f32;
    let mut lost = 0.0f32;
    if comptime!(form.centers) {
        let count = ((end - begin) * N::value() as u32) as f32;
        mean = squares / count;
        deviate(&mut values, &mut sums, mean, first, CUBE_DIM, end, held);
        row_sums(&mut sums, &mut scratch, 2usize, false);
        lost = sums[0] / count;
        squares = centered_squares(sums[1], lost, count);
    }
    if UNIT_POS == 0 && stores {
        moments[3 * position] = mean;
        moments[3 * position + 1] = lost;
        moments[3 * position + 2] = squares;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalize_chunks<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    moments: &[f32],
    y: &mut [Vector<F, N>],
    total: usize,
    vectors: u32,
    chunks: u32,
    eps: f32,
    #[comptime] held: usize,
    #[comptime] form: Form,
    #[comptime] planes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    let position = min(CUBE_POS, total - 1);
    let row = position / chunks as usize;
    let chunk = held as u32 * CUBE_DIM;
    let count = vectors as f32 * N::value() as f32;
    let mut mean = 0.0f32;
    let mut lost = 0.0f32;
    let mut sums = Array::<f32>::new(2usize);
    if comptime!(form.centers) {
        sums[0] = 0.0f32;
        let mut i = UNIT_POS;
        while i < chunks {
            let size = ((min((i + 1) * chunk, vectors) - i * chunk) * N::value() as u32) as f32;
            sums[0] += moments[3 * (row * chunks as usize + i as usize)] * (size / count);
            i += CUBE_DIM;
        }
        row_sums(&mut sums, &mut scratch, 1usize, false);
        mean = sums[0];
    }
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    let mut i = UNIT_POS;
    while i < chunks {
        let at = 3 * (row * chunks as usize + i as usize);
        let size = ((min((i + 1) * chunk, vectors) - i * chunk) * N::value() as u32) as f32;
        let d = (moments[at] - mean) + moments[at + 1];
        sums[0] += d * size;
        sums[1] += moments[at + 2] + d * d * size;
        i += CUBE_DIM;
    }
    row_sums(&mut sums, &mut scratch, 2usize, false);
    let mut squares = sums[1];
    if comptime!(form.centers) {
        lost = sums[0] / count;
        squares = centered_squares(squares, lost, count);
    }
    let rstd = 1.0f32 / (squares / count + eps).sqrt();
    let begin = (position % chunks as usize) as u32 * chunk;
    #[unroll]
    for i in 0..held {
        let k = begin + UNIT_POS + i as u32 * CUBE_DIM;
        if k < vectors && CUBE_POS < total {
            let at = row * vectors as usize + k as usize;
            let value: Vector<f32, N> = Vector::cast_from(x[at]);
            let unit = ((value - Vector::new(mean)) - Vector::new(lost)) * Vector::new(rstd);
            let mut w = Vector::<F, N>::cast_from(unit);
            let mut b = Vector::<F, N>::cast_from(unit);
            if comptime!(form.weight) {
                w = weight[k as usize];
            }
            if comptime!(form.bias) {
                b = bias[k as usize];
            }
            y[at] = affine(unit, w, b, form);
        }
    }
}
