//! Products on the CPU: blocks of packed panels, or one pass over the large operand where the other is a few vectors.
//!
//! Our own tiles and not faer's: they serve every dtype at every vector level and are the ones that the agreement test
//! forces, results do not depend on the number of threads, and a build has one dependency less.

mod blocked;
mod dot;
mod number;
mod plain;
mod skinny;
pub(crate) mod update;

use super::plan::Plan;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};
use bimetal_core::{DType, Result, Scalar, Tensor};
use blocked::{Extents, Lines, Path, Target, product};
use half::{bf16, f16};
use number::Number;
use plain::{Finish, Plain};
use skinny::{MOST_VECTORS, Skinny};
use std::any::TypeId;
use std::marker::PhantomData;

pub(super) fn matmul(plan: &Plan, alpha: f64, a: &Tensor, b: &Tensor, d: &mut Tensor) -> Result<()> {
    if plan.k == 0 {
        d.host_bytes_mut()?.fill(0);
    }
    if plan.k == 0 || plan.numel() == 0 {
        return Ok(());
    }
    let level = Level::current();
    match a.dtype() {
        DType::F16 => typed::<f16, _>(plan, plain(level, alpha), level, alpha, a, b, d),
        DType::F64 => typed::<f64, _>(plan, plain(level, alpha), level, alpha, a, b, d),
        #[cfg(target_arch = "x86_64")]
        DType::BF16 if let Some(pairs) = dot::Pairs::new(level, alpha) => {
            typed::<bf16, _>(plan, pairs, level, alpha, a, b, d)
        }
        DType::BF16 => typed::<bf16, _>(plan, plain(level, alpha), level, alpha, a, b, d),
        #[cfg(target_arch = "x86_64")]
        DType::I8 if let Some(quads) = dot::Quads::new(level) => typed::<i8, _>(plan, quads, level, alpha, a, b, d),
        DType::I8 => typed::<i8, _>(plan, plain(level, alpha), level, alpha, a, b, d),
        _ => typed::<f32, _>(plan, plain(level, alpha), level, alpha, a, b, d),
    }
}

fn plain<E: Number>(level: Level, alpha: f64) -> Plain<E> {
    Plain { level, alpha, element: PhantomData }
}

/// One product of the batch.
struct Matrices<'a, E: Number> {
    plan: &'a Plan,
    level: Level,
    alpha: f64,
    a: &'a [E],
    b: &'a [E],
    d: Target<E::Out>,
}

fn typed<E, P>(plan: &Plan, path: P, level: Level, alpha: f64, a: &Tensor, b: &Tensor, d: &mut Tensor) -> Result<()>
where
    E: Number<Out: Scalar> + Scalar,
    P: Path<Source = E, Out = E::Out>,
{
    let (a, b) = (a.as_slice::<E>()?, b.as_slice::<E>()?);
    let d = Target(d.as_mut_slice::<E::Out>()?.as_mut_ptr());
    let products = plan.products();
    let extents = Extents { m: plan.m, n: plan.n, k: plan.k };
    let each = |index: usize, shared: bool| {
        let [a_start, b_start] = plan.starts(index);
        // SAFETY: the result has `m·n` elements for each product.
        let d = Target(unsafe { d.at(index * plan.m * plan.n) });
        let one = Matrices { plan, level, alpha, a: &a[a_start..], b: &b[b_start..], d };
        if plan.k == 1 {
            one.outer(shared);
        } else if plan.m.min(plan.n) <= MOST_VECTORS {
            one.skinny(shared);
        } else {
            let a = Lines { ptr: one.a.as_ptr(), line: plan.a[0], step: plan.a[1] };
            let b = Lines { ptr: one.b.as_ptr(), line: plan.b[1], step: plan.b[0] };
            // SAFETY: the plan's extents and strides are those of the operands, and `d` is this product's.
            unsafe { product(path, extents, a, b, d, plan.n, shared && extents.is_shared_work()) };
        }
    };
    if products < 2 * parallel::threads() {
        (0..products).for_each(|index| each(index, true));
    } else {
        let bytes = (plan.m * plan.k + plan.k * plan.n + plan.m * plan.n) * size_of::<E>();
        // A product of many reuses what it reads: its arithmetic counts as if eight multiply-adds were a byte.
        let work = bytes.max(plan.m * plan.n * plan.k / 8);
        let grain = (parallel::BYTES_PER_THREAD / work.max(1)).max(1);
        parallel::ranges(products, grain, |range| range.for_each(|index| each(index, false)));
    }
    Ok(())
}

