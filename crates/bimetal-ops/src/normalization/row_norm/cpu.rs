//! Layer norm and RMS norm on the CPU: a row's statistics block by block, then its elements, while it is in the cache;
//! memory is read once and written once, past the caches where the tensors are larger than they are.

use super::{Arguments, RowNorm, row_length};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::row::{Values, part, write};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::ops::Range;

/// Vectors in a block of the statistics: each of four accumulators adds this many quarters in f32 before the block's
/// sums go on in f64, and 8 KiB of a row stay in the L1 cache between the two passes.
pub(crate) const BLOCK_VECTORS: usize = 128;

/// Longest row of `x + residual` that is kept in f32 between its two passes: 256 KiB.
const KEPT: usize = 64 << 10;

pub(super) fn row_norm(op: &RowNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    match inputs[0].dtype() {
        DType::F16 => typed::<f16>(op, inputs, outputs),
        DType::BF16 => typed::<bf16>(op, inputs, outputs),
        _ => typed::<f32>(op, inputs, outputs),
    }
}

fn typed<E: Element + Scalar>(op: &RowNorm, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let Arguments { x, residual, weight, bias } = op.arguments(inputs);
    let n = row_length(x.shape(), weight.or(bias).map(|p| p.shape()));
    let (x, residual) = (x.as_slice::<E>()?, slice::<E>(residual)?);
    let affine = Affine { weight: slice::<E>(weight)?, bias: slice::<E>(bias)? };
    if x.is_empty() {
        return Ok(());
    }
    let mut written = Vec::with_capacity(2);
    for output in outputs.iter_mut() {
        written.push(parallel::Shared::new(output.as_mut_slice::<E>()?));
    }
    let tensors = if residual.is_some() { 4 } else { 2 };
    let stream = parallel::streams(tensors * size_of_val(x));
    let grain = parallel::BYTES_PER_THREAD / (tensors * n * size_of::<E>());
    parallel::ranges(x.len() / n, grain, |rows| {
        let range = rows.start * n..rows.end * n;
        // SAFETY: the ranges of rows are disjoint.
        let part = |i: usize| unsafe { written[i].slice(range.clone()) };
        let (x, y) = (&x[range.clone()], part(0));
        let added = residual.map(|r| (&r[range.clone()], part(1)));
        dispatch(Rows { x, y, added, affine, n, centers: op.kind.centers(), eps: op.eps, stream });
    });
    Ok(())
}

/// The factors and terms of a row's elements; those that are absent are 1 and 0.
pub(crate) struct Affine<'a, E> {
    pub weight: Option<&'a [E]>,
    pub bias: Option<&'a [E]>,
}

impl<E> Clone for Affine<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Affine<'_, E> {}

impl<'a, E: Element> Affine<'a, E> {
    /// The parameters of some elements.
    #[inline(always)]
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        Self { weight: self.weight.map(|w| &w[range.clone()]), bias: self.bias.map(|b| &b[range]) }
    }

    /// Factor and term of one element.
    #[inline(always)]
    pub(crate) fn at(self, i: usize) -> (f32, f32) {
        (self.weight.map_or(1.0, |w| w[i].to_f32()), self.bias.map_or(0.0, |b| b[i].to_f32()))
    }
}

/// The elements of an optional tensor.
pub(crate) fn slice<'a, E: Scalar>(tensor: Option<&&'a Tensor>) -> Result<Option<&'a [E]>> {
    tensor.map(|t| t.as_slice::<E>()).transpose()
}

struct Rows<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    /// The residual, and where its sum with `x` goes.
    added: Option<(&'a [E], &'a mut [E])>,
    affine: Affine<'a, E>,
    n: usize,
    centers: bool,
    eps: f32,
    stream: bool,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, y, added, affine, n, centers, eps, stream } = self;
        let rows = x.chunks_exact(n).zip(y.chunks_exact_mut(n));
        match added {
            None => {
                for (x, y) in rows {
                    let next = [x.as_ptr_range().end];
                    normalize(s, x, affine, y, scaling(s, x, centers, eps), stream, next);
                }
            }
            Some((residual, h)) if n <= KEPT => {
                let mut kept = Scratch::take(n);
                let more = residual.chunks_exact(n).zip(h.chunks_exact_mut(n));
                for ((x, y), (residual, h)) in rows.zip(more) {
                    write(s, h, stream, Added { x, residual, kept: kept.as_mut_ptr() }, []);
                    let next = [x.as_ptr_range().end, residual.as_ptr_range().end];
                    normalize(s, &kept, affine, y, scaling(s, &kept, centers, eps), stream, next);
                }
            }
            Some((residual, h)) => {
                let more = residual.chunks_exact(n).zip(h.chunks_exact_mut(n));
                for ((x, y), (residual, h)) in rows.zip(more) {
                    write(s, h, false, Added { x, residual, kept: std::ptr::null_mut() }, []);
                    let next = [x.as_ptr_range().end, residual.as_ptr_range().end];
                    normalize(s, &*h, affine, y, scaling(s, &*h, centers, eps), stream, next);
                }
            }
        }
        if stream {
            s.stream_fence();
        }
    }
}

