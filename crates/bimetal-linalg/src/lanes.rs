//! What CPU code of small and large matrices needs of a dtype: the type of the computation, vectors of it whose lanes are
//! different matrices, and faer's triangular solvers.

mod layout;

pub(crate) use layout::{gather, scatter, transpose};

use crate::matmul::update::Updates;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{MAX_LANES, Simd};
use bimetal_core::{DType, Scalar};
use faer::linalg::triangular_solve;
use faer::{MatMut, MatRef, Par};
use half::{bf16, f16};
use std::ops::{Add, Div, Mul, Neg, Range, Sub};

/// The dtypes of factorisations.
pub(crate) const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F64];

/// Runs a block with `$t` standing for the Rust type of a floating dtype.
macro_rules! each_float {
    ($dtype:expr, $t:ident => $body:block) => {
        match $dtype {
            bimetal_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            bimetal_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            bimetal_core::DType::F64 => {
                type $t = f64;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use each_float;

/// The number type of a computation.
///
/// # Safety of the pointer methods
/// As in [`Simd`]: a vector from each pointer is in bounds.
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
    + Updates
    + 'static
{
    /// A vector; each lane belongs to another matrix.
    type V<S: Simd>: Copy;
    const NAN: Self;
    const ONE: Self;

    fn lanes<S: Simd>() -> usize;
    /// # Safety
    /// See the trait.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> Self::V<S>;
    /// # Safety
    /// See the trait.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: Self::V<S>);
    /// c − a·b
    fn neg_fma<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>, c: Self::V<S>) -> Self::V<S>;
    fn quotient<S: Simd>(s: S, a: Self::V<S>, b: Self::V<S>) -> Self::V<S>;
    /// The larger magnitude and its index; the first of equals.
    fn larger<S: Simd>(s: S, best: [Self::V<S>; 2], candidate: Self::V<S>, index: usize) -> [Self::V<S>; 2];
    /// Whether `at` is `index` in any lane.
    fn meets<S: Simd>(s: S, at: Self::V<S>, index: usize) -> bool;
    /// `yes` in the lanes in which `at` is `index`, `no` in the others.
    fn pick<S: Simd>(s: S, at: Self::V<S>, index: usize, yes: Self::V<S>, no: Self::V<S>) -> Self::V<S>;
    fn splat<S: Simd>(s: S, x: Self) -> Self::V<S>;
    fn of_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn root(self) -> Self;
    fn finite(self) -> bool;
    /// Bits that are ordered as magnitudes are.
    fn magnitude_bits(self) -> u64;
    /// A buffer on loan from the thread.
    fn scratch<R>(n: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
    /// Solves with the column-major lower (or upper) triangle of `t`.
    fn triangular(t: Mat<Self>, unit: bool, upper: bool, x: MatTo<Self>, threads: usize);
}

/// A matrix to read: extents and strides of rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Mat<T> {
    pub(crate) p: *const T,
    pub(crate) extents: [usize; 2],
    pub(crate) strides: [isize; 2],
}

/// A matrix to write.
#[derive(Clone, Copy)]
pub(crate) struct MatTo<T> {
    pub(crate) p: *mut T,
    pub(crate) extents: [usize; 2],
    pub(crate) strides: [isize; 2],
}

fn par(threads: usize) -> Par {
    if threads > 1 { Par::rayon(threads) } else { Par::Seq }
}

fn read<'a, T>(m: Mat<T>) -> MatRef<'a, T> {
    // SAFETY: whoever made the matrix has its elements borrowed.
    unsafe { MatRef::from_raw_parts(m.p, m.extents[0], m.extents[1], m.strides[0], m.strides[1]) }
}

fn write<'a, T>(m: MatTo<T>) -> MatMut<'a, T> {
    // SAFETY: as above, mutably.
    unsafe { MatMut::from_raw_parts_mut(m.p, m.extents[0], m.extents[1], m.strides[0], m.strides[1]) }
}

macro_rules! large {
    () => {
        fn triangular(t: Mat<Self>, unit: bool, upper: bool, x: MatTo<Self>, threads: usize) {
            let (t, x, par) = (read(t), write(x), par(threads));
            match (unit, upper) {
                (false, false) => triangular_solve::solve_lower_triangular_in_place(t, x, par),
                (true, false) => triangular_solve::solve_unit_lower_triangular_in_place(t, x, par),
                (false, true) => triangular_solve::solve_upper_triangular_in_place(t, x, par),
                (true, true) => triangular_solve::solve_unit_upper_triangular_in_place(t, x, par),
            }
        }

        fn scratch<R>(n: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
            // One vector more, so that the first element can start on one.
            let mut memory = Scratch::take(n * size_of::<Self>() / 4 + 32);
            let start = memory.as_mut_ptr().cast::<u8>();
            let start = start.wrapping_add(start.align_offset(64)).cast::<Self>();
            // SAFETY: the memory is as long, aligned, initialised, and any bits are a number.
            f(unsafe { std::slice::from_raw_parts_mut(start, n) })
        }

        fn of_f64(x: f64) -> Self {
            x as Self
        }
        fn to_f64(self) -> f64 {
            self as f64
        }
        #[inline(always)]
        fn root(self) -> Self {
            self.sqrt()
        }
        #[inline(always)]
        fn finite(self) -> bool {
            self.is_finite()
        }
        #[inline(always)]
        fn magnitude_bits(self) -> u64 {
            u64::from(self.abs().to_bits())
        }
    };
}

impl Real for f32 {
    type V<S: Simd> = S::F;
    const NAN: Self = f32::NAN;
    const ONE: Self = 1.0;
    large!();

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::LANES
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, v) }
    }
    #[inline(always)]
    fn neg_fma<S: Simd>(s: S, a: S::F, b: S::F, c: S::F) -> S::F {
        s.neg_fma(a, b, c)
    }
    #[inline(always)]
    fn quotient<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
        s.div(a, b)
    }
    #[inline(always)]
    fn larger<S: Simd>(s: S, [best, at]: [S::F; 2], candidate: S::F, index: usize) -> [S::F; 2] {
        let size = s.abs(candidate);
        let more = s.gt(size, best);
        [s.select(more, size, best), s.select(more, s.splat(index as f32), at)]
    }
    #[inline(always)]
    fn meets<S: Simd>(s: S, at: S::F, index: usize) -> bool {
        s.any(s.eq(at, s.splat(index as f32)))
    }
    #[inline(always)]
    fn pick<S: Simd>(s: S, at: S::F, index: usize, yes: S::F, no: S::F) -> S::F {
        s.select(s.eq(at, s.splat(index as f32)), yes, no)
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: f32) -> S::F {
        s.splat(x)
    }
}

