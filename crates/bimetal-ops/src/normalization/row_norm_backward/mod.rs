//! Gradients of layer norm and RMS norm. With `x̂ = (x − mean)·rstd` and `ĝ = grad·weight`, both means over a row:
//! `dx = rstd·(ĝ − mean(ĝ) − x̂·mean(ĝ·x̂))`, without `mean` and `mean(ĝ)` for RMS norm; over all rows
//! `dweight = Σ grad·x̂` and `dbias = Σ grad`.

pub(crate) mod cpu;
mod gpu;
mod gpu_row;
mod reference;

use crate::normalization::row_norm::{check_same, check_trailing, row_length};
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::LayerNorm, &Kind::RmsNorm];

/// Whose gradient it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    LayerNorm,
    RmsNorm,
}

#[derive(Clone, Copy, Debug)]
struct RowNormBackward {
    kind: Kind,
    weight: bool,
    eps: f32,
}

/// Gradients of [`layer_norm`](crate::layer_norm()) with respect to `x`, `weight` and `bias`, in this order.
///
/// `grad` (of the output) and `x` have one shape and one dtype of f32, f16 and bf16; `weight` is that of the forward
/// call, `None` for ones, and so is `eps`. The gradients of weight and bias have the shape of `weight`, or of the last
/// axis, and are sums over all rows: f32 in a fixed order, whatever the number of threads. The statistics are computed
/// again: `x` is read anyway, and the forward call needs not keep them.
///
/// # Errors
/// Shapes or dtypes that differ, another dtype, a scalar `x`, or a `weight` whose shape is not that of `x`'s last axes.
///
/// ```
/// # use bimetal_ops::layer_norm_backward;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[1, 2])?;
/// let grad = Tensor::from_slice(&[1.0f32, 0.0], &[1, 2])?;
/// let (dx, dweight, dbias) = layer_norm_backward(&grad, &x, None, 3.0)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.1875, -0.1875]);
/// assert_eq!(dweight.to_vec::<f32>()?, [0.5, 0.0]);
/// assert_eq!(dbias.to_vec::<f32>()?, [1.0, 0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn layer_norm_backward(
    grad: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (op, inputs) = prepare(Kind::LayerNorm, grad, x, weight, eps);
    let mut made = op::run(&op, &inputs)?.into_iter();
    match (made.next(), made.next(), made.next()) {
        (Some(dx), Some(dweight), Some(dbias)) => Ok((dx, dweight, dbias)),
        _ => unreachable!("the operation has three outputs"),
    }
}

/// [`layer_norm_backward`] into existing tensors.
///
/// # Errors
/// As [`layer_norm_backward`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::layer_norm_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[1, 2])?;
/// let new = |dims: &[usize]| Tensor::zeros(dims, DType::F32);
/// let (mut dx, mut dweight, mut dbias) = (new(&[1, 2])?, new(&[2])?, new(&[2])?);
/// layer_norm_backward_into(&x, &x, None, 3.0, &mut dx, &mut dweight, &mut dbias)?;
/// assert_eq!(dweight.to_vec::<f32>()?, [1.0, 0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn layer_norm_backward_into(
    grad: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
    dx: &mut Tensor,
    dweight: &mut Tensor,
    dbias: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::LayerNorm, grad, x, weight, eps);
    op::run_into(&op, &inputs, &mut [dx, dweight, dbias])
}

/// Gradients of [`rms_norm`](crate::rms_norm()) with respect to `x` and `weight`, in this order; inputs, sums and errors
/// are as in [`layer_norm_backward`].
///
/// # Errors
/// As [`layer_norm_backward`].
///
/// ```
/// # use bimetal_ops::rms_norm_backward;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, -1.0], &[1, 2])?;
/// let grad = Tensor::from_slice(&[1.0f32, 0.0], &[1, 2])?;
/// let (dx, dweight) = rms_norm_backward(&grad, &x, None, 3.0)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.4375, 0.0625]);
/// assert_eq!(dweight.to_vec::<f32>()?, [0.5, 0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn rms_norm_backward(grad: &Tensor, x: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<(Tensor, Tensor)> {
    let (op, inputs) = prepare(Kind::RmsNorm, grad, x, weight, eps);
    let mut made = op::run(&op, &inputs)?.into_iter();
    match (made.next(), made.next()) {
        (Some(dx), Some(dweight)) => Ok((dx, dweight)),
        _ => unreachable!("the operation has two outputs"),
    }
}

/// [`rms_norm_backward`] into existing tensors.
///
/// # Errors
/// As [`layer_norm_backward_into`].
///
/// ```
/// # use bimetal_ops::rms_norm_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, -2.0], &[1, 2])?;
/// let (mut dx, mut dweight) = (Tensor::zeros(&[1, 2], DType::F32)?, Tensor::zeros(&[2], DType::F32)?);
/// rms_norm_backward_into(&x, &x, None, 0.0, &mut dx, &mut dweight)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.0, 0.0]);
/// assert_eq!(dweight.to_vec::<f32>()?, [2.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn rms_norm_backward_into(
    grad: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
    dx: &mut Tensor,
    dweight: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::RmsNorm, grad, x, weight, eps);
    op::run_into(&op, &inputs, &mut [dx, dweight])
}

