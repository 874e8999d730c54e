//! The kernels of LU for large matrices, which are kept transposed, a column after another: panels of a few columns are
//! factored by one cube, whose units hold rows in registers; other columns follow, a cube each.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::blocks::not_finite;
use crate::qr::gpu::moves::{PART, TILE, TILE_UNITS};
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

/// Columns of matrices as lines: so many of `stride` elements for each matrix.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Lines {
    pub batch: usize,
    pub count: usize,
    pub stride: usize,
}

/// A row that is no row.
const NONE: u32 = u32::MAX;

/// The largest of the units' values, which are magnitudes or −1, and its row, the first of equals. `sizes` and `places` have
/// a slot for each plane from `from` on.
#[cube]
fn largest<A: Float>(value: A, row: u32, sizes: &mut Shared<[A]>, places: &mut Shared<[u32]>, from: usize) -> (A, u32) {
    let most = plane_max(value);
    let place = plane_min(select(value == most, row, NONE.runtime()));
    if UNIT_POS_PLANE == 0 {
        sizes[from + (UNIT_POS / PLANE_DIM) as usize] = most;
        places[from + (UNIT_POS / PLANE_DIM) as usize] = place;
    }
    sync_cube();
    let mut best = A::new(-2.0);
    let mut found = NONE.runtime();
    let mut at = UNIT_POS_PLANE;
    while at < CUBE_DIM.div_ceil(PLANE_DIM) {
        let (other, place) = (sizes[from + at as usize], places[from + at as usize]);
        let better = other > best || (other == best && place < found);
        best = select(better, other, best);
        found = select(better, place, found);
        at += PLANE_DIM;
    }
    let all = plane_max(best);
    (all, plane_min(select(best == all, found, NONE.runtime())))
}

/// The same for f32 in half as many steps: of equal magnitudes the first row has the largest complement. `turn` says which
/// of two places is used.
#[cube]
fn largest_packed<A: Float>(value: A, row: u32, turn: usize, #[comptime] planes: usize) -> (A, u32) {
    let mut slots = Shared::<[u64]>::new_slice(comptime!(2 * planes));
    let from = turn * planes;
    let bits = u32::reinterpret(f32::cast_from(max(value, A::new(0.0))));
    let own = (u64::cast_from(bits) << 32u64) | u64::cast_from(NONE - row);
    let most = plane_max(own);
    if UNIT_POS_PLANE == 0 {
        slots[from + (UNIT_POS / PLANE_DIM) as usize] = most;
    }
    sync_cube();
    let mut best = u64::cast_from(0u32);
    let mut at = UNIT_POS_PLANE;
    while at < CUBE_DIM.div_ceil(PLANE_DIM) {
        best = max(best, slots[from + at as usize]);
        at += PLANE_DIM;
    }
    let best = plane_max(best);
    let size = A::cast_from(f32::reinterpret(u32::cast_from(best >> 32u64)));
    (size, NONE - u32::cast_from(best & 0xffff_ffffu64))
}

/// Writes the moves of rows that the exchanges of a panel amount to, `to` and `from` of each, by as many units: slot `j` for
/// row `j`, slot `width + j` for the row that it was exchanged with. Rows count from the panel's first of `height`; a slot for
/// a row that there is not, or for that of an earlier slot, has none.
#[cube]
fn plan_moves(
    exchanged: &Shared<[u32]>,
    moves: &mut [u32],
    start: usize,
    first: u32,
    height: u32,
    #[comptime] width: usize,
) {
    let slot = UNIT_POS as usize;
    if slot < comptime!(2 * width) {
        let place = if slot < width { slot as u32 } else { exchanged[slot - width] };
        let mut repeated = place >= height || slot >= width && place < width as u32;
        #[unroll]
        for j in 0..width {
            if j + width < slot && exchanged[j] == place {
                repeated = true;
            }
        }
        let mut source = place;
        #[unroll]
        for step in 0..width {
            let j = comptime!((width - 1 - step) as u32).runtime();
            let other = exchanged[comptime!(width - 1 - step)];
            source = select(source == j, other, select(source == other, j, source));
        }
        moves[start + 2 * slot] = select(repeated, NONE.runtime(), first + place);
        moves[start + 2 * slot + 1] = first + source;
    }
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
        let nothing = !(size > zero);
        if nothing && j < used && info == 0i32 {
            info = (first + j) as i32 + 1i32;
        }
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
        // The first column moves to the end, and the others ahead.
        #[unroll]
        for r in 0..rows {
            let own = held[r];
            #[unroll]
            for c in 1..width {
                held[comptime!((c - 1) * rows + r)] = held[comptime!(c * rows + r)];
            }
            held[comptime!((width - 1) * rows + r)] = own;
        }
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

/// Units that move the rows of a line, and lines of a cube.
pub const MOVERS: usize = 32;
pub const MOVED: usize = 8;

/// The move of a unit for a line: where to, [`NONE`] if nothing moves, and where from.
#[cube]
fn fetch(moves: &[u32], start: usize, wanted: bool) -> (u32, u32) {
    let mut to = NONE.runtime();
    let mut source = 0u32;
    if wanted {
        source = moves[start + 1];
        to = select(moves[start] == source, NONE.runtime(), moves[start]);
    }
    (to, source)
}

/// Exchanges rows by the moves of `panels` panels, of `2·width` each, in `count` lines from `from` on: some units for each line. Lines
/// `within..last` are those panels' own columns, in blocks of `block`, and begin with the moves of the block after theirs.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn exchange<A: Float>(
    x: &mut [A],
    moves: &[u32],
    lines: Lines,
    from: usize,
    count: usize,
    within: usize,
    last: usize,
    block: usize,
    moves_start: usize,
    panels: u32,
    #[comptime] width: usize,
    #[define(A)] _elem: ElemType,
) {
    let number = CUBE_POS * MOVED + UNIT_POS as usize / MOVERS;
    let unit = UNIT_POS as usize % MOVERS;
    let inside = number < lines.batch * count && unit < comptime!(2 * width);
    let matrix = select(number < lines.batch * count, number / count, 0usize);
    let line = from + number % count;
    let own = (matrix * lines.count + line) * lines.stride;
    let ahead = line - min(line, within);
    let done = select(line >= within && line < last, (ahead / block + 1) * block / width, 0usize);
    let step = lines.batch * comptime!(4 * width);
    let start = moves_start + matrix * comptime!(4 * width) + 2 * unit;
    let (mut to, mut source) = fetch(moves, start, inside && done == 0);
    for panel in 0..panels as usize {
        let mut value = A::from_int(0);
        if to != NONE {
            value = x[own + source as usize];
        }
        let next = panel + 1;
        let (next_to, next_source) =
            fetch(moves, start + next * step, inside && next < panels as usize && next >= done);
        sync_storage();
        if to != NONE {
            x[own + to as usize] = value;
        }
        sync_storage();
        to = next_to;
        source = next_source;
    }
}

