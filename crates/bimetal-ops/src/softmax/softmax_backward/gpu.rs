//! Gradients of softmax on the GPU: a plane or a cube to a row held in registers, chunks with partial sums for long rows.

use super::Kind;
use bimetal_core::gpu::kernel::{address_type, cube_sum, row_vector, vector_sum};
use bimetal_core::{Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How a row is given to units.
struct Params {
    /// Longest row, in vectors per unit of the smallest plane, that one plane takes.
    plane_vectors: usize,
    /// Most vectors of each input that a unit keeps in registers when a cube takes a row.
    cube_vectors: usize,
    /// Most vectors of the gradient that it keeps while `y` is read again, from the caches.
    kept_vectors: usize,
    /// Units of a cube that takes a row, at most.
    cube_units: u32,
    /// Vectors of a long row that one cube of the partial pass takes.
    chunk_vectors: usize,
}

const PARAMS: Params = Params { plane_vectors: 4, cube_vectors: 4, kept_vectors: 8, cube_units: 1024, chunk_vectors: 4096 };

pub(super) fn softmax_backward(gpu: &Gpu, kind: Kind, grad: &Tensor, y: &Tensor, axis: usize, dx: &mut Tensor) -> Result<()> {
    let (outer, n, inner) = y.shape().around(axis);
    if y.numel() == 0 {
        return Ok(());
    }
    if n > u32::MAX as usize || inner > u32::MAX as usize {
        return Err(Error::argument(kind.name(), "y", format!("axes of fewer than 2^32 elements, got {}", y.shape())));
    }
    let elem = gpu.elem(y.dtype())?;
    let log = kind == Kind::LogSoftmax;
    let address = address_type(y.numel());
    let client = gpu.client();
    if inner > 1 {
        let units = 128u32.min(gpu.max_units);
        let cubes = gpu.cubes((outer * inner).div_ceil(units as usize));
        let dim = CubeDim::new_1d(units);
        let (g, y, dx) = (grad.gpu_arg()?, y.gpu_arg()?, dx.gpu_arg()?);
        let (columns, n, inner) = (outer * inner, n as u32, inner as u32);
        // SAFETY: the buffers hold `outer·n·inner` elements; columns past their count are dropped.
        unsafe { one_unit_per_column::launch_unchecked(client, cubes, dim, address, g, y, dx, columns, n, inner, log, elem) };
        return Ok(());
    }
    let width = row_vector(gpu.vector(y.dtype()), n);
    let vectors = n / width;
    let (g, x, out) = (grad.gpu_arg()?, y.gpu_arg()?, dx.gpu_arg()?);
    let (plane_min, plane_max) = gpu.plane;
    if vectors <= plane_min as usize * PARAMS.plane_vectors {
        let units = 128u32.min(gpu.max_units);
        let cubes = gpu.cubes(outer.div_ceil((units / plane_max).max(1) as usize));
        let (dim, per_unit, vectors) = (CubeDim::new_1d(units), vectors.div_ceil(plane_min as usize), vectors as u32);
        // SAFETY: the buffers hold `outer` rows of `vectors` vectors; planes past the last row store nothing.
        unsafe {
            one_plane_per_row::launch_unchecked(client, cubes, dim, address, width, g, x, out, outer, vectors, per_unit, log, elem)
        };
        return Ok(());
    }
    let units = PARAMS.cube_units.min(gpu.max_units);
    if vectors <= units as usize * PARAMS.kept_vectors {
        let units = units.min((vectors.div_ceil(2).next_multiple_of(plane_max as usize)) as u32);
        let planes = units.div_ceil(plane_min);
        let (cubes, dim) = (gpu.cubes(outer), CubeDim::new_1d(units));
        let (per_unit, vectors) = (vectors.div_ceil(units as usize), vectors as u32);
        let keeps = per_unit <= PARAMS.cube_vectors;
        // SAFETY: as above; cubes past the last row store nothing.
        unsafe {
            one_cube_per_row::launch_unchecked(
                client, cubes, dim, address, width, g, x, out, outer, vectors, per_unit, keeps, log, planes, elem,
            )
        };
        return Ok(());
    }
    long_rows(gpu, [grad, y], dx, LongRows { outer, vectors, width, log, elem, address })
}

struct LongRows {
    outer: usize,
    vectors: usize,
    width: usize,
    log: bool,
    elem: ElemType,
    address: AddressType,
}

fn long_rows(gpu: &Gpu, [grad, y]: [&Tensor; 2], dx: &mut Tensor, rows: LongRows) -> Result<()> {
    let LongRows { outer, vectors, width, log, elem, address } = rows;
    let units = 256u32.min(gpu.max_units);
    let planes = units.div_ceil(gpu.plane.0);
    let (chunk, chunks) = (PARAMS.chunk_vectors as u32, vectors.div_ceil(PARAMS.chunk_vectors));
    let total = outer * chunks;
    let partials = gpu.alloc(total * 4);
    let (client, dim) = (gpu.client(), CubeDim::new_1d(units));
    let (v, c) = (vectors as u32, chunks as u32);
    let (g, x) = (grad.gpu_arg()?, y.gpu_arg()?);
    // SAFETY: the buffers hold `outer` rows of `vectors` vectors and the partials one sum for each chunk of each row.
    unsafe {
        let sums = BufferArg::from_raw_parts(partials.clone(), total);
        chunk_sums::launch_unchecked(
            client,
            gpu.cubes(total),
            dim,
            address,
            width,
            g,
            x,
            sums,
            total,
            v,
            c,
            chunk,
            log,
            planes,
            elem,
        );
    }
    let (g, x, dx) = (grad.gpu_arg()?, y.gpu_arg()?, dx.gpu_arg()?);
    // SAFETY: as above.
    unsafe {
        let sums = BufferArg::from_raw_parts(partials, total);
        finish_chunks::launch_unchecked(
            client,
            gpu.cubes(total),
            dim,
            address,
            width,
            g,
            x,
            sums,
            dx,
            total,
            v,
            c,
            chunk,
            log,
            planes,
            elem,
        );
    }
    Ok(())
}

/// The term of the row's sum: `g`, or `g·y`.
#[cube]
fn term<N: Size>(g: Vector<f32, N>, y: Vector<f32, N>, #[comptime] log: bool) -> Vector<f32, N> {
    if comptime!(log) { g } else { g * y }
}

#[cube]
fn gradient<N: Size>(g: Vector<f32, N>, y: Vector<f32, N>, sum: f32, #[comptime] log: bool) -> Vector<f32, N> {
    if comptime!(log) { g - y.exp() * Vector::new(sum) } else { y * (g - Vector::new(sum)) }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_plane_per_row<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    y: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    #[comptime] per_unit: usize,
    #[comptime] log: bool,
    #[define(F)] _dtype: ElemType,
) {
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let step = CUBE_COUNT * planes;
    // Every unit of a plane takes the same number of turns; planes past the last row redo it without storing.
    for turn in 0..rows.div_ceil(step) {
        let wanted = turn * step + CUBE_POS * planes + (UNIT_POS / PLANE_DIM) as usize;
        let start = min(wanted, rows - 1) * vectors as usize;
        let mut gs = Array::<Vector<f32, N>>::new(per_unit);
        let mut ys = Array::<Vector<f32, N>>::new(per_unit);
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..per_unit {
            let k = UNIT_POS_PLANE + i as u32 * PLANE_DIM;
            if k < vectors {
                gs[i] = Vector::cast_from(grad[start + k as usize]);
                ys[i] = Vector::cast_from(y[start + k as usize]);
                sum += vector_sum(term(gs[i], ys[i], log));
            }
        }
        sum = plane_sum(sum);
        #[unroll]
        for i in 0..per_unit {
            let k = UNIT_POS_PLANE + i as u32 * PLANE_DIM;
            if k < vectors && wanted < rows {
                dx[start + k as usize] = Vector::cast_from(gradient(gs[i], ys[i], sum, log));
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_cube_per_row<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    y: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: usize,
    vectors: u32,
    #[comptime] per_unit: usize,
    #[comptime] keeps: bool,
    #[comptime] log: bool,
    #[comptime] planes: u32,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(planes as usize);
    let start = min(CUBE_POS, rows - 1) * vectors as usize;
    let mut gs = Array::<Vector<f32, N>>::new(per_unit);
    let mut ys = Array::<Vector<f32, N>>::new(comptime!(if keeps { per_unit } else { 1 }));
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..per_unit {
        let k = UNIT_POS + i as u32 * CUBE_DIM;
        if k < vectors {
            gs[i] = Vector::cast_from(grad[start + k as usize]);
            let mut v = gs[i];
            if comptime!(keeps || !log) {
                v = Vector::cast_from(y[start + k as usize]);
            }
            if comptime!(keeps) {
                ys[i] = v;
            }
            sum += vector_sum(term(gs[i], v, log));
        }
    }
    sum = cube_sum(sum, &mut scratch);
    #[unroll]
    for i in 0..per_unit {
        let k = UNIT_POS + i as u32 * CUBE_DIM;
        if k < vectors && CUBE_POS < rows {
            if comptime!(keeps) {
                dx[start + k as usize] = Vector::cast_from(gradient(gs[i], ys[i], sum, log));
            } else {
                let v = Vector::cast_from(y[start + k as usize]);
                dx[start + k as usize] = Vector::cast_from(gradient(gs[i], v, sum, log));
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn chunk_sums<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    y: &[Vector<F, N>],
    sums: &mut [f32],
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
    let first = (position % chunks as usize) as u32 * chunk;
    let end = min(first + chunk, vectors);
    let start = position / chunks as usize * vectors as usize;
    let mut sum = 0.0f32;
    let mut k = first + UNIT_POS;
    while k < end {
        let g = Vector::cast_from(grad[start + k as usize]);
        let v = Vector::cast_from(y[start + k as usize]);
        sum += vector_sum(term::<N>(g, v, log));
        k += CUBE_DIM;
    }
    sum = cube_sum(sum, &mut scratch);
    if UNIT_POS == 0 && CUBE_POS < total {
        sums[position] = sum;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn finish_chunks<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    y: &[Vector<F, N>],
    sums: &[f32],
    dx: &mut [Vector<F, N>],
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
    let mut partial = 0.0f32;
    let mut i = UNIT_POS;
    while i < chunks {
        partial += sums[row * chunks as usize + i as usize];
        i += CUBE_DIM;
    }
    let sum = cube_sum(partial, &mut scratch);
    let first = (position % chunks as usize) as u32 * chunk;
    let end = min(first + chunk, vectors);
    let mut k = first + UNIT_POS;
    while k < end && CUBE_POS < total {
        let at = row * vectors as usize + k as usize;
        let g = Vector::cast_from(grad[at]);
        let v = Vector::cast_from(y[at]);
        dx[at] = Vector::cast_from(gradient::<N>(g, v, sum, log));
        k += CUBE_DIM;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_unit_per_column<F: Float>(
    grad: &[F],
    y: &[F],
    dx: &mut [F],
    columns: usize,
    n: u32,
    inner: u32,
    #[comptime] log: bool,
    #[define(F)] _dtype: ElemType,
) {
    let column = ABSOLUTE_POS;
    if column < columns {
        let start = column / inner as usize * n as usize * inner as usize + column % inner as usize;
        let mut sum = 0.0f32;
        for k in 0..n {
            let at = start + k as usize * inner as usize;
            if comptime!(log) {
                sum += f32::cast_from(grad[at]);
            } else {
                sum += f32::cast_from(grad[at]) * f32::cast_from(y[at]);
            }
        }
        for k in 0..n {
            let at = start + k as usize * inner as usize;
            let g = f32::cast_from(grad[at]);
            let v = f32::cast_from(y[at]);
            if comptime!(log) {
                dx[at] = F::cast_from(g - v.exp() * sum);
            } else {
                dx[at] = F::cast_from(v * (g - sum));
            }
        }
    }
}
