//! Group norm and its gradients: each sample's channels in groups, `y = (x − mean)·rstd·weight + bias` with the statistics
//! of a group and the parameters of a channel.

pub(crate) mod cpu;
mod gpu;
mod reference;

use crate::normalization::row_norm::check_same;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Forward, &Kind::Backward];

/// The operation or its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Forward,
    Backward,
}

#[derive(Clone, Copy, Debug)]
struct GroupNorm {
    kind: Kind,
    groups: usize,
    weight: bool,
    bias: bool,
    eps: f32,
}

/// A tensor seen as `[samples, channels, spatial]`, its channels in groups.
#[derive(Clone, Copy, Debug)]
struct Layout {
    samples: usize,
    channels: usize,
    spatial: usize,
    groups: usize,
}

impl Layout {
    /// Channels of a group.
    fn members(self) -> usize {
        self.channels / self.groups
    }

    /// Elements of a group in one sample.
    fn group(self) -> usize {
        self.members() * self.spatial
    }
}

/// Group norm of `x` `[samples, channels, ...]`: the channels of each sample in `groups` groups of as many, each with its
/// own mean and (biased) variance; `weight` and `bias` are `[channels]`.
///
/// All tensors have one dtype of f32, f16 and bf16; statistics are f32, as in [`layer_norm`](crate::layer_norm()).
///
/// # Errors
/// Another dtype, fewer than two axes, groups that do not divide the channels, or parameters of another shape or dtype.
///
/// ```
/// # use bimetal_ops::group_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 3.0, 10.0, 10.0], &[1, 4])?;
/// assert_eq!(group_norm(&x, 2, None, None, 3.0)?.to_vec::<f32>()?, [-0.5, 0.5, 0.0, 0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (op, inputs) = forward(x, groups, weight, bias, eps);
    op::run_one(&op, &inputs)
}

/// [`group_norm`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`group_norm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::group_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[1.0f32, 3.0], &[1, 2])?;
/// let mut y = Tensor::zeros(&[1, 2], DType::F32)?;
/// group_norm_into(&x, 1, None, None, 3.0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [-0.5, 0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn group_norm_into(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
    out: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = forward(x, groups, weight, bias, eps);
    op::run_into(&op, &inputs, &mut [out])
}

/// Gradients of [`group_norm`] with respect to `x`, `weight` and `bias`, in this order, from `grad` (of the output), `x`
/// and the forward call's `weight` (`None` for ones) and `eps`; the last two are `[channels]`, f32 sums in a fixed order.
///
/// # Errors
/// As [`group_norm`], or a `grad` of another shape or dtype than `x`.
///
/// ```
/// # use bimetal_ops::group_norm_backward;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[1, 1, 2])?;
/// let grad = Tensor::from_slice(&[1.0f32, 0.0], &[1, 1, 2])?;
/// let (dx, dweight, dbias) = group_norm_backward(&grad, &x, 1, None, 3.0)?;
/// assert_eq!(dx.to_vec::<f32>()?, [0.1875, -0.1875]);
/// assert_eq!((dweight.to_vec::<f32>()?, dbias.to_vec::<f32>()?), (vec![0.5], vec![1.0]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn group_norm_backward(
    grad: &Tensor,
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (op, inputs) = backward(grad, x, groups, weight, eps);
    let mut made = op::run(&op, &inputs)?.into_iter();
    match (made.next(), made.next(), made.next()) {
        (Some(dx), Some(dweight), Some(dbias)) => Ok((dx, dweight, dbias)),
        _ => unreachable!("the operation has three outputs"),
    }
}

/// [`group_norm_backward`] into existing tensors: `[dx, dweight, dbias]`.
///
/// # Errors
/// As [`group_norm_backward`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::group_norm_backward_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[1, 1, 2])?;
/// let new = |dims: &[usize]| Tensor::zeros(dims, DType::F32);
/// let (mut dx, mut dweight, mut dbias) = (new(&[1, 1, 2])?, new(&[1])?, new(&[1])?);
/// group_norm_backward_into(&x, &x, 1, None, 3.0, [&mut dx, &mut dweight, &mut dbias])?;
/// assert_eq!(dbias.to_vec::<f32>()?, [2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn group_norm_backward_into(
    grad: &Tensor,
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    eps: f32,
    mut out: [&mut Tensor; 3],
) -> Result<()> {
    let (op, inputs) = backward(grad, x, groups, weight, eps);
    op::run_into(&op, &inputs, &mut out)
}

