//! Eigenvalues and eigenvectors of symmetric matrices: `A = V·Λ·Vᵀ`, ascending, alone or in batches.

mod cpu;
pub(crate) mod gpu;
mod lanes;
mod reference;

use crate::ratio::{compared_columns, extents, orthogonality, product, reconstruction, transposed, worst};
use crate::status;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Eigh, &Kind::Eigvalsh];

/// With vectors or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Eigh,
    Eigvalsh,
}

/// Options of [`eigh_with`] and [`eigvalsh_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EighParams {
    /// The upper triangle of the matrices is read, not the lower one; the other is never looked at.
    pub upper: bool,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl EighParams {
    /// The lower triangle, with errors.
    pub const fn auto() -> Self {
        Self { upper: false, check_errors: true }
    }
}

impl Default for EighParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// Eigenvalues and eigenvectors.
#[derive(Clone, Debug)]
pub struct Eigh {
    /// `[…, n]`, ascending.
    pub values: Tensor,
    /// `[…, n, n]`: column `i` is the eigenvector of unit length that belongs to value `i`; its sign is arbitrary.
    pub vectors: Tensor,
    /// `[…]`, i32: 0 for success, −1 for NaN or infinity in the triangle that is read, positive if the iteration did not
    /// end. Values and vectors of a matrix that failed are NaN.
    pub status: Tensor,
}

/// Eigenvalues alone.
#[derive(Clone, Debug)]
pub struct Eigvalsh {
    /// `[…, n]`, ascending.
    pub values: Tensor,
    /// As in [`Eigh`].
    pub status: Tensor,
}

struct Decomposition {
    kind: Kind,
    upper: bool,
}

/// The operation of [`eigh`].
pub(crate) fn lower() -> impl Op {
    Decomposition { kind: Kind::Eigh, upper: false }
}

/// Eigenvalues and eigenvectors of symmetric matrices `[…, n, n]`, whose lower triangle is read (LAPACK's `syevd`).
///
/// f32, f64, f16 and bf16; 16-bit matrices are decomposed in f32. The error is that of a matrix within a few `n·‖A‖·ε` of
/// the one given.
///
/// # Errors
/// Matrices that are not square, another dtype, or a matrix with NaN or infinity, which is named by its index.
///
/// ```
/// # use bimetal_linalg::eigh;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[2.0f64, 1.0, 1.0, 2.0], &[2, 2])?;
/// let eigen = eigh(&a)?;
/// let values = eigen.values.to_vec::<f64>()?;
/// assert!((values[0] - 1.0).abs() < 1e-12 && (values[1] - 3.0).abs() < 1e-12);
/// assert!((eigen.vectors.to_vec::<f64>()?[0].abs() - 0.5f64.sqrt()).abs() < 1e-12);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigh(a: &Tensor) -> Result<Eigh> {
    eigh_with(a, EighParams::auto())
}

/// [`eigh`] of the upper triangle, or without waiting for the device: see [`EighParams`].
///
/// # Errors
/// As [`eigh`]; no error for a matrix unless errors are checked.
///
/// ```
/// # use bimetal_linalg::{EighParams, eigh_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[f32::NAN, 0.0, 0.0, 1.0, 7.0, 0.0, 0.0, 2.0], &[2, 2, 2])?;
/// let eigen = eigh_with(&a, EighParams { check_errors: false, ..EighParams::auto() })?;
/// assert_eq!(eigen.status.to_vec::<i32>()?, [-1, 0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigh_with(a: &Tensor, params: EighParams) -> Result<Eigh> {
    let op = Decomposition { kind: Kind::Eigh, upper: params.upper };
    let mut made = op::run(&op, &[a])?.into_iter();
    let (Some(values), Some(vectors), Some(status)) = (made.next(), made.next(), made.next()) else {
        unreachable!("three outputs")
    };
    checked(&op, params, &status)?;
    Ok(Eigh { values, vectors, status })
}

