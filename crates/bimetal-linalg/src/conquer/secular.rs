//! The roots of the secular function of a merge, by interpolation between its poles within a bracket (LAPACK's `laed4` and
//! `lasd4`), and the weights for which they are exact.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::steps::{
    COUNTS, EXACT, KEPT, Merge, NEAREST, POLES, RHOS, SHIFTS, distance, epsilon, team_product, team_sum, unsquared,
};
use cubecl::prelude::*;

/// The sums of the secular function over the poles up to `split` and past it, and their derivatives, at `shift` from the
/// pole `origin`.
#[cube]
fn sums<F: Float>(
    numbers: &mut [F],
    merge: &Merge,
    count: usize,
    split: usize,
    origin: F,
    shift: F,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
) -> (F, F, F, F) {
    let poles = comptime!(POLES) * merge.size + merge.first;
    let weights = comptime!(KEPT) * merge.size + merge.first;
    let mut below = F::new(0.0);
    let mut below_slope = F::new(0.0);
    let mut above = F::new(0.0);
    let mut above_slope = F::new(0.0);
    let mut j = lane as usize;
    while j < count {
        let weight = numbers[weights + j];
        let ratio = weight / distance::<F>(numbers[poles + j], origin, shift, squared);
        let term = weight * ratio;
        let slope = ratio * ratio;
        let lower = j <= split;
        below += select(lower, term, F::new(0.0));
        below_slope += select(lower, slope, F::new(0.0));
        above += select(lower, F::new(0.0), term);
        above_slope += select(lower, F::new(0.0), slope);
        j += comptime!(lanes as usize);
    }
    let below = team_sum::<F>(below, lanes);
    let below_slope = team_sum::<F>(below_slope, lanes);
    let above = team_sum::<F>(above, lanes);
    let above_slope = team_sum::<F>(above_slope, lanes);
    (below, below_slope, above, above_slope)
}

/// A root of c·x² − a·x + b, which is chosen so that nothing cancels: the one that is `(a − √d) / 2c` or `(a + √d) / 2c`.
#[cube]
fn quadratic<F: Float>(a: F, b: F, c: F, plus: bool) -> F {
    let zero = F::new(0.0);
    let two = F::new(2.0);
    let discriminant = (a * a - F::new(4.0) * b * c).abs().sqrt();
    let signed = select(plus, discriminant, zero - discriminant);
    // With the sign of `a` the numerator is a sum.
    let direct = (a > zero && plus) || (a <= zero && !plus);
    let sum = a + signed;
    let difference = a - signed;
    let numerator = select(direct, sum, two * b);
    let denominator = select(direct, two * c, difference);
    numerator / select(denominator == zero, F::new(1e-37), denominator)
}

/// The step to the root of a function with two poles at these distances, which has the value and, with the slopes of both sides
/// together, the slope of the secular function; `both` gives each pole the slope of its side, otherwise the nearer one
/// has its own weight.
#[cube]
fn interpolated<F: Float>(
    value: F,
    slopes: (F, F),
    deltas: (F, F),
    weights: (F, F),
    apart: F,
    from_low: bool,
    both: bool,
    last: bool,
) -> F {
    let (below_slope, above_slope) = (slopes.0, slopes.1);
    let (low_delta, high_delta) = (deltas.0, deltas.1);
    let (low_weight, high_weight) = (weights.0, weights.1);
    let slope = below_slope + above_slope;
    let low_ratio = low_weight / (low_delta * low_delta);
    let high_ratio = high_weight / (high_delta * high_delta);
    let c = select(
        both,
        value - low_delta * below_slope - high_delta * above_slope,
        select(
            from_low,
            value - high_delta * slope + apart * low_ratio,
            value - low_delta * slope - apart * high_ratio,
        ),
    );
    let a = (low_delta + high_delta) * value - low_delta * high_delta * slope;
    let b = low_delta * high_delta * value;
    quadratic::<F>(a, b, select(last, c.abs(), c), last)
}

