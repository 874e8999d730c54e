//! Columns of large matrices as lines: how they come from tensors and go back, and the exchanges of their rows.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::pivot::NONE;
use crate::blocks::not_finite;
use crate::qr::gpu::moves::{PART, TILE, TILE_UNITS};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns of matrices as lines: so many of `stride` elements for each matrix.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Lines {
    pub batch: usize,
    pub count: usize,
    pub stride: usize,
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
