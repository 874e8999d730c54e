//! AVX2 with FMA and F16C: 8 lanes, masks as full vectors.

use std::arch::x86_64::*;

use super::{Kernel, Level, MAX_LANES, Simd};

/// Token of [`Level::Avx2`].
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

impl Avx2 {
    /// The token, if this CPU has the level.
    pub fn new() -> Option<Self> {
        Level::Avx2.is_available().then_some(Self(()))
    }

    /// The token, unchecked.
    ///
    /// # Safety
    /// [`Level::Avx2`] is available.
    #[inline(always)]
    pub unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn enter<K: Kernel>(s: Avx2, kernel: K) -> K::Out {
    kernel.run(s)
}

macro_rules! lanes {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: `self` exists only where the level was detected, and these intrinsics need nothing else.
            unsafe { $($body)* }
        }
    )*};
}

macro_rules! memory {
    ($(unsafe fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: `self` exists only where the level was detected; the caller promises the bounds (and, to
            // stream, the alignment) that `Simd` asks for.
            unsafe { $($body)* }
        }
    )*};
}

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type M = __m256;
    type D = __m256d;
    const LANES: usize = 8;
    const LEVEL: Level = Level::Avx2;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { enter(self, kernel) }
    }

    memory! {
        unsafe fn load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        unsafe fn store(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
        unsafe fn stream(p: *mut f32, v: __m256) { _mm256_stream_ps(p, v) }
        unsafe fn load_f64(p: *const f64) -> __m256d { _mm256_loadu_pd(p) }
        unsafe fn store_f64(p: *mut f64, v: __m256d) { _mm256_storeu_pd(p, v) }
        unsafe fn load_i(p: *const i32) -> __m256i { _mm256_loadu_si256(p.cast()) }
        unsafe fn store_i(p: *mut i32, v: __m256i) { _mm256_storeu_si256(p.cast(), v) }
        unsafe fn load_u16(p: *const u16) -> __m256i { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
        unsafe fn store_u16(p: *mut u16, v: __m256i) { _mm_storeu_si128(p.cast(), pack_u16(v)) }
        unsafe fn stream_u16(p: *mut u16, v: __m256i) { _mm_stream_si128(p.cast(), pack_u16(v)) }
    }

    lanes! {
        fn stream_fence() { _mm_sfence() }
        fn widen_f16(h: __m256i) -> __m256 { _mm256_cvtph_ps(pack_u16(h)) }
        fn narrow_f16(v: __m256) -> __m256i {
            _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
        }

        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn splat_f64(x: f64) -> __m256d { _mm256_set1_pd(x) }
        fn fma_f64(a: __m256d, b: __m256d, c: __m256d) -> __m256d { _mm256_fmadd_pd(a, b, c) }
        fn splat_i(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fn iota_i() -> __m256i { _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) }

        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn neg_fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        fn fma_sub(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmsub_ps(a, b, c) }
        fn sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn round(a: __m256) -> __m256 { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn floor(a: __m256) -> __m256 { _mm256_floor_ps(a) }
        fn trunc(a: __m256) -> __m256 { _mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a) }

        fn eq(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
        fn ne(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_NEQ_UQ>(a, b) }
        fn lt(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
        fn is_nan(a: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a) }
        fn select(m: __m256, a: __m256, b: __m256) -> __m256 { _mm256_blendv_ps(b, a, m) }
        fn select_i(m: __m256, a: __m256i, b: __m256i) -> __m256i {
            _mm256_blendv_epi8(b, a, _mm256_castps_si256(m))
        }
        fn and_m(a: __m256, b: __m256) -> __m256 { _mm256_and_ps(a, b) }
        fn or_m(a: __m256, b: __m256) -> __m256 { _mm256_or_ps(a, b) }
        fn not_m(a: __m256) -> __m256 { _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) }
        fn mask_bits(m: __m256) -> u32 { _mm256_movemask_ps(m) as u32 }
        fn all(m: __m256) -> bool { _mm256_movemask_ps(m) == 0xff }

        fn to_i(a: __m256) -> __m256i { _mm256_cvtps_epi32(a) }
        fn to_f(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
        fn bits(a: __m256) -> __m256i { _mm256_castps_si256(a) }
        fn from_bits(a: __m256i) -> __m256 { _mm256_castsi256_ps(a) }
        fn add_i(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn sub_i(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
        fn mul_i(a: __m256i, b: __m256i) -> __m256i { _mm256_mullo_epi32(a, b) }
        fn and_i(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or_i(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn xor_i(a: __m256i, b: __m256i) -> __m256i { _mm256_xor_si256(a, b) }
        fn eq_i(a: __m256i, b: __m256i) -> __m256 { _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)) }
        fn gt_i(a: __m256i, b: __m256i) -> __m256 { _mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b)) }

        fn reduce_add(v: __m256) -> f32 { reduce_add(v) }
        fn reduce_max(v: __m256) -> f32 {
            let nan = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)) != 0;
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
            if nan { f32::NAN } else { one }
        }
        fn sum_f64(v: __m256) -> f64 {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
            reduce_add_f64(_mm256_add_pd(low, _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: [*const f32; MAX_LANES], to: [*mut f32; MAX_LANES]) {
        // SAFETY: `self` exists only where the level was detected, and the caller promises the bounds.
        unsafe { transpose(from, to) }
    }
    // The count of `sll` and its kin is the low half of a vector; a constant one compiles to an immediate.
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: `self` exists only where the level was detected, and a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far<T>(self, p: *const T) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn sra_i<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
}

/// The low 16 bits of lanes below 2¹⁶.
#[inline]
#[target_feature(enable = "avx2")]
fn pack_u16(v: __m256i) -> __m128i {
    _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
}

/// Sum of 8 lanes, halves first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reduce_add(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Sum of 4 lanes, halves first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reduce_add_f64(v: __m256d) -> f64 {
    let two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

/// Transposes 8 rows: pairs of values, then of pairs, then halves of vectors.
///
/// # Safety
/// The first 8 pointers are good for 8 values each.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose(from: [*const f32; MAX_LANES], to: [*mut f32; MAX_LANES]) {
    let mut rows = [_mm256_setzero_ps(); 8];
    for (row, p) in rows.iter_mut().zip(from) {
        // SAFETY: the caller's promise.
        *row = unsafe { _mm256_loadu_ps(p) };
    }
    let mut pairs = [_mm256_setzero_pd(); 8];
    for i in 0..4 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i] = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
        pairs[2 * i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
    }
    // Half `h` of vector 4·g + c holds column 4·h + c of row 4·g and the three after it.
    let mut fours = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        let (a, b) = (pairs[i / 2 * 4 + i % 2], pairs[i / 2 * 4 + i % 2 + 2]);
        fours[2 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        fours[2 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
    for c in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(to[c], _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]));
            _mm256_storeu_ps(to[4 + c], _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]));
        }
    }
}
