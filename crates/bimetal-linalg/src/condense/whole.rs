//! Tridiagonal form by a cube for each matrix, which lies in shared memory, two barriers to a column.
//!
//! Before column `k` the matrix still lacks the reflection before it, `A ← A − v·qᵀ − p·rᵀ` with `p = A·v`, `r = τ·v` and
//! `q = τ·p − τ²·(pᵀv)·v`. One plane makes the next column and its reflector of what is there; then all units subtract and multiply by
//! the new reflector in one pass.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::load::factors;
use super::parts::{lane_sum, reflector};
use crate::qr::gpu::columns::{is_finite, magnitude_bits};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// The matrix is read from the input: its upper triangle, or the lower one. Else it is what is left of working memory.
    pub fresh: bool,
    pub upper: bool,
    /// The reflectors are wanted.
    pub vectors: bool,
    pub double: bool,
    /// Neighbouring units that share a column.
    pub lanes: u32,
    /// Elements of shared memory for the matrix, for a vector, and planes at most.
    pub elements: usize,
    pub most: usize,
    pub planes: usize,
    /// Elements of a column that a unit of the plane that makes it holds.
    pub held: usize,
}

/// Rows that a unit takes at a time.
pub const STEP: u32 = 4;

/// A cube's matrix, and how much of it is left: rows and columns from `first` on of `n`, `pitch` elements a row here and
/// `stride` in working memory.
#[derive(CubeType, Clone, Copy)]
struct Place {
    matrix: usize,
    inside: bool,
    n: u32,
    first: u32,
    stride: u32,
    size: u32,
    tall: u32,
    pitch: u32,
}

/// Reads a triangle of the input, scaled; gives the inverse of the scale, and whether all is finite.
#[cube]
fn read<I: Float, A: Float>(
    a: &[I],
    w: &mut Shared<[A]>,
    slots: &mut Shared<[u32]>,
    place: &Place,
    #[comptime] form: Form,
) -> (A, bool) {
    let n = place.n;
    let mut largest = 0u32;
    let mut e = UNIT_POS;
    while e < n * n {
        let (i, j) = (e / n, e % n);
        let wanted = if comptime!(form.upper) { j >= i } else { j <= i };
        if wanted {
            let x = A::cast_from(a[place.matrix * (n * n) as usize + e as usize]);
            largest = max(largest, magnitude_bits::<A>(x, form.double));
            w[(i * place.pitch + j) as usize] = x;
            w[(j * place.pitch + i) as usize] = x;
        }
        e += CUBE_DIM;
    }
    let partial = plane_max(largest);
    if UNIT_POS_PLANE == 0 {
        slots[(UNIT_POS / PLANE_DIM) as usize] = partial;
    }
    sync_cube();
    let mut all = slots[0];
    for plane in 1..CUBE_DIM.div_ceil(PLANE_DIM) {
        all = max(all, slots[plane as usize]);
    }
    let (factor, inverse) = factors::<A>(all, form.double);
    let finite = is_finite(all, form.double);
    let mut e = UNIT_POS;
    while e < place.tall * place.pitch {
        let x = w[e as usize];
        w[e as usize] = select(finite, x * factor, A::from_int(0));
        e += CUBE_DIM;
    }
    (inverse, finite)
}

/// Reads what is left of working memory, with the reflector that has not been applied yet.
#[cube]
fn resume<I: Float, A: Float>(
    a: &[I],
    p: &[A],
    v: &mut [A],
    w: &mut Shared<[A]>,
    vs: &mut Shared<[A]>,
    ps: &mut Shared<[A]>,
    place: &Place,
    turn: u32,
) {
    let row = place.matrix * place.n as usize;
    let stride = place.stride as usize;
    let mut e = UNIT_POS;
    while e < place.size * place.size {
        let (i, j) = (e / place.size, e % place.size);
        let from = (row + (place.first + i) as usize) * stride + (place.first + j) as usize;
        w[(i * place.pitch + j) as usize] = A::cast_from(a[from]);
        e += CUBE_DIM;
    }
    let mut i = UNIT_POS;
    while i < place.size {
        let at = (place.first + i) as usize;
        vs[i as usize] = v[(row + place.first as usize - 1) * stride + at];
        ps[i as usize] = p[(place.matrix * 2 + turn as usize) * place.n as usize + at];
        i += CUBE_DIM;
    }
}

