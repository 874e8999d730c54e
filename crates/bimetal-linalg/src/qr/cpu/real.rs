//! What factorisations need of a dtype on the CPU: the type that is computed in, and vectors of it at every level.

use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Level, Simd};
use bimetal_core::{DType, Tensor};
use half::{bf16, f16};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A type that is computed in.
///
/// # Safety of the pointer methods
/// `lanes` elements from each pointer are in bounds.
pub(crate) trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + crate::matmul::update::Updates
    + 'static
{
    /// A vector.
    type V<S: Simd>: Copy;
    /// 1.
    const ONE: Self;
    /// Sums of squares between these lost nothing to underflow or overflow.
    const SQUARES: [Self; 2];
    /// Elements below this have no reciprocal; a column of them counts as zero.
    const LEAST: Self;
    /// Matrices whose largest element lies between these are not scaled.
    const UNSCALED: [Self; 2];

    /// Elements of a vector.
    fn lanes<S: Simd>() -> usize;
    /// Elements of a vector at a level.
    fn lanes_at(level: Level) -> usize;
    /// The power of two that brings `x` between ½ and 2.
    fn normalizer(x: Self) -> Self;
    /// √x
    fn root(self) -> Self;
    /// |x|
    fn magnitude(self) -> Self;
    /// self·b + c, rounded once
    fn fused(self, b: Self, c: Self) -> Self;
    /// Neither NaN nor infinite.
    fn finite(self) -> bool;
    /// Reads a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> Self::V<S>;
    /// Writes a vector.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: Self::V<S>);
    /// All lanes `x`.
    fn splat<S: Simd>(s: S, x: Self) -> Self::V<S>;
    /// a·b + c
    fn fma<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
}

