//! Functions of one element: `yᵢ = f(xᵢ)` for the exponential, logarithm, trigonometric and algebraic functions.

mod cpu;
#[allow(missing_docs)]
mod gpu;
mod reference;

use crate::pointwise;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{Gpu, Result, Shape, Spec, Tensor};

/// What the registry, the reports and the cases need to know of a function.
struct Facts {
    name: &'static str,
    doc: &'static str,
    /// Where the function is interesting.
    fill: Fill,
    flops: u64,
    tolerance: Tolerance,
    torch: &'static str,
    numpy: &'static str,
}

const ROUNDED: &str = "one correctly rounded operation, or an exact one";
const DIVIDED: &str = "a quotient or root, which Vulkan rounds to 2.5 ulp";
const POLYNOMIAL: &str = "the last rounding and about as much from the polynomial and its argument";
const QUOTIENT: &str = "an exponential or logarithm of one to two ulp, a sum, and a quotient that Vulkan rounds to 2.5 ulp";

macro_rules! functions {
    ($($(#[doc = $long:literal])* $variant:ident $name:ident $into:ident($at:literal) = $is:literal {
        $doc:literal, $fill:expr, $flops:literal, $ulps:literal: $why:expr, $numpy:literal $(, torch $torch:literal)?
    })*) => {
        /// Which function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Function {
            $($variant,)*
            Clamp,
        }

        impl Function {
            fn facts(self) -> Facts {
                match self {
                    $(Self::$variant => Facts {
                        name: stringify!($name),
                        doc: $doc,
                        fill: $fill,
                        flops: $flops,
                        tolerance: Tolerance { ulps: $ulps, scaled: 0.0, why: $why },
                        torch: [concat!("torch.", stringify!($name), "(x0, out=y0)") $(, $torch)?].last().unwrap(),
                        numpy: $numpy,
                    },)*
                    Self::Clamp => CLAMP,
                }
            }
        }

        /// The operations of this family.
        pub(crate) static OPS: &[&dyn Definition] = &[$(&Function::$variant,)* &Function::Clamp];

        $(
            $(#[doc = $long])*
            ///
            /// `x` is f32, f16 or bf16 of any shape; the arithmetic is f32. NaN stays NaN.
            ///
            /// # Errors
            /// Another dtype.
            ///
            /// ```
            /// # use bimetal_core::Tensor;
            /// let x = Tensor::from_slice(&[
            #[doc = concat!($at, "f32")]
            /// ], &[1])?;
            #[doc = concat!("let y = bimetal_ops::", stringify!($name), "(&x)?.to_vec::<f32>()?;")]
            #[doc = concat!("assert!((y[0] - ", $is, ").abs() < 1e-6);")]
            /// # Ok::<(), bimetal_core::Error>(())
            /// ```
            pub fn $name(x: &Tensor) -> Result<Tensor> {
                op::run_one(&Unary::plain(Function::$variant), &[x])
            }

            #[doc = concat!("[`", stringify!($name), "`] into an existing tensor of `x`'s shape, dtype and device.")]
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($name), "`], or an output of another shape, dtype or device.")]
            ///
            /// ```
            /// # use bimetal_core::{DType, Tensor};
            /// let x = Tensor::from_slice(&[
            #[doc = concat!($at, "f32")]
            /// ], &[1])?;
            /// let mut y = Tensor::zeros(&[1], DType::F32)?;
            #[doc = concat!("bimetal_ops::", stringify!($into), "(&x, &mut y)?;")]
            #[doc = concat!("assert!((y.to_vec::<f32>()?[0] - ", $is, ").abs() < 1e-6);")]
            /// # Ok::<(), bimetal_core::Error>(())
            /// ```
            pub fn $into(x: &Tensor, out: &mut Tensor) -> Result<()> {
                op::run_into(&Unary::plain(Function::$variant), &[x], &mut [out])
            }
        )*
    };
}

