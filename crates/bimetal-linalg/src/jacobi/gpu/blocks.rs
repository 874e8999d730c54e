//! Matrices that do not fit in the memory of a cube: blocks of columns meet in pairs, a launch for each round.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::step::{Columns, Lanes, cube_largest, load, opponents, rotate, rotation, scale_of, store, teams};
use super::whole::{Form, source};
use crate::blocks::not_finite;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Scale and shift of each matrix into `marks`, its status, and zero flags for all sweeps. A cube for each matrix.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn measure<I: Float, F: Float>(
    a: &[I],
    marks: &mut [F],
    status: &mut [i32],
    flags: &mut [u32],
    batch: u32,
    rows: u32,
    cols: u32,
    sweeps: u32,
    #[comptime] most_slots: usize,
    #[comptime] form: Form,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let mut slots = Shared::<[F]>::new_slice(most_slots);
    let zero = F::from_int(0);
    let inside = CUBE_POS < batch as usize;
    let matrix = select(inside, CUBE_POS, 0usize);
    let from = matrix * rows as usize * cols as usize;
    let mut largest = zero;
    let mut bad = zero;
    let mut j = UNIT_POS;
    while j < cols {
        for i in 0..rows {
            let x = F::cast_from(a[from + source(i, j, cols, 0u32, form)]);
            bad = select(not_finite::<F>(x, comptime!(form.wide)), F::from_int(1), bad);
            largest = max(largest, x.abs());
        }
        j += CUBE_DIM;
    }
    let failed = cube_largest::<F>(bad, &mut slots) > zero;
    let scale = scale_of::<F>(cube_largest::<F>(select(failed, zero, largest), &mut slots), comptime!(form.wide));
    let mut norm = zero;
    if comptime!(form.symmetric) {
        let mut j = UNIT_POS;
        while j < cols {
            let mut sum = zero;
            for i in 0..rows {
                sum += (F::cast_from(a[from + source(i, j, cols, 0u32, form)]) * scale).abs();
            }
            norm = max(norm, sum);
            j += CUBE_DIM;
        }
        norm = cube_largest::<F>(select(failed, zero, norm), &mut slots);
        norm = select(norm > zero, norm * F::new(1.25f32), F::from_int(1));
    }
    if inside {
        if UNIT_POS == 0 {
            marks[matrix * 2] = scale;
            marks[matrix * 2 + 1] = norm;
            status[matrix] = select(failed, -1i32, 0i32);
        }
        // A matrix that failed has nothing left to do after the sweep before its first.
        let mut sweep = UNIT_POS;
        while sweep <= sweeps {
            flags[matrix * (sweeps + 1) as usize + sweep as usize] = select(sweep == 0 && !failed, 1u32, 0u32);
            sweep += CUBE_DIM;
        }
    }
}

/// Columns of each matrix, scaled and shifted, one after the other, with those of the identity below if `height > rows`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn fill<I: Float, F: Float>(
    a: &[I],
    marks: &[F],
    w: &mut [F],
    total: usize,
    rows: u32,
    cols: u32,
    below: u32,
    height: u32,
    swapped: u32,
    #[comptime] form: Form,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let zero = F::from_int(0);
    let e = ABSOLUTE_POS;
    if e < total {
        let each = height as usize * cols as usize;
        let matrix = e / each;
        let i = (e % height as usize) as u32;
        let j = (e % each / height as usize) as u32;
        let n = select(swapped != 0, rows, cols);
        let mut x = select(i == j + below, F::from_int(1), zero);
        if i < rows {
            let from = matrix * rows as usize * cols as usize;
            x = F::cast_from(a[from + source(i, j, n, swapped, form)]) * marks[matrix * 2];
            x += select(i == j, marks[matrix * 2 + 1], zero);
        }
        w[e] = x;
    }
}

