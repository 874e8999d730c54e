//! The weights for which the roots of a merge are exact, after Gu and Eisenstat, and the vectors that they give.

use super::secular::{Secular, distance};
use bimetal_core::cpu::simd::{Kernel, Simd};

/// Whose vectors are mixed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Eigenvectors or right singular vectors.
    Right,
    /// Left singular vectors.
    Left,
}

/// The roots that were found: the pole nearest to each and the distance from it. Slices are a vector longer than there are roots.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) of: Secular<'a>,
    pub(super) origins: &'a [f32],
    pub(super) shifts: &'a [f32],
}

/// The weights of poles from `first` on, a vector of them, for which the roots are exact.
pub(super) struct Exact<'a, const SQUARED: bool> {
    pub(super) found: Found<'a>,
    pub(super) first: usize,
    pub(super) weights: &'a mut [f32],
}

impl<const SQUARED: bool> Kernel for Exact<'_, SQUARED> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { found, first, weights } = self;
        let Secular { poles, weights: given, count, .. } = found.of;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        assert!(poles.len().min(given.len()) >= first + S::LANES && weights.len() >= S::LANES);
        // SAFETY: vectors within the slices.
        unsafe {
            let pole = s.load(poles.as_ptr().add(first));
            let mut product = one;
            for i in 0..count {
                let reach = distance::<S, SQUARED>(s, pole, s.splat(found.origins[i]), s.splat(found.shifts[i]));
                let own = i >= first && i < first + S::LANES;
                let mut apart = distance::<S, SQUARED>(s, pole, s.splat(poles[i]), zero);
                if own {
                    apart = s.select(s.eq(apart, zero), one, apart);
                }
                product = s.mul(product, s.div(reach, apart));
            }
            let size = s.sqrt(s.abs(product));
            let sign = s.load(given.as_ptr().add(first));
            s.store(weights.as_mut_ptr(), s.select(s.lt(sign, zero), s.neg(size), size));
        }
    }
}

/// A matrix that threads write columns of.
#[derive(Clone, Copy)]
pub(super) struct Columns(pub(super) *mut f32);

// SAFETY: every thread writes its own columns.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

/// The vectors of the roots from `first` on, a vector of them: a column for each root.
pub(super) struct Mixture<'a, const SQUARED: bool> {
    pub(super) found: Found<'a>,
    pub(super) first: usize,
    pub(super) side: Side,
    /// Exact weights.
    pub(super) weights: &'a [f32],
    /// The row of each pole.
    pub(super) places: &'a [u32],
    /// Rows of `line` elements.
    pub(super) mix: Columns,
    pub(super) line: usize,
}

impl<const SQUARED: bool> Kernel for Mixture<'_, SQUARED> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { found, first, side, weights, places, mix, line } = self;
        let Secular { poles, weights: given, count, .. } = found.of;
        assert!([found.origins.len(), found.shifts.len(), line].iter().all(|n| *n >= first + S::LANES));
        // SAFETY: whoever made this promises rows of vectors for all poles.
        unsafe {
            let origin = s.load(found.origins.as_ptr().add(first));
            let shift = s.load(found.shifts.as_ptr().add(first));
            let mut squares = s.splat(0.0);
            for j in 0..count {
                let pole = s.splat(poles[j]);
                let mut part = s.div(s.splat(weights[j]), distance::<S, SQUARED>(s, pole, origin, shift));
                if count == 1 {
                    // Alone, a pole keeps its vector, also when its weight is 0.
                    part = s.splat(if given[0] < 0.0 { 1.0 } else { -1.0 });
                }
                if side == Side::Left {
                    part = if j == 0 { s.splat(-1.0) } else { s.mul(part, pole) };
                }
                squares = s.fma(part, part, squares);
                s.store(mix.0.add(places[j] as usize * line + first), part);
            }
            let norm = s.div(s.splat(1.0), s.sqrt(squares));
            for j in 0..count {
                let at = mix.0.add(j * line + first);
                s.store(at, s.mul(s.load(at), norm));
            }
        }
    }
}

/// The product of the transpose of a small mixture with old vectors.
pub(super) struct Product<'a> {
    /// Rows of the result, length of the sums, columns.
    pub(super) extents: [usize; 3],
    pub(super) mix: &'a [f32],
    pub(super) old: &'a [f32],
    pub(super) to: &'a mut [f32],
    /// Elements between rows of all of them.
    pub(super) line: usize,
}

impl Kernel for Product<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { extents: [rows, depth, columns], mix, old, to, line } = self;
        for column in (0..columns).step_by(S::LANES) {
            let width = S::LANES.min(columns - column);
            for (i, to) in to.chunks_mut(line).enumerate().take(rows) {
                let mut sum = s.splat(0.0);
                for j in 0..depth {
                    let from = &old[j * line + column..][..width];
                    // SAFETY: as many elements as the slice has.
                    let x = unsafe {
                        if width == S::LANES {
                            s.load(from.as_ptr())
                        } else {
                            s.load_partial(from.as_ptr(), width, 0.0)
                        }
                    };
                    sum = s.fma(s.splat(mix[j * line + i]), x, sum);
                }
                let to = &mut to[column..][..width];
                // SAFETY: as above.
                unsafe {
                    if width == S::LANES {
                        s.store(to.as_mut_ptr(), sum)
                    } else {
                        s.store_partial(to.as_mut_ptr(), width, sum)
                    }
                }
            }
        }
    }
}
