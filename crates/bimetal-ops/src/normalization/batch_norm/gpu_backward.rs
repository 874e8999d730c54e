//! The gradients of batch norm: what a chunk's moments take along, and the gradients from all chunks.

use super::gpu::{BATCH, Extents, Form, address, load_batch, put_together};
use bimetal_core::gpu::kernel::vector_sum;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Adds `Σ grad·(x − mean)` and `Σ grad` of the first `left` places of a batch to `sums[2]` and `sums[3]`.
#[cube]
pub(super) fn add_products<N: Size>(
    sums: &mut Array<f32>,
    slopes: &Array<Vector<f32, N>>,
    values: &Array<Vector<f32, N>>,
    mean: f32,
    left: u32,
    step: u32,
) {
    #[unroll]
    for i in 0..BATCH {
        if (i as u32) * step < left {
            sums[2] += vector_sum(slopes[i] * (values[i] - Vector::new(mean)));
            sums[3] += vector_sum(slopes[i]);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn channel_gradients<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[F],
    moments: &[f32],
    dx: &mut [Vector<F, N>],
    dweight: &mut [F],
    dbias: &mut [F],
    extents: Extents,
    eps: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(form.sums() * form.planes));
    let step = CUBE_DIM;
    let position = min(CUBE_POS, extents.cubes as usize - 1);
    let part = (position % extents.chunks as usize) as u32;
    let channel = (position / extents.chunks as usize) as u32;
    let mut stats = Array::<f32>::new(6usize);
    put_together(moments, &mut stats, &mut scratch, channel, &extents, N::value() as u32, eps, form);
    if CUBE_POS < extents.cubes as usize {
        let scaled = stats[4] * stats[2];
        let plain = stats[5];
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
            let values = load_batch::<F, N>(x, e, step, end, channel, &extents);
            let slopes = load_batch::<F, N>(grad, e, step, end, channel, &extents);
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