/// Reduces a cube's matrix from row and column `first` on. `turn` says which of two places holds the product with the last
/// reflector.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn whole<I: Float, A: Float>(
    a: &[I],
    p: &[A],
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    scale: &mut [A],
    status: &mut [i32],
    batch: u32,
    n: u32,
    first: u32,
    stride: u32,
    tall: u32,
    pitch: u32,
    turn: u32,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut w = Shared::<[A]>::new_slice(form.elements);
    let mut vs = Shared::<[A]>::new_slice(comptime!(2 * form.most));
    let mut ps = Shared::<[A]>::new_slice(comptime!(2 * form.most));
    let mut pending = Shared::<[A]>::new_slice(2usize);
    let mut slots = Shared::<[u32]>::new_slice(form.planes);
    let inside = CUBE_POS < batch as usize;
    let matrix = select(inside, CUBE_POS, 0usize);
    let place = Place { matrix, inside, n, first, stride, size: n - first, tall, pitch };
    let zero = A::from_int(0);
    let mut e = UNIT_POS;
    while e < tall * pitch {
        w[e as usize] = zero;
        e += CUBE_DIM;
    }
    let mut e = UNIT_POS;
    while e < comptime!(2 * form.most as u32) {
        vs[e as usize] = zero;
        ps[e as usize] = zero;
        e += CUBE_DIM;
    }
    sync_cube();
    let mut factor = zero;
    if comptime!(form.fresh) {
        let (inverse, finite) = read::<I, A>(a, &mut w, &mut slots, &place, form);
        if UNIT_POS == 0 && inside {
            scale[matrix] = inverse;
            status[matrix] = select(finite, 0i32, -1i32);
        }
    } else {
        resume::<I, A>(a, p, v, &mut w, &mut vs, &mut ps, &place, turn);
        factor = tau[matrix * n as usize + first as usize - 1];
    }
    sync_cube();
    let row = matrix * n as usize + first as usize;
    for k in 0..max(place.size, 1u32) - 1 {
        let old = (k % 2) * comptime!(form.most as u32);
        let new = comptime!(form.most as u32) - old;
        if UNIT_POS < PLANE_DIM {
            factor =
                next::<A>(&w, &mut vs, &ps, &mut pending, v, tau, diagonal, off, &place, k, old, new, factor, form);
        }
        sync_cube();
        pass::<A>(&mut w, &vs, &mut ps, &pending, &place, k, old, new, form);
        sync_cube();
    }
    if UNIT_POS == 0 && inside && place.size > 0 {
        let last = place.size - 1;
        diagonal[row + last as usize] = w[(last * pitch + last) as usize];
        off[row + last as usize] = zero;
        tau[row + last as usize] = zero;
    }
}

