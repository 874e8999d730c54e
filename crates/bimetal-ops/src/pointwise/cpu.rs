//! Functions of vectors applied to host tensors: every kernel sees contiguous f32 stretches, read and written in place
//! where the tensors are such, through cache-resident blocks where they are broadcast or 16 bits wide. So a function is
//! compiled once for each vector level, whatever the dtypes and shapes.

use super::Layout;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch, stream_fence};
use bimetal_core::cpu::{element, parallel};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};

/// Elements of a block: four of f32 fit into half of a 32 KiB first-level cache.
const BLOCK: usize = 1024;

/// Innermost extents below this are gathered into blocks row by row; longer rows are stretches of their own.
const SHORT_ROW: usize = 256;

/// A function of `K` numbers.
pub(crate) trait Function<const K: usize>: Copy + Send + Sync {
    /// The function on vectors.
    fn eval<S: Simd>(self, s: S, x: [S::F; K]) -> S::F;
}

/// A truth value of two numbers.
pub(crate) trait Predicate: Copy + Send + Sync {
    /// The predicate on vectors.
    fn eval<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::M;
}

/// Applies `f` to float tensors of one dtype that broadcast to `y`'s shape.
pub(crate) fn map<const K: usize>(f: impl Function<K>, x: [&Tensor; K], y: &mut Tensor) -> Result<()> {
    let run = |x: [&[f32]; K], y: &mut [f32], stream: bool| dispatch(Map { f, x, y, stream });
    match y.dtype() {
        DType::F16 => drive::<f16, f16, K>(x, y, &run),
        DType::BF16 => drive::<bf16, bf16, K>(x, y, &run),
        _ => drive::<f32, f32, K>(x, y, &run),
    }
}

/// Applies `f` to two float tensors of one dtype that broadcast to the shape of `y`, a bool tensor.
pub(crate) fn test(f: impl Predicate, x: [&Tensor; 2], y: &mut Tensor) -> Result<()> {
    let run = |[a, b]: [&[f32]; 2], y: &mut [bool], _: bool| dispatch(Test { f, a, b, y });
    match x[0].dtype() {
        DType::F16 => drive::<f16, bool, 2>(x, y, &run),
        DType::BF16 => drive::<bf16, bool, 2>(x, y, &run),
        _ => drive::<f32, bool, 2>(x, y, &run),
    }
}

/// The functions of a family on vectors, each of `K` operands and the attributes.
macro_rules! functions {
    ($k:literal: $($variant:ident |$s:ident, [$($x:ident),+], $p:ident| $value:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            struct $variant([f32; 2]);

            impl $crate::pointwise::cpu::Function<$k> for $variant {
                #[inline(always)]
                fn eval<S: bimetal_core::cpu::simd::Simd>(self, $s: S, [$($x),+]: [S::F; $k]) -> S::F {
                    let $p = self.0;
                    $value
                }
            }
        )*

        pub(super) fn apply(
            function: super::Function,
            p: [f32; 2],
            x: [&bimetal_core::Tensor; $k],
            y: &mut bimetal_core::Tensor,
        ) -> bimetal_core::Result<()> {
            match function {
                $(super::Function::$variant => $crate::pointwise::cpu::map($variant(p), x, y),)*
            }
        }
    };
}
pub(crate) use functions;

/// Operands have the output's length, or repeat one element, of which a vector of any level is given.
struct Map<'a, F, const K: usize> {
    f: F,
    x: [&'a [f32]; K],
    y: &'a mut [f32],
    stream: bool,
}

impl<F: Function<K>, const K: usize> Map<'_, F, K> {
    /// The value at `i`, of `LANES` elements.
    ///
    /// # Safety
    /// `i + LANES` is at most the length.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, s: S, i: usize) -> S::F {
        let mut x = [s.splat(0.0); K];
        for (v, x) in x.iter_mut().zip(&self.x) {
            // SAFETY: the caller's promise; a slice has the output's length or a vector that repeats.
            *v = unsafe { s.load(x.as_ptr().add(i & steps(x, self.y))) };
        }
        self.f.eval(s, x)
    }

    /// Writes `n < LANES` values from `i` on.
    ///
    /// # Safety
    /// `i + n` is at most the length.
    #[inline(always)]
    unsafe fn part<S: Simd>(&mut self, s: S, i: usize, n: usize) {
        let mut x = [s.splat(0.0); K];
        for (v, x) in x.iter_mut().zip(&self.x) {
            // SAFETY: as above.
            *v = unsafe { s.load_partial(x.as_ptr().add(i & steps(x, self.y)), n, 1.0) };
        }
        // SAFETY: the caller's promise.
        unsafe { s.store_partial(self.y.as_mut_ptr().add(i), n, self.f.eval(s, x)) }
    }
}

