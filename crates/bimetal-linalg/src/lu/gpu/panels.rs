//! The kernels of LU for large matrices, which are kept transposed, a column after another: panels of a few columns are
//! factored by one cube, whose units hold rows in registers; other columns follow, a cube each.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::lines::Lines;
use super::pivot::{NONE, largest, largest_packed, plan_moves};
use crate::qr::gpu::panels::rotate;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the code for a panel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Columns of the panel, and rows of each unit; none where rows stay in the device's memory.
    pub width: usize,
    pub rows: usize,
    /// Units of a cube, and the most planes that they make.
    pub units: usize,
    pub planes: usize,
    /// The search for a pivot packs magnitudes of f32 and rows into one number.
    pub packed: bool,
}

/// Factors the columns `first..first + used` of each matrix, by a cube: L and U stay where the columns were, `pivots` gets the rows
/// that were exchanged, from 1, and `moves` what that amounts to.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn panel<A: Float>(
    x: &mut [A],
    pivots: &mut [i32],
    moves: &mut [u32],
    status: &mut [i32],
    lines: Lines,
    m: u32,
    first: u32,
    used: u32,
    most_pivots: usize,
    moves_start: usize,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let (width, rows) = (comptime!(code.width), comptime!(code.rows));
    let mut sizes = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut places = Shared::<[u32]>::new_slice(comptime!(2 * code.planes));
    let mut exchanged = Shared::<[u32]>::new_slice(width);
    // The pivot's row and the one that it changes places with.
    let mut pair = Shared::<[A]>::new_slice(comptime!(2 * width));
    let active = CUBE_POS < lines.batch;
    let matrix = select(active, CUBE_POS, 0usize);
    let base = (matrix * lines.count + first as usize) * lines.stride + first as usize;
    let height = m - first;
    let zero = A::from_int(0);
    let mut held = Array::<A>::new(comptime!(width * rows));
    #[unroll]
    for c in 0..width {
        #[unroll]
        for r in 0..rows {
            let row = UNIT_POS + comptime!((r * code.units) as u32);
            held[comptime!(c * rows + r)] = zero;
            if (c as u32) < used && row < height {
                held[comptime!(c * rows + r)] = x[base + c * lines.stride + row as usize];
            }
        }
    }
    let mut info = 0i32;
    for j in 0..width as u32 {
        let mut best = A::new(-1.0);
        let mut place = NONE.runtime();
        #[unroll]
        for r in 0..rows {
            let row = UNIT_POS + comptime!((r * code.units) as u32);
            let size = held[r].abs();
            let better = row >= j && row < height && size > best;
            best = select(better, size, best);
            place = select(better, row, place);
        }
        let turn = (j % 2) as usize;
        let (size, place) = if comptime!(code.packed) {
            largest_packed::<A>(best, place, turn, code.planes)
        } else {
            largest::<A>(best, place, &mut sizes, &mut places, turn * comptime!(code.planes))
        };
        // Columns past the last one, and what is not a number, stay where they are.
        let p = select(place < height && j < used, place, j);
        exchange_held::<A>(&mut held, &mut pair, p, j, code);
        let nothing = !(size > zero);
        if nothing && j < used && info == 0i32 {
            info = (first + j) as i32 + 1i32;
        }
        eliminate::<A>(&mut held, &pair, nothing, j, code);
        if UNIT_POS == 0 {
            exchanged[j as usize] = p;
            if active && j < used {
                pivots[matrix * most_pivots + (first + j) as usize] = (first + p) as i32 + 1i32;
            }
        }
    }
    sync_cube();
    if active {
        let start = moves_start + matrix * comptime!(4 * width);
        plan_moves(&exchanged, moves, start, first, height, width);
        #[unroll]
        for c in 0..width {
            #[unroll]
            for r in 0..rows {
                let row = UNIT_POS + comptime!((r * code.units) as u32);
                if (c as u32) < used && row < height {
                    x[base + c * lines.stride + row as usize] = held[comptime!(c * rows + r)];
                }
            }
        }
        if UNIT_POS == 0 && info != 0i32 && status[matrix] == 0i32 {
            status[matrix] = info;
        }
    }
}

/// Exchanges row `p` with row `j` in the units' registers; `pair` gets both, and all units wait.
#[cube]
fn exchange_held<A: Float>(held: &mut Array<A>, pair: &mut Shared<[A]>, p: u32, j: u32, #[comptime] code: Code) {
    let (width, rows) = (comptime!(code.width), comptime!(code.rows));
    #[unroll]
    for r in 0..rows {
        let row = UNIT_POS + comptime!((r * code.units) as u32);
        #[unroll]
        for c in 0..width {
            if row == p {
                pair[c] = held[comptime!(c * rows + r)];
            }
            if comptime!(r == 0) && row == j {
                pair[comptime!(width + c)] = held[comptime!(c * rows)];
            }
        }
    }
    sync_cube();
    #[unroll]
    for r in 0..rows {
        let row = UNIT_POS + comptime!((r * code.units) as u32);
        #[unroll]
        for c in 0..width {
            if row == p {
                held[comptime!(c * rows + r)] = pair[comptime!(width + c)];
            }
            if comptime!(r == 0) && row == j {
                held[comptime!(c * rows)] = pair[c];
            }
        }
    }
}

