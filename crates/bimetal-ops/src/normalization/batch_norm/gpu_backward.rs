//! The kernels of batch norm's gradients: sums of each chunk over a channel, then the gradients from all of them.

use super::gpu::{BATCH, Extents, Form, address, put_together};
use bimetal_core::gpu::kernel::{row_sums, vector_sum};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// `Σ grad·x̂` and `Σ grad` of each chunk.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn channel_products<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    moments: &[f32],
    products: &mut [f32],
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * form.planes));
    let position = min(CUBE_POS, extents.cubes as usize - 1);
    let part = (position % extents.chunks as usize) as u32;
    let channel = (position / extents.chunks as usize) as u32;
    let mut stats = Array::<f32>::new(4usize);
    put_together(moments, &mut stats, channel, &extents, N::value() as u32, eps);
    let mut sums = Array::<f32>::new(2usize);
    sums[0] = 0.0f32;
    sums[1] = 0.0f32;
    let end = min((part + 1) * extents.chunk, extents.vectors);
    let mut e = part * extents.chunk + UNIT_POS;
    let step = CUBE_DIM;
    while e < end {
        let mut values = Array::<Vector<f32, N>>::new(BATCH);
        let mut slopes = Array::<Vector<f32, N>>::new(BATCH);
        #[unroll]
        for i in 0..BATCH {
            let own = e + i as u32 * step;
            let at = address(min(own, end - 1), channel, &extents);
            values[i] = Vector::cast_from(x[at]);
            slopes[i] = Vector::new(0.0f32);
            if own < end {
                slopes[i] = Vector::cast_from(grad[at]);
            }
        }
        #[unroll]
        for i in 0..BATCH {
            if e + (i as u32) * step < end {
                let d = (values[i] - Vector::new(stats[0])) - Vector::new(stats[1]);
                sums[0] += vector_sum(slopes[i] * d);
                sums[1] += vector_sum(slopes[i]);
            }
        }
        e += BATCH as u32 * step;
    }
    row_sums(&mut sums, &mut scratch, 2usize, false);
    if UNIT_POS == 0 && CUBE_POS < extents.cubes as usize {
        let at = 2 * (channel as usize * extents.chunks as usize + part as usize);
        products[at] = sums[0] * stats[2];
        products[at + 1] = sums[1];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn channel_gradients<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[F],
    moments: &[f32],
    products: &[f32],
    dx: &mut [Vector<F, N>],
    dweight: &mut [F],
    dbias: &mut [F],
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let step = CUBE_DIM;
    let part = (CUBE_POS % extents.chunks as usize) as u32;
    let channel = (CUBE_POS / extents.chunks as usize) as u32;
    if CUBE_POS < extents.cubes as usize {
        let mut stats = Array::<f32>::new(4usize);
        put_together(moments, &mut stats, channel, &extents, N::value() as u32, eps);
        let mut scaled = 0.0f32;
        let mut plain = 0.0f32;
        for i in 0..extents.chunks {
            let at = 2 * (channel as usize * extents.chunks as usize + i as usize);
            scaled += products[at];
            plain += products[at + 1];
        }
        if part == 0 && UNIT_POS == 0 {
            dweight[channel as usize] = F::cast_from(scaled);
            dbias[channel as usize] = F::cast_from(plain);
        }
        let count = extents.vectors as f32 * N::value() as f32;
        let first = plain / count;
        let second = scaled / count;
        let mut factor = stats[2];
        if comptime!(form.weight) {
            factor *= f32::cast_from(weight[channel as usize]);
        }
        let end = min((part + 1) * extents.chunk, extents.vectors);
        let mut e = part * extents.chunk + UNIT_POS;
        while e < end {
            let mut values = Array::<Vector<f32, N>>::new(BATCH);
            let mut slopes = Array::<Vector<f32, N>>::new(BATCH);
            #[unroll]
            for i in 0..BATCH {
                let at = address(min(e + i as u32 * step, end - 1), channel, &extents);
                values[i] = Vector::cast_from(x[at]);
                slopes[i] = Vector::cast_from(grad[at]);
            }
            #[unroll]
            for i in 0..BATCH {
                let own = e + i as u32 * step;
                if own < end {
                    let d = (values[i] - Vector::new(stats[0])) - Vector::new(stats[1]);
                    let slope = slopes[i] - Vector::new(first) - d * Vector::new(stats[2] * second);
                    dx[address(own, channel, &extents)] = Vector::cast_from(slope * Vector::new(factor));
                }
            }
            e += BATCH as u32 * step;
        }
    }
}
