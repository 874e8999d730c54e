//! Exact sums and products as pairs (rounded value, rounding error), after Dekker (1971) and Knuth.

use crate::cpu::simd::Simd;

/// a + b, for |a| ≥ |b| or a = 0.
#[inline(always)]
pub(super) fn fast_two_sum<S: Simd>(s: S, a: S::F, b: S::F) -> (S::F, S::F) {
    let sum = s.add(a, b);
    (sum, s.sub(b, s.sub(sum, a)))
}

/// a + b.
#[inline(always)]
pub(super) fn two_sum<S: Simd>(s: S, a: S::F, b: S::F) -> (S::F, S::F) {
    let sum = s.add(a, b);
    let b_seen = s.sub(sum, a);
    (sum, s.add(s.sub(a, s.sub(sum, b_seen)), s.sub(b, b_seen)))
}

/// a · b.
#[inline(always)]
pub(super) fn two_prod<S: Simd>(s: S, a: S::F, b: S::F) -> (S::F, S::F) {
    let product = s.mul(a, b);
    (product, s.fma_sub(a, b, product))
}
