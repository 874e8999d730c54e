//! Bidiagonal form by two launches for each column, for matrices that no cube can hold: the column's reflector and the
//! product from the left, by stripes of columns; the row's reflector and the product from the right, by rows.
//!
//! The state between launches is that of [`super::rectangle`].

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::parts::{reflector, total};
use super::step::{ROWS, sum_of};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What the kernels' code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Vectors of a row that a unit takes, and elements of a vector.
    pub held: usize,
    pub width: usize,
    /// Rows that are taken together.
    pub rows: usize,
    /// Neighbouring units that share the row of a stripe.
    pub lanes: usize,
    /// Units, at most, and their planes.
    pub units: usize,
    pub planes: usize,
    pub double: bool,
}

/// Where a cube works: its matrix, column and row `k`, and where their parts begin. Reflectors are `down` and `across` elements
/// apart, rows `across`.
#[derive(CubeType, Clone, Copy)]
struct Place {
    inside: bool,
    m: u32,
    n: u32,
    k: u32,
    down: u32,
    across: u32,
    /// The place of column `k` among those of all matrices, and of the one before it.
    line: usize,
    before: usize,
    /// The first row, and the first elements of x and y.
    rows: usize,
    xs: usize,
    ys: usize,
    /// The first element of a row in the first vector past `k`.
    base: u32,
}

#[cube]
fn place(batch: usize, cubes: u32, m: u32, n: u32, k: u32, down: u32, across: u32, #[comptime] code: Code) -> Place {
    let inside = CUBE_POS / (cubes as usize) < batch;
    let matrix = select(inside, CUBE_POS / cubes as usize, 0usize);
    let line = matrix * n as usize + k as usize;
    let width = comptime!(code.width as u32);
    let xs = matrix * (m + n) as usize;
    Place {
        inside,
        m,
        n,
        k,
        down,
        across,
        line,
        before: line - min(k, 1u32) as usize,
        rows: matrix * m as usize,
        xs,
        ys: xs + m as usize,
        base: (k + 1) / width * width,
    }
}

/// Element `i` of column `k` with what was pending, where `y` and `v` are the factors of the column.
#[cube]
fn element<A: Float>(c: &[A], xy: &mut [A], u: &mut [A], place: &Place, i: u32, y: A, v: A) -> (A, A, A) {
    let mut value = c[place.rows + i as usize];
    let mut a = A::from_int(0);
    let mut b = A::from_int(0);
    if place.k > 0 {
        a = u[place.before * place.down as usize + i as usize];
        b = xy[place.xs + i as usize];
        value = value - a * y - b * v;
    }
    (value, a, b)
}

/// A unit's vector of the columns of a stripe: where it is, what is pending for it, and the factors of column `k`.
#[derive(CubeType, Clone, Copy)]
struct Stripe<A: Float, N: Size> {
    column: u32,
    used: bool,
    writes: bool,
    q: Vector<A, N>,
    r: Vector<A, N>,
    y: A,
    v: A,
    stretch: A,
}

/// Subtracts what is pending from a stripe, and multiplies it by the reflector.
#[cube]
fn pass<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    c: &[A],
    xy: &mut [A],
    u: &mut [A],
    place: &Place,
    stripe: &Stripe<A, N>,
    #[comptime] code: Code,
) -> Vector<A, N> {
    let lanes = comptime!(code.lanes as u32);
    let zero = A::from_int(0);
    let teams = CUBE_DIM / lanes;
    let lane = UNIT_POS % lanes;
    let mut sum = Vector::<A, N>::new(zero);
    let mut first = place.k + UNIT_POS / lanes;
    while first < place.m {
        let mut held = Array::<Vector<A, N>>::new(code.rows);
        let mut made = Array::<A>::new(code.rows);
        #[unroll]
        for t in 0..code.rows {
            let i = first + comptime!(t as u32) * teams;
            let mut value = Vector::<A, N>::new(zero);
            made[t] = zero;
            if i < place.m {
                let (own, a, b) = element::<A>(c, xy, u, place, i, stripe.y, stripe.v);
                if stripe.used {
                    let from = (place.rows + i as usize) * place.across as usize + stripe.column as usize;
                    value = w[from / code.width];
                }
                value = value - stripe.q * Vector::<A, N>::new(a) - stripe.r * Vector::<A, N>::new(b);
                made[t] = select(i > place.k, own * stripe.stretch, A::from_int(1));
            }
            held[t] = value;
        }
        #[unroll]
        for t in 0..code.rows {
            let i = first + comptime!(t as u32) * teams;
            sum += held[t] * Vector::<A, N>::new(made[t]);
            if stripe.used && place.inside && i < place.m {
                let from = (place.rows + i as usize) * place.across as usize + stripe.column as usize;
                w[from / code.width] = held[t];
            }
            if stripe.writes && lane == 0 && i < place.m {
                u[place.line * place.down as usize + i as usize] = made[t];
            }
        }
        first += comptime!(code.rows as u32) * teams;
    }
    sum
}

