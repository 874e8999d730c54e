//! Cholesky: `A = L·Lᵀ` of symmetric positive definite matrices, and solving with the factor.

mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use crate::lanes::DTYPES;
use crate::status::ensure;
use crate::system::{self, System, labelled, spectra};
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values,
};
use bimetal_core::{DType, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Factor, &Kind::Solve];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Factor,
    Solve,
}

/// Options of [`cholesky_with`] and [`cholesky_solve_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CholeskyParams {
    /// The upper triangle is read and `U` is returned, with `A = Uᵀ·U`; otherwise the lower one and `L`.
    pub upper: bool,
    /// Whether to wait for the statuses and return an error for the first matrix that failed.
    pub check_errors: bool,
}

impl CholeskyParams {
    /// The lower triangle, with errors checked.
    pub fn auto() -> Self {
        Self { upper: false, check_errors: true }
    }
}

impl Default for CholeskyParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// Cholesky factors and the status of each matrix.
#[derive(Clone)]
pub struct Cholesky {
    /// The factors, `[…, n, n]`: zero outside of their triangle; NaN for a matrix that failed.
    pub factor: Tensor,
    /// i32 of the leading extents: 0, −1 for a matrix with NaN or infinity, or LAPACK's `info`.
    pub status: Tensor,
}

/// Solutions and the status of each system.
#[derive(Clone)]
pub struct Solution {
    /// The solutions, of the shape of the right-hand sides; NaN for a system that failed.
    pub x: Tensor,
    /// i32 of the leading extents: 0, −1 for a system with NaN or infinity, or LAPACK's `info`.
    pub status: Tensor,
}

#[derive(Clone, Copy)]
struct CholeskyOp {
    kind: Kind,
    upper: bool,
}

/// The Cholesky factor `L` of symmetric positive definite matrices, `A = L·Lᵀ` (LAPACK `potrf`).
///
/// `a` is `[…, n, n]` of f32, f64, f16 or bf16 (which are computed in f32); only its lower triangle is read. The result has
/// its shape and dtype, and zeros above the diagonal.
///
/// # Errors
/// Matrices that are not square, another dtype; [`Error::Matrix`](bimetal_core::Error::Matrix) for the first matrix whose
/// lower triangle holds NaN or infinity, or that is not positive definite, with the order of the leading minor. This waits
/// for the device; [`cholesky_with`] need not.
///
/// ```
/// # use bimetal_linalg::cholesky;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[4.0f32, 2.0, 2.0, 5.0], &[2, 2])?;
/// assert_eq!(cholesky(&a)?.to_vec::<f32>()?, [2.0, 0.0, 1.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky(a: &Tensor) -> Result<Tensor> {
    Ok(cholesky_with(a, CholeskyParams::default())?.factor)
}

/// [`cholesky`] into an existing tensor of the shape and dtype of `a` on its device.
///
/// # Errors
/// As [`cholesky`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::cholesky_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[9.0f64], &[1, 1])?;
/// let mut l = Tensor::zeros(&[1, 1], DType::F64)?;
/// cholesky_into(&a, &mut l)?;
/// assert_eq!(l.to_vec::<f64>()?, [3.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_into(a: &Tensor, factor: &mut Tensor) -> Result<()> {
    let op = CholeskyOp { kind: Kind::Factor, upper: false };
    let specs = op.outputs(&[a.spec()])?;
    let mut status = Tensor::empty_on(specs[1].clone(), a.device())?;
    op::run_into(&op, &[a], &mut [factor, &mut status])?;
    ensure("cholesky", &status, |order| Problem::NotPositiveDefinite { order })
}

/// [`cholesky`] of either triangle, and with the statuses instead of an error if asked for.
///
/// # Errors
/// As [`cholesky`]; none for matrices unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{CholeskyParams, cholesky_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[4.0f32, 2.0, 2.0, 5.0, 1.0, 2.0, 2.0, 1.0], &[2, 2, 2])?;
/// let found = cholesky_with(&a, CholeskyParams { upper: true, check_errors: false })?;
/// assert_eq!(found.factor.to_vec::<f32>()?[..4], [2.0, 1.0, 0.0, 2.0]);
/// assert_eq!(found.status.to_vec::<i32>()?, [0, 2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_with(a: &Tensor, params: CholeskyParams) -> Result<Cholesky> {
    let mut outputs = op::run(&CholeskyOp { kind: Kind::Factor, upper: params.upper }, &[a])?;
    let (status, factor) = (outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        ensure("cholesky", &status, |order| Problem::NotPositiveDefinite { order })?;
    }
    Ok(Cholesky { factor, status })
}

