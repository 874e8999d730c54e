//! Functions of two elements with NumPy broadcasting: `y = a + b`, `a − b`, `a b`, `a / b`, `aᵇ`, `max(a, b)`, `min(a, b)`.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const ROUNDED: &str = "one rounding in f32 and one to the dtype";
const DIVIDED: &str = "a quotient, which Vulkan rounds to 2.5 ulp, and a rounding to the dtype";
const POWER: &str = "the exponential of a logarithm in two floats: the last rounding, as much from the polynomial, and a \
                     half from the exponent";

family! {
    /// a + b with NumPy broadcasting: aligned at the last axis, extents are equal or 1.
    Add add add_into(a, b) {
        "a + b", fill [Fill::Normal], flops 1, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.add(x0, x1, out=y0)", numpy "np.add(x0, x1, out=y0)", bench Sizes,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[2.5, 5.0]"
    }
    /// a − b with NumPy broadcasting: aligned at the last axis, extents are equal or 1.
    Sub sub sub_into(a, b) {
        "a − b", fill [Fill::Normal], flops 1, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.sub(x0, x1, out=y0)", numpy "np.subtract(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[1.5, 3.0]"
    }
    /// a b with NumPy broadcasting: aligned at the last axis, extents are equal or 1.
    Mul mul mul_into(a, b) {
        "a b", fill [Fill::Normal], flops 1, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.mul(x0, x1, out=y0)", numpy "np.multiply(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[1.0, 4.0]"
    }
    /// a / b with NumPy broadcasting: aligned at the last axis, extents are equal or 1. a / 0 is an infinity or NaN.
    Div div div_into(a, b) {
        "a / b", fill [Fill::Normal, Fill::Uniform(0.1, 10.0)], flops 8, ulps 3.5 + 0.0: DIVIDED,
        torch "torch.div(x0, x1, out=y0)", numpy "np.divide(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, -1.0]" gives "[4.0, -4.0]"
    }
    /// aᵇ with NumPy broadcasting: aligned at the last axis, extents are equal or 1. Special cases are C99's: 1 for b = 0
    /// or a = 1 whatever the other, NaN for a negative a and a fractional b.
    Pow pow pow_into(a, b) {
        "aᵇ", fill [Fill::Uniform(0.1, 4.0), Fill::Uniform(-3.0, 3.0)], flops 90, ulps 3.0 + 0.0: POWER,
        torch "torch.pow(x0, x1, out=y0)", numpy "np.power(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[3.0f32, -0.5]" gives "[8.0, 0.5]"
    }
    /// The larger of a and b with NumPy broadcasting: aligned at the last axis, extents are equal or 1. NaN where either is.
    Maximum maximum maximum_into(a, b) {
        "the larger", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: "the result is an operand",
        torch "torch.maximum(x0, x1, out=y0)", numpy "np.maximum(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[3.0f32, -0.5]" gives "[3.0, 4.0]"
    }
    /// The smaller of a and b with NumPy broadcasting: aligned at the last axis, extents are equal or 1. NaN where either is.
    Minimum minimum minimum_into(a, b) {
        "the smaller", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: "the result is an operand",
        torch "torch.minimum(x0, x1, out=y0)", numpy "np.minimum(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[3.0f32, -0.5]" gives "[2.0, -0.5]"
    }
}

impl Family for Function {
    const BROADCASTS: bool = true;

    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, _p: [f32; 2], x: &[Values]) -> Expected {
        reference::binary(self, x)
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0], x[1]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::binary(gpu, self, p, [x[0], x[1]], y)
    }

    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        match self {
            Self::Pow => vec![
                ([0.0; 2], vec![Fill::Normal, Fill::Integers(-5, 5)], "whole exponents"),
                ([0.0; 2], vec![Fill::Magnitudes(1e-30, 1e30, true), Fill::Uniform(-1.25, 1.25)], "wide range"),
                ([0.0; 2], vec![Fill::Uniform(0.99, 1.01), Fill::Uniform(-8000.0, 8000.0)], "near one"),
            ],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::{DType, Error};

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype).unwrap();
        let error = add(&zeros(&[2, 3], DType::F32), &zeros(&[2], DType::F32)).unwrap_err();
        assert!(matches!(error, Error::Argument { op: "add", argument: "shapes", .. }), "{error}");
        let error = mul(&zeros(&[2], DType::F32), &zeros(&[2], DType::F16)).unwrap_err();
        assert!(matches!(error, Error::DType { op: "mul", argument: "b", .. }), "{error}");
        let error = pow(&zeros(&[2], DType::I32), &zeros(&[2], DType::I32)).unwrap_err();
        assert!(matches!(error, Error::DType { op: "pow", argument: "a", .. }), "{error}");
    }
}
