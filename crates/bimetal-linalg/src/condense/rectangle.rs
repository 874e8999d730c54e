//! Bidiagonal form by a cube for each matrix, which lies in shared memory, four barriers to a column.
//!
//! Before column `k` the matrix still lacks the two reflections before it, `A ← A − u·yᵀ − x·vᵀ` with `y = τᵤ·Aᵀu` and
//! `x = τᵥ·(A·v − (yᵀv)·u)`. One plane makes the next column and its reflector; all units subtract and multiply from the left in
//! one pass; one plane makes the row and its reflector; all units multiply from the right.

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
    /// The matrix is read from the input, transposed or not. Else it is what is left of working memory.
    pub fresh: bool,
    pub swapped: bool,
    /// The reflectors are wanted.
    pub vectors: bool,
    pub double: bool,
    /// Neighbouring units that share a row or column.
    pub lanes: u32,
    /// Elements of shared memory for the matrix, for a column and for a row, and planes at most.
    pub elements: usize,
    pub tall: usize,
    pub wide: usize,
    pub planes: usize,
}

/// Rows or columns that a unit takes at a time.
pub const STEP: u32 = 4;

/// A cube's matrix of `rows`×`columns`, what is left of `m`×`n` from row and column `first` on; `pitch` elements a row here, with
/// `tall` rows and `wide` columns of which the last are zero. Reflectors are `down` and `across` elements apart.
#[derive(CubeType, Clone, Copy)]
struct Place {
    matrix: usize,
    inside: bool,
    m: u32,
    n: u32,
    first: u32,
    rows: u32,
    columns: u32,
    tall: u32,
    wide: u32,
    pitch: u32,
    down: u32,
    across: u32,
}

/// The vectors of what is pending, two places for `u`.
#[derive(CubeType)]
struct Lines<A: Float> {
    u: Shared<[A]>,
    x: Shared<[A]>,
    y: Shared<[A]>,
    v: Shared<[A]>,
    /// τᵤ, τᵥ and yᵀv.
    scalars: Shared<[A]>,
}

