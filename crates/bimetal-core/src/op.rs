//! The contract of an operation: what it accepts, what it costs, how exact it is, and its code for each metal.

use crate::{DType, Device, Error, Gpu, Result, Shape, Spec, Tensor};
use arrayvec::ArrayVec;
use std::borrow::Cow;

/// No operation has more outputs than this.
pub const MOST_OUTPUTS: usize = 6;

/// Output specs.
pub type Specs = ArrayVec<Spec, MOST_OUTPUTS>;

/// Fewest bytes that must move through memory, and floating-point operations, of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes: every input read once, every output written once.
    pub bytes: u64,
    /// Arithmetic operations; a transcendental counts as the multiply-adds that it takes.
    pub flops: u64,
}

impl Cost {
    /// The cost of reading `inputs` and writing `outputs` once, with this much arithmetic.
    pub fn streaming(inputs: &[&Spec], outputs: &[Spec], flops: u64) -> Self {
        let bytes = inputs.iter().map(|s| s.bytes()).sum::<usize>() + outputs.iter().map(Spec::bytes).sum::<usize>();
        Self { bytes: bytes as u64, flops }
    }
}

/// How far a result may be from the f64 reference:
/// `|out − ref| ≤ ulps·ulp(ref) + scaled·2⁻²³·scale`, with `scale` from [`Expected`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Units in the last place of the output's dtype.
    pub ulps: f64,
    /// Multiples of the f32 epsilon, times the reference's scale (the sum of the terms' magnitudes).
    pub scaled: f64,
    /// Why this much and no more.
    pub why: &'static str,
}

impl Tolerance {
    /// Equality, for integers, truth values and copies.
    pub const EXACT: Self = Self { ulps: 0.0, scaled: 0.0, why: "no rounding takes place" };
}

/// A tensor as the reference sees it.
#[derive(Clone, Debug)]
pub struct Values {
    /// Shape and dtype of the tensor that it was read from.
    pub spec: Spec,
    /// The elements, row-major.
    pub data: Vec<f64>,
}

impl Values {
    /// The extents.
    pub fn dims(&self) -> &[usize] {
        self.spec.shape.dims()
    }
}

/// An output of the reference.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The exact values, before rounding to the output's dtype.
    pub data: Vec<f64>,
    /// Magnitude of the terms that were added up for each element; empty where rounding is the only error.
    pub scale: Vec<f64>,
    /// Which elements of the output these are, where computing all of them would take too long.
    pub sample: Option<Vec<usize>>,
}

impl Expected {
    /// Values that are not sums.
    pub fn exact(data: Vec<f64>) -> Self {
        Self { data, ..Self::default() }
    }

    /// Values that are sums of terms of these magnitudes.
    pub fn sums(data: Vec<f64>, scale: Vec<f64>) -> Self {
        Self { data, scale, sample: None }
    }
}

/// What a peer library runs for the same work: Python expressions over `x0, x1, …` (inputs) and `y0, y1, …`
/// (preallocated outputs).
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// For PyTorch, with `torch` and `F` (torch.nn.functional) in scope; writes into `y0` where PyTorch has `out=`.
    pub torch: Option<Cow<'static, str>>,
    /// What PyTorch has ready before the clock starts, as `s` in its expression: statistics that a forward pass saved,
    /// or copies of inputs that the expression overwrites. Evaluated again before the call whose outputs are compared.
    pub torch_setup: Option<Cow<'static, str>>,
    /// For NumPy, with `np` in scope.
    pub numpy: Option<Cow<'static, str>>,
}

/// A property that outputs must have, such as `‖A − QR‖ ≤ 30·max(m, n)·‖A‖·ε`.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    /// The field's word for it: "reconstruction", "orthogonality".
    pub name: &'static str,
    /// The error of the worst matrix, in the unit in which it is bounded: for LAPACK's ratios multiples of `n·‖A‖·ε`.
    pub error: f64,
    /// The largest accepted error, in the same unit.
    pub allowed: f64,
    /// Which matrix that is.
    pub index: usize,
}

impl Property {
    /// The name of the property that each matrix has the status (`info`) that it deserves.
    pub const STATUS: &'static str = "status";
}

/// How outputs are judged where more than one answer is right, as for the signs of a factorisation.
pub trait Properties {
    /// What the outputs must fulfil, from the inputs and outputs alone. An output of the wrong form (a triangle that is
    /// not one, values out of order) has an infinite error.
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property>;
}

/// An operation with its attributes, ready to be applied to inputs.
pub trait Op: Send + Sync {
    /// The name by which the registry, errors and reports know it.
    fn name(&self) -> &'static str;

    /// Checks the inputs and gives the outputs' specs.
    ///
    /// # Errors
    /// Inputs whose number, shapes or dtypes the operation does not accept.
    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs>;

    /// The least work for inputs that [`Op::outputs`] accepts.
    fn cost(&self, inputs: &[&Spec]) -> Cost;

