//! The kernels of blocked triangular algorithms: copies with checks, substitution, and the update by a block.

use super::{BLOCK, CHUNK, SIDE, TILE, UNITS, not_finite};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub fn copy_in<I: Float, A: Float>(
    x: &[I],
    work: &mut [A],
    flags: &mut [i32],
    count: usize,
    size: usize,
    columns: usize,
    stride: usize,
    chunks: usize,
    #[comptime] part: usize,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let matrix = CUBE_POS / chunks;
    let chunk = CUBE_POS % chunks;
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let end = select(matrix < count, min((chunk + 1) * comptime!(CHUNK), size), 0usize);
    let mut e = chunk * comptime!(CHUNK) + UNIT_POS as usize;
    while e < end {
        let (i, j) = (e / columns, e % columns);
        let inside = comptime!(part == 0)
            || (comptime!(part == 1) && j <= i)
            || (comptime!(part == 2) && j >= i)
            || (comptime!(part == 3) && j < i)
            || (comptime!(part == 4) && j > i);
        let value = select(inside, A::cast_from(x[matrix * size + e]), A::new(0.0));
        work[matrix * (size / columns * stride) + i * stride + j] = value;
        if not_finite::<A>(value, double) {
            bad[0] = 1i32;
        }
        e += CUBE_DIM as usize;
    }
    sync_cube();
    if UNIT_POS == 0 && matrix < count {
        flags[matrix * chunks + chunk] = bad[0];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub fn copy_out<I: Float, A: Float>(
    work: &[A],
    out: &mut [I],
    status: &[i32],
    total: usize,
    size: usize,
    columns: usize,
    nan: InputScalar,
    factor: InputScalar,
    #[comptime] part: usize,
    #[comptime] positive_fails: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let matrix = e / size;
        let (i, j) = (e % size / columns, e % columns);
        let inside = comptime!(part == 0) || (comptime!(part == 1) && j <= i) || (comptime!(part == 2) && j >= i);
        let found = status[matrix];
        let failed = found < 0i32 || (comptime!(positive_fails) && found > 0i32);
        let value = select(inside, work[e] * factor.get::<A>(), A::new(0.0));
        out[e] = I::cast_from(select(failed, nan.get::<A>(), value));
    }
}

/// A cube for each matrix: −1 if a flag is set, else the first zero on the diagonal from 1, else 0.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn judge<A: Float>(
    first: &[i32],
    second: &[i32],
    matrix: &[A],
    status: &mut [i32],
    count: usize,
    flags: u32,
    more: u32,
    n: u32,
    #[define(A)] _elem: ElemType,
) {
    let mut zeros = Shared::<[u32]>::new_slice(comptime!(UNITS as usize));
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let at = min(CUBE_POS, count - 1);
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < flags {
        if first[at * flags as usize + i as usize] != 0i32 {
            bad[0] = 1i32;
        }
        i += CUBE_DIM;
    }
    i = UNIT_POS;
    while i < more {
        if second[at * more as usize + i as usize] != 0i32 {
            bad[0] = 1i32;
        }
        i += CUBE_DIM;
    }
    let mut zero = n;
    i = UNIT_POS;
    while i < n {
        let place = at * n as usize * n as usize + i as usize * (n as usize + 1);
        zero = select(matrix[place] == A::new(0.0), min(zero, i), zero);
        i += CUBE_DIM;
    }
    zeros[UNIT_POS as usize] = zero;
    sync_cube();
    if UNIT_POS == 0 && CUBE_POS < count {
        for other in 1..CUBE_DIM {
            zero = min(zero, zeros[other as usize]);
        }
        status[at] = select(bad[0] != 0i32, -1i32, select(zero < n, zero as i32 + 1i32, 0i32));
    }
}

/// A unit for each vector, which it keeps in registers; the triangle is in shared memory.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn solve_vectors<A: Float>(
    t: &[A],
    x: &mut [A],
    count: usize,
    n: u32,
    vectors: u32,
    t_batch: usize,
    t_start: usize,
    t_row: usize,
    t_column: usize,
    x_batch: usize,
    x_start: usize,
    x_row: usize,
    x_column: usize,
    #[comptime] unit_diagonal: bool,
    #[comptime] backwards: bool,
    #[comptime] same: bool,
    #[define(A)] _elem: ElemType,
) {
    let block = comptime!(BLOCK);
    let mut triangle = Shared::<[A]>::new_slice(comptime!(BLOCK * (BLOCK + 1)));
    let groups = vectors.div_ceil(CUBE_DIM) as usize;
    let matrix = min(CUBE_POS / groups, count - 1);
    let inside = CUBE_POS / groups < count;
    let vector = (CUBE_POS % groups) as u32 * CUBE_DIM + UNIT_POS;
    let n = n as usize;
    let mut e = UNIT_POS as usize;
    while e < comptime!(BLOCK * BLOCK) {
        let (i, j) = (e / block, e % block);
        let mut value = select(i == j, A::new(1.0), A::new(0.0));
        if i < n && j <= i && (comptime!(!unit_diagonal) || j < i) {
            let (i, j) = if comptime!(backwards) { (n - 1 - i, n - 1 - j) } else { (i, j) };
            let place = i * t_row + j * t_column + t_start + matrix * t_batch;
            if comptime!(same) {
                value = x[place];
            } else {
                value = t[place];
            }
        }
        triangle[j * comptime!(BLOCK + 1) + i] = value;
        e += CUBE_DIM as usize;
    }
    sync_cube();
    if inside && vector < vectors {
        let from = matrix * x_batch + x_start + vector as usize * x_column;
        let mut values = Array::<A>::new(block);
        #[unroll]
        for i in 0..block {
            values[i] = A::new(0.0);
            if i < n {
                let row = if comptime!(backwards) { n - 1 - i } else { i.runtime() };
                values[i] = x[from + row * x_row];
            }
        }
        #[unroll]
        for k in 0..block {
            if comptime!(!unit_diagonal) {
                values[k] = values[k] / triangle[comptime!(k * (BLOCK + 1) + k)];
            }
            let solved = values[k];
            #[unroll]
            for i in comptime!(k + 1)..block {
                values[i] = values[i] - solved * triangle[comptime!(k * (BLOCK + 1) + i)];
            }
        }
        #[unroll]
        for i in 0..block {
            if i < n {
                let row = if comptime!(backwards) { n - 1 - i } else { i.runtime() };
                x[from + row * x_row] = values[i];
            }
        }
    }
}

