//! Pieces that kernels share: reductions over a cube that assume no plane size, sums of columns, and plain copies.

use crate::gpu::Gpu;
use crate::{Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units per cube for kernels without shared memory.
pub const ELEMENTWISE_UNITS: u32 = 256;

#[cube(launch_unchecked)]
fn copy_words(x: &[u32], y: &mut [u32], start: u32, n: u32) {
    let i = ABSOLUTE_POS;
    if i < n as usize {
        y[i] = x[i + start as usize];
    }
}

/// A copy of `bytes` bytes from byte `start` of a buffer on; `start` may have any alignment that dtypes give.
pub(super) fn copy_from(gpu: &Gpu, source: &Handle, start: usize, bytes: usize) -> Handle {
    if !start.is_multiple_of(4) {
        return copy_through_host(gpu, source, start, bytes);
    }
    let out = gpu.alloc(bytes);
    copy(gpu, source, start, &out, bytes);
    out
}

/// Copies the first `bytes` bytes of a buffer to another.
pub(super) fn copy_to(gpu: &Gpu, source: &Handle, out: &Handle, bytes: usize) {
    copy(gpu, source, 0, out, bytes);
}

/// Copies `bytes` bytes, rounded up to words, from byte `start` on, a multiple of 4.
fn copy(gpu: &Gpu, source: &Handle, start: usize, out: &Handle, bytes: usize) {
    let words = bytes.div_ceil(4);
    // SAFETY: `out` has `words` whole words (allocations are padded) and the source has them from `start` on.
    unsafe {
        copy_words::launch_unchecked(
            gpu.client(),
            gpu.cubes(words.div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            BufferArg::from_raw_parts(source.clone(), (start + bytes).div_ceil(4)),
            BufferArg::from_raw_parts(out.clone(), words),
            (start / 4) as u32,
            words as u32,
        );
    }
}

fn copy_through_host(gpu: &Gpu, source: &Handle, start: usize, bytes: usize) -> Handle {
    let mut all = vec![0; start + bytes];
    // A failed read leaves zeros here and the device's error for the caller's next read.
    let _ = gpu.read(source.clone(), &mut all);
    gpu.upload(&all[start..])
}

/// The sum of `value` over the cube's units, in every unit. Every unit of the cube must call it.
///
/// `scratch` holds one value for each plane (at most the number of units); a plane size of one works.
#[cube]
pub fn cube_sum(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let partial = plane_sum(value);
    let plane = UNIT_POS / PLANE_DIM;
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        scratch[plane as usize] = partial;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..CUBE_DIM.div_ceil(PLANE_DIM) {
        total += scratch[i as usize];
    }
    total
}

/// The largest `value` over the cube's units, in every unit. Every unit of the cube must call it.
#[cube]
pub fn cube_max(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let partial = plane_max(value);
    let plane = UNIT_POS / PLANE_DIM;
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        scratch[plane as usize] = partial;
    }
    sync_cube();
    let mut largest = scratch[0];
    for i in 1..CUBE_DIM.div_ceil(PLANE_DIM) {
        largest = max(largest, scratch[i as usize]);
    }
    largest
}

/// 64-bit addresses only where 32 bits cannot reach the last of `elements`.
pub fn address_type(elements: usize) -> AddressType {
    if elements > i32::MAX as usize { AddressType::U64 } else { AddressType::U32 }
}

/// The widest vector of at most `widest` elements that divides a row of `n`, so that every row starts on one.
pub fn row_vector(widest: usize, n: usize) -> usize {
    let mut width = widest;
    while !n.is_multiple_of(width) {
        width /= 2;
    }
    width
}

/// The largest element of a vector.
#[cube]
pub fn vector_max<N: Size>(v: Vector<f32, N>) -> f32 {
    let mut largest = v.extract(0usize);
    #[unroll]
    for i in 1..v.vector_size() {
        largest = max(largest, v.extract(i));
    }
    largest
}

/// The sum of a vector's elements.
#[cube]
pub fn vector_sum<N: Size>(v: Vector<f32, N>) -> f32 {
    let mut sum = v.extract(0usize);
    #[unroll]
    for i in 1..v.vector_size() {
        sum += v.extract(i);
    }
    sum
}

/// Replaces each of a unit's `count` values by its sum over the units that share a row: those of a plane, or all of the
/// cube, which must all call it. `scratch` holds `count` values for each plane.
#[cube]
pub fn row_sums(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] count: usize,
    #[comptime] by_plane: bool,
) {
    if comptime!(by_plane) {
        #[unroll]
        for j in 0..count {
            values[j] = plane_sum(values[j]);
        }
    } else {
        let plane = (UNIT_POS / PLANE_DIM) as usize;
        sync_cube();
        #[unroll]
        for j in 0..count {
            let partial = plane_sum(values[j]);
            if UNIT_POS_PLANE == 0 {
                scratch[plane * count + j] = partial;
            }
            values[j] = 0.0f32;
        }
        sync_cube();
        for i in 0..CUBE_DIM.div_ceil(PLANE_DIM) {
            #[unroll]
            for j in 0..count {
                values[j] += scratch[i as usize * count + j];
            }
        }
    }
}

