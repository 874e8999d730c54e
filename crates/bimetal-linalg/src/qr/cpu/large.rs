//! Large matrices: panels of columns become blocks of reflectors, `A ← A − V·Tᵀ·(Vᵀ·A)` for the columns beside them.

use super::panel::Panels;
use super::real::{Memory, Real, Stored, scale};
use super::tiles::{Columns, Target, UNIT, apply, padded, stride};
use super::{Form, Parts};
use crate::qr::Dims;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};

/// Columns of a panel: fewer where the smaller extent is below the last number. On two cores 256x128 took 220 µs with 32 and
/// 266 µs with 48, 4000x1000 116 ms with 32 and 107 ms with 64.
const WIDTHS: [usize; 3] = [32, 64, 512];

/// Columns of the panels for `k` reflectors.
pub(crate) fn width(k: usize) -> usize {
    WIDTHS[usize::from(k >= WIDTHS[2])]
}

/// Factorises one matrix with at most this many threads.
pub(super) fn factor<E: Stored>(form: Form, dims: &Dims, a: &[E], parts: Parts<E>, threads: usize) {
    let Dims { m, n, k, .. } = *dims;
    let Parts { first, second, status } = parts;
    let shared = threads > 1;
    let Some(largest) = largest(a, shared) else {
        status[0] = NOT_FINITE;
        first.fill(E::NAN);
        second.fill(E::NAN);
        return;
    };
    status[0] = 0;
    let scale = scale(largest);
    let width = width(k);
    let columns = form.columns(dims);
    let (rows, x_step, q_step) = (padded(m), stride::<E::Work>(n), stride::<E::Work>(columns));
    let mut memory = Memory::take(rows * x_step.max(q_step) + Panels::<E::Work>::size(m, k, width));
    let (x, rest) = memory.slice().split_at_mut(rows * x_step.max(q_step));
    let mut panels = Panels::new(rest, m, k, width, shared);
    move_rows(shared, m, a, n, x, x_step, |x| x.widen() * scale);
    for row in x.chunks_exact_mut(x_step).take(m) {
        row[n..].fill(E::Work::default());
    }
    x[m * x_step..rows * x_step].fill(E::Work::default());
    panels.reduce(x, x_step, n);
    // Exactly, as it is a power of two.
    let unscale = E::Work::ONE / scale;
    if form == Form::Packed {
        return packed([n, k], (x, x_step), &panels, [first, second], unscale);
    }
    for (i, row) in second.chunks_exact_mut(n).enumerate() {
        row[..i.min(n)].fill(E::narrow(E::Work::default()));
        row.iter_mut().enumerate().skip(i).for_each(|(j, out)| *out = E::narrow(x[i * x_step + j] * unscale));
    }
    orthogonal(&mut panels, x, q_step, [rows, columns]);
    move_rows(shared, m, x, q_step, first, columns, |x| E::narrow(x));
}

/// Writes R and the reflectors below it into one matrix, and τ.
fn packed<E: Stored>(
    [n, k]: [usize; 2],
    (x, x_step): (&[E::Work], usize),
    panels: &Panels<E::Work>,
    [first, second]: [&mut [E]; 2],
    unscale: E::Work,
) {
    let m = first.len() / n;
    let rows = Shared::new(first);
    let some = |range: std::ops::Range<usize>| {
        for i in range {
            // SAFETY: each row is written once.
            let row = unsafe { rows.slice(i * n..(i + 1) * n) };
            let below = i.min(k);
            for start in panels.starts().take_while(|start| *start < below) {
                row[start..below].iter_mut().zip(panels.row(start, i)).for_each(|(out, v)| *out = E::narrow(*v));
            }
            let from = &x[i * x_step + below..];
            row[below..].iter_mut().zip(from).for_each(|(out, x)| *out = E::narrow(*x * unscale));
        }
    };
    if panels.shared {
        parallel::ranges(m, MOVED / n + 1, some)
    } else {
        some(0..m)
    }
    second.iter_mut().zip(panels.tau.iter()).for_each(|(out, tau)| *out = E::narrow(*tau));
}

