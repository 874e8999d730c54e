//! Large matrices: faer's blocked factorisation.

use super::real::{Real, Stored, scale, scan};
use super::{Form, Parts};
use crate::qr::Dims;
use crate::status::NOT_FINITE;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::{Conj, Mat, Par};

/// Elements of Q from which more than one thread is faster.
const THREADS_FROM: usize = 512 * 512;

/// Factorises one matrix with at most this many threads.
pub(super) fn factor<E: Stored>(form: Form, dims: &Dims, a: &[E], parts: Parts<E>, threads: usize) {
    let Dims { m, n, k, .. } = *dims;
    let Parts { first, second, status } = parts;
    let (largest, finite) = scan(a);
    status[0] = if finite { 0 } else { NOT_FINITE };
    if !finite {
        first.fill(E::NAN);
        second.fill(E::NAN);
        return;
    }
    let scale = scale(largest);
    let par = if threads > 1 && m * n >= THREADS_FROM { Par::rayon(threads) } else { Par::Seq };
    let mut x = Mat::<E::Work>::from_fn(m, n, |i, j| a[i * n + j].widen() * scale);
    let block = recommended_block_size::<E::Work>(m, n).min(k);
    let mut blocks = Mat::<E::Work>::zeros(block, k);
    let columns = form.columns(dims);
    let scratch = qr_in_place_scratch::<E::Work>(m, n, block, par, Default::default())
        .or(apply_scratch::<E::Work>(m, block, columns));
    let mut buffer = MemBuffer::new(scratch);
    qr_in_place(x.as_mut(), blocks.as_mut(), par, MemStack::new(&mut buffer), Default::default());
    let unscaled = |i: usize, j: usize| E::narrow(x[(i, j)] / scale);
    if form == Form::Packed {
        for (i, row) in first.chunks_exact_mut(n).enumerate() {
            for (j, out) in row.iter_mut().enumerate() {
                *out = if j < i { E::narrow(x[(i, j)]) } else { unscaled(i, j) };
            }
        }
        for (j, tau) in second.iter_mut().enumerate() {
            // faer keeps 1/τ, infinite for no reflector.
            *tau = E::narrow(E::Work::ONE / blocks[(j % block, j)]);
        }
        return;
    }
    for (i, row) in second.chunks_exact_mut(n).enumerate() {
        row[..i.min(n)].fill(E::narrow(E::Work::default()));
        row.iter_mut().enumerate().skip(i).for_each(|(j, out)| *out = unscaled(i, j));
    }
    let mut q = Mat::<E::Work>::identity(m, columns);
    let basis = x.as_ref().subcols(0, k);
    apply(basis, blocks.as_ref(), Conj::No, q.as_mut(), par, MemStack::new(&mut buffer));
    for (i, row) in first.chunks_exact_mut(columns).enumerate() {
        row.iter_mut().enumerate().for_each(|(j, out)| *out = E::narrow(q[(i, j)]));
    }
}
