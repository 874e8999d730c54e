//! Layer norm and RMS norm over the trailing axes: `y = (x − mean)·rstd·weight + bias` with `rstd = 1/√(var + eps)`,
//! and `y = x·weight/√(mean(x²) + eps)`; alone or of `h = x + residual`.

pub(crate) mod cpu;
pub(crate) mod gpu;
mod reference;

use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::LayerNorm, &Kind::RmsNorm, &Kind::AddLayerNorm, &Kind::AddRmsNorm];

/// Which statistics are used, and whether a residual is added first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    LayerNorm,
    RmsNorm,
    AddLayerNorm,
    AddRmsNorm,
}

/// A normalization with its attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    kind: Kind,
    weight: bool,
    bias: bool,
    eps: f32,
}

/// The inputs by name.
struct Arguments<'a, T> {
    x: &'a T,
    residual: Option<&'a T>,
    weight: Option<&'a T>,
    bias: Option<&'a T>,
}

/// Layer norm over the axes of `weight` or `bias`, or over the last axis where neither is given:
/// `(x − mean)/√(var + eps)·weight + bias`, with the mean and the (biased) variance of each row.
///
/// `x` is f32, f16 or bf16 `[..., normalized...]`; `weight` and `bias` are `[normalized...]` of the same dtype.
/// Statistics are f32, from two passes with a corrected mean: a mean far larger than the deviation costs no accuracy.
///
/// # Errors
/// Another dtype, a scalar `x`, or a `weight` or `bias` whose shape is not that of `x`'s last axes.
///
/// ```
/// # use bimetal_ops::layer_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[10_001.0f32, 9_999.0, 3.0, 3.0], &[2, 2])?;
/// assert_eq!(layer_norm(&x, None, None, 0.0625)?.to_vec::<f32>()?[2..], [0.0, 0.0]);
/// let bias = Tensor::from_slice(&[0.5f32, 0.5], &[2])?;
/// assert_eq!(layer_norm(&x, None, Some(&bias), 3.0)?.to_vec::<f32>()?, [1.0, 0.0, 0.5, 0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let (op, inputs) = prepare(Kind::LayerNorm, x, None, weight, bias, eps);
    op::run_one(&op, &inputs)
}

/// [`layer_norm`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`layer_norm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::layer_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[1.0f32, -1.0], &[1, 2])?;
/// let mut y = Tensor::zeros(&[1, 2], DType::F32)?;
/// layer_norm_into(&x, None, None, 3.0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.5, -0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn layer_norm_into(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
    out: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::LayerNorm, x, None, weight, bias, eps);
    op::run_into(&op, &inputs, &mut [out])
}

/// RMS norm over the axes of `weight`, or over the last axis without one: `x/√(mean(x²) + eps)·weight`.
///
/// `x` is f32, f16 or bf16 `[..., normalized...]`; `weight` is `[normalized...]` of the same dtype; sums are f32.
///
/// # Errors
/// As [`layer_norm`].
///
/// ```
/// # use bimetal_ops::rms_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[3.0f32, -3.0], &[1, 2])?;
/// let weight = Tensor::from_slice(&[1.0f32, 2.0], &[2])?;
/// assert_eq!(rms_norm(&x, Some(&weight), 0.0)?.to_vec::<f32>()?, [1.0, -2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let (op, inputs) = prepare(Kind::RmsNorm, x, None, weight, None, eps);
    op::run_one(&op, &inputs)
}

/// [`rms_norm`] into an existing tensor of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`layer_norm_into`].
///
/// ```
/// # use bimetal_ops::rms_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[5.0f32], &[1])?;
/// let mut y = Tensor::zeros(&[1], DType::F32)?;
/// rms_norm_into(&x, None, 0.0, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn rms_norm_into(x: &Tensor, weight: Option<&Tensor>, eps: f32, out: &mut Tensor) -> Result<()> {
    let (op, inputs) = prepare(Kind::RmsNorm, x, None, weight, None, eps);
    op::run_into(&op, &inputs, &mut [out])
}

