//! A cube that takes a block of the matrix through all its merges in shared memory.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::deflate::deflate;
use super::kernels::{coupling, merge_of, weight};
use super::secular::{exact_weight, root};
use super::steps::{INDICES, NONE, NULLS, NUMBERS, PIVOTS, Side, VALUES, WEIGHTS, arrange, find_null, parts, turn};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Elements after a row of a matrix in shared memory, so that rows begin in different banks.
pub const PAD: usize = 8;

/// Values, ascending, and vectors, as rows, of the diagonal blocks of `most` rows of tridiagonal matrices from which the
/// couplings of all rows were taken, or of bidiagonal ones; a cube for each block.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn base<F: Float>(
    diagonal: &[F],
    off: &[F],
    values: &mut [F],
    vectors: &mut [F],
    lefts: &mut [F],
    nulls: &mut [u32],
    count: usize,
    n: usize,
    #[comptime] most: usize,
    #[comptime] lanes: u32,
    #[comptime] side: Side,
    #[comptime] double: bool,
    #[define(F)] _elem: ElemType,
) {
    let squared = comptime!(side.squared());
    let ld = comptime!(most + PAD);
    let area = comptime!(most * (most + PAD));
    let mut numbers = Shared::<[F]>::new_slice(comptime!(NUMBERS * most));
    let mut indices = Shared::<[u32]>::new_slice(comptime!(INDICES * most));
    let mut main = Shared::<[F]>::new_slice(most);
    let mut coupled = Shared::<[F]>::new_slice(most);
    let mut mix = Shared::<[F]>::new_slice(area);
    let mut q = Shared::<[F]>::new_slice(comptime!(2 * most * (most + PAD)));
    let mut p = Shared::<[F]>::new_slice(comptime!(if side.squared() { 2 * most * (most + PAD) } else { 1 }));
    let blocks = n.div_ceil(most);
    let block = min(CUBE_POS, count * blocks - 1);
    let inside = CUBE_POS < count * blocks;
    let from = block / blocks * n + block % blocks * most;
    let begin = block % blocks * most;
    let len = min(most, n - begin);
    let zero = F::new(0.0);
    let one = F::new(1.0);
    let unit = UNIT_POS as usize;
    let units = CUBE_DIM as usize;
    clear::<F>(&mut mix, &mut q, &mut p, ld, area, squared);
    sync_cube();
    let mut e = unit;
    while e < len {
        let before = select(begin + e > 0, off[max(from + e, 1usize) - 1], zero);
        let after = select(begin + e + 1 < n, off[from + e], zero);
        let own = diagonal[from + e];
        main[e] = own;
        coupled[e] = after;
        if squared {
            let square = begin + e + 1 == n;
            numbers[comptime!(VALUES * most) + e] = select(square, own.abs(), zero);
            indices[comptime!(NULLS * most) + e] = select(square, comptime!(NONE), 0u32);
            p[e * ld + e] = select(square, select(own < zero, zero - one, one), zero);
        } else {
            numbers[comptime!(VALUES * most) + e] = own - before.abs() - after.abs();
        }
        e += units;
    }
    sync_cube();
    let mut source = 0usize;
    let mut span = 1usize;
    while span < len {
        let target = area - source;
        meet::<F>(&mut numbers, &mut indices, &main, &coupled, &q, &mut p, source, len, span, most, side, double);
        solve_block::<F>(&mut numbers, &mut indices, len, span, most, lanes, squared, double);
        mix_block::<F>(&mut numbers, &mut indices, &mut mix, len, span, most, lanes, comptime!(side));
        combine_block::<F>(&mix, &mut q, source, target, len, span, ld);
        sync_cube();
        if squared {
            mix_block::<F>(&mut numbers, &mut indices, &mut mix, len, span, most, lanes, comptime!(Side::Left));
            combine_block::<F>(&mix, &mut p, source, target, len, span, ld);
            move_nulls(&mut indices, len, span, most);
            sync_cube();
        }
        source = target;
        span *= 2;
    }
    if inside {
        e = unit;
        while e < len * len {
            let (row, column) = (e / len, e % len);
            vectors[(from + row) * n + begin + column] = q[source + row * ld + column];
            if squared {
                lefts[(from + row) * n + begin + column] = p[source + row * ld + column];
            }
            e += units;
        }
        e = unit;
        while e < len {
            values[from + e] = numbers[comptime!(VALUES * most) + e];
            e += units;
        }
        if squared && unit == 0 && len < n {
            nulls[comptime!(NULLS) * count * n + from] = indices[comptime!(NULLS * most)];
        }
    }
}

/// Weights, order and deflation of all merges of a block.
#[cube]
fn meet<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    main: &[F],
    coupled: &[F],
    q: &[F],
    p: &mut [F],
    source: usize,
    len: usize,
    span: usize,
    #[comptime] most: usize,
    #[comptime] side: Side,
    #[comptime] double: bool,
) {
    let squared = comptime!(side.squared());
    let ld = comptime!(most + PAD);
    let unit = UNIT_POS as usize;
    let units = CUBE_DIM as usize;
    let mut e = unit;
    while e < len {
        let merge = merge_of(e, len, span, 0usize, most);
        let (_, low, high) = coupling::<F>(main, coupled, &merge, side);
        numbers[comptime!(WEIGHTS * most) + e] =
            weight::<F>(q, source + e * ld, e - merge.first, &merge, merge.first, (low, high));
        if squared {
            let null = indices[comptime!(NULLS * most) + merge.first] as usize;
            if merge.left < merge.len && e == merge.first + null {
                p[source + e * ld + merge.first + merge.left - 1] = F::new(1.0);
            }
        }
        e += units;
    }
    sync_cube();
    e = unit;
    while e < len {
        let merge = merge_of(e, len, span, 0usize, most);
        arrange::<F>(numbers, indices, &merge, e - merge.first, squared);
        e += units;
    }
    sync_cube();
    e = unit * 2 * span;
    while e < len {
        let merge = merge_of(e, len, span, 0usize, most);
        let (rho, _, _) = coupling::<F>(main, coupled, &merge, side);
        deflate::<F>(numbers, indices, &merge, rho, squared, double);
        e += units * 2 * span;
    }
    sync_cube();
}