/// One round of a sweep: each cube orthogonalises the columns of two blocks against each other, in round 0 also those within
/// the blocks. `block` columns make a block; there is an even number of `blocks`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn block_round<F: Float>(
    w: &mut [F],
    flags: &mut [u32],
    cubes: usize,
    rows: u32,
    cols: u32,
    height: u32,
    blocks: u32,
    round: u32,
    sweep: u32,
    sweeps: u32,
    team: u32,
    tolerance: f32,
    negligible: f32,
    #[comptime] block: u32,
    #[comptime] elements: usize,
    #[comptime] most_slots: usize,
    #[comptime] division: Lanes,
    #[define(F)] _elem: ElemType,
) {
    let mut tile = Shared::<[F]>::new_slice(elements);
    let mut slots = Shared::<[F]>::new_slice(most_slots);
    let zero = F::from_int(0);
    let inside = CUBE_POS < cubes;
    let at = select(inside, CUBE_POS, 0usize);
    let pairs = (blocks / 2) as usize;
    let matrix = at / pairs;
    let k = (at % pairs) as u32;
    let circle = blocks - 1;
    let (first, second) = opponents(k, round, circle);
    let flag = matrix * (sweeps + 1) as usize + sweep as usize;
    let from = matrix * cols as usize * height as usize;
    let both = comptime!(2 * block);
    let first_at = from + (first * block * height) as usize;
    let second_at = from + (second * block * height) as usize;
    let first_count = min(cols - min(first * block, cols), block.runtime()) * height;
    let second_count = min(cols - min(second * block, cols), block.runtime()) * height;
    let middle = (block * height) as usize;
    let columns =
        Columns::<F> { rows, height, tolerance: F::cast_from(tolerance), negligible: F::cast_from(negligible) };
    if inside && flags[flag] != 0 {
        load::<F>(w, first_at, &mut tile, 0usize, first_count);
        load::<F>(w, second_at, &mut tile, middle, second_count);
        sync_cube();
        let (teams, mine) = teams(team, division);
        let steps = block.runtime().div_ceil(teams);
        let everything = round == 0;
        let circle = both - 1;
        let rounds = select(everything, circle, block.runtime());
        let mut rotated = 0u32;
        for inner in 0..rounds {
            for step in 0..steps {
                let k = step * teams + mine;
                let (one, other) = opponents(k, inner, circle.runtime());
                let across = select(k + inner >= block, k + inner - min(k + inner, block), k + inner);
                let p = select(everything, one, k);
                let q = select(everything, other, block + across);
                let left = select(p < block, first * block + p, second * block + p - min(p, block));
                let right = select(q < block, first * block + q, second * block + q - min(q, block));
                let active = mine < teams && k < block && left < cols && right < cols;
                let p = select(active, p, 0u32);
                let q = select(active, q, 0u32);
                rotated += rotate::<F>(
                    &mut tile,
                    &mut slots,
                    &columns,
                    (p * height) as usize,
                    (q * height) as usize,
                    active,
                    team,
                    division,
                );
            }
            sync_cube();
        }
        let any = cube_largest::<F>(F::cast_from(rotated), &mut slots) > zero;
        if any {
            if UNIT_POS == 0 {
                flags[flag + 1] = 1u32;
            }
            store::<F>(&tile, 0usize, w, first_at, first_count);
            store::<F>(&tile, middle, w, second_at, second_count);
        }
    }
}

/// One round in which each cube takes a pair of columns where they are, however long.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn pair_round<F: Float>(
    w: &mut [F],
    flags: &mut [u32],
    cubes: usize,
    rows: u32,
    cols: u32,
    height: u32,
    players: u32,
    round: u32,
    sweep: u32,
    sweeps: u32,
    tolerance: f32,
    negligible: f32,
    #[comptime] most_slots: usize,
    #[define(F)] _elem: ElemType,
) {
    let mut slots = Shared::<[F]>::new_slice(most_slots);
    let zero = F::from_int(0);
    let inside = CUBE_POS < cubes;
    let at = select(inside, CUBE_POS, 0usize);
    let pairs = (players / 2) as usize;
    let matrix = at / pairs;
    let k = (at % pairs) as u32;
    let circle = players - 1;
    let (p, q) = opponents(k, round, circle);
    let flag = matrix * (sweeps + 1) as usize + sweep as usize;
    let from = matrix * cols as usize * height as usize;
    let (p_at, q_at) = (from + p as usize * height as usize, from + q as usize * height as usize);
    if inside && q < cols && flags[flag] != 0 {
        let mut aa = zero;
        let mut bb = zero;
        let mut ab = zero;
        let mut i = UNIT_POS;
        while i < rows {
            let x = w[p_at + i as usize];
            let y = w[q_at + i as usize];
            aa += x * x;
            bb += y * y;
            ab += x * y;
            i += CUBE_DIM;
        }
        aa = plane_sum(aa);
        bb = plane_sum(bb);
        ab = plane_sum(ab);
        let slot = (UNIT_POS / PLANE_DIM * 3) as usize;
        if UNIT_POS_PLANE == 0 {
            slots[slot] = aa;
            slots[slot + 1] = bb;
            slots[slot + 2] = ab;
        }
        sync_cube();
        aa = zero;
        bb = zero;
        ab = zero;
        for t in 0..CUBE_DIM.div_ceil(PLANE_DIM) as usize {
            aa += slots[t * 3];
            bb += slots[t * 3 + 1];
            ab += slots[t * 3 + 2];
        }
        let (s, tau) = rotation::<F>(aa, bb, ab, F::cast_from(tolerance), F::cast_from(negligible));
        if tau != zero {
            let mut i = UNIT_POS;
            while i < height {
                let x = w[p_at + i as usize];
                let y = w[q_at + i as usize];
                w[p_at + i as usize] = x - s * (y + tau * x);
                w[q_at + i as usize] = y + s * (x - tau * y);
                i += CUBE_DIM;
            }
            if UNIT_POS == 0 {
                flags[flag + 1] = 1u32;
            }
        }
    }
}

