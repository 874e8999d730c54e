//! Eigenvalues and eigenvectors on a GPU: tridiagonal form, divide and conquer, and the way back of the vectors.

use crate::blocks::working;
use crate::condense::tridiagonal;
use crate::conquer::{Bands, Kept, store_values, store_vectors};
use bimetal_core::{Gpu, Result, Tensor};

pub(super) fn eigh(gpu: &Gpu, upper: bool, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let wanted = outputs.len() == 3;
    let (values, status) = (&*outputs[0], &*outputs[outputs.len() - 1]);
    let batch = status.numel();
    if batch == 0 {
        return Ok(());
    }
    let n = values.numel() / batch;
    let form = tridiagonal(gpu, upper, a, status, wanted)?;
    if n == 0 {
        return Ok(());
    }
    let dtype = working(a.dtype());
    let found = Bands { gpu, dtype, batch, n, diagonal: &form.diagonal, off: &form.off }.eigen()?;
    store_values(gpu, &found.values, &form.scale, status, values, false)?;
    if wanted {
        let vectors = found.vectors.gpu_handle()?;
        form.back(&vectors)?;
        let kept = Kept { rows: n, of: n, len: n, columns: true, turned: 0 };
        store_vectors(gpu, &vectors, dtype, status, &*outputs[1], kept)?;
    }
    Ok(())
}
