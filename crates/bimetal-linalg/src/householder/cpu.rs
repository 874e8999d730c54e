//! Reflectors on the CPU: a strip of columns meets all of them while it is in the second-level cache.

use super::{Dims, OrmqrParams};
use crate::lanes::transpose;
use crate::qr::large::{move_rows, width};
use crate::qr::panel::Panels;
use crate::qr::real::{Memory, Place, Real, Stored, reflect, reflector, scan};
use crate::qr::tiles::{padded, stride};
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};
use bimetal_core::{DType, Result, Tensor};
use half::{bf16, f16};

/// Reflectors from which they are applied in blocks.
const BLOCKED: usize = 48;
/// Vectors of a strip's rows.
const STRIP: usize = 8;
/// Multiply-adds for which a second thread is woken.
const THREAD_WORK: usize = 200_000;

pub(super) fn vectors(dims: [usize; 2], x: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    match x.dtype() {
        DType::F64 => vectors_of::<f64>(dims, x, outputs),
        DType::F16 => vectors_of::<f16>(dims, x, outputs),
        DType::BF16 => vectors_of::<bf16>(dims, x, outputs),
        _ => vectors_of::<f32>(dims, x, outputs),
    }
}

fn vectors_of<E: Stored>([count, m]: [usize; 2], x: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [v, tau, beta, status] = outputs else { unreachable!("outputs were checked") };
    let x = x.as_slice::<E>()?;
    let (v, tau) = (Shared::new(v.as_mut_slice::<E>()?), Shared::new(tau.as_mut_slice::<E>()?));
    let (beta, status) = (Shared::new(beta.as_mut_slice::<E>()?), Shared::new(status.as_mut_slice::<i32>()?));
    let level = Level::current();
    parallel::ranges(count, THREAD_WORK.div_ceil(m), |range| {
        for i in range {
            // SAFETY: each vector is given out once.
            let (v, tau, beta, status) = unsafe {
                let one = i..i + 1;
                (v.slice(i * m..(i + 1) * m), tau.slice(one.clone()), beta.slice(one.clone()), status.slice(one))
            };
            let x = &x[i * m..][..m];
            dispatch_at(level, MakeOne { x, v, numbers: [&mut tau[0], &mut beta[0]], status: &mut status[0] });
        }
    });
    Ok(())
}

struct MakeOne<'a, E> {
    x: &'a [E],
    v: &'a mut [E],
    numbers: [&'a mut E; 2],
    status: &'a mut i32,
}

impl<E: Stored> Kernel for MakeOne<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, v, numbers: [tau, beta], status } = self;
        let (_, finite) = scan(x);
        *status = if finite { 0 } else { NOT_FINITE };
        if !finite {
            v.fill(E::NAN);
            (*tau, *beta) = (E::NAN, E::NAN);
            return;
        }
        let tail = || x[1..].iter().map(|x| x.widen());
        let mut squares = [E::Work::default(); 16];
        for (i, x) in tail().enumerate() {
            squares[i % 16] = x.fused(x, squares[i % 16]);
        }
        let squares = squares.into_iter().fold(E::Work::default(), |a, b| a + b);
        let made = reflector(x[0].widen(), squares, tail);
        (*tau, *beta) = (E::narrow(made.tau), E::narrow(made.beta));
        v[0] = E::narrow(E::Work::ONE);
        v[1..].iter_mut().zip(tail()).for_each(|(v, x)| *v = E::narrow(x * made.factor));
    }
}

pub(super) fn product(
    dims: &Dims,
    single: bool,
    params: OrmqrParams,
    inputs: &[&Tensor],
    out: &mut Tensor,
) -> Result<()> {
    match out.dtype() {
        DType::F64 => product_of::<f64>(dims, single, params, inputs, out),
        DType::F16 => product_of::<f16>(dims, single, params, inputs, out),
        DType::BF16 => product_of::<bf16>(dims, single, params, inputs, out),
        _ => product_of::<f32>(dims, single, params, inputs, out),
    }
}

fn product_of<E: Stored>(
    dims: &Dims,
    single: bool,
    params: OrmqrParams,
    inputs: &[&Tensor],
    out: &mut Tensor,
) -> Result<()> {
    let Dims { batch, m, n, k, rows, columns } = *dims;
    let [packed, tau, c] = inputs else { unreachable!("inputs were checked") };
    let (packed, tau, c) = (packed.as_slice::<E>()?, tau.as_slice::<E>()?, c.as_slice::<E>()?);
    let out = Shared::new(out.as_mut_slice::<E>()?);
    let level = Level::current();
    let across = if params.right { rows } else { columns };
    if !single && k >= BLOCKED && across > 0 {
        let shared = batch < parallel::threads();
        let one = |i: usize| {
            // SAFETY: each matrix is given out once.
            let out = unsafe { out.slice(i * rows * columns..(i + 1) * rows * columns) };
            let inputs =
                [&packed[i * m * n..][..m * n], &tau[i * k..][..k], &c[i * rows * columns..][..rows * columns]];
            blocked(dims, params, inputs, out, shared);
        };
        if shared {
            (0..batch).for_each(one);
        } else {
            parallel::ranges(batch, 1, |range| range.for_each(one));
        }
        return Ok(());
    }
    let wide = STRIP * E::Work::lanes_at(level);
    let strips = across.div_ceil(wide);
    let cost = 2 * m * k * wide.min(across.max(1)) + m * wide;
    parallel::ranges(batch * strips, THREAD_WORK.div_ceil(cost.max(1)), |range| {
        for unit in range {
            let (i, first) = (unit / strips, unit % strips * wide);
            let strip = Strip {
                dims: *dims,
                single,
                params,
                packed: &packed[i * m * n..][..m * n],
                tau: &tau[i * k..][..k],
                c: &c[i * rows * columns..][..rows * columns],
                out: &out,
                start: i * rows * columns,
                first,
                count: wide.min(across - first),
            };
            dispatch_at(level, strip);
        }
    });
    Ok(())
}

