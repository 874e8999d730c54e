//! The steps of merges that are too large for one cube, each over the whole batch.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::deflate::deflate;
use super::secular::{exact_weight, root};
use super::steps::{Merge, NONE, NULLS, PIVOTS, Side, VALUES, WEIGHTS, arrange, find_null, parts, turn};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Rows and columns of the result that a cube computes, units along each side of it, and the length of the sums between
/// barriers.
pub const TILE: usize = 64;
pub const SIDE: usize = 16;
pub const DEPTH: usize = 16;

/// The merge that row `row` of a matrix of `n` rows belongs to when blocks of `span` rows meet; the tables' places of the
/// matrix begin at `table`.
#[cube]
pub fn merge_of(row: usize, n: usize, span: usize, table: usize, size: usize) -> Merge {
    // Spans are powers of two.
    let first = row - (row & (2 * span - 1));
    Merge { first: table + first, left: min(span, n - first), len: min(2 * span, n - first), size }
}

/// What row `local` of the merge, whose part of `vectors` begins at `row_start`, has beside the boundary of the halves, times
/// its share of what couples them.
#[cube]
pub fn weight<F: Float>(
    vectors: &[F],
    row_start: usize,
    local: usize,
    merge: &Merge,
    first: usize,
    shares: (F, F),
) -> F {
    let right = local >= merge.left;
    let column = first + select(right, merge.left, merge.left - 1);
    let share = select(right, shares.1, shares.0);
    select(merge.left < merge.len, vectors[row_start + min(column, first + merge.len - 1)] * share, F::new(0.0))
}

/// What couples the halves of a merge: ρ, and the factors of the left and the right half's weights.
#[cube]
pub fn coupling<F: Float>(diagonal: &[F], off: &[F], merge: &Merge, #[comptime] side: Side) -> (F, F, F) {
    let middle = merge.first + merge.left - 1;
    let value = select(merge.left < merge.len, off[middle], F::new(0.0));
    if comptime!(side.squared()) {
        (F::new(0.0), diagonal[middle], value)
    } else {
        let share = F::new(0.5).sqrt();
        (value.abs() + value.abs(), share, select(value < F::new(0.0), F::new(0.0) - share, share))
    }
}

/// Weights, order and deflation of merges of blocks of `span` rows; a cube for each merge.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn join<F: Float>(
    diagonal: &[F],
    off: &[F],
    values: &[F],
    vectors: &[F],
    lefts: &mut [F],
    numbers: &mut [F],
    indices: &mut [u32],
    count: usize,
    n: usize,
    span: usize,
    #[comptime] side: Side,
    #[comptime] double: bool,
    #[define(F)] _elem: ElemType,
) {
    let squared = comptime!(side.squared());
    let merges = n.div_ceil(2 * span);
    let at = min(CUBE_POS, count * merges - 1);
    // Cubes past the last merge have no unit that writes.
    let inside = CUBE_POS < count * merges;
    let matrix = at / merges;
    let row = at % merges * 2 * span;
    let merge = merge_of(row, n, span, matrix * n, count * n);
    let (rho, low, high) = coupling::<F>(diagonal, off, &merge, side);
    let end = select(inside, merge.len, 0usize);
    let mut e = UNIT_POS as usize;
    while e < end {
        numbers[comptime!(VALUES) * merge.size + merge.first + e] = values[merge.first + e];
        numbers[comptime!(WEIGHTS) * merge.size + merge.first + e] =
            weight::<F>(vectors, (merge.first + e) * n, e, &merge, row, (low, high));
        e += CUBE_DIM as usize;
    }
    if squared && UNIT_POS == 0 && inside && merge.left < merge.len {
        let null = indices[comptime!(NULLS) * merge.size + merge.first] as usize;
        lefts[(merge.first + null) * n + row + merge.left - 1] = F::new(1.0);
    }
    sync_cube();
    sync_storage();
    e = UNIT_POS as usize;
    while e < end {
        arrange::<F>(numbers, indices, &merge, e, squared);
        e += CUBE_DIM as usize;
    }
    sync_cube();
    sync_storage();
    if UNIT_POS == 0 && inside {
        deflate::<F>(numbers, indices, &merge, rho, squared, double);
    }
}

/// Roots of the merges; `lanes` units for each row of the batch.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn roots<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    count: usize,
    n: usize,
    span: usize,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
    #[comptime] double: bool,
    #[define(F)] _elem: ElemType,
) {
    let group = ABSOLUTE_POS / comptime!(lanes as usize);
    let at = min(group, count * n - 1);
    let merge = merge_of(at % n, n, span, at / n * n, count * n);
    let active = group < count * n;
    root::<F>(numbers, indices, &merge, at - merge.first, active, UNIT_POS % lanes, lanes, squared, double);
}

/// The weights for which the roots are exact; `lanes` units for each row of the batch.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn weights<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    count: usize,
    n: usize,
    span: usize,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
    #[define(F)] _elem: ElemType,
) {
    let group = ABSOLUTE_POS / comptime!(lanes as usize);
    let at = min(group, count * n - 1);
    let merge = merge_of(at % n, n, span, at / n * n, count * n);
    let active = group < count * n;
    exact_weight::<F>(numbers, indices, &merge, at - merge.first, active, UNIT_POS % lanes, lanes, squared);
}

