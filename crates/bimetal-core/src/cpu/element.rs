//! Element types that kernels compute on in `f32`: `f32` itself, `f16` and `bf16`; and conversion of whole slices.

use half::{bf16, f16};

use super::simd::{Kernel, MAX_LANES, Simd, dispatch};

/// A type that is stored as itself and computed on as `f32`. Narrowing rounds to nearest even, overflows to infinity,
/// underflows gradually and keeps NaN.
///
/// # Safety of the pointer methods
/// As in [`Simd`]: `LANES` (or `n`) elements from `p` are in bounds.
pub trait Element: Copy + Send + Sync + 'static {
    /// Bytes of one element.
    const BYTES: usize;
    /// "f32", "f16" or "bf16".
    const NAME: &'static str;

    /// Reads a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;
    /// Writes a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::F);
    /// Writes a vector past the caches where the level can; see [`Simd::stream`].
    ///
    /// # Safety
    /// See the trait; `p` is also aligned to `LANES · BYTES`.
    unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::F);
    /// The exact `f32`.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(x: f32) -> Self;

    /// Reads `n < LANES` values; the other lanes are `fill`.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, p: *const Self, n: usize, fill: f32) -> S::F {
        let mut lanes = [Self::from_f32(fill); MAX_LANES];
        // SAFETY: the caller promises `n` readable values; `lanes` holds a vector of any level.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(MAX_LANES));
            Self::load(s, lanes.as_ptr())
        }
    }
    /// Writes the first `n < LANES` lanes.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, p: *mut Self, n: usize, v: S::F) {
        let mut lanes = [Self::from_f32(0.0); MAX_LANES];
        // SAFETY: the caller promises `n` writable values; `lanes` holds a vector of any level.
        unsafe {
            Self::store(s, lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(MAX_LANES));
        }
    }
}

impl Element for f32 {
    const BYTES: usize = 4;
    const NAME: &'static str = "f32";

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, v) }
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.stream(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, p: *const Self, n: usize, fill: f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_partial(p, n, fill) }
    }
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, p: *mut Self, n: usize, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_partial(p, n, v) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

macro_rules! sixteen_bit {
    ($ty:ty, $name:literal, $load:ident, $store:ident, $narrow:ident) => {
        impl Element for $ty {
            const BYTES: usize = 2;
            const NAME: &'static str = $name;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { s.$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::F) {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { s.$store(p.cast(), v) }
            }
            #[inline(always)]
            unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::F) {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { s.stream_u16(p.cast(), s.$narrow(v)) }
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                <$ty>::to_f32(self)
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                <$ty>::from_f32(x)
            }
        }
    };
}

sixteen_bit!(f16, "f16", load_f16, store_f16, narrow_f16);
sixteen_bit!(bf16, "bf16", load_bf16, store_bf16, narrow_bf16);

/// Converts `n` elements to `f32`.
///
/// # Safety
/// `src` and `dst` hold `n` elements and do not overlap.
#[inline(always)]
pub unsafe fn widen<S: Simd, E: Element>(s: S, src: *const E, dst: *mut f32, n: usize) {
    // SAFETY: every access is below `n`, which the caller promises to be in bounds.
    unsafe { convert(s, src, dst, n, false) }
}

/// Rounds `n` values to the element type.
///
/// # Safety
/// `src` and `dst` hold `n` elements and do not overlap.
#[inline(always)]
pub unsafe fn narrow<S: Simd, E: Element>(s: S, src: *const f32, dst: *mut E, n: usize) {
    // SAFETY: every access is below `n`, which the caller promises to be in bounds.
    unsafe { convert(s, src, dst, n, false) }
}

#[inline(always)]
unsafe fn convert<S: Simd, A: Element, B: Element>(s: S, src: *const A, dst: *mut B, n: usize, stream: bool) {
    let tail = n % S::LANES;
    let stream = stream && (dst as usize).is_multiple_of(S::LANES * size_of::<B>());
    // SAFETY: every access is below `n`, which the caller promises to be in bounds.
    unsafe {
        for i in (0..n - tail).step_by(S::LANES) {
            let v = A::load(s, src.add(i));
            if stream { B::stream(s, dst.add(i), v) } else { B::store(s, dst.add(i), v) }
        }
        if tail > 0 {
            let v = A::load_partial(s, src.add(n - tail), tail, 0.0);
            B::store_partial(s, dst.add(n - tail), tail, v);
        }
    }
}

struct Convert<'a, A, B> {
    src: &'a [A],
    dst: &'a mut [B],
    stream: bool,
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { src, dst, stream } = self;
        assert_eq!(src.len(), dst.len(), "source and destination lengths");
        // SAFETY: both slices hold that many elements, and one is borrowed mutably.
        unsafe { convert(s, src.as_ptr(), dst.as_mut_ptr(), src.len(), stream) }
    }
}

/// Converts a slice to `f32`. Panics if the lengths differ.
pub fn to_f32<E: Element>(src: &[E], dst: &mut [f32]) {
    dispatch(Convert { src, dst, stream: false });
}

/// Rounds a slice of `f32` to the element type; past the caches if `stream` is set and the slice is aligned, and then
/// the caller ends the region with [`stream_fence`](super::simd::stream_fence). Panics if the lengths differ.
pub fn from_f32<E: Element>(src: &[f32], dst: &mut [E], stream: bool) {
    dispatch(Convert { src, dst, stream });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Level, dispatch_at};

    fn round_trip<E: Element + PartialEq + std::fmt::Debug>(level: Level) {
        for n in [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.75 - 8.0).collect();
            let mut narrow = vec![E::from_f32(-1.0); n];
            let mut wide = vec![0.0; n];
            dispatch_at(level, Convert { src: &values, dst: &mut narrow, stream: n % 2 == 0 });
            assert_eq!(narrow, values.iter().map(|&x| E::from_f32(x)).collect::<Vec<_>>());
            dispatch_at(level, Convert { src: &narrow, dst: &mut wide, stream: false });
            assert_eq!(wide, narrow.iter().map(|&x| x.to_f32()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn slices_of_any_length_convert_at_every_level() {
        for &level in Level::detected() {
            round_trip::<f32>(level);
            round_trip::<f16>(level);
            round_trip::<bf16>(level);
        }
    }
}
