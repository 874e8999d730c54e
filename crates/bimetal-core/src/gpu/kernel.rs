//! Pieces that kernels share: reductions over a cube that assume no plane size, and plain copies.

use crate::gpu::Gpu;
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
    out
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
