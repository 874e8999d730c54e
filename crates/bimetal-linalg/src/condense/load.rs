//! Copies matrices into working memory, scaled by a power of two that brings the largest magnitude between 1 and 2, and says
//! which hold what is not finite.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::qr::gpu::columns::{is_finite, magnitude_bits, normalizer};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How a matrix lies in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// As it is.
    Plain,
    /// Transposed.
    Swapped,
    /// Symmetric, with the lower or the upper triangle given.
    Lower,
    Upper,
}

/// Rows and columns of the squares that are copied.
pub const TILE: usize = 32;
/// Units that copy a square or measure a part.
pub const UNITS: usize = 256;
/// Parts in which a matrix is measured, at most.
pub const PARTS: usize = 256;

/// The largest of a value over the cube's units, in every unit.
#[cube]
fn largest_of(value: u32, slots: &mut Shared<[u32]>) -> u32 {
    slots[UNIT_POS as usize] = value;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if (UNIT_POS as usize) < half {
            slots[UNIT_POS as usize] = max(slots[UNIT_POS as usize], slots[UNIT_POS as usize + half]);
        }
        sync_cube();
        half /= 2;
    }
    slots[0]
}

/// The factor of a matrix whose largest magnitude has these leading bits, and its inverse: 1 for zero, 0 where it is not finite.
#[cube]
pub fn factors<A: Float>(bits: u32, #[comptime] double: bool) -> (A, A) {
    let one = A::from_int(1);
    let factor = normalizer::<A>(bits, double);
    let inverse = normalizer::<A>(magnitude_bits::<A>(factor, double), double);
    let plain = bits == 0u32 || !is_finite(bits, double);
    (select(is_finite(bits, double), select(bits == 0u32, one, factor), A::from_int(0)), select(plain, one, inverse))
}

/// The leading bits of the largest magnitude of each part of each matrix of `columns` columns: a cube for each part.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn measure<I: Float, A: Float>(
    a: &[I],
    marks: &mut [u32],
    batch: usize,
    size: usize,
    columns: usize,
    parts: usize,
    #[comptime] source: Source,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut slots = Shared::<[u32]>::new_slice(UNITS);
    let (matrix, part) = (CUBE_POS / parts, CUBE_POS % parts);
    let each = size.div_ceil(parts);
    let mut largest = 0u32;
    if matrix < batch {
        let mut e = part * each + UNIT_POS as usize;
        while e < min((part + 1) * each, size) {
            let (i, j) = (e / columns, e % columns);
            let inside = comptime!(source == Source::Plain || source == Source::Swapped)
                || (comptime!(source == Source::Lower) && j <= i)
                || (comptime!(source == Source::Upper) && j >= i);
            if inside {
                largest = max(largest, magnitude_bits::<A>(A::cast_from(a[matrix * size + e]), double));
            }
            e += UNITS;
        }
    }
    let largest = largest_of(largest, &mut slots);
    if UNIT_POS == 0 && matrix < batch {
        marks[matrix * parts + part] = largest;
    }
}

/// Fills working memory of `m` rows of `stride` elements for each matrix, of which the first `n` count and the others are zero:
/// a cube for each square.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn fill<I: Float, A: Float>(
    a: &[I],
    marks: &[u32],
    w: &mut [A],
    scale: &mut [A],
    status: &mut [i32],
    batch: usize,
    m: usize,
    n: usize,
    stride: usize,
    parts: usize,
    #[comptime] source: Source,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut slots = Shared::<[u32]>::new_slice(UNITS);
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let across = stride.div_ceil(TILE);
    let squares = m.div_ceil(TILE) * across;
    let inside = CUBE_POS / squares < batch;
    let matrix = select(inside, CUBE_POS / squares, 0usize);
    let square = CUBE_POS % squares;
    let mut largest = 0u32;
    if (UNIT_POS as usize) < parts {
        largest = marks[matrix * parts + UNIT_POS as usize];
    }
    let largest = largest_of(largest, &mut slots);
    let (factor, inverse) = factors::<A>(largest, double);
    let bad = !is_finite(largest, double);
    if UNIT_POS == 0 && square == 0 && inside {
        scale[matrix] = inverse;
        status[matrix] = select(bad, -1i32, 0i32);
    }
    let (row, column) = (square / across * TILE, square % across * TILE);
    let turned = comptime!(source == Source::Swapped)
        || (comptime!(source == Source::Lower) && column > row)
        || (comptime!(source == Source::Upper) && column < row);
    let symmetric = comptime!(source == Source::Lower || source == Source::Upper);
    // Where the square lies in the input, and how far that reaches.
    let (top, left) = (select(turned, column, row), select(turned, row, column));
    let (rows, columns) = (select(turned, n, m), select(turned, m, n));
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * UNITS / TILE);
        let (i, j) = (top + far, left + near);
        let read = comptime!(source == Source::Plain || source == Source::Swapped)
            || (comptime!(source == Source::Lower) && j <= i)
            || (comptime!(source == Source::Upper) && j >= i);
        let mut value = A::from_int(0);
        if read && !bad && i < rows && j < columns {
            value = A::cast_from(a[matrix * m * n + i * columns + j]) * factor;
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(TILE * TILE / UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * UNITS / TILE);
        let mut flip = turned;
        if comptime!(symmetric) {
            let missing = if comptime!(source == Source::Lower) { near > far } else { near < far };
            flip = select(row == column, missing, turned);
        }
        let at = select(flip, near * comptime!(TILE + 1) + far, far * comptime!(TILE + 1) + near);
        if inside && row + far < m && column + near < stride {
            w[(matrix * m + row + far) * stride + column + near] = tile[at];
        }
    }
}
