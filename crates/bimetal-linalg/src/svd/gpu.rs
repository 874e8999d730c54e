//! Singular values and vectors on a GPU: Jacobi rotations of the columns, see [`crate::jacobi`].

use crate::jacobi::gpu::{Request, Targets, decompose};
use bimetal_core::{Gpu, Result, Tensor};

pub(super) fn svd(gpu: &Gpu, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let request = Request { symmetric: false, upper: false, vectors: outputs.len() == 4 };
    let targets = match outputs {
        [u, s, vh, status] => Targets { values: s, left: Some(u), right: Some(vh), status },
        [s, status] => Targets { values: s, left: None, right: None, status },
        _ => unreachable!("two or four outputs"),
    };
    decompose(gpu, request, a, &targets)
}
