//! Singular values and vectors on a GPU: bidiagonal form of the matrix or its transpose, divide and conquer, and the way back
//! of the vectors.

use crate::blocks::working;
use crate::condense::{Bidiagonal, bidiagonal};
use crate::conquer::{Bands, Kept, lengthen, store_values, store_vectors};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::server::Handle;

pub(super) fn svd(gpu: &Gpu, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
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
