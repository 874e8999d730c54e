//! Tridiagonal form by a launch for each column, for matrices that no cube can hold.
//!
//! The state between launches is that of [`super::whole`]: the matrix lacks the last reflection. Every cube makes the next
//! column and its reflector for itself, then subtracts and multiplies in one pass over its rows.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::parts::{reflector, total};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Vectors of a row that a unit takes, and elements of a vector.
    pub held: usize,
    pub width: usize,
    /// Rows that are taken together.
    pub rows: usize,
    /// Planes at most.
    pub planes: usize,
    pub double: bool,
}

/// Rows of a cube at most.
pub const ROWS: usize = 32;

/// What a unit holds of the last reflector and its product, and of the next one.
#[derive(CubeType)]
struct Lines<A: Float, N: Size> {
    v: Array<Vector<A, N>>,
    p: Array<Vector<A, N>>,
    x: Array<Vector<A, N>>,
}

/// Where a cube works: its matrix, whether that is one of the batch, and the first element that its units hold.
#[derive(CubeType, Clone, Copy)]
struct Place {
    matrix: usize,
    inside: bool,
    n: u32,
    stride: u32,
    k: u32,
    base: u32,
}

/// The sum of a vector's elements.
#[cube]
pub fn sum_of<A: Float, N: Size>(v: Vector<A, N>) -> A {
    let mut sum = v.extract(0usize);
    #[unroll]
    for l in 1..v.vector_size() {
        sum += v.extract(l);
    }
    sum
}

/// Loads row `k` of the matrix, and the last reflector with its product.
#[cube]
fn load<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    p: &mut [A],
    v: &mut [A],
    lines: &mut Lines<A, N>,
    place: &Place,
    #[comptime] code: Code,
) {
    let zero = A::from_int(0);
    let row = place.matrix * place.n as usize;
    let before = max(place.k, 1u32) as usize - 1;
    let last = (row + before) * place.stride as usize;
    let product = (place.matrix * 2 + (place.k % 2) as usize) * place.n as usize;
    #[unroll]
    for s in 0..code.held {
        let vector = UNIT_POS + comptime!(s as u32) * CUBE_DIM;
        let at = place.base + vector * comptime!(code.width as u32);
        let mut x = Vector::<A, N>::new(zero);
        let mut own = Vector::<A, N>::new(zero);
        let mut made = Vector::<A, N>::new(zero);
        if at < place.stride {
            x = w[((row + place.k as usize) * place.stride as usize + at as usize) / code.width];
            #[unroll]
            for l in 0..code.width {
                let i = at + comptime!(l as u32);
                if i < place.n && i >= place.k && place.k > 0 {
                    own.insert(l, v[last + i as usize]);
                    made.insert(l, p[product + i as usize]);
                }
            }
        }
        lines.x[s] = x;
        lines.v[s] = own;
        lines.p[s] = made;
    }
}

/// Some of a cube's rows, and what of the last reflector and its product belongs to them.
#[derive(CubeType)]
struct Rows<A: Float, N: Size> {
    w: Array<Vector<A, N>>,
    v: Array<A>,
    p: Array<A>,
}

/// Loads some of the cube's rows, from row `j` on, `cubes` apart.
#[cube]
fn load_rows<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    p: &mut [A],
    v: &mut [A],
    held: &mut Rows<A, N>,
    place: &Place,
    j: u32,
    cubes: u32,
    #[comptime] code: Code,
) {
    let row = place.matrix * place.n as usize;
    let old = (place.matrix * 2 + (place.k % 2) as usize) * place.n as usize;
    let last = (row + max(place.k, 1u32) as usize - 1) * place.stride as usize;
    #[unroll]
    for t in 0..code.rows {
        let own = j + comptime!(t as u32) * cubes;
        let from = (row + own as usize) * place.stride as usize;
        held.v[t] = A::from_int(0);
        held.p[t] = A::from_int(0);
        if own < place.n && place.k > 0 {
            held.v[t] = v[last + own as usize];
            held.p[t] = p[old + own as usize];
        }
        #[unroll]
        for s in 0..code.held {
            let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
            let mut value = Vector::<A, N>::new(A::from_int(0));
            if own < place.n && at < place.stride {
                value = w[(from + at as usize) / code.width];
            }
            held.w[comptime!(t * code.held + s)] = value;
        }
    }
}

