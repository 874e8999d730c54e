//! AVX-512: 16 lanes, masks in k registers.

use std::arch::x86_64::*;

use super::{Kernel, Level, MAX_LANES, Simd};

/// Token of [`Level::Avx512`].
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

pub(super) fn detected() -> bool {
    super::avx2::detected()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

impl Avx512 {
    /// The token, if this CPU has the level.
    pub fn new() -> Option<Self> {
        Level::Avx512.is_available().then_some(Self(()))
    }

    /// The token, unchecked.
    ///
    /// # Safety
    /// [`Level::Avx512`] is available.
    #[inline(always)]
    pub unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn enter<K: Kernel>(s: Avx512, kernel: K) -> K::Out {
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
            // stream, the alignment) that `Simd` asks for, and masked-off lanes are not accessed.
            unsafe { $($body)* }
        }
    )*};
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type D = __m512d;
    const LANES: usize = 16;
    const LEVEL: Level = Level::Avx512;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { enter(self, kernel) }
    }

    memory! {
        unsafe fn load(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        unsafe fn store(p: *mut f32, v: __m512) { _mm512_storeu_ps(p, v) }
        unsafe fn stream(p: *mut f32, v: __m512) { _mm512_stream_ps(p, v) }
        unsafe fn load_partial(p: *const f32, n: usize, fill: f32) -> __m512 {
            _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p)
        }
        unsafe fn store_partial(p: *mut f32, n: usize, v: __m512) { _mm512_mask_storeu_ps(p, first(n), v) }
        unsafe fn load_f64(p: *const f64) -> __m512d { _mm512_loadu_pd(p) }
        unsafe fn store_f64(p: *mut f64, v: __m512d) { _mm512_storeu_pd(p, v) }
        unsafe fn load_i(p: *const i32) -> __m512i { _mm512_loadu_si512(p.cast()) }
        unsafe fn store_i(p: *mut i32, v: __m512i) { _mm512_storeu_si512(p.cast(), v) }
        unsafe fn load_u16(p: *const u16) -> __m512i { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
        unsafe fn store_u16(p: *mut u16, v: __m512i) { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(v)) }
        unsafe fn stream_u16(p: *mut u16, v: __m512i) { _mm256_stream_si256(p.cast(), _mm512_cvtepi32_epi16(v)) }
    }

    lanes! {
        fn stream_fence() { _mm_sfence() }
        fn widen_f16(h: __m512i) -> __m512 { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(h)) }
        fn narrow_f16(v: __m512) -> __m512i {
            _mm512_cvtepu16_epi32(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
        }

        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn splat_f64(x: f64) -> __m512d { _mm512_set1_pd(x) }
        fn fma_f64(a: __m512d, b: __m512d, c: __m512d) -> __m512d { _mm512_fmadd_pd(a, b, c) }
        fn splat_i(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn iota_i() -> __m512i { _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) }

        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn neg_fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn fma_sub(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmsub_ps(a, b, c) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a) }
        fn floor(a: __m512) -> __m512 { _mm512_roundscale_ps::<_MM_FROUND_TO_NEG_INF>(a) }
        fn trunc(a: __m512) -> __m512 { _mm512_roundscale_ps::<_MM_FROUND_TO_ZERO>(a) }
        fn scale_pow2(v: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(v, n) }
        fn scale_pow2_normal(v: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(v, n) }

        fn eq(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        fn ne(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, b) }
        fn lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn is_nan(a: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) }
        fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 { _mm512_mask_blend_ps(m, b, a) }
        fn select_i(m: __mmask16, a: __m512i, b: __m512i) -> __m512i { _mm512_mask_blend_epi32(m, b, a) }
        fn and_m(a: __mmask16, b: __mmask16) -> __mmask16 { _kand_mask16(a, b) }
        fn or_m(a: __mmask16, b: __mmask16) -> __mmask16 { _kor_mask16(a, b) }
        fn not_m(a: __mmask16) -> __mmask16 { _knot_mask16(a) }
        fn mask_bits(m: __mmask16) -> u32 { _cvtmask16_u32(m) }

        fn to_i(a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
        fn to_f(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn bits(a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn from_bits(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        fn add_i(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub_i(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn mul_i(a: __m512i, b: __m512i) -> __m512i { _mm512_mullo_epi32(a, b) }
        fn and_i(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or_i(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn xor_i(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn eq_i(a: __m512i, b: __m512i) -> __mmask16 { _mm512_cmpeq_epi32_mask(a, b) }
        fn gt_i(a: __m512i, b: __m512i) -> __mmask16 { _mm512_cmpgt_epi32_mask(a, b) }
        fn lt_u(a: __m512i, b: __m512i) -> __mmask16 { _mm512_cmplt_epu32_mask(a, b) }

        fn reduce_add(v: __m512) -> f32 {
            super::avx2::reduce_add(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)))
        }
        fn reduce_max(v: __m512) -> f32 {
            if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) != 0 { f32::NAN } else { _mm512_reduce_max_ps(v) }
        }
        fn sum_f64(v: __m512) -> f64 {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
            let sum = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v)));
            super::avx2::reduce_add_f64(_mm256_add_pd(_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd::<1>(sum)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: [*const f32; MAX_LANES], to: [*mut f32; MAX_LANES]) {
        // SAFETY: `self` exists only where the level was detected, and the caller promises the bounds.
        unsafe { transpose(from, to) }
    }
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
    fn shl_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn sra_i<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` exists only where the level was detected.
        unsafe { _mm512_srai_epi32::<N>(a) }
    }
}

/// Mask of the first `n < 16` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n < 16);
    ((1u32 << n) - 1) as __mmask16
}

/// Transposes 16 rows: pairs of values, then of pairs, then quarters of vectors.
///
/// # Safety
/// The pointers are good for 16 values each.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: [*const f32; MAX_LANES], to: [*mut f32; MAX_LANES]) {
    let mut rows = [_mm512_setzero_ps(); 16];
    for (row, p) in rows.iter_mut().zip(from) {
        // SAFETY: the caller's promise.
        *row = unsafe { _mm512_loadu_ps(p) };
    }
    let mut pairs = [_mm512_setzero_pd(); 16];
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        pairs[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    }
    // Quarter `q` of vector 4·g + c holds column 4·q + c of row 4·g and the three after it.
    let mut fours = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        let (a, b) = (pairs[i / 2 * 4 + i % 2], pairs[i / 2 * 4 + i % 2 + 2]);
        fours[2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        fours[2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
    for c in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
        let odd = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
        let more_even = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let more_odd = _mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_storeu_ps(to[c], _mm512_shuffle_f32x4::<0x88>(even, more_even));
            _mm512_storeu_ps(to[4 + c], _mm512_shuffle_f32x4::<0x88>(odd, more_odd));
            _mm512_storeu_ps(to[8 + c], _mm512_shuffle_f32x4::<0xdd>(even, more_even));
            _mm512_storeu_ps(to[12 + c], _mm512_shuffle_f32x4::<0xdd>(odd, more_odd));
        }
    }
}
