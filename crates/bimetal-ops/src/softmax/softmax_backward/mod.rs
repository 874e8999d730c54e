//! Gradients of softmax and log_softmax from their outputs `y` and the gradient `g` of those:
//! `dx = y·(g − Σ g·y)` and `dx = g − exp(y)·Σ g`, sums along the axis.

mod cpu;
mod gpu;
mod reference;

use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Softmax, &Kind::LogSoftmax];

/// Whose gradient it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Softmax,
    LogSoftmax,
}

struct SoftmaxBackward {
    kind: Kind,
    axis: isize,
}

/// Gradient of [`softmax`](crate::softmax()) with respect to its input: `y·(grad − Σ grad·y)` along `axis`, where `y` is
/// the softmax's output.
///
/// `grad` and `y` have one shape and one dtype of f32, f16 and bf16; sums are f32.
///
/// # Errors
/// Shapes or dtypes that differ, or an axis that they do not have.
///
/// ```
/// # use bimetal_ops::softmax_backward;
/// # use bimetal_core::Tensor;
/// let y = Tensor::from_slice(&[0.5f32, 0.5], &[2])?;
/// let grad = Tensor::from_slice(&[1.0f32, 0.0], &[2])?;
/// assert_eq!(softmax_backward(&grad, &y, 0)?.to_vec::<f32>()?, [0.25, -0.25]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn softmax_backward(grad: &Tensor, y: &Tensor, axis: isize) -> Result<Tensor> {
    op::run_one(&SoftmaxBackward { kind: Kind::Softmax, axis }, &[grad, y])
}

/// [`softmax_backward`] into an existing tensor of `y`'s shape, dtype and device.
///
/// # Errors
/// As [`softmax_backward`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::softmax_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let y = Tensor::from_slice(&[1.0f32], &[1])?;
/// let mut dx = Tensor::zeros(&[1], DType::F32)?;
/// softmax_backward_into(&y, &y, 0, &mut dx)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn softmax_backward_into(grad: &Tensor, y: &Tensor, axis: isize, out: &mut Tensor) -> Result<()> {
    op::run_into(&SoftmaxBackward { kind: Kind::Softmax, axis }, &[grad, y], &mut [out])
}

/// Gradient of [`log_softmax`](crate::log_softmax()) with respect to its input: `grad − exp(y)·Σ grad` along `axis`, where
/// `y` is the log_softmax's output.
///
/// # Errors
/// As [`softmax_backward`].
///
/// ```
/// # use bimetal_ops::log_softmax_backward;
/// # use bimetal_core::Tensor;
/// let y = Tensor::from_slice(&[0.0f32], &[1])?;
/// let grad = Tensor::from_slice(&[3.0f32], &[1])?;
/// assert_eq!(log_softmax_backward(&grad, &y, 0)?.to_vec::<f32>()?, [0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn log_softmax_backward(grad: &Tensor, y: &Tensor, axis: isize) -> Result<Tensor> {
    op::run_one(&SoftmaxBackward { kind: Kind::LogSoftmax, axis }, &[grad, y])
}

/// [`log_softmax_backward`] into an existing tensor of `y`'s shape, dtype and device.
///
/// # Errors
/// As [`softmax_backward_into`].
///
/// ```
/// # use bimetal_ops::log_softmax_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let y = Tensor::from_slice(&[0.0f32], &[1])?;
/// let mut dx = Tensor::zeros(&[1], DType::F32)?;
/// log_softmax_backward_into(&y, &y, 0, &mut dx)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn log_softmax_backward_into(grad: &Tensor, y: &Tensor, axis: isize, out: &mut Tensor) -> Result<()> {
    op::run_into(&SoftmaxBackward { kind: Kind::LogSoftmax, axis }, &[grad, y], &mut [out])
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax_backward",
            Self::LogSoftmax => "log_softmax_backward",
        }
    }
}

