//! Comparisons of two elements with NumPy broadcasting, to a bool tensor: `a = b`, `a ≠ b`, `a < b`, `a ≤ b`, `a > b`, `a ≥ b`.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{DType, Gpu, Result, Tensor};

const EXACT: &str = "a truth value";

family! {
    /// Where a = b, as a bool tensor, with NumPy broadcasting. False where either is NaN.
    Eq eq eq_into(a, b) {
        "a = b", fill [Fill::Integers(-2, 2)], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.eq(x0, x1, out=y0)", numpy "np.equal(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 5.0]" gives "[1.0, 0.0]"
    }
    /// Where a ≠ b, as a bool tensor, with NumPy broadcasting. True where either is NaN.
    Ne ne ne_into(a, b) {
        "a ≠ b", fill [Fill::Integers(-2, 2)], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.ne(x0, x1, out=y0)", numpy "np.not_equal(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 5.0]" gives "[0.0, 1.0]"
    }
    /// Where a < b, as a bool tensor, with NumPy broadcasting. False where either is NaN.
    Lt lt lt_into(a, b) {
        "a < b", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.lt(x0, x1, out=y0)", numpy "np.less(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 5.0]" gives "[0.0, 1.0]"
    }
    /// Where a ≤ b, as a bool tensor, with NumPy broadcasting. False where either is NaN.
    Le le le_into(a, b) {
        "a ≤ b", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.le(x0, x1, out=y0)", numpy "np.less_equal(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 3.0]" gives "[1.0, 0.0]"
    }
    /// Where a > b, as a bool tensor, with NumPy broadcasting. False where either is NaN.
    Gt gt gt_into(a, b) {
        "a > b", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.gt(x0, x1, out=y0)", numpy "np.greater(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 3.0]" gives "[0.0, 1.0]"
    }
    /// Where a ≥ b, as a bool tensor, with NumPy broadcasting. False where either is NaN.
    Ge ge ge_into(a, b) {
        "a ≥ b", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: EXACT,
        torch "torch.ge(x0, x1, out=y0)", numpy "np.greater_equal(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[2.0f32, 5.0]" gives "[1.0, 0.0]"
    }
}

impl Family for Function {
    const BROADCASTS: bool = true;
    const OUTPUT: Option<DType> = Some(DType::Bool);

    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, _p: [f32; 2], x: &[Values]) -> Expected {
        reference::compare(self, x)
    }

    fn cpu(self, _p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::compare(self, [x[0], x[1]], y)
    }

    fn gpu(self, _p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::compare(gpu, self, [x[0], x[1]], y)
    }
}