fn forward<'a>(
    x: &'a Tensor,
    groups: usize,
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    eps: f32,
) -> (GroupNorm, Vec<&'a Tensor>) {
    let op = GroupNorm { kind: Kind::Forward, groups, weight: weight.is_some(), bias: bias.is_some(), eps };
    (op, [Some(x), weight, bias].into_iter().flatten().collect())
}

fn backward<'a>(
    grad: &'a Tensor,
    x: &'a Tensor,
    groups: usize,
    weight: Option<&'a Tensor>,
    eps: f32,
) -> (GroupNorm, Vec<&'a Tensor>) {
    let op = GroupNorm { kind: Kind::Backward, groups, weight: weight.is_some(), bias: false, eps };
    (op, [Some(grad), Some(x), weight].into_iter().flatten().collect())
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "group_norm",
            Self::Backward => "group_norm_backward",
        }
    }

    fn case(self, dims: &[usize], groups: usize, [weight, bias]: [bool; 2], fill: Fill, role: Role) -> Case {
        let bias = bias && self == Self::Forward;
        let mut inputs = Vec::new();
        inputs.extend((self == Self::Backward).then(|| Input::new(dims, Fill::Normal)));
        inputs.push(Input::new(dims, fill));
        inputs.extend(weight.then(|| Input::new(&dims[1..2], Fill::Normal)));
        inputs.extend(bias.then(|| Input::new(&dims[1..2], Fill::Normal)));
        Case::new(GroupNorm { kind: self, groups, weight, bias, eps: 1e-5 }, inputs, role)
            .tagged(&format!("groups {groups}"))
    }
}

impl GroupNorm {
    /// Where `x` is among the inputs.
    fn x(&self) -> usize {
        usize::from(self.kind == Kind::Backward)
    }

