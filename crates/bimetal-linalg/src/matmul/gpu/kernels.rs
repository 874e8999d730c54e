//! The kernels of products: tiles of the result, and one pass over the large operand beside a few vectors.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::PARAMS;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// A cube sums a square tile of one product: both operands go through shared memory, `PARAMS.depth` steps at a time, and a
/// unit keeps 8×8 sums whose rows and columns are `side` apart, so that neighbours touch neighbouring memory.
///
/// A's stride is that of its other axis than the one with stride 1, which is the sum's where `a_along`; B's likewise,
/// where `b_across` says that columns are neighbours.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn tiles<I: Numeric, A: Numeric, O: Numeric>(
    a: &[I],
    b: &[I],
    d: &mut [O],
    m: u32,
    n: u32,
    k: u32,
    products: usize,
    a_start: usize,
    b_start: usize,
    d_start: usize,
    a_batch: usize,
    b_batch: usize,
    a_stride: usize,
    b_stride: usize,
    alpha: InputScalar,
    #[comptime] a_along: bool,
    #[comptime] b_across: bool,
    #[comptime] side: usize,
    #[comptime] bytes: bool,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let tile = comptime!(side * PARAMS.unit);
    let depth = comptime!(PARAMS.depth);
    let per_unit = comptime!(PARAMS.unit);
    // A row is one longer than the tile, so that units that write a column hit different banks.
    let row = comptime!(tile + 1);
    let b_along = comptime!(!b_across);
    let mut a_tile = Shared::<[A]>::new_slice(comptime!(row * depth));
    let mut b_tile = Shared::<[A]>::new_slice(comptime!(row * depth));
    let unit = UNIT_POS as usize;
    let (x, y) = (unit % side, unit / side);
    let across = n.div_ceil(tile as u32) as usize;
    let down = m.div_ceil(tile as u32) as usize;
    let product = CUBE_POS / (across * down);
    let at = CUBE_POS % (across * down);
    let first_row = (at / across) * tile;
    let first_column = (at % across) * tile;
    // Cubes past the last product have no rows.
    let rows = select(product < products, m, 0u32);
    let columns = select(product < products, n, 0u32);
    let a_from = a_start + product * a_batch;
    let b_from = b_start + product * b_batch;
    let mut sums = Array::<A>::new(comptime!(per_unit * per_unit));
    #[unroll]
    for i in 0..comptime!(per_unit * per_unit) {
        sums[i] = A::from_int(0);
    }
    let mut step = 0u32;
    while step < k {
        load_tile::<I, A>(a, &mut a_tile, a_from, first_row, rows, step, k, a_stride, a_along, side, bytes);
        load_tile::<I, A>(b, &mut b_tile, b_from, first_column, columns, step, k, b_stride, b_along, side, bytes);
        sync_cube();
        for l in 0..depth {
            let mut left = Array::<A>::new(per_unit);
            let mut right = Array::<A>::new(per_unit);
            #[unroll]
            for i in 0..per_unit {
                left[i] = a_tile[l * row + y + i * side];
                right[i] = b_tile[l * row + x + i * side];
            }
            #[unroll]
            for i in 0..per_unit {
                #[unroll]
                for j in 0..per_unit {
                    let s = comptime!(i * per_unit + j);
                    sums[s] = sums[s] + left[i] * right[j];
                }
            }
        }
        sync_cube();
        step += comptime!(depth as u32);
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for i in 0..per_unit {
        let i_row = first_row + y + i * side;
        #[unroll]
        for j in 0..per_unit {
            let i_column = first_column + x + j * side;
            if (i_row as u32) < rows && (i_column as u32) < n {
                let place = d_start + (product * m as usize + i_row) * n as usize + i_column;
                d[place] = O::cast_from(sums[comptime!(i * per_unit + j)] * factor);
            }
        }
    }
}

/// Copies `PARAMS.depth` steps of a tile's lines, from `first` on, into shared memory: line by line for each step, and zeros
/// past the last line and step. Neighbouring units read along the sum where the operand's steps are neighbours (`along`).
#[cube]
fn load_tile<I: Numeric, A: Numeric>(
    x: &[I],
    out: &mut Shared<[A]>,
    from: usize,
    first: usize,
    lines: u32,
    step: u32,
    k: u32,
    stride: usize,
    #[comptime] along: bool,
    #[comptime] side: usize,
    #[comptime] bytes: bool,
) {
    let tile = comptime!(side * PARAMS.unit);
    let depth = comptime!(PARAMS.depth);
    #[unroll]
    for i in 0..comptime!(tile * depth / (side * side)) {
        let e = UNIT_POS as usize + i * comptime!(side * side);
        let (line, l) = if comptime!(along) { (e / depth, e % depth) } else { (e % tile, e / tile) };
        let (i_line, i_l) = (first + line, step as usize + l);
        let mut value = A::from_int(0);
        if (i_line as u32) < lines && (i_l as u32) < k {
            let place = if comptime!(along) { i_line * stride + i_l } else { i_l * stride + i_line };
            value = element::<I, A>(x, from + place, bytes);
        }
        out[l * comptime!(tile + 1) + line] = value;
    }
}

/// Element `place`: of words that hold four i8 each if `bytes`.
#[cube]
fn element<I: Numeric, A: Numeric>(x: &[I], place: usize, #[comptime] bytes: bool) -> A {
    if comptime!(bytes) {
        let byte = (u32::cast_from(x[place / 4]) >> ((place % 4) as u32 * 8u32)) & 255u32;
        A::cast_from(i32::cast_from(byte) - select(byte > 127u32, 256i32, 0i32))
    } else {
        A::cast_from(x[place])
    }
}

/// A team of units sums one line of the large operand with each vector of the small one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn lines_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
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
pub fn columns_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
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