/// The root of the secular function 1/ρ + Σ w² / (pole − x) past pole `index` of the merge, as its distance from the nearest
/// pole; for singular values both are squared. All units call it; the `lanes` units of a root give the same `index`, and
/// those without a root are not `active`.
#[cube]
pub fn root<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    index: usize,
    active: bool,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
    #[comptime] double: bool,
) {
    let zero = F::new(0.0);
    let half = F::new(0.5);
    let eps = epsilon::<F>(double);
    let poles = comptime!(POLES) * merge.size + merge.first;
    let weights = comptime!(KEPT) * merge.size + merge.first;
    let found = select(active, indices[comptime!(COUNTS) * merge.size + merge.first] as usize, 0usize);
    let rho = numbers[comptime!(RHOS) * merge.size + merge.first];
    let active = active && index < found;
    let index = select(active, index, 0usize);
    let last = index + 1 >= found;
    // The two poles that the interpolation has: those around the root, or the last two.
    let split = select(last, max(index, 1usize) - 1, index);
    let other = min(split + 1, max(found, 1usize) - 1);
    let low_pole = numbers[poles + split];
    let high_pole = numbers[poles + other];
    let low_weight = numbers[weights + split] * numbers[weights + split];
    let high_weight = numbers[weights + other] * numbers[weights + other];
    let apart = distance::<F>(high_pole, low_pole, zero, squared);
    let gap = select(last, unsquared::<F>(high_pole, rho, squared), high_pole - low_pole);
    let inverse = F::new(1.0) / select(rho > zero, rho, F::new(1.0));
    // The middle tells which pole is nearer.
    let start = select(last, high_pole, low_pole);
    let (below, _, above, _) = sums::<F>(numbers, merge, found, split, start, gap * half, lane, lanes, squared);
    let middle = inverse + below + above;
    let from_low = !last && middle > zero;
    let origin = select(from_low, low_pole, high_pole);
    let rest = middle
        - low_weight / distance::<F>(low_pole, start, gap * half, squared)
        - high_weight / distance::<F>(high_pole, start, gap * half, squared);
    let up = select(last, middle <= zero, from_low);
    let mut low = select(last, select(up, gap * half, zero), select(from_low, zero, zero - gap * half));
    let mut high = select(last, select(up, gap * F::new(1.00001), gap * half), select(from_low, gap * half, zero));
    let a = select(from_low, rest * apart, zero - rest * apart) + low_weight + high_weight;
    let b = select(from_low, low_weight * apart, zero - high_weight * apart);
    let guess = unsquared::<F>(origin, quadratic::<F>(a, b, rest, last), squared);
    let mut shift = select(guess > low && guess < high, guess, low + (high - low) * half);
    let single = found == 1;
    shift = select(single, unsquared::<F>(low_pole, rho * low_weight, squared), shift);
    let mut done = !active || single;
    let mut both = last;
    let mut before = F::new(1e30);
    let mut rounds = 0u32;
    while rounds < 60u32 && plane_any(!done) {
        let (below, below_slope, above, above_slope) =
            sums::<F>(numbers, merge, found, split, origin, shift, lane, lanes, squared);
        let value = inverse + below + above;
        let slope = below_slope + above_slope;
        let moved = zero - distance::<F>(origin, origin, shift, squared);
        let size = F::new(8.0) * (above.abs() + below.abs()) + inverse + moved.abs() * slope;
        let small = value.abs() <= eps * size;
        low = select(value < zero, max(low, shift), low);
        high = select(value < zero, high, min(high, shift));
        let low_delta = distance::<F>(low_pole, origin, shift, squared);
        let high_delta = distance::<F>(high_pole, origin, shift, squared);
        let slow = value.abs() > before * F::new(0.1);
        both = last || (both && !slow) || (!both && slow);
        before = value.abs();
        let deltas = (low_delta, high_delta);
        let slopes = (below_slope, above_slope);
        let weights = (low_weight, high_weight);
        let step = interpolated::<F>(value, slopes, deltas, weights, apart, from_low, both, last);
        let newton = zero - value / slope;
        let step = select(value * step < zero, step, newton);
        let tried = shift + unsquared::<F>(origin + shift, step, squared);
        let next = select(tried > low && tried < high, tried, low + (high - low) * half);
        let narrow = high - low <= eps * max(low.abs(), high.abs());
        let stays = done || small;
        done = stays || narrow || next == shift;
        shift = select(stays, shift, next);
        rounds += 1;
    }
    if active && lane == 0 {
        numbers[comptime!(SHIFTS) * merge.size + merge.first + index] = shift;
        indices[comptime!(NEAREST) * merge.size + merge.first + index] = select(from_low || last, index, other) as u32;
    }
}

/// The weight with which the roots that were found are exact, for pole `index`.
#[cube]
pub fn exact_weight<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    index: usize,
    active: bool,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
) {
    let poles = comptime!(POLES) * merge.size + merge.first;
    let shifts = comptime!(SHIFTS) * merge.size + merge.first;
    let nearest = comptime!(NEAREST) * merge.size + merge.first;
    let found = indices[comptime!(COUNTS) * merge.size + merge.first] as usize;
    let active = active && index < found;
    let pole = numbers[poles + select(active, index, 0usize)];
    let mut product = F::new(1.0);
    let mut i = select(active, lane as usize, found);
    while i < found {
        let origin = numbers[poles + indices[nearest + i] as usize];
        let reach = distance::<F>(pole, origin, numbers[shifts + i], squared);
        let apart = distance::<F>(pole, numbers[poles + i], F::new(0.0), squared);
        product *= select(i == index, reach, reach / select(i == index, F::new(1.0), apart));
        i += comptime!(lanes as usize);
    }
    let product = team_product::<F>(product, lanes);
    if active && lane == 0 {
        let size = product.abs().sqrt();
        let weight = numbers[comptime!(KEPT) * merge.size + merge.first + index];
        numbers[comptime!(EXACT) * merge.size + merge.first + index] =
            select(weight < F::new(0.0), F::new(0.0) - size, size);
    }
}