/// One matrix by blocks of reflectors; transposed where they come from the right.
fn blocked<E: Stored>(dims: &Dims, params: OrmqrParams, [packed, tau, c]: [&[E]; 3], out: &mut [E], shared: bool) {
    let Dims { m, n, k, rows, columns, .. } = *dims;
    let (width, across) = (width(k), if params.right { rows } else { columns });
    let step = stride::<E::Work>(across);
    let mut memory = Memory::take(padded(m) * step + Panels::<E::Work>::size(m, k, width));
    let (x, rest) = memory.slice().split_at_mut(padded(m) * step);
    let mut panels = Panels::new(rest, m, k, width, shared);
    panels.unpack(packed, n, tau);
    if params.right {
        x.fill(E::Work::default());
        transpose([across, m], (c, m), (x, step), |c| c.widen());
    } else {
        move_rows(shared, m, c, across, x, step, |c| c.widen());
        x.chunks_exact_mut(step).take(m).for_each(|row| row[across..].fill(E::Work::default()));
        x[m * step..].fill(E::Work::default());
    }
    panels.product(x, step, across, params.right != params.transpose);
    if params.right {
        transpose([m, across], (x, step), (out, m), E::narrow);
    } else {
        move_rows(shared, m, x, step, out, across, E::narrow);
    }
}

/// Neighbouring columns of a matrix, or rows where reflectors come from the right.
struct Strip<'a, E> {
    dims: Dims,
    single: bool,
    params: OrmqrParams,
    packed: &'a [E],
    tau: &'a [E],
    c: &'a [E],
    out: &'a Shared<E>,
    start: usize,
    first: usize,
    count: usize,
}

impl<E: Stored> Kernel for Strip<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dims { m, n, k, columns, .. } = self.dims;
        let lanes = E::Work::lanes::<S>();
        let step = self.count.next_multiple_of(lanes);
        let (line_step, row_step) = if self.params.right { (columns, 1) } else { (1, columns) };
        let mut memory = Memory::take(m * step + m);
        let (x, v) = memory.slice().split_at_mut(m * step);
        for (row, x) in x.chunks_exact_mut(step.max(1)).enumerate() {
            let from = row * row_step + self.first * line_step;
            for (line, x) in x.iter_mut().enumerate() {
                *x = if line < self.count { self.c[from + line * line_step].widen() } else { E::Work::default() };
            }
        }
        for turn in 0..k {
            let j = if self.params.right == self.params.transpose { k - 1 - turn } else { turn };
            let top = if self.single { 0 } else { j };
            let mut tau = self.tau[j].widen();
            for row in top..m {
                v[row] = self.packed[row * n + j].widen();
            }
            if self.single {
                // The kernel wants a first element of 1; a vector whose first is 0 has it as a row of its own.
                tau = self.normalize(s, v, x, step, tau);
            }
            if tau != E::Work::default() {
                let place = Place {
                    v: v[top + 1..].as_ptr(),
                    v_step: 1,
                    x: x[top * step..].as_mut_ptr(),
                    x_step: step,
                    rows: m - top,
                    vectors: step / lanes,
                };
                // SAFETY: rows `top..m` of whole vectors are within `x`.
                unsafe { reflect::<S, E::Work, true>(s, E::Work::splat(s, -tau), place) };
            }
        }
        for (row, x) in x.chunks_exact(step.max(1)).enumerate() {
            let to = self.start + row * row_step + self.first * line_step;
            for (line, x) in x[..self.count].iter().enumerate() {
                let at = to + line * line_step;
                // SAFETY: each element belongs to one strip.
                unsafe { self.out.slice(at..at + 1)[0] = E::narrow(*x) };
            }
        }
    }
}

impl<E: Stored> Strip<'_, E> {
    /// Applies a reflector whose vector has any first element; gives 0, because nothing is left to do.
    #[inline(always)]
    fn normalize<S: Simd>(&self, _: S, v: &[E::Work], x: &mut [E::Work], step: usize, tau: E::Work) -> E::Work {
        for line in 0..self.count {
            let at = |row: usize| row * step + line;
            let mut sum = E::Work::default();
            for (row, v) in v.iter().enumerate() {
                sum = v.fused(x[at(row)], sum);
            }
            for (row, v) in v.iter().enumerate() {
                x[at(row)] = (-(tau * sum)).fused(*v, x[at(row)]);
            }
        }
        E::Work::default()
    }
}
