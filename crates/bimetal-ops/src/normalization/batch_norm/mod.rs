//! Batch norm: `y = (x − mean)·rstd·weight + bias` for each channel, with the statistics of the batch (training) or the
//! running ones (inference), and the gradients of the former.

mod cpu;
mod gpu;
mod gpu_backward;
mod gpu_columns;
mod reference;

use crate::normalization::row_norm::check_same;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Training, &Kind::Inference, &Kind::Backward];

/// Which statistics are used, or the gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Training,
    Inference,
    Backward,
}

#[derive(Clone, Copy, Debug)]
struct BatchNorm {
    kind: Kind,
    weight: bool,
    bias: bool,
    momentum: f32,
    eps: f32,
}

/// A tensor seen as `[samples, channels, spatial]`.
#[derive(Clone, Copy, Debug)]
struct Layout {
    samples: usize,
    channels: usize,
    spatial: usize,
}

impl Layout {
    /// Elements of a channel.
    fn count(self) -> usize {
        self.samples * self.spatial
    }
}

/// Batch norm of `x` `[samples, channels, ...]` with the statistics of the batch: returns `y` and the updated running mean
/// and variance, `(1 − momentum)·running + momentum·batch`, with the unbiased variance as in PyTorch.
///
/// `x`, `weight` and `bias` have one dtype of f32, f16 and bf16; the running statistics are f32; parameters and
/// statistics are `[channels]`. Statistics are f32, as in [`layer_norm`](crate::layer_norm()).
///
/// # Errors
/// Another dtype, fewer than two axes, a single value per channel, or parameters of another shape or dtype.
///
/// ```
/// # use bimetal_ops::batch_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 3.0], &[2, 1])?;
/// let (mean, var) = (Tensor::from_slice(&[0.0f32], &[1])?, Tensor::from_slice(&[1.0f32], &[1])?);
/// let (y, mean, var) = batch_norm(&x, (&mean, &var), None, None, 0.5, 3.0)?;
/// assert_eq!(y.to_vec::<f32>()?, [-0.5, 0.5]);
/// assert_eq!((mean.to_vec::<f32>()?, var.to_vec::<f32>()?), (vec![1.0], vec![1.5]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm(
    x: &Tensor,
    running: (&Tensor, &Tensor),
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    momentum: f32,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (op, inputs) = prepare(Kind::Training, x, running, weight, bias, [momentum, eps]);
    three(op::run(&op, &inputs)?)
}

/// [`batch_norm`] into existing tensors: `[y, running_mean, running_var]`.
///
/// # Errors
/// As [`batch_norm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::batch_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[1.0f32, 3.0], &[2, 1])?;
/// let zero = Tensor::zeros(&[1], DType::F32)?;
/// let (mut y, mut mean, mut var) = (x.clone(), zero.clone(), zero.clone());
/// batch_norm_into(&x, (&zero, &zero), None, None, 1.0, 3.0, [&mut y, &mut mean, &mut var])?;
/// assert_eq!(mean.to_vec::<f32>()?, [2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm_into(
    x: &Tensor,
    running: (&Tensor, &Tensor),
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    momentum: f32,
    eps: f32,
    mut out: [&mut Tensor; 3],
) -> Result<()> {
    let (op, inputs) = prepare(Kind::Training, x, running, weight, bias, [momentum, eps]);
    op::run_into(&op, &inputs, &mut out)
}

/// Batch norm of `x` `[samples, channels, ...]` with given statistics `running` (mean and variance).
///
/// # Errors
/// As [`batch_norm`]; any number of values per channel is accepted.
///
/// ```
/// # use bimetal_ops::batch_norm_inference;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[5.0f32, 9.0], &[2, 1])?;
/// let (mean, var) = (Tensor::from_slice(&[5.0f32], &[1])?, Tensor::from_slice(&[3.0f32], &[1])?);
/// assert_eq!(batch_norm_inference(&x, (&mean, &var), None, None, 1.0)?.to_vec::<f32>()?, [0.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm_inference(
    x: &Tensor,
    running: (&Tensor, &Tensor),
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (op, inputs) = prepare(Kind::Inference, x, running, weight, bias, [0.0, eps]);
    op::run_one(&op, &inputs)
}