/// The solutions of `L·Lᵀ·X = B` with the factor of [`cholesky`] (LAPACK `potrs`).
///
/// `l` is `[…, n, n]`, of which the lower triangle is read; `b` is `[…, n, k]`, or `[…, n]` for one right-hand side each,
/// with the same leading extents and dtype. The result has the shape of `b`.
///
/// # Errors
/// Shapes or dtypes that do not go together; [`Error::Matrix`](bimetal_core::Error::Matrix) for the first system with NaN or
/// infinity, or with a zero on the diagonal.
///
/// ```
/// # use bimetal_linalg::cholesky_solve;
/// # use bimetal_core::Tensor;
/// let l = Tensor::from_slice(&[2.0f32, 0.0, 1.0, 2.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[8.0f32, 12.0], &[2])?;
/// assert_eq!(cholesky_solve(&l, &b)?.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_solve(l: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(cholesky_solve_with(l, b, CholeskyParams::default())?.x)
}

/// [`cholesky_solve`] into an existing tensor of the shape and dtype of `b` on its device.
///
/// # Errors
/// As [`cholesky_solve`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::cholesky_solve_into;
/// # use bimetal_core::{DType, Tensor};
/// let l = Tensor::from_slice(&[2.0f32], &[1, 1])?;
/// let mut x = Tensor::zeros(&[1, 1], DType::F32)?;
/// cholesky_solve_into(&l, &l, &mut x)?;
/// assert_eq!(x.to_vec::<f32>()?, [0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_solve_into(l: &Tensor, b: &Tensor, x: &mut Tensor) -> Result<()> {
    let op = CholeskyOp { kind: Kind::Solve, upper: false };
    let specs = op.outputs(&[l.spec(), b.spec()])?;
    let mut status = Tensor::empty_on(specs[1].clone(), l.device())?;
    op::run_into(&op, &[l, b], &mut [x, &mut status])?;
    ensure("cholesky_solve", &status, |pivot| Problem::Singular { pivot })
}

/// [`cholesky_solve`] with either factor, and with the statuses instead of an error if asked for.
///
/// # Errors
/// As [`cholesky_solve`]; none for matrices unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{CholeskyParams, cholesky_solve_with};
/// # use bimetal_core::Tensor;
/// let u = Tensor::from_slice(&[2.0f32, 1.0, 0.0, 2.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[8.0f32, 12.0], &[2])?;
/// let solved = cholesky_solve_with(&u, &b, CholeskyParams { upper: true, check_errors: false })?;
/// assert_eq!(solved.x.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_solve_with(l: &Tensor, b: &Tensor, params: CholeskyParams) -> Result<Solution> {
    let mut outputs = op::run(&CholeskyOp { kind: Kind::Solve, upper: params.upper }, &[l, b])?;
    let (status, x) = (outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        ensure("cholesky_solve", &status, |pivot| Problem::Singular { pivot })?;
    }
    Ok(Solution { x, status })
}

impl Op for CholeskyOp {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Factor => "cholesky",
            Kind::Solve => "cholesky_solve",
        }
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let out = match self.kind {
            Kind::Factor => {
                system::check(self.name(), inputs, &["a"])?;
                system::square(self.name(), "a", &inputs[0].shape)?;
                inputs[0]
            }
            Kind::Solve => {
                system::check(self.name(), inputs, &["l", "b"])?;
                System::new(self.name(), &inputs[0].shape, &inputs[1].shape)?;
                inputs[1]
            }
        };
        Ok([out.clone(), system::status(&inputs[0].shape)?].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let n = inputs[0].shape.dims().last().copied().unwrap_or(0) as u64;
        let flops = match self.kind {
            Kind::Factor => inputs[0].numel() as u64 * n / 3,
            Kind::Solve => 2 * n * inputs[1].numel() as u64,
        };
        Cost::streaming(inputs, &outputs, flops.max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 0.0, scaled: 0.0, why: "judged by reconstruction or residual and by the status" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        match self.kind {
            Kind::Factor => {
                let extents = system::square(self.name(), "a", inputs[0].shape())?;
                cpu::cholesky(self.upper, extents, inputs[0], outputs)
            }
            Kind::Solve => {
                let system = System::new(self.name(), inputs[0].shape(), inputs[1].shape())?;
                cpu::solve(self.upper, system, inputs, outputs)
            }
        }
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        match self.kind {
            Kind::Factor => {
                let extents = system::square(self.name(), "a", inputs[0].shape())?;
                gpu::cholesky(gpu, self.upper, extents, inputs[0], outputs)
            }
            Kind::Solve => {
                let system = System::new(self.name(), inputs[0].shape(), inputs[1].shape())?;
                gpu::solve(gpu, self.upper, system, inputs, outputs)
            }
        }
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let flag = if self.upper { ", upper=True" } else { "" };
        let torch = match self.kind {
            _ if inputs[0].dtype.size() == 2 => None,
            Kind::Factor => Some(format!("torch.linalg.cholesky_ex(x0{flag}, out=(y0, y1))")),
            Kind::Solve if inputs[1].shape.rank() < inputs[0].shape.rank() => None,
            Kind::Solve => Some(format!("torch.cholesky_solve(x1, x0{flag}, out=y0)")),
        };
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: None }
    }
}

