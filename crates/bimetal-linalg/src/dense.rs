//! Matrices of a batch on the host: read in the type of the computation and scaled, spread over threads, written back.

use bimetal_core::Scalar;
use bimetal_core::cpu::parallel;

/// A type that decompositions are computed in.
pub(crate) trait Real: faer::traits::RealField + Scalar + Copy + Default {
    /// 2 to this power, within what the type holds as a normal number.
    fn power_of_two(exponent: i32) -> Self;
    /// The largest exponent of a power of two whose inverse is a normal number too.
    const MOST: i32;
}

impl Real for f32 {
    const MOST: i32 = 126;

    fn power_of_two(exponent: i32) -> Self {
        f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23)
    }
}

impl Real for f64 {
    const MOST: i32 = 1022;

    fn power_of_two(exponent: i32) -> Self {
        f64::from_bits(((exponent.clamp(-1022, 1023) + 1023) as u64) << 52)
    }
}

/// The factor that brings the largest magnitude near 1 and its inverse; `None` where an element is NaN or infinite.
/// Matrices of ordinary size keep their values, so that integers stay integers.
pub(crate) fn scales<C: Real>(elements: impl Iterator<Item = f64>) -> Option<[C; 2]> {
    let mut largest = 0.0f64;
    for x in elements {
        if !x.is_finite() {
            return None;
        }
        largest = largest.max(x.abs());
    }
    // Squares of these are far from overflow and underflow in f32.
    if largest == 0.0 || (1e-8..1e8).contains(&largest) {
        return Some([C::power_of_two(0); 2]);
    }
    let exponent = (largest.log2() as i32).clamp(-C::MOST, C::MOST);
    Some([C::power_of_two(-exponent), C::power_of_two(exponent)])
}

/// Runs `f` for each matrix of a batch, on several threads if there are that many and `work` (multiply-adds for each) is
/// worth it; the flag says whether `f` may use several threads itself.
pub(crate) fn each(count: usize, work: usize, f: impl Fn(usize, bool) + Sync) {
    if count == 1 {
        return f(0, true);
    }
    let grain = (20_000 / work.max(1)).max(1);
    parallel::ranges(count, grain, |range| range.for_each(|i| f(i, false)));
}
