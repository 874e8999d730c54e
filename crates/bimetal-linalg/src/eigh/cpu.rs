//! Eigenvalues and eigenvectors on the CPU: in the lanes of vectors for batches of small matrices, one matrix at a time
//! otherwise, by faer those of f64; threads over the batch.

use crate::alone::eigen;
use crate::dense::{Real, each, scales};
use super::lanes::{Batch, suits};
use crate::lanes::{Entry, Part};
use crate::qr::real::Stored;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::{DType, Result, Scalar, Tensor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{MatMut, MatRef, Par};
use half::{bf16, f16};

/// Order of a single matrix from which faer's own threads pay.
const THREADS_FROM: usize = 1000;

pub(super) fn eigh(upper: bool, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [.., n] = a.shape().dims() else { unreachable!("square matrices") };
    let small = suits(a.numel().checked_div(n * n).unwrap_or(0), *n);
    match a.dtype() {
        DType::F32 if small => interleaved::<f32>(upper, a, outputs),
        DType::F16 if small => interleaved::<f16>(upper, a, outputs),
        DType::BF16 if small => interleaved::<bf16>(upper, a, outputs),
        DType::F64 => typed(upper, a, outputs, |t: &Triangle<f64>, w, v, alone| t.decompose::<f64>(w, v, alone)),
        DType::F16 => typed(upper, a, outputs, |t: &Triangle<f16>, w, v, alone| t.decompose_alone(w, v, alone)),
        DType::BF16 => typed(upper, a, outputs, |t: &Triangle<bf16>, w, v, alone| t.decompose_alone(w, v, alone)),
        _ => typed(upper, a, outputs, |t: &Triangle<f32>, w, v, alone| t.decompose_alone(w, v, alone)),
    }
}

fn typed<E: Scalar>(
    upper: bool,
    a: &Tensor,
    outputs: &mut [&mut Tensor],
    decompose: impl Fn(&Triangle<E>, &mut [E], Option<&mut [E]>, bool) -> i32 + Sync,
) -> Result<()> {
    let n = a.shape().dims()[a.shape().rank() - 1];
    let a = a.as_slice::<E>()?;
    let (values, rest) = outputs.split_first_mut().expect("values");
    let (status, vectors) = rest.split_last_mut().expect("a status");
    let values = Shared::new(values.as_mut_slice::<E>()?);
    let status = status.as_mut_slice::<i32>()?;
    let count = status.len();
    let status = Shared::new(status);
    let vectors = match vectors.first_mut() {
        Some(vectors) => Some(Shared::new(vectors.as_mut_slice::<E>()?)),
        None => None,
    };
    let one = |i: usize, alone: bool| {
        let triangle = Triangle { a: &a[i * n * n..][..n * n], n, upper };
        // SAFETY: each matrix has outputs of its own.
        let (values, status) = unsafe { (values.slice(i * n..(i + 1) * n), status.slice(i..i + 1)) };
        // SAFETY: as above.
        let vectors = vectors.as_ref().map(|v| unsafe { v.slice(i * n * n..(i + 1) * n * n) });
        status[0] = decompose(&triangle, values, vectors, alone);
    };
    each(count, n * n * n, one);
    Ok(())
}

/// A batch of small matrices, in the lanes of vectors.
fn interleaved<E: Entry<Real = f32>>(upper: bool, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let n = a.shape().dims()[a.shape().rank() - 1];
    let (values, rest) = outputs.split_first_mut().expect("values");
    let (status, vectors) = rest.split_last_mut().expect("a status");
    let vectors = match vectors.first_mut() {
        Some(vectors) => Some(Shared::new(vectors.as_mut_slice::<E>()?)),
        None => None,
    };
    let a = a.as_slice::<E>()?;
    let batch = Batch {
        a,
        n,
        count: status.numel(),
        part: if upper { Part::Upper } else { Part::Lower },
        values: Shared::new(values.as_mut_slice::<E>()?),
        vectors,
        status: Shared::new(status.as_mut_slice::<i32>()?),
    };
    batch.run(|i| {
        let triangle = Triangle { a: &a[i * n * n..][..n * n], n, upper };
        // SAFETY: each matrix has outputs of its own.
        let (values, status) = unsafe { (batch.values.slice(i * n..(i + 1) * n), batch.status.slice(i..i + 1)) };
        // SAFETY: as above.
        let vectors = batch.vectors.as_ref().map(|v| unsafe { v.slice(i * n * n..(i + 1) * n * n) });
        status[0] = triangle.decompose::<f64>(values, vectors, false);
    });
    Ok(())
}

/// A symmetric matrix of which one triangle is read.
struct Triangle<'a, E> {
    a: &'a [E],
    n: usize,
    upper: bool,
}