fn prepare<'a>(
    kind: Kind,
    grad: &'a Tensor,
    x: &'a Tensor,
    weight: Option<&'a Tensor>,
    eps: f32,
) -> (RowNormBackward, Vec<&'a Tensor>) {
    let op = RowNormBackward { kind, weight: weight.is_some(), eps };
    (op, [Some(grad), Some(x), weight].into_iter().flatten().collect())
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::LayerNorm => "layer_norm_backward",
            Self::RmsNorm => "rms_norm_backward",
        }
    }

    /// Whether the mean is subtracted, and the bias has a gradient.
    fn centers(self) -> bool {
        self == Self::LayerNorm
    }

    fn case(self, dims: &[usize], trailing: usize, weight: bool, fill: Fill, role: Role) -> Case {
        let op = RowNormBackward { kind: self, weight, eps: if self.centers() { 1e-5 } else { 1e-6 } };
        let mut inputs = vec![Input::new(dims, Fill::Normal), Input::new(dims, fill)];
        inputs.extend(weight.then(|| Input::new(&dims[dims.len() - trailing..], Fill::Normal)));
        Case::new(op, inputs, role)
    }
}

impl Op for RowNormBackward {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let name = self.name();
        let count = 2 + usize::from(self.weight);
        if inputs.len() != count {
            return Err(Error::argument(name, "inputs", format!("{count} tensors, got {}", inputs.len())));
        }
        let (grad, x, weight) = (inputs[0], inputs[1], inputs.get(2));
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(name, "x", x.dtype, &DType::FLOATS));
        }
        if x.shape.rank() == 0 {
            return Err(Error::argument(name, "x", "at least one axis, got a scalar"));
        }
        check_same(name, "grad", grad, x)?;
        weight.map_or(Ok(()), |weight| check_trailing(name, "weight", weight, x))?;
        let parameter = match weight {
            Some(weight) => (*weight).clone(),
            None => Spec::new(Shape::new(&x.shape.dims()[x.shape.rank() - 1..])?, x.dtype),
        };
        let mut outputs = Specs::new();
        outputs.push(x.clone());
        outputs.push(parameter.clone());
        if self.kind.centers() {
            outputs.push(parameter);
        }
        Ok(outputs)
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let x = inputs[1];
        let n = row_length(&x.shape, inputs.get(2).map(|w| &w.shape));
        let parameters = (usize::from(self.kind.centers()) + inputs.len() - 1) * n * x.dtype.size();
        let flops = if self.kind.centers() { 18 } else { 12 };
        Cost { bytes: (3 * x.bytes() + parameters) as u64, flops: flops * x.numel() as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = row_length(&inputs[1].shape, inputs.get(2).map(|w| &w.shape)).max(1);
        let rows = inputs[1].numel() / n;
        Tolerance {
            ulps: 1.0,
            scaled: 6.0 + (n.max(2) as f64).log2() + (rows.max(2) as f64).log2(),
            why: "log2 of their length in roundings for the blocked f32 sums over a row and over all rows, and six for \
                  the elements",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        reference::row_norm_backward(self, inputs)
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::row_norm_backward(self, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::row_norm_backward(self, gpu, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let x = inputs[1];
        let normalized = inputs.get(2).map_or(&x.shape.dims()[x.shape.rank() - 1..], |w| w.shape.dims());
        let weight = if self.weight { "x2" } else { "None" };
        let eps = self.eps;
        if self.kind.centers() {
            let torch = format!(
                "torch.ops.aten.native_layer_norm_backward(x0, x1, {normalized:?}, *s, {weight}, {weight}, \
                 [True, True, True])"
            );
            let setup = format!("torch.native_layer_norm(x1, {normalized:?}, {weight}, None, {eps})[1:]");
            return Peer { torch: Some(torch.into()), torch_setup: Some(setup.into()), numpy: None };
        }
        // RMS norm has no gradient operation of its own on the CPU: the backward half of autograd.
        let leaves = if self.weight { "[x1, x2]" } else { "[x1]" };
        let setup = format!(
            "(lambda x, w=None: (F.rms_norm(x, {normalized:?}, w, {eps}), [x] if w is None else [x, w]))\
             (*(t.detach().requires_grad_() for t in {leaves}))"
        );
        let torch = "torch.autograd.grad(*s, x0, retain_graph=True)";
        Peer { torch: Some(torch.into()), torch_setup: Some(setup.into()), numpy: None }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::LayerNorm => "gradients of layer_norm: of x, weight and bias",
            Self::RmsNorm => "gradients of rms_norm: of x and weight",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for dims in [[1, 4096], [32, 4096], [1024, 1024], [2560, 4096], [4096, 4096]] {
            cases.push(self.case(&dims, 1, true, Fill::Normal, Role::Bench));
        }
        for n in [0, 1, 2, 7, 16, 17, 31, 33, 65, 127, 129, 257, 1023, 1025, 4099, 20_480] {
            cases.push(self.case(&[5, n], 1, true, Fill::Normal, Role::Agree));
        }
        let mut agree = |dims: &[usize], trailing, weight, fill, tag: &str| {
            cases.push(self.case(dims, trailing, weight, fill, Role::Agree).tagged(tag));
        };
        agree(&[0, 5], 1, true, Fill::Normal, "no rows");
        agree(&[1, 100], 1, true, Fill::Normal, "one row");
        agree(&[1031, 5], 1, true, Fill::Normal, "many short rows");
        agree(&[4099, 33], 1, true, Fill::Normal, "many rows");
        agree(&[601, 96], 1, true, Fill::Normal, "many planes");
        agree(&[70, 1024], 1, true, Fill::Normal, "many cubes");
        agree(&[1, 1 << 18], 1, true, Fill::Normal, "one long row");
        agree(&[3, 65_537], 1, true, Fill::Normal, "long odd rows");
        agree(&[3, 5, 8, 7], 2, true, Fill::Normal, "two axes");
        agree(&[9, 100], 1, false, Fill::Normal, "no weight");
        agree(&[9, 700], 1, true, Fill::Uniform(9998.27, 10_001.73), "mean 1e4");
        agree(&[2, 40_000], 1, true, Fill::Uniform(9998.27, 10_001.73), "long rows of mean 1e4");
        agree(&[8, 100], 1, true, Fill::Constant(0.0), "zeros");
        agree(&[8, 100], 1, true, Fill::Constant(-3333.3), "constant");
        agree(&[8, 1001], 1, true, Fill::Magnitudes(1e-3, 1e4, false), "wide range");
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        shape.axis(self.name(), -1)?;
        Ok(self.case(shape.dims(), 1, true, Fill::Normal, Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layer_norm, rms_norm};

    /// The gradients against central differences of the forward operations.
    #[test]
    fn they_are_the_derivatives_of_the_forward_operations() {
        let values = |n: usize, seed: f64| (0..n).map(|i| (i as f64 * seed).cos()).collect::<Vec<f64>>();
        let (x, w, g) = (values(15, 1.3), values(5, 0.4), values(15, 0.9));
        let tensor = |v: &[f64]| Tensor::from_f64(v, if v.len() == 5 { &[5] } else { &[3, 5] }, DType::F32).unwrap();
        for centers in [true, false] {
            let objective = |x: &[f64], w: &[f64]| -> f64 {
                let y = match centers {
                    true => layer_norm(&tensor(x), Some(&tensor(w)), None, 1e-3),
                    false => rms_norm(&tensor(x), Some(&tensor(w)), 1e-3),
                };
                y.unwrap().to_f64_vec().unwrap().iter().zip(&g).map(|(y, g)| y * g).sum()
            };
            let (dx, dw) = if centers {
                let (dx, dw, _) = layer_norm_backward(&tensor(&g), &tensor(&x), Some(&tensor(&w)), 1e-3).unwrap();
                (dx, dw)
            } else {
                rms_norm_backward(&tensor(&g), &tensor(&x), Some(&tensor(&w)), 1e-3).unwrap()
            };
            let nudged = |v: &[f64], i: usize, by: f64| {
                let mut v = v.to_vec();
                v[i] += by;
                v
            };
            let (dx, dw) = (dx.to_f64_vec().unwrap(), dw.to_f64_vec().unwrap());
            for (i, dx) in dx.iter().enumerate() {
                let difference = (objective(&nudged(&x, i, 1e-2), &w) - objective(&nudged(&x, i, -1e-2), &w)) / 2e-2;
                assert!((dx - difference).abs() < 2e-3, "x {centers} {i}: {dx} {difference}");
            }
            for (i, dw) in dw.iter().enumerate() {
                let difference = (objective(&x, &nudged(&w, i, 1e-2)) - objective(&x, &nudged(&w, i, -1e-2))) / 2e-2;
                assert!((dw - difference).abs() < 2e-3, "weight {centers} {i}: {dw} {difference}");
            }
        }
    }

    #[test]
    fn wrong_inputs_are_errors() {
        let new = |dims: &[usize]| Tensor::zeros(dims, DType::F32).unwrap();
        assert!(rms_norm_backward(&new(&[2, 3]), &new(&[3, 2]), None, 1e-5).is_err());
        assert!(rms_norm_backward(&new(&[2, 3]), &new(&[2, 3]), Some(&new(&[2])), 1e-5).is_err());
        assert!(layer_norm_backward(&new(&[]), &new(&[]), None, 1e-5).is_err());
        let half = Tensor::zeros(&[2, 3], DType::F16).unwrap();
        assert!(layer_norm_backward(&half, &new(&[2, 3]), None, 1e-5).is_err());
    }
}
