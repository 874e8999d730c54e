//! QR on the GPU.

use super::{Dims, Form};
use bimetal_core::{Error, Gpu, Result, Tensor};

pub(super) fn factor(gpu: &Gpu, form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let _ = (gpu, form, dims, a, outputs);
    Err(Error::argument("qr", "a", "todo"))
}