    /// The accepted error for inputs that [`Op::outputs`] accepts.
    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance;

    /// How outputs are judged where the elements of [`Op::reference`] are not the only right ones; that function then
    /// gives nothing.
    fn properties(&self) -> Option<&dyn Properties> {
        None
    }

    /// The obvious loop in f64.
    fn reference(&self, inputs: &[Values]) -> Vec<Expected>;

    /// Runs on the host. Inputs and outputs have been checked.
    ///
    /// # Errors
    /// Values that the operation refuses.
    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()>;

    /// Launches on a GPU; does not wait. Inputs and outputs have been checked and live on `gpu`.
    ///
    /// # Errors
    /// A dtype or feature that the device lacks.
    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()>;

    /// The same work in other libraries.
    fn peer(&self, inputs: &[&Spec]) -> Peer;
}

/// How an input is filled, from a seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Standard normal.
    Normal,
    /// Uniform in `lo..hi`.
    Uniform(f64, f64),
    /// `±exp(uniform(ln lo, ln hi))`: magnitudes spread over many powers of two; positive only if the flag is set.
    Magnitudes(f64, f64, bool),
    /// Integers `lo..=hi`, so that ties and exact sums occur.
    Integers(i64, i64),
    /// Normal values with NaN, ±infinity, ±0, subnormals and the largest values among them.
    Specials,
    /// One value everywhere.
    Constant(f64),
    /// Matrices in the last two axes, with this structure and these singular or eigenvalues.
    Matrices(Structure, Spectrum),
    /// Integers that do not fall, from 0 to `last`: the row pointers of a sparse matrix. Steps are equal but for one, or else
    /// half of all is one step, many are 0, and the others differ by powers of ten.
    Offsets {
        /// The last of them.
        last: usize,
        /// Whether the steps are equal.
        even: bool,
    },
}

/// What kind of matrices a fill makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// No symmetry; any number of rows and columns.
    General,
    /// Symmetric, with eigenvalues of both signs.
    Symmetric,
    /// Symmetric with positive eigenvalues (none negative where the spectrum has zeros).
    Positive,
}

/// The values on which factorisations founder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spectrum {
    /// Normal elements; positive matrices are `G·Gᵀ/n + 1`.
    Random,
    /// All elements are zero.
    Zero,
    /// Ones on the diagonal.
    Identity,
    /// Half of the values are zero, but for rounding.
    RankDeficient,
    /// One value is 10⁻³ of the dtype's epsilon.
    NearSingular,
    /// All values are the same, three times over with both signs for symmetric matrices.
    Repeated,
    /// Values that differ by a few epsilons.
    Clustered,
    /// Values, and rows and columns, that fall over eight powers of ten (three in 16 bits).
    Graded,
    /// Three diagonals, normal elements.
    Banded,
    /// Normal elements times 10 to this power (a tenth of it in f16).
    Scaled(i32),
    /// Random, but the middle matrix is singular: zero where no structure is asked for, indefinite where positive is.
    OneBad,
    /// Random, but one element of the middle matrix is NaN.
    OneNan,
}

/// An input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// The extents.
    pub shape: Shape,
    /// A fixed dtype, or `None` for the dtype under test.
    pub dtype: Option<DType>,
    /// The values.
    pub fill: Fill,
}

impl Input {
    /// An input of the dtype under test.
    pub fn new(dims: &[usize], fill: Fill) -> Self {
        Self { shape: Shape::new(dims).expect("cases have valid shapes"), dtype: None, fill }
    }

    /// The same with a dtype of its own.
    pub fn of(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Shape and dtype when `dtype` is under test.
    pub fn spec(&self, dtype: DType) -> Spec {
        Spec::new(self.shape.clone(), self.dtype.unwrap_or(dtype))
    }
}

/// What a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Timed by the bench and checked there.
    Bench,
    /// Awkward: checked by the agreement test.
    Agree,
}

/// One application of an operation: attributes, shapes and how to fill them.
pub struct Case {
    /// Short and unique within the operation: the shapes and attributes.
    pub label: String,
    /// The operation with its attributes.
    pub op: Box<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// What it is for.
    pub role: Role,
}

impl Case {
    /// A case labelled with its inputs' shapes.
    pub fn new(op: impl Op + 'static, inputs: Vec<Input>, role: Role) -> Self {
        let dims = |i: &Input| i.shape.dims().iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x");
        let shapes = inputs.iter().map(|i| if i.shape.rank() == 0 { "scalar".into() } else { dims(i) });
        let mut label = shapes.collect::<Vec<_>>();
        label.dedup();
        Self { label: label.join(","), op: Box::new(op), inputs, role }
    }

    /// Adds to the label what the shapes do not say.
    pub fn tagged(mut self, tag: &str) -> Self {
        self.label = format!("{} {tag}", self.label);
        self
    }