/// A plane makes column `k` and its reflector; gives its τ.
#[cube]
fn next<A: Float>(
    w: &Shared<[A]>,
    vs: &mut Shared<[A]>,
    ps: &Shared<[A]>,
    pending: &mut Shared<[A]>,
    v: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    place: &Place,
    k: u32,
    old: u32,
    new: u32,
    factor: A,
    #[comptime] form: Form,
) -> A {
    let zero = A::from_int(0);
    let line = k * place.pitch;
    // All that is read comes first: what follows waits for sums over the plane.
    let mut xs = Array::<A>::new(form.held);
    let mut olds = Array::<A>::new(form.held);
    let mut products = Array::<A>::new(form.held);
    let mut sum = zero;
    #[unroll]
    for h in 0..form.held {
        let i = UNIT_POS_PLANE + comptime!(h as u32) * PLANE_DIM;
        xs[h] = zero;
        olds[h] = zero;
        products[h] = zero;
        if i < place.tall {
            xs[h] = w[(line + i) as usize];
            olds[h] = vs[(old + i) as usize];
            products[h] = ps[(old + i) as usize];
        }
        sum += olds[h] * products[h];
    }
    let at = k + 1;
    let (vk, pk) = (vs[(old + k) as usize], ps[(old + k) as usize]);
    let (vh, ph) = (vs[(old + at) as usize], ps[(old + at) as usize]);
    let head = w[(line + at) as usize];
    let twice = factor * factor * plane_sum(sum);
    if UNIT_POS_PLANE == 0 {
        pending[0] = factor;
        pending[1] = twice;
    }
    let q = factor * pk - twice * vk;
    let r = factor * vk;
    let head = head - vh * q - ph * r;
    let mut squares = zero;
    #[unroll]
    for h in 0..form.held {
        let i = UNIT_POS_PLANE + comptime!(h as u32) * PLANE_DIM;
        let x = xs[h] - olds[h] * q - products[h] * r;
        xs[h] = x;
        squares += select(i > at, x * x, zero);
    }
    let (scalar, stretch, beta) = reflector::<A>(head, plane_sum(squares), form.double);
    let row = place.matrix * place.n as usize + (place.first + k) as usize;
    #[unroll]
    for h in 0..form.held {
        let i = UNIT_POS_PLANE + comptime!(h as u32) * PLANE_DIM;
        if i == k && place.inside {
            diagonal[row] = xs[h];
            off[row] = beta;
            tau[row] = scalar;
        }
        let own = select(i > at, xs[h] * stretch, select(i == at, A::from_int(1), zero));
        if i < place.tall {
            vs[(new + i) as usize] = own;
        }
        if comptime!(form.vectors) && place.inside && i < place.size {
            v[row * place.stride as usize + (place.first + i) as usize] = own;
        }
    }
    scalar
}

/// All units subtract what is pending and multiply by the new reflector.
#[cube]
fn pass<A: Float>(
    w: &mut Shared<[A]>,
    vs: &Shared<[A]>,
    ps: &mut Shared<[A]>,
    pending: &Shared<[A]>,
    place: &Place,
    k: u32,
    old: u32,
    new: u32,
    #[comptime] form: Form,
) {
    let lanes = comptime!(form.lanes);
    let zero = A::from_int(0);
    let teams = CUBE_DIM / lanes;
    let lane = UNIT_POS % lanes;
    let (factor, twice) = (pending[0], pending[1]);
    for turn in 0..place.size.div_ceil(teams) {
        let j = turn * teams + UNIT_POS / lanes;
        let mut sum = zero;
        if j > k && j < place.size {
            let q = factor * ps[(old + j) as usize] - twice * vs[(old + j) as usize];
            let r = factor * vs[(old + j) as usize];
            let mut i = (k + 1) / comptime!(STEP * lanes) * comptime!(STEP * lanes) + lane;
            while i < place.tall {
                let mut held = Array::<A>::new(comptime!(STEP as usize));
                #[unroll]
                for s in 0..comptime!(STEP) {
                    let at = i + comptime!(s * lanes);
                    let x = w[(at * place.pitch + j) as usize];
                    let x = x - vs[(old + at) as usize] * q - ps[(old + at) as usize] * r;
                    held[s as usize] = x;
                    sum += x * vs[(new + at) as usize];
                }
                #[unroll]
                for s in 0..comptime!(STEP) {
                    w[((i + comptime!(s * lanes)) * place.pitch + j) as usize] = held[s as usize];
                }
                i += comptime!(STEP * lanes);
            }
        }
        sum = lane_sum::<A>(sum, lanes);
        if lane == 0 && j < place.tall {
            ps[(new + j) as usize] = sum;
        }
    }
}
