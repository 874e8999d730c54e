//! Walking a row in vectors: reads that stop at its end, and writes that can go past the caches.

use super::element::Element;
use super::simd::Simd;

/// A vector from `x[i..]`; lanes past the end are `fill`.
///
/// # Safety
/// `i < x.len()`.
#[inline(always)]
pub unsafe fn load<S: Simd, E: Element>(s: S, x: &[E], i: usize, fill: f32) -> S::F {
    let left = x.len() - i;
    // SAFETY: `left` elements remain from `i` on.
    unsafe {
        if left >= S::LANES { E::load(s, x.as_ptr().add(i)) } else { E::load_partial(s, x.as_ptr().add(i), left, fill) }
    }
}

/// The first `n` elements of `x[i..]`; lanes after them are zero.
///
/// # Safety
/// `n` is at most `LANES`, and `x` has as many elements from `i` on.
#[inline(always)]
pub unsafe fn part<S: Simd, E: Element>(s: S, x: &[E], i: usize, n: usize) -> S::F {
    debug_assert!(i + n <= x.len());
    // SAFETY: the caller's promise.
    unsafe {
        let p = x.as_ptr().add(i);
        if n >= S::LANES { E::load(s, p) } else { E::load_partial(s, p, n, 0.0) }
    }
}

/// What goes into a row from element `i` on. A trait, because a closure is not sure to be inlined into the level's code.
pub trait Values<S: Simd> {
    /// The `n ≤ LANES` values from element `i` on.
    ///
    /// # Safety
    /// The row has `n` elements from `i` on.
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F;
}

/// Writes `values` over `y`; past the caches if `stream` is set and the row is aligned, and meanwhile the caches get
/// the rows at `next`, so that reads and writes overlap; addresses past the end of a tensor do no harm. The caller ends
/// a streaming region with [`Simd::stream_fence`].
#[inline(always)]
pub fn write<S: Simd, E: Element, V: Values<S>, const N: usize>(
    s: S,
    y: &mut [E],
    stream: bool,
    values: V,
    next: [*const E; N],
) {
    let n = y.len();
    let p = y.as_mut_ptr();
    let mut i = 0;
    // SAFETY: `i` plus what is written stays within the row; streaming needs and has aligned vectors.
    unsafe {
        if stream && (p as usize).is_multiple_of(S::LANES * size_of::<E>()) {
            while i + S::LANES <= n {
                for next in &next {
                    s.prefetch_far(next.wrapping_add(i));
                }
                E::stream(s, p.add(i), values.at(s, i, S::LANES));
                i += S::LANES;
            }
        } else {
            while i + S::LANES <= n {
                E::store(s, p.add(i), values.at(s, i, S::LANES));
                i += S::LANES;
            }
        }
        if i < n {
            E::store_partial(s, p.add(i), n - i, values.at(s, i, n - i));
        }
    }
}
