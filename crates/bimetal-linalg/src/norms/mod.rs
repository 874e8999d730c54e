//! Numbers of matrices: the trace `Σ aᵢᵢ` and the Frobenius norm `√Σ aᵢⱼ²`.

mod cpu;
mod gpu;
mod reference;

use crate::lanes::DTYPES;
use crate::system;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Spectrum, Structure, Tolerance, Values,
};
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Trace, &Kind::FrobeniusNorm];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Trace,
    FrobeniusNorm,
}

/// The sums of the diagonals of `[…, m, n]`: one number for each matrix, of its dtype (f32, f64, f16 or bf16, which are
/// summed in f32).
///
/// # Errors
/// Fewer than two axes, or another dtype.
///
/// ```
/// # use bimetal_linalg::trace;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// assert_eq!(trace(&a)?.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn trace(a: &Tensor) -> Result<Tensor> {
    op::run_one(&Kind::Trace, &[a])
}

/// [`trace`] into an existing tensor of the leading extents and dtype of `a` on its device.
///
/// # Errors
/// As [`trace`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::trace_into;
/// # use bimetal_core::{DType, Tensor};
/// let mut t = Tensor::zeros(&[], DType::F32)?;
/// trace_into(&Tensor::from_slice(&[3.0f32], &[1, 1])?, &mut t)?;
/// assert_eq!(t.to_vec::<f32>()?, [3.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn trace_into(a: &Tensor, out: &mut Tensor) -> Result<()> {
    op::run_into(&Kind::Trace, &[a], &mut [out])
}

/// The Frobenius norms of `[…, m, n]`: one number for each matrix, of its dtype (f32, f64, f16 or bf16). Squares neither
/// overflow nor underflow (LAPACK `lange`).
///
/// # Errors
/// Fewer than two axes, or another dtype.
///
/// ```
/// # use bimetal_linalg::frobenius_norm;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0e30f32, 0.0, 0.0, 4.0e30], &[2, 2])?;
/// assert_eq!(frobenius_norm(&a)?.to_vec::<f32>()?, [5.0e30]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn frobenius_norm(a: &Tensor) -> Result<Tensor> {
    op::run_one(&Kind::FrobeniusNorm, &[a])
}

/// [`frobenius_norm`] into an existing tensor of the leading extents and dtype of `a` on its device.
///
/// # Errors
/// As [`frobenius_norm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::frobenius_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let mut norm = Tensor::zeros(&[], DType::F32)?;
/// frobenius_norm_into(&Tensor::from_slice(&[-3.0f32], &[1, 1])?, &mut norm)?;
/// assert_eq!(norm.to_vec::<f32>()?, [3.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn frobenius_norm_into(a: &Tensor, out: &mut Tensor) -> Result<()> {
    op::run_into(&Kind::FrobeniusNorm, &[a], &mut [out])
}

impl Op for Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::FrobeniusNorm => "frobenius_norm",
        }
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        system::check(Op::name(self), inputs, &["a"])?;
        system::matrices(Op::name(self), "a", &inputs[0].shape)?;
        let leading = system::status(&inputs[0].shape)?.shape;
        Ok([Spec::new(leading, inputs[0].dtype)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        match (self, system::matrices("trace", "a", &inputs[0].shape)) {
            (Self::Trace, Ok([count, m, n])) => {
                let elements = count * m.min(n);
                let bytes = elements * inputs[0].dtype.size() + outputs.iter().map(Spec::bytes).sum::<usize>();
                Cost { bytes: bytes as u64, flops: elements.max(1) as u64 }
            }
            _ => Cost::streaming(inputs, &outputs, (2 * inputs[0].numel()).max(1) as u64),
        }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = inputs[0].numel().max(2) as f64;
        match self {
            Self::Trace => Tolerance { ulps: 1.0, scaled: 2.0 + n.log2(), why: "a sum by parts, and its rounding" },
            Self::FrobeniusNorm => Tolerance {
                ulps: 4.0,
                scaled: 4.0 + n.log2(),
                why: "quotients by the largest, a sum of their squares by parts, a root and roundings",
            },
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::numbers(*self, &inputs[0])]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::numbers(*self, system::matrices(Op::name(self), "a", inputs[0].shape())?, inputs[0], outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::numbers(gpu, *self, system::matrices(Op::name(self), "a", inputs[0].shape())?, inputs[0], outputs[0])
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let torch = match self {
            Self::Trace if inputs[0].shape.rank() == 2 => Some("y0.copy_(torch.trace(x0))"),
            Self::Trace => None,
            Self::FrobeniusNorm => Some("torch.linalg.matrix_norm(x0, out=y0)"),
        };
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: None }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        Op::name(self)
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Trace => "the sum of the diagonal",
            Self::FrobeniusNorm => "the root of the sum of the squares",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        let case = |dims: &[usize], fill, role| Case::new(*self, vec![Input::new(dims, fill)], role);
        let mut cases = vec![
            case(&[1000, 32, 32], Fill::Normal, Role::Bench),
            case(&[1024, 1024], Fill::Normal, Role::Bench),
        ];
        let sizes: [&[usize]; 12] = [
            &[0, 0], &[0, 3], &[3, 0], &[1, 1], &[5, 7], &[0, 2, 2], &[3, 0, 4], &[65, 2, 3], &[2, 3, 17, 16], &[3, 33, 129],
            &[700, 3], &[1, 130, 131],
        ];
        cases.extend(sizes.iter().map(|dims| case(dims, Fill::Normal, Role::Agree).tagged("sizes")));
        cases.push(case(&[3, 40, 41], Fill::Specials, Role::Agree).tagged("specials"));
        for (spectrum, tag) in [(Spectrum::Zero, "zero"), (Spectrum::Scaled(30), "1e30"), (Spectrum::Scaled(-30), "1e-30"), (Spectrum::OneNan, "one-nan")] {
            cases.push(case(&[3, 20, 20], Fill::Matrices(Structure::General, spectrum), Role::Agree).tagged(tag));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        system::matrices(Op::name(self), "a", shape)?;
        Ok(Case::new(*self, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}
