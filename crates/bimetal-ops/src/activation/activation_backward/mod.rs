//! Gradients through the activations from their inputs: `gᵢ f′(xᵢ)`.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const ROUNDED: &str = "one rounding in f32 and one to the dtype";
const EXPONENTIAL: &str = "the exponential's rounding and polynomial, and two products";
const SLOPE: &str = "the slope is a sum whose two terms have an exponential and a quotient of 2.5 ulp each and may cancel";

family! {
    /// Gradient through [`relu`](crate::relu): g, and 0 where x ≤ 0.
    ReluBackward relu_backward relu_backward_into(grad, x) {
        "g, and 0 where x ≤ 0", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: "the result is g or 0",
        torch "torch.ops.aten.threshold_backward.grad_input(x0, x1, 0, grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[-1.0f32, 2.0]" gives "[0.0, 5.0]"
    }
    /// Gradient through [`leaky_relu`](crate::leaky_relu): g where x > 0, slope g elsewhere.
    LeakyReluBackward leaky_relu_backward leaky_relu_backward_into(grad, x; slope = 0.01) {
        "g where x > 0, else slope g", fill [Fill::Normal], flops 2, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.ops.aten.leaky_relu_backward.grad_input(x0, x1, {p}, False, grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[-1.0f32, 2.0]"; "0.5" gives "[1.5, 5.0]"
    }
    /// Gradient through [`elu`](crate::elu): g, and alpha eˣ g where x ≤ 0.
    EluBackward elu_backward elu_backward_into(grad, x; alpha = 1.0) {
        "g, and alpha eˣ g where x ≤ 0", fill [Fill::Normal], flops 23, ulps 3.5 + 0.0: EXPONENTIAL,
        torch "torch.ops.aten.elu_backward.grad_input(x0, {p}, 1, 1, False, x1, grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[0.0f32, 2.0]"; "0.5" gives "[1.5, 5.0]"
    }
    /// Gradient through [`gelu`](crate::gelu): g (Φ(x) + x φ(x)).
    GeluBackward gelu_backward gelu_backward_into(grad, x) {
        "g (Φ(x) + x φ(x))", fill [Fill::Normal], flops 64, ulps 1.0 + 6.0: SLOPE,
        torch "torch.ops.aten.gelu_backward.grad_input(x0, x1, grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[0.0f32, 30.0]" gives "[1.5, 5.0]"
    }
    /// Gradient through [`gelu_tanh`](crate::gelu_tanh): g s (1 + x (1 − s) 2u′) with s = 1/(1 + e^−2u) and
    /// u = √(2/π) (x + 0.044715 x³).
    GeluTanhBackward gelu_tanh_backward gelu_tanh_backward_into(grad, x) {
        "g s (1 + x (1 − s) 2u′)", fill [Fill::Normal], flops 70, ulps 1.0 + 6.0: SLOPE,
        torch "torch.ops.aten.gelu_backward.grad_input(x0, x1, approximate='tanh', grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[0.0f32, 30.0]" gives "[1.5, 5.0]"
    }
    /// Gradient through [`silu`](crate::silu): g σ (1 + x (1 − σ)) with σ = 1/(1 + e⁻ˣ).
    SiluBackward silu_backward silu_backward_into(grad, x) {
        "g σ (1 + x (1 − σ))", fill [Fill::Normal], flops 36, ulps 1.0 + 6.0: SLOPE,
        torch "torch.ops.aten.silu_backward.grad_input(x0, x1, grad_input=y0)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[0.0f32, 200.0]" gives "[1.5, 5.0]"
    }
    /// Gradient through [`mish`](crate::mish): g (t + x σ (1 − t²)) with t = tanh(ln(1 + eˣ)) and σ = 1/(1 + e⁻ˣ).
    MishBackward mish_backward mish_backward_into(grad, x) {
        "g (t + x σ (1 − t²))", fill [Fill::Normal], flops 44, ulps 1.0 + 6.0: SLOPE,
        torch "torch.ops.aten.mish_backward.default(x0, x1)", numpy "", bench Plain,
        with "[3.0f32, 5.0]" "[0.0f32, 200.0]" gives "[1.8, 5.0]"
    }
}

impl Family for Function {
    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, p: [f32; 2], x: &[Values]) -> Expected {
        reference::activation_backward(self, f64::from(p[0]), x)
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0], x[1]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::activation_backward(gpu, self, p, [x[0], x[1]], y)
    }

    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        let default = self.facts().attributes;
        let mut cases = vec![
            (default, vec![Fill::Normal, Fill::Uniform(-85.0, 85.0)], "whole range"),
            // Below this a slope may be subnormal, of which nothing is promised.
            (default, vec![Fill::Normal, Fill::Uniform(-9.5, 8.0)], "tails"),
            (default, vec![Fill::Normal, Fill::Specials], "special inputs"),
        ];
        if matches!(self, Self::LeakyReluBackward | Self::EluBackward) {
            cases.push(([2.5, 0.0], vec![Fill::Normal; 2], "other attribute"));
        }
        cases
    }
}