/// The length of every column. A plane for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn lengths<F: Float>(w: &[F], out: &mut [F], total: usize, rows: u32, height: u32, #[define(F)] _elem: ElemType) {
    let column = CUBE_POS * (CUBE_DIM / PLANE_DIM) as usize + (UNIT_POS / PLANE_DIM) as usize;
    let inside = column < total;
    let rows = select(inside, rows, 0u32);
    let mut sum = F::from_int(0);
    let mut i = UNIT_POS_PLANE;
    while i < rows {
        let x = w[column * height as usize + i as usize];
        sum += x * x;
        i += PLANE_DIM;
    }
    let sum = plane_sum(sum);
    if UNIT_POS_PLANE == 0 && inside {
        out[column] = sum.sqrt();
    }
}

/// Sorted values, and which column each belongs to. A unit for each column.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn sort<I: Float, F: Float>(
    lengths: &[F],
    marks: &[F],
    status: &mut [i32],
    flags: &[u32],
    values: &mut [I],
    order: &mut [u32],
    good: &mut [i32],
    total: usize,
    cols: u32,
    sweeps: u32,
    negligible: f32,
    #[comptime] form: Form,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let column = ABSOLUTE_POS;
    if column < total {
        let matrix = column / cols as usize;
        let own_index = column % cols as usize;
        let own = lengths[column];
        let failed = status[matrix] < 0;
        let floor = F::cast_from(negligible).sqrt();
        let mut rank = 0u32;
        let mut sound = 0i32;
        for i in 0..cols as usize {
            let other = lengths[matrix * cols as usize + i];
            let before = if comptime!(form.symmetric) { other < own } else { other > own };
            rank += select(before || (other == own && i < own_index), 1u32, 0u32);
            sound += select(other > floor, 1i32, 0i32);
        }
        let rank = select(failed, own_index, rank as usize);
        let poison = F::cast_from(f32::reinterpret(select(failed, 0x7fc0_0000u32, 0u32)));
        let value = (own - marks[matrix * 2 + 1]) / marks[matrix * 2] + poison;
        values[matrix * cols as usize + rank] = I::cast_from(value);
        order[matrix * cols as usize + rank] = own_index as u32;
        if own_index == 0 {
            good[matrix] = sound;
            let late = flags[matrix * (sweeps + 1) as usize + sweeps as usize];
            status[matrix] = select(failed, -1i32, select(late != 0, 1i32, 0i32));
        }
    }
}

/// Vectors in the order of their values: rows `start..start + height` of each column, of unit length if `unit`. Element `i` of
/// column `c` goes to `i·along + c·across`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn write<I: Float, F: Float>(
    w: &[F],
    lengths: &[F],
    order: &[u32],
    status: &[i32],
    out: &mut [I],
    total: usize,
    count: u32,
    cols: u32,
    start: u32,
    height: u32,
    along: u32,
    across: u32,
    out_each: usize,
    negligible: f32,
    #[comptime] unit: bool,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let each = count as usize * cols as usize;
        let matrix = e / each;
        let inner = (e % each) as u32;
        // The index that is contiguous in the output runs fastest.
        let by_row = across == 1;
        let i = select(by_row, inner / cols, inner % count);
        let c = select(by_row, inner % cols, inner / count);
        let j = order[matrix * cols as usize + c as usize] as usize;
        let column = matrix * cols as usize + j;
        let mut x = w[column * height as usize + (start + i) as usize];
        if comptime!(unit) {
            let length = lengths[column];
            let floor = F::cast_from(negligible).sqrt();
            x = select(length > floor, x / max(length, floor), F::from_int(0));
        }
        let failed = status[matrix] < 0;
        let poison = F::cast_from(f32::reinterpret(select(failed, 0x7fc0_0000u32, 0u32)));
        out[matrix * out_each + (i * along) as usize + (c * across) as usize] = I::cast_from(x + poison);
    }
}
