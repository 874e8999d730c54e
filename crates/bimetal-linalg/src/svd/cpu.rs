//! Singular values and vectors on the CPU: in the lanes of vectors for batches of small matrices, one matrix at a time
//! otherwise, by faer those of f64 and with more vectors than values; threads over the batch.

use crate::alone::singular;
use crate::dense::{Real, each, scales};
use super::lanes::{Batch, suits};
use crate::jacobi::cpu as jacobi;
use crate::lanes::{Entry, Part};
use crate::qr::real::Stored;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::{DType, Result, Scalar, Tensor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::{MatMut, MatRef, Par};
use half::{bf16, f16};

/// Smaller extent of a single matrix from which faer's own threads pay.
const THREADS_FROM: usize = 1000;

pub(super) fn svd(a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let full = outputs.len() == 4 && is_full(outputs);
    let [.., m, n] = a.shape().dims() else { unreachable!("matrices") };
    let count = outputs[outputs.len() - 1].numel();
    let small = if outputs.len() == 2 { jacobi::suits(count, *m, *n) } else { suits(count, *m, *n) && !full };
    match a.dtype() {
        DType::F32 if small => interleaved::<f32>(a, outputs),
        DType::F16 if small => interleaved::<f16>(a, outputs),
        DType::BF16 if small => interleaved::<bf16>(a, outputs),
        DType::F64 => typed::<f64>(a, outputs, decompose::<f64, f64>),
        DType::F16 if full => typed::<f16>(a, outputs, decompose::<f16, f32>),
        DType::BF16 if full => typed::<bf16>(a, outputs, decompose::<bf16, f32>),
        _ if full => typed::<f32>(a, outputs, decompose::<f32, f32>),
        DType::F16 => typed::<f16>(a, outputs, decompose_alone),
        DType::BF16 => typed::<bf16>(a, outputs, decompose_alone),
        _ => typed::<f32>(a, outputs, decompose_alone),
    }
}

/// Whether there are more vectors than values.
fn is_full(outputs: &[&mut Tensor]) -> bool {
    let extent = |t: &Tensor, from_end: usize| t.shape().dims()[t.shape().rank() - from_end];
    let k = extent(outputs[1], 1);
    extent(outputs[0], 1) > k || extent(outputs[2], 2) > k
}

/// A batch of small matrices, in the lanes of vectors.
fn interleaved<E: Entry<Real = f32>>(a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let dims = a.shape().dims();
    let [m, n] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let a = a.as_slice::<E>()?;
    let (vectors, s, status) = match outputs {
        [u, s, vh, status] => (Some([Shared::new(u.as_mut_slice::<E>()?), Shared::new(vh.as_mut_slice::<E>()?)]), s, status),
        [s, status] => (None, s, status),
        _ => unreachable!("two or four outputs"),
    };
    let (values, status) = (Shared::new(s.as_mut_slice::<E>()?), status.as_mut_slice::<i32>()?);
    let (count, status) = (status.len(), Shared::new(status));
    let Some(vectors) = vectors else {
        // Values alone are held to a smaller error, and Jacobi's rotations give each of them to a few roundings.
        let (part, symmetric, left, right) = (Part::All, false, None, None);
        let batch = jacobi::Batch { a, m, n, count, part, symmetric, values, left, right, status };
        batch.run(|_| unreachable!("only vectors want completing"));
        return Ok(());
    };
    let batch = Batch { a, m, n, count, values, vectors, status };
    let k = m.min(n);
    batch.run(|i| {
        // SAFETY: each matrix has outputs of its own.
        let (target, status) = unsafe {
            let [u, vh] = &batch.vectors;
            let (u, vh) = (u.slice(i * m * k..(i + 1) * m * k), vh.slice(i * k * n..(i + 1) * k * n));
            (Target { u, s: batch.values.slice(i * k..(i + 1) * k), vh }, batch.status.slice(i..i + 1))
        };
        status[0] = decompose::<E, f64>(&a[i * m * n..][..m * n], [m, n], true, target, false);
    });
    Ok(())
}

/// The outputs of one matrix: left vectors, values and right vectors.
struct Target<'a, E> {
    u: &'a mut [E],
    s: &'a mut [E],
    vh: &'a mut [E],
}

/// Decomposes the elements of a matrix of these extents, with vectors or without; gives its status.
type Decompose<E> = fn(&[E], [usize; 2], bool, Target<E>, bool) -> i32;