/// `(x − mean − lost)·rstd` normalizes a row; `lost` is what rounding the mean to f32 lost.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    pub mean: f32,
    pub lost: f32,
    pub rstd: f32,
}

impl Scaling {
    /// From a row's moments.
    #[inline(always)]
    pub(crate) fn of(moments: Moments, eps: f32) -> Self {
        let mean = moments.mean as f32;
        let lost = (moments.mean - f64::from(mean)) as f32;
        Self { mean, lost, ..Self::without_mean(moments.squares / moments.count, eps) }
    }

    /// From the mean of a row's squares.
    #[inline(always)]
    pub(crate) fn without_mean(squares: f64, eps: f32) -> Self {
        Self { mean: 0.0, lost: 0.0, rstd: (1.0 / (squares + f64::from(eps)).sqrt()) as f32 }
    }
}

#[inline(always)]
pub(crate) fn scaling<S: Simd, E: Element>(s: S, x: &[E], centers: bool, eps: f32) -> Scaling {
    if centers {
        return Scaling::of(moments(s, x), eps);
    }
    let mut squares = 0.0;
    for block in x.chunks(BLOCK_VECTORS * S::LANES) {
        let [sum] = sums(s, block, Squares);
        squares += f64::from(sum);
    }
    Scaling::without_mean(squares / x.len() as f64, eps)
}

/// Count, mean and sum of squared deviations of some values.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moments {
    pub count: f64,
    pub mean: f64,
    pub squares: f64,
}

impl Moments {
    /// From the sums of the deviations from about the mean, and of their squares.
    #[inline(always)]
    pub(crate) fn about(count: f64, center: f32, first: f64, second: f64) -> Self {
        let squares = second - first * first / count;
        // A comparison keeps NaN, which `max` would drop.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        Self { count, mean: f64::from(center) + first / count, squares }
    }

    /// The moments of these values and the others together (Chan, Golub and LeVeque, 1979).
    #[inline(always)]
    pub(crate) fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * self.count * share,
        }
    }
}

/// The moments of a row: in each block the mean first, then the deviations from it, whose sum corrects the mean.
#[inline(always)]
pub(crate) fn moments<S: Simd, E: Element>(s: S, x: &[E]) -> Moments {
    let mut all = Moments::default();
    for block in x.chunks(BLOCK_VECTORS * S::LANES) {
        let count = block.len() as f64;
        let [sum] = sums(s, block, Itself);
        let mean = (f64::from(sum) / count) as f32;
        let [first, second] = sums(s, block, Deviations(s.splat(mean)));
        all = all.merge(Moments::about(count, mean, f64::from(first), f64::from(second)));
    }
    all
}

/// What is summed: a trait, because a closure is not sure to be inlined into the level's code.
pub(crate) trait Terms<S: Simd, const K: usize> {
    /// The sums with the terms of another vector.
    fn add(&self, s: S, sums: [S::F; K], v: S::F) -> [S::F; K];
}

struct Itself;

impl<S: Simd> Terms<S, 1> for Itself {
    #[inline(always)]
    fn add(&self, s: S, [sum]: [S::F; 1], v: S::F) -> [S::F; 1] {
        [s.add(sum, v)]
    }
}

struct Squares;

impl<S: Simd> Terms<S, 1> for Squares {
    #[inline(always)]
    fn add(&self, s: S, [sum]: [S::F; 1], v: S::F) -> [S::F; 1] {
        [s.fma(v, v, sum)]
    }
}

/// Deviations from a value, and their squares.
struct Deviations<F>(F);

impl<S: Simd> Terms<S, 2> for Deviations<S::F> {
    #[inline(always)]
    fn add(&self, s: S, [first, second]: [S::F; 2], v: S::F) -> [S::F; 2] {
        let d = s.sub(v, self.0);
        [s.add(first, d), s.fma(d, d, second)]
    }
}