/// [`eigh_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`eigh_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{EighParams, eigh_into};
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[5.0f32], &[1, 1])?;
/// let mut values = Tensor::zeros(&[1], DType::F32)?;
/// let mut vectors = Tensor::zeros(&[1, 1], DType::F32)?;
/// let mut status = Tensor::zeros(&[], DType::I32)?;
/// eigh_into(&a, EighParams::auto(), &mut values, &mut vectors, &mut status)?;
/// assert_eq!(values.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigh_into(
    a: &Tensor,
    params: EighParams,
    values: &mut Tensor,
    vectors: &mut Tensor,
    status: &mut Tensor,
) -> Result<()> {
    let op = Decomposition { kind: Kind::Eigh, upper: params.upper };
    op::run_into(&op, &[a], &mut [values, vectors, status])?;
    checked(&op, params, status)
}

/// Eigenvalues of symmetric matrices `[…, n, n]`, ascending, `[…, n]`: [`eigh`] without the vectors, for f32, f16 and bf16.
///
/// # Errors
/// As [`eigh`].
///
/// ```
/// # use bimetal_linalg::eigvalsh;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[0.0f32, 9.0, 3.0, 0.0], &[2, 2])?; // the 9 is not read
/// let values = eigvalsh(&a)?.to_vec::<f32>()?;
/// assert!((values[0] + 3.0).abs() < 1e-5 && (values[1] - 3.0).abs() < 1e-5);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigvalsh(a: &Tensor) -> Result<Tensor> {
    Ok(eigvalsh_with(a, EighParams::auto())?.values)
}

/// [`eigvalsh`] of the upper triangle, or without waiting for the device: see [`EighParams`].
///
/// # Errors
/// As [`eigh_with`].
///
/// ```
/// # use bimetal_linalg::{EighParams, eigvalsh_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, f32::NAN, 0.0, 2.0], &[2, 2])?;
/// assert!(eigvalsh_with(&a, EighParams { upper: true, ..EighParams::auto() }).is_err());
/// assert!(eigvalsh_with(&a, EighParams::auto()).is_ok());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigvalsh_with(a: &Tensor, params: EighParams) -> Result<Eigvalsh> {
    let op = Decomposition { kind: Kind::Eigvalsh, upper: params.upper };
    let mut made = op::run(&op, &[a])?.into_iter();
    let (Some(values), Some(status)) = (made.next(), made.next()) else { unreachable!("two outputs") };
    checked(&op, params, &status)?;
    Ok(Eigvalsh { values, status })
}

/// [`eigvalsh_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`eigvalsh_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{EighParams, eigvalsh_into};
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[5.0f32], &[1, 1])?;
/// let (mut values, mut status) = (Tensor::zeros(&[1], DType::F32)?, Tensor::zeros(&[], DType::I32)?);
/// eigvalsh_into(&a, EighParams::auto(), &mut values, &mut status)?;
/// assert_eq!(values.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigvalsh_into(a: &Tensor, params: EighParams, values: &mut Tensor, status: &mut Tensor) -> Result<()> {
    let op = Decomposition { kind: Kind::Eigvalsh, upper: params.upper };
    op::run_into(&op, &[a], &mut [values, status])?;
    checked(&op, params, status)
}

fn checked(op: &Decomposition, params: EighParams, status: &Tensor) -> Result<()> {
    if !params.check_errors {
        return Ok(());
    }
    status::ensure(op.name(), status, |unconverged| Problem::NoConvergence { unconverged })
}

impl Decomposition {
    /// The leading extents and the order of the matrices.
    fn order<'a>(&self, spec: &'a Spec) -> Result<(&'a [usize], usize)> {
        match spec.shape.dims() {
            [batch @ .., m, n] if m == n => Ok((batch, *n)),
            _ => Err(Error::argument(self.name(), "a", format!("square matrices […, n, n], got {}", spec.shape))),
        }
    }
}

