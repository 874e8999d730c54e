//! Between matrices, one after the other, and lanes; and transposed copies.

use super::{Entry, Part, Real};
use bimetal_core::DType;
use bimetal_core::cpu::simd::{MAX_LANES, Simd};

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
