//! The roots of the secular function 1/ρ + Σ w² / (pole − x) of a merge, one in each lane, by interpolation between its poles within a
//! bracket (LAPACK's `laed4` and `lasd4`).

use super::deflate::EPSILON;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd};

/// Rounds of a root at most: a bracket is halved where interpolation does not help.
const ROUNDS: usize = 60;

/// What a merge kept, and what is found for it. Slices are a vector longer than there are poles.
#[derive(Clone, Copy)]
pub(super) struct Secular<'a> {
    /// Ascending; scaled.
    pub(super) poles: &'a [f32],
    /// Of length 1.
    pub(super) weights: &'a [f32],
    pub(super) count: usize,
    pub(super) rho: f32,
}

/// Where the roots from `first` on go, a vector of them: the nearest pole and the distance from it.
pub(super) struct Roots<'a, const SQUARED: bool> {
    pub(super) of: Secular<'a>,
    pub(super) first: usize,
    pub(super) origins: &'a mut [f32],
    pub(super) shifts: &'a mut [f32],
}

/// A pole less what is at `shift` from `origin`, or the squares of both.
#[inline(always)]
pub(super) fn distance<S: Simd, const SQUARED: bool>(s: S, pole: S::F, origin: S::F, shift: S::F) -> S::F {
    let difference = s.sub(s.sub(pole, origin), shift);
    if SQUARED { s.mul(difference, s.add(pole, s.add(origin, shift))) } else { difference }
}

/// The step from `at` that changes its square by `step`.
#[inline(always)]
fn unsquared<S: Simd, const SQUARED: bool>(s: S, at: S::F, step: S::F) -> S::F {
    if !SQUARED {
        return step;
    }
    let root = s.sqrt(s.max(s.fma(at, at, step), s.splat(0.0)));
    let sum = s.add(at, root);
    s.div(step, s.select(s.gt(sum, s.splat(0.0)), sum, s.splat(1e-30)))
}

/// A root of c·x² − a·x + b, which is chosen so that nothing cancels: the one that is `(a − √d) / 2c` or `(a + √d) / 2c`.
#[inline(always)]
fn quadratic<S: Simd>(s: S, [a, b, c]: [S::F; 3], plus: S::M) -> S::F {
    let zero = s.splat(0.0);
    let root = s.sqrt(s.abs(s.neg_fma(s.mul(s.splat(4.0), b), c, s.mul(a, a))));
    let signed = s.select(plus, root, s.neg(root));
    // With the sign of `a` the numerator is a sum.
    let positive = s.gt(a, zero);
    let direct = s.or_m(s.and_m(positive, plus), s.not_m(s.or_m(positive, plus)));
    let numerator = s.select(direct, s.add(a, signed), s.add(b, b));
    let denominator = s.select(direct, s.add(c, c), s.sub(a, signed));
    s.div(numerator, s.select(s.eq(denominator, zero), s.splat(1e-37), denominator))
}

/// The part of pole `j` in the secular function and in its derivative.
#[inline(always)]
fn term<S: Simd, const SQUARED: bool>(s: S, of: &Secular, j: usize, [origin, shift]: [S::F; 2]) -> (S::F, S::F) {
    let weight = s.splat(of.weights[j]);
    let ratio = s.div(weight, distance::<S, SQUARED>(s, s.splat(of.poles[j]), origin, shift));
    (s.mul(weight, ratio), s.mul(ratio, ratio))
}

/// A vector of `f` of each root from `first` on, of the last one where there are no more.
#[inline(always)]
fn lanes<S: Simd>(s: S, first: usize, count: usize, f: impl Fn(usize) -> f32) -> S::F {
    let mut x = [0.0; MAX_LANES];
    x.iter_mut().enumerate().take(S::LANES).for_each(|(l, x)| *x = f((first + l).min(count - 1)));
    // SAFETY: the array holds a vector of any level.
    unsafe { s.load(x.as_ptr()) }
}

/// Strictly between.
#[inline(always)]
fn inside<S: Simd>(s: S, x: S::F, [bottom, top]: [S::F; 2]) -> S::M {
    s.and_m(s.gt(x, bottom), s.lt(x, top))
}

/// What does not change while a vector of roots is found.
struct Between<S: Simd> {
    first: usize,
    split: S::F,
    low_weight: S::F,
    high_weight: S::F,
    apart: S::F,
    last: S::M,
}

