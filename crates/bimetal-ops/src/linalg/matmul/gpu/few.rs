//! Products with a few vectors on the GPU, bound by reading the large operand once.

use super::PARAMS;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// A team of units sums one line of the large operand with each vector of the small one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn lines_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
    x: &[Vector<I, N>],
    y: &[Vector<I, N>],
    d: &mut [O],
    lines: usize,
    k: usize,
    products: usize,
    x_start: usize,
    y_start: usize,
    d_start: usize,
    x_batch: usize,
    y_batch: usize,
    d_batch: usize,
    x_stride: usize,
    y_stride: usize,
    d_vector: usize,
    d_line: usize,
    alpha: InputScalar,
    #[comptime] count: usize,
    #[comptime] units: usize,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let team = comptime!(PARAMS.team);
    let at_once = comptime!(units / PARAMS.team);
    let mut scratch = Shared::<[A]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let member = unit % team;
    let cubes = lines.div_ceil(at_once);
    let product = CUBE_POS / cubes;
    let line = CUBE_POS % cubes * at_once + unit / team;
    let active = product < products && line < lines;
    let mut sums = Array::<Vector<A, N>>::new(count);
    #[unroll]
    for v in 0..count {
        sums[v] = Vector::new(A::from_int(0));
    }
    if active {
        let x_from = x_start + product * x_batch;
        let y_from = y_start + product * y_batch + line * y_stride;
        let mut l = member;
        while l < k {
            let value: Vector<A, N> = Vector::cast_from(y[y_from + l]);
            #[unroll]
            for v in 0..count {
                let other: Vector<A, N> = Vector::cast_from(x[x_from + v * x_stride + l]);
                sums[v] = sums[v] + other * value;
            }
            l += team;
        }
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for v in 0..count {
        let mut sum = sums[v].extract(0usize);
        #[unroll]
        for i in 1..N::value() {
            sum += sums[v].extract(i);
        }
        sync_cube();
        scratch[unit] = sum;
        #[unroll]
        for level in 0..comptime!(team.ilog2() as usize) {
            let half = comptime!(team >> (level + 1));
            sync_cube();
            if member < half {
                scratch[unit] = scratch[unit] + scratch[unit + half];
            }
        }
        if active && member == 0 {
            d[d_start + product * d_batch + v * d_vector + line * d_line] = O::cast_from(scratch[unit] * factor);
        }
    }
}

/// A cube sums neighbouring vectors of the large operand's rows with each vector of the small one: its units take rows a
/// fixed step apart.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn columns_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
    x: &[I],
    y: &[Vector<I, N>],
    d: &mut [O],
    columns: usize,
    k: usize,
    products: usize,
    x_start: usize,
    y_start: usize,
    d_start: usize,
    x_batch: usize,
    y_batch: usize,
    d_batch: usize,
    x_stride: usize,
    x_step: usize,
    y_stride: usize,
    d_vector: usize,
    d_line: usize,
    alpha: InputScalar,
    #[comptime] count: usize,
    #[comptime] units: usize,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let lanes = comptime!(PARAMS.lanes);
    let slices = comptime!(units / PARAMS.lanes);
    let ahead = comptime!(PARAMS.ahead);
    let mut scratch = Shared::<[Vector<A, N>]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let slice = unit / lanes;
    let cubes = columns.div_ceil(lanes);
    let product = CUBE_POS / cubes;
    let column = CUBE_POS % cubes * lanes + unit % lanes;
    let active = product < products && column < columns;
    let mut sums = Array::<Vector<A, N>>::new(count);
    #[unroll]
    for v in 0..count {
        sums[v] = Vector::new(A::from_int(0));
    }
    if active {
        let x_from = x_start + product * x_batch;
        let y_from = y_start + product * y_batch + column;
        let mut l = slice;
        while l + comptime!((ahead - 1) * slices) < k {
            let mut values = Array::<Vector<I, N>>::new(ahead);
            #[unroll]
            for i in 0..ahead {
                values[i] = y[y_from + (l + i * slices) * y_stride];
            }
            #[unroll]
            for i in 0..ahead {
                let value: Vector<A, N> = Vector::cast_from(values[i]);
                #[unroll]
                for v in 0..count {
                    let factor = A::cast_from(x[x_from + v * x_stride + (l + i * slices) * x_step]);
                    sums[v] = sums[v] + Vector::new(factor) * value;
                }
            }
            l += comptime!(ahead * slices);
        }
        while l < k {
            let value: Vector<A, N> = Vector::cast_from(y[y_from + l * y_stride]);
            #[unroll]
            for v in 0..count {
                let factor = A::cast_from(x[x_from + v * x_stride + l * x_step]);
                sums[v] = sums[v] + Vector::new(factor) * value;
            }
            l += slices;
        }
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for v in 0..count {
        sync_cube();
        scratch[unit] = sums[v];
        #[unroll]
        for level in 0..comptime!(slices.ilog2() as usize) {
            let half = comptime!(slices >> (level + 1));
            sync_cube();
            if slice < half {
                scratch[unit] = scratch[unit] + scratch[unit + half * lanes];
            }
        }
        if active && slice == 0 {
            let place = d_start + product * d_batch + v * d_vector;
            #[unroll]
            for i in 0..N::value() {
                d[place + (column * N::value() + i) * d_line] = O::cast_from(scratch[unit].extract(i) * factor);
            }
        }
    }
}
