//! The vector levels behind one trait: a kernel is written once over [`Simd`] and runs at the level that
//! [`dispatch`] chooses.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use dispatch::{Kernel, Level, dispatch, dispatch_at, force, stream_fence};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;

/// The most lanes any level has: the length that stack buffers need.
pub const MAX_LANES: usize = 16;

/// One vector level. A value is a token: it exists only where the CPU has the level, so its methods need no check.
///
/// Lanes are `f32` and `i32`; `i32` lanes double as `u32` and as bit patterns. Comparisons are ordered (false on
/// NaN) except [`ne`](Simd::ne). Pointers need the alignment of their element only, except in `stream`.
///
/// # Safety of the pointer methods
/// They read or write [`LANES`](Simd::LANES) elements from `p` (`n` in the partial ones); all must be in bounds.
pub trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` `f32`.
    type F: Copy;
    /// `LANES` `i32`.
    type I: Copy;
    /// `LANES` booleans.
    type M: Copy;
    /// `LANES_F64` `f64`.
    type D: Copy;
    /// Lanes in a vector: 16, 8, 4 or 1.
    const LANES: usize;
    /// Lanes in a vector of `f64`: half as many, or 1.
    const LANES_F64: usize = if Self::LANES == 1 { 1 } else { Self::LANES / 2 };
    /// The level this token stands for.
    const LEVEL: Level;

    /// Runs `kernel` in a function compiled for this level. A closure handed to another thread starts without the
    /// level's instructions; it gets them back this way.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Out;

    /// Reads a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Writes a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Writes past the caches where the level can. Call [`stream_fence`](Simd::stream_fence) before other threads
    /// read the result.
    ///
    /// # Safety
    /// See the trait; `p` is also aligned to the vector's size.
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { self.store(p, v) }
    }
    /// Orders earlier `stream`s before later stores.
    #[inline(always)]
    fn stream_fence(self) {}
    /// Asks for the cache line at `p`, which need not be an address of anything, where the level can.
    #[inline(always)]
    fn prefetch<T>(self, _p: *const T) {}
    /// [`prefetch`](Simd::prefetch) into the second-level cache, for what is needed later.
    #[inline(always)]
    fn prefetch_far<T>(self, _p: *const T) {}
    /// Reads `n < LANES` values; the other lanes are `fill`.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize, fill: f32) -> Self::F {
        debug_assert!(n < Self::LANES.max(2));
        let mut lanes = [fill; MAX_LANES];
        // SAFETY: the caller promises `n` readable values; `lanes` holds a vector of any level.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            self.load(lanes.as_ptr())
        }
    }
    /// Writes the first `n < LANES` lanes.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::F) {
        debug_assert!(n < Self::LANES.max(2));
        let lanes = self.to_array(v);
        // SAFETY: the caller promises `n` writable values; `lanes` holds at least as many.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n) }
    }
    /// Transposes a square of values: value `j` at `from[i]` goes to value `i` at `to[j]`, for all lanes `i` and `j`.
    ///
    /// # Safety
    /// The first `LANES` pointers are each good for `LANES` values, and none of `to` overlaps one of `from`.
    #[inline(always)]
    unsafe fn transpose(self, from: [*const f32; MAX_LANES], to: [*mut f32; MAX_LANES]) {
        for (j, to) in to.into_iter().enumerate().take(Self::LANES) {
            for (i, from) in from.into_iter().enumerate().take(Self::LANES) {
                // SAFETY: the caller's promise.
                unsafe { *to.add(i) = *from.add(j) };
            }
        }
    }
    /// Reads integer lanes.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_i(self, p: *const i32) -> Self::I;
    /// Writes integer lanes.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_i(self, p: *mut i32, v: Self::I);
    /// Reads `LANES_F64` values.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_f64(self, p: *const f64) -> Self::D;
    /// Writes `LANES_F64` values.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_f64(self, p: *mut f64, v: Self::D);
    /// All lanes `x`.
    fn splat_f64(self, x: f64) -> Self::D;
    /// a·b + c, rounded once
    fn fma_f64(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;
    /// Reads 16-bit lanes, zero-extended.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_u16(self, p: *const u16) -> Self::I;
    /// Writes the low 16 bits of each lane, whose high bits are zero.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_u16(self, p: *mut u16, v: Self::I);
    /// [`store_u16`](Simd::store_u16) past the caches where the level can.
    ///
    /// # Safety
    /// See the trait; `p` is also aligned to the size of what is written.
    #[inline(always)]
    unsafe fn stream_u16(self, p: *mut u16, v: Self::I) {
        // SAFETY: the caller's promise.
        unsafe { self.store_u16(p, v) }
    }
    /// Reads IEEE half-precision values.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        self.widen_f16(unsafe { self.load_u16(p) })
    }
    /// Writes IEEE half-precision values, rounded as [`narrow_f16`](Simd::narrow_f16) does.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { self.store_u16(p, self.narrow_f16(v)) }
    }
    /// Reads bfloat16 values.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        self.widen_bf16(unsafe { self.load_u16(p) })
    }
    /// Writes bfloat16 values, rounded as [`narrow_bf16`](Simd::narrow_bf16) does.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { self.store_u16(p, self.narrow_bf16(v)) }
    }

    /// The half-precision values whose bits are in the low 16 bits; a signalling NaN becomes quiet.
    #[inline(always)]
    fn widen_f16(self, h: Self::I) -> Self::F {
        half_bits::widen(self, h)
    }
    /// Half-precision bits: nearest even, overflow to infinity, gradual underflow, NaN quiet with its payload cut.
    #[inline(always)]
    fn narrow_f16(self, v: Self::F) -> Self::I {
        half_bits::narrow(self, v)
    }
    /// The bfloat16 values whose bits are in the low 16 bits.
    #[inline(always)]
    fn widen_bf16(self, h: Self::I) -> Self::F {
        self.from_bits(self.shl_i::<16>(h))
    }
    /// Bfloat16 bits: nearest even, overflow to infinity, gradual underflow, NaN quiet with its payload cut. Done in
    /// integers at every level because the `vcvtneps2bf16` instruction flushes subnormals.
    #[inline(always)]
    fn narrow_bf16(self, v: Self::F) -> Self::I {
        let bits = self.bits(v);
        let top = self.shr_i::<16>(bits);
        let bias = self.add_i(self.splat_i(0x7fff), self.and_i(top, self.splat_i(1)));
        let rounded = self.shr_i::<16>(self.add_i(bits, bias));
        self.select_i(self.is_nan(v), self.or_i(top, self.splat_i(0x40)), rounded)
    }

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// 0, 1, 2, …
    fn iota_i(self) -> Self::I;
    /// The lanes, followed by zeros.
    #[inline(always)]
    fn to_array(self, v: Self::F) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: `lanes` holds a vector of any level.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b, correctly rounded
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c − a·b, rounded once
    fn neg_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a·b − c, rounded once
    #[inline(always)]
    fn fma_sub(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.fma(a, b, self.neg(c))
    }
    /// √a, correctly rounded
    fn sqrt(self, a: Self::F) -> Self::F;
    /// −a
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.from_bits(self.xor_i(self.bits(a), self.splat_i(i32::MIN)))
    }
    /// |a|
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.from_bits(self.and_i(self.bits(a), self.splat_i(i32::MAX)))
    }
    /// `mag`, negated where `sign` has its sign bit set; |mag| with that sign if `mag` ≥ +0.
    #[inline(always)]
    fn xor_sign(self, mag: Self::F, sign: Self::F) -> Self::F {
        let bit = self.and_i(self.bits(sign), self.splat_i(i32::MIN));
        self.from_bits(self.xor_i(self.bits(mag), bit))
    }
    /// `a < b ? a : b`: `b` where either is NaN, and for zeros of both signs.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` where either is NaN, and for zeros of both signs.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; NaN where either is NaN.
    #[inline(always)]
    fn min_nan(self, a: Self::F, b: Self::F) -> Self::F {
        self.select(self.is_nan(a), a, self.min(a, b))
    }
    /// The larger; NaN where either is NaN.
    #[inline(always)]
    fn max_nan(self, a: Self::F, b: Self::F) -> Self::F {
        self.select(self.is_nan(a), a, self.max(a, b))
    }
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// Greatest integer ≤ a.
    fn floor(self, a: Self::F) -> Self::F;
    /// The integer part.
    fn trunc(self, a: Self::F) -> Self::F;
    /// v · 2ⁿ rounded once, for integral |n| ≤ 250 and v of order 1 (2^±60); NaN in `v` stays NaN.
    #[inline(always)]
    fn scale_pow2(self, v: Self::F, n: Self::F) -> Self::F {
        let n = self.to_i(n);
        let half = self.sra_i::<1>(n);
        let pow2 = |e| self.from_bits(self.shl_i::<23>(self.add_i(e, self.splat_i(127))));
        self.mul(self.mul(v, pow2(half)), pow2(self.sub_i(n, half)))
    }
    /// v · 2ⁿ where it is a normal number and `v` is one too.
    #[inline(always)]
    fn scale_pow2_normal(self, v: Self::F, n: Self::F) -> Self::F {
        self.from_bits(self.add_i(self.bits(v), self.shl_i::<23>(self.to_i(n))))
    }

    /// a = b
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// a < b
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// a ≤ b
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    /// a ≠ b, true where either is NaN
    #[inline(always)]
    fn ne(self, a: Self::F, b: Self::F) -> Self::M {
        self.not_m(self.eq(a, b))
    }
    /// a > b
    #[inline(always)]
    fn gt(self, a: Self::F, b: Self::F) -> Self::M {
        self.lt(b, a)
    }
    /// a ≥ b
    #[inline(always)]
    fn ge(self, a: Self::F, b: Self::F) -> Self::M {
        self.le(b, a)
    }
    /// Whether a is NaN
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        self.ne(a, a)
    }
    /// m ? a : b
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// m ? a : b
    fn select_i(self, m: Self::M, a: Self::I, b: Self::I) -> Self::I;
    /// a ∧ b
    fn and_m(self, a: Self::M, b: Self::M) -> Self::M;
    /// a ∨ b
    fn or_m(self, a: Self::M, b: Self::M) -> Self::M;
    /// ¬a
    fn not_m(self, a: Self::M) -> Self::M;
    /// Bit i is lane i.
    fn mask_bits(self, m: Self::M) -> u32;
    /// Whether any lane is true.
    #[inline(always)]
    fn any(self, m: Self::M) -> bool {
        self.mask_bits(m) != 0
    }
    /// Whether every lane is true.
    #[inline(always)]
    fn all(self, m: Self::M) -> bool {
        !self.any(self.not_m(m))
    }

    /// Nearest integer, ties to even; unspecified outside of `i32`.
    fn to_i(self, a: Self::F) -> Self::I;
    /// The nearest float.
    fn to_f(self, a: Self::I) -> Self::F;
    /// The same bits.
    fn bits(self, a: Self::F) -> Self::I;
    /// The same bits.
    #[allow(clippy::wrong_self_convention)]
    fn from_bits(self, a: Self::I) -> Self::F;
    /// a + b, wrapping
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a − b, wrapping
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a · b, wrapping
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a ∧ b
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a ∨ b
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a ⊕ b
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// a · 2ᴺ, wrapping
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical shift right
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic shift right
    fn sra_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// a = b
    fn eq_i(self, a: Self::I, b: Self::I) -> Self::M;
    /// a > b, signed
    fn gt_i(self, a: Self::I, b: Self::I) -> Self::M;
    /// a < b, unsigned
    #[inline(always)]
    fn lt_u(self, a: Self::I, b: Self::I) -> Self::M {
        let flip = self.splat_i(i32::MIN);
        self.gt_i(self.xor_i(b, flip), self.xor_i(a, flip))
    }

    /// Sum of the lanes: lane i meets lane i + LANES/2, then the halves likewise, so the same bits every time.
    fn reduce_add(self, v: Self::F) -> f32;
    /// Largest lane; NaN if any is.
    fn reduce_max(self, v: Self::F) -> f32;
    /// Smallest lane; NaN if any is.
    #[inline(always)]
    fn reduce_min(self, v: Self::F) -> f32 {
        -self.reduce_max(self.neg(v))
    }
    /// Sum of the lanes in `f64`, in the order of [`reduce_add`](Simd::reduce_add).
    #[inline(always)]
    fn sum_f64(self, v: Self::F) -> f64 {
        let mut lanes = self.to_array(v).map(f64::from);
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Half precision in integer arithmetic, for levels without conversion instructions.
mod half_bits {
    use super::Simd;

    /// Shifted into place, the exponent is 112 too small; a multiplication mends it and normalises subnormals.
    #[inline(always)]
    pub fn widen<S: Simd>(s: S, h: S::I) -> S::F {
        let magnitude = s.shl_i::<13>(s.and_i(h, s.splat_i(0x7fff)));
        let sign = s.shl_i::<16>(s.and_i(h, s.splat_i(0x8000)));
        let finite = s.bits(s.mul(s.from_bits(magnitude), s.splat(2f32.powi(112))));
        let top = s.splat_i(0x7c00 << 13);
        let quiet = s.select_i(s.gt_i(magnitude, top), s.splat_i(0x7fc0_0000), s.splat_i(0x7f80_0000));
        let special = s.or_i(magnitude, quiet);
        s.from_bits(s.or_i(sign, s.select_i(s.gt_i(top, magnitude), finite, special)))
    }

    /// Normal results round in integers; subnormal ones by adding ½, whose last place is 2⁻²⁴.
    #[inline(always)]
    pub fn narrow<S: Simd>(s: S, v: S::F) -> S::I {
        let bits = s.bits(v);
        let a = s.and_i(bits, s.splat_i(i32::MAX));
        let sign = s.and_i(s.shr_i::<16>(bits), s.splat_i(0x8000));
        let odd = s.and_i(s.shr_i::<13>(a), s.splat_i(1));
        let rebiased = s.add_i(a, s.splat_i((-112 << 23) + 0xfff));
        let normal = s.shr_i::<13>(s.add_i(rebiased, odd));
        let half = s.splat(0.5);
        let subnormal = s.sub_i(s.bits(s.add(s.from_bits(a), half)), s.bits(half));
        let finite = s.select_i(s.gt_i(s.splat_i(113 << 23), a), subnormal, normal);
        let payload = s.and_i(s.shr_i::<13>(a), s.splat_i(0x3ff));
        let nan = s.or_i(payload, s.splat_i(0x7e00));
        let infinite = s.select_i(s.gt_i(a, s.splat_i(0x7f80_0000)), nan, s.splat_i(0x7c00));
        s.or_i(sign, s.select_i(s.gt_i(a, s.splat_i((143 << 23) - 1)), infinite, finite))
    }
}