impl Op for SoftmaxBackward {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [grad, y] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("2 tensors, got {}", inputs.len())));
        };
        if !DType::FLOATS.contains(&y.dtype) {
            return Err(Error::dtype(self.name(), "y", y.dtype, &DType::FLOATS));
        }
        if grad.dtype != y.dtype {
            return Err(Error::dtype(self.name(), "grad", grad.dtype, &[y.dtype]));
        }
        if grad.shape != y.shape {
            return Err(Error::argument(self.name(), "grad", format!("shape {}, got {}", y.shape, grad.shape)));
        }
        y.shape.axis(self.name(), self.axis)?;
        Ok([(*y).clone()].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops_per_element = if self.kind == Kind::Softmax { 4 } else { 23 };
        Cost { bytes: 3 * inputs[0].bytes() as u64, flops: flops_per_element * inputs[0].numel() as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = inputs[0].shape.axis(self.name(), self.axis).map_or(1, |axis| inputs[0].shape[axis]).max(2);
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + (n as f64).log2(),
            why: "rounding of exp, of the product and of the difference, plus log2(n) roundings of a pairwise sum in f32",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::softmax_backward(&inputs[0], &inputs[1], self.axis, self.kind)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let axis = inputs[0].shape().axis(self.name(), self.axis)?;
        cpu::softmax_backward(self.kind, inputs[0], inputs[1], axis, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let axis = inputs[0].shape().axis(self.name(), self.axis)?;
        gpu::softmax_backward(gpu, self.kind, inputs[0], inputs[1], axis, outputs[0])
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let aten = match self.kind {
            Kind::Softmax => "_softmax_backward_data",
            Kind::LogSoftmax => "_log_softmax_backward_data",
        };
        let out = if self.kind == Kind::Softmax { "grad_input" } else { "out" };
        let axis = inputs[0].shape.axis(self.name(), self.axis).unwrap_or(0);
        let torch = format!("torch.ops.aten.{aten}.out(x0, x1, {axis}, x1.dtype, {out}=y0)");
        Peer { torch: Some(torch.into()), ..Peer::default() }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Softmax => "gradient of softmax: y·(g − Σ g·y)",
            Self::LogSoftmax => "gradient of log_softmax: g − exp(y)·Σ g",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let case = |dims: &[usize], axis, role| {
            let op = SoftmaxBackward { kind: *self, axis };
            Case::new(op, vec![Input::new(dims, Fill::Normal), self.output_like(dims)], role)
        };
        let mut cases = Vec::new();
        for dims in [[32, 1024], [256, 16384], [512, 32768], [128, 128_000]] {
            cases.push(case(&dims, -1, Role::Bench));
        }
        for n in [0, 1, 2, 7, 15, 17, 31, 33, 63, 65, 127, 129, 257, 1023, 1025, 4099, 40_001] {
            cases.push(case(&[3, n], -1, Role::Agree));
        }
        cases.push(case(&[0, 5], -1, Role::Agree));
        cases.push(case(&[300, 5], 1, Role::Agree).tagged("many short rows"));
        for (dims, axis) in [([5, 37, 3], 1), ([1, 300, 70], 1), ([17, 2, 1], 0), ([129, 3, 11], 0), ([2, 1, 65], 1)] {
            cases.push(case(&dims, axis, Role::Agree).tagged(&format!("axis {axis}")));
        }
        let specials = vec![Input::new(&[40, 13], Fill::Specials), self.output_like(&[40, 13])];
        cases.push(Case::new(SoftmaxBackward { kind: *self, axis: -1 }, specials, Role::Agree).tagged("specials"));
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        shape.axis(self.name(), -1)?;
        let inputs = vec![Input::new(shape.dims(), Fill::Normal), self.output_like(shape.dims())];
        Ok(Case::new(SoftmaxBackward { kind: *self, axis: -1 }, inputs, Role::Bench))
    }
}

impl Kind {
    /// Values such as the forward operation gives.
    fn output_like(self, dims: &[usize]) -> Input {
        Input::new(dims, if self == Self::Softmax { Fill::Uniform(0.0, 1.0) } else { Fill::Uniform(-12.0, 0.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log_softmax, softmax};

    /// The gradient against a central difference of the forward operation.
    #[test]
    fn it_is_the_derivative_of_the_forward_operation() {
        let x: Vec<f64> = (0..6).map(|i| (i as f64 * 1.3).cos()).collect();
        let g: Vec<f64> = (0..6).map(|i| (i as f64 * 0.9).sin()).collect();
        let tensor = |v: &[f64]| Tensor::from_f64(v, &[2, 3], DType::F32).unwrap();
        let objective = |f: fn(&Tensor, isize) -> Result<Tensor>, x: &[f64]| -> f64 {
            f(&tensor(x), -1).unwrap().to_f64_vec().unwrap().iter().zip(&g).map(|(y, g)| y * g).sum()
        };
        for log in [false, true] {
            let (forward, backward): (fn(&Tensor, isize) -> _, fn(&Tensor, &Tensor, isize) -> _) =
                if log { (log_softmax, log_softmax_backward) } else { (softmax, softmax_backward) };
            let dx = backward(&tensor(&g), &forward(&tensor(&x), -1).unwrap(), -1).unwrap().to_f64_vec().unwrap();
            for i in 0..6 {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-2;
                down[i] -= 1e-2;
                let difference = (objective(forward, &up) - objective(forward, &down)) / 2e-2;
                assert!((dx[i] - difference).abs() < 1e-3, "{log} {i}: {} {difference}", dx[i]);
            }
        }
    }
}