/// [`batch_norm_inference`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`batch_norm_inference`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::batch_norm_inference_into;
/// # use bimetal_core::{DType, Tensor};
/// let zero = Tensor::zeros(&[1], DType::F32)?;
/// let x = Tensor::from_slice(&[2.0f32, 4.0], &[2, 1])?;
/// let mut y = Tensor::zeros(&[2, 1], DType::F32)?;
/// batch_norm_inference_into(&x, (&zero, &zero), None, None, 4.0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm_inference_into(
    x: &Tensor,
    running: (&Tensor, &Tensor),
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
    out: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::Inference, x, running, weight, bias, [0.0, eps]);
    op::run_into(&op, &inputs, &mut [out])
}

/// Gradients of [`batch_norm`]'s `y` with respect to `x`, `weight` and `bias`, in this order, from `grad` (of `y`), `x` and
/// the forward call's `weight` (`None` for ones) and `eps`; the last two are `[channels]`, f32 sums in a fixed order.
///
/// # Errors
/// As [`batch_norm`], or a `grad` of another shape or dtype than `x`.
///
/// ```
/// # use bimetal_ops::batch_norm_backward;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[2, 1])?;
/// let grad = Tensor::from_slice(&[1.0f32, 0.0], &[2, 1])?;
/// let (dx, dweight, dbias) = batch_norm_backward(&grad, &x, None, 3.0)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.1875, -0.1875]);
/// assert_eq!((dweight.to_vec::<f32>()?, dbias.to_vec::<f32>()?), (vec![0.5], vec![1.0]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm_backward(
    grad: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    let op = BatchNorm { kind: Kind::Backward, weight: weight.is_some(), bias: false, momentum: 0.0, eps };
    three(op::run(&op, &[Some(grad), Some(x), weight].into_iter().flatten().collect::<Vec<_>>())?)
}

/// [`batch_norm_backward`] into existing tensors: `[dx, dweight, dbias]`.
///
/// # Errors
/// As [`batch_norm_backward`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::batch_norm_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[2, 1])?;
/// let zero = Tensor::zeros(&[1], DType::F32)?;
/// let (mut dx, mut dweight, mut dbias) = (x.clone(), zero.clone(), zero.clone());
/// batch_norm_backward_into(&x, &x, None, 3.0, [&mut dx, &mut dweight, &mut dbias])?;
/// assert_eq!(dbias.to_vec::<f32>()?, [2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn batch_norm_backward_into(
    grad: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
    mut out: [&mut Tensor; 3],
) -> Result<()> {
    let op = BatchNorm { kind: Kind::Backward, weight: weight.is_some(), bias: false, momentum: 0.0, eps };
    op::run_into(&op, &[Some(grad), Some(x), weight].into_iter().flatten().collect::<Vec<_>>(), &mut out)
}

fn prepare<'a>(
    kind: Kind,
    x: &'a Tensor,
    (mean, var): (&'a Tensor, &'a Tensor),
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    [momentum, eps]: [f32; 2],
) -> (BatchNorm, Vec<&'a Tensor>) {
    let op = BatchNorm { kind, weight: weight.is_some(), bias: bias.is_some(), momentum, eps };
    (op, [Some(x), Some(mean), Some(var), weight, bias].into_iter().flatten().collect())
}

fn three(outputs: impl IntoIterator<Item = Tensor>) -> Result<(Tensor, Tensor, Tensor)> {
    let mut outputs = outputs.into_iter();
    match (outputs.next(), outputs.next(), outputs.next()) {
        (Some(a), Some(b), Some(c)) => Ok((a, b, c)),
        _ => unreachable!("the operation has three outputs"),
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "batch_norm",
            Self::Inference => "batch_norm_inference",
            Self::Backward => "batch_norm_backward",
        }
    }

    fn case(self, dims: &[usize], [weight, bias]: [bool; 2], fill: Fill, role: Role) -> Case {
        let backward = self == Self::Backward;
        let bias = bias && !backward;
        let parameter = |fill| Input::new(&dims[1..2], fill);
        let mut inputs = Vec::new();
        inputs.extend(backward.then(|| Input::new(dims, Fill::Normal)));
        inputs.push(Input::new(dims, fill));
        if !backward {
            inputs.push(parameter(Fill::Normal).of(DType::F32));
            inputs.push(parameter(Fill::Uniform(0.5, 2.0)).of(DType::F32));
        }
        inputs.extend(weight.then(|| parameter(Fill::Normal)));
        inputs.extend(bias.then(|| parameter(Fill::Normal)));
        Case::new(BatchNorm { kind: self, weight, bias, momentum: 0.1, eps: 1e-5 }, inputs, role)
    }
}

