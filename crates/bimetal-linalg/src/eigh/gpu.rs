//! Eigenvalues and eigenvectors on a GPU: Jacobi rotations of the shifted matrix, see [`crate::jacobi`].

use crate::jacobi::gpu::{Request, Targets, decompose};
use bimetal_core::{Gpu, Result, Tensor};

pub(super) fn eigh(gpu: &Gpu, upper: bool, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let vectors = outputs.len() == 3;
    let (values, status) = (&*outputs[0], &*outputs[outputs.len() - 1]);
    let request = Request { symmetric: true, upper, vectors };
    decompose(gpu, request, a, &Targets { values, left: vectors.then(|| &*outputs[1]), right: None, status })
}