/// Column `k` of every matrix: `cubes` cubes for each, with a stripe of columns each. `c` holds the column, which lacks what is
/// pending.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn left<A: Float, N: Size>(
    w: &mut [Vector<A, N>],
    c: &[A],
    xy: &mut [A],
    u: &mut [A],
    v: &[A],
    tau: &mut [A],
    diagonal: &mut [A],
    batch: usize,
    m: u32,
    n: u32,
    k: u32,
    down: u32,
    across: u32,
    cubes: u32,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let mut slots = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut sums = Shared::<[Vector<A, N>]>::new_slice(code.units);
    let (width, lanes) = (comptime!(code.width as u32), comptime!(code.lanes as u32));
    let zero = A::from_int(0);
    let own = (CUBE_POS % cubes as usize) as u32;
    let place = place(batch, cubes, m, n, k, down, across, code);
    let writes = own == 0 && place.inside;
    let column = place.base + (own * lanes + UNIT_POS % lanes) * width;
    let mut stripe = Stripe::<A, N> {
        column,
        used: column < across,
        writes,
        q: Vector::<A, N>::new(zero),
        r: Vector::<A, N>::new(zero),
        y: zero,
        v: zero,
        stretch: zero,
    };
    if k > 0 {
        stripe.y = xy[place.ys + k as usize];
        stripe.v = v[place.before * across as usize + k as usize];
        #[unroll]
        for l in 0..code.width {
            let j = column + comptime!(l as u32);
            if j < n && j > k {
                stripe.q.insert(l, xy[place.ys + j as usize]);
                stripe.r.insert(l, v[place.before * across as usize + j as usize]);
            }
        }
    }
    // The column's reflector, by every cube for itself.
    let mut squares = zero;
    let mut i = k + 1 + UNIT_POS;
    while i < m {
        let (x, _, _) = element::<A>(c, xy, u, &place, i, stripe.y, stripe.v);
        squares += x * x;
        i += CUBE_DIM;
    }
    let (head, _, _) = element::<A>(c, xy, u, &place, k, stripe.y, stripe.v);
    let (scalar, stretch, beta) = reflector::<A>(head, total::<A>(squares, &mut slots), code.double);
    stripe.stretch = stretch;
    if writes && UNIT_POS == 0 {
        diagonal[place.line] = beta;
        tau[place.line] = scalar;
    }
    sums[UNIT_POS as usize] = pass::<A, N>(w, c, xy, u, &place, &stripe, code);
    let mut half = CUBE_DIM / 2;
    while half >= lanes {
        sync_cube();
        if UNIT_POS < half {
            let other = sums[(UNIT_POS + half) as usize];
            sums[UNIT_POS as usize] += other;
        }
        half /= 2;
    }
    if UNIT_POS < lanes && stripe.used && place.inside {
        let sum = sums[UNIT_POS as usize];
        #[unroll]
        for l in 0..code.width {
            let j = column + comptime!(l as u32);
            if j > k && j < n {
                xy[place.ys + j as usize] = scalar * sum.extract(l);
            }
        }
    }
}

/// Makes the reflector of row `k`, of which a unit holds some vectors; gives its τ and yᵀv.
#[cube]
fn next_row<A: Float, N: Size>(
    w: &[Vector<A, N>],
    xy: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    off: &mut [A],
    made: &mut Array<Vector<A, N>>,
    place: &Place,
    writes: bool,
    #[comptime] code: Code,
) -> (A, A) {
    let mut slots = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut more = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut pivots = Shared::<[A]>::new_slice(2usize);
    let zero = A::from_int(0);
    let (n, k) = (place.n, place.k);
    if UNIT_POS == 0 {
        pivots[0] = zero;
        pivots[1] = zero;
    }
    sync_cube();
    let mut squares = zero;
    let mut products = zero;
    #[unroll]
    for s in 0..code.held {
        let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
        let mut value = Vector::<A, N>::new(zero);
        if at < place.across {
            let given = w[((place.rows + k as usize) * place.across as usize + at as usize) / code.width];
            #[unroll]
            for l in 0..code.width {
                let j = at + comptime!(l as u32);
                if j > k && j < n {
                    let y = xy[place.ys + j as usize];
                    let r = given.extract(l) - y;
                    value.insert(l, r);
                    if j == k + 1 {
                        pivots[0] = r;
                        pivots[1] = y;
                    } else {
                        squares += r * r;
                        products += r * y;
                    }
                }
            }
        }
        made[s] = value;
    }
    let squares = total::<A>(squares, &mut slots);
    let products = total::<A>(products, &mut more);
    let (scalar, stretch, beta) = reflector::<A>(pivots[0], squares, code.double);
    if writes && UNIT_POS == 0 {
        off[place.line] = beta;
        tau[place.line] = scalar;
    }
    #[unroll]
    for s in 0..code.held {
        let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
        let mut value = made[s] * Vector::<A, N>::new(stretch);
        #[unroll]
        for l in 0..code.width {
            let j = at + comptime!(l as u32);
            if j == k + 1 && j < n {
                value.insert(l, A::from_int(1));
            }
            if writes && j < n {
                v[place.line * place.across as usize + j as usize] = value.extract(l);
            }
        }
        made[s] = value;
    }
    (scalar, pivots[1] + stretch * products)
}

