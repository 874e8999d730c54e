//! Pieces of the Jacobi kernels: one rotation by a team of units, reductions over a cube, power-of-two scales.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::prelude::*;

/// The largest `value` over the cube's units, in every unit; `slots` holds one for each plane.
#[cube]
pub fn cube_largest<F: Float>(value: F, slots: &mut Shared<[F]>) -> F {
    let partial = plane_max(value);
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        slots[(UNIT_POS / PLANE_DIM) as usize] = partial;
    }
    sync_cube();
    let mut largest = slots[0];
    for i in 1..CUBE_DIM.div_ceil(PLANE_DIM) {
        largest = max(largest, slots[i as usize]);
    }
    largest
}

/// The power of two that takes `largest` to between ½ and 1, as far as it and its inverse are normal; 1 for zero.
#[cube]
pub fn scale_of<F: Float>(largest: F, #[comptime] wide: bool) -> F {
    let mut scale = F::from_int(1);
    let half = F::new(0.5f32);
    let one = F::from_int(1);
    let step = F::from_int(65536);
    let steps = comptime!(if wide { 62u32 } else { 7u32 });
    if largest > F::from_int(0) {
        for _ in 0..steps {
            if largest * scale * step < one {
                scale *= step;
            }
            if largest * scale > step {
                scale /= step;
            }
        }
        for _ in 0..14u32 {
            if largest * scale < half {
                scale *= F::from_int(2);
            }
        }
        for _ in 0..17u32 {
            if largest * scale >= one {
                scale *= half;
            }
        }
    }
    scale
}

/// How a pair of columns is divided among units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lanes {
    /// Neighbouring units of one plane that share a pair.
    pub lanes: u32,
    /// Elements of a column that each of them keeps in registers between the scalar product and the rotation: all that enter
    /// the product, which end in zeros. 0 for a loop over columns that are too long.
    pub kept: u32,
    /// Elements after those, that are rotated only.
    pub tail: u32,
    /// A team of whole planes shares a pair.
    pub joined: bool,
}

/// The columns that a cube rotates: how much of them enters the scalar products and how long they are (both where no elements
/// are kept in registers), how small a cosine counts as zero, and how small a squared length.
#[derive(CubeType, Clone, Copy)]
pub struct Columns<F: Float> {
    pub rows: u32,
    pub height: u32,
    pub tolerance: F,
    pub negligible: F,
}

/// The rotation that makes columns of squared lengths `aa` and `bb` with product `ab` orthogonal: its sine, and τ, the tangent of
/// half its angle; zeros if the cosine of the columns is below `tolerance`.
///
/// The angle need not be exact, so that it is made of fast inverse roots; the sine must be, given τ.
#[cube]
pub fn rotation<F: Float>(aa: F, bb: F, ab: F, tolerance: F, negligible: F) -> (F, F) {
    let zero = F::from_int(0);
    let one = F::from_int(1);
    let floor = F::new(1e-37f32);
    let unit = max(aa, floor).inverse_sqrt() * max(bb, floor).inverse_sqrt();
    let cosine = ab * unit;
    let needed = cosine.abs() > tolerance && min(aa, bb) > negligible;
    let twice = select(needed, cosine + cosine, one);
    let gap = (bb - aa) * unit;
    let squares = gap * gap + twice * twice;
    let sum = gap.abs() + squares * squares.inverse_sqrt();
    let inverse = sum.inverse_sqrt();
    let t = select(gap < zero, zero - twice, twice) * inverse * inverse;
    // t / (1 + √(1 + t²)) to 10⁻⁴, exact in the limit; then 1 / (1 + τ²) by two steps of Newton's method.
    let u = t * t;
    let half = F::new(0.5f32)
        + u * (F::new(-0.125f32)
            + u * (F::new(0.0608691f32) + u * (F::new(-0.02985945f32) + u * F::new(0.00823455f32))));
    let tau = select(needed, t * half, zero);
    let v = tau * tau;
    let two = F::from_int(2);
    let mut inverse = F::new(0.9998089f32) + v * (F::new(-0.98617542f32) + v * F::new(0.78539016f32));
    inverse = inverse * (two - inverse * (one + v));
    inverse = inverse * (two - inverse * (one + v));
    ((tau + tau) * inverse, tau)
}