/// A vector of f64 as an array, for what vectors of f64 cannot do.
#[inline(always)]
fn spread<S: Simd>(s: S, v: S::D) -> [f64; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the array holds a vector of any level.
    unsafe { s.store_f64(lanes.as_mut_ptr(), v) };
    lanes
}

impl Real for f64 {
    type V<S: Simd> = S::D;
    const NAN: Self = f64::NAN;
    const ONE: Self = 1.0;
    large!();

    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        S::LANES_F64
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f64) -> S::D {
        // SAFETY: the caller's promise.
        unsafe { s.load_f64(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f64, v: S::D) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f64(p, v) }
    }
    #[inline(always)]
    fn neg_fma<S: Simd>(s: S, a: S::D, b: S::D, c: S::D) -> S::D {
        s.fma_f64(s.fma_f64(a, s.splat_f64(-1.0), s.splat_f64(-0.0)), b, c)
    }
    #[inline(always)]
    fn quotient<S: Simd>(s: S, a: S::D, b: S::D) -> S::D {
        let (mut a, b) = (spread(s, a), spread(s, b));
        a.iter_mut().zip(b).take(S::LANES_F64).for_each(|(a, b)| *a /= b);
        // SAFETY: the array holds a vector of any level.
        unsafe { s.load_f64(a.as_ptr()) }
    }
    #[inline(always)]
    fn larger<S: Simd>(s: S, [best, at]: [S::D; 2], candidate: S::D, index: usize) -> [S::D; 2] {
        let (mut best, mut at, candidate) = (spread(s, best), spread(s, at), spread(s, candidate));
        for i in 0..S::LANES_F64 {
            let more = candidate[i].abs() > best[i];
            best[i] = if more { candidate[i].abs() } else { best[i] };
            at[i] = if more { index as f64 } else { at[i] };
        }
        // SAFETY: the arrays hold a vector of any level.
        unsafe { [s.load_f64(best.as_ptr()), s.load_f64(at.as_ptr())] }
    }
    #[inline(always)]
    fn meets<S: Simd>(s: S, at: S::D, index: usize) -> bool {
        spread(s, at)[..S::LANES_F64].contains(&(index as f64))
    }
    #[inline(always)]
    fn pick<S: Simd>(s: S, at: S::D, index: usize, yes: S::D, no: S::D) -> S::D {
        let (at, yes, mut no) = (spread(s, at), spread(s, yes), spread(s, no));
        for lane in 0..S::LANES_F64 {
            no[lane] = if at[lane] == index as f64 { yes[lane] } else { no[lane] };
        }
        // SAFETY: the array holds a vector of any level.
        unsafe { s.load_f64(no.as_ptr()) }
    }
    #[inline(always)]
    fn splat<S: Simd>(s: S, x: f64) -> S::D {
        s.splat_f64(x)
    }
}

/// An element of a tensor, computed on as a [`Real`].
pub(crate) trait Entry: Scalar {
    type Real: Real;
    fn real(self) -> Self::Real;
    fn of(x: Self::Real) -> Self;
}

macro_rules! entry {
    ($($t:ty: $real:ty, $to:expr, $of:expr;)*) => {$(
        impl Entry for $t {
            type Real = $real;
            #[inline(always)]
            fn real(self) -> $real { let to: fn($t) -> $real = $to; to(self) }
            #[inline(always)]
            fn of(x: $real) -> Self { let of: fn($real) -> $t = $of; of(x) }
        }
    )*};
}

entry! {
    f32: f32, |x| x, |x| x;
    f16: f32, f16::to_f32, f16::from_f32;
    bf16: f32, bf16::to_f32, bf16::from_f32;
    f64: f64, |x| x, |x| x;
}

/// Floating-point operations for which a second thread pays.
const FLOPS_PER_THREAD: usize = 100_000;

/// Matrices of `flops` each that a thread takes at least, in whole groups of `group`.
pub(crate) fn grain(flops: usize, group: usize) -> usize {
    FLOPS_PER_THREAD.div_ceil(flops.max(1)).next_multiple_of(group.max(1))
}

/// Threads within one of `count` matrices of order `n`: several only for a single large one.
pub(crate) fn threads_within(count: usize, n: usize) -> usize {
    if count < parallel::threads() && n >= LARGE { parallel::threads() } else { 1 }
}

/// The order from which factorisations gain by threads.
const LARGE: usize = 512;

/// Which elements of a row-major matrix count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    Lower,
    Upper,
}

impl Part {
    /// The columns of row `i` that count.
    #[inline(always)]
    pub(crate) fn columns(self, i: usize, n: usize) -> Range<usize> {
        match self {
            Self::All => 0..n,
            Self::Lower => 0..(i + 1).min(n),
            Self::Upper => i.min(n)..n,
        }
    }
}
