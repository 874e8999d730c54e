//! Histogram on the CPU: positions in vectors, corrected against the edges where one is near, and counted in several
//! tables in turn, because a count that was just stored is not at once ready to be loaded.

use super::Bins;
use bimetal_core::cpu::element::Element;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd, dispatch};
use bimetal_core::{DType, Result, Scalar, Tensor};
use half::{bf16, f16};
use std::sync::Mutex;

/// Tables of a thread, where they fit in its L1 cache.
const TABLES: usize = 4;

/// Largest table of which a thread has several.
const SMALL: usize = 2048;

/// Elements between two additions to the result: their counts fit in u32.
const SPAN: usize = 1 << 30;

pub(super) fn histogram(bins: &Bins, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let y = y.as_mut_slice::<i64>()?;
    match x.dtype() {
        DType::F16 => count(bins, x.as_slice::<f16>()?, y),
        DType::BF16 => count(bins, x.as_slice::<bf16>()?, y),
        _ => count(bins, x.as_slice::<f32>()?, y),
    }
    Ok(())
}

fn count<E: Element + Scalar>(bins: &Bins, x: &[E], y: &mut [i64]) {
    y.fill(0);
    // One slot more for what is not counted.
    let slots = y.len() + 1;
    let tables = if slots <= SMALL { TABLES } else { 1 };
    let total = Mutex::new(y);
    // A thread should have several elements for each count that it adds to the result.
    let grain = (parallel::BYTES_PER_THREAD / E::BYTES).max(8 * slots);
    parallel::ranges(x.len(), grain, |range| {
        let mut counts = vec![0u32; tables * slots];
        for x in x[range].chunks(SPAN) {
            dispatch(Span { bins, x, counts: &mut counts, tables });
            let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
            for table in counts.chunks_exact_mut(slots) {
                for (sum, count) in total.iter_mut().zip(&*table) {
                    *sum += i64::from(*count);
                }
                table.fill(0);
            }
        }
    });
}

struct Span<'a, E> {
    bins: &'a Bins,
    x: &'a [E],
    counts: &'a mut [u32],
    tables: usize,
}

impl<E: Element> Kernel for Span<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { bins, x, counts, tables } = self;
        if bins.error.is_infinite() {
            for v in x {
                counts[search(&bins.edges, v.to_f32())] += 1;
            }
            return;
        }
        let slots = bins.edges.len();
        let stride = if tables > 1 { slots } else { 0 };
        assert!(counts.len() >= slots.max(TABLES * stride));
        let whole = x.len() - x.len() % S::LANES;
        let mut slot = [0i32; MAX_LANES];
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a vector of elements remains from `i` on.
            let v = unsafe { E::load(s, x.as_ptr().add(i)) };
            locate(s, bins, v, &mut slot);
            for (lane, &slot) in slot[..S::LANES].iter().enumerate() {
                let table = if S::LANES == 1 { i } else { lane } % TABLES * stride;
                // SAFETY: `locate` gives numbers below `slots`, and there are `TABLES` tables of `stride` slots (or one
                // of `slots`), by the assertion.
                unsafe { *counts.get_unchecked_mut(table + slot as usize) += 1 };
            }
        }
        for v in &x[whole..] {
            counts[search(&bins.edges, v.to_f32())] += 1;
        }
    }
}

/// The slot of each lane: its bin, or the one after the last bin for what is not counted.
#[inline(always)]
fn locate<S: Simd>(s: S, bins: &Bins, v: S::F, slot: &mut [i32; MAX_LANES]) {
    let last = bins.edges.len() - 1;
    let (low, high) = (s.splat(bins.edges[0]), s.splat(bins.edges[last]));
    let inside = s.and_m(s.le(low, v), s.le(v, high));
    let position = s.mul(s.sub(v, low), s.splat(bins.scale));
    let below = s.floor(position);
    let rest = s.sub(position, below);
    let near = s.or_m(s.lt(rest, s.splat(bins.error)), s.lt(s.splat(1.0 - bins.error), rest));
    let bin = s.max(s.min(below, s.splat((last - 1) as f32)), s.splat(0.0));
    // SAFETY: `slot` holds a vector of any level.
    unsafe { s.store_i(slot.as_mut_ptr(), s.to_i(s.select(inside, bin, s.splat(last as f32)))) };
    let mut doubtful = s.mask_bits(s.and_m(inside, near));
    if doubtful != 0 {
        let lanes = s.to_array(v);
        while doubtful != 0 {
            let lane = doubtful.trailing_zeros() as usize;
            let (v, i) = (lanes[lane], slot[lane] as usize);
            let down = usize::from(v < bins.edges[i]);
            let up = usize::from(i + 1 < last && v >= bins.edges[i + 1]);
            slot[lane] = (i + up - down) as i32;
            doubtful &= doubtful - 1;
        }
    }
}

/// The slot of a value, by a search among the edges.
#[inline(always)]
fn search(edges: &[f32], v: f32) -> usize {
    let last = edges.len() - 1;
    if !(edges[0] <= v && v <= edges[last]) {
        return last;
    }
    (edges.partition_point(|&e| e <= v) - 1).min(last - 1)
}
