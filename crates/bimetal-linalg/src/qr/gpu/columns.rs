//! The kernel for small matrices: a unit holds a column of `[A | 1]` in registers and meets each reflector in shared
//! memory; what becomes of the identity is Qᵀ.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows that a unit holds: as many as the matrices have, or more.
    pub rows: usize,
    /// Reflectors that share their code: it skips the rows above them.
    pub block: usize,
    /// Matrices of a cube.
    pub slots: usize,
    /// Rows of Qᵀ that are staged to be stored together.
    pub chunk: usize,
    /// Q is made.
    pub explicit: bool,
    /// The computation is in f64.
    pub double: bool,
}

/// The power of two that brings `x` between 1 and 2, within what has a reciprocal.
#[cube]
pub fn normalizer<A: Float>(x: A, #[comptime] double: bool) -> A {
    if comptime!(double) {
        let exponent = (u64::reinterpret(x) >> 52u64) & 0x7ffu64;
        A::reinterpret(clamp(2046u64 - exponent, 1u64, 2045u64) << 52u64)
    } else {
        let exponent = (u32::reinterpret(x) >> 23u32) & 0xffu32;
        A::reinterpret(clamp(254u32 - exponent, 1u32, 253u32) << 23u32)
    }
}

/// Whether `x` is neither NaN nor infinite, by its bits: compilers of shading languages may assume that all values are.
#[cube]
pub fn is_finite<A: Float>(x: A, #[comptime] double: bool) -> bool {
    if comptime!(double) {
        ((u64::reinterpret(x) >> 52u64) & 0x7ffu64) != 0x7ffu64
    } else {
        ((u32::reinterpret(x) >> 23u32) & 0xffu32) != 0xffu32
    }
}

/// Not a number.
#[cube]
pub fn not_a_number<A: Float>() -> A {
    A::cast_from(f32::reinterpret(0x7fc0_0000u32))
}

/// Sums of squares below this are computed again from scaled elements.
#[cube]
fn least_squares<A: Float>(#[comptime] double: bool) -> A {
    if comptime!(double) {
        // 2^-900
        A::reinterpret(123u64 << 52u64)
    } else {
        A::new(1e-24f32)
    }
}

/// A unit's matrix and column.
#[derive(CubeType, Clone, Copy)]
struct Unit {
    m: u32,
    n: u32,
    q_columns: u32,
    span: u32,
    slot: u32,
    matrix: usize,
    c: u32,
    active: bool,
    bad: bool,
}

/// Factorises a cube's matrices. `first` takes Q, or the packed factors; `second` R, or τ.
///
/// Columns are scaled by powers of two, so that no sum overflows; where one underflows, the column's tail is scaled again.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn factor_columns<I: Float, A: Float>(
    a: &[I],
    first: &mut [I],
    second: &mut [I],
    status: &mut [i32],
    batch: usize,
    m: u32,
    n: u32,
    q_columns: u32,
    span: u32,
    #[comptime] layout: Layout,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let rows = comptime!(layout.rows);
    let mut flags = Shared::<[u32]>::new_slice(layout.slots);
    let mut shared = Shared::<[A]>::new_slice(comptime!(layout.slots * 2 * (rows + 1)));
    let slot = UNIT_POS / span;
    let c = UNIT_POS % span;
    let matrix = CUBE_POS * comptime!(layout.slots) + slot as usize;
    let active = matrix < batch;
    let steps = min(m, n);
    if c == 0u32 {
        flags[slot as usize] = 0u32;
    }
    sync_cube();
    let mut x = Array::<A>::new(rows);
    let start = matrix * (m * n) as usize + c as usize;
    let mut largest = A::from_int(0);
    let mut finite = true;
    #[unroll]
    for i in 0..rows {
        x[i] = A::from_int(0);
        if active && (i as u32) < m {
            if c < n {
                x[i] = A::cast_from(a[start + i * n as usize]);
                largest = max(largest, x[i].abs());
                finite = finite && is_finite::<A>(x[i], layout.double);
            } else if c - n == i as u32 {
                x[i] = A::from_int(1);
            }
        }
    }
    if !finite {
        flags[slot as usize] = 1u32;
    }
    let scale = select(c < n, normalizer::<A>(largest, layout.double), A::from_int(1));
    #[unroll]
    for i in 0..rows {
        x[i] *= scale;
    }
    sync_cube();
    let bad = flags[slot as usize] != 0u32;
    if c == 0u32 && active {
        status[matrix] = select(bad, -1i32, 0i32);
    }
    let mut j = 0u32;
    #[unroll]
    for block in 0..comptime!(rows / layout.block) {
        let from = comptime!(block * layout.block);
        let end = min(steps, comptime!((from + layout.block) as u32));
        while j < end {
            let place = ((slot * 2u32 + j % 2u32) as usize) * comptime!(rows + 1);
            if c == j {
                let tau = publish::<A>(&mut x, &mut shared, place, j, from, layout);
                if comptime!(!layout.explicit) && active {
                    second[matrix * steps as usize + j as usize] =
                        I::cast_from(select(bad, not_a_number::<A>(), tau));
                }
            }
            sync_cube();
            reflect::<A>(&mut x, &shared, place, c > j, from, layout);
            j += 1u32;
        }
    }
    let unscale = normalizer::<A>(scale, layout.double);
    if comptime!(layout.explicit) {
        let unit = Unit { m, n, q_columns, span, slot, matrix, c, active, bad };
        store_triangle::<I, A>(&x, second, &unit, unscale, layout);
        store_transposed::<I, A>(&x, first, &unit, layout);
    } else {
        #[unroll]
        for i in 0..rows {
            if active && (i as u32) < m {
                let value = select(i as u32 <= c, x[i] * unscale, x[i]);
                first[start + i * n as usize] = I::cast_from(select(bad, not_a_number::<A>(), value));
            }
        }
    }
}

