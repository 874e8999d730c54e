//! Singular values and vectors on a GPU: bidiagonal form of the matrix or its transpose, divide and conquer, and the way back
//! of the vectors.

use crate::blocks::working;
use crate::compose::{Batch, Source, applied, product, svd as square, widened};
use crate::condense::{Bidiagonal, bidiagonal};
use crate::conquer::{Bands, Kept, lengthen, store_values, store_vectors};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::server::Handle;

/// Elements of a batch from which matrices that are twice as long as wide are factorised before: on an H200 2048×512 takes
/// 10.3 ms without, where the QR of 2000×500 takes 3.8 and the SVD of 512×512 7.6; 3072×24576 732 ms without and 207 with.
const LONG: usize = 1 << 23;

pub(super) fn svd(gpu: &Gpu, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    if is_long(a, outputs) { by_qr(a, outputs) } else { direct(gpu, a, outputs) }
}

/// Whether QR goes before a thin decomposition of so many matrices.
pub(crate) fn goes_by_qr(count: usize, rows: usize, columns: usize) -> bool {
    let (long, short) = (rows.max(columns), rows.min(columns));
    count * rows * columns >= LONG && long >= 2 * short
}

/// The same of a decomposition whose outputs are given; a full one has more vectors than QR gives.
fn is_long(a: &Tensor, outputs: &[&mut Tensor]) -> bool {
    let dims = a.shape().dims();
    let [m, n] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let count = outputs[outputs.len() - 1].numel();
    let thin = outputs.len() == 2 || outputs[0].numel() + outputs[2].numel() == count * m.min(n) * (m + n);
    thin && goes_by_qr(count, m, n)
}

/// `A = Q·(U·Σ·Vᵀ)`, or the transpose of that.
fn by_qr(a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let batch = Batch::of("svd", "a", a.shape())?;
    let Batch { count, m, n, .. } = batch;
    let (k, swapped) = (batch.k(), m < n);
    let w = widened(a)?;
    let long = if swapped {
        let extents = [count, n, m];
        Source::all(&w, extents).strided([m * n, 1, n]).made(&batch.with(&[n, m]), extents, w.dtype())?
    } else {
        w
    };
    let [q, r, _] = applied(&crate::qr::reduced(), &[&long])?;
    let (status, outputs) = outputs.split_last_mut().expect("the outputs were checked");
    let [u, s, vh] = square(&r, status)?;
    if let [values] = outputs {
        return Source::all(&s, [1, count, k]).copy(values, [1, count, k]);
    }
    let (left, right) = if swapped {
        (None, product(&u, &q, [true, true])?)
    } else {
        (Some(product(&q, &u, [false, false])?), vh.clone())
    };
    let turned = Source::all(&vh, [count, k, k]).strided([k * k, 1, k]);
    match left {
        Some(left) => Source::all(&left, [count, m, k]).copy(outputs[0], [count, m, k])?,
        None => turned.copy(outputs[0], [count, k, k])?,
    }
    Source::all(&s, [1, count, k]).copy(outputs[1], [1, count, k])?;
    Source::all(&right, [count, k, n]).copy(outputs[2], [count, k, n])
}

fn direct(gpu: &Gpu, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let (values, status) = (&*outputs[if outputs.len() == 4 { 1 } else { 0 }], &*outputs[outputs.len() - 1]);
    if status.numel() == 0 {
        return Ok(());
    }
    let dims = a.shape().dims();
    let [rows, columns] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let (swapped, wanted) = (rows < columns, outputs.len() == 4);
    let form = bidiagonal(gpu, a, swapped, status, wanted)?;
    let job = Job { gpu, dtype: working(a.dtype()), status, swapped, m: rows.max(columns), n: rows.min(columns), form };
    let found = if job.n > 0 { Some(job.bands().singular()?) } else { None };
    if let Some(found) = &found {
        store_values(gpu, &found.values, &job.form.scale, status, values, true)?;
    }
    if !wanted || job.m == 0 {
        return Ok(());
    }
    let (u, vh) = (&*outputs[0], &*outputs[2]);
    let [long, short] = if swapped { [vh, u] } else { [u, vh] };
    let lefts = match found.as_ref().and_then(|found| found.lefts.as_ref()) {
        Some(lefts) => Some(lefts.gpu_handle()?),
        None => None,
    };
    job.long(lefts, long)?;
    match found {
        Some(found) => job.short(&found.vectors.gpu_handle()?, short),
        None => Ok(()),
    }
}

/// A batch whose matrices, or transposes if `swapped`, are `m`×`n` with `m` ≥ `n`.
struct Job<'a> {
    gpu: &'a Gpu,
    dtype: DType,
    status: &'a Tensor,
    swapped: bool,
    m: usize,
    n: usize,
    form: Bidiagonal<'a>,
}

