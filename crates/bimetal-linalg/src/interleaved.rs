//! Groups of matrices of f32, one in each lane: what decompositions of small ones share.

use bimetal_core::cpu::simd::{Kernel, Simd};

/// Lanes of a vector of f32.
pub(crate) struct Width;

impl Kernel for Width {
    type Out = usize;

    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// Vectors one after the other, in memory that a group owns.
#[derive(Clone, Copy)]
pub(crate) struct Vectors(pub(crate) *mut f32);

impl Vectors {
    /// The address of vector `i`.
    #[inline(always)]
    pub(crate) fn at<S: Simd>(self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i * S::LANES)
    }

    /// # Safety
    /// Vector `i` exists.
    #[inline(always)]
    pub(crate) unsafe fn get<S: Simd>(self, s: S, i: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(self.at::<S>(i)) }
    }

    /// # Safety
    /// Vector `i` exists.
    #[inline(always)]
    pub(crate) unsafe fn set<S: Simd>(self, s: S, i: usize, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(self.at::<S>(i), x) }
    }
}

/// Squared lengths, of columns of scaled matrices, below which a column counts as zero.
const NEGLIGIBLE: f32 = 1e-30;

/// The reflectors `1 − τ·v·vᵀ` that take columns with these first elements and sums of squares of the others to `(β, 0, …)`:
/// β, τ, and what the others are multiplied with to give `v`, whose first element is 1.
#[inline(always)]
pub(crate) fn reflectors<S: Simd>(s: S, head: S::F, squares: S::F) -> [S::F; 3] {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let some = s.gt(squares, s.splat(NEGLIGIBLE));
    let norm = s.sqrt(s.fma(head, head, squares));
    let beta = s.select(some, s.xor_sign(norm, s.neg(head)), head);
    let gap = s.select(some, s.sub(head, beta), one);
    let tau = s.select(some, s.div(s.neg(gap), s.select(some, beta, one)), zero);
    [beta, tau, s.select(some, s.div(one, gap), zero)]
}

/// The power of two that brings a magnitude to between 1 and 2, as far as it and its inverse are normal.
pub(crate) fn scale_of(largest: f32) -> f32 {
    if largest > 0.0 && largest.is_finite() {
        let exponent = ((largest.to_bits() >> 23) as i32 - 127).clamp(-126, 126);
        f32::from_bits(((127 - exponent) as u32) << 23)
    } else {
        1.0
    }
}
