//! Gradients of layer norm and RMS norm on the CPU: rows in blocks that depend on the shape alone, each with its own
//! sums for the parameters, which are added up in pairs. A row is read from memory once; four rows at a time share the
//! loads of the weight and of the block's sums.

use super::RowNormBackward;
use crate::normalization::row_norm::cpu::{BLOCK_VECTORS, Moments, Scaling, slice};
use crate::normalization::row_norm::row_length;
use bimetal_core::cpu::element::{Element, narrow};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::ops::Range;

/// Rows that are written together.
const GROUP: usize = 4;

/// Most rows whose sums go to one partial sum: the partial sums take a 64th of the input's memory.
const BLOCK_ROWS: usize = 64;

/// Blocks that a smaller number of rows is cut into, for the threads.
const BLOCKS: usize = 16;

pub(super) fn row_norm_backward(op: &RowNormBackward, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    match inputs[1].dtype() {
        DType::F16 => typed::<f16>(op, inputs, outputs),
        DType::BF16 => typed::<bf16>(op, inputs, outputs),
        _ => typed::<f32>(op, inputs, outputs),
    }
}

fn typed<E: Element + Scalar>(op: &RowNormBackward, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let n = row_length(inputs[1].shape(), inputs.get(2).map(|w| w.shape()));
    let (grad, x) = (inputs[0].as_slice::<E>()?, inputs[1].as_slice::<E>()?);
    let weight = slice::<E>(inputs.get(2))?;
    let centers = op.kind.centers();
    let (dx, parameters) = outputs.split_first_mut().expect("the operation has outputs");
    if n == 0 {
        return Ok(());
    }
    let rows = x.len() / n;
    let block_rows = rows.div_ceil(BLOCKS).next_multiple_of(GROUP).min(BLOCK_ROWS);
    let blocks = rows.div_ceil(block_rows.max(1));
    let width = if centers { 2 * n } else { n };
    let mut partials = Scratch::take(blocks.max(1) * width);
    if blocks == 0 {
        partials.fill(0.0);
    }
    let stream = parallel::streams(3 * size_of_val(x));
    let dx = Shared::new(dx.as_mut_slice::<E>()?);
    let sums = Shared::new(&mut partials[..]);
    let grain = parallel::BYTES_PER_THREAD / (3 * block_rows.max(1) * n * size_of::<E>());
    parallel::ranges(blocks, grain, |mine| {
        for block in mine {
            let rows = block * block_rows..((block + 1) * block_rows).min(rows);
            let range = rows.start * n..rows.end * n;
            let (grad, x) = (&grad[range.clone()], &x[range.clone()]);
            // SAFETY: blocks are disjoint, and so are their rows and their sums.
            let (dx, sums) = unsafe { (dx.slice(range), sums.slice(block * width..(block + 1) * width)) };
            dispatch(Block { grad, x, weight, dx, sums, n, centers, eps: op.eps, stream });
        }
    });
    let [dweight, dbias] = parameters_mut::<E>(parameters)?;
    add_up(&mut partials, blocks, width, [(0..n, dweight), (n..width, dbias)]);
    Ok(())
}

/// The elements of the outputs after the first; none for one that is absent.
pub(crate) fn parameters_mut<'a, E: Scalar>(outputs: &'a mut [&mut Tensor]) -> Result<[&'a mut [E]; 2]> {
    let mut outputs = outputs.iter_mut();
    let mut next = || outputs.next().map_or(Ok(&mut [][..]), |t| t.as_mut_slice::<E>());
    Ok([next()?, next()?])
}

/// Adds up `count` rows of `width` partial sums in pairs, and rounds ranges of the sums to the outputs.
pub(crate) fn add_up<E: Element>(
    partials: &mut [f32],
    count: usize,
    width: usize,
    outputs: [(Range<usize>, &mut [E]); 2],
) {
    let shared = Shared::new(&mut partials[..count.max(1) * width]);
    let grain = parallel::BYTES_PER_THREAD / (2 * count.max(1) * size_of::<f32>());
    parallel::ranges(width, grain.max(16), |columns| {
        // SAFETY: threads touch disjoint columns of the rows.
        let row = |i: usize| unsafe { shared.slice(i * width + columns.start..i * width + columns.end) };
        let mut step = 1;
        while step < count {
            for i in (0..count - step).step_by(2 * step) {
                dispatch(AddTo { total: row(i), more: row(i + step) });
            }
            step *= 2;
        }
    });
    for (range, output) in outputs {
        dispatch(Narrow { sums: &partials[range], output });
    }
}

