//! The kernels that move large matrices: to columns one after another, scaled, and back, and what is wrong with them.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::columns::{is_finite, magnitude_bits, normalizer, not_a_number};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Rows and columns of the squares in which matrices are transposed.
pub const TILE: usize = 32;
/// Units that transpose a square.
pub const TILE_UNITS: usize = 256;
/// Rows of a part of a column, and most parts.
pub const PART: usize = 256;
pub const PARTS: usize = 32;

/// The bits of the largest magnitudes of parts of columns, a line of each part's after another: a cube for each 32 columns
/// and each part.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn column_sizes<I: Float, A: Float>(
    a: &[I],
    sizes: &mut [u32],
    batch: usize,
    m: usize,
    n: usize,
    parts: usize,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut found = Shared::<[u32]>::new_slice(TILE_UNITS);
    let groups = n.div_ceil(TILE);
    let (matrix, part) = (CUBE_POS / (groups * parts), CUBE_POS / groups % parts);
    let column = CUBE_POS % groups * TILE + UNIT_POS as usize % TILE;
    let rows = m.div_ceil(parts);
    let mut largest = 0u32;
    if matrix < batch && column < n {
        let mut i = part * rows + UNIT_POS as usize / TILE;
        while i < min(m, (part + 1) * rows) {
            let x = A::cast_from(a[(matrix * m + i) * n + column]);
            largest = max(largest, magnitude_bits::<A>(x, double));
            i += comptime!(TILE_UNITS / TILE);
        }
    }
    found[UNIT_POS as usize] = largest;
    sync_cube();
    if (UNIT_POS as usize) < TILE && matrix < batch && column < n {
        let mut all = 0u32;
        #[unroll]
        for i in 0..comptime!(TILE_UNITS / TILE) {
            all = max(all, found[UNIT_POS as usize + i * TILE]);
        }
        sizes[(matrix * parts + part) * n + column] = all;
    }
}

/// The powers of two with which columns are multiplied, 0 for columns that are not finite, and the status of each matrix: a cube
/// for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn column_scales<A: Float>(
    sizes: &[u32],
    scales: &mut [A],
    status: &mut [i32],
    batch: usize,
    n: usize,
    parts: usize,
    #[comptime] double: bool,
    #[define(A)] _elem: ElemType,
) {
    let mut flag = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        flag[0] = 0u32;
    }
    sync_cube();
    if CUBE_POS < batch {
        let mut column = UNIT_POS as usize;
        while column < n {
            let mut all = 0u32;
            for part in 0..parts {
                all = max(all, sizes[(CUBE_POS * parts + part) * n + column]);
            }
            let finite = is_finite(all, double);
            scales[CUBE_POS * n + column] = select(finite, normalizer::<A>(all, double), A::from_int(0));
            if !finite {
                flag[0] = 1u32;
            }
            column += CUBE_DIM as usize;
        }
    }
    sync_cube();
    if UNIT_POS == 0 && CUBE_POS < batch {
        status[CUBE_POS] = select(flag[0] != 0u32, -1i32, 0i32);
    }
}

/// Transposes matrices, and scales them if asked: `x` has `stride` elements for each column, those past its rows zero.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn load<I: Float, A: Float>(
    a: &[I],
    scales: &[A],
    x: &mut [A],
    batch: usize,
    m: usize,
    n: usize,
    stride: usize,
    #[comptime] scaled: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let down = stride.div_ceil(TILE);
    let across = n.div_ceil(TILE);
    let matrix = CUBE_POS / (down * across);
    let row = CUBE_POS % (down * across) / across * TILE;
    let column = CUBE_POS % across * TILE;
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        let mut value = A::from_int(0);
        if matrix < batch && row + far < m && column + near < n {
            value = A::cast_from(a[(matrix * m + row + far) * n + column + near]);
            if comptime!(scaled) {
                value *= scales[matrix * n + column + near];
            }
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        if matrix < batch && column + far < n && row + near < stride {
            x[(matrix * n + column + far) * stride + row + near] = tile[near * comptime!(TILE + 1) + far];
        }
    }
}

/// What of a transposed matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// The elements.
    Whole,
    /// The elements, where there is no status.
    Unjudged,
    /// Those on and above the diagonal, scaled back; zeros below it.
    Triangle,
    /// The same, with the reflectors below the diagonal.
    Packed,
}

/// Transposes matrices back, `rows`×`columns` of each; NaN for those that failed.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn store<I: Float, A: Float>(
    x: &[A],
    reflectors: &[A],
    scales: &[A],
    status: &[i32],
    out: &mut [I],
    batch: usize,
    rows: usize,
    columns: usize,
    reflector_count: usize,
    stride: usize,
    #[comptime] stores: Stores,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let down = rows.div_ceil(TILE);
    let across = columns.div_ceil(TILE);
    let matrix = CUBE_POS / (down * across);
    let row = CUBE_POS % (down * across) / across * TILE;
    let column = CUBE_POS % across * TILE;
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        let (i, j) = (row + near, column + far);
        let mut value = A::from_int(0);
        if matrix < batch && i < rows && j < columns {
            let at = (matrix * columns + j) * stride + i;
            if comptime!(stores == Stores::Whole || stores == Stores::Unjudged) {
                value = x[at];
            } else if i <= j {
                let scale = magnitude_bits::<A>(scales[matrix * columns + j], double);
                value = x[at] * normalizer::<A>(scale, double);
            } else if comptime!(stores == Stores::Packed) {
                value = reflectors[(matrix * reflector_count + j) * stride + i];
            }
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        if matrix < batch && row + far < rows && column + near < columns {
            let value = tile[near * comptime!(TILE + 1) + far];
            let at = (matrix * rows + row + far) * columns + column + near;
            if comptime!(stores == Stores::Unjudged) {
                out[at] = I::cast_from(value);
            } else {
                let bad = status[matrix] != 0i32;
                out[at] = I::cast_from(select(bad, not_a_number::<A>(), value));
            }
        }
    }
}

/// Stores τ; NaN for matrices that failed.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn store_tau<I: Float, A: Float>(
    tau: &[A],
    status: &[i32],
    out: &mut [I],
    total: usize,
    k: usize,
    stride: usize,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < total {
        let bad = status[i / k] != 0i32;
        out[i] = I::cast_from(select(bad, not_a_number::<A>(), tau[i / k * stride + i % k]));
    }
}

/// The first `columns` columns of identities, a column after another.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn identity<A: Float>(x: &mut [A], total: usize, columns: usize, stride: usize, #[define(A)] _elem: ElemType) {
    let i = ABSOLUTE_POS;
    if i < total {
        x[i] = select(i % stride == i / stride % columns, A::from_int(1), A::from_int(0));
    }
}

/// Copies lines of `m` elements to lines of `stride`, filled up with zeros, or back.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn copy_lines<I: Float, O: Float>(
    from: &[I],
    to: &mut [O],
    total: usize,
    m: usize,
    stride: usize,
    #[comptime] back: bool,
    #[define(I, O)] _elems: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < total {
        if comptime!(back) {
            to[at] = O::cast_from(from[at / m * stride + at % m]);
        } else {
            let mut value = O::from_int(0);
            if at % stride < m {
                value = O::cast_from(from[at / stride * m + at % stride]);
            }
            to[at] = value;
        }
    }
}
