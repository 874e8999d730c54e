//! Cholesky by tiles on the GPU: a cube keeps a square of up to 128 rows, and some rows below it, in registers; each column
//! goes around through shared memory with one barrier. Unit (y, x) has the elements (y + s·a, x + s·b) for all a and b.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::blocks::not_finite;
use bimetal_core::Gpu;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Tiles along each side of the squares that are compiled for, and of the rows below them.
const TILES: [usize; 2] = [4, 8];
const BELOW: usize = 2;

/// What the kernels' code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Units along each side of a tile, tiles along each side of the square, and tiles below it.
    pub side: usize,
    pub tiles: usize,
    pub below: usize,
    /// Only the upper triangle counts: it is the transposed lower one.
    pub upper: bool,
    pub double: bool,
}

impl Code {
    /// For squares of order `n`, with rows below them or not; none for larger ones.
    pub fn of(gpu: &Gpu, n: usize, below: bool, upper: bool, double: bool) -> Option<Self> {
        let side = if gpu.max_units >= 256 { 16 } else { 8 };
        let tiles = TILES.into_iter().find(|tiles| tiles * side >= n)?;
        Some(Self { side, tiles, below: if below { BELOW } else { 0 }, upper, double })
    }

    /// Rows of the largest square.
    pub fn most(gpu: &Gpu) -> usize {
        TILES[TILES.len() - 1] * if gpu.max_units >= 256 { 16 } else { 8 }
    }

    pub fn units(self) -> usize {
        self.side * self.side
    }

    /// Rows below the square.
    pub fn rows_below(self) -> usize {
        self.side * self.below
    }
}

/// A unit's column and row in each tile: neighbouring units have neighbouring elements of the tensor.
#[cube]
fn own(#[comptime] code: Code) -> (u32, u32) {
    let (fast, slow) = (UNIT_POS % comptime!(code.side as u32), UNIT_POS / comptime!(code.side as u32));
    if comptime!(code.upper) { (slow, fast) } else { (fast, slow) }
}

/// Eliminates the columns of a square, of which a unit has the tiles on and below the diagonal, and of the rows below it: what is
/// left of column `j` is to be divided by the root of `pivots[j]`. Gives the first pivot that is not positive, from 1, or 0.
#[cube]
fn eliminate<A: Float>(
    held: &mut Array<A>,
    below: &mut Array<A>,
    pivots: &mut Shared<[A]>,
    #[comptime] code: Code,
) -> i32 {
    let (side, tiles, all) = (comptime!(code.side), comptime!(code.tiles), comptime!(code.tiles + code.below));
    let (x, y) = own(code);
    let mut columns = Shared::<[A]>::new_slice(comptime!(2 * code.side * (code.tiles + code.below)));
    let mut info = 0i32;
    let zero = A::from_int(0);
    let mut left = Array::<A>::new(all);
    #[unroll]
    for turn in 0..tiles {
        for step in 0..side as u32 {
            let base = (step % 2) as usize * comptime!(side * all);
            if x == step {
                #[unroll]
                for a in turn..all {
                    let at = base + comptime!(a * side) + y as usize;
                    if comptime!(a < tiles) {
                        columns[at] = held[comptime!(a * (a + 1) / 2 + turn)];
                    } else {
                        columns[at] = below[comptime!((a - tiles) * tiles + turn)];
                    }
                }
            }
            sync_cube();
            let found = columns[base + comptime!(turn * side) + step as usize];
            let positive = found > zero;
            if !positive && info == 0i32 {
                info = (comptime!(turn * side) as u32 + step) as i32 + 1i32;
            }
            let pivot = select(positive, found, A::from_int(1));
            let inverse = A::from_int(1) / pivot;
            if UNIT_POS == 0 {
                pivots[comptime!(turn * side) + step as usize] = pivot;
            }
            #[unroll]
            for a in turn..all {
                let value = columns[base + comptime!(a * side) + y as usize];
                left[a] = if comptime!(a == turn) { select(y > step, value, zero) } else { value };
            }
            #[unroll]
            for b in turn..tiles {
                let value = columns[base + comptime!(b * side) + x as usize];
                let right = inverse * if comptime!(b == turn) { select(x > step, value, zero) } else { value };
                #[unroll]
                for a in b..all {
                    if comptime!(a < tiles) {
                        held[comptime!(a * (a + 1) / 2 + b)] -= left[a] * right;
                    } else {
                        below[comptime!((a - tiles) * tiles + b)] -= left[a] * right;
                    }
                }
            }
        }
    }
    sync_cube();
    info
}

/// One cube for each matrix of order `n`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn whole<I: Float, A: Float>(
    input: &[I],
    l: &mut [I],
    status: &mut [i32],
    count: usize,
    n: u32,
    nan: InputScalar,
    #[comptime] code: Code,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let (side, tiles) = (comptime!(code.side), comptime!(code.tiles));
    let mut pivots = Shared::<[A]>::new_slice(comptime!(code.side * code.tiles));
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let (x, y) = own(code);
    let matrix = min(CUBE_POS, count - 1);
    let from = matrix * n as usize * n as usize;
    let mut held = Array::<A>::new(comptime!(tiles * (tiles + 1) / 2));
    #[unroll]
    for a in 0..tiles {
        #[unroll]
        for b in 0..comptime!(a + 1) {
            let (i, j) = (y + comptime!((a * side) as u32), x + comptime!((b * side) as u32));
            let mut value = A::cast_from(i == j);
            if i < n && j <= i {
                value = A::cast_from(element::<I>(input, from, i, j, n, code));
                if not_finite::<A>(value, code.double) {
                    bad[0] = 1i32;
                }
            }
            held[comptime!(a * (a + 1) / 2 + b)] = value;
        }
    }
    let mut none = Array::<A>::new(1usize);
    let broken = eliminate::<A>(&mut held, &mut none, &mut pivots, code);
    let info = select(bad[0] != 0i32, -1i32, broken);
    if CUBE_POS < count {
        #[unroll]
        for a in 0..tiles {
            #[unroll]
            for b in 0..tiles {
                let (i, j) = (y + comptime!((a * side) as u32), x + comptime!((b * side) as u32));
                if i < n && j < n {
                    let mut value = A::from_int(0);
                    if comptime!(b <= a) {
                        let root = pivots[j as usize].sqrt();
                        let below = held[comptime!(a * (a + 1) / 2 + b)] / root;
                        value = select(i == j, root, select(j < i, below, value));
                    }
                    let at = if comptime!(code.upper) { j * n + i } else { i * n + j };
                    l[from + at as usize] = I::cast_from(select(info != 0i32, nan.get::<A>(), value));
                }
            }
        }
        if UNIT_POS == 0 {
            status[matrix] = info;
        }
    }
}

