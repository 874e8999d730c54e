//! Softmax on the GPU: rows held in registers where they fit, two passes with partial sums where they do not.

use super::Kind;
use bimetal_core::gpu::kernel::{address_type, cube_max, cube_sum, row_vector, vector_max, vector_sum};
use bimetal_core::{Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How a row is given to units.
struct SoftmaxParams {
    /// Longest row, in vectors per unit of the smallest plane, that one plane takes.
    plane_vectors: usize,
    /// Most vectors that a unit keeps in registers when a cube takes a row.
    cube_vectors: usize,
    /// Units of a cube that takes a row, at most.
    cube_units: u32,
    /// Vectors of a long row that one cube of the partial pass takes.
    chunk_vectors: usize,
}

const PARAMS: SoftmaxParams = SoftmaxParams { plane_vectors: 8, cube_vectors: 8, cube_units: 1024, chunk_vectors: 4096 };

pub(super) fn softmax_axis(gpu: &Gpu, kind: Kind, x: &Tensor, axis: usize, y: &mut Tensor) -> Result<()> {
    let (outer, n, inner) = x.shape().around(axis);
    if x.numel() == 0 {
        return Ok(());
    }
    if n > u32::MAX as usize || inner > u32::MAX as usize {
        return Err(Error::argument(kind.name(), "x", format!("axes of fewer than 2^32 elements, got {}", x.shape())));
    }
    let elem = gpu.elem(x.dtype())?;
    let log = kind == Kind::LogSoftmax;
    let address = address_type(x.numel());
    if inner > 1 {
        let (columns, units) = (outer * inner, 128u32.min(gpu.max_units));
        let (cubes, dim) = (gpu.cubes(columns.div_ceil(units as usize)), CubeDim::new_1d(units));
        let (client, input, output, n, inner) = (gpu.client(), x.gpu_arg()?, y.gpu_arg()?, n as u32, inner as u32);
        // SAFETY: both buffers hold `columns` columns of `n` elements; the kernel drops columns past their count.
        unsafe {
            one_unit_per_column::launch_unchecked(
                client, cubes, dim, address, input, output, columns, n, inner, log, elem,
            );
        }
        return Ok(());
    }
    let width = row_vector(gpu.vector(x.dtype()), n);
    let vectors = n / width;
    let (plane_min, _) = gpu.plane;
    if vectors <= plane_min as usize * PARAMS.plane_vectors {
        let units = 128u32.min(gpu.max_units);
        let planes = (units / gpu.plane.1).max(1) as usize;
        // SAFETY: both buffers hold `outer` rows of `vectors` vectors; planes past the last row store nothing.
        unsafe {
            one_plane_per_row::launch_unchecked(
                gpu.client(),
                gpu.cubes(outer.div_ceil(planes)),
                CubeDim::new_1d(units),
                address,
                width,
                x.gpu_arg()?,
                y.gpu_arg()?,
                outer,
                vectors as u32,
                vectors.div_ceil(plane_min as usize),
                log,
                elem,
            );
        }
        return Ok(());
    }
    let units = PARAMS.cube_units.min(gpu.max_units);
    if vectors <= units as usize * PARAMS.cube_vectors {
        // Enough units that each holds at least two vectors keeps small rows from wasting whole planes.
        let units = units.min((vectors.div_ceil(2).next_multiple_of(gpu.plane.1 as usize)) as u32);
        // SAFETY: as above; cubes past the last row store nothing.
        unsafe {
            one_cube_per_row::launch_unchecked(
                gpu.client(),
                gpu.cubes(outer),
                CubeDim::new_1d(units),
                address,
                width,
                x.gpu_arg()?,
                y.gpu_arg()?,
                outer,
                vectors as u32,
                vectors.div_ceil(units as usize),
                log,
                units / plane_min.min(units),
                elem,
            );
        }
        return Ok(());
    }
    long_rows(gpu, x, y, LongRows { outer, vectors, width, log, elem, address })
}

struct LongRows {
    outer: usize,
    vectors: usize,
    width: usize,
    log: bool,
    elem: ElemType,
    address: AddressType,
}

fn long_rows(gpu: &Gpu, x: &Tensor, y: &mut Tensor, rows: LongRows) -> Result<()> {
    let LongRows { outer, vectors, width, log, elem, address } = rows;
    let units = 256u32.min(gpu.max_units);
    let planes = units / gpu.plane.0.min(units);
    let chunks = vectors.div_ceil(PARAMS.chunk_vectors);
    let partials = gpu.alloc(outer * chunks * 8);
    // SAFETY: as above; the partials hold a maximum and a sum for each chunk of each row.
    unsafe {
        chunk_partials::launch_unchecked(
            gpu.client(),
            gpu.cubes(outer * chunks),
            CubeDim::new_1d(units),
            address,
            width,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(partials.clone(), outer * chunks * 2),
            outer * chunks,
            vectors as u32,
            chunks as u32,
            PARAMS.chunk_vectors as u32,
            planes,
            elem,
        );
        finish_chunks::launch_unchecked(
            gpu.client(),
            gpu.cubes(outer * chunks),
            CubeDim::new_1d(units),
            address,
            width,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(partials, outer * chunks * 2),
            y.gpu_arg()?,
            outer * chunks,
            vectors as u32,
            chunks as u32,
            PARAMS.chunk_vectors as u32,
            log,
            planes,
            elem,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_plane_per_row<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    #[comptime] per_unit: usize,
    #[comptime] log: bool,
    #[define(F)] _dtype: ElemType,
) {
    let planes = CUBE_DIM / PLANE_DIM;
    let step = CUBE_COUNT * planes as usize;
    // Every unit of a plane takes the same number of turns; planes past the last row redo it without storing.
    let turns = rows.div_ceil(step);
    for turn in 0..turns {
        let wanted = turn * step + CUBE_POS * planes as usize + (UNIT_POS / PLANE_DIM) as usize;
        let row = min(wanted, rows - 1);
        let start = row * vectors as usize;
        let mut values = Array::<Vector<f32, N>>::new(per_unit);
        let mut largest = f32::new(f32::MIN);
        #[unroll]
        for i in 0..per_unit {
            // Past the end the last vector once more: a load under a condition waits for the one before it.
            let k = min(UNIT_POS_PLANE + i as u32 * PLANE_DIM, vectors - 1);
            values[i] = Vector::cast_from(x[start + k as usize]);
        }
        #[unroll]
        for i in 0..per_unit {
            largest = max(largest, vector_max(values[i]));
        }
        largest = plane_max(largest);
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..per_unit {
            let k = UNIT_POS_PLANE + i as u32 * PLANE_DIM;
            if k < vectors {
                let shifted = values[i] - Vector::new(largest);
                let e = shifted.exp();
                sum += vector_sum(e);
                if comptime!(log) {
                    values[i] = shifted;
                } else {
                    values[i] = e;
                }
            }
        }
        sum = plane_sum(sum);
        let inverse = 1.0f32 / sum;
        let log_sum = sum.ln();
        #[unroll]
        for i in 0..per_unit {
            let k = UNIT_POS_PLANE + i as u32 * PLANE_DIM;
            if k < vectors && wanted < rows {
                if comptime!(log) {
                    y[start + k as usize] = Vector::cast_from(values[i] - Vector::new(log_sum));
                } else {
                    y[start + k as usize] = Vector::cast_from(values[i] * Vector::new(inverse));
                }
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_cube_per_row<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    #[comptime] per_unit: usize,
    #[comptime] log: bool,
    #[comptime] planes: u32,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(planes as usize);
    let row = min(CUBE_POS, rows - 1);
    let start = row * vectors as usize;
    let mut values = Array::<Vector<f32, N>>::new(per_unit);
    let mut largest = f32::new(f32::MIN);
    #[unroll]
    for i in 0..per_unit {
        // Past the end the last vector once more: a load under a condition waits for the one before it.
        let k = min(UNIT_POS + i as u32 * CUBE_DIM, vectors - 1);
        values[i] = Vector::cast_from(x[start + k as usize]);
    }
    #[unroll]
    for i in 0..per_unit {
        largest = max(largest, vector_max(values[i]));
    }
    largest = cube_max(largest, &mut scratch);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..per_unit {
        let k = UNIT_POS + i as u32 * CUBE_DIM;
        if k < vectors {
            let shifted = values[i] - Vector::new(largest);
            let e = shifted.exp();
            sum += vector_sum(e);
            if comptime!(log) {
                values[i] = shifted;
            } else {
                values[i] = e;
            }
        }
    }
    sum = cube_sum(sum, &mut scratch);
    let inverse = 1.0f32 / sum;
    let log_sum = sum.ln();
    #[unroll]
    for i in 0..per_unit {
        let k = UNIT_POS + i as u32 * CUBE_DIM;
        if k < vectors && CUBE_POS < rows {
            if comptime!(log) {
                y[start + k as usize] = Vector::cast_from(values[i] - Vector::new(log_sum));
            } else {
                y[start + k as usize] = Vector::cast_from(values[i] * Vector::new(inverse));
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunk_partials<F: Float, N: Size>(
    x: &[Vector<F, N>],
    partials: &mut [f32],
    total: usize,
    vectors: u32,
    chunks: u32,
    chunk: u32,
    #[comptime] planes: u32,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(planes as usize);
    let position = min(CUBE_POS, total - 1);
    let row = position / chunks as usize;
    let first = (position % chunks as usize) as u32 * chunk;
    let end = min(first + chunk, vectors);
    let start = row * vectors as usize;
    let mut largest = f32::new(f32::MIN);
    let mut sum = 0.0f32;
    let mut k = first + UNIT_POS;
    while k < end {
        let v: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        let higher = max(largest, vector_max(v));
        sum = sum * (largest - higher).exp() + vector_sum((v - Vector::new(higher)).exp());
        largest = higher;
        k += CUBE_DIM;
    }
    let top = cube_max(largest, &mut scratch);
    let total_sum = cube_sum(sum * (largest - top).exp(), &mut scratch);
    if UNIT_POS == 0 && CUBE_POS < total {
        partials[2 * position] = top;
        partials[2 * position + 1] = total_sum;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn finish_chunks<F: Float, N: Size>(
    x: &[Vector<F, N>],
    partials: &[f32],
    y: &mut [Vector<F, N>],
    total: usize,
    vectors: u32,
    chunks: u32,
    chunk: u32,
    #[comptime] log: bool,
    #[comptime] planes: u32,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(planes as usize);
    let position = min(CUBE_POS, total - 1);
    let row = position / chunks as usize;
    let mut largest = f32::new(f32::MIN);
    let mut i = UNIT_POS;
    while i < chunks {
        largest = max(largest, partials[2 * (row * chunks as usize + i as usize)]);
        i += CUBE_DIM;
    }
    let top = cube_max(largest, &mut scratch);
    let mut sum = 0.0f32;
    i = UNIT_POS;
    while i < chunks {
        let at = 2 * (row * chunks as usize + i as usize);
        sum += partials[at + 1] * (partials[at] - top).exp();
        i += CUBE_DIM;
    }
    let total_sum = cube_sum(sum, &mut scratch);
    let inverse = 1.0f32 / total_sum;
    let log_sum = total_sum.ln();
    let first = (position % chunks as usize) as u32 * chunk;
    let end = min(first + chunk, vectors);
    let start = row * vectors as usize;
    let mut k = first + UNIT_POS;
    while k < end && CUBE_POS < total {
        let shifted: Vector<f32, N> = Vector::cast_from(x[start + k as usize]);
        let shifted = shifted - Vector::new(top);
        if comptime!(log) {
            y[start + k as usize] = Vector::cast_from(shifted - Vector::new(log_sum));
        } else {
            y[start + k as usize] = Vector::cast_from(shifted.exp() * Vector::new(inverse));
        }
        k += CUBE_DIM;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_unit_per_column<F: Float>(
    x: &[F],
    y: &mut [F],
    columns: usize,
    n: u32,
    inner: u32,
    #[comptime] log: bool,
    #[define(F)] _dtype: ElemType,
) {
    let column = ABSOLUTE_POS;
    if column < columns {
        let start = column / inner as usize * n as usize * inner as usize + column % inner as usize;
        let mut largest = f32::new(f32::MIN);
        let mut sum = 0.0f32;
        for k in 0..n {
            let v = f32::cast_from(x[start + k as usize * inner as usize]);
            let higher = max(largest, v);
            sum = sum * (largest - higher).exp() + (v - higher).exp();
            largest = higher;
        }
        let inverse = 1.0f32 / sum;
        let log_sum = sum.ln();
        for k in 0..n {
            let at = start + k as usize * inner as usize;
            let shifted = f32::cast_from(x[at]) - largest;
            if comptime!(log) {
                y[at] = F::cast_from(shifted - log_sum);
            } else {
                y[at] = F::cast_from(shifted.exp() * inverse);
            }
        }
    }
}