impl Properties for CholeskyOp {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        match self.kind {
            Kind::Factor => reference::factors(self.upper, inputs, outputs),
            Kind::Solve => {
                let system = System::new(self.name(), &inputs[0].spec.shape, &inputs[1].spec.shape);
                reference::solutions(self.upper, system.map_or(1, |s| s.k), inputs, outputs)
            }
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        CholeskyOp { kind: *self, upper: false }.name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Factor => "A = L·Lᵀ of symmetric positive definite matrices",
            Self::Solve => "X with L·Lᵀ·X = B, from a Cholesky factor",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        match self {
            Self::Factor => factor_cases(),
            Self::Solve => solve_cases(),
        }
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let op = CholeskyOp { kind: *self, upper: false };
        system::square(op.name(), "a", shape)?;
        let a = Input::new(shape.dims(), POSITIVE);
        let inputs = if *self == Self::Factor { vec![a] } else { vec![a, Input::new(shape.dims(), Fill::Normal)] };
        Ok(Case::new(op, inputs, Role::Bench))
    }
}

const POSITIVE: Fill = Fill::Matrices(Structure::Positive, Spectrum::Random);

fn factor_cases() -> Vec<Case> {
    let case = |upper, dims: &[usize], fill, role, label: &str| {
        labelled(CholeskyOp { kind: Kind::Factor, upper }, vec![Input::new(dims, fill)], role, label)
    };
    let bench: [&[usize]; 10] = [
        &[100, 16, 16], &[500, 16, 16], &[100, 32, 32], &[200, 48, 48], &[100, 64, 64], &[10000, 32, 32], &[10, 256, 256],
        &[512, 512], &[1024, 1024], &[2048, 2048],
    ];
    let name = |dims: &[usize]| dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x");
    let mut cases: Vec<Case> =
        bench.iter().map(|dims| case(false, dims, POSITIVE, Role::Bench, &name(dims))).collect();
    let sizes: [&[usize]; 27] = [
        &[0, 0], &[1, 1], &[2, 2], &[5, 5], &[17, 17], &[33, 33], &[100, 100], &[0, 4, 4], &[3, 0, 0], &[3, 1, 1],
        &[65, 2, 2], &[40, 3, 3], &[1, 5, 5], &[33, 7, 7], &[9, 8, 8], &[17, 9, 9], &[2, 3, 16, 16], &[3, 17, 17],
        &[19, 31, 31], &[17, 32, 32], &[3, 33, 33], &[3, 48, 48], &[3, 63, 63], &[2, 65, 65], &[2, 1, 2, 97, 97],
        &[2, 129, 129], &[1, 300, 300],
    ];
    for (i, dims) in sizes.iter().enumerate() {
        cases.push(case(i % 3 == 1, dims, POSITIVE, Role::Agree, &format!("{} sizes", name(dims))));
    }
    for (count, n, upper) in [(3, 7, false), (3, 7, true), (3, 32, false), (3, 50, true), (1, 130, false), (1, 130, true)] {
        let tag = if upper { " upper" } else { "" };
        cases.extend(spectra(Structure::Positive, &[count, n, n], |fill, label| {
            case(upper, &[count, n, n], fill, Role::Agree, &format!("{label}{tag}"))
        }));
    }
    cases
}