macro_rules! real {
    ($t:ident, $v:ident, $lanes:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $half:literal, $low:literal,
     $high:literal, $least:literal, $small:literal, $large:literal, $bits:ty, $fraction:literal, $bias:literal) => {
        impl Real for $t {
            type V<S: Simd> = S::$v;
            const ONE: Self = 1.0;
            const SQUARES: [Self; 2] = [$low, $high];
            const LEAST: Self = $least;
            const UNSCALED: [Self; 2] = [$small, $large];

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            fn lanes_at(level: Level) -> usize {
                let lanes = match level {
                    Level::Scalar => 1,
                    Level::Neon => 4,
                    Level::Avx2 => 8,
                    Level::Avx512 => 16,
                };
                (lanes / $half).max(1)
            }
            fn normalizer(x: Self) -> Self {
                // The exponent of the reciprocal, kept among those of normal numbers.
                let exponent = (x.to_bits() >> $fraction) as i64 & (2 * $bias + 1);
                let wanted = (2 * $bias - exponent).clamp(1, 2 * $bias);
                Self::from_bits((wanted as $bits) << $fraction)
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn fused(self, b: Self, c: Self) -> Self {
                $t::mul_add(self, b, c)
            }
            #[inline(always)]
            fn finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::$v {
                // SAFETY: the caller's promise.
                unsafe { s.$load(p) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::$v) {
                // SAFETY: the caller's promise.
                unsafe { s.$store(p, v) }
            }
            #[inline(always)]
            fn splat<S: Simd>(s: S, x: Self) -> S::$v {
                s.$splat(x)
            }
            #[inline(always)]
            fn fma<S: Simd>(s: S, a: S::$v, b: S::$v, c: S::$v) -> S::$v {
                s.$fma(a, b, c)
            }
        }
    };
}

real!(f32, F, LANES, load, store, splat, fma, 1, 1e-28, 1e34, 4.7e-38, 1e-10, 1e10, u32, 23, 127);
real!(
    f64, D, LANES_F64, load_f64, store_f64, splat_f64, fma_f64, 2, 1e-280, 1e290, 8.9e-308, 1e-100, 1e100, u64, 52,
    1023
);

/// An element type, and what it is computed in.
pub(crate) trait Stored: Copy + Send + Sync + bimetal_core::Scalar + 'static {
    /// The type of the computation.
    type Work: Real;
    /// The same value.
    fn widen(self) -> Self::Work;
    /// The nearest value.
    fn narrow(x: Self::Work) -> Self;
    /// Not a number.
    const NAN: Self;
}

macro_rules! stored {
    ($($t:ident, $work:ident, $x:ident, $widen:expr, $narrow:expr;)*) => {$(
        impl Stored for $t {
            type Work = $work;
            const NAN: Self = $t::NAN;
            #[inline(always)]
            fn widen(self) -> $work {
                let $x = self;
                $widen
            }
            #[inline(always)]
            fn narrow($x: $work) -> Self {
                $narrow
            }
        }
    )*};
}

stored! {
    f32, f32, x, x, x;
    f64, f64, x, x, x;
    f16, f32, x, x.to_f32(), f16::from_f32(x);
    bf16, f32, x, x.to_f32(), bf16::from_f32(x);
}

/// Memory for `n` values, aligned to a vector: the thread's, or a large one in huge pages.
pub(crate) struct Memory<T> {
    from: Source,
    n: usize,
    of: std::marker::PhantomData<T>,
}

enum Source {
    Thread(Scratch),
    Pool(Tensor),
}

/// Bytes from which memory is a host tensor's, and what they are rounded up to: the pool has huge pages from 4 MiB on, with
/// which a strip of a large matrix is not in as many pages as it has rows. QR of 4000x1000 on one thread took 233 ms without
/// and 200 ms with them.
const LARGE: [usize; 2] = [2 << 20, 4 << 20];

impl<T: Real> Memory<T> {
    /// `n` values of unspecified contents.
    pub(crate) fn take(n: usize) -> Self {
        let words = n * size_of::<T>().div_ceil(4) + 16;
        let large = words * 4 >= LARGE[0];
        let tensor = large.then(|| Tensor::empty(&[words.next_multiple_of(LARGE[1] / 4)], DType::F32).ok()).flatten();
        let from = tensor.map_or_else(|| Source::Thread(Scratch::take(words)), Source::Pool);
        Self { from, n, of: std::marker::PhantomData }
    }

    /// The values.
    pub(crate) fn slice(&mut self) -> &mut [T] {
        let start = match &mut self.from {
            Source::Thread(scratch) => scratch.as_mut_ptr(),
            Source::Pool(tensor) => tensor.as_mut_slice::<f32>().expect("a host tensor of its own").as_mut_ptr(),
        };
        let start = start.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(64)).cast::<T>();
        // SAFETY: the memory is 64 bytes longer than the values, initialised and aligned for any of them.
        unsafe { std::slice::from_raw_parts_mut(start, self.n) }
    }
}

/// The largest magnitude of a matrix, and whether all elements are finite.
#[inline(always)]
pub(crate) fn scan<E: Stored>(a: &[E]) -> (E::Work, bool) {
    let (mut largest, mut finite) = (E::Work::default(), true);
    for x in a {
        let x = x.widen().magnitude();
        largest = if x > largest { x } else { largest };
        finite &= x.finite();
    }
    (largest, finite)
}

/// The power of two that a matrix is multiplied with, given its largest magnitude.
pub(crate) fn scale<T: Real>(largest: T) -> T {
    let [low, high] = T::UNSCALED;
    if largest == T::default() || (largest >= low && largest <= high) { T::ONE } else { T::normalizer(largest) }
}

/// A reflector `1 − τ·v·vᵀ` that takes a column to `(β, 0, …)`.
pub(crate) struct Reflector<T> {
    pub(crate) beta: T,
    pub(crate) tau: T,
    /// What the column's tail is multiplied with to give that of `v`, whose first element is 1.
    pub(crate) factor: T,
}