/// Sums of the secular function and of its derivative over the poles up to the split and past it.
struct Sums<S: Simd> {
    below: S::F,
    below_slope: S::F,
    above: S::F,
    above_slope: S::F,
}

impl<S: Simd> Between<S> {
    /// Those of the roots from `first` on, and the two poles that the interpolation has: those around the root, or the last two.
    #[inline(always)]
    fn around<const SQUARED: bool>(s: S, of: &Secular, first: usize) -> (Self, [S::F; 2]) {
        let count = of.count;
        let split = |i: usize| if i + 1 == count { i.max(1) - 1 } else { i };
        let other = |i: usize| (split(i) + 1).min(count - 1);
        let low = lanes(s, first, count, |i| of.poles[split(i)]);
        let high = lanes(s, first, count, |i| of.poles[other(i)]);
        let between = Self {
            first,
            split: lanes(s, first, count, |i| split(i) as f32),
            low_weight: lanes(s, first, count, |i| of.weights[split(i)].powi(2)),
            high_weight: lanes(s, first, count, |i| of.weights[other(i)].powi(2)),
            apart: distance::<S, SQUARED>(s, high, low, s.splat(0.0)),
            last: s.eq(lanes(s, first, count, |i| i as f32), s.splat((count - 1) as f32)),
        };
        (between, [low, high])
    }

    #[inline(always)]
    fn sums<const SQUARED: bool>(&self, s: S, of: &Secular, origin: S::F, shift: S::F) -> Sums<S> {
        let zero = s.splat(0.0);
        let at = [origin, shift];
        let (mut below, mut below_slope, mut above, mut above_slope) = (zero, zero, zero, zero);
        // Only of the poles of this vector's roots it depends on the lane on which side they are.
        for j in 0..self.first {
            let (term, slope) = term::<S, SQUARED>(s, of, j, at);
            below = s.add(below, term);
            below_slope = s.add(below_slope, slope);
        }
        let end = of.count.min(self.first + S::LANES);
        for j in self.first..end {
            let (term, slope) = term::<S, SQUARED>(s, of, j, at);
            let lower = s.le(s.splat(j as f32), self.split);
            below = s.add(below, s.select(lower, term, zero));
            below_slope = s.add(below_slope, s.select(lower, slope, zero));
            above = s.add(above, s.select(lower, zero, term));
            above_slope = s.add(above_slope, s.select(lower, zero, slope));
        }
        for j in end..of.count {
            let (term, slope) = term::<S, SQUARED>(s, of, j, at);
            above = s.add(above, term);
            above_slope = s.add(above_slope, slope);
        }
        Sums { below, below_slope, above, above_slope }
    }

    /// The step to the root of a function with two poles at these distances, which has the value and, with the slopes of both
    /// sides together, the slope of the secular function; `both` gives each pole the slope of its side, otherwise the
    /// nearer one has its own weight.
    #[inline(always)]
    fn step(&self, s: S, value: S::F, sums: &Sums<S>, [low, high]: [S::F; 2], from_low: S::M, both: S::M) -> S::F {
        let slope = s.add(sums.below_slope, sums.above_slope);
        let low_ratio = s.div(self.low_weight, s.mul(low, low));
        let high_ratio = s.div(self.high_weight, s.mul(high, high));
        let sided = s.neg_fma(high, sums.above_slope, s.neg_fma(low, sums.below_slope, value));
        let near_low = s.fma(self.apart, low_ratio, s.neg_fma(high, slope, value));
        let near_high = s.neg_fma(self.apart, high_ratio, s.neg_fma(low, slope, value));
        let c = s.select(both, sided, s.select(from_low, near_low, near_high));
        let product = s.mul(low, high);
        let a = s.neg_fma(product, slope, s.mul(s.add(low, high), value));
        let b = s.mul(product, value);
        quadratic(s, [a, b, s.select(self.last, s.abs(c), c)], self.last)
    }
}