functions! {
    /// eˣ of each element. Overflows to infinity above 88.72 in f32.
    Exp exp exp_into(0.0) = 1.0 {
        "eˣ", Fill::Uniform(-20.0, 20.0), 20, 2.0: POLYNOMIAL, "np.exp(x0, out=y0)"
    }
    /// eˣ − 1 of each element, without cancellation near 0.
    Expm1 expm1 expm1_into(0.0) = 0.0 {
        "eˣ − 1", Fill::Uniform(-2.0, 2.0), 22, 3.0: POLYNOMIAL, "np.expm1(x0, out=y0)"
    }
    /// Natural logarithm of each element: −∞ at ±0, NaN below.
    Log log log_into(1.0) = 0.0 {
        "ln x", Fill::Magnitudes(1e-3, 1e3, true), 22, 2.0: POLYNOMIAL, "np.log(x0, out=y0)"
    }
    /// ln(1 + x) of each element, without cancellation near 0: −∞ at −1, NaN below.
    Log1p log1p log1p_into(0.0) = 0.0 {
        "ln(1 + x)", Fill::Uniform(-0.9, 3.0), 28, 3.0: POLYNOMIAL, "np.log1p(x0, out=y0)"
    }
    /// The logistic function 1 / (1 + e⁻ˣ) of each element.
    Sigmoid sigmoid sigmoid_into(0.0) = 0.5 {
        "1 / (1 + e⁻ˣ)", Fill::Uniform(-10.0, 10.0), 24, 5.0: QUOTIENT,
        "np.divide(1, np.add(1, np.exp(np.negative(x0, out=y0), out=y0), out=y0), out=y0)"
    }
    /// Hyperbolic tangent of each element.
    Tanh tanh tanh_into(0.0) = 0.0 {
        "tanh x", Fill::Uniform(-4.0, 4.0), 30, 4.0: QUOTIENT, "np.tanh(x0, out=y0)"
    }
    /// ln(1 + eˣ) of each element. There is no threshold: PyTorch returns x itself above 20, which is 2·10⁻⁹ less.
    Softplus softplus softplus_into(0.0) = 0.693_147_2 {
        "ln(1 + eˣ)", Fill::Uniform(-10.0, 10.0), 44, 4.0: QUOTIENT, "np.logaddexp(x0, 0, out=y0)",
        torch "torch.ops.aten.softplus.out(x0, 1.0, 20.0, out=y0)"
    }
    /// The error function 2/√π ∫₀ˣ e^−t² dt of each element.
    Erf erf erf_into(0.0) = 0.0 {
        "error function", Fill::Uniform(-3.0, 3.0), 36, 4.0: POLYNOMIAL, ""
    }
    /// Sine of each element, in radians; exact argument reduction for every finite x, NaN at ±∞.
    Sin sin sin_into(0.0) = 0.0 {
        "sin x", Fill::Uniform(-10.0, 10.0), 24, 3.0: POLYNOMIAL, "np.sin(x0, out=y0)"
    }
    /// Cosine of each element, in radians; exact argument reduction for every finite x, NaN at ±∞.
    Cos cos cos_into(0.0) = 1.0 {
        "cos x", Fill::Uniform(-10.0, 10.0), 24, 3.0: POLYNOMIAL, "np.cos(x0, out=y0)"
    }
    /// Square root of each element; NaN for negative numbers.
    Sqrt sqrt sqrt_into(4.0) = 2.0 {
        "√x", Fill::Uniform(0.0, 10.0), 8, 4.0: DIVIDED, "np.sqrt(x0, out=y0)"
    }
    /// 1/√x of each element: ±∞ at ±0, NaN for negative numbers.
    Rsqrt rsqrt rsqrt_into(4.0) = 0.5 {
        "1/√x", Fill::Uniform(0.01, 10.0), 12, 5.0: DIVIDED, "np.divide(1, np.sqrt(x0, out=y0), out=y0)"
    }
    /// 1/x of each element: ±∞ at ±0.
    Reciprocal reciprocal reciprocal_into(4.0) = 0.25 {
        "1/x", Fill::Uniform(0.1, 10.0), 8, 3.0: DIVIDED, "np.reciprocal(x0, out=y0)"
    }
    /// x² of each element.
    Square square square_into(3.0) = 9.0 {
        "x²", Fill::Normal, 1, 1.0: ROUNDED, "np.square(x0, out=y0)"
    }
    /// |x| of each element.
    Abs abs abs_into(-3.0) = 3.0 {
        "|x|", Fill::Normal, 1, 0.0: ROUNDED, "np.absolute(x0, out=y0)"
    }
    /// −x of each element.
    Neg neg neg_into(3.0) = -3.0 {
        "−x", Fill::Normal, 1, 0.0: ROUNDED, "np.negative(x0, out=y0)"
    }
}