impl<E: Number> Matrices<'_, E> {
    /// One operand is a few vectors.
    fn skinny(&self, shared: bool) {
        let Plan { m, n, k, a, b, .. } = *self.plan;
        let along = |stride: usize| usize::from(stride == 1);
        // With few on both sides, the one that is contiguous along the sum is read as the large one.
        let left = if m.max(n) <= MOST_VECTORS { along(b[0]) >= along(a[1]) } else { m <= n };
        let (count, lines) = if left { (m, n) } else { (n, m) };
        let (vector, vector_step, small) = if left { (a[0], a[1], self.a) } else { (b[1], b[0], self.b) };
        let (strides, large) = if left { ([b[1], b[0]], self.b) } else { (a, self.a) };
        let step = if left { [n, 1] } else { [1, n] };
        let mut memory = Scratch::take((count * k * size_of::<E::Sum>()).div_ceil(4) + 2);
        let start = memory.as_mut_ptr().cast::<u8>();
        let start = start.wrapping_add(start.align_offset(8)).cast::<E::Sum>();
        // SAFETY: the scratch memory is as long, aligned for any sum, and initialised.
        let vectors = unsafe { std::slice::from_raw_parts_mut(start, count * k) };
        for (i, to) in vectors.chunks_exact_mut(k).enumerate() {
            for (l, x) in to.iter_mut().enumerate() {
                *x = small[i * vector + l * vector_step].widened();
            }
        }
        // A vector's stride along its only line is 1 whatever the plan says.
        let strides = if strides[0] != 1 && strides[1] != 1 { [strides[0], 1] } else { strides };
        let (level, alpha, d) = (self.level, self.alpha, self.d);
        Skinny { level, alpha, vectors, count, k, large, strides, lines, d, step }.run(shared);
    }

    /// The inner dimension is 1: bound by writing the result.
    fn outer(&self, shared: bool) {
        let Plan { m, n, ref a, ref b, .. } = *self.plan;
        let row = n * size_of::<E::Out>();
        let stream = m * row >= STREAM_BYTES;
        let work = |rows: std::ops::Range<usize>| {
            for i in rows {
                let x = self.a[i * a[0]];
                // SAFETY: the row is within the result, and this thread's.
                let out = unsafe { self.d.at(i * n) };
                dispatch_at(self.level, Row { x, y: self.b, stride: b[1], n, out, alpha: self.alpha, stream });
            }
        };
        if shared { parallel::ranges(m, parallel::BYTES_PER_THREAD / row.max(1), work) } else { work(0..m) }
    }
}

/// Bytes of an outer product from which it is written past the caches, where an ordinary store first reads the line that it
/// overwrites: 2048x4096 took 1.9 ms so and takes 1.3 ms on two cores.
const STREAM_BYTES: usize = 16 << 20;

impl<E: Number> Row<'_, E> {
    /// The row of f32, aligned, past the caches.
    ///
    /// # Safety
    /// All elements are f32.
    #[inline(always)]
    unsafe fn streamed<S: Simd>(&self, s: S) {
        let (y, out, n) = (self.y.as_ptr().cast::<f32>(), self.out.cast::<f32>(), self.n);
        // SAFETY: the caller's promise; `n` elements of both, and the result starts on a vector.
        unsafe {
            let x = s.splat((&raw const self.x).cast::<f32>().read());
            let whole = n / S::LANES * S::LANES;
            for i in (0..whole).step_by(S::LANES) {
                s.stream(out.add(i), s.mul(x, s.load(y.add(i))));
            }
            if whole < n {
                s.store_partial(out.add(whole), n - whole, s.mul(x, s.load_partial(y.add(whole), n - whole, 0.0)));
            }
        }
        s.stream_fence();
    }
}

/// Elements of a row that are computed before they are rounded and stored.
const PIECE: usize = 512;

/// A vector times an element.
struct Row<'a, E: Number> {
    x: E,
    y: &'a [E],
    stride: usize,
    n: usize,
    out: *mut E::Out,
    alpha: f64,
    stream: bool,
}

impl<E: Number> Kernel for Row<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = E::lanes::<S>();
        let aligned = (self.out as usize).is_multiple_of(MAX_LANES * size_of::<f32>());
        if self.stream && aligned && self.stride == 1 && self.alpha == 1.0 && TypeId::of::<E>() == TypeId::of::<f32>() {
            // SAFETY: the elements are those of f32.
            return unsafe { self.streamed(s) };
        }
        let (zero, one) = (E::Sum::default(), self.x.widened());
        let x = E::splat(s, one);
        let mut sums = [zero; PIECE];
        for start in (0..self.n).step_by(PIECE) {
            let n = PIECE.min(self.n - start);
            let whole = if self.stride == 1 { n / lanes * lanes } else { 0 };
            // SAFETY (this block): the piece is within the vector, the result's row and `sums`.
            unsafe {
                for i in (0..whole).step_by(lanes) {
                    let y = E::load(s, self.y.as_ptr().add(start + i));
                    E::store_sums(s, sums.as_mut_ptr().add(i), E::fma(s, x, y, E::splat(s, zero)));
                }
                for (i, sum) in sums.iter_mut().enumerate().take(n).skip(whole) {
                    *sum = E::mul_add(one, self.y[(start + i) * self.stride].widened(), zero);
                }
                let out = self.out.add(start);
                Finish::<E> { sums: sums.as_mut_ptr(), out, n, alpha: self.alpha }.run(s);
            }
        }
    }
}