impl BatchNorm {
    /// Where `x` is among the inputs.
    fn x(&self) -> usize {
        usize::from(self.kind == Kind::Backward)
    }

    /// Inputs before the weight.
    fn fixed(&self) -> usize {
        if self.kind == Kind::Backward { 2 } else { 3 }
    }

    fn weight<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        if self.weight { inputs.get(self.fixed()) } else { None }
    }

    fn bias<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        if self.bias { inputs.last() } else { None }
    }

    fn layout(&self, x: &Shape) -> Layout {
        let dims = x.dims();
        Layout { samples: dims[0], channels: dims[1], spatial: dims[2..].iter().product() }
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let name = self.name();
        let count = self.fixed() + usize::from(self.weight) + usize::from(self.bias);
        if inputs.len() != count {
            return Err(Error::argument(name, "inputs", format!("{count} tensors, got {}", inputs.len())));
        }
        let x = inputs[self.x()];
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(name, "x", x.dtype, &DType::FLOATS));
        }
        if x.shape.rank() < 2 {
            return Err(Error::argument(name, "x", format!("shape [samples, channels, ...], got {}", x.shape)));
        }
        let layout = self.layout(&x.shape);
        if self.kind != Kind::Inference && layout.channels > 0 && layout.count() < 2 {
            return Err(Error::argument(name, "x", format!("at least two values per channel, got shape {}", x.shape)));
        }
        let shape = Shape::new(&[layout.channels])?;
        let (parameter, statistic) = (Spec::new(shape.clone(), x.dtype), Spec::new(shape, DType::F32));
        for (argument, spec) in [("weight", self.weight(inputs)), ("bias", self.bias(inputs))] {
            spec.map_or(Ok(()), |spec| check_same(name, argument, spec, &parameter))?;
        }
        if self.kind == Kind::Backward {
            check_same(name, "grad", inputs[0], x)?;
        } else {
            check_same(name, "running_mean", inputs[1], &statistic)?;
            check_same(name, "running_var", inputs[2], &statistic)?;
        }
        let mut outputs = Specs::new();
        outputs.push(x.clone());
        let more = match self.kind {
            Kind::Training => Some(statistic),
            Kind::Inference => None,
            Kind::Backward => Some(parameter),
        };
        outputs.extend(more.into_iter().flat_map(|spec| [spec.clone(), spec]));
        Ok(outputs)
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let x = inputs[self.x()];
        let read: usize = inputs.iter().map(|s| s.bytes()).sum();
        let (parameter, flops) = match self.kind {
            Kind::Training => (DType::F32.size(), 8),
            Kind::Inference => (0, 3),
            Kind::Backward => (x.dtype.size(), 16),
        };
        let written = x.bytes() + 2 * x.shape[1] * parameter;
        Cost { bytes: (read + written) as u64, flops: flops * x.numel() as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let count = self.layout(&inputs[self.x()].shape).count().max(2);
        Tolerance {
            ulps: 1.0,
            scaled: 6.0 + (count as f64).log2(),
            why: "log2 of their length in roundings for the blocked f32 sums over a channel, and six for the elements",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        reference::batch_norm(self, inputs)
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::batch_norm(self, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::batch_norm(self, gpu, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let name = |given: bool, i: usize| if given { format!("x{i}") } else { "None".into() };
        let (weight, bias) = (name(self.weight, self.fixed()), name(self.bias, inputs.len() - 1));
        let (momentum, eps) = (self.momentum, self.eps);
        let (torch, setup) = match self.kind {
            // PyTorch updates the running statistics in place.
            Kind::Training => (
                format!("(F.batch_norm(x0, *s, {weight}, {bias}, True, {momentum}, {eps}), *s)"),
                Some("(x1.clone(), x2.clone())".into()),
            ),
            Kind::Inference => (format!("F.batch_norm(x0, x1, x2, {weight}, {bias}, False, {momentum}, {eps})"), None),
            Kind::Backward => (
                format!(
                    "torch.ops.aten.native_batch_norm_backward(x0, x1, {weight}, None, None, *s, True, {eps}, \
                     [True, True, True])"
                ),
                Some(format!("torch.native_batch_norm(x1, {weight}, None, None, None, True, 0.1, {eps})[1:]").into()),
            ),
        };
        Peer { torch: Some(torch.into()), torch_setup: setup, numpy: None }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Training => "normalization of channels over the batch, with updated running statistics",
            Self::Inference => "normalization of channels with given statistics",
            Self::Backward => "gradients of batch_norm: of x, weight and bias",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let both = [true, true];
        let mut cases = Vec::new();
        for dims in [&[32, 128, 32, 32][..], &[32, 320, 32, 32], &[4096, 2560], &[8, 16, 8, 8]] {
            cases.push(self.case(dims, both, Fill::Normal, Role::Bench));
        }
        for spatial in [1, 2, 3, 7, 8, 15, 16, 17, 49, 64, 65, 257, 1024, 2309] {
            cases.push(self.case(&[3, 5, spatial], both, Fill::Normal, Role::Agree));
        }
        let mut agree = |dims: &[usize], parameters, fill, tag: &str| {
            cases.push(self.case(dims, parameters, fill, Role::Agree).tagged(tag));
        };
        for channels in [0, 1, 7, 16, 31, 33, 100] {
            agree(&[77, channels], both, Fill::Normal, "no spatial axis");
        }
        agree(&[5003, 3], both, Fill::Normal, "many samples");
        agree(&[1, 3, 100_000], both, Fill::Normal, "long channels");
        agree(&[300, 2, 3, 5], both, Fill::Normal, "many samples of few");
        agree(&[4, 6, 50], [false, false], Fill::Normal, "no parameters");
        agree(&[4, 6, 50], [true, false], Fill::Normal, "weight only");
        if *self != Self::Backward {
            agree(&[4, 6, 50], [false, true], Fill::Normal, "bias only");
        }
        agree(&[4, 6, 300], both, Fill::Uniform(9998.27, 10_001.73), "mean 1e4");
        agree(&[1000, 17], both, Fill::Uniform(9998.27, 10_001.73), "mean 1e4 without spatial axis");
        agree(&[4, 6, 20], both, Fill::Constant(0.0), "zeros");
        agree(&[40, 6], both, Fill::Constant(-3333.3), "constant");
        if *self == Self::Inference {
            agree(&[0, 6, 5], both, Fill::Normal, "no samples");
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        if shape.rank() < 2 {
            return Err(Error::argument(self.name(), "shape", format!("[samples, channels, ...], got {shape}")));
        }
        Ok(self.case(shape.dims(), [true, true], Fill::Normal, Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_channel_disturbs_no_other() {
        let mut data: Vec<f32> = (0..4 * 3 * 20).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = |data: &[f32]| {
            let x = Tensor::from_slice(data, &[4, 3, 20]).unwrap();
            let (mean, var) = (Tensor::zeros(&[3], DType::F32).unwrap(), Tensor::zeros(&[3], DType::F32).unwrap());
            batch_norm(&x, (&mean, &var), None, None, 0.1, 1e-5).unwrap().0.to_vec::<f32>().unwrap()
        };
        let clean = run(&data);
        data[25] = f32::NAN;
        for (i, (a, b)) in clean.iter().zip(run(&data)).enumerate() {
            if i / 20 % 3 == 1 { assert!(b.is_nan()) } else { assert_eq!(*a, b) }
        }
    }

    #[test]
    fn wrong_inputs_are_errors() {
        let new = |dims: &[usize]| Tensor::zeros(dims, DType::F32).unwrap();
        let s = new(&[3]);
        assert!(batch_norm(&new(&[1, 3]), (&s, &s), None, None, 0.1, 1e-5).is_err());
        assert!(batch_norm(&new(&[2, 4]), (&s, &s), None, None, 0.1, 1e-5).is_err());
        assert!(batch_norm(&new(&[3]), (&s, &s), None, None, 0.1, 1e-5).is_err());
        assert!(batch_norm_inference(&new(&[1, 3]), (&s, &s), None, None, 1e-5).is_ok());
        assert!(batch_norm_inference(&new(&[1, 3]), (&s, &new(&[4])), None, None, 1e-5).is_err());
        assert!(batch_norm_backward(&new(&[4, 3]), &new(&[3, 4]), None, 1e-5).is_err());
    }
}