/// The reflector of the column `(head, tail)`, LAPACK's `larfg`: `squares` is the tail's sum of squares, computed again
/// from scaled elements where that lost something. A zero tail gives τ = 0.
#[inline(always)]
pub(crate) fn reflector<T: Real, I: Iterator<Item = T>>(head: T, squares: T, tail: impl Fn() -> I) -> Reflector<T> {
    let none = Reflector { beta: head, tau: T::default(), factor: T::default() };
    let [low, high] = T::SQUARES;
    let all = head.fused(head, squares);
    let (mut head, mut norm, mut scale) = (head, all.root(), T::ONE);
    if !(squares >= low && all <= high) {
        let largest = tail().fold(T::default(), |a, x| if x.magnitude() > a { x.magnitude() } else { a });
        if largest == T::default() {
            return none;
        }
        let largest = if head.magnitude() > largest { head.magnitude() } else { largest };
        if largest < T::LEAST {
            return none;
        }
        scale = T::normalizer(largest);
        head = head * scale;
        norm = tail().fold(head * head, |sum, x| (x * scale).fused(x * scale, sum)).root();
    }
    let beta = if head > T::default() { -norm } else { norm };
    Reflector { beta: beta / scale, tau: (beta - head) / beta, factor: scale / (head - beta) }
}

/// Where the elements that a reflector is applied to are: rows of vectors.
pub(crate) struct Place<T> {
    /// The reflector's tail: one value or vector for each row but the first.
    pub(crate) v: *const T,
    pub(crate) v_step: usize,
    /// The first row's first vector.
    pub(crate) x: *mut T,
    pub(crate) x_step: usize,
    pub(crate) rows: usize,
    pub(crate) vectors: usize,
}

/// Applies `1 − τ·v·vᵀ` to rows of vectors: `minus` is −τ. Where `SPLAT`, `v` holds one value for each row, else a vector.
///
/// # Safety
/// The place's rows and vectors are in bounds and not otherwise used.
#[inline(always)]
pub(crate) unsafe fn reflect<S: Simd, T: Real, const SPLAT: bool>(s: S, minus: T::V<S>, place: Place<T>) {
    let (lanes, mut at) = (T::lanes::<S>(), 0);
    // SAFETY: vectors from `at` on are within the place.
    unsafe {
        while at + 8 <= place.vectors {
            reflect_some::<S, T, SPLAT, 8>(s, minus, &place, place.x.add(at * lanes));
            at += 8;
        }
        if at + 4 <= place.vectors {
            reflect_some::<S, T, SPLAT, 4>(s, minus, &place, place.x.add(at * lanes));
            at += 4;
        }
        if at + 2 <= place.vectors {
            reflect_some::<S, T, SPLAT, 2>(s, minus, &place, place.x.add(at * lanes));
            at += 2;
        }
        if at < place.vectors {
            reflect_some::<S, T, SPLAT, 1>(s, minus, &place, place.x.add(at * lanes));
        }
    }
}

/// [`reflect`] for `B` vectors of each row.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn reflect_some<S: Simd, T: Real, const SPLAT: bool, const B: usize>(
    s: S,
    minus: T::V<S>,
    place: &Place<T>,
    x: *mut T,
) {
    let lanes = T::lanes::<S>();
    let zero = T::splat(s, T::default());
    // SAFETY (of all calls): the caller's promise.
    let v = |i: usize| unsafe {
        let p = place.v.add((i - 1) * place.v_step);
        if SPLAT { T::splat(s, *p) } else { T::load(s, p) }
    };
    unsafe {
        let mut sums = [zero; B];
        for (b, sum) in sums.iter_mut().enumerate() {
            *sum = T::load(s, x.add(b * lanes));
        }
        for i in 1..place.rows {
            let (v, row) = (v(i), x.add(i * place.x_step));
            for (b, sum) in sums.iter_mut().enumerate() {
                *sum = T::fma(s, v, T::load(s, row.add(b * lanes)), *sum);
            }
        }
        for (b, sum) in sums.iter_mut().enumerate() {
            *sum = T::fma(s, minus, *sum, zero);
            T::store(s, x.add(b * lanes), T::fma(s, T::splat(s, T::ONE), *sum, T::load(s, x.add(b * lanes))));
        }
        for i in 1..place.rows {
            let (v, row) = (v(i), x.add(i * place.x_step));
            for (b, sum) in sums.iter().enumerate() {
                let p = row.add(b * lanes);
                T::store(s, p, T::fma(s, v, *sum, T::load(s, p)));
            }
        }
    }
}
