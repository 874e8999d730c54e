//! Multiply-add of three elements with NumPy broadcasting: `y = a b + c`.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const WHY: &str = "the sum's rounding, and the product's on devices that do not fuse the two";

family! {
    /// a b + c with NumPy broadcasting of all three; the product is rounded before the sum on devices that do not fuse
    /// them (PyTorch's `addcmul(c, a, b)`).
    Fma fma fma_into(a, b, c) {
        "a b + c", fill [Fill::Normal], flops 2, ulps 1.0 + 0.5: WHY,
        torch "torch.addcmul(x2, x0, x1, out=y0)", numpy "np.add(np.multiply(x0, x1, out=y0), x2, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 3.0]" "[1.0f32, -1.0]" gives "[2.0, 11.0]"
    }
}

impl Family for Function {
    const BROADCASTS: bool = true;

    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, _p: [f32; 2], x: &[Values]) -> Expected {
        reference::fma(x)
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0], x[1], x[2]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::fma(gpu, self, p, [x[0], x[1], x[2]], y)
    }
}