const CLAMP: Facts = Facts {
    name: "clamp",
    doc: "x limited to min..max",
    fill: Fill::Normal,
    flops: 2,
    tolerance: Tolerance { ulps: 0.5, scaled: 0.0, why: "a bound rounds to the dtype" },
    torch: "torch.clamp(x0, -0.5, 0.75, out=y0)",
    numpy: "np.clip(x0, np.float32(-0.5), np.float32(0.75), out=y0)",
};

/// Each element limited to `min..=max`, as min(max(x, min), max): where `min > max` every element becomes `max`. A NaN
/// element stays NaN and a NaN bound makes every element NaN, as in PyTorch; an infinite bound does not limit.
///
/// `x` is f32, f16 or bf16 of any shape.
///
/// # Errors
/// Another dtype.
///
/// ```
/// # use bimetal_ops::clamp;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[-2.0f32, 0.5, 7.0], &[3])?;
/// assert_eq!(clamp(&x, -1.0, 1.0)?.to_vec::<f32>()?, [-1.0, 0.5, 1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn clamp(x: &Tensor, min: f32, max: f32) -> Result<Tensor> {
    op::run_one(&Unary { function: Function::Clamp, bounds: [min, max] }, &[x])
}

/// [`clamp`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`clamp`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::clamp_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[-2.0f32, f32::NAN], &[2])?;
/// let mut y = Tensor::zeros(&[2], DType::F32)?;
/// clamp_into(&x, 0.0, f32::INFINITY, &mut y)?;
/// assert!(y.to_vec::<f32>()?[0] == 0.0 && y.to_vec::<f32>()?[1].is_nan());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn clamp_into(x: &Tensor, min: f32, max: f32, out: &mut Tensor) -> Result<()> {
    op::run_into(&Unary { function: Function::Clamp, bounds: [min, max] }, &[x], &mut [out])
}

struct Unary {
    function: Function,
    bounds: [f32; 2],
}

impl Unary {
    fn plain(function: Function) -> Self {
        Self { function, bounds: [-0.5, 0.75] }
    }
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        self.function.facts().name
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        pointwise::same(self.name(), &["x"], inputs)
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        Cost::streaming(inputs, &[inputs[0].clone()], self.function.facts().flops * inputs[0].numel() as u64)
    }

    fn tolerance(&self, _inputs: &[&Spec]) -> Tolerance {
        self.function.facts().tolerance
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::unary(self.function, self.bounds.map(f64::from), &inputs[0])]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::unary(self.function, self.bounds, inputs[0], outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::unary(gpu, self.function, self.bounds, inputs[0], outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let Facts { torch, numpy, .. } = self.function.facts();
        Peer { torch: Some(torch.into()), numpy: (!numpy.is_empty()).then(|| numpy.into()) }
    }
}

impl Definition for Function {
    fn name(&self) -> &'static str {
        self.facts().name
    }

    fn doc(&self) -> &'static str {
        self.facts().doc
    }

    fn cases(&self) -> Vec<Case> {
        let shapes = pointwise::bench_shapes(*self == Self::Exp, false);
        let mut cases = pointwise::cases(|| Unary::plain(*self), 1, self.facts().fill, &shapes);
        let mut add = |bounds, fill, tag: &str| {
            let op = Unary { function: *self, bounds };
            cases.push(Case::new(op, vec![Input::new(&[101], fill)], Role::Agree).tagged(tag));
        };
        match self {
            Self::Clamp => {
                add([1.0, -1.0], Fill::Normal, "min above max");
                add([f32::NEG_INFINITY, f32::INFINITY], Fill::Specials, "no bounds");
                add([f32::NAN, 1.0], Fill::Normal, "NaN bound");
            }
            Self::Sin | Self::Cos => add([0.0; 2], Fill::Magnitudes(1e3, 1e30, false), "large"),
            Self::Exp | Self::Expm1 => add([0.0; 2], Fill::Uniform(-104.0, 89.0), "whole range"),
            _ => add([0.0; 2], Fill::Magnitudes(1e-38, 1e38, false), "whole range"),
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        Ok(Case::new(Unary::plain(*self), vec![Input::new(shape.dims(), self.facts().fill)], Role::Bench))
    }
}