fn solve_cases() -> Vec<Case> {
    // A random lower triangle with a dominant diagonal is what a factor looks like; the other triangle must not matter.
    let factor = Fill::Matrices(Structure::Positive, Spectrum::Random);
    let case = |upper, a: &[usize], b: &[usize], fill, role, label: &str| {
        let inputs = vec![Input::new(a, fill), Input::new(b, Fill::Normal)];
        labelled(CholeskyOp { kind: Kind::Solve, upper }, inputs, role, label)
    };
    let name = |a: &[usize], b: &[usize]| {
        let one = |dims: &[usize]| dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x");
        format!("{},{}", one(a), one(b))
    };
    let bench: [[&[usize]; 2]; 4] = [
        [&[500, 16, 16], &[500, 16, 1]], [&[200, 48, 48], &[200, 48, 1]], [&[10000, 32, 32], &[10000, 32, 1]],
        [&[1024, 1024], &[1024, 64]],
    ];
    let mut cases: Vec<Case> =
        bench.iter().map(|[a, b]| case(false, a, b, factor, Role::Bench, &name(a, b))).collect();
    let sizes: [[&[usize]; 2]; 19] = [
        [&[19, 9, 9], &[19, 9, 1]], [&[17, 16, 16], &[17, 16]], [&[35, 63, 63], &[35, 63, 7]], [&[0, 0], &[0, 3]], [&[4, 4], &[4, 0]], [&[1, 1], &[1]], [&[5, 5], &[5]], [&[17, 17], &[17, 40]],
        [&[0, 4, 4], &[0, 4]], [&[3, 2, 2], &[3, 2, 2]], [&[33, 7, 7], &[33, 7, 3]], [&[2, 3, 16, 16], &[2, 3, 16]],
        [&[3, 32, 32], &[3, 32, 33]], [&[3, 48, 48], &[3, 48, 2]], [&[2, 65, 65], &[2, 65, 65]],
        [&[2, 100, 100], &[2, 100, 1]], [&[1, 129, 129], &[1, 129, 7]], [&[200, 200], &[200, 130]], [&[300, 300], &[300]],
    ];
    for (i, [a, b]) in sizes.iter().enumerate() {
        cases.push(case(i % 2 == 1, a, b, factor, Role::Agree, &format!("{} sizes", name(a, b))));
    }
    for n in [9usize, 40, 130] {
        for (spectrum, tag) in
            [(Spectrum::Zero, "zero"), (Spectrum::Identity, "identity"), (Spectrum::OneNan, "one-nan"), (Spectrum::Banded, "banded")]
        {
            let fill = Fill::Matrices(Structure::Positive, spectrum);
            cases.push(case(n == 40, &[4, n, n], &[4, n, 2], fill, Role::Agree, &format!("{n} {tag}")));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::Error;

    #[test]
    fn the_first_bad_matrix_is_named() {
        let a = Tensor::from_slice(&[4.0f32, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 1.0, f32::NAN, 0.0, 0.0, 1.0], &[3, 2, 2]).unwrap();
        let problem = Problem::NotPositiveDefinite { order: 2 };
        assert_eq!(cholesky(&a).err(), Some(Error::Matrix { op: "cholesky", index: 1, problem }));
        let last = a.slice(2..3).unwrap();
        assert_eq!(cholesky(&last).err(), Some(Error::Matrix { op: "cholesky", index: 0, problem: Problem::NotFinite }));
        let found = cholesky_with(&a, CholeskyParams { check_errors: false, ..CholeskyParams::auto() }).unwrap();
        assert_eq!(found.status.to_vec::<i32>().unwrap(), [0, 2, -1]);
        assert_eq!(found.factor.to_vec::<f32>().unwrap()[..4], [2.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn the_other_triangle_is_not_read() {
        let a = Tensor::from_slice(&[4.0f32, f32::NAN, 2.0, 5.0], &[2, 2]).unwrap();
        assert_eq!(cholesky(&a).unwrap().to_vec::<f32>().unwrap(), [2.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let a = Tensor::zeros(&[2, 3], DType::F32).unwrap();
        assert!(matches!(cholesky(&a), Err(Error::Argument { argument: "a", .. })));
        let a = Tensor::zeros(&[3, 3], DType::F32).unwrap();
        let b = Tensor::zeros(&[2, 3], DType::F32).unwrap();
        assert!(matches!(cholesky_solve(&a, &b), Err(Error::Argument { argument: "b", .. })));
        assert!(matches!(cholesky(&Tensor::zeros(&[2, 2], DType::I32).unwrap()), Err(Error::DType { .. })));
    }
}
