//! A cube for each matrix, which stays in shared memory: eigenvalues or singular values and vectors in one launch.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::step::{Columns, Lanes, cube_largest, opponents, rotate, scale_of, squared_length, teams};
use crate::blocks::not_finite;
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

/// Which matrix a cube has, and how it lies in shared memory: `cols` columns `stride` apart of `rows` elements, with those
/// of the rotations from `below` on.
#[derive(CubeType, Clone, Copy)]
pub struct Place {
    pub matrix: usize,
    pub rows: u32,
    pub cols: u32,
    pub below: u32,
    pub stride: u32,
    pub swapped: u32,
}

/// Row and column of element `e` in the order of a row-major input: of its transpose if `swapped`.
#[cube]
fn position(e: u32, place: &Place) -> (u32, u32) {
    let fast = select(place.swapped != 0, place.rows, max(place.cols, 1u32));
    let (slow, quick) = (e / fast, e % fast);
    (select(place.swapped != 0, quick, slow), select(place.swapped != 0, slow, quick))
}

/// Reads a matrix, scaled by a power of two and shifted if it is symmetric; whether it holds NaN or infinity, scale and shift.
#[cube]
fn read<I: Float, F: Float>(
    a: &[I],
    w: &mut Shared<[F]>,
    slots: &mut Shared<[F]>,
    place: &Place,
    #[comptime] form: Form,
) -> (bool, F, F) {
    let zero = F::from_int(0);
    let total = place.rows * place.cols;
    let mut e = UNIT_POS;
    while e < place.cols * place.stride {
        w[e as usize] = zero;
        e += CUBE_DIM;
    }
    sync_cube();
    let n = select(place.swapped != 0, place.rows, place.cols);
    let from = place.matrix * place.rows as usize * place.cols as usize;
    let mut largest = zero;
    let mut bad = zero;
    let mut e = UNIT_POS;
    while e < total {
        let (i, j) = position(e, place);
        let x = F::cast_from(a[from + source(i, j, n, place.swapped, form)]);
        bad = select(not_finite::<F>(x, comptime!(form.wide)), F::from_int(1), bad);
        largest = max(largest, x.abs());
        w[(j * place.stride + i) as usize] = x;
        e += CUBE_DIM;
    }
    if comptime!(form.vectors && !form.symmetric) {
        let mut j = UNIT_POS;
        while j < place.cols {
            w[(j * place.stride + place.below + j) as usize] = F::from_int(1);
            j += CUBE_DIM;
        }
    }
    let failed = cube_largest::<F>(bad, slots) > zero;
    let largest = cube_largest::<F>(select(failed, zero, largest), slots);
    let scale = scale_of::<F>(largest, comptime!(form.wide));
    let mut e = UNIT_POS;
    while e < total {
        w[((e / place.rows) * place.stride + e % place.rows) as usize] *= scale;
        e += CUBE_DIM;
    }
    sync_cube();
    let mut shift = zero;
    if comptime!(form.symmetric) {
        shift = add_shift::<F>(w, slots, place);
    }
    (failed, scale, shift)
}

/// Adds 5/4 of the norm to the diagonal; gives what was added.
#[cube]
fn add_shift<F: Float>(w: &mut Shared<[F]>, slots: &mut Shared<[F]>, place: &Place) -> F {
    let zero = F::from_int(0);
    let mut norm = zero;
    let mut j = UNIT_POS / PLANE_DIM;
    while j < place.cols {
        let mut sum = zero;
        let mut i = UNIT_POS_PLANE;
        while i < place.rows {
            sum += w[(j * place.stride + i) as usize].abs();
            i += PLANE_DIM;
        }
        norm = max(norm, plane_sum(sum));
        j += CUBE_DIM / PLANE_DIM;
    }
    let norm = cube_largest::<F>(norm, slots);
    let shift = select(norm > zero, norm * F::new(1.25f32), F::from_int(1));
    let mut j = UNIT_POS;
    while j < place.cols {
        w[(j * place.stride + j) as usize] += shift;
        j += CUBE_DIM;
    }
    sync_cube();
    shift
}

/// Sweeps, at most `limit`, until no pair of columns needs a rotation; 1 if some did in the last.
#[cube]
fn orthogonalise<F: Float>(
    w: &mut Shared<[F]>,
    slots: &mut Shared<[F]>,
    place: &Place,
    columns: &Columns<F>,
    limit: u32,
    team: u32,
    #[comptime] division: Lanes,
) -> u32 {
    let players = place.cols + (place.cols & 1u32);
    let pairs = players / 2;
    let circle = max(players, 2u32) - 1;
    let (teams, mine) = teams(team, division);
    let steps = pairs.div_ceil(teams);
    let mut sweep = 0u32;
    let mut unfinished = 0u32;
    while sweep < limit {
        let mut rotated = 0u32;
        for round in 0..circle {
            for step in 0..steps {
                let k = step * teams + mine;
                let (p, q) = opponents(k, round, circle);
                let active = mine < teams && k < pairs && q < place.cols;
                let p = (select(active, p, 0u32) * place.stride) as usize;
                let q = (select(active, q, 0u32) * place.stride) as usize;
                rotated += rotate::<F>(w, slots, columns, p, q, active, team, division);
            }
            sync_cube();
        }
        let any = cube_largest::<F>(F::cast_from(rotated), slots);
        unfinished = select(any > F::from_int(0), 1u32, 0u32);
        sweep = select(any > F::from_int(0), sweep + 1, limit);
    }
    sync_cube();
    unfinished
}

