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
    let width = comptime!(code.width as u32);
    let lanes = comptime!(code.lanes as u32);
    let zero = A::from_int(0);
    let own = (CUBE_POS % cubes as usize) as u32;
    let inside = CUBE_POS / (cubes as usize) < batch;
    let matrix = select(inside, CUBE_POS / cubes as usize, 0usize);
    let line = matrix * n as usize + k as usize;
    let before = line - min(k, 1u32) as usize;
    let some = k > 0;
    let rows = matrix * m as usize;
    let xs = matrix * (m + n) as usize;
    let ys = xs + m as usize;
    let olds = before * down as usize;
    let mut y = zero;
    let mut x = zero;
    if some {
        y = xy[ys + k as usize];
        x = v[before * across as usize + k as usize];
    }
    // The column's reflector, by every cube for itself.
    let mut squares = zero;
    let mut i = k + UNIT_POS;
    while i < m {
        let mut element = c[rows + i as usize];
        if some {
            element = element - u[olds + i as usize] * y - xy[xs + i as usize] * x;
        }
        squares += select(i > k, element * element, zero);
        i += CUBE_DIM;
    }
    let mut head = c[rows + k as usize];
    if some {
        head = head - u[olds + k as usize] * y - xy[xs + k as usize] * x;
    }
    let (scalar, stretch, beta) = reflector::<A>(head, total::<A>(squares, &mut slots), code.double);
    let writes = own == 0 && inside;
    if writes && UNIT_POS == 0 {
        diagonal[line] = beta;
        tau[line] = scalar;
    }
    // The stripe: this unit's vector of columns, and of every so many rows one.
    let base = (k + 1) / width * width;
    let column = base + (own * lanes + UNIT_POS % lanes) * width;
    let used = column < across;
    let mut q = Vector::<A, N>::new(zero);
    let mut r = Vector::<A, N>::new(zero);
    if some && used {
        #[unroll]
        for l in 0..code.width {
            let j = column + comptime!(l as u32);
            if j < n && j > k {
                q.insert(l, xy[ys + j as usize]);
                r.insert(l, v[before * across as usize + j as usize]);
            }
        }
    }
    let mut sum = Vector::<A, N>::new(zero);
    let teams = CUBE_DIM / lanes;
    let lane = UNIT_POS % lanes;
    let mut first = k + UNIT_POS / lanes;
    while first < m {
        let mut held = Array::<Vector<A, N>>::new(code.rows);
        let mut made = Array::<A>::new(code.rows);
        #[unroll]
        for t in 0..code.rows {
            let i = first + comptime!(t as u32) * teams;
            let mut value = Vector::<A, N>::new(zero);
            made[t] = zero;
            if i < m {
                let mut element = c[rows + i as usize];
                if used {
                    value = w[((rows + i as usize) * across as usize + column as usize) / code.width];
                }
                if some {
                    let a = u[olds + i as usize];
                    let b = xy[xs + i as usize];
                    element = element - a * y - b * x;
                    value = value - q * Vector::<A, N>::new(a) - r * Vector::<A, N>::new(b);
                }
                made[t] = select(i > k, element * stretch, A::from_int(1));
            }
            held[t] = value;
        }
        #[unroll]
        for t in 0..code.rows {
            let i = first + comptime!(t as u32) * teams;
            sum += held[t] * Vector::<A, N>::new(made[t]);
            if used && inside && i < m {
                w[((rows + i as usize) * across as usize + column as usize) / code.width] = held[t];
            }
            if writes && lane == 0 && i < m {
                u[line * down as usize + i as usize] = made[t];
            }
        }
        first += comptime!(code.rows as u32) * teams;
    }
    sums[UNIT_POS as usize] = sum;
    let mut half = CUBE_DIM / 2;
    while half >= lanes {
        sync_cube();
        if UNIT_POS < half {
            let other = sums[(UNIT_POS + half) as usize];
            sums[UNIT_POS as usize] += other;
        }
        half /= 2;
    }
    if UNIT_POS < lanes && used && inside {
        let sum = sums[UNIT_POS as usize];
        #[unroll]
        for l in 0..code.width {
            let j = column + comptime!(l as u32);
            if j > k && j < n {
                xy[ys + j as usize] = scalar * sum.extract(l);
            }
        }
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
    let mut slots = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut more = Shared::<[A]>::new_slice(comptime!(2 * code.planes));
    let mut pivots = Shared::<[A]>::new_slice(2usize);
    let mut partials = Shared::<[A]>::new_slice(comptime!(ROWS * (code.planes + 1)));
    let width = comptime!(code.width as u32);
    let zero = A::from_int(0);
    let own = (CUBE_POS % cubes as usize) as u32;
    let inside = CUBE_POS / (cubes as usize) < batch;
    let matrix = select(inside, CUBE_POS / cubes as usize, 0usize);
    let line = matrix * n as usize + k as usize;
    let rows = matrix * m as usize;
    let xs = matrix * (m + n) as usize;
    let ys = xs + m as usize;
    let base = (k + 1) / width * width;
    let writes = own == 0 && inside;
    if UNIT_POS == 0 {
        pivots[0] = zero;
        pivots[1] = zero;
    }
    sync_cube();
    let mut made = Array::<Vector<A, N>>::new(code.held);
    let mut squares = zero;
    let mut products = zero;
    #[unroll]
    for s in 0..code.held {
        let at = base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * width;
        let mut value = Vector::<A, N>::new(zero);
        if at < across {
            let given = w[((rows + k as usize) * across as usize + at as usize) / code.width];
            #[unroll]
            for l in 0..code.width {
                let j = at + comptime!(l as u32);
                if j > k && j < n {
                    let y = xy[ys + j as usize];
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
    let product = pivots[1] + stretch * products;
    if writes && UNIT_POS == 0 {
        off[line] = beta;
        tau[line] = scalar;
    }
    #[unroll]
    for s in 0..code.held {
        let at = base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * width;
        let mut value = made[s] * Vector::<A, N>::new(stretch);
        #[unroll]
        for l in 0..code.width {
            let j = at + comptime!(l as u32);
            if j == k + 1 && j < n {
                value.insert(l, A::from_int(1));
            }
            if writes && j < n {
                v[line * across as usize + j as usize] = value.extract(l);
            }
        }
        made[s] = value;
    }
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let mut slot = 0usize;
    let mut i = k + 1 + own;
    while i < m {
        let mut held = Array::<Vector<A, N>>::new(comptime!(code.rows * code.held));
        #[unroll]
        for t in 0..code.rows {
            let row = i + comptime!(t as u32) * cubes;
            #[unroll]
            for s in 0..code.held {
                let at = base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * width;
                let mut value = Vector::<A, N>::new(zero);
                if row < m && at < across {
                    value = w[((rows + row as usize) * across as usize + at as usize) / code.width];
                }
                held[comptime!(t * code.held + s)] = value;
            }
        }
        #[unroll]
        for t in 0..code.rows {
            let row = i + comptime!(t as u32) * cubes;
            let mut sums = Vector::<A, N>::new(zero);
            #[unroll]
            for s in 0..code.held {
                let at = base + (UNIT_POS + comptime!(s as u32) * CUBE_DIM) * width;
                let value = held[comptime!(t * code.held + s)];
                sums += value * made[s];
                #[unroll]
                for l in 0..code.width {
                    if at + comptime!(l as u32) == k + 1 && row < m && inside {
                        c[rows + row as usize] = value.extract(l);
                    }
                }
            }
            let partial = plane_sum(sum_of::<A, N>(sums));
            if UNIT_POS_PLANE == 0 {
                partials[(slot + t) * comptime!(code.planes + 1) + plane] = partial;
            }
        }
        slot += code.rows;
        i += comptime!(code.rows as u32) * cubes;
    }
    sync_cube();
    let mut at = UNIT_POS;
    while at < comptime!(ROWS as u32) {
        let row = k + 1 + own + at * cubes;
        if row < m && inside {
            let mut sum = zero;
            for plane in 0..CUBE_DIM.div_ceil(PLANE_DIM) as usize {
                sum += partials[at as usize * comptime!(code.planes + 1) + plane];
            }
            xy[xs + row as usize] = scalar * (sum - product * u[line * down as usize + row as usize]);
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
