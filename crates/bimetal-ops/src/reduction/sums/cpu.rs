//! Sums on the CPU: eight f32 accumulators take 16 vectors each, then their sum goes on in f64.

use super::Kind;
use crate::reduction::lines::{Fold, Slab, Step, accumulate, fold_rows, load, reduce, store};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::simd::Simd;
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::marker::PhantomData;

/// Vectors that are summed in f32 before their sum goes on in f64.
const BLOCK: usize = 128;

/// Rows whose column sums are f32 before they go on in f64; pairs of eight rows, as many as a block adds to a lane.
const DEEP: usize = 128;

/// Rows that are visited twice for their deviations: with 1024 columns, 128 KiB that the L2 cache still holds although
/// rows a power of two apart share its sets.
const TWICE: usize = 32;

/// Sums of squares in this range have lost nothing to underflow, and no term has overflowed.
const SAFE: std::ops::Range<f64> = 7.9e-31..1.3e36;

/// 2¹⁰⁰: brings values whose squares underflow, or by division those whose squares overflow, into the safe range.
const SHIFT: f32 = f32::from_bits((127 + 100) << 23);

/// Column means from here on would overflow with the factor; deviations from them are zero or far from underflow.
const FAR: f32 = 1_048_576.0;

pub(super) fn sums(
    kind: Kind,
    correction: usize,
    x: &Tensor,
    dims: (usize, usize, usize),
    y: &mut Tensor,
) -> Result<()> {
    match x.dtype() {
        DType::F16 => typed::<f16>(kind, correction, x, dims, y),
        DType::BF16 => typed::<bf16>(kind, correction, x, dims, y),
        _ => typed::<f32>(kind, correction, x, dims, y),
    }
}

fn typed<E: Element + Scalar>(
    kind: Kind,
    correction: usize,
    x: &Tensor,
    dims: (usize, usize, usize),
    y: &mut Tensor,
) -> Result<()> {
    let (x, y) = (x.as_slice::<E>()?, y.as_mut_slice::<E>()?);
    let n = dims.1 as f64;
    let spread = Spread { divisor: n - correction as f64, root: kind == Kind::StandardDeviation, out: PhantomData };
    match kind {
        Kind::Sum => reduce(Total { scale: 1.0, out: PhantomData }, x, dims, y),
        Kind::Mean => reduce(Total { scale: 1.0 / n, out: PhantomData }, x, dims, y),
        Kind::L2Norm => reduce(Norm { out: PhantomData }, x, dims, y),
        Kind::Variance | Kind::StandardDeviation => reduce(spread, x, dims, y),
    }
    Ok(())
}

/// `scale · Σ x`.
#[derive(Clone, Copy)]
struct Total<E> {
    scale: f64,
    out: PhantomData<E>,
}

impl<E: Element + Scalar> Fold<E> for Total<E> {
    type State = f64;
    type Out = E;

    #[inline(always)]
    fn empty(self) -> f64 {
        0.0
    }

    #[inline(always)]
    fn run<S: Simd>(self, s: S, x: &[E]) -> f64 {
        if x.len() <= S::LANES {
            return f64::from(s.reduce_add(accumulate(s, x, Plain)));
        }
        let mut total = 0.0;
        for block in x.chunks(BLOCK * S::LANES) {
            total += s.sum_f64(accumulate(s, block, Plain));
        }
        total
    }

    #[inline(always)]
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [f64]) {
        states.fill(0.0);
        let mut sums = vec![0.0f32; slab.columns];
        for first in (0..slab.rows).step_by(DEEP) {
            fold_rows(s, slab.part(first..slab.rows.min(first + DEEP)), &mut sums, Plain);
            for (state, &sum) in states.iter_mut().zip(&sums) {
                *state += f64::from(sum);
            }
        }
    }

    #[inline(always)]
    fn merge(self, a: f64, b: f64) -> f64 {
        a + b
    }

    #[inline(always)]
    fn finish(self, state: f64) -> E {
        E::from_f64(state * self.scale)
    }
}

/// `√Σ x²`.
#[derive(Clone, Copy)]
struct Norm<E> {
    out: PhantomData<E>,
}