    fn weight<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        if self.weight { inputs.get(self.x() + 1) } else { None }
    }

    fn bias<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        if self.bias { inputs.last() } else { None }
    }

    fn layout(&self, x: &Shape) -> Layout {
        let dims = x.dims();
        Layout { samples: dims[0], channels: dims[1], spatial: dims[2..].iter().product(), groups: self.groups }
    }
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let name = self.name();
        let count = self.x() + 1 + usize::from(self.weight) + usize::from(self.bias);
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
        let channels = x.shape[1];
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            let wanted = format!("a divisor of the {channels} channels, got {}", self.groups);
            return Err(Error::argument(name, "groups", wanted));
        }
        let parameter = Spec::new(Shape::new(&[channels])?, x.dtype);
        for (argument, spec) in [("weight", self.weight(inputs)), ("bias", self.bias(inputs))] {
            spec.map_or(Ok(()), |spec| check_same(name, argument, spec, &parameter))?;
        }
        let mut outputs = Specs::new();
        outputs.push(x.clone());
        if self.kind == Kind::Backward {
            check_same(name, "grad", inputs[0], x)?;
            outputs.push(parameter.clone());
            outputs.push(parameter);
        }
        Ok(outputs)
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let x = inputs[self.x()];
        let parameter = x.shape[1] * x.dtype.size();
        let read: usize = inputs.iter().map(|s| s.bytes()).sum();
        let (written, flops) = match self.kind {
            Kind::Forward => (x.bytes(), 8),
            Kind::Backward => (x.bytes() + 2 * parameter, 18),
        };
        Cost { bytes: (read + written) as u64, flops: flops * x.numel() as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let layout = self.layout(&inputs[self.x()].shape);
        let sums = layout.group().max(2) as f64 * layout.samples.max(2) as f64;
        Tolerance {
            ulps: 1.0,
            scaled: 6.0 + sums.log2(),
            why: "log2 of their length in roundings for the blocked f32 sums over a group and over the samples, and six \
                  for the elements",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        reference::group_norm(self, inputs)
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::group_norm(self, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::group_norm(self, gpu, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let Layout { samples, channels, spatial, groups } = self.layout(&inputs[self.x()].shape);
        let eps = self.eps;
        let name = |given: bool, i: usize| if given { format!("x{i}") } else { "None".into() };
        let weight = name(self.weight, self.x() + 1);
        let sizes = format!("{samples}, {channels}, {spatial}, {groups}");
        let (torch, setup) = match self.kind {
            Kind::Forward => {
                (format!("F.group_norm(x0, {groups}, {weight}, {}, {eps})", name(self.bias, inputs.len() - 1)), None)
            }
            Kind::Backward => (
                format!("torch.ops.aten.native_group_norm_backward(x0, x1, *s, {weight}, {sizes}, [True, True, True])"),
                Some(format!("torch.native_group_norm(x1, {weight}, None, {sizes}, {eps})[1:]").into()),
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
            Self::Forward => "normalization of groups of channels in each sample",
            Self::Backward => "gradients of group_norm: of x, weight and bias",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let both = [true, true];
        let mut cases = Vec::new();
        for (dims, groups) in [([32, 128, 32, 32], 32), ([32, 320, 32, 32], 32), ([2, 64, 16, 16], 32)] {
            cases.push(self.case(&dims, groups, both, Fill::Normal, Role::Bench));
        }
        let mut agree = |dims: &[usize], groups, parameters, fill, tag: &str| {
            cases.push(self.case(dims, groups, parameters, fill, Role::Agree).tagged(tag));
        };
        for spatial in [0, 1, 2, 3, 7, 8, 15, 16, 17, 49, 63, 64, 65, 257, 1024, 2309] {
            agree(&[3, 12, spatial], 4, both, Fill::Normal, "");
        }
        agree(&[0, 4, 5], 2, both, Fill::Normal, "no samples");
        agree(&[5, 7, 3, 5], 7, both, Fill::Normal, "a group for each channel");
        agree(&[5, 33], 3, both, Fill::Normal, "no spatial axis");
        agree(&[2, 60, 9, 11], 1, both, Fill::Normal, "one group");
        agree(&[1, 3, 30_000], 3, both, Fill::Normal, "long channels");
        agree(&[4, 6, 50], 2, [false, false], Fill::Normal, "no parameters");
        agree(&[4, 6, 50], 2, [true, false], Fill::Normal, "weight only");
        if *self == Self::Forward {
            agree(&[4, 6, 50], 2, [false, true], Fill::Normal, "bias only");
        }
        agree(&[4, 6, 100], 2, both, Fill::Uniform(9998.27, 10_001.73), "mean 1e4");
        agree(&[4, 6, 20], 2, both, Fill::Constant(0.0), "zeros");
        agree(&[4, 6, 20], 2, both, Fill::Constant(-3333.3), "constant");
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let dims = shape.dims();
        if dims.len() < 2 {
            return Err(Error::argument(self.name(), "shape", format!("[samples, channels, ...], got {shape}")));
        }
        let groups = (1..=32).rev().find(|&g| dims[1].is_multiple_of(g)).unwrap_or(1);
        Ok(self.case(dims, groups, [true, true], Fill::Normal, Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer_norm;

    #[test]
    fn one_group_of_a_vector_is_layer_norm() {
        let x = Tensor::from_f64(&(0..60).map(|i| (f64::from(i) * 0.7).sin()).collect::<Vec<_>>(), &[3, 20], DType::F32);
        let x = x.unwrap();
        let (grouped, layer) = (group_norm(&x, 1, None, None, 1e-5).unwrap(), layer_norm(&x, None, None, 1e-5).unwrap());
        let (grouped, layer) = (grouped.to_f64_vec().unwrap(), layer.to_f64_vec().unwrap());
        assert!(grouped.iter().zip(&layer).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn wrong_groups_and_parameters_are_errors() {
        let new = |dims: &[usize]| Tensor::zeros(dims, DType::F32).unwrap();
        assert!(group_norm(&new(&[2, 6, 5]), 4, None, None, 1e-5).is_err());
        assert!(group_norm(&new(&[2, 6, 5]), 0, None, None, 1e-5).is_err());
        assert!(group_norm(&new(&[6]), 2, None, None, 1e-5).is_err());
        assert!(group_norm(&new(&[2, 6, 5]), 3, Some(&new(&[5])), None, 1e-5).is_err());
        assert!(group_norm_backward(&new(&[2, 6, 4]), &new(&[2, 6, 5]), 3, None, 1e-5).is_err());
    }
}
