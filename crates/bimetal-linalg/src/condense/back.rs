//! Back-transformation: vectors as rows, each multiplied by the reflections, the last one first. Rows are kept in registers, several units
//! to a row, and meet reflectors in shared memory.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::parts::{lane_sum, total};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Neighbouring units that share a row, and elements that each of them holds.
    pub lanes: u32,
    pub held: usize,
    /// Units of a cube, and reflectors that it has in shared memory.
    pub units: usize,
    pub staged: usize,
}

/// Elements of a row that are skipped together where a reflector has zeros.
const GROUP: usize = 4;

/// Loads the last reflectors of the first `end`, the last one first, each unit some elements; gives a τ.
#[cube]
fn fetch<A: Float>(
    v: &[A],
    tau: &[A],
    fetched: &mut Array<A>,
    row: usize,
    end: u32,
    m: u32,
    stride: u32,
    shift: u32,
    #[comptime] code: Code,
) -> A {
    let width = comptime!(code.lanes * code.held as u32);
    #[unroll]
    for s in 0..comptime!((code.staged * width as usize).div_ceil(code.units)) {
        let e = UNIT_POS + comptime!((s * code.units) as u32);
        let (step, i) = (e / width, e % width);
        let mut value = A::from_int(0);
        if step < end {
            let r = end - 1 - step;
            if i < m && i >= r + shift {
                value = v[(row + r as usize) * stride as usize + i as usize];
            }
        }
        fetched[s] = value;
    }
    let mut scalar = A::from_int(0);
    if UNIT_POS < min(end, comptime!(code.staged as u32)) {
        scalar = tau[row + (end - 1 - UNIT_POS) as usize];
    }
    scalar
}

/// Applies a reflector to a unit's part of a row: it is at `from` in shared memory, and starts at element `first`.
#[cube]
fn reflect<A: Float>(x: &mut Array<A>, staged: &Shared<[A]>, scalar: A, from: u32, first: u32, #[comptime] code: Code) {
    let (lanes, held) = (comptime!(code.lanes), comptime!(code.held));
    let zero = A::from_int(0);
    let mut sums = Array::<A>::new(GROUP);
    #[unroll]
    for h in 0..GROUP {
        sums[h] = zero;
    }
    let mut own = Array::<A>::new(held);
    #[unroll]
    for group in 0..comptime!(held / GROUP) {
        #[unroll]
        for h in 0..GROUP {
            own[comptime!(group * GROUP + h)] = zero;
        }
        if comptime!((group as u32 + 1) * GROUP as u32 * lanes) > first {
            #[unroll]
            for h in 0..GROUP {
                let at = comptime!(group * GROUP + h);
                let y = staged[(from + comptime!(at as u32 * lanes)) as usize];
                own[at] = y;
                sums[h] += x[at] * y;
            }
        }
    }
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    let weight = scalar * lane_sum::<A>(sum, lanes);
    #[unroll]
    for group in 0..comptime!(held / GROUP) {
        if comptime!((group as u32 + 1) * GROUP as u32 * lanes) > first {
            #[unroll]
            for h in 0..GROUP {
                let at = comptime!(group * GROUP + h);
                x[at] = x[at] - weight * own[at];
            }
        }
    }
}

/// Multiplies `lines` rows of `m` elements of each matrix by its `count` reflections, of which number `r` starts at element
/// `r + shift`; there is room for `most` of them. `cubes` cubes for each matrix.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn rows<A: Float>(
    z: &mut [A],
    v: &[A],
    tau: &[A],
    batch: usize,
    lines: u32,
    m: u32,
    count: u32,
    most: u32,
    stride: u32,
    shift: u32,
    cubes: u32,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let (lanes, held) = (comptime!(code.lanes), comptime!(code.held));
    let width = comptime!(lanes * held as u32);
    let mut staged = Shared::<[A]>::new_slice(comptime!(code.staged * lanes as usize * held));
    let mut taus = Shared::<[A]>::new_slice(code.staged);
    let zero = A::from_int(0);
    let matrix = CUBE_POS / cubes as usize;
    let lane = UNIT_POS % lanes;
    let line = (CUBE_POS % cubes as usize) as u32 * comptime!(code.units as u32 / lanes) + UNIT_POS / lanes;
    let active = matrix < batch && line < lines;
    let matrix = select(matrix < batch, matrix, 0usize);
    let start = (matrix * lines as usize + line as usize) * m as usize;
    let mut x = Array::<A>::new(held);
    #[unroll]
    for h in 0..held {
        let i = comptime!(h as u32 * lanes) + lane;
        x[h] = zero;
        if active && i < m {
            x[h] = z[start + i as usize];
        }
    }
    let row = matrix * most as usize;
    // The next reflectors are on their way while these are applied.
    let mut fetched = Array::<A>::new(comptime!(code.staged * lanes as usize * held / code.units + 1));
    let scalar = fetch::<A>(v, tau, &mut fetched, row, count, m, stride, shift, code);
    let mut scalar = scalar;
    for tile in 0..count.div_ceil(comptime!(code.staged as u32)) {
        let end = count - tile * comptime!(code.staged as u32);
        sync_cube();
        #[unroll]
        for s in 0..comptime!((code.staged * lanes as usize * held).div_ceil(code.units)) {
            let e = UNIT_POS as usize + s * code.units;
            if e < comptime!(code.staged * lanes as usize * held) {
                staged[e] = fetched[s];
            }
        }
        if UNIT_POS < comptime!(code.staged as u32) {
            taus[UNIT_POS as usize] = scalar;
        }
        sync_cube();
        let left = end - min(end, comptime!(code.staged as u32));
        scalar = fetch::<A>(v, tau, &mut fetched, row, left, m, stride, shift, code);
        for step in 0..min(end, comptime!(code.staged as u32)) {
            let first = end - 1 - step + shift;
            reflect::<A>(&mut x, &staged, taus[step as usize], step * width + lane, first, code);
        }
    }
    #[unroll]
    for h in 0..held {
        let i = comptime!(h as u32 * lanes) + lane;
        if active && i < m {
            z[start + i as usize] = x[h];
        }
    }
}

/// The same for rows that are too long for registers: a cube for each row.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn long_rows<A: Float>(
    z: &mut [A],
    v: &[A],
    tau: &[A],
    batch: usize,
    lines: u32,
    m: u32,
    count: u32,
    most: u32,
    stride: u32,
    shift: u32,
    #[comptime] planes: usize,
    #[define(A)] _elem: ElemType,
) {
    let mut slots = Shared::<[A]>::new_slice(comptime!(planes * 2));
    let inside = CUBE_POS < batch * lines as usize;
    let line = select(inside, CUBE_POS, 0usize);
    let row = line / lines as usize * most as usize;
    let start = line * m as usize;
    for step in 0..count {
        let r = count - 1 - step;
        let from = (row + r as usize) * stride as usize;
        // A unit takes the same elements of every reflector.
        let first = (r + shift) / CUBE_DIM * CUBE_DIM + UNIT_POS;
        let mut sum = A::from_int(0);
        let mut i = first;
        while i < m {
            if i >= r + shift {
                sum += z[start + i as usize] * v[from + i as usize];
            }
            i += CUBE_DIM;
        }
        let weight = tau[row + r as usize] * total::<A>(sum, &mut slots);
        let mut i = first;
        while i < m {
            if i >= r + shift && inside {
                z[start + i as usize] -= weight * v[from + i as usize];
            }
            i += CUBE_DIM;
        }
        sync_cube();
    }
}
