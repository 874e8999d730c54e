//! What the gradient kernel of rows held in registers reads before its turns, at each turn, and writes after them.

use super::gpu::Form;
use bimetal_core::gpu::kernel::vector_sum;
use cubecl::prelude::*;

/// Clears a unit's sums and reads its part of the weight.
#[cube]
pub(super) fn hold_weights<F: Float, N: Size>(
    dweight: &mut Array<Vector<f32, N>>,
    dbias: &mut Array<Vector<f32, N>>,
    weights: &mut Array<Vector<F, N>>,
    weight: &[Vector<F, N>],
    first: u32,
    step: u32,
    vectors: u32,
    #[comptime] held: usize,
    #[comptime] form: Form,
) {
    #[unroll]
    for i in 0..held {
        dweight[i] = Vector::new(0.0f32);
        dbias[i] = Vector::new(0.0f32);
        let k = first + i as u32 * step;
        if comptime!(form.weight) && k < vectors {
            weights[i] = weight[k as usize];
        }
    }
}

/// Reads a unit's part of a row and of its gradient; the sum of the former where the mean is wanted.
#[cube]
pub(super) fn hold_row<F: Float, N: Size>(
    values: &mut Array<Vector<f32, N>>,
    slopes: &mut Array<Vector<f32, N>>,
    x: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    start: usize,
    first: u32,
    step: u32,
    vectors: u32,
    #[comptime] held: usize,
    #[comptime] form: Form,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..held {
        let k = first + i as u32 * step;
        values[i] = Vector::new(0.0f32);
        slopes[i] = Vector::new(0.0f32);
        if k < vectors {
            values[i] = Vector::cast_from(x[start + k as usize]);
            slopes[i] = Vector::cast_from(grad[start + k as usize]);
        }
        if comptime!(form.centers) {
            sum += vector_sum(values[i]);
        }
    }
    sum
}

/// Writes a cube's sums for the finishing pass.
#[cube]
pub(super) fn keep_partials<N: Size>(
    partials: &mut [Vector<f32, N>],
    dweight: &Array<Vector<f32, N>>,
    dbias: &Array<Vector<f32, N>>,
    first: u32,
    step: u32,
    vectors: u32,
    #[comptime] held: usize,
    #[comptime] form: Form,
) {
    #[unroll]
    for i in 0..held {
        let k = first + i as u32 * step;
        if k < vectors {
            if comptime!(form.centers) {
                let at = CUBE_POS * 2 * vectors as usize + k as usize;
                partials[at] = dweight[i];
                partials[at + vectors as usize] = dbias[i];
            } else {
                partials[CUBE_POS * vectors as usize + k as usize] = dweight[i];
            }
        }
    }
}
