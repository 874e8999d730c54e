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

/// What goes into a row from element `i` on. A trait, because a closure is not sure to be inlined into the level's code.
pub trait Values<S: Simd> {
    /// The vector that starts at element `i`; lanes past the end of the row are not used.
    ///
    /// # Safety
    /// `i` is within the row.
    unsafe fn at(&self, s: S, i: usize) -> S::F;
}

/// Writes `values` over `y`; past the caches if `stream` is set and the row is aligned. The caller ends a streaming
/// region with [`Simd::stream_fence`].
#[inline(always)]
pub fn write<S: Simd, E: Element, V: Values<S>>(s: S, y: &mut [E], stream: bool, values: V) {
    let n = y.len();
    let p = y.as_mut_ptr();
    let stream = stream && (p as usize).is_multiple_of(S::LANES * size_of::<E>());
    let mut i = 0;
    // SAFETY: `i` plus what is written stays within the row; streaming needs and has aligned vectors.
    unsafe {
        while i + S::LANES <= n {
            let v = values.at(s, i);
            if stream {
                E::stream(s, p.add(i), v);
            } else {
                E::store(s, p.add(i), v);
            }
            i += S::LANES;
        }
        if i < n {
            E::store_partial(s, p.add(i), n - i, values.at(s, i));
        }
    }
}