/// A residual addition and [`layer_norm`] in one pass: returns `y = layer_norm(h)` and `h = x + residual`.
///
/// `residual` has `x`'s shape and dtype. `y` is computed from `h` as it is stored, so that the two calls apart give
/// the same bits.
///
/// # Errors
/// As [`layer_norm`], or a `residual` of another shape or dtype than `x`.
///
/// ```
/// # use bimetal_ops::add_layer_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 1.0], &[1, 2])?;
/// let residual = Tensor::from_slice(&[3.0f32, 1.0], &[1, 2])?;
/// let (y, h) = add_layer_norm(&x, &residual, None, None, 3.0)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.5, -0.5]);
/// assert_eq!(h.to_vec::<f32>()?, [4.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let (op, inputs) = prepare(Kind::AddLayerNorm, x, Some(residual), weight, bias, eps);
    two(op::run(&op, &inputs)?)
}

/// [`add_layer_norm`] into existing tensors of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`add_layer_norm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::add_layer_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, 0.0], &[1, 2])?;
/// let (mut y, mut h) = (Tensor::zeros(&[1, 2], DType::F32)?, Tensor::zeros(&[1, 2], DType::F32)?);
/// add_layer_norm_into(&x, &x, None, None, 12.0, &mut y, &mut h)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.5, -0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn add_layer_norm_into(
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
    y: &mut Tensor,
    h: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::AddLayerNorm, x, Some(residual), weight, bias, eps);
    op::run_into(&op, &inputs, &mut [y, h])
}

/// A residual addition and [`rms_norm`] in one pass: returns `y = rms_norm(h)` and `h = x + residual`.
///
/// # Errors
/// As [`add_layer_norm`].
///
/// ```
/// # use bimetal_ops::add_rms_norm;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, -1.0], &[1, 2])?;
/// let (y, h) = add_rms_norm(&x, &x, None, 0.0)?;
/// assert_eq!(y.to_vec::<f32>()?, [1.0, -1.0]);
/// assert_eq!(h.to_vec::<f32>()?, [2.0, -2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<(Tensor, Tensor)> {
    let (op, inputs) = prepare(Kind::AddRmsNorm, x, Some(residual), weight, None, eps);
    two(op::run(&op, &inputs)?)
}

/// [`add_rms_norm`] into existing tensors of `x`'s shape, dtype and device.
///
/// # Errors
/// As [`add_layer_norm_into`].
///
/// ```
/// # use bimetal_ops::add_rms_norm_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[2.0f32, 2.0], &[1, 2])?;
/// let (mut y, mut h) = (Tensor::zeros(&[1, 2], DType::F32)?, Tensor::zeros(&[1, 2], DType::F32)?);
/// add_rms_norm_into(&x, &x, None, 0.0, &mut y, &mut h)?;
/// assert_eq!(y.to_vec::<f32>()?, [1.0, 1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn add_rms_norm_into(
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    eps: f32,
    y: &mut Tensor,
    h: &mut Tensor,
) -> Result<()> {
    let (op, inputs) = prepare(Kind::AddRmsNorm, x, Some(residual), weight, None, eps);
    op::run_into(&op, &inputs, &mut [y, h])
}

fn prepare<'a>(
    kind: Kind,
    x: &'a Tensor,
    residual: Option<&'a Tensor>,
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    eps: f32,
) -> (RowNorm, Vec<&'a Tensor>) {
    let op = RowNorm { kind, weight: weight.is_some(), bias: bias.is_some(), eps };
    (op, [Some(x), residual, weight, bias].into_iter().flatten().collect())
}