/// An identity in the first half of `q`, zeros elsewhere.
#[cube]
fn clear<F: Float>(mix: &mut [F], q: &mut [F], p: &mut [F], ld: usize, area: usize, #[comptime] squared: bool) {
    let zero = F::new(0.0);
    let mut e = UNIT_POS as usize;
    while e < area {
        mix[e] = zero;
        q[e] = select(e / ld == e % ld, F::new(1.0), zero);
        q[area + e] = zero;
        if squared {
            p[e] = zero;
            p[area + e] = zero;
        }
        e += CUBE_DIM as usize;
    }
}

/// Notes for every merge of a block where its null value has gone.
#[cube]
fn move_nulls(indices: &mut [u32], len: usize, span: usize, #[comptime] most: usize) {
    let mut e = UNIT_POS as usize * 2 * span;
    while e < len {
        let null = indices[comptime!(PIVOTS * most) + min(e + 1, len - 1)];
        let old = indices[comptime!(NULLS * most) + e];
        indices[comptime!(NULLS * most) + e] = select(old == comptime!(NONE), old, null);
        e += CUBE_DIM as usize * 2 * span;
    }
}

/// The roots of all merges of a block, and the weights for which they are exact.
#[cube]
fn solve_block<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    len: usize,
    span: usize,
    #[comptime] most: usize,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
    #[comptime] double: bool,
) {
    let lane = UNIT_POS % lanes;
    let group = UNIT_POS as usize / comptime!(lanes as usize);
    let groups = CUBE_DIM as usize / comptime!(lanes as usize);
    for round in 0..len.div_ceil(groups) {
        let e = group + round * groups;
        let row = min(e, len - 1);
        let merge = merge_of(row, len, span, 0usize, most);
        root::<F>(numbers, indices, &merge, row - merge.first, e < len, lane, lanes, squared, double);
    }
    sync_cube();
    for round in 0..len.div_ceil(groups) {
        let e = group + round * groups;
        let row = min(e, len - 1);
        let merge = merge_of(row, len, span, 0usize, most);
        exact_weight::<F>(numbers, indices, &merge, row - merge.first, e < len, lane, lanes, squared);
    }
    sync_cube();
}

/// The parts that the old vectors of a block have in the new ones.
#[cube]
fn mix_block<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    mix: &mut [F],
    len: usize,
    span: usize,
    #[comptime] most: usize,
    #[comptime] lanes: u32,
    #[comptime] side: Side,
) {
    let ld = comptime!(most + PAD);
    let lane = UNIT_POS % lanes;
    let group = UNIT_POS as usize / comptime!(lanes as usize);
    let groups = CUBE_DIM as usize / comptime!(lanes as usize);
    for round in 0..len.div_ceil(groups) {
        let e = group + round * groups;
        let row = min(e, len - 1);
        let merge = merge_of(row, len, span, 0usize, most);
        let start = merge.first * (ld + 1);
        let at = row - merge.first;
        let rank = parts::<F>(numbers, indices, mix, &merge, start, ld, at, e < len, lane, lanes, side);
        if comptime!(side == Side::Right) && e < len && lane == 0 {
            find_null(indices, &merge, at, rank);
        }
    }
    sync_cube();
    let mut e = UNIT_POS as usize;
    while e < len {
        let merge = merge_of(e, len, span, 0usize, most);
        turn::<F>(numbers, indices, mix, &merge, merge.first * (ld + 1), ld, e - merge.first, side);
        e += CUBE_DIM as usize;
    }
    sync_cube();
}

/// `q[target] = mixᵀ·q[source]`, where the rows of `mix` are those of blocks of `2·span` rows, and those of `q[source]` of blocks of
/// `span` rows; elsewhere both are zero.
#[cube]
fn combine_block<F: Float>(mix: &[F], q: &mut [F], source: usize, target: usize, len: usize, span: usize, ld: usize) {
    let side = len.div_ceil(4usize);
    let mut tile = UNIT_POS as usize;
    let wide = 2 * span;
    while tile < side * side {
        let row = tile / side * 4;
        let column = tile % side * 4;
        // The blocks that the tile's rows and columns reach.
        let (end, last) = (row + 3, column + 3);
        let meet = row - (row & (wide - 1)) < last - (last & (wide - 1)) + wide
            && column - (column & (wide - 1)) < end - (end & (wide - 1)) + wide;
        if meet {
            let mut sums = Array::<F>::new(16usize);
            #[unroll]
            for s in 0..16usize {
                sums[s] = F::new(0.0);
            }
            let from = column - (column & (span - 1));
            let to = min(last - (last & (span - 1)) + span, len);
            for j in from..to {
                let left = j * ld + row;
                let right = source + j * ld + column;
                #[unroll]
                for i in 0..4usize {
                    let factor = mix[left + i];
                    #[unroll]
                    for k in 0..4usize {
                        sums[i * 4 + k] += factor * q[right + k];
                    }
                }
            }
            #[unroll]
            for i in 0..4usize {
                #[unroll]
                for k in 0..4usize {
                    q[target + (row + i) * ld + column + k] = sums[i * 4 + k];
                }
            }
        }
        tile += CUBE_DIM as usize;
    }
}