impl<const SQUARED: bool> Kernel for Roots<'_, SQUARED> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, first, origins, shifts } = self;
        let (zero, half) = (s.splat(0.0), s.splat(0.5));
        let count = of.count;
        let (between, [low, high]) = Between::around::<SQUARED>(s, &of, first);
        let last = between.last;
        let rho = s.splat(of.rho);
        let gap = s.select(last, unsquared::<S, SQUARED>(s, high, rho), s.sub(high, low));
        let inverse = s.splat(1.0 / if of.rho > 0.0 { of.rho } else { 1.0 });
        let middle_gap = s.mul(gap, half);
        // The middle tells which pole is nearer.
        let start = s.select(last, high, low);
        let sums = between.sums::<SQUARED>(s, &of, start, middle_gap);
        let middle = s.add(inverse, s.add(sums.below, sums.above));
        let positive = s.gt(middle, zero);
        let from_low = s.and_m(s.not_m(last), positive);
        let origin = s.select(from_low, low, high);
        let [below, above] = [low, high].map(|pole| distance::<S, SQUARED>(s, pole, start, middle_gap));
        let rest = s.sub(middle, s.add(s.div(between.low_weight, below), s.div(between.high_weight, above)));
        let past = s.and_m(last, s.not_m(positive));
        let mut bottom = s.select(last, s.select(past, middle_gap, zero), s.select(from_low, zero, s.neg(middle_gap)));
        let beyond = s.mul(gap, s.splat(1.00001));
        let mut top = s.select(last, s.select(past, beyond, middle_gap), s.select(from_low, middle_gap, zero));
        let reach = s.mul(rest, between.apart);
        let a = s.add(s.select(from_low, reach, s.neg(reach)), s.add(between.low_weight, between.high_weight));
        let far = s.select(from_low, between.low_weight, s.neg(between.high_weight));
        let guess = quadratic(s, [a, s.mul(far, between.apart), rest], last);
        let guess = unsquared::<S, SQUARED>(s, origin, guess);
        let halved = s.fma(s.sub(top, bottom), half, bottom);
        let mut shift = s.select(inside(s, guess, [bottom, top]), guess, halved);
        let mut done = s.lt(zero, zero);
        let mut both = last;
        let mut before = s.splat(1e30);
        let eps = s.splat(EPSILON);
        if count == 1 {
            shift = unsquared::<S, SQUARED>(s, low, s.mul(rho, between.low_weight));
            done = s.not_m(done);
        }
        for _ in 0..ROUNDS {
            if s.all(done) {
                break;
            }
            let sums = between.sums::<SQUARED>(s, &of, origin, shift);
            let value = s.add(inverse, s.add(sums.below, sums.above));
            let slope = s.add(sums.below_slope, sums.above_slope);
            let moved = s.abs(distance::<S, SQUARED>(s, origin, origin, shift));
            let size = s.fma(s.splat(8.0), s.add(s.abs(sums.above), s.abs(sums.below)), s.fma(moved, slope, inverse));
            let small = s.le(s.abs(value), s.mul(eps, size));
            let negative = s.lt(value, zero);
            bottom = s.select(negative, s.max(bottom, shift), bottom);
            top = s.select(negative, top, s.min(top, shift));
            let deltas = [low, high].map(|pole| distance::<S, SQUARED>(s, pole, origin, shift));
            let slow = s.gt(s.abs(value), s.mul(before, s.splat(0.1)));
            both = s.or_m(last, s.or_m(s.and_m(both, s.not_m(slow)), s.and_m(s.not_m(both), slow)));
            before = s.abs(value);
            let step = between.step(s, value, &sums, deltas, from_low, both);
            let newton = s.neg(s.div(value, slope));
            let step = s.select(s.lt(s.mul(value, step), zero), step, newton);
            let tried = s.add(shift, unsquared::<S, SQUARED>(s, s.add(origin, shift), step));
            let halved = s.fma(s.sub(top, bottom), half, bottom);
            let next = s.select(inside(s, tried, [bottom, top]), tried, halved);
            let narrow = s.le(s.sub(top, bottom), s.mul(eps, s.max(s.abs(bottom), s.abs(top))));
            let stays = s.or_m(done, small);
            done = s.or_m(stays, s.or_m(narrow, s.eq(next, shift)));
            shift = s.select(stays, shift, next);
        }
        assert!(origins.len() >= S::LANES && shifts.len() >= S::LANES);
        // SAFETY: within the slices.
        unsafe {
            s.store(origins.as_mut_ptr(), origin);
            s.store(shifts.as_mut_ptr(), shift);
        }
    }
}