/// The first columns of the product of the reflectors, from the last panel back: what a panel meets is zero in its own rows,
/// and its own columns are those of the identity.
fn orthogonal<T: Real>(panels: &mut Panels<T>, q: &mut [T], step: usize, [rows, columns]: [usize; 2]) {
    let across = padded(columns);
    for start in panels.starts().rev() {
        let block = panels.block(start);
        let end = start + block.count;
        if panels.is_last(start) {
            // Of a complete Q.
            for (i, row) in q.chunks_exact_mut(step).enumerate().take(rows).skip(end) {
                row[end..across].fill(T::default());
                if i < across {
                    row[i] = T::ONE;
                }
            }
        }
        let own = Target {
            x: q[start * step + start..].as_mut_ptr(),
            x_step: step,
            columns: block.count.min(across - start),
            known: Columns::Identity(0),
        };
        // SAFETY: rows and columns of Q from the panel's first on; those of the panel, then the others.
        unsafe {
            apply(block, own, false, panels.shared);
            if end < across {
                let x = q[start * step + end..].as_mut_ptr();
                let others = Target { x, columns: across - end, known: Columns::BelowZeros, ..own };
                apply(block, others, false, panels.shared);
            }
        }
    }
}

/// Elements that a thread moves at least.
pub(crate) const MOVED: usize = 1 << 15;

/// Copies rows of two matrices, as many elements of each as both have.
pub(crate) fn move_rows<A: Copy + Sync, B: Send>(
    shared: bool,
    rows: usize,
    from: &[A],
    from_step: usize,
    to: &mut [B],
    to_step: usize,
    f: impl Fn(A) -> B + Sync,
) {
    let n = from_step.min(to_step);
    let to = Shared::new(to);
    let some = |range: std::ops::Range<usize>| {
        for i in range {
            // SAFETY: each row is written once.
            let to = unsafe { to.slice(i * to_step..i * to_step + n) };
            to.iter_mut().zip(&from[i * from_step..][..n]).for_each(|(to, from)| *to = f(*from));
        }
    };
    if shared { parallel::ranges(rows, MOVED / n + 1, some) } else { some(0..rows) }
}

/// The largest magnitude, unless an element is not finite.
pub(crate) fn largest<E: Stored>(a: &[E], shared: bool) -> Option<E::Work> {
    let parts = a.len().div_ceil(MOVED);
    let mut found = vec![(E::Work::default(), true); parts];
    let each = |first: usize, found: &mut [(E::Work, bool)]| {
        for (i, found) in found.iter_mut().enumerate() {
            let start = (first + i) * MOVED;
            *found = dispatch_at(Level::current(), Scan(&a[start..(start + MOVED).min(a.len())]));
        }
    };
    if shared {
        parallel::units_mut(&mut found, 1, 1, each)
    } else {
        each(0, &mut found)
    }
    let all = found
        .iter()
        .fold((E::Work::default(), true), |(most, all), &(x, finite)| (if x > most { x } else { most }, all && finite));
    all.1.then_some(all.0)
}

/// The largest magnitude of elements, and whether all are finite: by lanes that do not wait for each other.
struct Scan<'a, E>(&'a [E]);

impl<E: Stored> Kernel for Scan<'_, E> {
    type Out = (E::Work, bool);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (E::Work, bool) {
        let zero = E::Work::default();
        // What is finite times zero is zero.
        let (mut most, mut sums) = ([zero; 4 * UNIT], [zero; 4 * UNIT]);
        let mut chunks = self.0.chunks_exact(4 * UNIT);
        let mut some = |chunk: &[E]| {
            for ((most, sum), x) in most.iter_mut().zip(&mut sums).zip(chunk) {
                let x = x.widen().magnitude();
                *most = if x > *most { x } else { *most };
                *sum = x.fused(zero, *sum);
            }
        };
        chunks.by_ref().for_each(&mut some);
        some(chunks.remainder());
        let largest = most.into_iter().fold(zero, |a, b| if b > a { b } else { a });
        (largest, sums.into_iter().all(|sum| sum.finite()))
    }
}