impl Op for Decomposition {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [a] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !self.kind.accepted().contains(&a.dtype) {
            return Err(Error::dtype(self.name(), "a", a.dtype, self.kind.accepted()));
        }
        let (batch, n) = self.order(a)?;
        let values = Spec::new(Shape::new(&[batch, &[n]].concat())?, a.dtype);
        let status = Spec::new(Shape::new(batch)?, DType::I32);
        Ok(match self.kind {
            Kind::Eigh => [values, (*a).clone(), status].into_iter().collect(),
            Kind::Eigvalsh => [values, status].into_iter().collect(),
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let (batch, n) = self.order(inputs[0]).unwrap_or((&[], 0));
        let (count, n) = (batch.iter().product::<usize>() as u64, n as u64);
        // Tridiagonalisation, and with vectors divide and conquer and the transformation back.
        let flops = if self.kind == Kind::Eigh { 26 * n * n * n / 3 } else { 4 * n * n * n / 3 };
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (count * flops).max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = self.order(inputs[0]).map_or(0, |(_, n)| n) as f64;
        Tolerance {
            ulps: 1.0,
            scaled: 8.0 + n.sqrt(),
            why: "eigenvalues move by at most the norm of the backward error, a few roots of n times ‖A‖·ε",
        }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        (self.kind == Kind::Eigh).then_some(self)
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        if self.kind == Kind::Eigh {
            return Vec::new();
        }
        let [count, n, _] = extents(&inputs[0]);
        let (mut values, mut scale, mut status) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let a = reference::mirrored(&inputs[0].data[i * n * n..][..n * n], n, self.upper);
            let finite = a.iter().all(|x| x.is_finite());
            let norm = crate::ratio::norm1(&a, n);
            values.extend(if finite { reference::eigenvalues(a, n) } else { vec![f64::NAN; n] });
            scale.extend(vec![norm; n]);
            status.push(if finite { 0.0 } else { f64::from(status::NOT_FINITE) });
        }
        vec![Expected::sums(values, scale), Expected::exact(status)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::eigh(self.upper, inputs[0], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::eigh(gpu, self.upper, inputs[0], outputs)
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let triangle = if self.upper { "U" } else { "L" };
        let torch = match self.kind {
            Kind::Eigh => format!("torch.linalg.eigh(x0, UPLO='{triangle}', out=(y0, y1))"),
            Kind::Eigvalsh => format!("torch.linalg.eigvalsh(x0, UPLO='{triangle}', out=y0)"),
        };
        Peer { torch: Some(torch.into()), ..Peer::default() }
    }
}

impl Properties for Decomposition {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let [count, n, _] = extents(&inputs[0]);
        let dtype = inputs[0].spec.dtype;
        let columns = compared_columns(n);
        let judged: Vec<[f64; 4]> = (0..count)
            .map(|i| {
                let a = reference::mirrored(&inputs[0].data[i * n * n..][..n * n], n, self.upper);
                let (w, v) = (&outputs[0].data[i * n..][..n], &outputs[1].data[i * n * n..][..n * n]);
                let status = outputs[2].data[i];
                if a.iter().any(|x| !x.is_finite()) {
                    let marked = status == f64::from(status::NOT_FINITE) && w.iter().chain(v).all(|x| x.is_nan());
                    return [0.0, 0.0, 0.0, if marked { 0.0 } else { f64::INFINITY }];
                }
                let scaled: Vec<f64> = v.iter().enumerate().map(|(e, x)| x * w[e % n]).collect();
                let back = product(&scaled, &transposed(v, n, n), [n, n, n], &columns);
                let ascending = w.windows(2).all(|pair| pair[0] <= pair[1]);
                [
                    reconstruction(&a, &back, [n, n], &columns, dtype),
                    orthogonality(v, [n, n], dtype),
                    if ascending { 0.0 } else { f64::INFINITY },
                    if status == 0.0 { 0.0 } else { f64::INFINITY },
                ]
            })
            .collect();
        let property = |name, allowed, k: usize| worst(name, allowed, judged.iter().map(|j| j[k]).enumerate());
        vec![
            property("reconstruction", 60.0, 0),
            property("orthogonality", 60.0, 1),
            property("order", 0.0, 2),
            property(Property::STATUS, 0.0, 3),
        ]
    }
}

impl Kind {
    /// Values alone are judged by those of a reference in f64, which is no more exact than f64's own.
    fn accepted(self) -> &'static [DType] {
        match self {
            Self::Eigh => &crate::qr::FLOATS,
            Self::Eigvalsh => &DType::FLOATS,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Eigh => "eigh",
            Self::Eigvalsh => "eigvalsh",
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Eigh => "eigenvalues, ascending, and eigenvectors of symmetric matrices",
            Self::Eigvalsh => "eigenvalues of symmetric matrices, ascending",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        self.accepted()
    }