/// Replaces each of a unit's `count` vectors by its sum over the units whose positions are equal modulo `lanes`. Every unit
/// of the cube must call it; `scratch` holds a vector for each unit.
#[cube]
pub fn lane_sums<N: Size>(
    values: &mut Array<Vector<f32, N>>,
    scratch: &mut Shared<[Vector<f32, N>]>,
    #[comptime] count: usize,
    #[comptime] lanes: usize,
) {
    let lane = UNIT_POS as usize % lanes;
    #[unroll]
    for j in 0..count {
        sync_cube();
        scratch[UNIT_POS as usize] = values[j];
        sync_cube();
        let mut total = scratch[lane];
        let mut at = lane + lanes;
        while at < CUBE_DIM as usize {
            total += scratch[at];
            at += lanes;
        }
        values[j] = total;
    }
}

/// Columns that a cube of [`add_rows`] takes: one 128-byte line of each row.
const SUM_COLUMNS: usize = 32;

/// Adds up `count` rows of f32 in an order that depends on the count alone; the columns go to one or two outputs, `n` to
/// each, rounded to their dtype. The way from the partial sums of cubes to the gradient of a parameter.
///
/// # Errors
/// Outputs on the host, or a dtype that the device cannot store.
pub fn add_rows(gpu: &Gpu, rows: Handle, count: usize, n: usize, outputs: &[&mut Tensor]) -> Result<()> {
    let (Some(first), Some(second)) = (outputs.first(), outputs.last()) else { return Ok(()) };
    let columns = n * outputs.len();
    let units = (SUM_COLUMNS * 32).min(gpu.max_units as usize);
    // SAFETY: there are `count` rows of `columns`, past which the kernel reads nothing; each output has `n` elements.
    unsafe {
        column_sums::launch_unchecked(
            gpu.client(),
            gpu.cubes(columns.div_ceil(SUM_COLUMNS)),
            CubeDim::new_1d(units as u32),
            BufferArg::from_raw_parts(rows, count * columns),
            first.gpu_arg()?,
            second.gpu_arg()?,
            count as u32,
            columns as u32,
            n as u32,
            units,
            gpu.elem(first.dtype())?,
        );
    }
    Ok(())
}

/// Each cube adds up a tile of columns: every unit takes rows a fixed step apart, then halves of the units are added.
#[cube(launch_unchecked)]
fn column_sums<F: Float>(
    rows: &[f32],
    first: &mut [F],
    second: &mut [F],
    count: u32,
    columns: u32,
    n: u32,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let tile = comptime!(SUM_COLUMNS as u32);
    let mut sums = Shared::<[f32]>::new_slice(units);
    let column = CUBE_POS as u32 * tile + UNIT_POS % tile;
    let step = CUBE_DIM / tile;
    let mut sum = 0.0f32;
    let mut row = UNIT_POS / tile;
    while row < count && column < columns {
        sum += rows[row as usize * columns as usize + column as usize];
        row += step;
    }
    sums[UNIT_POS as usize] = sum;
    let mut half = CUBE_DIM / 2;
    while half >= tile {
        sync_cube();
        if UNIT_POS < half {
            sums[UNIT_POS as usize] += sums[(UNIT_POS + half) as usize];
        }
        half /= 2;
    }
    if UNIT_POS < tile && column < columns {
        let total = F::cast_from(sums[UNIT_POS as usize]);
        if column < n {
            first[column as usize] = total;
        } else {
            second[(column - n) as usize] = total;
        }
    }
}
