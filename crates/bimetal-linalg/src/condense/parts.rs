//! Pieces of the reductions to condensed form: sums over a cube, and the reflector `H = 1 − τ·v·vᵀ` with `H·x = β·e₁`.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::prelude::*;

/// The sum of `value` over the cube's units, in every unit, which must all call it. `slots` has a place for each plane, and is
/// not written again before another barrier.
#[cube]
pub fn total<A: Float>(value: A, slots: &mut Shared<[A]>) -> A {
    let partial = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        slots[(UNIT_POS / PLANE_DIM) as usize] = partial;
    }
    sync_cube();
    let mut sum = A::from_int(0);
    let mut at = UNIT_POS_PLANE;
    while at < CUBE_DIM.div_ceil(PLANE_DIM) {
        sum += slots[at as usize];
        at += PLANE_DIM;
    }
    plane_sum(sum)
}

/// The sum of `value` over `lanes` neighbouring units.
#[cube]
pub fn lane_sum<A: Float>(value: A, #[comptime] lanes: u32) -> A {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}

/// The square of a norm below which a column counts as zero: elements of the matrix are of order 1.
#[cube]
fn least_norm<A: Float>(#[comptime] double: bool) -> A {
    if comptime!(double) {
        // 2^-900
        A::reinterpret(123u64 << 52u64)
    } else {
        A::new(1e-24f32)
    }
}

/// The reflector of a column with first element `head` and `squares`, the sum of the squares of the others: τ, the factor
/// that makes the others those of `v`, whose first is 1, and β.
#[cube]
pub fn reflector<A: Float>(head: A, squares: A, #[comptime] double: bool) -> (A, A, A) {
    let zero = A::from_int(0);
    let none = squares == zero || squares + head * head < least_norm::<A>(double);
    let norm = (head * head + squares).sqrt();
    let beta = select(none, head, select(head > zero, zero - norm, norm));
    let safe = select(none, A::from_int(1), beta);
    let tau = select(none, zero, (safe - head) / safe);
    let factor = select(none, zero, A::from_int(1) / select(none, A::from_int(1), head - safe));
    (tau, factor, beta)
}
