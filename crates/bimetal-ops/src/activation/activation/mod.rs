//! Activations: `yᵢ = f(xᵢ)` for rectifiers and the smooth gates `x σ(x)`, `x Φ(x)` and `x tanh(ln(1 + eˣ))`.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const ROUNDED: &str = "one rounding in f32 and one to the dtype";
const EXPONENTIAL: &str = "the exponential's rounding and polynomial, and a product";
const GATE: &str = "an exponential of one to two ulp, two products, a sum, and a quotient that Vulkan rounds to 2.5 ulp";

family! {
    /// max(x, 0) of each element; NaN stays NaN.
    Relu relu relu_into(x) {
        "max(x, 0)", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: "the result is x or 0",
        torch "torch.ops.aten.relu.out(x0, out=y0)", numpy "np.maximum(x0, 0, out=y0)", bench Sizes,
        with "[-1.0f32, 2.0]" gives "[0.0, 2.0]"
    }
    /// x where x > 0, slope x elsewhere.
    LeakyRelu leaky_relu leaky_relu_into(x; slope = 0.01) {
        "x where x > 0, else slope x", fill [Fill::Normal], flops 2, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.ops.aten.leaky_relu.out(x0, {p}, out=y0)", numpy "", bench Plain,
        with "[-1.0f32, 2.0]"; "0.5" gives "[-0.5, 2.0]"
    }
    /// x where x > 0, alpha (eˣ − 1) elsewhere (Clevert, Unterthiner and Hochreiter 2016).
    Elu elu elu_into(x; alpha = 1.0) {
        "x where x > 0, else alpha (eˣ − 1)", fill [Fill::Normal], flops 24, ulps 3.5 + 0.0: EXPONENTIAL,
        torch "torch.ops.aten.elu.out(x0, {p}, out=y0)", numpy "", bench Plain,
        with "[-100.0f32, 2.0]"; "1.5" gives "[-1.5, 2.0]"
    }
    /// x Φ(x) = x/2 (1 + erf(x/√2)) (Hendrycks and Gimpel 2016), accurate relative to itself for negative x too. Its
    /// value at −∞ is its limit −0, where PyTorch has NaN.
    Gelu gelu gelu_into(x) {
        "x/2 (1 + erf(x/√2))", fill [Fill::Normal], flops 60, ulps 6.0 + 0.0: GATE,
        torch "torch.ops.aten.gelu.out(x0, out=y0)", numpy "", bench Everything,
        with "[0.0f32, 30.0]" gives "[0.0, 30.0]"
    }
    /// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), the tanh form of GELU, accurate relative to itself for negative x too.
    /// Its value at −∞ is its limit −0, where PyTorch has NaN.
    GeluTanh gelu_tanh gelu_tanh_into(x) {
        "x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))", fill [Fill::Normal], flops 60, ulps 6.0 + 0.0: GATE,
        torch "torch.ops.aten.gelu.out(x0, approximate='tanh', out=y0)", numpy "", bench Plain,
        with "[0.0f32, 30.0]" gives "[0.0, 30.0]"
    }
    /// x / (1 + e⁻ˣ), also called swish. Its value at −∞ is its limit −0, where PyTorch has NaN.
    Silu silu silu_into(x) {
        "x / (1 + e⁻ˣ)", fill [Fill::Normal], flops 26, ulps 6.0 + 0.0: GATE,
        torch "torch.ops.aten.silu.out(x0, out=y0)", numpy "", bench Matrices,
        with "[0.0f32, 100.0]" gives "[0.0, 100.0]"
    }
    /// x tanh(ln(1 + eˣ)) (Misra 2019). Its value at −∞ is its limit −0, where PyTorch has NaN.
    Mish mish mish_into(x) {
        "x tanh(ln(1 + eˣ))", fill [Fill::Normal], flops 32, ulps 6.0 + 0.0: GATE,
        torch "torch.ops.aten.mish.out(x0, out=y0)", numpy "", bench Plain,
        with "[0.0f32, 100.0]" gives "[0.0, 100.0]"
    }
}

impl Family for Function {
    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, p: [f32; 2], x: &[Values]) -> Expected {
        reference::activation(self, f64::from(p[0]), &x[0])
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::activation(gpu, self, p, x[0], y)
    }

    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        let default = self.facts().attributes;
        let mut cases = vec![
            (default, vec![Fill::Uniform(-110.0, 100.0)], "whole range"),
            (default, vec![Fill::Uniform(-15.0, 8.0)], "tails"),
        ];
        if matches!(self, Self::LeakyRelu | Self::Elu) {
            cases.push(([0.0; 2], vec![Fill::Normal], "zero attribute"));
            cases.push(([2.5, 0.0], vec![Fill::Normal], "other attribute"));
        }
        cases
    }
}
