//! Extrema on the CPU: eight accumulators for values; for an index, the block with the extremum is remembered and
//! searched at the end, so that looking for the index costs no more than looking for the value.

use super::Kind;
use crate::reduction::lines::{Fold, Slab, Step, accumulate, fold_rows, load, reduce, store};
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::simd::Simd;
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::marker::PhantomData;

/// Vectors of a block.
const BLOCK: usize = 64;

pub(super) fn extrema(kind: Kind, x: &Tensor, dims: (usize, usize, usize), y: &mut Tensor) -> Result<()> {
    match x.dtype() {
        DType::F16 => typed::<f16>(kind, x, dims, y),
        DType::BF16 => typed::<bf16>(kind, x, dims, y),
        _ => typed::<f32>(kind, x, dims, y),
    }
}

fn typed<E: Element + Scalar>(kind: Kind, x: &Tensor, dims: (usize, usize, usize), y: &mut Tensor) -> Result<()> {
    let x = x.as_slice::<E>()?;
    match kind {
        Kind::Max => reduce(Value::<E, true>(PhantomData), x, dims, y.as_mut_slice::<E>()?),
        Kind::Min => reduce(Value::<E, false>(PhantomData), x, dims, y.as_mut_slice::<E>()?),
        Kind::Argmax => reduce(Index::<true>, x, dims, y.as_mut_slice::<i64>()?),
        Kind::Argmin => reduce(Index::<false>, x, dims, y.as_mut_slice::<i64>()?),
    }
    Ok(())
}

/// The larger (or smaller) value, NaN if either is.
#[derive(Clone, Copy)]
struct Best<const LARGEST: bool>;

impl<const LARGEST: bool> Step for Best<LARGEST> {
    const NEUTRAL: f32 = if LARGEST { f32::NEG_INFINITY } else { f32::INFINITY };

    #[inline(always)]
    fn step<S: Simd>(self, s: S, a: S::F, v: S::F) -> S::F {
        if LARGEST { s.max_nan(a, v) } else { s.min_nan(a, v) }
    }
    #[inline(always)]
    fn join<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        self.step(s, a, b)
    }
}

/// The extremum of contiguous elements.
#[inline(always)]
fn extremum<S: Simd, E: Element, const LARGEST: bool>(s: S, x: &[E]) -> f32 {
    let best = accumulate(s, x, Best::<LARGEST>);
    if LARGEST { s.reduce_max(best) } else { s.reduce_min(best) }
}

#[derive(Clone, Copy)]
struct Value<E, const LARGEST: bool>(PhantomData<E>);

impl<E: Element + Scalar, const LARGEST: bool> Fold<E> for Value<E, LARGEST> {
    type State = f32;
    type Out = E;

    #[inline(always)]
    fn empty(self) -> f32 {
        Best::<LARGEST>::NEUTRAL
    }

    #[inline(always)]
    fn run<S: Simd>(self, s: S, x: &[E]) -> f32 {
        extremum::<S, E, LARGEST>(s, x)
    }

    #[inline(always)]
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [f32]) {
        fold_rows(s, slab, states, Best::<LARGEST>);
    }

    #[inline(always)]
    fn merge(self, a: f32, b: f32) -> f32 {
        let better = if LARGEST { b > a } else { b < a };
        if !a.is_nan() && (better || b.is_nan()) { b } else { a }
    }

    #[inline(always)]
    fn finish(self, state: f32) -> E {
        <E as Element>::from_f32(state)
    }
}

#[derive(Clone, Copy)]
struct Index<const LARGEST: bool>;

/// An extremum and where it was first.
#[derive(Clone, Copy)]
struct Found {
    value: f32,
    index: usize,
}

impl<E: Element, const LARGEST: bool> Fold<E> for Index<LARGEST> {
    type State = Found;
    type Out = i64;

    #[inline(always)]
    fn empty(self) -> Found {
        Found { value: Best::<LARGEST>::NEUTRAL, index: usize::MAX }
    }

    #[inline(always)]
    fn run<S: Simd>(self, s: S, x: &[E]) -> Found {
        let block = BLOCK * S::LANES;
        let (mut value, mut start) = (Best::<LARGEST>::NEUTRAL, 0);
        for (k, part) in x.chunks(block).enumerate() {
            let v = extremum::<S, E, LARGEST>(s, part);
            let better = if LARGEST { v > value } else { v < value };
            if better || v.is_nan() {
                (value, start) = (v, k * block);
            }
            if v.is_nan() {
                break;
            }
        }
        let part = &x[start..x.len().min(start + block)];
        Found { value, index: start + first_of(s, part, value) }
    }

    #[inline(always)]
    fn columns<S: Simd>(self, s: S, slab: Slab<'_, E>, states: &mut [Found]) {
        let columns = slab.columns;
        let (mut values, mut rows) = (vec![0.0f32; columns], vec![0.0f32; columns]);
        // Row numbers of a slab are small enough to be exact in f32.
        for first in (0..slab.rows).step_by(8) {
            for j in (0..columns).step_by(S::LANES) {
                let left = columns - j;
                // SAFETY (this block): `left` elements of the rows and of the buffers remain from `j` on.
                unsafe {
                    let mut value = load(s, slab.row(0).as_ptr().add(j), left, 0.0);
                    let mut row = s.splat(0.0);
                    if first > 0 {
                        value = load(s, values.as_ptr().add(j), left, 0.0);
                        row = load(s, rows.as_ptr().add(j), left, 0.0);
                    }
                    for k in first..slab.rows.min(first + 8) {
                        let v = load(s, slab.row(k).as_ptr().add(j), left, 0.0);
                        let worse = if LARGEST { s.le(v, value) } else { s.le(value, v) };
                        let wins = s.and_m(s.not_m(worse), s.eq(value, value));
                        value = s.select(wins, v, value);
                        row = s.select(wins, s.splat(k as f32), row);
                    }
                    store(s, values.as_mut_ptr().add(j), left, value);
                    store(s, rows.as_mut_ptr().add(j), left, row);
                }
            }
        }
        for ((state, &value), &row) in states.iter_mut().zip(&values).zip(&rows) {
            *state = Found { value, index: row as usize };
        }
    }

    #[inline(always)]
    fn merge(self, a: Found, b: Found) -> Found {
        let better = if LARGEST { b.value > a.value } else { b.value < a.value };
        let wins = match (a.value.is_nan(), b.value.is_nan()) {
            (false, false) => better || (a.value == b.value && b.index < a.index),
            (true, true) => b.index < a.index,
            (_, b_is_nan) => b_is_nan,
        };
        if wins { b } else { a }
    }

    #[inline(always)]
    fn moved(self, state: Found, scale: usize, offset: usize) -> Found {
        Found { index: state.index * scale + offset, ..state }
    }

    #[inline(always)]
    fn finish(self, state: Found) -> i64 {
        state.index as i64
    }
}

/// Where `value` first is; NaN is equal to NaN.
#[inline(always)]
fn first_of<S: Simd, E: Element>(s: S, x: &[E], value: f32) -> usize {
    let wanted = s.splat(value);
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: `i` is in bounds, and so are the elements that remain.
        let v = unsafe { load(s, x.as_ptr().add(i), x.len() - i, 0.0) };
        let hits = s.mask_bits(if value.is_nan() { s.is_nan(v) } else { s.eq(v, wanted) });
        if hits != 0 {
            return i + hits.trailing_zeros() as usize;
        }
    }
    0
}
