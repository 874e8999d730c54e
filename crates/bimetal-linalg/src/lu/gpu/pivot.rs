//! The search for a pivot over a cube, and what exchanges of rows amount to.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::prelude::*;

/// A row that is no row.
pub const NONE: u32 = u32::MAX;

/// The largest of the units' values, which are magnitudes or −1, and its row, the first of equals. `sizes` and `places` have
/// a slot for each plane from `from` on.
#[cube]
pub fn largest<A: Float>(
    value: A,
    row: u32,
    sizes: &mut Shared<[A]>,
    places: &mut Shared<[u32]>,
    from: usize,
) -> (A, u32) {
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
pub fn largest_packed<A: Float>(value: A, row: u32, turn: usize, #[comptime] planes: usize) -> (A, u32) {
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
pub fn plan_moves(
    exchanged: &Shared<[u32]>,
    moves: &mut [u32],
    start: usize,
    first: u32,
    height: u32,
    #[comptime] width: usize,
) {
    let slot = UNIT_POS as usize;
    if slot < comptime!(2 * width) {
        let mut place = slot as u32;
        if slot >= width {
            place = exchanged[slot - width];
        }
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