fn two(outputs: impl IntoIterator<Item = Tensor>) -> Result<(Tensor, Tensor)> {
    let mut outputs = outputs.into_iter();
    match (outputs.next(), outputs.next()) {
        (Some(y), Some(h)) => Ok((y, h)),
        _ => unreachable!("the operation has two outputs"),
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::LayerNorm => "layer_norm",
            Self::RmsNorm => "rms_norm",
            Self::AddLayerNorm => "add_layer_norm",
            Self::AddRmsNorm => "add_rms_norm",
        }
    }

    /// Whether the mean is subtracted.
    fn centers(self) -> bool {
        matches!(self, Self::LayerNorm | Self::AddLayerNorm)
    }

    fn adds(self) -> bool {
        matches!(self, Self::AddLayerNorm | Self::AddRmsNorm)
    }
}

impl RowNorm {
    fn count(&self) -> usize {
        1 + [self.kind.adds(), self.weight, self.bias].into_iter().filter(|&given| given).count()
    }

    fn arguments<'a, T>(&self, inputs: &'a [T]) -> Arguments<'a, T> {
        let mut inputs = inputs.iter();
        let mut next = |given: bool| if given { inputs.next() } else { None };
        Arguments {
            x: next(true).expect("the inputs were counted"),
            residual: next(self.kind.adds()),
            weight: next(self.weight),
            bias: next(self.bias),
        }
    }
}

/// Number of normalized elements: those of the parameters, or the last axis.
pub(crate) fn row_length(x: &Shape, parameters: Option<&Shape>) -> usize {
    parameters.map_or_else(|| x.dims().last().copied().unwrap_or(1), Shape::numel)
}

/// Checks that `spec` has `x`'s dtype and the extents of `x`'s last axes.
pub(crate) fn check_trailing(op: &'static str, argument: &'static str, spec: &Spec, x: &Spec) -> Result<()> {
    if spec.dtype != x.dtype {
        return Err(Error::dtype(op, argument, spec.dtype, &[x.dtype]));
    }
    let rank = spec.shape.rank();
    if rank == 0 || !x.shape.dims().ends_with(spec.shape.dims()) {
        return Err(Error::argument(op, argument, format!("the last axes of shape {}, got {}", x.shape, spec.shape)));
    }
    Ok(())
}

/// Checks that `spec` has `x`'s dtype and shape.
pub(crate) fn check_same(op: &'static str, argument: &'static str, spec: &Spec, x: &Spec) -> Result<()> {
    if spec.dtype != x.dtype {
        return Err(Error::dtype(op, argument, spec.dtype, &[x.dtype]));
    }
    if spec.shape != x.shape {
        return Err(Error::argument(op, argument, format!("shape {}, got {}", x.shape, spec.shape)));
    }
    Ok(())
}