/// Sums over a slice, each in four vectors.
#[inline(always)]
fn sums<S: Simd, E: Element, T: Terms<S, K>, const K: usize>(s: S, x: &[E], terms: T) -> [f32; K] {
    let n = x.len();
    let p = x.as_ptr();
    let mut totals = [[s.splat(0.0); K]; 4];
    let mut i = 0;
    // SAFETY (this block): `i` plus what is read stays within the slice.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (k, total) in totals.iter_mut().enumerate() {
                *total = terms.add(s, *total, E::load(s, p.add(i + k * S::LANES)));
            }
            i += 4 * S::LANES;
        }
        while i + S::LANES <= n {
            totals[0] = terms.add(s, totals[0], E::load(s, p.add(i)));
            i += S::LANES;
        }
        if i < n {
            let more = terms.add(s, totals[1], E::load_partial(s, p.add(i), n - i, 0.0));
            let inside = s.gt_i(s.splat_i((n - i) as i32), s.iota_i());
            for (total, more) in totals[1].iter_mut().zip(more) {
                *total = s.select(inside, more, *total);
            }
        }
    }
    let [a, b, c, d] = totals;
    let mut out = [0.0; K];
    for (k, out) in out.iter_mut().enumerate() {
        *out = s.reduce_add(s.add(s.add(a[k], b[k]), s.add(c[k], d[k])));
    }
    out
}

/// Writes a normalized row; `next` is what is read after it.
#[inline(always)]
pub(crate) fn normalize<S: Simd, A: Element, B: Element, const N: usize>(
    s: S,
    x: &[A],
    affine: Affine<'_, B>,
    y: &mut [B],
    scaling: Scaling,
    stream: bool,
    next: [*const B; N],
) {
    let x = &x[..y.len()];
    let (mean, rstd) = (s.splat(scaling.mean), s.splat(scaling.rstd));
    let shift = s.splat(-scaling.lost * scaling.rstd);
    let n = y.len();
    let (w, b) = (affine.weight.map_or(&[][..], |w| &w[..n]), affine.bias.map_or(&[][..], |b| &b[..n]));
    match (affine.weight, affine.bias) {
        (Some(_), Some(_)) => write(s, y, stream, Unit::<_, _, _, true, true> { x, w, b, mean, rstd, shift }, next),
        (Some(_), None) => write(s, y, stream, Unit::<_, _, _, true, false> { x, w, b, mean, rstd, shift }, next),
        (None, Some(_)) => write(s, y, stream, Unit::<_, _, _, false, true> { x, w, b, mean, rstd, shift }, next),
        (None, None) => write(s, y, stream, Unit::<_, _, _, false, false> { x, w, b, mean, rstd, shift }, next),
    }
}

/// A row's elements normalized, times the weight and plus the bias if there is one.
struct Unit<'a, A, B, F, const WEIGHT: bool, const BIAS: bool> {
    x: &'a [A],
    w: &'a [B],
    b: &'a [B],
    mean: F,
    rstd: F,
    shift: F,
}

impl<S: Simd, A: Element, B: Element, const WEIGHT: bool, const BIAS: bool> Values<S>
    for Unit<'_, A, B, S::F, WEIGHT, BIAS>
{
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise; a parameter that is read is as long as the row.
        unsafe {
            let unit = s.fma(s.sub(part(s, self.x, i, n), self.mean), self.rstd, self.shift);
            match (WEIGHT, BIAS) {
                (true, true) => s.fma(unit, part(s, self.w, i, n), part(s, self.b, i, n)),
                (true, false) => s.mul(unit, part(s, self.w, i, n)),
                (false, true) => s.add(unit, part(s, self.b, i, n)),
                (false, false) => unit,
            }
        }
    }
}

/// `x + residual` as it is stored; also in `kept`, a buffer of the row's length, unless that is null.
struct Added<'a, E> {
    x: &'a [E],
    residual: &'a [E],
    kept: *mut f32,
}

impl<S: Simd, E: Element> Values<S> for Added<'_, E> {
    #[inline(always)]
    unsafe fn at(&self, s: S, i: usize, n: usize) -> S::F {
        // SAFETY: the caller's promise; `kept` is as long as the row.
        unsafe {
            let sum = rounded::<S, E>(s, s.add(part(s, self.x, i, n), part(s, self.residual, i, n)));
            if !self.kept.is_null() {
                if n >= S::LANES { s.store(self.kept.add(i), sum) } else { s.store_partial(self.kept.add(i), n, sum) }
            }
            sum
        }
    }
}

/// A vector rounded to the element type.
#[inline(always)]
fn rounded<S: Simd, E: Element>(s: S, v: S::F) -> S::F {
    if E::BYTES == 4 {
        return v;
    }
    let mut lanes = [E::from_f32(0.0); MAX_LANES];
    // SAFETY: `lanes` holds a vector of any level.
    unsafe {
        E::store(s, lanes.as_mut_ptr(), v);
        E::load(s, lanes.as_ptr())
    }
}