/// Reads the input, scaled; gives the inverse of the scale, and whether all is finite.
#[cube]
fn read<I: Float, A: Float>(
    a: &[I],
    w: &mut Shared<[A]>,
    slots: &mut Shared<[u32]>,
    place: &Place,
    #[comptime] form: Form,
) -> (A, bool) {
    let total = place.m * place.n;
    let fast = if comptime!(form.swapped) { place.m } else { place.n };
    let mut largest = 0u32;
    let mut e = UNIT_POS;
    while e < total {
        let (slow, quick) = (e / fast, e % fast);
        let at = if comptime!(form.swapped) { quick * place.pitch + slow } else { slow * place.pitch + quick };
        let x = A::cast_from(a[place.matrix * total as usize + e as usize]);
        largest = max(largest, magnitude_bits::<A>(x, form.double));
        w[at as usize] = x;
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

/// Reads what is left of working memory, with what has not been applied yet.
#[cube]
fn resume<I: Float, A: Float>(
    a: &[I],
    xy: &[A],
    u: &mut [A],
    v: &mut [A],
    w: &mut Shared<[A]>,
    lines: &mut Lines<A>,
    place: &Place,
) {
    let first = place.first as usize;
    let line = place.matrix * place.n as usize + first - 1;
    let pending = place.matrix * (place.m + place.n) as usize;
    let mut e = UNIT_POS;
    while e < place.rows * place.columns {
        let (i, j) = (e / place.columns, e % place.columns);
        let row = place.matrix * place.m as usize + first + i as usize;
        w[(i * place.pitch + j) as usize] = A::cast_from(a[row * place.across as usize + first + j as usize]);
        e += CUBE_DIM;
    }
    let mut i = UNIT_POS as usize;
    while i < place.rows as usize {
        lines.u[i] = u[line * place.down as usize + first + i];
        lines.x[i] = xy[pending + first + i];
        i += CUBE_DIM as usize;
    }
    let mut j = UNIT_POS as usize;
    while j < place.columns as usize {
        lines.v[j] = v[line * place.across as usize + first + j];
        lines.y[j] = xy[pending + (place.m + place.first) as usize + j];
        j += CUBE_DIM as usize;
    }
}

/// Reduces a cube's matrix from row and column `first` on; `xy` holds x and y of what is pending.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn rectangle<I: Float, A: Float>(
    a: &[I],
    xy: &[A],
    u: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    other: &mut [A],
    diagonal: &mut [A],
    off: &mut [A],
    scale: &mut [A],
    status: &mut [i32],
    batch: u32,
    m: u32,
    n: u32,
    first: u32,
    tall: u32,
    wide: u32,
    pitch: u32,
    down: u32,
    across: u32,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut w = Shared::<[A]>::new_slice(form.elements);
    let mut slots = Shared::<[u32]>::new_slice(form.planes);
    let mut lines = Lines::<A> {
        u: Shared::<[A]>::new_slice(comptime!(2 * form.tall)),
        x: Shared::<[A]>::new_slice(form.tall),
        y: Shared::<[A]>::new_slice(form.wide),
        v: Shared::<[A]>::new_slice(form.wide),
        scalars: Shared::<[A]>::new_slice(3usize),
    };
    let inside = CUBE_POS < batch as usize;
    let matrix = select(inside, CUBE_POS, 0usize);
    let place =
        Place { matrix, inside, m, n, first, rows: m - first, columns: n - first, tall, wide, pitch, down, across };
    let zero = A::from_int(0);
    let mut e = UNIT_POS;
    while e < tall * pitch {
        w[e as usize] = zero;
        e += CUBE_DIM;
    }
    let mut e = UNIT_POS as usize;
    while e < comptime!(2 * form.tall) {
        lines.u[e] = zero;
        if e < form.tall {
            lines.x[e] = zero;
        }
        e += CUBE_DIM as usize;
    }
    let mut e = UNIT_POS as usize;
    while e < form.wide {
        lines.y[e] = zero;
        lines.v[e] = zero;
        e += CUBE_DIM as usize;
    }
    sync_cube();
    if comptime!(form.fresh) {
        let (inverse, finite) = read::<I, A>(a, &mut w, &mut slots, &place, form);
        if UNIT_POS == 0 && inside {
            scale[matrix] = inverse;
            status[matrix] = select(finite, 0i32, -1i32);
        }
    } else {
        resume::<I, A>(a, xy, u, v, &mut w, &mut lines, &place);
    }
    sync_cube();
    for k in 0..place.columns {
        let old = (k % 2) * comptime!(form.tall as u32);
        let new = comptime!(form.tall as u32) - old;
        if UNIT_POS < PLANE_DIM {
            next_column::<A>(&w, &mut lines, u, tau, diagonal, &place, k, old, new, form);
        }
        sync_cube();
        pass::<A>(&mut w, &mut lines, &place, k, old, new, form);
        sync_cube();
        if UNIT_POS < PLANE_DIM {
            next_row::<A>(&w, &mut lines, v, other, off, &place, k, form);
        }
        sync_cube();
        multiply::<A>(&w, &mut lines, &place, k, new, form);
        sync_cube();
    }
}

/// A plane makes column `k` and its reflector.
#[cube]
fn next_column<A: Float>(
    w: &Shared<[A]>,
    lines: &mut Lines<A>,
    u: &mut [A],
    tau: &mut [A],
    diagonal: &mut [A],
    place: &Place,
    k: u32,
    old: u32,
    new: u32,
    #[comptime] form: Form,
) {
    let zero = A::from_int(0);
    let (y, v) = (lines.y[k as usize], lines.v[k as usize]);
    let head = w[(k * place.pitch + k) as usize] - lines.u[(old + k) as usize] * y - lines.x[k as usize] * v;
    let mut squares = zero;
    let mut i = UNIT_POS_PLANE;
    while i < place.tall {
        let c = w[(i * place.pitch + k) as usize] - lines.u[(old + i) as usize] * y - lines.x[i as usize] * v;
        lines.u[(new + i) as usize] = c;
        squares += select(i > k, c * c, zero);
        i += PLANE_DIM;
    }
    let (scalar, stretch, beta) = reflector::<A>(head, plane_sum(squares), form.double);
    let row = place.matrix * place.n as usize + (place.first + k) as usize;
    if UNIT_POS_PLANE == 0 {
        lines.scalars[0] = scalar;
        if place.inside {
            diagonal[row] = beta;
            tau[row] = scalar;
        }
    }
    let mut i = UNIT_POS_PLANE;
    while i < place.tall {
        let own = select(i > k, lines.u[(new + i) as usize] * stretch, select(i == k, A::from_int(1), zero));
        lines.u[(new + i) as usize] = own;
        if comptime!(form.vectors) && place.inside && i < place.rows {
            u[row * place.down as usize + (place.first + i) as usize] = own;
        }
        i += PLANE_DIM;
    }
}

/// All units subtract what is pending from the columns after `k`, and multiply them by the new reflector.
#[cube]
fn pass<A: Float>(
    w: &mut Shared<[A]>,
    lines: &mut Lines<A>,
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
    let factor = lines.scalars[0];
    for turn in 0..place.columns.div_ceil(teams) {
        let j = turn * teams + UNIT_POS / lanes;
        let mut sum = zero;
        if j > k && j < place.columns {
            let (y, v) = (lines.y[j as usize], lines.v[j as usize]);
            let mut i = k / comptime!(STEP * lanes) * comptime!(STEP * lanes) + lane;
            while i < place.tall {
                let mut held = Array::<A>::new(comptime!(STEP as usize));
                #[unroll]
                for s in 0..comptime!(STEP) {
                    let at = i + comptime!(s * lanes);
                    let c = w[(at * place.pitch + j) as usize];
                    let c = c - lines.u[(old + at) as usize] * y - lines.x[at as usize] * v;
                    held[s as usize] = c;
                    sum += c * lines.u[(new + at) as usize];
                }
                #[unroll]
                for s in 0..comptime!(STEP) {
                    w[((i + comptime!(s * lanes)) * place.pitch + j) as usize] = held[s as usize];
                }
                i += comptime!(STEP * lanes);
            }
        }
        sum = lane_sum::<A>(sum, lanes);
        if lane == 0 && j < place.columns {
            lines.y[j as usize] = factor * sum;
        }
    }
}

/// A plane makes row `k` and its reflector.
#[cube]
fn next_row<A: Float>(
    w: &Shared<[A]>,
    lines: &mut Lines<A>,
    v: &mut [A],
    other: &mut [A],
    off: &mut [A],
    place: &Place,
    k: u32,
    #[comptime] form: Form,
) {
    let zero = A::from_int(0);
    let line = k * place.pitch;
    let at = k + 1;
    let is_last = at >= place.columns;
    let mut head = zero;
    let mut y = zero;
    if !is_last {
        y = lines.y[at as usize];
        head = w[(line + at) as usize] - y;
    }
    let mut squares = zero;
    let mut products = zero;
    let mut j = UNIT_POS_PLANE;
    while j < place.columns {
        let r = select(j > at, w[(line + j) as usize] - lines.y[j as usize], zero);
        squares += r * r;
        products += r * lines.y[j as usize];
        j += PLANE_DIM;
    }
    let (scalar, stretch, beta) = reflector::<A>(head, plane_sum(squares), form.double);
    let product = y + stretch * plane_sum(products);
    let row = place.matrix * place.n as usize + (place.first + k) as usize;
    if UNIT_POS_PLANE == 0 {
        lines.scalars[1] = scalar;
        lines.scalars[2] = product;
        if place.inside {
            off[row] = beta;
            other[row] = scalar;
        }
    }
    let mut j = UNIT_POS_PLANE;
    while j < place.columns {
        let r = (w[(line + j) as usize] - lines.y[j as usize]) * stretch;
        let own = select(j > at, r, select(j == at, A::from_int(1), zero));
        lines.v[j as usize] = own;
        if comptime!(form.vectors) && place.inside {
            v[row * place.across as usize + (place.first + j) as usize] = own;
        }
        j += PLANE_DIM;
    }
}

/// All units multiply the rows after `k` by the new reflector.
#[cube]
fn multiply<A: Float>(w: &Shared<[A]>, lines: &mut Lines<A>, place: &Place, k: u32, new: u32, #[comptime] form: Form) {
    let lanes = comptime!(form.lanes);
    let zero = A::from_int(0);
    let teams = CUBE_DIM / lanes;
    let lane = UNIT_POS % lanes;
    let (factor, product) = (lines.scalars[1], lines.scalars[2]);
    for turn in 0..place.rows.div_ceil(teams) {
        let i = turn * teams + UNIT_POS / lanes;
        let mut sum = zero;
        if i > k && i < place.rows && factor != zero {
            let line = i * place.pitch;
            let mut j = (k + 1) / comptime!(STEP * lanes) * comptime!(STEP * lanes) + lane;
            while j < place.wide {
                #[unroll]
                for s in 0..comptime!(STEP) {
                    let at = j + comptime!(s * lanes);
                    sum += w[(line + at) as usize] * lines.v[at as usize];
                }
                j += comptime!(STEP * lanes);
            }
        }
        sum = lane_sum::<A>(sum, lanes);
        if lane == 0 && i < place.rows {
            lines.x[i as usize] = select(i > k, factor * (sum - product * lines.u[(new + i) as usize]), zero);
        }
    }
}