/// Makes the reflector of column `k` in `lines.x`; gives τ and τ²·pᵀv of the last one.
#[cube]
fn next<A: Float, N: Size>(
    p: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    lines: &mut Lines<A, N>,
    place: &Place,
    own: u32,
    #[comptime] code: Code,
) -> (A, A) {
    let mut slots = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut more = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut pivots = Shared::<[A]>::new_slice(2usize);
    let zero = A::from_int(0);
    let k = place.k;
    let row = place.matrix * place.n as usize;
    let before = row + max(k, 1u32) as usize - 1;
    let mut factor = zero;
    let mut vk = zero;
    let mut pk = zero;
    if k > 0 {
        factor = tau[before];
        vk = v[before * place.stride as usize + k as usize];
        pk = p[(place.matrix * 2 + (k % 2) as usize) * place.n as usize + k as usize];
    }
    let mut sums = Vector::<A, N>::new(zero);
    #[unroll]
    for s in 0..code.held {
        sums += lines.v[s] * lines.p[s];
    }
    let twice = factor * factor * total::<A>(sum_of::<A, N>(sums), &mut slots);
    let q = Vector::<A, N>::new(factor * pk - twice * vk);
    let r = Vector::<A, N>::new(factor * vk);
    let mut squares = zero;
    #[unroll]
    for s in 0..code.held {
        let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
        let x = lines.x[s] - lines.v[s] * q - lines.p[s] * r;
        lines.x[s] = x;
        #[unroll]
        for l in 0..code.width {
            let i = at + comptime!(l as u32);
            let element = x.extract(l);
            if i == k {
                pivots[0] = element;
            }
            if i == k + 1 {
                pivots[1] = element;
            }
            squares += select(i > k + 1, element * element, zero);
        }
    }
    let squares = total::<A>(squares, &mut more);
    let (scalar, stretch, beta) = reflector::<A>(pivots[1], squares, code.double);
    let writes = own == 0 && place.inside;
    if writes && UNIT_POS == 0 {
        diagonal[row + k as usize] = pivots[0];
        off[row + k as usize] = beta;
        tau[row + k as usize] = scalar;
    }
    #[unroll]
    for s in 0..code.held {
        let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
        let mut made = lines.x[s];
        #[unroll]
        for l in 0..code.width {
            let i = at + comptime!(l as u32);
            let own = select(i > k + 1, made.extract(l) * stretch, select(i == k + 1, A::from_int(1), zero));
            made.insert(l, own);
            if writes && i < place.n {
                v[(row + k as usize) * place.stride as usize + i as usize] = own;
            }
        }
        lines.x[s] = made;
    }
    (factor, twice)
}