impl<E: Element + Scalar> Fold<E> for Norm<E> {
    type State = f64;
    type Out = E;

    #[inline(always)]
    fn empty(self) -> f64 {
        0.0
    }

    #[inline(always)]
    fn run<S: Simd>(self, s: S, x: &[E]) -> f64 {
        let mut total = 0.0;
        for block in x.chunks(BLOCK * S::LANES) {
            let plain = s.sum_f64(accumulate(s, block, Squares(1.0)));
            total += if SAFE.contains(&plain) { plain } else { scaled_squares(s, block, outside(plain)) };
        }
        total
    }

    #[inline(always)]
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [f64]) {
        states.fill(0.0);
        let (mut sums, mut scaled) = (vec![0.0f32; slab.columns], Vec::new());
        for first in (0..slab.rows).step_by(DEEP) {
            let slab = slab.part(first..slab.rows.min(first + DEEP));
            fold_rows(s, slab, &mut sums, Squares(1.0));
            for (state, &sum) in states.iter_mut().zip(&sums) {
                *state += if SAFE.contains(&f64::from(sum)) { f64::from(sum) } else { 0.0 };
            }
            for factor in factors(&sums) {
                scaled.resize(slab.columns, 0.0);
                fold_rows(s, slab, &mut scaled, Squares(factor));
                let inverse = 1.0 / f64::from(factor);
                for ((state, &sum), &scaled) in states.iter_mut().zip(&sums).zip(&scaled) {
                    let sum = f64::from(sum);
                    if !SAFE.contains(&sum) && outside(sum) == factor {
                        *state += f64::from(scaled) * inverse * inverse;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn merge(self, a: f64, b: f64) -> f64 {
        a + b
    }

    #[inline(always)]
    fn finish(self, state: f64) -> E {
        E::from_f64(state.sqrt())
    }
}

/// Number, mean and `Σ (x − mean)²` of some elements.
#[derive(Clone, Copy)]
struct Moments {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of `n` elements with these sums of `d = x·factor − center` and `d²`.
    #[inline(always)]
    fn about(n: usize, center: f32, sum: f64, squares: f64, factor: f32) -> Self {
        let (n, inverse) = (n as f64, 1.0 / f64::from(factor));
        let off = sum / n;
        let squares = squares - sum * off;
        // Rounding may leave less than nothing; a comparison keeps NaN.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        Self { n, mean: (f64::from(center) + off) * inverse, squares: squares * inverse * inverse }
    }
}

/// `Σ (x − mean)² / divisor` or its root.
#[derive(Clone, Copy)]
struct Spread<E> {
    divisor: f64,
    root: bool,
    out: PhantomData<E>,
}

impl<E: Element + Scalar> Fold<E> for Spread<E> {
    type State = Moments;
    type Out = E;

    #[inline(always)]
    fn empty(self) -> Moments {
        Moments { n: 0.0, mean: 0.0, squares: 0.0 }
    }

    #[inline(always)]
    fn run<S: Simd>(self, s: S, x: &[E]) -> Moments {
        let mut total = self.empty();
        for block in x.chunks(BLOCK * S::LANES) {
            let plain = deviations(s, block, 1.0);
            let moments = if SAFE.contains(&plain.squares) { plain } else { scaled_deviations(s, block, plain) };
            total = self.merge(total, moments);
        }
        total
    }

    #[inline(always)]
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [Moments]) {
        states.fill(self.empty());
        let mut work = vec![0.0f32; 3 * slab.columns];
        let mut needed = vec![1.0f32; slab.columns];
        for first in (0..slab.rows).step_by(TWICE) {
            let slab = slab.part(first..slab.rows.min(first + TWICE));
            column_deviations(s, slab, 1.0, &mut work);
            // What each column needs, told by its squares; a column of zeros about a far center needs nothing.
            for (j, needed) in needed.iter_mut().enumerate() {
                let squares = f64::from(work[2 * slab.columns + j]);
                let fine = SAFE.contains(&squares) || (squares < SAFE.start && work[j].abs() >= FAR);
                *needed = if fine { 1.0 } else { outside(squares) };
            }
            merge_columns(states, (first, slab.rows), &work, &needed, 1.0);
            for factor in [SHIFT, 1.0 / SHIFT] {
                if needed.contains(&factor) {
                    column_deviations(s, slab, factor, &mut work);
                    merge_columns(states, (first, slab.rows), &work, &needed, factor);
                }
            }
        }
    }

    /// Chan, Golub and LeVeque (1979).
    #[inline(always)]
    fn merge(self, a: Moments, b: Moments) -> Moments {
        let n = a.n + b.n;
        let weight = if n > 0.0 { b.n / n } else { 0.0 };
        let apart = b.mean - a.mean;
        Moments {
            n,
            mean: a.mean + apart * weight,
            squares: a.squares + b.squares + apart * apart * (a.n * weight),
        }
    }

    #[inline(always)]
    fn finish(self, state: Moments) -> E {
        let variance = if self.divisor > 0.0 { state.squares / self.divisor } else { f64::NAN };
        E::from_f64(if self.root { variance.sqrt() } else { variance })
    }
}

/// `Σ x`.
#[derive(Clone, Copy)]
struct Plain;

impl Step for Plain {
    const NEUTRAL: f32 = 0.0;

    #[inline(always)]
    fn step<S: Simd>(self, s: S, a: S::F, v: S::F) -> S::F {
        s.add(a, v)
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.add(a, b)
    }
}

/// `Σ x·factor`.
#[derive(Clone, Copy)]
struct Scaled(f32);

impl Step for Scaled {
    const NEUTRAL: f32 = 0.0;

    #[inline(always)]
    fn step<S: Simd>(self, s: S, a: S::F, v: S::F) -> S::F {
        s.fma(v, s.splat(self.0), a)
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.add(a, b)
    }
}

/// `Σ (x·factor)²`.
#[derive(Clone, Copy)]
struct Squares(f32);

impl Step for Squares {
    const NEUTRAL: f32 = 0.0;

    #[inline(always)]
    fn step<S: Simd>(self, s: S, a: S::F, v: S::F) -> S::F {
        let v = s.mul(v, s.splat(self.0));
        s.fma(v, v, a)
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.add(a, b)
    }
}

/// `Σ x²` computed on `x·factor`.
#[inline(always)]
fn scaled_squares<S: Simd, E: Element>(s: S, x: &[E], factor: f32) -> f64 {
    s.sum_f64(accumulate(s, x, Squares(factor))) / f64::from(factor) / f64::from(factor)
}

/// [`deviations`] of values whose squares `plain` could not hold.
#[inline(always)]
fn scaled_deviations<S: Simd, E: Element>(s: S, x: &[E], plain: Moments) -> Moments {
    let scaled = deviations(s, x, outside(plain.squares));
    // Deviations of zero about a large mean overflow with the factor, and need none.
    if scaled.squares.is_finite() { scaled } else { plain }
}

/// The factor that brings values into the safe range, given their sum of squares outside of it.
#[inline(always)]
fn outside(squares: f64) -> f32 {
    if squares < SAFE.start { SHIFT } else { 1.0 / SHIFT }
}

/// The factors that sums of squares outside of the safe range need.
fn factors(squares: &[f32]) -> impl Iterator<Item = f32> {
    let small = squares.iter().any(|&v| f64::from(v) < SAFE.start);
    let large = squares.iter().any(|&v| !(f64::from(v) < SAFE.end));
    [(small, SHIFT), (large, 1.0 / SHIFT)].into_iter().filter_map(|(needed, factor)| needed.then_some(factor))
}

/// Moments of a block about its own mean, computed on `x·factor`.
#[inline(always)]
fn deviations<S: Simd, E: Element>(s: S, x: &[E], factor: f32) -> Moments {
    let (ptr, n) = (x.as_ptr(), x.len());
    let center = (s.sum_f64(accumulate(s, x, Scaled(factor))) / n as f64) as f32;
    let (p, c) = (s.splat(factor), s.splat(center));
    let (mut sums, mut squares) = ([s.splat(0.0); 4], [s.splat(0.0); 4]);
    let mut i = 0;
    // SAFETY (this block): `i` plus what is read stays within `x`.
    unsafe {
        while i + 4 * S::LANES <= n {
            for k in 0..4 {
                let d = s.fma_sub(E::load(s, ptr.add(i + k * S::LANES)), p, c);
                sums[k] = s.add(sums[k], d);
                squares[k] = s.fma(d, d, squares[k]);
            }
            i += 4 * S::LANES;
        }
        while i + S::LANES <= n {
            let d = s.fma_sub(E::load(s, ptr.add(i)), p, c);
            sums[0] = s.add(sums[0], d);
            squares[0] = s.fma(d, d, squares[0]);
            i += S::LANES;
        }
    }
    let mut sum = s.sum_f64(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    let mut square = s.sum_f64(s.add(s.add(squares[0], squares[1]), s.add(squares[2], squares[3])));
    for &v in &x[i..] {
        let d = f64::from(v.to_f32() * factor - center);
        sum += d;
        square += d * d;
    }
    Moments::about(n, center, sum, square, factor)
}

/// For each column: its center, `Σ d` and `Σ d²` with `d = x·factor − center`.
#[inline(always)]
fn column_deviations<S: Simd, E: Element>(s: S, slab: Slab<'_, E>, factor: f32, work: &mut [f32]) {
    let columns = slab.columns;
    let (centers, rest) = work[..3 * columns].split_at_mut(columns);
    let (sums, squares) = rest.split_at_mut(columns);
    fold_rows(s, slab, centers, Scaled(factor));
    let (p, inverse) = (s.splat(factor), s.splat(1.0 / slab.rows as f32));
    let (centers, sums, squares) = (centers.as_mut_ptr(), sums.as_mut_ptr(), squares.as_mut_ptr());
    for first in (0..slab.rows).step_by(4) {
        let rows = (slab.rows - first).min(4);
        let mut row = [slab.row(first).as_ptr(); 4];
        for (k, row) in row.iter_mut().enumerate().take(rows) {
            *row = slab.row(first + k).as_ptr();
        }
        for j in (0..columns).step_by(S::LANES) {
            let left = columns - j;
            let mut d = [s.splat(0.0); 4];
            // SAFETY (this block): `left` elements of the rows and of the buffers remain from `j` on.
            unsafe {
                let mut c = load(s, centers.add(j).cast_const(), left, 0.0);
                let (mut sum, mut square) = (s.splat(0.0), s.splat(0.0));
                if first == 0 {
                    c = s.mul(c, inverse);
                    store(s, centers.add(j), left, c);
                } else {
                    (sum, square) = (load(s, sums.add(j).cast_const(), left, 0.0), load(s, squares.add(j).cast_const(), left, 0.0));
                }
                for (d, row) in d.iter_mut().zip(&row).take(rows) {
                    *d = s.fma_sub(load(s, row.add(j), left, 0.0), p, c);
                }
                let halves = [s.add(d[0], d[1]), s.add(d[2], d[3])];
                store(s, sums.add(j), left, s.add(sum, s.add(halves[0], halves[1])));
                let halves = [s.fma(d[0], d[0], s.mul(d[1], d[1])), s.fma(d[2], d[2], s.mul(d[3], d[3]))];
                store(s, squares.add(j), left, s.add(square, s.add(halves[0], halves[1])));
            }
        }
    }
}

/// Merges the columns that needed `factor` into their states: [`Fold::merge`] of as many rows in each column.
#[inline(always)]
fn merge_columns(
    states: &mut [Moments],
    (before, rows): (usize, usize),
    work: &[f32],
    needed: &[f32],
    factor: f32,
) {
    let columns = states.len();
    let n = (before + rows) as f64;
    let weight = rows as f64 / n;
    let spread = before as f64 * weight;
    for (j, state) in states.iter_mut().enumerate() {
        if needed[j] != factor {
            continue;
        }
        let (center, sum, squares) = (work[j], work[columns + j], work[2 * columns + j]);
        let part = Moments::about(rows, center, f64::from(sum), f64::from(squares), factor);
        let apart = part.mean - state.mean;
        let squares = state.squares + part.squares + apart * apart * spread;
        *state = Moments { n, mean: state.mean + apart * weight, squares };
    }
}