impl<E: Scalar> Triangle<'_, E> {
    /// Element (`i`, `j`) of the lower triangle.
    fn at(&self, i: usize, j: usize) -> f64 {
        if self.upper { self.a[j * self.n + i].to_f64() } else { self.a[i * self.n + j].to_f64() }
    }

    /// Writes values and vectors; gives the status. If `alone`, threads share the work.
    fn decompose<C: Real>(&self, values: &mut [E], mut vectors: Option<&mut [E]>, alone: bool) -> i32 {
        let n = self.n;
        let par = if alone && n >= THREADS_FROM && parallel::threads() > 1 { Par::rayon(parallel::threads()) } else { Par::Seq };
        if n == 0 {
            return 0;
        }
        let fail = |values: &mut [E], vectors: Option<&mut [E]>, status| {
            values.iter_mut().chain(vectors.into_iter().flatten()).for_each(|x| *x = E::from_f64(f64::NAN));
            status
        };
        let Some([scale, back]) = scales::<C>((0..n).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| self.at(i, j)))
        else {
            return fail(values, vectors, NOT_FINITE);
        };
        let (scale, back) = (Scalar::to_f64(scale), Scalar::to_f64(back));
        let zero = C::default();
        let mut lower = vec![zero; n * n];
        for j in 0..n {
            for i in j..n {
                lower[j * n + i] = <C as Scalar>::from_f64(self.at(i, j) * scale);
            }
        }
        let mut w = vec![zero; n];
        let mut v = if vectors.is_some() { vec![zero; n * n] } else { Vec::new() };
        let wanted = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
        let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<C>(n, wanted, par, Default::default()));
        let found = self_adjoint_evd(
            MatRef::from_column_major_slice(&lower, n, n),
            faer::diag::DiagMut::from_slice_mut(&mut w),
            vectors.is_some().then(|| MatMut::from_column_major_slice_mut(&mut v, n, n)),
            par,
            MemStack::new(&mut memory),
            Default::default(),
        );
        if found.is_err() {
            return fail(values, vectors, n as i32);
        }
        for (out, w) in values.iter_mut().zip(&w) {
            *out = E::from_f64(Scalar::to_f64(*w) * back);
        }
        if let Some(vectors) = vectors.as_mut() {
            for (i, row) in vectors.chunks_exact_mut(n).enumerate() {
                for (j, out) in row.iter_mut().enumerate() {
                    *out = E::from_f64(Scalar::to_f64(v[j * n + i]));
                }
            }
        }
        0
    }
}

impl<E: Stored<Work = f32>> Triangle<'_, E> {
    /// [`Self::decompose`] in f32.
    fn decompose_alone(&self, values: &mut [E], mut vectors: Option<&mut [E]>, alone: bool) -> i32 {
        let Self { a, n, upper } = *self;
        let finite = |i: usize| {
            let row = &a[i * n..][..n];
            let row = if upper { &row[i..] } else { &row[..=i] };
            row.iter().fold(true, |finite, x| finite & x.widen().is_finite())
        };
        if !(0..n).all(finite) {
            values.iter_mut().chain(vectors.into_iter().flatten()).for_each(|x| *x = E::NAN);
            return NOT_FINITE;
        }
        let row = |i: usize, out: &mut [f32]| {
            if upper {
                out.iter_mut().enumerate().for_each(|(j, out)| *out = a[j * n + i].widen());
            } else {
                out.iter_mut().zip(&a[i * n..]).for_each(|(out, x)| *out = x.widen());
            }
        };
        if eigen::decompose(n, row, values, vectors.as_deref_mut(), alone) {
            return 0;
        }
        self.decompose::<f64>(values, vectors, alone)
    }
}