impl Op for RowNorm {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let name = self.name();
        if inputs.len() != self.count() {
            return Err(Error::argument(name, "inputs", format!("{} tensors, got {}", self.count(), inputs.len())));
        }
        let Arguments { x, residual, weight, bias } = self.arguments(inputs);
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(name, "x", x.dtype, &DType::FLOATS));
        }
        if x.shape.rank() == 0 {
            return Err(Error::argument(name, "x", "at least one axis, got a scalar"));
        }
        residual.map_or(Ok(()), |residual| check_same(name, "residual", residual, x))?;
        weight.map_or(Ok(()), |weight| check_trailing(name, "weight", weight, x))?;
        bias.map_or(Ok(()), |bias| check_trailing(name, "bias", bias, x))?;
        if let (Some(weight), Some(bias)) = (weight, bias) {
            check_same(name, "bias", bias, weight)?;
        }
        Ok((0..1 + usize::from(self.kind.adds())).map(|_| (*x).clone()).collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let x = inputs[0];
        let outputs = 1 + usize::from(self.kind.adds());
        let read: usize = inputs.iter().map(|s| s.bytes()).sum();
        // Per element: a sum, a square and its sum, a difference, and one operation for each factor and term.
        let flops = if self.kind.centers() { 6 } else { 3 } + self.count() - 1;
        Cost { bytes: (read + outputs * x.bytes()) as u64, flops: (flops * x.numel()) as u64 }
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let Arguments { x, weight, bias, .. } = self.arguments(inputs);
        let n = row_length(&x.shape, weight.or(bias).map(|s| &s.shape)).max(2);
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + (n as f64).log2(),
            why: "log2(n) roundings of a blocked f32 sum for the statistics, and four for the result; the mean is \
                  corrected by the second pass, so that its size costs nothing",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        reference::row_norm(self, inputs)
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::row_norm(self, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::row_norm(self, gpu, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let first = usize::from(self.kind.adds()) + 1;
        let name = |given: bool, i: usize| if given { format!("x{i}") } else { "None".into() };
        let weight = name(self.weight, first);
        let bias = name(self.bias, first + usize::from(self.weight));
        let Arguments { x, weight: w, bias: b, .. } = self.arguments(inputs);
        let normalized = w.or(b).map_or_else(|| x.shape.dims()[x.shape.rank() - 1..].to_vec(), |s| s.shape.dims().to_vec());
        let h = if self.kind.adds() { "torch.add(x0, x1, out=y1)" } else { "x0" };
        let eps = self.eps;
        Peer {
            // Neither has an `out=` that writes in place: PyTorch's generated ones copy from a temporary.
            torch: Some(if self.kind.centers() {
                format!("F.layer_norm({h}, {normalized:?}, {weight}, {bias}, {eps})").into()
            } else {
                format!("F.rms_norm({h}, {normalized:?}, {weight}, {eps})").into()
            }),
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
            Self::LayerNorm => "(x − mean)/√(var + eps)·weight + bias over the last axes",
            Self::RmsNorm => "x/√(mean(x²) + eps)·weight over the last axes",
            Self::AddLayerNorm => "h = x + residual and the layer norm of h",
            Self::AddRmsNorm => "h = x + residual and the RMS norm of h",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let bench = [
            [32, 512],
            [64, 1024],
            [32, 4096],
            [32, 5120],
            [16, 8192],
            [256, 4096],
            [1024, 4096],
            [2560, 4096],
            [8192, 4096],
        ];
        for dims in bench {
            cases.push(self.case(&dims, 1, [true, true], Fill::Normal, Role::Bench));
        }
        for n in [0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1023, 1024, 1025, 2049, 4099, 9001, 20_480] {
            cases.push(self.case(&[3, n], 1, [true, true], Fill::Normal, Role::Agree));
        }
        let mut agree = |dims: &[usize], trailing, parameters, fill, tag: &str| {
            cases.push(self.case(dims, trailing, parameters, fill, Role::Agree).tagged(tag));
        };
        agree(&[0, 5], 1, [true, true], Fill::Normal, "no rows");
        agree(&[300, 5], 1, [true, true], Fill::Normal, "many short rows");
        agree(&[601, 96], 1, [true, true], Fill::Normal, "many rows");
        agree(&[70, 1024], 1, [true, true], Fill::Normal, "many cubes");
        agree(&[1, 1 << 20], 1, [true, true], Fill::Normal, "one long row");
        agree(&[2, 65_537], 1, [true, false], Fill::Normal, "long odd rows");
        agree(&[3, 5, 8, 7], 2, [true, true], Fill::Normal, "two axes");
        agree(&[9, 100], 1, [false, false], Fill::Normal, "no parameters");
        agree(&[9, 100], 1, [true, false], Fill::Normal, "weight only");
        if self.centers() {
            agree(&[9, 100], 1, [false, true], Fill::Normal, "bias only");
        }
        agree(&[9, 700], 1, [true, true], Fill::Uniform(9998.27, 10_001.73), "mean 1e4");
        agree(&[2, 40_000], 1, [true, true], Fill::Uniform(9998.27, 10_001.73), "long rows of mean 1e4");
        agree(&[8, 100], 1, [true, true], Fill::Constant(0.0), "zeros");
        agree(&[8, 100], 1, [true, true], Fill::Constant(-3333.3), "constant");
        agree(&[8, 1001], 1, [true, true], Fill::Magnitudes(1e-3, 1e4, false), "wide range");
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        shape.axis(self.name(), -1)?;
        Ok(self.case(shape.dims(), 1, [true, true], Fill::Normal, Role::Bench))
    }
}

impl Kind {
    /// A case over the last `trailing` axes, with or without weight and bias.
    fn case(self, dims: &[usize], trailing: usize, [weight, bias]: [bool; 2], fill: Fill, role: Role) -> Case {
        let bias = bias && self.centers();
        let op = RowNorm { kind: self, weight, bias, eps: if self.centers() { 1e-5 } else { 1e-6 } };
        let normalized = &dims[dims.len() - trailing..];
        let mut inputs = vec![Input::new(dims, fill)];
        inputs.extend(self.adds().then(|| Input::new(dims, Fill::Normal)));
        inputs.extend(weight.then(|| Input::new(normalized, Fill::Normal)));
        inputs.extend(bias.then(|| Input::new(normalized, Fill::Normal)));
        Case::new(op, inputs, role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::devices;

    #[test]
    fn a_bad_row_disturbs_no_other() {
        for (rows, n) in [(5, 24), (7, 1030), (3, 70_000)] {
            let mut data: Vec<f32> = (0..rows * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let good = Tensor::from_slice(&data, &[rows, n]).unwrap();
            data[n + n / 2] = f32::NAN;
            data[2 * n + 1] = f32::INFINITY;
            let bad = Tensor::from_slice(&data, &[rows, n]).unwrap();
            for info in devices().0 {
                let on = |t: &Tensor| t.to_device(info.device).unwrap();
                for kind in [Kind::LayerNorm, Kind::RmsNorm] {
                    let op = RowNorm { kind, weight: false, bias: false, eps: 1e-5 };
                    let run = |x: &Tensor| op::run_one(&op, &[&on(x)]).unwrap().to_vec::<f32>().unwrap();
                    let (clean, disturbed) = (run(&good), run(&bad));
                    for row in (0..rows).filter(|row| ![1, 2].contains(row)) {
                        assert_eq!(clean[row * n..][..n], disturbed[row * n..][..n], "{kind:?} {n} on {}", info.device);
                    }
                    assert!(disturbed[n..2 * n].iter().all(|v| v.is_nan()), "{kind:?} {n} on {}", info.device);
                    assert!(disturbed[2 * n + 1].is_nan(), "{kind:?} {n} on {}", info.device);
                }
            }
        }
    }

    #[test]
    fn wrong_parameters_are_errors() {
        let x = Tensor::zeros(&[2, 3, 4], DType::F32).unwrap();
        let weight = |dims: &[usize], dtype| Tensor::zeros(dims, dtype).unwrap();
        assert!(layer_norm(&x, Some(&weight(&[3], DType::F32)), None, 1e-5).is_err());
        assert!(layer_norm(&x, Some(&weight(&[4], DType::F16)), None, 1e-5).is_err());
        assert!(layer_norm(&x, Some(&weight(&[4], DType::F32)), Some(&weight(&[3, 4], DType::F32)), 1e-5).is_err());
        assert!(layer_norm(&x, Some(&weight(&[3, 4], DType::F32)), None, 1e-5).is_ok());
        assert!(rms_norm(&weight(&[], DType::F32), None, 1e-5).is_err());
        assert!(rms_norm(&weight(&[2], DType::F64), None, 1e-5).is_err());
        assert!(add_rms_norm(&x, &weight(&[2, 12], DType::F32), None, 1e-5).is_err());
    }

    #[test]
    fn the_fused_addition_gives_the_bits_of_the_two_calls() {
        let values = |seed: f64| (0..5 * 333).map(|i| (f64::from(i) * seed).sin()).collect::<Vec<_>>();
        let tensor = |seed| Tensor::from_f64(&values(seed), &[5, 333], DType::BF16).unwrap();
        let (x, residual) = (tensor(0.7), tensor(0.3));
        let (y, h) = add_layer_norm(&x, &residual, None, None, 1e-5).unwrap();
        assert_eq!(y.to_f64_vec().unwrap(), layer_norm(&h, None, None, 1e-5).unwrap().to_f64_vec().unwrap());
    }
}