/// Transposes `m`×`n` matrices to the lines from `first` on, and marks for each part of 32 columns whether an element is not finite.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn load<I: Float, A: Float>(
    a: &[I],
    x: &mut [A],
    flags: &mut [i32],
    lines: Lines,
    m: usize,
    n: usize,
    first: usize,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let (down, across) = (m.div_ceil(PART), n.div_ceil(TILE));
    let inside = CUBE_POS < lines.batch * down * across;
    let matrix = select(inside, CUBE_POS / (down * across), 0usize);
    let column = CUBE_POS % across * TILE;
    let near = UNIT_POS as usize % TILE;
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    for part in 0..comptime!(PART / TILE) {
        let row = CUBE_POS / across % down * PART + part * TILE;
        #[unroll]
        for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
            let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
            let mut value = A::from_int(0);
            if inside && row + far < m && column + near < n {
                value = A::cast_from(a[(matrix * m + row + far) * n + column + near]);
                if not_finite::<A>(value, double) {
                    bad[0] = 1i32;
                }
            }
            tile[far * comptime!(TILE + 1) + near] = value;
        }
        sync_cube();
        #[unroll]
        for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
            let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
            if inside && column + far < n && row + near < m {
                let at = (matrix * lines.count + first + column + far) * lines.stride + row + near;
                x[at] = tile[near * comptime!(TILE + 1) + far];
            }
        }
        sync_cube();
    }
    if inside && UNIT_POS == 0 {
        flags[CUBE_POS] = bad[0];
    }
}

/// Identities in the lines from `first` on, as many as they have rows.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn identities<A: Float>(x: &mut [A], lines: Lines, n: usize, first: usize, #[define(A)] _elem: ElemType) {
    let e = ABSOLUTE_POS;
    if e < lines.batch * n * n {
        let (line, i) = (e / n, e % n);
        let at = (line / n * lines.count + first + line % n) * lines.stride + i;
        x[at] = select(i == line % n, A::from_int(1), A::from_int(0));
    }
}

/// Transposes lines from `first` on back to `m`×`n` matrices; NaN where the status is negative, or not 0 if `positive_fails`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn store<I: Float, A: Float>(
    x: &[A],
    out: &mut [I],
    status: &[i32],
    lines: Lines,
    m: usize,
    n: usize,
    first: usize,
    nan: InputScalar,
    #[comptime] positive_fails: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let (down, across) = (m.div_ceil(TILE), n.div_ceil(TILE));
    let inside = CUBE_POS < lines.batch * down * across;
    let matrix = select(inside, CUBE_POS / (down * across), 0usize);
    let (row, column) = (CUBE_POS / across % down * TILE, CUBE_POS % across * TILE);
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        let mut value = A::from_int(0);
        if inside && row + near < m && column + far < n {
            value = x[(matrix * lines.count + first + column + far) * lines.stride + row + near];
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    let found = status[matrix];
    let failed = found < 0i32 || (comptime!(positive_fails) && found > 0i32);
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        if inside && row + far < m && column + near < n {
            let value = tile[near * comptime!(TILE + 1) + far];
            out[(matrix * m + row + far) * n + column + near] = I::cast_from(select(failed, nan.get::<A>(), value));
        }
    }
}
