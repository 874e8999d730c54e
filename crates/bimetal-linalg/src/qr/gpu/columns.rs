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
    /// Rows in a vector.
    pub width: usize,
    /// Matrices of a cube.
    pub slots: usize,
    /// Rows of Qᵀ that are staged to be stored together.
    pub chunk: usize,
    /// Q is made.
    pub explicit: bool,
    /// The computation is in f64.
    pub double: bool,
}

/// The leading 32 bits of `|x|`, which order as magnitudes do: compilers of shading languages may assume that all values are
/// finite, so comparisons of values do not find those that are not.
#[cube]
pub fn magnitude_bits<A: Float>(x: A, #[comptime] double: bool) -> u32 {
    if comptime!(double) {
        u32::cast_from(u64::reinterpret(x) >> 32u64) & 0x7fff_ffffu32
    } else {
        u32::reinterpret(x) & 0x7fff_ffffu32
    }
}

/// Whether a number of these leading bits is neither NaN nor infinite.
#[cube]
pub fn is_finite(bits: u32, #[comptime] double: bool) -> bool {
    bits < comptime!(if double { 0x7ff0_0000u32 } else { 0x7f80_0000u32 })
}

/// The power of two that brings a number of these leading bits between 1 and 2, within what has a reciprocal.
#[cube]
pub fn normalizer<A: Float>(bits: u32, #[comptime] double: bool) -> A {
    if comptime!(double) {
        let exponent = clamp(2046u32 - min(bits >> 20u32, 2046u32), 1u32, 2045u32);
        A::reinterpret(u64::cast_from(exponent) << 52u64)
    } else {
        let exponent = clamp(254u32 - min(bits >> 23u32, 254u32), 1u32, 253u32);
        A::reinterpret(exponent << 23u32)
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
pub fn factor_columns<I: Float, A: Float, N: Size>(
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
    let vectors = comptime!(layout.rows / layout.width);
    let mut flags = Shared::<[u32]>::new_slice(layout.slots);
    let mut taus = Shared::<[A]>::new_slice(comptime!(layout.slots * 2));
    let mut shared = Shared::<[Vector<A, N>]>::new_slice(comptime!(layout.slots * 2 * vectors));
    let slot = UNIT_POS / span;
    let c = UNIT_POS % span;
    let matrix = CUBE_POS * comptime!(layout.slots) + slot as usize;
    let active = matrix < batch;
    let steps = min(m, n);
    if c == 0u32 {
        flags[slot as usize] = 0u32;
    }
    sync_cube();
    let mut x = Array::<Vector<A, N>>::new(vectors);
    let start = matrix * (m * n) as usize + c as usize;
    let mut largest = 0u32;
    #[unroll]
    for i in 0..vectors {
        let mut value = Vector::<A, N>::new(A::from_int(0));
        #[unroll]
        for l in 0..layout.width {
            let row = comptime!(i * layout.width + l);
            if active && (row as u32) < m {
                if c < n {
                    let element = A::cast_from(a[start + row * n as usize]);
                    value.insert(l, element);
                    largest = max(largest, magnitude_bits::<A>(element, layout.double));
                } else if c - n == row as u32 {
                    value.insert(l, A::from_int(1));
                }
            }
        }
        x[i] = value;
    }
    if !is_finite(largest, layout.double) {
        flags[slot as usize] = 1u32;
    }
    let scale = select(c < n, normalizer::<A>(largest, layout.double), A::from_int(1));
    #[unroll]
    for i in 0..vectors {
        x[i] *= Vector::new(scale);
    }
    sync_cube();
    let bad = flags[slot as usize] != 0u32;
    if c == 0u32 && active {
        status[matrix] = select(bad, -1i32, 0i32);
    }
    let mut j = 0u32;
    #[unroll]
    for block in 0..comptime!(layout.rows / layout.block) {
        let from = comptime!(block * layout.block);
        let end = min(steps, comptime!((from + layout.block) as u32));
        while j < end {
            let turn = (slot * 2u32 + j % 2u32) as usize;
            if c == j {
                let tau = publish::<A, N>(&mut x, &mut shared, turn * vectors, j, from, layout);
                taus[turn] = tau;
                if comptime!(!layout.explicit) && active {
                    second[matrix * steps as usize + j as usize] =
                        I::cast_from(select(bad, not_a_number::<A>(), tau));
                }
            }
            sync_cube();
            let tau = select(c > j, taus[turn], A::from_int(0));
            reflect::<A, N>(&mut x, &shared, turn * vectors, tau, from, layout);
            j += 1u32;
        }
    }
    let unscale = normalizer::<A>(magnitude_bits::<A>(scale, layout.double), layout.double);
    let unit = Unit { m, n, q_columns, span, slot, matrix, c, active, bad };
    if comptime!(layout.explicit) {
        store_upper::<I, A, N>(&x, second, &unit, unscale, layout);
        store_transposed::<I, A, N>(&x, first, &unit, layout);
    } else {
        store_upper::<I, A, N>(&x, first, &unit, unscale, layout);
    }
}

/// Makes the reflector of a unit's column, leaves its vector in shared memory and itself in the column; gives τ.
#[cube]
fn publish<A: Float, N: Size>(
    x: &mut Array<Vector<A, N>>,
    shared: &mut Shared<[Vector<A, N>]>,
    place: usize,
    j: u32,
    #[comptime] from: usize,
    #[comptime] layout: Layout,
) -> A {
    let width = comptime!(layout.width);
    let (start, end) = (comptime!(from / layout.width), comptime!(layout.rows / layout.width));
    let zero = A::from_int(0);
    let mut head = zero;
    let mut sums = Vector::<A, N>::new(zero);
    #[unroll]
    for i in start..end {
        let mut tail = x[i];
        if comptime!(i * layout.width < from + layout.block) {
            #[unroll]
            for l in 0..width {
                let row = comptime!((i * layout.width + l) as u32);
                let element = x[i].extract(l);
                head = select(row == j, element, head);
                tail.insert(l, select(row > j, element, zero));
            }
        }
        sums += tail * tail;
    }
    let mut squares = sum_of::<A, N>(sums);
    let mut scale = A::from_int(1);
    if squares + head * head < least_squares::<A>(layout.double) {
        #[unroll]
        for i in start..end {
            shared[place + i] = x[i];
        }
        let mut largest = magnitude_bits::<A>(head, layout.double);
        for i in start..end {
            #[unroll]
            for l in 0..width {
                let bits = magnitude_bits::<A>(shared[place + i].extract(l), layout.double);
                largest = max(largest, select((i * width + l) as u32 > j, bits, 0u32));
            }
        }
        scale = normalizer::<A>(largest, layout.double);
        squares = zero;
        for i in start..end {
            #[unroll]
            for l in 0..width {
                let tail = select((i * width + l) as u32 > j, shared[place + i].extract(l) * scale, zero);
                squares += tail * tail;
            }
        }
    }
    let scaled = head * scale;
    let norm = (scaled * scaled + squares).sqrt();
    let beta = select(scaled > zero, -norm, norm);
    let none = squares == zero;
    let tau = select(none, zero, (beta - scaled) / beta);
    let factor = select(none, zero, scale / (scaled - beta));
    let unscale = normalizer::<A>(magnitude_bits::<A>(scale, layout.double), layout.double);
    let diagonal = select(none, head, beta * unscale);
    #[unroll]
    for i in start..end {
        let mut tail = x[i] * Vector::new(factor);
        let mut own = tail;
        if comptime!(i * layout.width < from + layout.block) {
            #[unroll]
            for l in 0..width {
                let row = comptime!((i * layout.width + l) as u32);
                let (before, after) = (x[i].extract(l), tail.extract(l));
                own.insert(l, select(row == j, diagonal, select(row < j, before, after)));
                tail.insert(l, select(row == j, A::from_int(1), select(row < j, zero, after)));
            }
        }
        shared[place + i] = tail;
        x[i] = own;
    }
    tau
}

/// The sum of a vector's elements.
#[cube]
fn sum_of<A: Float, N: Size>(v: Vector<A, N>) -> A {
    let mut sum = v.extract(0usize);
    #[unroll]
    for l in 1..v.vector_size() {
        sum += v.extract(l);
    }
    sum
}

/// Applies `1 − τ·v·vᵀ` with the vector in shared memory to a unit's column.
#[cube]
fn reflect<A: Float, N: Size>(
    x: &mut Array<Vector<A, N>>,
    shared: &Shared<[Vector<A, N>]>,
    place: usize,
    tau: A,
    #[comptime] from: usize,
    #[comptime] layout: Layout,
) {
    let (start, end) = (comptime!(from / layout.width), comptime!(layout.rows / layout.width));
    let mut sums = Vector::<A, N>::new(A::from_int(0));
    #[unroll]
    for i in start..end {
        sums += x[i] * shared[place + i];
    }
    let weight = Vector::<A, N>::new(sum_of::<A, N>(sums) * tau);
    #[unroll]
    for i in start..end {
        x[i] -= weight * shared[place + i];
    }
}

/// Stores a column of R, with zeros below the diagonal, or of the packed factors.
#[cube]
fn store_upper<I: Float, A: Float, N: Size>(
    x: &Array<Vector<A, N>>,
    out: &mut [I],
    unit: &Unit,
    unscale: A,
    #[comptime] layout: Layout,
) {
    let rows = if comptime!(layout.explicit) { unit.q_columns } else { unit.m };
    let start = unit.matrix * (rows * unit.n) as usize + unit.c as usize;
    let used = unit.active && unit.c < unit.n;
    #[unroll]
    for i in 0..comptime!(layout.rows / layout.width) {
        #[unroll]
        for l in 0..layout.width {
            let row = comptime!(i * layout.width + l);
            if used && (row as u32) < rows {
                let element = x[i].extract(l);
                let below = if comptime!(layout.explicit) { A::from_int(0) } else { element };
                let value = select(row as u32 <= unit.c, element * unscale, below);
                out[start + row * unit.n as usize] = I::cast_from(select(unit.bad, not_a_number::<A>(), value));
            }
        }
    }
}

/// Stores Q from the columns of Qᵀ, through shared memory so that neighbours store to neighbouring memory.
#[cube]
fn store_transposed<I: Float, A: Float, N: Size>(
    x: &Array<Vector<A, N>>,
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
                let row = comptime!(piece * chunk + i);
                tile[base + (c - unit.n) as usize * comptime!(chunk + 1) + i] =
                    x[comptime!(row / layout.width)].extract(comptime!(row % layout.width));
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
