//! What products need of a dtype: the type that it is summed in, and vectors of that type at every level.

use bimetal_core::cpu::element::{Element, narrow};
use bimetal_core::cpu::simd::{MAX_LANES, Simd};
use half::{bf16, f16};

/// An operand's element type. Values are summed as `Sum`, and results stored as `Out`.
///
/// # Safety of the pointer methods
/// `lanes` (or `n`) elements from each pointer are in bounds.
pub(super) trait Number: Copy + Default + Send + Sync + 'static {
    /// What the products are added up in.
    type Sum: Copy + Default + Send + Sync + 'static;
    /// The result's element type.
    type Out: Copy + Send + Sync + 'static;
    /// A vector of `Sum`.
    type V<S: Simd>: Copy;

    /// Elements of a vector.
    fn lanes<S: Simd>() -> usize;
    /// The factor of the product as a `Sum`.
    fn factor(alpha: f64) -> Self::Sum;
    /// The same value.
    fn widened(self) -> Self::Sum;
    /// a·b + c
    fn mul_add(a: Self::Sum, b: Self::Sum, c: Self::Sum) -> Self::Sum;
    /// Reads a vector of elements.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> Self::V<S>;
    /// Reads a vector of sums.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_sums<S: Simd>(s: S, p: *const Self::Sum) -> Self::V<S>;
    /// Writes a vector of sums.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_sums<S: Simd>(s: S, p: *mut Self::Sum, v: Self::V<S>);
    /// All lanes `x`.
    fn splat<S: Simd>(s: S, x: Self::Sum) -> Self::V<S>;
    /// a·b + c
    fn fma<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    /// Writes sums as results.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn finish<S: Simd>(s: S, sums: *const Self::Sum, out: *mut Self::Out, n: usize);
}

macro_rules! float {
    ($($t:ty),*) => {$(
        impl Number for $t {
            type Sum = f32;
            type Out = $t;
            type V<S: Simd> = S::F;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::LANES
            }
            fn factor(alpha: f64) -> f32 {
                alpha as f32
            }
            #[inline(always)]
            fn widened(self) -> f32 {
                Element::to_f32(self)
            }
            #[inline(always)]
            fn mul_add(a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { <$t as Element>::load(s, p) }
            }
            #[inline(always)]
            unsafe fn load_sums<S: Simd>(s: S, p: *const f32) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { s.load(p) }
            }
            #[inline(always)]
            unsafe fn store_sums<S: Simd>(s: S, p: *mut f32, v: S::F) {
                // SAFETY: the caller's promise.
                unsafe { s.store(p, v) }
            }
            #[inline(always)]
            fn splat<S: Simd>(s: S, x: f32) -> S::F {
                s.splat(x)
            }
            #[inline(always)]
            fn fma<S: Simd>(s: S, a: S::F, b: S::F, c: S::F) -> S::F {
                s.fma(a, b, c)
            }
            #[inline(always)]
            unsafe fn finish<S: Simd>(s: S, sums: *const f32, out: *mut $t, n: usize) {
                // SAFETY: the caller's promise.
                unsafe { narrow(s, sums, out, n) }
            }
        }
    )*};
}

float!(f32, f16, bf16);

impl Number for f64 {
    type Sum = f64;
    type Out = f64;
    type V<S: Simd> = S::D;

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::LANES_F64
    }
    fn factor(alpha: f64) -> f64 {
        alpha
    }
    #[inline(always)]
    fn widened(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f64) -> S::D {
        // SAFETY: the caller's promise.
        unsafe { s.load_f64(p) }
    }
    #[inline(always)]
    unsafe fn load_sums<S: Simd>(s: S, p: *const f64) -> S::D {
        // SAFETY: the caller's promise.
        unsafe { s.load_f64(p) }
    }
    #[inline(always)]
    unsafe fn store_sums<S: Simd>(s: S, p: *mut f64, v: S::D) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f64(p, v) }
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: f64) -> S::D {
        s.splat_f64(x)
    }
    #[inline(always)]
    fn fma<S: Simd>(s: S, a: S::D, b: S::D, c: S::D) -> S::D {
        s.fma_f64(a, b, c)
    }
    #[inline(always)]
    unsafe fn finish<S: Simd>(_: S, sums: *const f64, out: *mut f64, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sums, out, n) }
    }
}

impl Number for i8 {
    type Sum = i32;
    type Out = i32;
    type V<S: Simd> = S::I;

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::LANES
    }
    /// The factor is 1: no other is accepted.
    fn factor(_: f64) -> i32 {
        1
    }
    #[inline(always)]
    fn widened(self) -> i32 {
        i32::from(self)
    }
    #[inline(always)]
    fn mul_add(a: i32, b: i32, c: i32) -> i32 {
        a.wrapping_mul(b).wrapping_add(c)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8) -> S::I {
        let mut lanes = [0i32; MAX_LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: the caller's promise.
            *lane = i32::from(unsafe { p.add(i).read() });
        }
        // SAFETY: `lanes` holds a vector of any level.
        unsafe { s.load_i(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_sums<S: Simd>(s: S, p: *const i32) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_i(p) }
    }
    #[inline(always)]
    unsafe fn store_sums<S: Simd>(s: S, p: *mut i32, v: S::I) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i(p, v) }
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: i32) -> S::I {
        s.splat_i(x)
    }
    #[inline(always)]
    fn fma<S: Simd>(s: S, a: S::I, b: S::I, c: S::I) -> S::I {
        s.add_i(s.mul_i(a, b), c)
    }
    #[inline(always)]
    unsafe fn finish<S: Simd>(_: S, sums: *const i32, out: *mut i32, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sums, out, n) }
    }
}