struct AddTo<'a> {
    total: &'a mut [f32],
    more: &'a [f32],
}

impl Kernel for AddTo<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (total, more) in self.total.iter_mut().zip(self.more) {
            *total += more;
        }
    }
}

struct Narrow<'a, E> {
    sums: &'a [f32],
    output: &'a mut [E],
}

impl<E: Element> Kernel for Narrow<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.output.len().min(self.sums.len());
        // SAFETY: both hold `n` elements.
        unsafe { narrow(s, self.sums.as_ptr(), self.output.as_mut_ptr(), n) }
    }
}

struct Block<'a, E> {
    grad: &'a [E],
    x: &'a [E],
    weight: Option<&'a [E]>,
    dx: &'a mut [E],
    /// `Σ grad·x̂` and, if the mean is subtracted, `Σ grad`, of the block's rows.
    sums: &'a mut [f32],
    n: usize,
    centers: bool,
    eps: f32,
    stream: bool,
}

impl<E: Element> Kernel for Block<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.x.len() / self.n;
        self.stream &= (self.dx.as_ptr() as usize).is_multiple_of(S::LANES * size_of::<E>())
            && (self.n * size_of::<E>()).is_multiple_of(S::LANES * size_of::<E>());
        let mut row = 0;
        while row + GROUP <= rows {
            self.choose::<S, GROUP>(s, row);
            row += GROUP;
        }
        while row < rows {
            self.choose::<S, 1>(s, row);
            row += 1;
        }
        if self.stream {
            s.stream_fence();
        }
    }
}

impl<E: Element> Block<'_, E> {
    #[inline(always)]
    fn choose<S: Simd, const R: usize>(&mut self, s: S, row: usize) {
        match (self.centers, self.weight.is_some()) {
            (true, true) => self.rows::<S, R, true, true>(s, row),
            (true, false) => self.rows::<S, R, true, false>(s, row),
            (false, true) => self.rows::<S, R, false, true>(s, row),
            (false, false) => self.rows::<S, R, false, false>(s, row),
        }
    }

    /// The gradients of `R` rows from `row` on.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const CENTERS: bool, const WEIGHT: bool>(&mut self, s: S, row: usize) {
        let n = self.n;
        let start = row * n;
        let mut factors = [[s.splat(0.0); 5]; R];
        for (r, factors) in factors.iter_mut().enumerate() {
            let part = start + r * n..start + (r + 1) * n;
            let Slopes { scaling, first, second } =
                slopes::<S, E, CENTERS, WEIGHT>(s, &self.grad[part.clone()], &self.x[part], self.weight, self.eps);
            let Scaling { mean, lost, rstd } = scaling;
            let shift = s.splat(-lost * rstd);
            *factors = [s.splat(mean), s.splat(rstd), shift, s.splat(-first * rstd), s.splat(second * rstd)];
        }
        let [grad, x] = [self.grad, self.x].map(|t| t[start..start + R * n].as_ptr());
        let dx = self.dx[start..start + R * n].as_mut_ptr();
        let weight = self.weight.map_or(std::ptr::null(), |w| w[..n].as_ptr());
        let rows = Rows::<S, E, R, CENTERS, WEIGHT> { s, grad, x, weight, dx, n, factors, stream: self.stream };
        let sums = self.sums[..if CENTERS { 2 * n } else { n }].as_mut_ptr();
        let whole = n - n % S::LANES;
        // SAFETY: the rows, the weight and the sums have `n` elements (twice that for two sums), and `i` plus what is
        // read and written stays below it.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let [dweight, dbias] = rows.column(i, S::LANES);
                accumulate(s, sums.add(i), S::LANES, dweight, row == 0);
                if CENTERS {
                    accumulate(s, sums.add(n + i), S::LANES, dbias, row == 0);
                }
            }
            if whole < n {
                let [dweight, dbias] = rows.column(whole, n - whole);
                accumulate(s, sums.add(whole), n - whole, dweight, row == 0);
                if CENTERS {
                    accumulate(s, sums.add(n + whole), n - whole, dbias, row == 0);
                }
            }
        }
    }
}

