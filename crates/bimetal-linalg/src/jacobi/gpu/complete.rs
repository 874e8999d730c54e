//! Completes columns to an orthonormal basis: those that belong to zero singular values, and those past the last one.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::step::cube_largest;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Minus the index of the row with the smallest weight, the first of equals: the one that the columns reach least.
#[cube]
fn farthest<F: Float>(weights: &mut [F], row: usize, rows: u32, slots: &mut Shared<[F]>) -> F {
    let zero = F::from_int(0);
    let mut best = F::from_int(-1000000);
    let mut i = UNIT_POS;
    while i < rows {
        best = max(best, zero - weights[row + i as usize]);
        i += CUBE_DIM;
    }
    let best = cube_largest::<F>(best, slots);
    let mut place = F::from_int(-100000000);
    let mut i = UNIT_POS;
    while i < rows {
        let own = select(zero - weights[row + i as usize] == best, zero - F::cast_from(i), place);
        place = max(place, own);
        i += CUBE_DIM;
    }
    cube_largest::<F>(place, slots)
}

/// The squared length of a vector, each unit's part of which it has written itself.
#[cube]
fn squared_length<F: Float>(x: &mut [F], row: usize, rows: u32, slots: &mut Shared<[F]>) -> F {
    let mut squares = F::from_int(0);
    let mut i = UNIT_POS;
    while i < rows {
        squares += x[row + i as usize] * x[row + i as usize];
        i += CUBE_DIM;
    }
    let partial = plane_sum(squares);
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        slots[(UNIT_POS / PLANE_DIM) as usize] = partial;
    }
    sync_cube();
    let mut sum = F::from_int(0);
    for k in 0..CUBE_DIM.div_ceil(PLANE_DIM) {
        sum += slots[k as usize];
    }
    sum
}

/// A cube for each matrix. Columns from `good` on become the unit vectors that are farthest from the span of the columns
/// before them, made orthogonal to it twice. Element `i` of column `c` is at `i·along + c·across`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn complete<I: Float, F: Float>(
    x: &mut [I],
    status: &[i32],
    good: &[i32],
    weights: &mut [F],
    fresh: &mut [F],
    dots: &mut [F],
    batch: u32,
    rows: u32,
    cols: u32,
    total: u32,
    along: u32,
    across: u32,
    #[comptime] most_slots: usize,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let mut slots = Shared::<[F]>::new_slice(most_slots);
    let zero = F::from_int(0);
    let matrix = CUBE_POS;
    let inside = matrix < batch as usize;
    let matrix = select(inside, matrix, 0usize);
    let failed = status[matrix] < 0;
    let start = select(inside, select(failed, cols, good[matrix] as u32), total);
    let (along, across) = (along as usize, across as usize);
    let from = matrix * rows as usize * total as usize;
    let row = matrix * rows as usize;
    let poison = F::cast_from(f32::reinterpret(select(failed, 0x7fc0_0000u32, 0u32)));
    if start < total {
        let mut i = UNIT_POS;
        while i < rows {
            let mut sum = zero;
            for c in 0..start {
                let y = F::cast_from(x[from + i as usize * along + c as usize * across]);
                sum += y * y;
            }
            weights[row + i as usize] = sum;
            i += CUBE_DIM;
        }
    }
    for c in start..total {
        let place = farthest::<F>(weights, row, rows, &mut slots);
        let mut i = UNIT_POS;
        while i < rows {
            let unit = zero - F::cast_from(i) == place;
            fresh[row + i as usize] = select(unit, F::from_int(1), zero);
            i += CUBE_DIM;
        }
        for _ in 0..2 {
            sync_storage();
            sync_cube();
            let mut before = UNIT_POS;
            while before < c {
                let mut sum = zero;
                for i in 0..rows as usize {
                    sum += F::cast_from(x[from + i * along + before as usize * across]) * fresh[row + i];
                }
                dots[matrix * total as usize + before as usize] = sum;
                before += CUBE_DIM;
            }
            sync_storage();
            sync_cube();
            let mut i = UNIT_POS;
            while i < rows {
                let mut sum = fresh[row + i as usize];
                for before in 0..c as usize {
                    let y = F::cast_from(x[from + i as usize * along + before * across]);
                    sum -= y * dots[matrix * total as usize + before];
                }
                fresh[row + i as usize] = sum;
                i += CUBE_DIM;
            }
        }
        let length = squared_length::<F>(fresh, row, rows, &mut slots);
        let length = length.sqrt();
        let mut i = UNIT_POS;
        while i < rows {
            let y = fresh[row + i as usize] / length;
            x[from + i as usize * along + c as usize * across] = I::cast_from(y + poison);
            weights[row + i as usize] += y * y;
            i += CUBE_DIM;
        }
        sync_storage();
        sync_cube();
    }
}
