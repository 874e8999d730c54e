//! QR on the CPU: small matrices of a batch in the lanes of vectors, larger ones one by one, large ones by panels.

mod lanes;
pub(crate) mod large;
pub(crate) mod panel;
pub(crate) mod real;
mod rows;
pub(crate) mod tiles;

use super::{Dims, Form};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Level, dispatch_at};
use bimetal_core::{DType, Result, Tensor};
use half::{bf16, f16};
use real::{Real, Stored};

/// When which code is used.
struct Params {
    /// Most elements of a matrix whose batch goes into lanes: with Q and sixteen of each, 1 MiB of f32.
    in_lanes: usize,
    /// The part of the lanes that must be in use.
    lanes_used: usize,
    /// Extents from which panels win: by the smaller one, and by both.
    blocked: usize,
    blocked_tall: [usize; 2],
    /// Multiply-adds for which a second thread is woken.
    thread_work: usize,
}

const PARAMS: Params =
    Params { in_lanes: 64 * 96, lanes_used: 4, blocked: 48, blocked_tall: [256, 16], thread_work: 100_000 };

/// The outputs of one matrix or more: Q and R, or the packed factors and τ.
struct Parts<'a, E> {
    first: &'a mut [E],
    second: &'a mut [E],
    status: &'a mut [i32],
}

/// Whether one matrix is factorised by panels.
fn is_large(m: usize, n: usize) -> bool {
    let (long, short) = (m.max(n), m.min(n));
    short >= PARAMS.blocked || long >= PARAMS.blocked_tall[0] && short >= PARAMS.blocked_tall[1]
}

pub(super) fn factor(form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    match a.dtype() {
        DType::F64 => run::<f64>(form, dims, a, outputs),
        DType::F16 => run::<f16>(form, dims, a, outputs),
        DType::BF16 => run::<bf16>(form, dims, a, outputs),
        _ => run::<f32>(form, dims, a, outputs),
    }
}

fn run<E: Stored>(form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [first, second, status] = outputs else { unreachable!("outputs were checked") };
    let a = a.as_slice::<E>()?;
    let sizes = [first.numel(), second.numel()].map(|size| size.checked_div(dims.batch).unwrap_or(0));
    let first = Shared::new(first.as_mut_slice::<E>()?);
    let second = Shared::new(second.as_mut_slice::<E>()?);
    let status = Shared::new(status.as_mut_slice::<i32>()?);
    let Dims { batch, m, n, k, .. } = *dims;
    let level = Level::current();
    let lanes = E::Work::lanes_at(level);
    let work = 4 * m * n * k + m * n;
    let together = if m * n <= PARAMS.in_lanes && lanes > 1 { lanes } else { 1 };
    // Groups of whole vectors; what is left over goes into lanes only if it fills enough of them.
    let groups = batch.div_ceil(together);
    let cost = work * if together > 1 { together / 4 } else { 1 };
    let large = is_large(m, n);
    let one = |i: usize, count: usize| {
        // SAFETY: each matrix is given out once.
        let parts = unsafe {
            Parts {
                first: first.slice(i * sizes[0]..(i + count) * sizes[0]),
                second: second.slice(i * sizes[1]..(i + count) * sizes[1]),
                status: status.slice(i..i + count),
            }
        };
        let a = &a[i * m * n..(i + count) * m * n];
        if count > 1 {
            dispatch_at(level, lanes::Group { form, dims: *dims, a, parts });
        } else if large {
            large::factor(form, dims, a, parts, if batch == 1 { parallel::threads() } else { 1 });
        } else {
            dispatch_at(level, rows::Single { form, dims: *dims, a, parts });
        }
    };
    let group = |g: usize| {
        let (start, end) = (g * together, ((g + 1) * together).min(batch));
        if (end - start) * PARAMS.lanes_used >= together {
            one(start, end - start);
        } else {
            (start..end).for_each(|i| one(i, 1));
        }
    };
    parallel::ranges(groups, PARAMS.thread_work.div_ceil(cost.max(1)), |range| range.for_each(group));
    Ok(())
}
