//! NEON (AArch64 Advanced SIMD): 4 lanes, masks as full vectors. Half precision goes through the integer code of
//! [`Simd`], because the conversion intrinsics need an unstable type.

use std::arch::aarch64::*;

use super::{Kernel, Level, Simd};

/// Token of [`Level::Neon`]; every AArch64 CPU that this crate targets has it.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The token.
    #[allow(clippy::new_without_default)]
    #[inline(always)]
    pub fn new() -> Self {
        Self(())
    }
}

macro_rules! lanes {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: NEON is part of the target's baseline, and these intrinsics need nothing else.
            unsafe { $($body)* }
        }
    )*};
}

macro_rules! memory {
    ($(unsafe fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: NEON is part of the target's baseline; the caller promises the bounds that `Simd` asks for.
            unsafe { $($body)* }
        }
    )*};
}

impl Simd for Neon {
    type F = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;
    type D = float64x2_t;
    const LANES: usize = 4;
    const LEVEL: Level = Level::Neon;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }

    memory! {
        unsafe fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        unsafe fn store(p: *mut f32, v: float32x4_t) { vst1q_f32(p, v) }
        unsafe fn load_f64(p: *const f64) -> float64x2_t { vld1q_f64(p) }
        unsafe fn store_f64(p: *mut f64, v: float64x2_t) { vst1q_f64(p, v) }
        unsafe fn load_i(p: *const i32) -> int32x4_t { vld1q_s32(p) }
        unsafe fn store_i(p: *mut i32, v: int32x4_t) { vst1q_s32(p, v) }
        unsafe fn load_u16(p: *const u16) -> int32x4_t { vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p))) }
        unsafe fn store_u16(p: *mut u16, v: int32x4_t) { vst1_u16(p, vmovn_u32(vreinterpretq_u32_s32(v))) }
    }

    lanes! {
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn splat_f64(x: f64) -> float64x2_t { vdupq_n_f64(x) }
        fn fma_f64(a: float64x2_t, b: float64x2_t, c: float64x2_t) -> float64x2_t { vfmaq_f64(c, a, b) }
        fn splat_i(x: i32) -> int32x4_t { vdupq_n_s32(x) }
        fn iota_i() -> int32x4_t { vld1q_s32([0, 1, 2, 3].as_ptr()) }

        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        fn neg_fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmsq_f32(c, a, b) }
        fn sqrt(a: float32x4_t) -> float32x4_t { vsqrtq_f32(a) }
        fn neg(a: float32x4_t) -> float32x4_t { vnegq_f32(a) }
        fn abs(a: float32x4_t) -> float32x4_t { vabsq_f32(a) }
        fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcltq_f32(a, b), a, b) }
        fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcgtq_f32(a, b), a, b) }
        fn min_nan(a: float32x4_t, b: float32x4_t) -> float32x4_t { vminq_f32(a, b) }
        fn max_nan(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmaxq_f32(a, b) }
        fn round(a: float32x4_t) -> float32x4_t { vrndnq_f32(a) }
        fn floor(a: float32x4_t) -> float32x4_t { vrndmq_f32(a) }
        fn trunc(a: float32x4_t) -> float32x4_t { vrndq_f32(a) }

        fn eq(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vceqq_f32(a, b) }
        fn lt(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vcltq_f32(a, b) }
        fn le(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vcleq_f32(a, b) }
        fn select(m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(m, a, b) }
        fn select_i(m: uint32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t { vbslq_s32(m, a, b) }
        fn and_m(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vandq_u32(a, b) }
        fn or_m(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vorrq_u32(a, b) }
        fn not_m(a: uint32x4_t) -> uint32x4_t { vmvnq_u32(a) }
        fn mask_bits(m: uint32x4_t) -> u32 { vaddvq_u32(vandq_u32(m, vld1q_u32([1, 2, 4, 8].as_ptr()))) }
        fn any(m: uint32x4_t) -> bool { vmaxvq_u32(m) != 0 }
        fn all(m: uint32x4_t) -> bool { vminvq_u32(m) != 0 }

        fn to_i(a: float32x4_t) -> int32x4_t { vcvtnq_s32_f32(a) }
        fn to_f(a: int32x4_t) -> float32x4_t { vcvtq_f32_s32(a) }
        fn bits(a: float32x4_t) -> int32x4_t { vreinterpretq_s32_f32(a) }
        fn from_bits(a: int32x4_t) -> float32x4_t { vreinterpretq_f32_s32(a) }
        fn add_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { vaddq_s32(a, b) }
        fn sub_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { vsubq_s32(a, b) }
        fn mul_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { vmulq_s32(a, b) }
        fn and_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { vandq_s32(a, b) }
        fn or_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { vorrq_s32(a, b) }
        fn xor_i(a: int32x4_t, b: int32x4_t) -> int32x4_t { veorq_s32(a, b) }
        fn eq_i(a: int32x4_t, b: int32x4_t) -> uint32x4_t { vceqq_s32(a, b) }
        fn gt_i(a: int32x4_t, b: int32x4_t) -> uint32x4_t { vcgtq_s32(a, b) }
        fn lt_u(a: int32x4_t, b: int32x4_t) -> uint32x4_t {
            vcltq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b))
        }

        fn reduce_add(v: float32x4_t) -> f32 {
            let two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
        fn reduce_max(v: float32x4_t) -> f32 { vmaxvq_f32(v) }
        fn reduce_min(v: float32x4_t) -> f32 { vminvq_f32(v) }
        fn sum_f64(v: float32x4_t) -> f64 {
            let two = vaddq_f64(vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v));
            vgetq_lane_f64::<0>(two) + vgetq_lane_f64::<1>(two)
        }
    }

    // Shifts by a register; a constant count compiles to an immediate.
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the target's baseline.
        unsafe { vshlq_s32(a, vdupq_n_s32(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the target's baseline.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(N as i32)))) }
    }
    #[inline(always)]
    fn sra_i<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the target's baseline.
        unsafe { vshlq_s32(a, vdupq_n_s32(-(N as i32))) }
    }
}
