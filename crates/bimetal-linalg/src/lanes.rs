//! What CPU code of small and large matrices needs of a dtype: the type of the computation, vectors of it whose lanes are
//! different matrices, and faer's triangular solvers.

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

/// Interleaves the elements of up to a vector of `m`×`n` matrices, from matrix `first` on: element `e` of lane `l` goes to
/// `e·lanes + l`. Lanes past the last matrix repeat it. Elements that do not count are left alone. Bit `l` of the answer is
/// set if that matrix has an element that counts and is not finite.
#[inline(always)]
pub(crate) fn gather<S: Simd, E: Entry>(
    s: S,
    from: &[E],
    first: usize,
    [m, n]: [usize; 2],
    to: &mut [E::Real],
    part: Part,
) -> u32 {
    let (size, lanes) = (m * n, E::Real::lanes::<S>());
    let last = from.len() / size - 1;
    let starts: [usize; MAX_LANES] = std::array::from_fn(|lane| (first + lane).min(last) * size);
    if E::DTYPE == DType::F32 && S::LANES > 1 && size >= S::LANES {
        debug_assert!(to.len() >= size * lanes);
        // SAFETY: the starts are those of matrices of `size` elements of f32, and there are as many vectors.
        return unsafe {
            gather_squares(s, starts.map(|start| from.as_ptr().cast::<f32>().add(start)), [m, n], to, part)
        };
    }
    // Zero times what is not finite is NaN, and stays.
    let mut zeros = [E::Real::default(); MAX_LANES];
    for i in 0..m {
        let columns = part.columns(i, n);
        // A cache line of each matrix at a time: matrices a power of two apart share few lines of a cache.
        for start in columns.clone().step_by(LINE) {
            let end = (start + LINE).min(columns.end);
            for lane in 0..lanes {
                for j in start..end {
                    let e = i * n + j;
                    // SAFETY: the start is that of a matrix of `size` elements, and there are as many vectors.
                    unsafe {
                        let x = from.get_unchecked(starts[lane] + e).real();
                        *to.get_unchecked_mut(e * lanes + lane) = x;
                        zeros[lane] = zeros[lane] + x * E::Real::default();
                    }
                }
            }
        }
    }
    (0..lanes).fold(0, |bad, lane| bad | u32::from(!zeros[lane].finite()) << lane)
}

/// [`gather`] of f32, a square of a vector's elements at a time, all of them.
///
/// # Safety
/// The matrices have `m·n` elements, at least a vector, and `to` has a vector for each.
#[inline(always)]
unsafe fn gather_squares<S: Simd, R: Real>(
    s: S,
    from: [*const f32; MAX_LANES],
    [m, n]: [usize; 2],
    to: &mut [R],
    part: Part,
) -> u32 {
    let (size, to) = (m * n, to.as_mut_ptr().cast::<f32>());
    // SAFETY (this function): the caller's promise; the last square may overlap the one before.
    unsafe {
        for e in (0..size).step_by(S::LANES) {
            let e = e.min(size - S::LANES);
            s.transpose(from.map(|p| p.wrapping_add(e)), std::array::from_fn(|j| to.wrapping_add((e + j) * S::LANES)));
        }
        // Zero times what is not finite is NaN, and stays.
        let zero = s.splat(0.0);
        let mut zeros = [zero; 4];
        for i in 0..m {
            for j in part.columns(i, n) {
                zeros[j % 4] = s.fma(zero, s.load(to.add((i * n + j) * S::LANES)), zeros[j % 4]);
            }
        }
        let bad = zeros.map(|zeros| s.is_nan(zeros));
        s.mask_bits(s.or_m(s.or_m(bad[0], bad[1]), s.or_m(bad[2], bad[3])))
    }
}

/// [`scatter`] of f32, likewise.
///
/// # Safety
/// As there; the first `count` pointers are good for `size` elements.
#[inline(always)]
unsafe fn scatter_squares<S: Simd, R: Real>(s: S, from: &[R], size: usize, to: [*mut f32; MAX_LANES], count: usize) {
    let from = from.as_ptr().cast::<f32>();
    let mut beyond = [0.0; MAX_LANES];
    let beyond = beyond.as_mut_ptr();
    for e in (0..size).step_by(S::LANES) {
        let e = e.min(size - S::LANES);
        // SAFETY: the caller's promise; lanes past the last matrix go to memory of their own.
        unsafe {
            let to = std::array::from_fn(|lane| if lane < count { to[lane].wrapping_add(e) } else { beyond });
            s.transpose(std::array::from_fn(|j| from.wrapping_add((e + j) * S::LANES)), to);
        }
    }
}