impl<F: Function<K>, const K: usize> Kernel for Map<'_, F, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let n = self.y.len();
        assert!(self.x.iter().all(|x| x.len() >= n.min(MAX_LANES)));
        let y = self.y.as_mut_ptr();
        let mut i = 0;
        // SAFETY (this block): `i` plus what is read or written stays at most `n`, the length of every slice; streaming
        // starts at a multiple of the vector's size.
        unsafe {
            if self.stream {
                let vector = S::LANES * size_of::<f32>();
                let head = ((vector - y as usize % vector) % vector / size_of::<f32>()).min(n);
                if head > 0 {
                    self.part(s, 0, head);
                    i = head;
                }
                while i + S::LANES <= n {
                    s.stream(y.add(i), self.at(s, i));
                    i += S::LANES;
                }
            } else {
                while i + 2 * S::LANES <= n {
                    let (first, second) = (self.at(s, i), self.at(s, i + S::LANES));
                    s.store(y.add(i), first);
                    s.store(y.add(i + S::LANES), second);
                    i += 2 * S::LANES;
                }
                if i + S::LANES <= n {
                    s.store(y.add(i), self.at(s, i));
                    i += S::LANES;
                }
            }
            if i < n {
                self.part(s, i, n - i);
            }
        }
    }
}

/// What an operand's index is masked with: nothing of it remains for one that repeats.
#[inline(always)]
fn steps<O>(x: &[f32], y: &[O]) -> usize {
    if x.len() >= y.len() { usize::MAX } else { 0 }
}

struct Test<'a, F> {
    f: F,
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [bool],
}

impl<F: Predicate> Kernel for Test<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.y.len();
        assert!(self.a.len().min(self.b.len()) >= n.min(MAX_LANES));
        let (a_steps, b_steps) = (steps(self.a, self.y), steps(self.b, self.y));
        let (a, b, y) = (self.a.as_ptr(), self.b.as_ptr(), self.y.as_mut_ptr().cast::<u8>());
        let mut i = 0;
        // SAFETY (this block): `i` plus what is read or written stays at most `n`, the length of every slice; only the
        // bytes 0 and 1 are written.
        unsafe {
            while i + MASK <= n {
                let mut mask = 0u64;
                for k in (0..MASK).step_by(S::LANES) {
                    let (a, b) = (a.add((i + k) & a_steps), b.add((i + k) & b_steps));
                    let m = self.f.eval(s, s.load(a), s.load(b));
                    mask |= u64::from(s.mask_bits(m)) << k;
                }
                for k in 0..MASK / 8 {
                    y.add(i + 8 * k).cast::<[u8; 8]>().write(spread(mask >> (8 * k)));
                }
                i += MASK;
            }
            while i < n {
                let count = S::LANES.min(n - i);
                let (a, b) = (a.add(i & a_steps), b.add(i & b_steps));
                let (a, b) = if count == S::LANES {
                    (s.load(a), s.load(b))
                } else {
                    (s.load_partial(a, count, 0.0), s.load_partial(b, count, 0.0))
                };
                let mask = s.mask_bits(self.f.eval(s, a, b));
                for k in 0..count {
                    y.add(i + k).write((mask >> k & 1) as u8);
                }
                i += count;
            }
        }
    }
}

/// Elements whose truth values are gathered before they are written.
const MASK: usize = 32;

/// The low eight bits as bytes 0 or 1: each byte keeps its own bit of a copy, which a carry moves to the top.
#[inline(always)]
fn spread(mask: u64) -> [u8; 8] {
    let own = (mask & 0xff).wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    (((own + 0x00_40_60_70_78_7c_7e_7f) >> 7) & 0x0101_0101_0101_0101).to_le_bytes()
}

/// What is written, and what kernels make of it.
trait Output: Scalar {
    type Made: Scalar;
    /// The output itself, if that is what kernels make.
    fn direct(y: &mut [Self]) -> Option<&mut [Self::Made]>;
    /// Room for a block that is rounded afterwards.
    fn made(block: &mut [f32]) -> &mut [Self::Made];
    /// Rounds a block, past the caches if `stream` is set.
    fn round(made: &[Self::Made], y: &mut [Self], stream: bool);
}

/// What is read.
trait Input: Element + Scalar {
    /// The values, if they are f32.
    fn direct(x: &[Self]) -> Option<&[f32]>;
}

impl Output for f32 {
    type Made = f32;
    fn direct(y: &mut [Self]) -> Option<&mut [f32]> {
        Some(y)
    }
    fn made(block: &mut [f32]) -> &mut [f32] {
        block
    }
    fn round(_: &[f32], _: &mut [f32], _: bool) {}
}

impl Output for bool {
    type Made = bool;
    fn direct(y: &mut [Self]) -> Option<&mut [bool]> {
        Some(y)
    }
    fn made(_: &mut [f32]) -> &mut [bool] {
        &mut []
    }
    fn round(_: &[bool], _: &mut [bool], _: bool) {}
}

impl Input for f32 {
    fn direct(x: &[Self]) -> Option<&[f32]> {
        Some(x)
    }
}

