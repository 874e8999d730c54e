//! Softmax along an axis: `yᵢ = exp(xᵢ − m) / Σⱼ exp(xⱼ − m)` with `m = max x`, and `log_softmax = x − m − ln Σ exp(x − m)`.

mod cpu;
mod gpu;
mod reference;

use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Softmax, &Kind::LogSoftmax];

/// Which of the two is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Softmax,
    LogSoftmax,
}

struct SoftmaxAxis {
    kind: Kind,
    axis: isize,
}

/// Softmax of `x` along `axis` (negative axes count from the end): `exp(x − max) / Σ exp(x − max)`.
///
/// `x` is f32, f16 or bf16 of any shape; sums are f32. A NaN makes its whole row NaN, as in PyTorch.
///
/// # Errors
/// An axis that `x` does not have, or another dtype.
///
/// ```
/// # use bimetal_ops::softmax;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 1.0], &[4])?;
/// assert_eq!(softmax(&x, 0)?.to_vec::<f32>()?, [0.25; 4]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn softmax(x: &Tensor, axis: isize) -> Result<Tensor> {
    op::run_one(&SoftmaxAxis { kind: Kind::Softmax, axis }, &[x])
}

/// [`softmax`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`softmax`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::softmax_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[3.0f32, 3.0], &[2])?;
/// let mut y = Tensor::zeros(&[2], DType::F32)?;
/// softmax_into(&x, 0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.5, 0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn softmax_into(x: &Tensor, axis: isize, out: &mut Tensor) -> Result<()> {
    op::run_into(&SoftmaxAxis { kind: Kind::Softmax, axis }, &[x], &mut [out])
}

/// Logarithm of the softmax of `x` along `axis`: `x − max − ln Σ exp(x − max)`, exact where `softmax` underflows.
///
/// # Errors
/// As [`softmax`].
///
/// ```
/// # use bimetal_ops::log_softmax;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[0.0f32, 0.0], &[2])?;
/// assert!((log_softmax(&x, 0)?.to_vec::<f32>()?[0] + 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn log_softmax(x: &Tensor, axis: isize) -> Result<Tensor> {
    op::run_one(&SoftmaxAxis { kind: Kind::LogSoftmax, axis }, &[x])
}

/// [`log_softmax`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`softmax_into`].
///
/// ```
/// # use bimetal_ops::log_softmax_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[5.0f32], &[1])?;
/// let mut y = Tensor::zeros(&[1], DType::F32)?;
/// log_softmax_into(&x, 0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn log_softmax_into(x: &Tensor, axis: isize, out: &mut Tensor) -> Result<()> {
    op::run_into(&SoftmaxAxis { kind: Kind::LogSoftmax, axis }, &[x], &mut [out])
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::LogSoftmax => "log_softmax",
        }
    }
}

impl Op for SoftmaxAxis {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [x] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(self.name(), "x", x.dtype, &DType::FLOATS));
        }
        x.shape.axis(self.name(), self.axis)?;
        Ok([(*x).clone()].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        // exp is about ten multiply-adds; the maximum, the subtraction, the sum and the scaling are one each.
        Cost { bytes: 2 * inputs[0].bytes() as u64, flops: 24 * inputs[0].numel() as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = inputs[0].shape.axis(self.name(), self.axis).map_or(1, |axis| inputs[0].shape[axis]).max(2);
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + (n as f64).log2(),
            why: "rounding of x − max and of exp, plus log2(n) roundings of a pairwise sum, all in f32",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::softmax_axis(&inputs[0], self.axis, self.kind)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::softmax_axis(self.kind, inputs[0], inputs[0].shape().axis(self.name(), self.axis)?, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::softmax_axis(gpu, self.kind, inputs[0], inputs[0].shape().axis(self.name(), self.axis)?, outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let axis = self.axis;
        let name = self.name();
        Peer {
            torch: Some(format!("torch.{name}(x0, {axis}, out=y0)").into()),
            numpy: match self.kind {
                Kind::Softmax => Some(
                    format!("np.divide(e := np.exp(x0 - x0.max({axis}, keepdims=True)), e.sum({axis}, keepdims=True), out=y0)")
                        .into(),
                ),
                Kind::LogSoftmax => None,
            },
            ..Peer::default()
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Softmax => "exp(x − max) / Σ exp(x − max) along an axis",
            Self::LogSoftmax => "x − max − ln Σ exp(x − max) along an axis",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let case = |dims: &[usize], axis, fill, role| {
            Case::new(SoftmaxAxis { kind: *self, axis }, vec![Input::new(dims, fill)], role)
        };
        let mut cases = Vec::new();
        for dims in [[32, 1024], [64, 4096], [128, 8192], [256, 16384], [512, 32768], [32, 32000], [128, 128_000]] {
            cases.push(case(&dims, -1, Fill::Normal, Role::Bench));
        }
        for n in [0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1023, 1025, 4099, 9001] {
            cases.push(case(&[3, n], -1, Fill::Normal, Role::Agree));
        }
        cases.push(case(&[0, 5], -1, Fill::Normal, Role::Agree));
        cases.push(case(&[300, 5], 1, Fill::Uniform(-30.0, 30.0), Role::Agree).tagged("many short rows"));
        cases.push(case(&[1, 1 << 20], 1, Fill::Normal, Role::Agree).tagged("one long row"));
        for (dims, axis) in [([5, 37, 3], 1), ([1, 300, 70], 1), ([17, 2, 1], 0), ([129, 3, 11], 0), ([2, 1, 65], 1)] {
            cases.push(case(&dims, axis, Fill::Normal, Role::Agree).tagged(&format!("axis {axis}")));
        }
        cases.push(case(&[40, 13], -1, Fill::Specials, Role::Agree).tagged("specials"));
        cases.push(case(&[8, 100], -1, Fill::Constant(-65000.0), Role::Agree).tagged("constant"));
        cases.push(case(&[8, 100], -1, Fill::Magnitudes(1e-3, 1e4, false), Role::Agree).tagged("wide range"));
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        shape.axis(self.name(), -1)?;
        Ok(Case::new(SoftmaxAxis { kind: *self, axis: -1 }, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_shifts_do_not_matter() {
        let x = Tensor::from_f64(&(0..1000).map(|i| (i as f64 * 0.7).sin() * 9.0).collect::<Vec<_>>(), &[10, 100], DType::F32);
        let x = x.unwrap();
        let y = softmax(&x, -1).unwrap().to_f64_vec().unwrap();
        for row in y.chunks(100) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5);
        }
        let shifted: Vec<f64> = x.to_f64_vec().unwrap().iter().map(|v| v + 64.0).collect();
        let z = softmax(&Tensor::from_f64(&shifted, &[10, 100], DType::F32).unwrap(), -1).unwrap();
        assert!(y.iter().zip(z.to_f64_vec().unwrap()).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn an_infinity_makes_its_row_nan_and_no_other() {
        let x = Tensor::from_slice(&[0.0f32, f32::INFINITY, 1.0, 2.0, f32::NEG_INFINITY, 0.0], &[3, 2]).unwrap();
        let y = softmax(&x, 1).unwrap().to_vec::<f32>().unwrap();
        assert!(y[0].is_nan() || y[0] == 0.0);
        assert!(y[1].is_nan());
        assert!((y[2] + y[3] - 1.0).abs() < 1e-6);
        assert_eq!(&y[4..], [0.0, 1.0]);
    }
}