    fn cases(&self) -> Vec<Case> {
        cases(*self)
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let op = Decomposition { kind: *self, upper: false };
        op.order(&Spec::new(shape.clone(), DType::F32))?;
        Ok(case(op, shape.dims(), Spectrum::Random, Role::Bench))
    }
}

fn case(op: Decomposition, dims: &[usize], spectrum: Spectrum, role: Role) -> Case {
    Case::new(op, vec![Input::new(dims, Fill::Matrices(Structure::Symmetric, spectrum))], role)
}

fn cases(kind: Kind) -> Vec<Case> {
    let new = |dims: &[usize], spectrum, role| case(Decomposition { kind, upper: false }, dims, spectrum, role);
    let mut cases = Vec::new();
    let batches: &[[usize; 2]] = match kind {
        Kind::Eigh => &[
            [100, 32], [50, 64], [100, 64], [200, 64], [1000, 64], [20, 128], [50, 128], [10, 256], [1, 32], [1, 64],
            [1, 128], [1, 256], [1, 512], [1, 1024], [1, 2048], [1, 4096],
        ],
        Kind::Eigvalsh => &[[100, 64], [1, 1024]],
    };
    for &[count, n] in batches {
        let dims: &[usize] = if count == 1 { &[n, n] } else { &[count, n, n] };
        cases.push(new(dims, Spectrum::Random, Role::Bench));
    }
    for n in [0, 1, 2, 3, 5, 7, 16, 17, 31, 33, 48, 63, 65, 100, 129] {
        cases.push(new(&[n, n], Spectrum::Random, Role::Agree).tagged("sizes"));
    }
    let spectra = [
        Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular, Spectrum::Repeated,
        Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::Scaled(30), Spectrum::Scaled(-30),
        Spectrum::OneBad, Spectrum::OneNan,
    ];
    for spectrum in spectra {
        let mut shapes: Vec<&[usize]> = vec![&[3, 9, 9], &[18, 32, 32], &[3, 45, 45]];
        if kind == Kind::Eigh {
            shapes.push(&[3, 70, 70]);
        }
        cases.extend(shapes.iter().map(|dims| new(dims, spectrum, Role::Agree).tagged(&format!("{spectrum:?}"))));
    }
    let batches: [&[usize]; 5] = [&[0, 4, 4], &[2, 0, 0], &[2, 3, 6, 6], &[37, 5, 5], &[3, 2, 1, 24, 24]];
    for dims in batches {
        cases.push(new(dims, Spectrum::Random, Role::Agree).tagged("batch"));
    }
    for (n, structure) in [(6, Structure::General), (35, Structure::General)] {
        for upper in [false, true] {
            let inputs = vec![Input::new(&[3, n, n], Fill::Matrices(structure, Spectrum::Random))];
            let op = Decomposition { kind, upper };
            cases.push(Case::new(op, inputs, Role::Agree).tagged(if upper { "upper" } else { "lower" }));
        }
    }
    cases
}
