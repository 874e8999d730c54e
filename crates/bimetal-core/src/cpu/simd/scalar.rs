//! The level without vectors: one lane of plain Rust, with fused multiply-add through [`f32::mul_add`].

use super::{Kernel, Level, Simd};

/// Token of [`Level::Scalar`]; every machine has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

macro_rules! lanes {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $($body:tt)* })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            $($body)*
        }
    )*};
}

/// The caller of these promises that one element at `p` is in bounds.
macro_rules! memory {
    ($(unsafe fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller's promise.
            unsafe { $($body)* }
        }
    )*};
}

impl Simd for Scalar {
    type F = f32;
    type I = i32;
    type M = bool;
    type D = f64;
    const LANES: usize = 1;
    const LEVEL: Level = Level::Scalar;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }

    memory! {
        unsafe fn load(p: *const f32) -> f32 { p.read() }
        unsafe fn store(p: *mut f32, v: f32) { p.write(v) }
        unsafe fn load_f64(p: *const f64) -> f64 { p.read() }
        unsafe fn store_f64(p: *mut f64, v: f64) { p.write(v) }
        unsafe fn load_i(p: *const i32) -> i32 { p.read() }
        unsafe fn store_i(p: *mut i32, v: i32) { p.write(v) }
        unsafe fn load_u16(p: *const u16) -> i32 { i32::from(p.read()) }
        unsafe fn store_u16(p: *mut u16, v: i32) { p.write(v as u16) }
    }

    lanes! {
        fn splat(x: f32) -> f32 { x }
        fn splat_f64(x: f64) -> f64 { x }
        fn fma_f64(a: f64, b: f64, c: f64) -> f64 { a.mul_add(b, c) }
        fn splat_i(x: i32) -> i32 { x }
        fn iota_i() -> i32 { 0 }

        fn add(a: f32, b: f32) -> f32 { a + b }
        fn sub(a: f32, b: f32) -> f32 { a - b }
        fn mul(a: f32, b: f32) -> f32 { a * b }
        fn div(a: f32, b: f32) -> f32 { a / b }
        fn fma(a: f32, b: f32, c: f32) -> f32 { a.mul_add(b, c) }
        fn neg_fma(a: f32, b: f32, c: f32) -> f32 { (-a).mul_add(b, c) }
        fn sqrt(a: f32) -> f32 { a.sqrt() }
        fn min(a: f32, b: f32) -> f32 { if a < b { a } else { b } }
        fn max(a: f32, b: f32) -> f32 { if a > b { a } else { b } }
        fn round(a: f32) -> f32 { a.round_ties_even() }
        fn floor(a: f32) -> f32 { a.floor() }
        fn trunc(a: f32) -> f32 { a.trunc() }

        fn eq(a: f32, b: f32) -> bool { a == b }
        fn lt(a: f32, b: f32) -> bool { a < b }
        fn le(a: f32, b: f32) -> bool { a <= b }
        fn select(m: bool, a: f32, b: f32) -> f32 { if m { a } else { b } }
        fn select_i(m: bool, a: i32, b: i32) -> i32 { if m { a } else { b } }
        fn and_m(a: bool, b: bool) -> bool { a & b }
        fn or_m(a: bool, b: bool) -> bool { a | b }
        fn not_m(a: bool) -> bool { !a }
        fn mask_bits(m: bool) -> u32 { u32::from(m) }

        fn to_i(a: f32) -> i32 { a.round_ties_even() as i32 }
        fn to_f(a: i32) -> f32 { a as f32 }
        fn bits(a: f32) -> i32 { a.to_bits() as i32 }
        fn from_bits(a: i32) -> f32 { f32::from_bits(a as u32) }
        fn add_i(a: i32, b: i32) -> i32 { a.wrapping_add(b) }
        fn sub_i(a: i32, b: i32) -> i32 { a.wrapping_sub(b) }
        fn mul_i(a: i32, b: i32) -> i32 { a.wrapping_mul(b) }
        fn and_i(a: i32, b: i32) -> i32 { a & b }
        fn or_i(a: i32, b: i32) -> i32 { a | b }
        fn xor_i(a: i32, b: i32) -> i32 { a ^ b }
        fn eq_i(a: i32, b: i32) -> bool { a == b }
        fn gt_i(a: i32, b: i32) -> bool { a > b }
        fn lt_u(a: i32, b: i32) -> bool { (a as u32) < b as u32 }

        fn reduce_add(v: f32) -> f32 { v }
        fn reduce_max(v: f32) -> f32 { v }
        fn sum_f64(v: f32) -> f64 { f64::from(v) }
    }

    #[inline(always)]
    fn shl_i<const N: u32>(self, a: i32) -> i32 {
        a << N
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: i32) -> i32 {
        (a as u32 >> N) as i32
    }
    #[inline(always)]
    fn sra_i<const N: u32>(self, a: i32) -> i32 {
        a >> N
    }
}