/// The reverse of [`gather`] for the matrices that exist, with zeros for what does not count; NaN for those whose bit in
/// `failed` is set.
#[inline(always)]
pub(crate) fn scatter<S: Simd, E: Entry>(
    s: S,
    from: &mut [E::Real],
    [m, n]: [usize; 2],
    to: &mut [E],
    part: Part,
    failed: u32,
) {
    let (size, lanes) = (m * n, E::Real::lanes::<S>());
    let zero = E::of(E::Real::default());
    let squares = E::DTYPE == DType::F32 && S::LANES > 1 && size >= S::LANES;
    if squares {
        for (i, row) in from.chunks_exact_mut(n * lanes).enumerate().take(m) {
            let columns = part.columns(i, n);
            row[..columns.start * lanes].fill(E::Real::default());
            row[columns.end * lanes..].fill(E::Real::default());
        }
        let start = to.as_mut_ptr().cast::<f32>();
        let starts = std::array::from_fn(|lane| start.wrapping_add(lane * size));
        // SAFETY: there are `size` vectors, and as many elements of f32 of each matrix.
        unsafe { scatter_squares(s, from, size, starts, to.len() / size) };
    }
    for i in 0..if squares { 0 } else { m } {
        let columns = part.columns(i, n);
        for start in (0..n).step_by(LINE) {
            for (lane, matrix) in to.chunks_exact_mut(size).take(lanes).enumerate() {
                for j in start..(start + LINE).min(n) {
                    let e = i * n + j;
                    // SAFETY: there are `size` vectors, and as many elements of the matrix.
                    unsafe {
                        let x = E::of(*from.get_unchecked(e * lanes + lane));
                        *matrix.get_unchecked_mut(e) = if columns.contains(&j) { x } else { zero };
                    }
                }
            }
        }
    }
    for (lane, matrix) in to.chunks_exact_mut(size).take(lanes).enumerate() {
        if failed >> lane & 1 == 1 {
            matrix.fill(E::of(E::Real::NAN));
        }
    }
}

/// Elements of a matrix that are moved together: a cache line of f32.
const LINE: usize = 16;

/// Rows and columns of a square that is transposed in registers.
const SQUARE: usize = 8;

/// Copies an `m`×`n` matrix of rows `from_stride` apart, transposed, to rows `to_stride` apart.
pub(crate) fn transpose<T: Copy, U: Copy>(
    [m, n]: [usize; 2],
    (from, from_stride): (&[T], usize),
    (to, to_stride): (&mut [U], usize),
    change: impl Fn(T) -> U,
) {
    if m * n == 0 {
        return;
    }
    assert!(from.len() >= (m - 1) * from_stride + n && to.len() >= (n - 1) * to_stride + m, "matrices within slices");
    for i in (0..m).step_by(SQUARE) {
        for j in (0..n).step_by(SQUARE) {
            if i + SQUARE <= m && j + SQUARE <= n {
                let mut square = [[change(from[0]); SQUARE]; SQUARE];
                for (r, row) in square.iter_mut().enumerate() {
                    // SAFETY (here and below): rows and columns are within the matrices.
                    let line =
                        unsafe { from.get_unchecked((i + r) * from_stride + j..(i + r) * from_stride + j + SQUARE) };
                    *row = std::array::from_fn(|c| change(line[c]));
                }
                for c in 0..SQUARE {
                    // SAFETY: as above.
                    let line =
                        unsafe { to.get_unchecked_mut((j + c) * to_stride + i..(j + c) * to_stride + i + SQUARE) };
                    line.copy_from_slice(&std::array::from_fn::<U, SQUARE, _>(|r| square[r][c]));
                }
            } else {
                for r in i..(i + SQUARE).min(m) {
                    for c in j..(j + SQUARE).min(n) {
                        to[c * to_stride + r] = change(from[r * from_stride + c]);
                    }
                }
            }
        }
    }
}