/// Makes the reflector of a unit's column, leaves its first rows and τ in shared memory and itself in the column.
#[cube]
fn publish<A: Float>(
    x: &mut Array<A>,
    shared: &mut Shared<[A]>,
    place: usize,
    j: u32,
    #[comptime] from: usize,
    #[comptime] layout: Layout,
) -> A {
    let rows = comptime!(layout.rows);
    let zero = A::from_int(0);
    let mut head = zero;
    let mut squares = zero;
    #[unroll]
    for i in from..rows {
        if comptime!(i < from + layout.block) {
            head = select(i as u32 == j, x[i], head);
            let tail = select(i as u32 > j, x[i], zero);
            squares += tail * tail;
        } else {
            squares += x[i] * x[i];
        }
    }
    let mut scale = A::from_int(1);
    if squares + head * head < least_squares::<A>(layout.double) {
        let mut largest = head.abs();
        #[unroll]
        for i in from..rows {
            largest = max(largest, select(i as u32 > j, x[i].abs(), zero));
        }
        scale = normalizer::<A>(largest, layout.double);
        squares = zero;
        #[unroll]
        for i in from..rows {
            let tail = select(i as u32 > j, x[i] * scale, zero);
            squares += tail * tail;
        }
    }
    let scaled = head * scale;
    let norm = (scaled * scaled + squares).sqrt();
    let beta = select(scaled > zero, -norm, norm);
    let none = squares == zero;
    let tau = select(none, zero, (beta - scaled) / beta);
    let factor = select(none, zero, scale / (scaled - beta));
    let diagonal = select(none, head, beta * normalizer::<A>(scale, layout.double));
    #[unroll]
    for i in from..rows {
        let tail = x[i] * factor;
        if comptime!(i < from + layout.block) {
            let row = i as u32;
            shared[place + i] = select(row == j, A::from_int(1), select(row < j, zero, tail));
            x[i] = select(row == j, diagonal, select(row < j, x[i], tail));
        } else {
            shared[place + i] = tail;
            x[i] = tail;
        }
    }
    shared[place + rows] = tau;
    tau
}

/// Applies the reflector in shared memory to a unit's column, if `takes`.
#[cube]
fn reflect<A: Float>(
    x: &mut Array<A>,
    shared: &Shared<[A]>,
    place: usize,
    takes: bool,
    #[comptime] from: usize,
    #[comptime] layout: Layout,
) {
    let rows = comptime!(layout.rows);
    let mut sums = Array::<A>::new(4usize);
    #[unroll]
    for i in 0..4 {
        sums[i] = A::from_int(0);
    }
    #[unroll]
    for i in from..rows {
        sums[comptime!(i % 4)] += x[i] * shared[place + i];
    }
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    let weight = select(takes, sum * shared[place + rows], A::from_int(0));
    #[unroll]
    for i in from..rows {
        x[i] -= weight * shared[place + i];
    }
}

/// Stores R: of column `c` what is on and above the diagonal.
#[cube]
fn store_triangle<I: Float, A: Float>(
    x: &Array<A>,
    out: &mut [I],
    unit: &Unit,
    unscale: A,
    #[comptime] layout: Layout,
) {
    let n = unit.n;
    let c = unit.c;
    let start = unit.matrix * (unit.q_columns * n) as usize + c as usize;
    #[unroll]
    for i in 0..comptime!(layout.rows) {
        if unit.active && c < n && (i as u32) < unit.q_columns {
            let value = select(i as u32 <= c, x[i] * unscale, A::from_int(0));
            out[start + i * n as usize] = I::cast_from(select(unit.bad, not_a_number::<A>(), value));
        }
    }
}

/// Stores Q from the columns of Qᵀ, through shared memory so that neighbours store to neighbouring memory.
#[cube]
fn store_transposed<I: Float, A: Float>(
    x: &Array<A>,
    out: &mut [I],
    unit: &Unit,
    #[comptime] layout: Layout,
) {
    let (rows, chunk) = (comptime!(layout.rows), comptime!(layout.chunk));
    let mut tile = Shared::<[A]>::new_slice(comptime!(layout.slots * rows * (chunk + 1)));
    let c = unit.c;
    let base = unit.slot as usize * comptime!(rows * (chunk + 1));
    let start = unit.matrix * (unit.m * unit.q_columns) as usize;
    #[unroll]
    for piece in 0..comptime!(rows / chunk) {
        if c >= unit.n {
            #[unroll]
            for i in 0..chunk {
                tile[base + (c - unit.n) as usize * comptime!(chunk + 1) + i] = x[comptime!(piece * chunk + i)];
            }
        }
        sync_cube();
        let mut element = c;
        while element < unit.m * comptime!(chunk as u32) {
            let row = element / comptime!(chunk as u32);
            let i = element % comptime!(chunk as u32);
            let column = comptime!((piece * chunk) as u32) + i;
            if unit.active && column < unit.q_columns {
                let value = tile[base + row as usize * comptime!(chunk + 1) + i as usize];
                out[start + (row * unit.q_columns + column) as usize] =
                    I::cast_from(select(unit.bad, not_a_number::<A>(), value));
            }
            element += unit.span;
        }
        sync_cube();
    }
}