impl Job<'_> {
    fn bands(&self) -> Bands<'_> {
        let Self { gpu, dtype, n, status, form, .. } = self;
        Bands { gpu, dtype: *dtype, batch: status.numel(), n: *n, diagonal: &form.diagonal, off: &form.off }
    }

    /// The vectors of `m` elements: those of the singular values, and as many more as `out` has room for.
    fn long(&self, lefts: Option<Handle>, out: &Tensor) -> Result<()> {
        let rows = out.numel() / self.status.numel() / self.m;
        let vectors = match lefts {
            Some(lefts) if self.m == self.n => lefts,
            lefts => lengthen(self.gpu, self.dtype, self.status.numel(), lefts.as_ref(), [self.n, rows, self.m])?,
        };
        self.form.back_left(&vectors, rows)?;
        let kept = Kept { rows, of: rows, len: self.m, columns: !self.swapped, turned: self.n };
        store_vectors(self.gpu, &vectors, self.dtype, self.status, out, kept)
    }

    /// The vectors of `n` elements.
    fn short(&self, vectors: &Handle, out: &Tensor) -> Result<()> {
        self.form.back_right(vectors)?;
        let kept = Kept { rows: self.n, of: self.n, len: self.n, columns: self.swapped, turned: self.n };
        store_vectors(self.gpu, vectors, self.dtype, self.status, out, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::check::{Plan, Target};
    use bimetal_core::op::{Fill, Spectrum, Structure};
    use bimetal_core::{Shape, Spec, verify};

    /// QR before changes nothing but the way: the same values, and vectors that are orthonormal and give the matrix again.
    #[test]
    fn by_qr_is_a_decomposition() -> Result<()> {
        let plan = Plan::from_env();
        let gpus = plan.targets.iter().filter_map(|target| match target {
            Target::Gpu(device) => Some(*device),
            Target::Level(_) => None,
        });
        for device in gpus {
            for (dims, spectrum) in [
                ([2, 50, 7], Spectrum::Random),
                ([3, 7, 50], Spectrum::Random),
                ([1, 90, 40], Spectrum::RankDeficient),
                ([1, 40, 90], Spectrum::Scaled(30)),
                ([3, 30, 9], Spectrum::OneNan),
            ] {
                let spec = Spec::new(Shape::new(&dims)?, DType::F32);
                let a = verify::fill(&spec, Fill::Matrices(Structure::General, spectrum), 7)?;
                let there = a.to_device(device)?;
                let [count, m, n] = dims;
                let k = m.min(n);
                let make = |dims: &[usize], dtype| Tensor::empty_on(Spec::new(Shape::new(dims)?, dtype), device);
                let (mut u, mut s) = (make(&[count, m, k], DType::F32)?, make(&[count, k], DType::F32)?);
                let (mut vh, mut status) = (make(&[count, k, n], DType::F32)?, make(&[count], DType::I32)?);
                by_qr(&there, &mut [&mut u, &mut s, &mut vh, &mut status])?;
                let mut alone = make(&[count, k], DType::F32)?;
                by_qr(&there, &mut [&mut alone, &mut make(&[count], DType::I32)?])?;
                let (u, s, vh) = (u.to_vec::<f32>()?, s.to_vec::<f32>()?, vh.to_vec::<f32>()?);
                let (a, status) = (a.to_vec::<f32>()?, status.to_vec::<i32>()?);
                for (x, y) in s.iter().zip(alone.to_vec::<f32>()?) {
                    assert!((x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-5 * s[0].abs(), "{device}: {x} and {y}");
                }
                for b in 0..count {
                    let bad = a[b * m * n..][..m * n].iter().any(|x| !x.is_finite());
                    assert_eq!(status[b] != 0, bad, "{device} {dims:?}");
                    let (u, s, vh) = (&u[b * m * k..], &s[b * k..][..k], &vh[b * k * n..]);
                    if bad {
                        assert!(
                            u[..m * k].iter().chain(s).chain(&vh[..k * n]).all(|x| x.is_nan()),
                            "{device} {dims:?}"
                        );
                        continue;
                    }
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f64 = (0..k)
                                .map(|l| f64::from(u[i * k + l]) * f64::from(s[l]) * f64::from(vh[l * n + j]))
                                .sum();
                            let error = (sum - f64::from(a[(b * m + i) * n + j])).abs();
                            assert!(error <= 2e-5 * f64::from(s[0]), "{device} {dims:?}: {error}");
                        }
                    }
                    for p in 0..k {
                        for q in 0..k {
                            let one = f64::from(u8::from(p == q));
                            let left: f64 = (0..m).map(|i| f64::from(u[i * k + p]) * f64::from(u[i * k + q])).sum();
                            let right: f64 = (0..n).map(|j| f64::from(vh[p * n + j]) * f64::from(vh[q * n + j])).sum();
                            assert!(
                                (left - one).abs() < 2e-5 && (right - one).abs() < 2e-5,
                                "{device} {dims:?}: {left} {right}"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