/// Divides the first column by the pivot, whose row is the first of `pair`, and subtracts its multiples from the later ones; then
/// the first column moves to the end.
#[cube]
fn eliminate<A: Float>(held: &mut Array<A>, pair: &Shared<[A]>, nothing: bool, j: u32, #[comptime] code: Code) {
    let (width, rows) = (comptime!(code.width), comptime!(code.rows));
    let zero = A::from_int(0);
    let pivot = select(nothing, A::from_int(1), pair[0]);
    let inverse = A::from_int(1) / pivot;
    let small = pivot.abs() < A::new(1e-30);
    #[unroll]
    for r in 0..rows {
        let row = UNIT_POS + comptime!((r * code.units) as u32);
        let own = held[r];
        let mut quotient = own * inverse;
        if small {
            quotient = own / pivot;
        }
        held[r] = select(row > j, quotient, own);
        let factor = select(row > j, quotient, zero);
        #[unroll]
        for c in 1..width {
            let value = select(j + (c as u32) < width as u32, pair[c], zero);
            held[comptime!(c * rows + r)] -= factor * value;
        }
    }
    rotate::<A>(held, width, rows);
}

/// The same for one column that is too long for registers.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn long_column<A: Float>(
    x: &mut [A],
    pivots: &mut [i32],
    moves: &mut [u32],
    status: &mut [i32],
    lines: Lines,
    m: u32,
    first: u32,
    most_pivots: usize,
    moves_start: usize,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let mut sizes = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut places = Shared::<[u32]>::new_slice(comptime!(2 * code.planes));
    let active = CUBE_POS < lines.batch;
    let matrix = select(active, CUBE_POS, 0usize);
    let base = (matrix * lines.count + first as usize) * lines.stride;
    let mut best = A::new(-1.0);
    let mut place = NONE.runtime();
    let mut row = first + UNIT_POS;
    while row < m {
        let size = x[base + row as usize].abs();
        let better = size > best;
        best = select(better, size, best);
        place = select(better, row, place);
        row += comptime!(code.units as u32);
    }
    let (size, place) = largest::<A>(best, place, &mut sizes, &mut places, 0);
    let p = select(place < m, place, first);
    let (top, found) = (x[base + first as usize], x[base + p as usize]);
    sync_cube();
    let zero = !(size > A::from_int(0));
    let pivot = select(zero, A::from_int(1), found);
    if active {
        let mut row = first + UNIT_POS;
        while row < m {
            let own = select(row == p, top, x[base + row as usize]);
            x[base + row as usize] = select(row == first, found, own / pivot);
            row += comptime!(code.units as u32);
        }
        if UNIT_POS == 0 {
            pivots[matrix * most_pivots + first as usize] = p as i32 + 1i32;
            let start = moves_start + matrix * 4;
            moves[start] = first;
            moves[start + 1] = p;
            moves[start + 2] = select(p == first, NONE.runtime(), p);
            moves[start + 3] = first;
            if zero && status[matrix] == 0i32 {
                status[matrix] = first as i32 + 1i32;
            }
        }
    }
}

/// What a panel does to the other columns of its block, `before` of them from `start` on and `count` from `from` on: rows are
/// exchanged, and in those after it `L⁻¹` above and an update below. A cube for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn follow<A: Float>(
    x: &mut [A],
    moves: &[u32],
    lines: Lines,
    m: u32,
    first: u32,
    start: usize,
    before: usize,
    from: usize,
    count: usize,
    moves_start: usize,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let width = comptime!(code.width);
    let mut corner = Shared::<[A]>::new_slice(comptime!(code.width * code.width));
    let mut top = Shared::<[A]>::new_slice(width);
    let active = CUBE_POS < lines.batch * (before + count);
    let matrix = select(active, CUBE_POS / (before + count), 0usize);
    let number = CUBE_POS % (before + count);
    let after = number >= before;
    let line = select(after, from + number - min(number, before), start + number);
    let own = (matrix * lines.count + line) * lines.stride;
    let panel = (matrix * lines.count + first as usize) * lines.stride;
    let unit = UNIT_POS as usize;
    let mut e = unit;
    while e < comptime!(width * width) {
        let (i, j) = (e % width, e / width);
        let row = first as usize + i;
        let inside = row < m as usize && j < i;
        corner[e] = select(inside, x[panel + j * lines.stride + select(inside, row, 0usize)], A::from_int(0));
        e += code.units;
    }
    let mut value = A::from_int(0);
    let mut to = NONE.runtime();
    if active && unit < comptime!(2 * width) {
        let start = moves_start + matrix * comptime!(4 * width) + 2 * unit;
        to = moves[start];
        if to != NONE {
            value = x[own + moves[start + 1] as usize];
        }
    }
    sync_storage();
    if unit < width && after {
        top[unit] = value;
    } else if to != NONE {
        x[own + to as usize] = value;
    }
    sync_storage();
    let mut solved = Array::<A>::new(width);
    #[unroll]
    for j in 0..width {
        solved[j] = top[j];
    }
    #[unroll]
    for j in 0..width {
        #[unroll]
        for i in comptime!(j + 1)..width {
            let known = solved[j];
            solved[i] -= corner[comptime!(j * width + i)] * known;
        }
    }
    if active && after {
        #[unroll]
        for j in 0..width {
            if unit == j && first + (j as u32) < m {
                x[own + (first + j as u32) as usize] = solved[j];
            }
        }
        let mut row = first as usize + width + unit;
        while row < m as usize {
            let mut sum = x[own + row];
            #[unroll]
            for c in 0..width {
                sum -= solved[c] * x[panel + c * lines.stride + row];
            }
            x[own + row] = sum;
            row += code.units;
        }
    }
}