/// Adds a vector's first `n` lanes to the sums at `p`, or makes them the sums.
///
/// # Safety
/// `p` has `n ≤ LANES` elements.
#[inline(always)]
unsafe fn accumulate<S: Simd>(s: S, p: *mut f32, n: usize, v: S::F, first: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = if first { v } else { s.add(get(s, p, n), v) };
        if n >= S::LANES { s.store(p, v) } else { s.store_partial(p, n, v) }
    }
}

/// The first `n ≤ LANES` elements from `p` on, and zeros.
///
/// # Safety
/// `p` has `n` elements.
#[inline(always)]
unsafe fn get<S: Simd, E: Element>(s: S, p: *const E, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if n >= S::LANES { E::load(s, p) } else { E::load_partial(s, p, n, 0.0) } }
}

/// `R` rows that are written together.
struct Rows<S: Simd, E, const R: usize, const CENTERS: bool, const WEIGHT: bool> {
    s: S,
    grad: *const E,
    x: *const E,
    weight: *const E,
    dx: *mut E,
    n: usize,
    /// Of each row: mean, rstd, −lost·rstd, −mean(ĝ)·rstd and mean(ĝ·x̂)·rstd.
    factors: [[S::F; 5]; R],
    stream: bool,
}

impl<S: Simd, E: Element, const R: usize, const CENTERS: bool, const WEIGHT: bool> Rows<S, E, R, CENTERS, WEIGHT> {
    /// Writes `n ≤ LANES` columns of `dx` from column `i` on; returns the rows' sums of `grad·x̂` and `grad`.
    ///
    /// # Safety
    /// `i + n` is at most the rows' length.
    #[inline(always)]
    unsafe fn column(&self, i: usize, n: usize) -> [S::F; 2] {
        let s = self.s;
        let mut sums = [s.splat(0.0); 2];
        // SAFETY (this block): the caller's promise.
        unsafe {
            let weight = if WEIGHT { get(s, self.weight.add(i), n) } else { s.splat(1.0) };
            for (r, &[mean, rstd, shift, first, second]) in self.factors.iter().enumerate() {
                let at = r * self.n + i;
                let (g, x) = (get(s, self.grad.add(at), n), get(s, self.x.add(at), n));
                let unit = if CENTERS { s.fma(s.sub(x, mean), rstd, shift) } else { s.mul(x, rstd) };
                let weighted = if WEIGHT { s.mul(g, weight) } else { g };
                let slope = if CENTERS { s.fma(weighted, rstd, first) } else { s.mul(weighted, rstd) };
                let dx = s.neg_fma(unit, second, slope);
                let p = self.dx.add(at);
                if n < S::LANES {
                    E::store_partial(s, p, n, dx);
                } else if self.stream {
                    // The rows that come next: reads and writes overlap.
                    s.prefetch_far(self.grad.wrapping_add(at + R * self.n));
                    s.prefetch_far(self.x.wrapping_add(at + R * self.n));
                    E::stream(s, p, dx);
                } else {
                    E::store(s, p, dx);
                }
                sums[0] = s.fma(g, unit, sums[0]);
                if CENTERS {
                    sums[1] = s.add(sums[1], g);
                }
            }
        }
        sums
    }
}

/// A row's scaling, and the means of `ĝ` and of `ĝ·x̂`.
struct Slopes {
    scaling: Scaling,
    first: f32,
    second: f32,
}

