//! A cube for each matrix, which stays in shared memory: eigenvalues or singular values and vectors in one launch.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::step::{Columns, Lanes, cube_largest, not_finite, opponents, rotate, scale_of, squared_length, teams};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What is computed: only what changes the kernel's structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Eigenvalues of a symmetric matrix, else singular values.
    pub symmetric: bool,
    /// Which triangle of a symmetric matrix is read.
    pub upper: bool,
    /// With vectors.
    pub vectors: bool,
    /// The computation is in f64.
    pub wide: bool,
}

/// Where element (`i`, `j`) of the matrix whose columns are rotated lies in the input: of its transpose if `swapped`, of the
/// triangle that is read if it is symmetric. `n` is the input's number of columns.
#[cube]
pub fn source(i: u32, j: u32, n: u32, swapped: u32, #[comptime] form: Form) -> usize {
    let mut row = select(swapped != 0, j, i);
    let mut column = select(swapped != 0, i, j);
    if comptime!(form.symmetric) {
        row = if comptime!(form.upper) { min(i, j) } else { max(i, j) };
        column = if comptime!(form.upper) { max(i, j) } else { min(i, j) };
    }
    row as usize * n as usize + column as usize
}

/// Orthogonalises the columns of each matrix (its transpose if it is wider than high) by rotations in an order in which
/// every round has disjoint pairs; a symmetric matrix is shifted first so that it is positive definite and its columns
/// end as multiples of its eigenvectors.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn whole<I: Float, F: Float>(
    a: &[I],
    values: &mut [I],
    left: &mut [I],
    right: &mut [I],
    status: &mut [i32],
    good: &mut [i32],
    batch: u32,
    rows: u32,
    cols: u32,
    below: u32,
    stride: u32,
    swapped: u32,
    left_cols: u32,
    right_rows: u32,
    team: u32,
    sweeps: u32,
    tolerance: f32,
    negligible: f32,
    #[comptime] elements: usize,
    #[comptime] most_cols: usize,
    #[comptime] most_slots: usize,
    #[comptime] form: Form,
    #[comptime] division: Lanes,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let mut w = Shared::<[F]>::new_slice(elements);
    let mut lengths = Shared::<[F]>::new_slice(most_cols);
    let mut order = Shared::<[u32]>::new_slice(most_cols);
    let mut slots = Shared::<[F]>::new_slice(most_slots);
    let zero = F::from_int(0);
    let one = F::from_int(1);
    let matrix = CUBE_POS;
    // Cubes past the end, of a launch folded into two dimensions, compute the last matrix again and write nothing.
    let inside = matrix < batch as usize;
    let matrix = select(inside, matrix, 0usize);
    let carries = comptime!(!form.symmetric && form.vectors);
    let n = select(swapped != 0, rows, cols);
    let from = matrix * rows as usize * cols as usize;
    let total = rows * cols;
    let plane = UNIT_POS / PLANE_DIM;
    let planes = CUBE_DIM / PLANE_DIM;

    let mut e = UNIT_POS;
    while e < cols * stride {
        w[e as usize] = zero;
        e += CUBE_DIM;
    }
    sync_cube();
    let mut largest = zero;
    let mut bad = zero;
    let fast = select(swapped != 0, rows, max(cols, 1u32));
    let mut e = UNIT_POS;
    while e < total {
        let i = select(swapped != 0, e % fast, e / fast);
        let j = select(swapped != 0, e / fast, e % fast);
        let x = F::cast_from(a[from + source(i, j, n, swapped, form)]);
        bad = max(bad, not_finite::<F>(x, comptime!(form.wide)));
        largest = max(largest, x.abs());
        w[(j * stride + i) as usize] = x;
        e += CUBE_DIM;
    }
    if comptime!(carries) {
        let mut e = UNIT_POS;
        while e < cols * cols {
            let i = e % cols;
            let j = e / cols;
            w[(j * stride + below + i) as usize] = select(i == j, one, zero);
            e += CUBE_DIM;
        }
    }
    let failed = cube_largest::<F>(bad, &mut slots) > zero;
    let largest = cube_largest::<F>(select(failed, zero, largest), &mut slots);
    let scale = scale_of::<F>(largest);
    let mut shift = zero;
    let mut e = UNIT_POS;
    while e < total {
        w[((e / rows) * stride + e % rows) as usize] *= scale;
        e += CUBE_DIM;
    }
    sync_cube();
    if comptime!(form.symmetric) {
        let mut norm = zero;
        let mut j = plane;
        while j < cols {
            let mut sum = zero;
            let mut i = UNIT_POS_PLANE;
            while i < rows {
                sum += w[(j * stride + i) as usize].abs();
                i += PLANE_DIM;
            }
            norm = max(norm, plane_sum(sum));
            j += planes;
        }
        let norm = cube_largest::<F>(norm, &mut slots);
        shift = select(norm > zero, norm * F::new(1.25f32), one);
        let mut j = UNIT_POS;
        while j < cols {
            w[(j * stride + j) as usize] += shift;
            j += CUBE_DIM;
        }
        sync_cube();
    }

    let columns = Columns::<F> {
        rows,
        height: select(carries, below + cols, rows),
        tolerance: F::cast_from(tolerance),
        negligible: F::cast_from(negligible),
    };
    let players = cols + (cols & 1u32);
    let pairs = players / 2;
    let circle = max(players, 2u32) - 1;
    let (teams, mine) = teams(team, division);
    let steps = pairs.div_ceil(teams);
    let mut sweep = 0u32;
    let limit = select(failed || cols < 2, 0u32, sweeps);
    let mut unfinished = 0u32;
    while sweep < limit {
        let mut rotated = 0u32;
        for round in 0..circle {
            for step in 0..steps {
                let k = step * teams + mine;
                let (p, q) = opponents(k, round, circle);
                let active = mine < teams && k < pairs && q < cols;
                let p = select(active, p, 0u32);
                let q = select(active, q, 0u32);
                rotated += rotate::<F>(
                    &mut w,
                    &mut slots,
                    &columns,
                    (p * stride) as usize,
                    (q * stride) as usize,
                    active,
                    team,
                    division,
                );
            }
            sync_cube();
        }
        let any = cube_largest::<F>(F::cast_from(rotated), &mut slots);
        unfinished = select(any > zero, 1u32, 0u32);
        sweep = select(any > zero, sweep + 1, limit);
    }
    sync_cube();

    let mut j = plane;
    while j < cols {
        let squared = squared_length::<F>(&w, (j * stride) as usize, rows);
        if UNIT_POS_PLANE == 0 {
            lengths[j as usize] = squared.sqrt();
        }
        j += planes;
    }
    sync_cube();
    let mut j = UNIT_POS;
    while j < cols {
        let own = lengths[j as usize];
        let mut rank = 0u32;
        for i in 0..cols {
            let other = lengths[i as usize];
            let before = if comptime!(form.symmetric) { other < own } else { other > own };
            rank += select(before || (other == own && i < j), 1u32, 0u32);
        }
        order[select(failed, j, rank) as usize] = j;
        j += CUBE_DIM;
    }
    sync_cube();

    // Zero, or NaN in a matrix that failed: added to every output.
    let poison = F::cast_from(f32::reinterpret(select(failed, 0x7fc0_0000u32, 0u32)));
    let floor = F::cast_from(negligible).sqrt();
    let mut sound = 0u32;
    if inside {
        let mut c = UNIT_POS;
        while c < cols {
            let length = lengths[order[c as usize] as usize];
            values[matrix * cols as usize + c as usize] = I::cast_from((length - shift) / scale + poison);
            c += CUBE_DIM;
        }
        for j in 0..cols {
            sound += select(lengths[j as usize] > floor, 1u32, 0u32);
        }
        if UNIT_POS == 0 {
            status[matrix] = select(failed, -1i32, i32::cast_from(unfinished));
            good[matrix] = select(failed, i32::cast_from(max(rows, cols)), i32::cast_from(sound));
        }
        if comptime!(form.vectors) {
            let first_cols = select(swapped != 0, right_rows, left_cols);
            let mut e = UNIT_POS;
            while e < total {
                let i = select(swapped != 0, e % fast, e / fast);
                let c = select(swapped != 0, e / fast, e % fast);
                let j = order[c as usize];
                let length = lengths[j as usize];
                let x = w[(j * stride + i) as usize];
                let y = I::cast_from(select(length > floor, x / max(length, floor), zero) + poison);
                if swapped != 0 {
                    right[matrix * (rows * first_cols) as usize + (c * rows + i) as usize] = y;
                } else {
                    left[matrix * (rows * first_cols) as usize + (i * first_cols + c) as usize] = y;
                }
                e += CUBE_DIM;
            }
        }
        if comptime!(carries) {
            let mut e = UNIT_POS;
            while e < cols * cols {
                let i = select(swapped != 0, e / cols, e % cols);
                let c = select(swapped != 0, e % cols, e / cols);
                let y = I::cast_from(w[(order[c as usize] * stride + below + i) as usize] + poison);
                if swapped != 0 {
                    left[matrix * (cols * cols) as usize + e as usize] = y;
                } else {
                    right[matrix * (cols * cols) as usize + e as usize] = y;
                }
                e += CUBE_DIM;
            }
        }
    }
}