/// A cube for each tile of the result: both operands in shared memory, 4×4 elements a unit.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn update_tiles<A: Float>(
    t: &[A],
    x: &mut [A],
    count: usize,
    m: u32,
    n: u32,
    k: u32,
    t_batch: usize,
    x_batch: usize,
    a_start: usize,
    a_row: usize,
    a_column: usize,
    b_start: usize,
    b_row: usize,
    b_column: usize,
    c_start: usize,
    c_row: usize,
    c_column: usize,
    #[comptime] along: [bool; 3],
    #[comptime] lower: bool,
    #[comptime] same: bool,
    #[comptime] double: bool,
    #[define(A)] _elem: ElemType,
) {
    let per_unit = comptime!(TILE / SIDE);
    // A row one longer than the tile spreads columns over the banks; in f64 there is no room for it.
    let padded = comptime!(if double { TILE } else { TILE + 1 });
    let mut left = Shared::<[A]>::new_slice(comptime!(BLOCK * if double { TILE } else { TILE + 1 }));
    let mut right = Shared::<[A]>::new_slice(comptime!(BLOCK * if double { TILE } else { TILE + 1 }));
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let down = m.div_ceil(comptime!(TILE));
    let across = n.div_ceil(comptime!(TILE));
    let matrix = min(CUBE_POS / (down * across), count - 1);
    let at = CUBE_POS % (down * across);
    let row = at / across * comptime!(TILE);
    let column = at % across * comptime!(TILE);
    let wanted = CUBE_POS / (down * across) < count && (comptime!(!lower) || column <= row);
    let a_from = matrix * t_batch + a_start;
    let b_from = matrix * x_batch + b_start;
    let c_from = matrix * x_batch + c_start;
    let mut e = UNIT_POS as usize;
    while e < comptime!(BLOCK * TILE) {
        let (i, l) = if comptime!(along[0]) {
            (e / comptime!(BLOCK), e % comptime!(BLOCK))
        } else {
            (e % comptime!(TILE), e / comptime!(TILE))
        };
        let mut value = A::new(0.0);
        if wanted && row + i < m && l < k {
            let place = a_from + (row + i) * a_row + l * a_column;
            if comptime!(same) {
                value = x[place];
            } else {
                value = t[place];
            }
        }
        left[l * padded + i] = value;
        let (j, l) = if comptime!(along[1]) {
            (e % comptime!(TILE), e / comptime!(TILE))
        } else {
            (e / comptime!(BLOCK), e % comptime!(BLOCK))
        };
        let mut value = A::new(0.0);
        if wanted && column + j < n && l < k {
            value = x[b_from + l * b_row + (column + j) * b_column];
        }
        right[l * padded + j] = value;
        e += comptime!(SIDE * SIDE);
    }
    sync_cube();
    let fast = UNIT_POS as usize % comptime!(SIDE);
    let slow = UNIT_POS as usize / comptime!(SIDE);
    // Neighbouring units write neighbouring elements.
    let (y, z) = if comptime!(along[2]) { (slow, fast) } else { (fast, slow) };
    let mut sums = Array::<A>::new(comptime!((TILE / SIDE) * (TILE / SIDE)));
    #[unroll]
    for s in 0..comptime!((TILE / SIDE) * (TILE / SIDE)) {
        sums[s] = A::new(0.0);
    }
    multiply::<A>(&left, &right, &mut sums, y, z, padded);
    if wanted {
        #[unroll]
        for i in 0..per_unit {
            #[unroll]
            for j in 0..per_unit {
                let own_row = row + y + i * comptime!(SIDE);
                let own_column = column + z + j * comptime!(SIDE);
                if own_row < m && own_column < n {
                    let place = c_from + own_row * c_row + own_column * c_column;
                    x[place] = x[place] - sums[comptime!(i * (TILE / SIDE) + j)];
                }
            }
        }
    }
}

/// Adds the products of a unit's rows of one operand and columns of the other.
#[cube]
fn multiply<A: Float>(
    left: &Shared<[A]>,
    right: &Shared<[A]>,
    sums: &mut Array<A>,
    y: usize,
    z: usize,
    #[comptime] padded: usize,
) {
    let per_unit = comptime!(TILE / SIDE);
    for l in 0..comptime!(BLOCK) {
        #[unroll]
        for i in 0..per_unit {
            let factor = left[l * padded + y + i * comptime!(SIDE)];
            #[unroll]
            for j in 0..per_unit {
                let s = comptime!(i * (TILE / SIDE) + j);
                sums[s] = sums[s] + factor * right[l * padded + z + j * comptime!(SIDE)];
            }
        }
    }
}