#[inline(always)]
fn slopes<S: Simd, E: Element, const CENTERS: bool, const WEIGHT: bool>(
    s: S,
    grad: &[E],
    x: &[E],
    weight: Option<&[E]>,
    eps: f32,
) -> Slopes {
    let n = x.len();
    let block = BLOCK_VECTORS * S::LANES;
    let (mut moments, mut origin) = (Moments::default(), 0.0);
    // Σ ĝ, and Σ ĝ·(x − origin) with the first block's mean as the origin.
    let (mut first, mut second) = (0.0, 0.0);
    let mut squares = 0.0;
    for start in (0..n).step_by(block) {
        let part = start..(start + block).min(n);
        let count = part.len() as f64;
        let x = &x[part.clone()];
        let center = if CENTERS { (f64::from(total(s, x)) / count) as f32 } else { 0.0 };
        let weight = weight.map(|w| &w[part.clone()]);
        let sums = products::<S, E, CENTERS, WEIGHT>(s, &grad[part], x, weight, center).map(f64::from);
        if CENTERS {
            if start == 0 {
                origin = f64::from(center);
            }
            moments = moments.merge(Moments::about(count, center, sums[2], sums[3]));
            first += sums[0];
            second += sums[1] + (f64::from(center) - origin) * sums[0];
        } else {
            second += sums[1];
            squares += sums[3];
        }
    }
    let count = n as f64;
    let scaling = if CENTERS { Scaling::of(moments, eps) } else { Scaling::without_mean(squares / count, eps) };
    let second = second - (moments.mean - origin) * first;
    Slopes { scaling, first: (first / count) as f32, second: (second / count * f64::from(scaling.rstd)) as f32 }
}

/// The sum of a slice.
#[inline(always)]
fn total<S: Simd, E: Element>(s: S, x: &[E]) -> f32 {
    let (n, p) = (x.len(), x.as_ptr());
    let mut sums = [s.splat(0.0); 4];
    let mut i = 0;
    // SAFETY: `i` plus what is read stays within the slice.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, E::load(s, p.add(i + k * S::LANES)));
            }
            i += 4 * S::LANES;
        }
        while i < n {
            sums[0] = s.add(sums[0], get(s, p.add(i), n - i));
            i += S::LANES;
        }
    }
    s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// `Σ ĝ`, `Σ ĝ·d`, `Σ d` and `Σ d²` with `d = x − center`.
#[inline(always)]
pub(crate) fn products<S: Simd, E: Element, const CENTERS: bool, const WEIGHT: bool>(
    s: S,
    grad: &[E],
    x: &[E],
    weight: Option<&[E]>,
    center: f32,
) -> [f32; 4] {
    let n = x.len();
    let (g, x) = (grad[..n].as_ptr(), x.as_ptr());
    let w = weight.map_or(std::ptr::null(), |w| w[..n].as_ptr());
    let center = s.splat(center);
    let mut sums = [[s.splat(0.0); 4]; 2];
    let mut i = 0;
    // SAFETY: `i` plus what is read stays within the slices.
    unsafe {
        while i + 2 * S::LANES <= n {
            for (k, sums) in sums.iter_mut().enumerate() {
                let at = i + k * S::LANES;
                let weighted = weigh::<S, E, WEIGHT>(s, E::load(s, g.add(at)), w.wrapping_add(at), S::LANES);
                *sums = extend::<S, CENTERS>(s, *sums, weighted, E::load(s, x.add(at)), center);
            }
            i += 2 * S::LANES;
        }
        while i < n {
            let left = (n - i).min(S::LANES);
            let weighted = weigh::<S, E, WEIGHT>(s, get(s, g.add(i), left), w.wrapping_add(i), left);
            let inside = s.gt_i(s.splat_i(left as i32), s.iota_i());
            let x = s.select(inside, get(s, x.add(i), left), center);
            sums[0] = extend::<S, CENTERS>(s, sums[0], weighted, x, center);
            i += S::LANES;
        }
    }
    let mut out = [0.0; 4];
    for (k, out) in out.iter_mut().enumerate() {
        *out = s.reduce_add(s.add(sums[0][k], sums[1][k]));
    }
    out
}

/// A vector of the gradient times the weight at `w`.
///
/// # Safety
/// `w` has `n` elements if there is a weight.
#[inline(always)]
unsafe fn weigh<S: Simd, E: Element, const WEIGHT: bool>(s: S, g: S::F, w: *const E, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    if WEIGHT { s.mul(g, unsafe { get(s, w, n) }) } else { g }
}

#[inline(always)]
fn extend<S: Simd, const CENTERS: bool>(s: S, sums: [S::F; 4], weighted: S::F, x: S::F, center: S::F) -> [S::F; 4] {
    if !CENTERS {
        return [sums[0], s.fma(weighted, x, sums[1]), sums[2], s.fma(x, x, sums[3])];
    }
    let d = s.sub(x, center);
    [s.add(sums[0], weighted), s.fma(weighted, d, sums[1]), s.add(sums[2], d), s.fma(d, d, sums[3])]
}
