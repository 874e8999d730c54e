//! Determinants from pivots on the GPU: a product whose power of two is kept apart, and its logarithm.

use cubecl::prelude::*;

/// Multiplies `state[0]`, whose power of 2⁴⁰ is kept apart in `state[1]`, so that only the result can overflow.
#[cube]
pub fn scaled<A: Float>(state: &mut Array<A>, factor: A) {
    let one = A::new(1.0);
    let mut value = factor;
    #[unroll]
    for turn in 0..5 {
        if comptime!(turn == 4) {
            value = value * state[0];
        }
        let large = value.abs() >= A::new(1.099_511_6e12);
        let small = value.abs() < A::new(9.094_947e-13) && value != A::new(0.0);
        value = value * select(large, A::new(9.094_947e-13), select(small, A::new(1.099_511_6e12), one));
        state[1] = state[1] + select(large, one, select(small, -one, A::new(0.0)));
    }
    state[0] = value;
}

/// −1, 0 or 1.
#[cube]
pub fn signum<A: Float>(x: A) -> A {
    select(x > A::new(0.0), A::new(1.0), select(x < A::new(0.0), A::new(-1.0), A::new(0.0)))
}

/// The logarithm of the magnitude of the product, if it is not 0. In f64, which shading languages have no logarithm of, by
/// the series of ln((1 + s)/(1 − s)).
#[cube]
pub fn logarithm<A: Float>(state: &Array<A>, #[comptime] double: bool) -> A {
    let zero = state[0] == A::new(0.0);
    let mut value = select(zero, A::new(1.0), state[0].abs());
    // 40·ln 2 in parts of 24 bits.
    let mut log = state[1] * A::new(27.725_887);
    if comptime!(double) {
        log += state[1] * (A::new(LN_SECOND) + A::new(LN_THIRD));
        let mut power = A::new(0.0);
        for _ in 0..41u32 {
            let (large, small) = (value > A::new(1.5), value < A::new(0.75));
            value = value * select(large, A::new(0.5), select(small, A::new(2.0), A::new(1.0)));
            power += select(large, A::new(1.0), select(small, A::new(-1.0), A::new(0.0)));
        }
        log += power * (A::new(27.725_887) + A::new(LN_SECOND) + A::new(LN_THIRD)) / A::new(40.0);
        let s = (value - A::new(1.0)) / (value + A::new(1.0));
        let square = s * s;
        let mut sum = A::new(0.0);
        #[unroll]
        for i in 0..16 {
            let divisor = comptime!((31 - 2 * i) as f32);
            sum = sum * square + A::new(1.0) / A::new(divisor);
        }
        log += A::new(2.0) * s * sum;
    } else {
        log += value.ln();
    }
    log
}

/// What 40·ln 2 exceeds its f32 by, and what that leaves.
const LN_SECOND: f32 = -7.61861685e-08;
const LN_THIRD: f32 = -3.51327328e-15;

/// The product itself.
#[cube]
pub fn unscaled<A: Float>(state: &Array<A>) -> A {
    let mut value = state[0];
    // Past 2¹⁶⁰⁰ every number has become infinite or zero.
    let up = state[1] > A::new(0.0);
    let step = select(up, A::new(1.099_511_6e12), A::new(9.094_947e-13));
    let turns = min(state[1].abs(), A::new(40.0));
    let mut turn = A::new(0.0);
    while turn < turns {
        value = value * step;
        turn += A::new(1.0);
    }
    value
}
