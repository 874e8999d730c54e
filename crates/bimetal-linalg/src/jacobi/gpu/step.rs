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

/// 1 if `x` is NaN or infinite, else 0; `wide` says that `F` is f64.
#[cube]
pub fn not_finite<F: Float>(x: F, #[comptime] wide: bool) -> F {
    let zero = F::from_int(0);
    let one = F::from_int(1);
    if comptime!(wide) {
        select(x - x == zero, zero, one)
    } else {
        let bits = u32::reinterpret(f32::cast_from(x)) & 0x7f80_0000u32;
        select(bits == 0x7f80_0000u32, one, zero)
    }
}

/// The power of two that takes `largest` to between ½ and 1, as far as it and its inverse are normal f32; 1 for zero.
#[cube]
pub fn scale_of<F: Float>(largest: F) -> F {
    let mut scale = F::from_int(1);
    let half = F::new(0.5f32);
    let one = F::from_int(1);
    let step = F::from_int(65536);
    if largest > F::from_int(0) {
        for _ in 0..7 {
            if largest * scale * step < one {
                scale *= step;
            }
        }
        for _ in 0..14 {
            if largest * scale < half {
                scale *= F::from_int(2);
            }
        }
        for _ in 0..7 {
            if largest * scale > step {
                scale /= step;
            }
        }
        for _ in 0..14 {
            if largest * scale >= one {
                scale *= half;
            }
        }
    }
    scale
}

/// The columns of a matrix that a cube rotates: their length, how much of it enters the scalar products, how small a cosine
/// counts as zero, and how small a squared length.
#[derive(CubeType, Clone, Copy)]
pub struct Columns<F: Float> {
    pub rows: u32,
    pub height: u32,
    pub tolerance: F,
    pub negligible: F,
}

/// The rotation that makes columns of squared lengths `aa` and `bb` with product `ab` orthogonal: its sine, and τ = s / (1 + c).
#[cube]
pub fn rotation<F: Float>(aa: F, bb: F, ab: F) -> (F, F) {
    let zero = F::from_int(0);
    let one = F::from_int(1);
    let zeta = (bb - aa) / (ab + ab);
    let size = zeta.abs();
    let far = size > F::new(1e8f32);
    let near = select(far, one, size);
    let tangent = select(far, F::new(0.5f32) / size, one / (near + (one + near * near).sqrt()));
    let t = select(zeta < zero, zero - tangent, tangent);
    let c = one / (one + t * t).sqrt();
    let s = t * c;
    (s, s / (one + c))
}

/// Makes two columns of `w` orthogonal by a rotation; says 1 if one was needed, 0 if not. Every unit of the cube calls it;
/// the team that has no pair passes `active` false. A team is one plane, or `team` planes if `joined`.
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
    #[comptime] joined: bool,
) -> u32 {
    let plane = UNIT_POS / PLANE_DIM;
    let member = if comptime!(joined) { plane % team } else { 0u32.runtime() };
    let lanes = if comptime!(joined) { PLANE_DIM * team } else { PLANE_DIM };
    let lane = member * PLANE_DIM + UNIT_POS_PLANE;
    let zero = F::from_int(0);
    let mut aa = zero;
    let mut bb = zero;
    let mut ab = zero;
    let mut i = lane;
    let rows = select(active, columns.rows, 0u32);
    while i < rows {
        let x = w[p + i as usize];
        let y = w[q + i as usize];
        aa += x * x;
        bb += y * y;
        ab += x * y;
        i += lanes;
    }
    aa = plane_sum(aa);
    bb = plane_sum(bb);
    ab = plane_sum(ab);
    if comptime!(joined) {
        if UNIT_POS_PLANE == 0 {
            slots[(plane * 3) as usize] = aa;
            slots[(plane * 3 + 1) as usize] = bb;
            slots[(plane * 3 + 2) as usize] = ab;
        }
        sync_cube();
        aa = zero;
        bb = zero;
        ab = zero;
        for t in 0..team {
            let slot = ((plane - member + t) * 3) as usize;
            aa += slots[slot];
            bb += slots[slot + 1];
            ab += slots[slot + 2];
        }
        sync_cube();
    }
    let mut rotated = 0u32;
    let visible = ab.abs() > columns.tolerance * aa.sqrt() * bb.sqrt();
    if active && visible && min(aa, bb) > columns.negligible {
        rotated = 1u32;
        let (s, tau) = rotation::<F>(aa, bb, ab);
        let mut i = lane;
        while i < columns.height {
            let x = w[p + i as usize];
            let y = w[q + i as usize];
            w[p + i as usize] = x - s * (y + tau * x);
            w[q + i as usize] = y + s * (x - tau * y);
            i += lanes;
        }
    }
    rotated
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
