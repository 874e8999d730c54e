//! Functions of one element: `yᵢ = f(xᵢ)` for the exponential, logarithm, trigonometric and algebraic functions.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise::family::{Facts, Family, family};
use bimetal_core::op::{Expected, Fill, Values};
use bimetal_core::{Gpu, Result, Tensor};

const ROUNDED: &str = "one rounding in f32 and one to the dtype, or none";
const DIVIDED: &str = "a quotient or a root, which Vulkan rounds to 2.5 ulp, and a rounding";
const POLYNOMIAL: &str = "the last rounding and about as much from the polynomial and its argument";
const QUOTIENT: &str = "an exponential or logarithm of one to two ulp, a sum, and a quotient that Vulkan rounds to 2.5 ulp";

family! {
    /// eˣ of each element. Overflows to infinity above 88.72 in f32.
    Exp exp exp_into(x) {
        "eˣ", fill [Fill::Uniform(-20.0, 20.0)], flops 20, ulps 2.0 + 0.0: POLYNOMIAL,
        torch "torch.exp(x0, out=y0)",
        numpy "np.exp(x0, out=y0)", bench Sizes,
        with "[0.0f32, 1.0]" gives "[1.0, std::f64::consts::E]"
    }
    /// eˣ − 1 of each element, without cancellation near 0.
    Expm1 expm1 expm1_into(x) {
        "eˣ − 1", fill [Fill::Uniform(-2.0, 2.0)], flops 22, ulps 3.0 + 0.0: POLYNOMIAL,
        torch "torch.expm1(x0, out=y0)",
        numpy "np.expm1(x0, out=y0)", bench Plain,
        with "[0.0f32, 1.0]" gives "[0.0, std::f64::consts::E - 1.0]"
    }
    /// Natural logarithm of each element: −∞ at ±0, NaN below.
    Log log log_into(x) {
        "ln x", fill [Fill::Magnitudes(1e-3, 1e3, true)], flops 22, ulps 2.0 + 0.0: POLYNOMIAL,
        torch "torch.log(x0, out=y0)",
        numpy "np.log(x0, out=y0)", bench Plain,
        with "[1.0f32, 2.0]" gives "[0.0, std::f64::consts::LN_2]"
    }
    /// ln(1 + x) of each element, without cancellation near 0: −∞ at −1, NaN below.
    Log1p log1p log1p_into(x) {
        "ln(1 + x)", fill [Fill::Uniform(-0.9, 3.0)], flops 28, ulps 3.0 + 0.0: POLYNOMIAL,
        torch "torch.log1p(x0, out=y0)",
        numpy "np.log1p(x0, out=y0)", bench Plain,
        with "[0.0f32, 1.0]" gives "[0.0, std::f64::consts::LN_2]"
    }
    /// The logistic function 1 / (1 + e⁻ˣ) of each element.
    Sigmoid sigmoid sigmoid_into(x) {
        "1 / (1 + e⁻ˣ)", fill [Fill::Uniform(-10.0, 10.0)], flops 24, ulps 5.0 + 0.0: QUOTIENT,
        torch "torch.sigmoid(x0, out=y0)",
        numpy "np.divide(1, np.add(1, np.exp(np.negative(x0, out=y0), out=y0), out=y0), out=y0)", bench Plain,
        with "[0.0f32, 100.0]" gives "[0.5, 1.0]"
    }
    /// Hyperbolic tangent of each element.
    Tanh tanh tanh_into(x) {
        "tanh x", fill [Fill::Uniform(-4.0, 4.0)], flops 30, ulps 4.0 + 0.0: QUOTIENT,
        torch "torch.tanh(x0, out=y0)",
        numpy "np.tanh(x0, out=y0)", bench Plain,
        with "[0.0f32, -100.0]" gives "[0.0, -1.0]"
    }
    /// ln(1 + eˣ) of each element. There is no threshold: PyTorch returns x itself above 20, which is 2·10⁻⁹ less.
    Softplus softplus softplus_into(x) {
        "ln(1 + eˣ)", fill [Fill::Uniform(-10.0, 10.0)], flops 44, ulps 4.0 + 0.0: QUOTIENT,
        torch "torch.ops.aten.softplus.out(x0, 1.0, 20.0, out=y0)",
        numpy "np.logaddexp(x0, 0, out=y0)", bench Plain,
        with "[0.0f32, 50.0]" gives "[std::f64::consts::LN_2, 50.0]"
    }
    /// The error function 2/√π ∫₀ˣ e^−t² dt of each element.
    Erf erf erf_into(x) {
        "error function", fill [Fill::Uniform(-3.0, 3.0)], flops 36, ulps 4.0 + 0.0: POLYNOMIAL,
        torch "torch.erf(x0, out=y0)",
        numpy "", bench Plain,
        with "[0.0f32, 9.0]" gives "[0.0, 1.0]"
    }
    /// Sine of each element, in radians; exact argument reduction for every finite x, NaN at ±∞.
    Sin sin sin_into(x) {
        "sin x", fill [Fill::Uniform(-10.0, 10.0)], flops 24, ulps 3.0 + 0.0: POLYNOMIAL,
        torch "torch.sin(x0, out=y0)",
        numpy "np.sin(x0, out=y0)", bench Plain,
        with "[0.0f32, 1.0]" gives "[0.0, 1f64.sin()]"
    }
    /// Cosine of each element, in radians; exact argument reduction for every finite x, NaN at ±∞.
    Cos cos cos_into(x) {
        "cos x", fill [Fill::Uniform(-10.0, 10.0)], flops 24, ulps 3.0 + 0.0: POLYNOMIAL,
        torch "torch.cos(x0, out=y0)",
        numpy "np.cos(x0, out=y0)", bench Plain,
        with "[0.0f32, 1.0]" gives "[1.0, 1f64.cos()]"
    }
    /// Square root of each element; NaN for negative numbers.
    Sqrt sqrt sqrt_into(x) {
        "√x", fill [Fill::Uniform(0.0, 10.0)], flops 8, ulps 4.0 + 0.0: DIVIDED,
        torch "torch.sqrt(x0, out=y0)",
        numpy "np.sqrt(x0, out=y0)", bench Plain,
        with "[4.0f32, 2.25]" gives "[2.0, 1.5]"
    }
    /// 1/√x of each element: ±∞ at ±0, NaN for negative numbers.
    Rsqrt rsqrt rsqrt_into(x) {
        "1/√x", fill [Fill::Uniform(0.01, 10.0)], flops 12, ulps 5.0 + 0.0: DIVIDED,
        torch "torch.rsqrt(x0, out=y0)",
        numpy "np.divide(1, np.sqrt(x0, out=y0), out=y0)", bench Plain,
        with "[4.0f32, 0.25]" gives "[0.5, 2.0]"
    }
    /// 1/x of each element: ±∞ at ±0.
    Reciprocal reciprocal reciprocal_into(x) {
        "1/x", fill [Fill::Uniform(0.1, 10.0)], flops 8, ulps 3.0 + 0.0: DIVIDED,
        torch "torch.reciprocal(x0, out=y0)",
        numpy "np.reciprocal(x0, out=y0)", bench Plain,
        with "[4.0f32, -0.5]" gives "[0.25, -2.0]"
    }
    /// x² of each element.
    Square square square_into(x) {
        "x²", fill [Fill::Normal], flops 1, ulps 1.0 + 0.0: ROUNDED,
        torch "torch.square(x0, out=y0)",
        numpy "np.square(x0, out=y0)", bench Plain,
        with "[3.0f32, -0.5]" gives "[9.0, 0.25]"
    }
    /// |x| of each element.
    Abs abs abs_into(x) {
        "|x|", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: ROUNDED,
        torch "torch.abs(x0, out=y0)",
        numpy "np.absolute(x0, out=y0)", bench Plain,
        with "[-3.0f32, 0.5]" gives "[3.0, 0.5]"
    }
    /// −x of each element.
    Neg neg neg_into(x) {
        "−x", fill [Fill::Normal], flops 1, ulps 0.0 + 0.0: ROUNDED,
        torch "torch.neg(x0, out=y0)",
        numpy "np.negative(x0, out=y0)", bench Plain,
        with "[-3.0f32, 0.5]" gives "[3.0, -0.5]"
    }
    /// Each element limited to `min..=max`, as min(max(x, min), max): where `min > max` every element becomes `max`. A NaN
    /// element stays NaN and a NaN bound makes every element NaN, as in PyTorch; an infinite bound does not limit.
    Clamp clamp clamp_into(x; min = -0.5, max = 0.75) {
        "x limited to min..max", fill [Fill::Normal], flops 2, ulps 0.5 + 0.0: "a bound rounds to the dtype",
        torch "torch.clamp(x0, {p}, {q}, out=y0)",
        numpy "np.clip(x0, np.float32({p}), np.float32({q}), out=y0)", bench Plain,
        with "[-2.0f32, 0.5]"; "-1.0" "1.0" gives "[-1.0, 0.5]"
    }
}

impl Family for Function {
    fn facts(self) -> Facts {
        self.table()
    }

    fn reference(self, p: [f32; 2], x: &[Values]) -> Expected {
        reference::unary(self, p.map(f64::from), &x[0])
    }

    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()> {
        cpu::apply(self, p, [x[0]], y)
    }

    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()> {
        gpu::unary(gpu, self, p, x[0], y)
    }

    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        match self {
            Self::Clamp => vec![
                ([1.0, -1.0], vec![Fill::Normal], "min above max"),
                ([f32::NEG_INFINITY, f32::INFINITY], vec![Fill::Specials], "no bounds"),
                ([f32::NAN, 1.0], vec![Fill::Normal], "NaN bound"),
            ],
            Self::Sin | Self::Cos => vec![([0.0; 2], vec![Fill::Magnitudes(1e3, 1e30, false)], "large")],
            Self::Exp | Self::Expm1 => vec![([0.0; 2], vec![Fill::Uniform(-104.0, 89.0)], "whole range")],
            _ => vec![([0.0; 2], vec![Fill::Magnitudes(1e-38, 1e38, false)], "whole range")],
        }
    }
}