fn typed<E: Scalar>(a: &Tensor, outputs: &mut [&mut Tensor], decompose: Decompose<E>) -> Result<()> {
    let dims = a.shape().dims();
    let [m, n] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let a = a.as_slice::<E>()?;
    let k = m.min(n);
    let (u, s, vh, status) = match outputs {
        [u, s, vh, status] => (u.as_mut_slice::<E>()?, s, vh.as_mut_slice::<E>()?, status),
        [s, status] => (&mut [][..], s, &mut [][..], status),
        _ => unreachable!("two or four outputs"),
    };
    let (s, status) = (s.as_mut_slice::<E>()?, status.as_mut_slice::<i32>()?);
    let count = status.len();
    let vectors = !(u.is_empty() && vh.is_empty());
    let [u_each, vh_each] = [u.len(), vh.len()].map(|len| len.checked_div(count).unwrap_or(0));
    let (u, s, vh, status) = (Shared::new(u), Shared::new(s), Shared::new(vh), Shared::new(status));
    each(count, m * n * k, |i, alone| {
        // SAFETY: each matrix has outputs of its own.
        let (target, status) = unsafe {
            let [u, s] = [u.slice(i * u_each..(i + 1) * u_each), s.slice(i * k..(i + 1) * k)];
            (Target { u, s, vh: vh.slice(i * vh_each..(i + 1) * vh_each) }, status.slice(i..i + 1))
        };
        status[0] = decompose(&a[i * m * n..][..m * n], [m, n], vectors, target, alone);
    });
    Ok(())
}

/// [`Decompose`] in f32.
fn decompose_alone<E: Stored<Work = f32>>(
    a: &[E],
    extents: [usize; 2],
    vectors: bool,
    target: Target<E>,
    alone: bool,
) -> i32 {
    let Target { u, s, vh } = target;
    if !a.iter().fold(true, |finite, x| finite & x.widen().is_finite()) {
        u.iter_mut().chain(s).chain(vh).for_each(|x| *x = E::NAN);
        return NOT_FINITE;
    }
    let wanted = vectors.then_some(singular::Wanted { u: &mut *u, vh: &mut *vh });
    if !a.is_empty() && singular::decompose(a, extents, s, wanted, alone) {
        return 0;
    }
    decompose::<E, f64>(a, extents, vectors, Target { u, s, vh }, alone)
}

/// [`Decompose`] by faer. Row-major `A` is `Aᵀ = V·Σ·Uᵀ` to faer, so that its `V` comes out as our `Vᵀ`.
fn decompose<E: Scalar, C: Real>(a: &[E], [m, n]: [usize; 2], vectors: bool, target: Target<E>, alone: bool) -> i32 {
    let k = m.min(n);
    let threads = alone && k >= THREADS_FROM && parallel::threads() > 1;
    let par = if threads { Par::rayon(parallel::threads()) } else { Par::Seq };
    let Target { u, s, vh } = target;
    let Some([scale, back]) = scales::<C>(a.iter().map(|x| x.to_f64())) else {
        u.iter_mut().chain(s).chain(vh).for_each(|x| *x = E::from_f64(f64::NAN));
        return NOT_FINITE;
    };
    let (scale, back) = (Scalar::to_f64(scale), Scalar::to_f64(back));
    let (left, right) = (u.len().checked_div(m).unwrap_or(0), vh.len().checked_div(n).unwrap_or(0));
    if k == 0 {
        identity(u, left);
        identity(vh, right);
        return 0;
    }
    let wanted = match vectors {
        false => ComputeSvdVectors::No,
        true if left > k || right > k => ComputeSvdVectors::Full,
        true => ComputeSvdVectors::Thin,
    };
    let zero = C::default();
    let scaled: Vec<C> = a.iter().map(|x| <C as Scalar>::from_f64(x.to_f64() * scale)).collect();
    let (mut values, mut rows, mut columns) = (vec![zero; k], vec![zero; n * right], vec![zero; m * left]);
    let mut memory = MemBuffer::new(svd_scratch::<C>(n, m, wanted, wanted, par, Default::default()));
    let found = faer_svd(
        MatRef::from_column_major_slice(&scaled, n, m),
        faer::diag::DiagMut::from_slice_mut(&mut values),
        vectors.then(|| MatMut::from_column_major_slice_mut(&mut rows, n, right)),
        vectors.then(|| MatMut::from_column_major_slice_mut(&mut columns, m, left)),
        par,
        MemStack::new(&mut memory),
        Default::default(),
    );
    if found.is_err() {
        u.iter_mut().chain(s).chain(vh).for_each(|x| *x = E::from_f64(f64::NAN));
        return k as i32;
    }
    for (out, value) in s.iter_mut().zip(&values) {
        *out = E::from_f64(Scalar::to_f64(*value) * back);
    }
    for (out, x) in vh.iter_mut().zip(&rows) {
        *out = E::from_f64(Scalar::to_f64(*x));
    }
    for (i, row) in u.chunks_exact_mut(left.max(1)).enumerate() {
        for (j, out) in row.iter_mut().enumerate() {
            *out = E::from_f64(Scalar::to_f64(columns[j * m + i]));
        }
    }
    0
}

/// Ones on the diagonal of a square matrix of order `n`.
fn identity<E: Scalar>(out: &mut [E], n: usize) {
    for (e, x) in out.iter_mut().enumerate() {
        *x = E::from_f64(if e / n == e % n { 1.0 } else { 0.0 });
    }
}