/// Element (`i`, `j`) of a matrix of order `n`.
#[cube]
fn element<I: Float>(input: &[I], from: usize, i: u32, j: u32, n: u32, #[comptime] code: Code) -> I {
    let at = if comptime!(code.upper) { j * n + i } else { i * n + j };
    input[from + at as usize]
}

/// Factors the square of `size` columns on the diagonal from number `start` on, and the rows below it: a cube for each matrix and
/// part of the rows, all of which factor the square. The square goes to `corners`, rows of `most` elements, the rows below it to their place.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn panel<A: Float>(
    w: &mut [A],
    corners: &mut [A],
    status: &mut [i32],
    count: usize,
    parts: usize,
    n: u32,
    start: u32,
    size: u32,
    batch: usize,
    row: usize,
    column: usize,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let (side, tiles, more) = (comptime!(code.side), comptime!(code.tiles), comptime!(code.below));
    let mut pivots = Shared::<[A]>::new_slice(comptime!(code.side * code.tiles));
    let (x, y) = own(code);
    let matrix = min(CUBE_POS / parts, count - 1);
    let part = CUBE_POS % parts;
    let corner = matrix * batch + start as usize * (row + column);
    let mut held = Array::<A>::new(comptime!(tiles * (tiles + 1) / 2));
    #[unroll]
    for a in 0..tiles {
        #[unroll]
        for b in 0..comptime!(a + 1) {
            let (i, j) = (y + comptime!((a * side) as u32), x + comptime!((b * side) as u32));
            let mut value = A::cast_from(i == j);
            if i < size && j <= i {
                value = w[corner + i as usize * row + j as usize * column];
            }
            held[comptime!(a * (a + 1) / 2 + b)] = value;
        }
    }
    let first = size as usize + part * comptime!(code.side * code.below);
    let rest = (n - start) as usize;
    let mut below = Array::<A>::new(comptime!(code.below * code.tiles));
    #[unroll]
    for a in 0..more {
        #[unroll]
        for b in 0..tiles {
            let (i, j) = (first + comptime!(a * side) + y as usize, x + comptime!((b * side) as u32));
            below[comptime!(a * tiles + b)] = A::from_int(0);
            if i < rest && j < size {
                below[comptime!(a * tiles + b)] = w[corner + i * row + j as usize * column];
            }
        }
    }
    let broken = eliminate::<A>(&mut held, &mut below, &mut pivots, code);
    if CUBE_POS < count * parts {
        #[unroll]
        for a in 0..more {
            #[unroll]
            for b in 0..tiles {
                let (i, j) = (first + comptime!(a * side) + y as usize, x + comptime!((b * side) as u32));
                if i < rest && j < size {
                    let root = pivots[j as usize].sqrt();
                    w[corner + i * row + j as usize * column] = below[comptime!(a * tiles + b)] / root;
                }
            }
        }
        if part == 0 {
            let most = comptime!(code.side * code.tiles);
            #[unroll]
            for a in 0..tiles {
                #[unroll]
                for b in 0..comptime!(a + 1) {
                    let (i, j) = (y + comptime!((a * side) as u32), x + comptime!((b * side) as u32));
                    if i < size && j <= i {
                        let root = pivots[j as usize].sqrt();
                        let value = select(i == j, root, held[comptime!(a * (a + 1) / 2 + b)] / root);
                        corners[(matrix * n as usize + (start + i) as usize) * most + j as usize] = value;
                    }
                }
            }
            if UNIT_POS == 0 && broken != 0i32 && status[matrix] == 0i32 {
                status[matrix] = broken + start as i32;
            }
        }
    }
}

/// The factors: corners of `most` columns, and what is below them in the working memory; zeros on the other side of the
/// diagonal, NaN where the status is not 0.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn collect<I: Float, A: Float>(
    w: &[A],
    corners: &[A],
    l: &mut [I],
    status: &[i32],
    total: usize,
    n: u32,
    most: u32,
    batch: usize,
    stride: usize,
    nan: InputScalar,
    #[comptime] upper: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let order = n as usize;
        let (matrix, inside) = (e / (order * order), e % (order * order));
        let (row, column) = ((inside / order) as u32, (inside % order) as u32);
        let (i, j) = if comptime!(upper) { (column, row) } else { (row, column) };
        let mut value = A::from_int(0);
        if j <= i {
            if i / most == j / most {
                value = corners[(matrix * order + i as usize) * most as usize + (j % most) as usize];
            } else {
                value = w[matrix * batch + row as usize * stride + column as usize];
            }
        }
        l[e] = I::cast_from(select(status[matrix] != 0i32, nan.get::<A>(), value));
    }
}
