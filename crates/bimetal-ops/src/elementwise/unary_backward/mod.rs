//! Gradients through functions of one element: `gᵢ f′(xᵢ)`, from the function's input or, where that is cheaper, output.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const PRODUCTS: &str = "up to four roundings of products and differences in f32";
const DIVIDED: &str = "a quotient, which Vulkan rounds to 2.5 ulp";
const SIGMOID: &str = "the logistic function, whose quotient Vulkan rounds to 2.5 ulp, and a product";

family! {
    /// Gradient through [`sigmoid`](crate::sigmoid) from its output `y`: g y (1 − y).
    SigmoidBackward sigmoid_backward sigmoid_backward_into(grad, y) {
        "g y (1 − y)", fill [Fill::Normal, Fill::Uniform(0.0, 1.0)], flops 3, ulps 2.5 + 0.0: PRODUCTS,
        torch "torch.ops.aten.sigmoid_backward.grad_input(x0, x1, grad_input=y0)", numpy "", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[0.5, 0.0]"
    }
    /// Gradient through [`tanh`](crate::tanh) from its output `y`: g (1 − y²), as g (1 − y)(1 + y), which does not cancel.
    TanhBackward tanh_backward tanh_backward_into(grad, y) {
        "g (1 − y²)", fill [Fill::Normal, Fill::Uniform(-1.0, 1.0)], flops 4, ulps 2.5 + 0.0: PRODUCTS,
        torch "torch.ops.aten.tanh_backward.grad_input(x0, x1, grad_input=y0)", numpy "", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[1.5, 0.0]"
    }
    /// Gradient through [`softplus`](crate::softplus) from its input: g / (1 + e⁻ˣ).
    SoftplusBackward softplus_backward softplus_backward_into(grad, x) {
        "g / (1 + e⁻ˣ)", fill [Fill::Normal, Fill::Uniform(-10.0, 10.0)], flops 25, ulps 5.5 + 0.0: SIGMOID,
        torch "torch.ops.aten.softplus_backward.grad_input(x0, x1, 1.0, 20.0, grad_input=y0)", numpy "", bench Plain,
        with "[2.0f32, 4.0]" "[0.0f32, 90.0]" gives "[1.0, 4.0]"
    }
    /// Gradient through [`exp`](crate::exp) from its output `y`: g y.
    ExpBackward exp_backward exp_backward_into(grad, y) {
        "g y", fill [Fill::Normal, Fill::Uniform(0.0, 10.0)], flops 1, ulps 1.0 + 0.0: PRODUCTS,
        torch "torch.mul(x0, x1, out=y0)", numpy "np.multiply(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[1.0, 4.0]"
    }
    /// Gradient through [`log`](crate::log) from its input: g / x.
    LogBackward log_backward log_backward_into(grad, x) {
        "g / x", fill [Fill::Normal, Fill::Uniform(0.1, 10.0)], flops 8, ulps 3.5 + 0.0: DIVIDED,
        torch "torch.div(x0, x1, out=y0)", numpy "np.divide(x0, x1, out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[0.5f32, 1.0]" gives "[4.0, 4.0]"
    }
    /// Gradient through [`abs`](crate::abs) from its input: g times the sign of x; g · 0 at ±0 and NaN, as in PyTorch.
    AbsBackward abs_backward abs_backward_into(grad, x) {
        "g sign x", fill [Fill::Normal], flops 2, ulps 0.0 + 0.0: "the factors are 1, 0 and −1",
        torch "torch.mul(x0, torch.sgn(x1), out=y0)", numpy "np.multiply(x0, np.sign(x1), out=y0)", bench Plain,
        with "[2.0f32, 4.0]" "[-0.5f32, 0.0]" gives "[-2.0, 0.0]"
    }
    /// Gradient through [`clamp`](crate::clamp) from its input: g where min ≤ x ≤ max, 0 elsewhere and where x is NaN.
    ClampBackward clamp_backward clamp_backward_into(grad, x; min = -0.5, max = 0.75) {
        "g where min ≤ x ≤ max, else 0", fill [Fill::Normal], flops 2, ulps 0.0 + 0.0: "the result is g or 0",
        torch "torch.mul(x0, (x1 >= {p}) & (x1 <= {q}), out=y0)", numpy "", bench Plain,
        with "[2.0f32, 4.0]" "[-0.5f32, 0.5]"; "0.0" "1.0" gives "[0.0, 4.0]"
    }
}

impl Family for Function {
    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, p: [f32; 2], x: &[Values]) -> Expected {
        reference::unary_backward(self, p.map(f64::from), x)
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0], x[1]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::unary_backward(gpu, self, p, [x[0], x[1]], y)
    }

    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        match self {
            Self::ClampBackward => vec![
                ([1.0, -1.0], vec![Fill::Normal; 2], "min above max"),
                ([-1.0, f32::INFINITY], vec![Fill::Normal, Fill::Specials], "one bound"),
            ],
            Self::AbsBackward => vec![([0.0; 2], vec![Fill::Normal, Fill::Integers(-1, 1)], "zeros")],
            _ => vec![([0.0; 2], vec![Fill::Normal, Fill::Magnitudes(1e-30, 1e8, false)], "small and large")],
        }
    }
}