macro_rules! sixteen_bits {
    ($($t:ty),*) => {$(
        impl Input for $t {
            fn direct(_: &[Self]) -> Option<&[f32]> {
                None
            }
        }
        impl Output for $t {
            type Made = f32;
            fn direct(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
            fn made(block: &mut [f32]) -> &mut [f32] {
                block
            }
            fn round(made: &[f32], y: &mut [Self], stream: bool) {
                element::from_f32(made, y, stream);
            }
        }
    )*};
}

sixteen_bits!(f16, bf16);

type Run<'a, O, const K: usize> = &'a (dyn Fn([&[f32]; K], &mut [<O as Output>::Made], bool) + Sync);

fn drive<E: Input, O: Output, const K: usize>(x: [&Tensor; K], y: &mut Tensor, run: Run<O, K>) -> Result<()> {
    let layout = Layout::new(y.shape(), x.map(Tensor::shape));
    let mut data: [&[E]; K] = [&[]; K];
    for (data, x) in data.iter_mut().zip(x) {
        *data = x.as_slice::<E>()?;
    }
    let bytes = x.iter().map(|x| x.spec().bytes()).sum::<usize>() + y.spec().bytes();
    let stream = parallel::streams(bytes) && O::DTYPE != DType::Bool;
    let y = y.as_mut_slice::<O>()?;
    let plain = layout.is_contiguous() && data.iter().all(|x| E::direct(x).is_some());
    let grain = parallel::BYTES_PER_THREAD / (BLOCK * (K * size_of::<E>() + size_of::<O>()));
    parallel::units_mut(y, BLOCK, grain, |first, y| {
        let start = first * BLOCK;
        if plain && let Some(made) = O::direct(y) {
            let x = data.map(|x| E::direct(&x[start..start + made.len()]).unwrap_or_default());
            run(x, made, stream);
        } else {
            blocks::<E, O, K>(&layout, data, start, y, stream, run);
        }
        if stream {
            stream_fence();
        }
    });
    Ok(())
}

/// Runs over `y`, whose first element is number `start` of the output, in stretches of at most a block, or of at most a
/// row where nothing is converted.
fn blocks<E: Input, O: Output, const K: usize>(
    layout: &Layout<K>,
    data: [&[E]; K],
    start: usize,
    y: &mut [O],
    stream: bool,
    run: Run<O, K>,
) {
    let mut scratch = Scratch::take((K + 1) * BLOCK);
    let (operands, made) = scratch.split_at_mut(K * BLOCK);
    let row = layout.row();
    let short = row < SHORT_ROW;
    let in_place = !short && E::direct(&[]).is_some() && O::direct(&mut []).is_some();
    // Where a block that repeats one element holds it already.
    let mut filled = [usize::MAX; K];
    let mut done = 0;
    while done < y.len() {
        let at = start + done;
        let mut n = y.len() - done;
        if !in_place {
            n = n.min(BLOCK);
        }
        if !short {
            n = n.min(row - at % row);
        }
        let mut operands = operands.chunks_exact_mut(BLOCK);
        let x: [&[f32]; K] = std::array::from_fn(|k| {
            let block = operands.next().expect("one block for each operand");
            if short {
                gather(layout, k, data[k], at, &mut block[..n]);
                return &block[..n];
            }
            let offset = layout.offset(k, at);
            if layout.repeats(k) {
                if filled[k] != offset {
                    block[..MAX_LANES].fill(data[k][offset].to_f32());
                    filled[k] = offset;
                }
                return &block[..MAX_LANES];
            }
            let values = &data[k][offset..offset + n];
            E::direct(values).unwrap_or_else(|| {
                element::to_f32(values, &mut block[..n]);
                &block[..n]
            })
        });
        let part = &mut y[done..done + n];
        match O::direct(part) {
            Some(part) => run(x, part, stream),
            None => {
                let made = &mut O::made(made)[..n];
                run(x, made, false);
                O::round(made, part, stream);
            }
        }
        done += n;
    }
}

/// Element `at` and those after it of operand `k` as the output sees them.
fn gather<E: Element, const K: usize>(layout: &Layout<K>, k: usize, x: &[E], at: usize, block: &mut [f32]) {
    let row = layout.row();
    let mut done = 0;
    while done < block.len() {
        let column = (at + done) % row;
        let n = (row - column).min(block.len() - done);
        let offset = layout.offset(k, at + done);
        let part = &mut block[done..done + n];
        if layout.repeats(k) {
            part.fill(x[offset].to_f32());
        } else if n >= 32 {
            element::to_f32(&x[offset..offset + n], part);
        } else {
            for (v, x) in part.iter_mut().zip(&x[offset..offset + n]) {
                *v = x.to_f32();
            }
        }
        done += n;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bits_become_bytes() {
        for mask in 0..256u64 {
            let expected: Vec<u8> = (0..8).map(|k| (mask >> k & 1) as u8).collect();
            assert_eq!(super::spread(mask).as_slice(), expected, "{mask}");
        }
    }
}