/// Column `k` of a matrix, by cube number `own` of `cubes`.
#[cube]
fn column<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    p: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    place: &Place,
    own: u32,
    cubes: u32,
    #[comptime] code: Code,
) {
    let mut slots = Shared::<[A]>::new_slice(comptime!(ROWS * (code.planes + 1)));
    let (matrix, n, stride, k) = (place.matrix, place.n, place.stride, place.k);
    let mut lines = Lines::<A, N> {
        v: Array::<Vector<A, N>>::new(code.held),
        p: Array::<Vector<A, N>>::new(code.held),
        x: Array::<Vector<A, N>>::new(code.held),
    };
    let mut held = Rows::<A, N> {
        w: Array::<Vector<A, N>>::new(comptime!(code.rows * code.held)),
        v: Array::<A>::new(code.rows),
        p: Array::<A>::new(code.rows),
    };
    load::<A, N>(w, p, v, &mut lines, place, code);
    let mut j = k + 1 + own;
    load_rows::<A, N>(w, p, v, &mut held, place, j, cubes, code);
    let (factor, twice) = next::<A, N>(p, v, tau, diagonal, off, &mut lines, place, own, code);
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let mut slot = 0u32;
    while j < n {
        let mut sums = Array::<A>::new(code.rows);
        #[unroll]
        for t in 0..code.rows {
            let own = j + comptime!(t as u32) * cubes;
            let q = Vector::<A, N>::new(factor * held.p[t] - twice * held.v[t]);
            let r = Vector::<A, N>::new(factor * held.v[t]);
            let from = (matrix * n as usize + own as usize) * stride as usize;
            let mut sum = Vector::<A, N>::new(A::from_int(0));
            #[unroll]
            for s in 0..code.held {
                let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
                let x = held.w[comptime!(t * code.held + s)] - lines.v[s] * q - lines.p[s] * r;
                if own < n && at < stride && place.inside {
                    w[(from + at as usize) / code.width] = x;
                }
                sum += x * lines.x[s];
            }
            sums[t] = sum_of::<A, N>(sum);
        }
        // The next rows are on their way while these are added up.
        j += comptime!(code.rows as u32) * cubes;
        load_rows::<A, N>(w, p, v, &mut held, place, j, cubes, code);
        #[unroll]
        for t in 0..code.rows {
            sums[t] = plane_sum(sums[t]);
        }
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for t in 0..code.rows {
                slots[(slot as usize + t) * comptime!(code.planes + 1) + plane] = sums[t];
            }
        }
        slot += comptime!(code.rows as u32);
    }
    sync_cube();
    let made = (matrix * 2 + (1 - k % 2) as usize) * n as usize;
    let mut line = UNIT_POS;
    while line < comptime!(ROWS as u32) {
        let j = k + 1 + own + line * cubes;
        if j < n && place.inside {
            let mut sum = A::from_int(0);
            for plane in 0..CUBE_DIM.div_ceil(PLANE_DIM) as usize {
                sum += slots[line as usize * comptime!(code.planes + 1) + plane];
            }
            p[made + j as usize] = sum;
        }
        line += CUBE_DIM;
    }
}

/// Column `k` of every matrix: `cubes` cubes for each of them.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn step<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    p: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    batch: usize,
    n: u32,
    stride: u32,
    k: u32,
    cubes: u32,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let own = (CUBE_POS % cubes as usize) as u32;
    let inside = CUBE_POS / (cubes as usize) < batch;
    let matrix = select(inside, CUBE_POS / cubes as usize, 0usize);
    let width = comptime!(code.width as u32);
    let place = Place { matrix, inside, n, stride, k, base: k / width * width };
    column::<A, N>(w, p, v, tau, diagonal, off, &place, own, cubes, code);
}

/// Columns `from..to` of every matrix in one launch. The cubes of a matrix wait for each other after every column, so that all of
/// them must run at the same time: `arrived`, zero at first, counts them.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn steps_together<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    p: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    arrived: &mut [Atomic<u32>],
    n: u32,
    stride: u32,
    from: u32,
    to: u32,
    cubes: u32,
    counter: u32,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let own = (CUBE_POS % cubes as usize) as u32;
    let matrix = CUBE_POS / cubes as usize;
    let width = comptime!(code.width as u32);
    let mut target = 0u32;
    for k in from..to {
        let place = Place { matrix, inside: true.runtime(), n, stride, k, base: k / width * width };
        column::<A, N>(w, p, v, tau, diagonal, off, &place, own, cubes, code);
        target += cubes;
        // Storage is flushed before the count, and read anew after it.
        sync_storage();
        if UNIT_POS == 0 {
            let at = counter as usize + matrix;
            arrived[at].fetch_add(1u32);
            let mut seen = arrived[at].load();
            while seen < target {
                seen = arrived[at].load();
            }
        }
        sync_storage();
    }
}