/// The parts that old vectors have in new ones, and the new values in order; `lanes` units for each row of the batch.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn mixtures<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    mix: &mut [F],
    values: &mut [F],
    count: usize,
    n: usize,
    span: usize,
    #[comptime] lanes: u32,
    #[comptime] side: Side,
    #[define(F)] _elem: ElemType,
) {
    let group = ABSOLUTE_POS / comptime!(lanes as usize);
    let active = group < count * n;
    let at = min(group, count * n - 1);
    let merge = merge_of(at % n, n, span, at / n * n, count * n);
    let start = merge.first * n + merge.first % n;
    let lane = UNIT_POS % lanes;
    let place = at - merge.first;
    let rank = parts::<F>(numbers, indices, mix, &merge, start, n, place, active, lane, lanes, side);
    sync_cube();
    sync_storage();
    if active && lane == 0 {
        turn::<F>(numbers, indices, mix, &merge, start, n, rank, side);
        if comptime!(side != Side::Left) {
            values[merge.first + rank] = numbers[comptime!(VALUES) * merge.size + merge.first + rank];
        }
        if comptime!(side == Side::Right) {
            find_null(indices, &merge, place, rank);
        }
        if comptime!(side == Side::Left) && place == 0 {
            let null = comptime!(NULLS) * merge.size + merge.first;
            let moved = indices[comptime!(PIVOTS) * merge.size + merge.first + min(1usize, merge.len - 1)];
            indices[null] = select(indices[null] == comptime!(NONE), indices[null], moved);
        }
    }
}

/// The new vectors `mixᵀ·vectors` of merges of blocks of `span` rows; a cube for each tile of every merge.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn combine<F: Float>(
    mix: &[F],
    vectors: &[F],
    out: &mut [F],
    count: usize,
    n: usize,
    span: usize,
    #[define(F)] _elem: ElemType,
) {
    let per_unit = comptime!(TILE / SIDE);
    let mut left = Shared::<[F]>::new_slice(comptime!(DEPTH * TILE));
    let mut right = Shared::<[F]>::new_slice(comptime!(DEPTH * TILE));
    let merges = n.div_ceil(2 * span);
    let tiles = (2 * span).div_ceil(comptime!(TILE));
    let cube = min(CUBE_POS, count * merges * tiles * tiles - 1);
    let matrix = cube / (merges * tiles * tiles);
    let begin = cube / (tiles * tiles) % merges * 2 * span;
    let len = min(2 * span, n - begin);
    let halves = min(span, len);
    let row = cube / tiles % tiles * comptime!(TILE);
    let column = cube % tiles * comptime!(TILE);
    let from = matrix * n * n + begin * n + begin;
    let first = select(column < halves, 0usize, halves);
    let end = select(column + comptime!(TILE) <= halves, halves, len);
    let end = select(row < len && column < len && CUBE_POS == cube, end, first);
    let fast = UNIT_POS as usize % comptime!(SIDE);
    let slow = UNIT_POS as usize / comptime!(SIDE);
    let mut sums = Array::<F>::new(comptime!((TILE / SIDE) * (TILE / SIDE)));
    #[unroll]
    for s in 0..comptime!((TILE / SIDE) * (TILE / SIDE)) {
        sums[s] = F::new(0.0);
    }
    let mut depth = first;
    while depth < end {
        let mut e = UNIT_POS as usize;
        while e < comptime!(DEPTH * TILE) {
            let j = depth + e / comptime!(TILE);
            let (r, c) = (row + e % comptime!(TILE), column + e % comptime!(TILE));
            let there = min(j, len - 1) * n;
            let a = mix[from + there + min(r, len - 1)];
            let b = vectors[from + there + min(c, len - 1)];
            left[e] = select(j < end && r < len, a, F::new(0.0));
            // Vectors of one half have nothing in the other, where memory was not written.
            let same = (j < halves && c < halves) || (j >= halves && c >= halves);
            right[e] = select(j < end && c < len && same, b, F::new(0.0));
            e += comptime!(SIDE * SIDE);
        }
        sync_cube();
        for l in 0..comptime!(DEPTH) {
            #[unroll]
            for i in 0..per_unit {
                let factor = left[l * comptime!(TILE) + slow * per_unit + i];
                #[unroll]
                for k in 0..per_unit {
                    sums[i * per_unit + k] += factor * right[l * comptime!(TILE) + fast + k * comptime!(SIDE)];
                }
            }
        }
        sync_cube();
        depth += comptime!(DEPTH);
    }
    if end > first {
        #[unroll]
        for i in 0..per_unit {
            #[unroll]
            for k in 0..per_unit {
                let (r, c) = (row + slow * per_unit + i, column + fast + k * comptime!(SIDE));
                if r < len && c < len {
                    out[from + r * n + c] = sums[i * per_unit + k];
                }
            }
        }
    }
}