/// Some rows of a cube, from row `first` on, multiplied by the reflector: a sum for each of them over a unit's part. Leaves
/// their elements of the next column in `c`.
#[cube]
fn multiply<A: Float, N: Size>(
    w: &[Vector<A, N>],
    c: &mut [A],
    made: &Array<Vector<A, N>>,
    sums: &mut Array<A>,
    place: &Place,
    first: u32,
    cubes: u32,
    #[comptime] code: Code,
) {
    let zero = A::from_int(0);
    let mut held = Array::<Vector<A, N>>::new(comptime!(code.rows * code.held));
    #[unroll]
    for t in 0..code.rows {
        let row = first + comptime!(t as u32) * cubes;
        #[unroll]
        for s in 0..code.held {
            let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
            let mut value = Vector::<A, N>::new(zero);
            if row < place.m && at < place.across {
                value = w[((place.rows + row as usize) * place.across as usize + at as usize) / code.width];
            }
            held[comptime!(t * code.held + s)] = value;
        }
    }
    #[unroll]
    for t in 0..code.rows {
        let row = first + comptime!(t as u32) * cubes;
        let mut sum = Vector::<A, N>::new(zero);
        #[unroll]
        for s in 0..code.held {
            let at = place.base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * comptime!(code.width as u32);
            let value = held[comptime!(t * code.held + s)];
            sum += value * made[s];
            #[unroll]
            for l in 0..code.width {
                if at + comptime!(l as u32) == place.k + 1 && row < place.m && place.inside {
                    c[place.rows + row as usize] = value.extract(l);
                }
            }
        }
        sums[t] = sum_of::<A, N>(sum);
    }
}

/// Row `k` of every matrix: `cubes` cubes for each. Leaves the next column in `c`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn right<A: Float, N: Size>(
    w: &[Vector<A, N>],
    c: &mut [A],
    xy: &mut [A],
    u: &[A],
    v: &mut [A],
    tau: &mut [A],
    off: &mut [A],
    batch: usize,
    m: u32,
    n: u32,
    k: u32,
    down: u32,
    across: u32,
    cubes: u32,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let mut partials = Shared::<[A]>::new_slice(comptime!(ROWS * (code.planes + 1)));
    let own = (CUBE_POS % cubes as usize) as u32;
    let place = place(batch, cubes, m, n, k, down, across, code);
    let mut made = Array::<Vector<A, N>>::new(code.held);
    let writes = own == 0 && place.inside;
    let (scalar, product) = next_row::<A, N>(w, xy, v, tau, off, &mut made, &place, writes, code);
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let mut slot = 0usize;
    let mut i = k + 1 + own;
    while i < m {
        let mut sums = Array::<A>::new(code.rows);
        multiply::<A, N>(w, c, &made, &mut sums, &place, i, cubes, code);
        #[unroll]
        for t in 0..code.rows {
            sums[t] = plane_sum(sums[t]);
        }
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for t in 0..code.rows {
                partials[(slot + t) * comptime!(code.planes + 1) + plane] = sums[t];
            }
        }
        slot += code.rows;
        i += comptime!(code.rows as u32) * cubes;
    }
    sync_cube();
    let mut at = UNIT_POS;
    while at < comptime!(ROWS as u32) {
        let row = k + 1 + own + at * cubes;
        if row < m && place.inside {
            let mut sum = A::from_int(0);
            for plane in 0..CUBE_DIM.div_ceil(PLANE_DIM) as usize {
                sum += partials[at as usize * comptime!(code.planes + 1) + plane];
            }
            let own = u[place.line * down as usize + row as usize];
            xy[place.xs + row as usize] = scalar * (sum - product * own);
        }
        at += CUBE_DIM;
    }
}

/// The first columns of matrices.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn first_columns<A: Float>(w: &[A], c: &mut [A], total: usize, stride: usize, #[define(A)] _elem: ElemType) {
    let i = ABSOLUTE_POS;
    if i < total {
        c[i] = w[i * stride];
    }
}