/// The columns' lengths and the order in which they are output; of a matrix that failed the order that they have.
#[cube]
fn sort<F: Float>(
    w: &Shared<[F]>,
    lengths: &mut Shared<[F]>,
    order: &mut Shared<[u32]>,
    place: &Place,
    failed: bool,
    #[comptime] form: Form,
) {
    let mut j = UNIT_POS / PLANE_DIM;
    while j < place.cols {
        let squared = squared_length::<F>(w, (j * place.stride) as usize, place.rows);
        if UNIT_POS_PLANE == 0 {
            lengths[j as usize] = squared.sqrt();
        }
        j += CUBE_DIM / PLANE_DIM;
    }
    // Were a length not a number in spite of all, ranks would repeat; every entry must still name a column.
    let mut j = UNIT_POS;
    while j < place.cols {
        order[j as usize] = j;
        j += CUBE_DIM;
    }
    sync_cube();
    let mut j = UNIT_POS;
    while j < place.cols {
        let own = lengths[j as usize];
        let mut rank = 0u32;
        for i in 0..place.cols {
            let other = lengths[i as usize];
            let before = if comptime!(form.symmetric) { other < own } else { other > own };
            rank += select(before || (other == own && i < j), 1u32, 0u32);
        }
        order[select(failed, j, rank) as usize] = j;
        j += CUBE_DIM;
    }
    sync_cube();
}

/// Writes the columns of unit length, and the rotations beside them.
#[cube]
fn write_vectors<I: Float, F: Float>(
    w: &Shared<[F]>,
    lengths: &Shared<[F]>,
    order: &Shared<[u32]>,
    left: &mut [I],
    right: &mut [I],
    place: &Place,
    kept: u32,
    floor: F,
    poison: F,
    #[comptime] form: Form,
) {
    let (rows, cols) = (place.rows, place.cols);
    let mut e = UNIT_POS;
    while e < rows * cols {
        let (i, c) = position(e, place);
        let j = order[c as usize];
        let length = lengths[j as usize];
        let x = w[(j * place.stride + i) as usize];
        let y = I::cast_from(select(length > floor, x / max(length, floor), F::from_int(0)) + poison);
        let to = place.matrix * (rows * kept) as usize;
        if place.swapped != 0 {
            right[to + (c * rows + i) as usize] = y;
        } else {
            left[to + (i * kept + c) as usize] = y;
        }
        e += CUBE_DIM;
    }
    if comptime!(!form.symmetric) {
        let mut e = UNIT_POS;
        while e < cols * cols {
            let i = select(place.swapped != 0, e / cols, e % cols);
            let c = select(place.swapped != 0, e % cols, e / cols);
            let y = I::cast_from(w[(order[c as usize] * place.stride + place.below + i) as usize] + poison);
            let to = place.matrix * (cols * cols) as usize + e as usize;
            if place.swapped != 0 {
                left[to] = y;
            } else {
                right[to] = y;
            }
            e += CUBE_DIM;
        }
    }
}

/// Orthogonalises the columns of each matrix (its transpose if it is wider than high) by rotations in an order in which
/// every round has disjoint pairs; a symmetric matrix is shifted first so that it is positive definite and its columns
/// end as multiples of its eigenvectors. `kept` columns are kept of the vectors that are as long as the columns.
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
    kept: u32,
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
    // Cubes past the end, of a launch folded into two dimensions, compute the first matrix again and write nothing.
    let inside = CUBE_POS < batch as usize;
    let matrix = select(inside, CUBE_POS, 0usize);
    let place = Place { matrix, rows, cols, below, stride, swapped };
    let (failed, scale, shift) = read::<I, F>(a, &mut w, &mut slots, &place, form);
    let columns = Columns::<F> {
        rows,
        height: select(comptime!(form.vectors && !form.symmetric), below + cols, rows),
        tolerance: F::cast_from(tolerance),
        negligible: F::cast_from(negligible),
    };
    let limit = select(failed || cols < 2, 0u32, sweeps);
    let unfinished = orthogonalise::<F>(&mut w, &mut slots, &place, &columns, limit, team, division);
    sort::<F>(&w, &mut lengths, &mut order, &place, failed, form);

    // Zero, or NaN in a matrix that failed: added to every output.
    let poison = F::cast_from(f32::reinterpret(select(failed, 0x7fc0_0000u32, 0u32)));
    let floor = F::cast_from(negligible).sqrt();
    if inside {
        let mut c = UNIT_POS;
        while c < cols {
            let length = lengths[order[c as usize] as usize];
            values[matrix * cols as usize + c as usize] = I::cast_from((length - shift) / scale + poison);
            c += CUBE_DIM;
        }
        if UNIT_POS == 0 {
            let mut sound = 0u32;
            for j in 0..cols {
                sound += select(lengths[j as usize] > floor, 1u32, 0u32);
            }
            status[matrix] = select(failed, -1i32, i32::cast_from(unfinished));
            good[matrix] = i32::cast_from(sound);
        }
        if comptime!(form.vectors) {
            write_vectors::<I, F>(&w, &lengths, &order, left, right, &place, kept, floor, poison, form);
        }
    }
}