/// The sum of `value` over the units of a team, in each of them.
#[cube]
fn team_sum<F: Float>(value: F, #[comptime] lanes: u32) -> F {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}

/// Adds three sums of the planes of a team. Every unit of the cube calls it.
#[cube]
fn joined_sums<F: Float>(slots: &mut Shared<[F]>, sums: (F, F, F), plane: u32, member: u32, team: u32) -> (F, F, F) {
    if UNIT_POS_PLANE == 0 {
        slots[(plane * 3) as usize] = sums.0;
        slots[(plane * 3 + 1) as usize] = sums.1;
        slots[(plane * 3 + 2) as usize] = sums.2;
    }
    sync_cube();
    let mut aa = F::from_int(0);
    let mut bb = F::from_int(0);
    let mut ab = F::from_int(0);
    for t in 0..team {
        let slot = ((plane - member + t) * 3) as usize;
        aa += slots[slot];
        bb += slots[slot + 1];
        ab += slots[slot + 2];
    }
    sync_cube();
    (aa, bb, ab)
}

/// Makes two columns of `w` orthogonal by a rotation; says 1 if one was needed, 0 if not. Every unit of the cube calls it;
/// units without a pair pass `active` false.
///
/// The rotation is written as a correction, whose rounding errors do not add up to a change of length.
#[cube]
pub fn rotate<F: Float>(
    w: &mut Shared<[F]>,
    slots: &mut Shared<[F]>,
    columns: &Columns<F>,
    p: usize,
    q: usize,
    active: bool,
    team: u32,
    #[comptime] division: Lanes,
) -> u32 {
    let lanes = comptime!(division.lanes);
    let plane = UNIT_POS / PLANE_DIM;
    let member = if comptime!(division.joined) { plane % team } else { 0u32.runtime() };
    let step = if comptime!(division.joined) { lanes * team } else { lanes.runtime() };
    let lane = member * lanes + UNIT_POS % lanes;
    let mut aa = F::from_int(0);
    let mut bb = F::from_int(0);
    let mut ab = F::from_int(0);
    let mut xs = Array::<F>::new(comptime!(division.kept.max(1) as usize));
    let mut ys = Array::<F>::new(comptime!(division.kept.max(1) as usize));
    if comptime!(division.kept > 0) {
        #[unroll]
        for k in 0..comptime!(division.kept as usize) {
            let i = (lane + comptime!(k as u32) * step) as usize;
            xs[k] = w[p + i];
            ys[k] = w[q + i];
            aa += xs[k] * xs[k];
            bb += ys[k] * ys[k];
            ab += xs[k] * ys[k];
        }
    } else {
        let mut i = lane;
        while i < columns.rows {
            let x = w[p + i as usize];
            let y = w[q + i as usize];
            aa += x * x;
            bb += y * y;
            ab += x * y;
            i += step;
        }
    }
    aa = team_sum::<F>(aa, lanes);
    bb = team_sum::<F>(bb, lanes);
    ab = team_sum::<F>(ab, lanes);
    if comptime!(division.joined) {
        let (a, b, c) = joined_sums::<F>(slots, (aa, bb, ab), plane, member, team);
        aa = a;
        bb = b;
        ab = c;
    }
    let (s, tau) = rotation::<F>(aa, bb, ab, columns.tolerance, columns.negligible);
    let mut rotated = 0u32;
    if active && tau != F::from_int(0) {
        rotated = 1u32;
        if comptime!(division.kept > 0) {
            #[unroll]
            for k in 0..comptime!(division.kept as usize) {
                let i = (lane + comptime!(k as u32) * step) as usize;
                w[p + i] = xs[k] - s * (ys[k] + tau * xs[k]);
                w[q + i] = ys[k] + s * (xs[k] - tau * ys[k]);
            }
            #[unroll]
            for k in 0..comptime!(division.tail as usize) {
                let i = (lane + comptime!(division.kept + k as u32) * step) as usize;
                let x = w[p + i];
                let y = w[q + i];
                w[p + i] = x - s * (y + tau * x);
                w[q + i] = y + s * (x - tau * y);
            }
        } else {
            let mut i = lane;
            while i < columns.height {
                let x = w[p + i as usize];
                let y = w[q + i as usize];
                w[p + i as usize] = x - s * (y + tau * x);
                w[q + i as usize] = y + s * (x - tau * y);
                i += step;
            }
        }
    }
    rotated
}

/// How many teams a cube has, and to which a unit belongs.
#[cube]
pub fn teams(team: u32, #[comptime] division: Lanes) -> (u32, u32) {
    if comptime!(division.joined) {
        (CUBE_DIM / PLANE_DIM / team, UNIT_POS / PLANE_DIM / team)
    } else {
        (CUBE_DIM / comptime!(division.lanes), UNIT_POS / comptime!(division.lanes))
    }
}

/// The two columns that meet as pair `k` of round `round` of a tournament among `circle + 1` columns: in `circle` rounds
/// everyone meets everyone else.
#[cube]
pub fn opponents(k: u32, round: u32, circle: u32) -> (u32, u32) {
    let p = round + k;
    let q = round + circle - min(k, circle);
    let p = select(p >= circle, p - min(p, circle), p);
    let q = select(q >= circle, q - min(q, circle), q);
    (p, select(k == 0, circle, q))
}

/// The squared length of the first `rows` elements of a column, in every unit of the plane that calls it.
#[cube]
pub fn squared_length<F: Float>(w: &Shared<[F]>, p: usize, rows: u32) -> F {
    let mut sum = F::from_int(0);
    let mut i = UNIT_POS_PLANE;
    while i < rows {
        let x = w[p + i as usize];
        sum += x * x;
        i += PLANE_DIM;
    }
    plane_sum(sum)
}

/// Elements that a unit copies at a time, so that the memory's latency is paid once for all of them.
const BURST: usize = 8;

/// Copies `count` elements from `from` on to a place in shared memory.
#[cube]
pub fn load<F: Float>(source: &mut [F], from: usize, tile: &mut Shared<[F]>, to: usize, count: u32) {
    let mut e = UNIT_POS;
    while e + comptime!(BURST as u32 - 1) * CUBE_DIM < count {
        let mut burst = Array::<F>::new(BURST);
        #[unroll]
        for k in 0..BURST {
            burst[k] = source[from + (e + comptime!(k as u32) * CUBE_DIM) as usize];
        }
        #[unroll]
        for k in 0..BURST {
            tile[to + (e + comptime!(k as u32) * CUBE_DIM) as usize] = burst[k];
        }
        e += comptime!(BURST as u32) * CUBE_DIM;
    }
    while e < count {
        tile[to + e as usize] = source[from + e as usize];
        e += CUBE_DIM;
    }
}

/// The reverse of [`load()`].
#[cube]
pub fn store<F: Float>(tile: &Shared<[F]>, from: usize, target: &mut [F], to: usize, count: u32) {
    let mut e = UNIT_POS;
    while e < count {
        target[to + e as usize] = tile[from + e as usize];
        e += CUBE_DIM;
    }
}