    /// The inputs' specs when `dtype` is under test.
    pub fn specs(&self, dtype: DType) -> Vec<Spec> {
        self.inputs.iter().map(|i| i.spec(dtype)).collect()
    }
}

/// What the registry holds of an operation: its name, and how to make cases of it.
pub trait Definition: Sync {
    /// The name: lower case, the field's word.
    fn name(&self) -> &'static str;
    /// One line for listings.
    fn doc(&self) -> &'static str;
    /// The dtypes under which every case runs.
    fn dtypes(&self) -> &'static [DType] {
        &DType::FLOATS
    }
    /// Where it runs; every operation has code for both metals unless it says otherwise.
    fn backends(&self) -> &'static [&'static str] {
        &["cpu", "gpu"]
    }
    /// The benchmark shapes, and the awkward ones: 0, 1, a prime, one below and above each tile and vector width.
    fn cases(&self) -> Vec<Case>;
    /// A case with default attributes whose first input has these extents.
    ///
    /// # Errors
    /// A rank or extents that the operation does not take.
    fn at_shape(&self, shape: &Shape) -> Result<Case>;
}

/// Applies `op`, writing into `outputs`, which live where the inputs live. An output whose spec or device differs is
/// an error; one that shares its storage gets storage of its own. Work on host tensors goes where
/// [`route::choose`](crate::route::choose) sends it.
///
/// # Errors
/// What [`Op::outputs`] refuses, tensors on different devices, wrong outputs, or a device that fails.
pub fn run_into(op: &dyn Op, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    accept(op, inputs, outputs)?;
    match inputs.first().and_then(|t| t.gpu()) {
        Some(gpu) => op.gpu(gpu, inputs, outputs),
        None => crate::route::run_host(op, inputs, outputs),
    }
}

/// As [`run_into`], always on the device where the inputs live: what checks and benchmarks of a device run.
///
/// # Errors
/// As [`run_into`].
pub fn run_here(op: &dyn Op, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    accept(op, inputs, outputs)?;
    match inputs.first().and_then(|t| t.gpu()) {
        Some(gpu) => op.gpu(gpu, inputs, outputs),
        None => op.cpu(inputs, outputs),
    }
}

/// Checks inputs and outputs against each other, and gives every output storage of its own.
fn accept(op: &dyn Op, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let specs = specs(op, inputs)?;
    let expected = op.outputs(&specs)?;
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    for tensor in inputs {
        if tensor.device() != device {
            return Err(misplaced(op, "inputs", tensor, device));
        }
    }
    if outputs.len() != expected.len() {
        return Err(Error::argument(
            op.name(),
            "outputs",
            format!("{} outputs, got {}", expected.len(), outputs.len()),
        ));
    }
    for (output, spec) in outputs.iter().zip(&expected) {
        if output.device() != device {
            return Err(misplaced(op, "out", output, device));
        }
        if output.dtype() != spec.dtype {
            return Err(Error::dtype(op.name(), "out", output.dtype(), &[spec.dtype]));
        }
        if output.shape() != &spec.shape {
            return Err(Error::argument(op.name(), "out", format!("shape {}, got {}", spec.shape, output.shape())));
        }
    }
    outputs.iter_mut().try_for_each(|output| output.make_unique())
}

/// Applies `op` and returns new tensors on the device where the inputs live.
///
/// # Errors
/// As [`run_into`].
pub fn run(op: &dyn Op, inputs: &[&Tensor]) -> Result<ArrayVec<Tensor, MOST_OUTPUTS>> {
    let specs = specs(op, inputs)?;
    let expected = op.outputs(&specs)?;
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    let mut made = ArrayVec::<Tensor, MOST_OUTPUTS>::new();
    for spec in expected {
        made.push(Tensor::empty_on(spec, device)?);
    }
    {
        let mut outputs: ArrayVec<&mut Tensor, MOST_OUTPUTS> = made.iter_mut().collect();
        run_into(op, inputs, &mut outputs)?;
    }
    Ok(made)
}

/// Applies an operation with one output.
///
/// # Errors
/// As [`run_into`].
pub fn run_one(op: &dyn Op, inputs: &[&Tensor]) -> Result<Tensor> {
    Ok(run(op, inputs)?.remove(0))
}

/// The inputs' specs; no operation has more than eight inputs.
fn specs<'a>(op: &dyn Op, inputs: &[&'a Tensor]) -> Result<ArrayVec<&'a Spec, 8>> {
    if inputs.len() > 8 {
        return Err(Error::argument(op.name(), "inputs", format!("at most 8 tensors, got {}", inputs.len())));
    }
    Ok(inputs.iter().map(|t| t.spec()).collect())
}

fn misplaced(op: &dyn Op, argument: &'static str, tensor: &Tensor, device: Device) -> Error {
    Error::Device { op: op.name(), argument, got: tensor.device().to_string(), expected: device.to_string() }
}
