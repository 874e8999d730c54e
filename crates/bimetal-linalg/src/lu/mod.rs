//! LU with partial pivoting, `P·A = L·U`, and what follows from it: solutions, inverses and determinants.

mod cases;
mod cpu;
pub(crate) mod gpu;
mod reference;

use crate::cholesky::Solution;
use crate::lanes::DTYPES;
use crate::status::ensure;
use crate::system::{self, System};
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Op, Peer, Properties, Property, Specs, Tolerance, Values,
};
use bimetal_core::{DType, Gpu, Problem, Result, Shape, Spec, Tensor};
use cpu::Extents;

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Lu, &Kind::Solve, &Kind::Inv, &Kind::Det, &Kind::Slogdet];

/// What is made of the factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Lu,
    Solve,
    Inv,
    Det,
    Slogdet,
}

/// Options of [`lu_with`], [`solve_with`] and [`inv_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuParams {
    /// Whether to wait for the statuses and return an error for the first matrix that failed.
    pub check_errors: bool,
}

impl LuParams {
    /// Errors are checked.
    pub fn auto() -> Self {
        Self { check_errors: true }
    }
}

impl Default for LuParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// LU factors, pivots and the status of each matrix.
#[derive(Clone)]
pub struct Lu {
    /// `[…, m, n]`: `U` on and above the diagonal, `L` without its unit diagonal below.
    pub factors: Tensor,
    /// i32 `[…, min(m, n)]`: row `i` was exchanged with row `pivots[i]`, counted from 1 as in LAPACK.
    pub pivots: Tensor,
    /// i32 of the leading extents: 0, −1 for a matrix with NaN or infinity (whose factors are NaN and pivots 0), or the
    /// first pivot that is exactly zero, from 1 (whose factors are complete).
    pub status: Tensor,
}

/// Inverses and the status of each matrix.
#[derive(Clone)]
pub struct Inverse {
    /// The inverses, of the shape of the matrices; NaN for a matrix that failed.
    pub inverse: Tensor,
    /// i32 of the leading extents: 0, −1 for a matrix with NaN or infinity, or the first pivot that is zero, from 1.
    pub status: Tensor,
}

/// Signs and logarithms of determinants.
#[derive(Clone)]
pub struct Slogdet {
    /// −1, 0 or 1, of the leading extents.
    pub sign: Tensor,
    /// The logarithm of the determinant's magnitude: −∞ for a singular matrix.
    pub logabsdet: Tensor,
}

#[derive(Clone, Copy)]
struct LuOp(Kind);

/// LU factors with partial pivoting, `P·A = L·U` (LAPACK `getrf`).
///
/// `a` is `[…, m, n]` of f32, f64, f16 or bf16 (which are computed in f32). A singular matrix has factors, too: its status is
/// the first zero pivot.
///
/// # Errors
/// Another dtype or fewer than two axes; [`Error::Matrix`](bimetal_core::Error::Matrix) for the first matrix with NaN or
/// infinity. This waits for the device; [`lu_with`] need not.
///
/// ```
/// # use bimetal_linalg::lu;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 3.0, 2.0, 4.0], &[2, 2])?;
/// let found = lu(&a)?;
/// assert_eq!(found.factors.to_vec::<f32>()?, [2.0, 4.0, 0.5, 1.0]);
/// assert_eq!(found.pivots.to_vec::<i32>()?, [2, 2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lu(a: &Tensor) -> Result<Lu> {
    lu_with(a, LuParams::default())
}

/// [`lu`] with the statuses instead of an error if asked for.
///
/// # Errors
/// As [`lu`]; none for matrices unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{LuParams, lu_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[0.0f32, 1.0, 0.0, 2.0], &[2, 2])?;
/// assert_eq!(lu_with(&a, LuParams { check_errors: false })?.status.to_vec::<i32>()?, [1]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lu_with(a: &Tensor, params: LuParams) -> Result<Lu> {
    let mut outputs = op::run(&LuOp(Kind::Lu), &[a])?;
    let (status, pivots, factors) = (outputs.remove(2), outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        finite("lu", &status)?;
    }
    Ok(Lu { factors, pivots, status })
}

/// [`lu`] into existing tensors on the device of `a`.
///
/// # Errors
/// As [`lu`], or outputs of other shapes, dtypes or devices.
///
/// ```
/// # use bimetal_linalg::lu_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[3.0f64], &[1, 1])?;
/// let (mut factors, mut pivots) = (Tensor::zeros(&[1, 1], DType::F64)?, Tensor::zeros(&[1], DType::I32)?);
/// lu_into(&a, &mut factors, &mut pivots)?;
/// assert_eq!(pivots.to_vec::<i32>()?, [1]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lu_into(a: &Tensor, factors: &mut Tensor, pivots: &mut Tensor) -> Result<()> {
    let mut status = status_for(Kind::Lu, &[a])?;
    op::run_into(&LuOp(Kind::Lu), &[a], &mut [factors, pivots, &mut status])?;
    finite("lu", &status)
}

/// The solutions of `A·X = B` (LAPACK `gesv`).
///
/// `a` is `[…, n, n]` and `b` `[…, n, k]`, or `[…, n]` for one right-hand side each, with the same leading extents and dtype:
/// f32, f64, f16 or bf16 (which are computed in f32). The result has the shape of `b`.
///
/// # Errors
/// Shapes or dtypes that do not go together; [`Error::Matrix`](bimetal_core::Error::Matrix) for the first system with NaN or
/// infinity, or whose matrix is singular. This waits for the device; [`solve_with`] need not.
///
/// ```
/// # use bimetal_linalg::solve;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[0.0f32, 2.0, 4.0, 0.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[6.0f32, 8.0], &[2])?;
/// assert_eq!(solve(&a, &b)?.to_vec::<f32>()?, [2.0, 3.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn solve(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(solve_with(a, b, LuParams::default())?.x)
}

/// [`solve`] with the statuses instead of an error if asked for.
///
/// # Errors
/// As [`solve`]; none for matrices unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{LuParams, solve_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[2.0f32, 0.0], &[2, 1, 1])?;
/// let solved = solve_with(&a, &a, LuParams { check_errors: false })?;
/// assert_eq!(solved.status.to_vec::<i32>()?, [0, 1]);
/// assert_eq!(solved.x.to_vec::<f32>()?[0], 1.0);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn solve_with(a: &Tensor, b: &Tensor, params: LuParams) -> Result<Solution> {
    let mut outputs = op::run(&LuOp(Kind::Solve), &[a, b])?;
    let (status, x) = (outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        regular("solve", &status)?;
    }
    Ok(Solution { x, status })
}

/// [`solve`] into an existing tensor of the shape and dtype of `b` on its device.
///
/// # Errors
/// As [`solve`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::solve_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[4.0f32], &[1, 1])?;
/// let mut x = Tensor::zeros(&[1, 1], DType::F32)?;
/// solve_into(&a, &a, &mut x)?;
/// assert_eq!(x.to_vec::<f32>()?, [1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn solve_into(a: &Tensor, b: &Tensor, x: &mut Tensor) -> Result<()> {
    let mut status = status_for(Kind::Solve, &[a, b])?;
    op::run_into(&LuOp(Kind::Solve), &[a, b], &mut [x, &mut status])?;
    regular("solve", &status)
}

/// Inverses (LAPACK `getrf` and a solution with the identity).
///
/// `a` is `[…, n, n]` of f32, f64, f16 or bf16 (which are computed in f32).
///
/// # Errors
/// Matrices that are not square, another dtype; [`Error::Matrix`](bimetal_core::Error::Matrix) for the first matrix with NaN
/// or infinity, or that is singular. This waits for the device; [`inv_with`] need not.
///
/// ```
/// # use bimetal_linalg::inv;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[2.0f32, 0.0, 0.0, 4.0], &[2, 2])?;
/// assert_eq!(inv(&a)?.to_vec::<f32>()?, [0.5, 0.0, 0.0, 0.25]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn inv(a: &Tensor) -> Result<Tensor> {
    Ok(inv_with(a, LuParams::default())?.inverse)
}

/// [`inv`] with the statuses instead of an error if asked for.
///
/// # Errors
/// As [`inv`]; none for matrices unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{LuParams, inv_with};
/// # use bimetal_core::{DType, Tensor};
/// let found = inv_with(&Tensor::zeros(&[2, 2], DType::F32)?, LuParams { check_errors: false })?;
/// assert_eq!(found.status.to_vec::<i32>()?, [1]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn inv_with(a: &Tensor, params: LuParams) -> Result<Inverse> {
    let mut outputs = op::run(&LuOp(Kind::Inv), &[a])?;
    let (status, inverse) = (outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        regular("inv", &status)?;
    }
    Ok(Inverse { inverse, status })
}

/// [`inv`] into an existing tensor of the shape and dtype of `a` on its device.
///
/// # Errors
/// As [`inv`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::inv_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[4.0f32], &[1, 1])?;
/// let mut x = Tensor::zeros(&[1, 1], DType::F32)?;
/// inv_into(&a, &mut x)?;
/// assert_eq!(x.to_vec::<f32>()?, [0.25]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn inv_into(a: &Tensor, inverse: &mut Tensor) -> Result<()> {
    let mut status = status_for(Kind::Inv, &[a])?;
    op::run_into(&LuOp(Kind::Inv), &[a], &mut [inverse, &mut status])?;
    regular("inv", &status)
}

/// Determinants, of the leading extents: the product of the pivots of [`lu`]. That of a singular matrix is 0, and of one
/// without elements 1.
///
/// # Errors
/// Matrices that are not square, a dtype that is not f32, f64, f16 or bf16;
/// [`Error::Matrix`](bimetal_core::Error::Matrix) for the first matrix with NaN or infinity.
///
/// ```
/// # use bimetal_linalg::det;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[0.0f32, 2.0, 3.0, 1.0], &[2, 2])?;
/// assert_eq!(det(&a)?.to_vec::<f32>()?, [-6.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn det(a: &Tensor) -> Result<Tensor> {
    let mut outputs = op::run(&LuOp(Kind::Det), &[a])?;
    finite("det", &outputs[1])?;
    Ok(outputs.remove(0))
}

/// [`det`] into an existing tensor of the leading extents and dtype of `a` on its device.
///
/// # Errors
/// As [`det`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::det_into;
/// # use bimetal_core::{DType, Tensor};
/// let mut d = Tensor::zeros(&[], DType::F32)?;
/// det_into(&Tensor::from_slice(&[4.0f32], &[1, 1])?, &mut d)?;
/// assert_eq!(d.to_vec::<f32>()?, [4.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn det_into(a: &Tensor, det: &mut Tensor) -> Result<()> {
    let mut status = status_for(Kind::Det, &[a])?;
    op::run_into(&LuOp(Kind::Det), &[a], &mut [det, &mut status])?;
    finite("det", &status)
}

/// Signs and logarithms of determinants, which do not overflow; for a singular matrix 0 and −∞.
///
/// # Errors
/// As [`det`].
///
/// ```
/// # use bimetal_linalg::slogdet;
/// # use bimetal_core::Tensor;
/// let found = slogdet(&Tensor::from_slice(&[0.0f32, 1.0, 1.0, 0.0], &[2, 2])?)?;
/// assert_eq!((found.sign.to_vec::<f32>()?[0], found.logabsdet.to_vec::<f32>()?[0]), (-1.0, 0.0));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn slogdet(a: &Tensor) -> Result<Slogdet> {
    let mut outputs = op::run(&LuOp(Kind::Slogdet), &[a])?;
    finite("slogdet", &outputs[2])?;
    let (logabsdet, sign) = (outputs.remove(1), outputs.remove(0));
    Ok(Slogdet { sign, logabsdet })
}

/// [`slogdet`] into existing tensors of the leading extents and dtype of `a` on its device.
///
/// # Errors
/// As [`slogdet`], or outputs of other shapes, dtypes or devices.
///
/// ```
/// # use bimetal_linalg::slogdet_into;
/// # use bimetal_core::{DType, Tensor};
/// let (mut sign, mut log) = (Tensor::zeros(&[], DType::F32)?, Tensor::zeros(&[], DType::F32)?);
/// slogdet_into(&Tensor::from_slice(&[-1.0f32], &[1, 1])?, &mut sign, &mut log)?;
/// assert_eq!(sign.to_vec::<f32>()?, [-1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn slogdet_into(a: &Tensor, sign: &mut Tensor, logabsdet: &mut Tensor) -> Result<()> {
    let mut status = status_for(Kind::Slogdet, &[a])?;
    op::run_into(&LuOp(Kind::Slogdet), &[a], &mut [sign, logabsdet, &mut status])?;
    finite("slogdet", &status)
}

fn status_for(kind: Kind, inputs: &[&Tensor]) -> Result<Tensor> {
    let specs: Vec<&Spec> = inputs.iter().map(|t| t.spec()).collect();
    let status = LuOp(kind).outputs(&specs)?.pop().expect("the last output is the status");
    Tensor::empty_on(status, inputs[0].device())
}

/// An error for the first matrix that is singular or not finite.
fn regular(op: &'static str, status: &Tensor) -> Result<()> {
    ensure(op, status, |pivot| Problem::Singular { pivot })
}

/// An error for the first matrix that is not finite.
fn finite(op: &'static str, status: &Tensor) -> Result<()> {
    match status.to_vec::<i32>()?.iter().position(|&s| s < 0) {
        Some(index) => Err(bimetal_core::Error::Matrix { op, index, problem: Problem::NotFinite }),
        None => Ok(()),
    }
}

impl LuOp {
    fn extents(&self, inputs: &[&Shape]) -> Result<Extents> {
        let name = self.name();
        match self.0 {
            Kind::Lu => {
                let [count, m, n] = system::matrices(name, "a", inputs[0])?;
                Ok(Extents { count, m, n, k: 0 })
            }
            Kind::Solve => {
                let System { count, n, k } = System::new(name, inputs[0], inputs[1])?;
                Ok(Extents { count, m: n, n, k })
            }
            _ => {
                let [count, n] = system::square(name, "a", inputs[0])?;
                Ok(Extents { count, m: n, n, k: if self.0 == Kind::Inv { n } else { 0 } })
            }
        }
    }
}

impl Op for LuOp {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Lu => "lu",
            Kind::Solve => "solve",
            Kind::Inv => "inv",
            Kind::Det => "det",
            Kind::Slogdet => "slogdet",
        }
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let names: &[&'static str] = if self.0 == Kind::Solve { &["a", "b"] } else { &["a"] };
        system::check(self.name(), inputs, names)?;
        let shapes: Vec<&Shape> = inputs.iter().map(|s| &s.shape).collect();
        let Extents { m, n, .. } = self.extents(&shapes)?;
        let a = inputs[0];
        let status = system::status(&a.shape)?;
        let value = Spec::new(status.shape.clone(), a.dtype);
        let mut pivots = status.shape.dims().to_vec();
        pivots.push(m.min(n));
        let specs: Vec<Spec> = match self.0 {
            Kind::Lu => vec![a.clone(), Spec::new(Shape::new(&pivots)?, DType::I32), status],
            Kind::Solve => vec![inputs[1].clone(), status],
            Kind::Inv => vec![a.clone(), status],
            Kind::Det => vec![value, status],
            Kind::Slogdet => vec![value.clone(), value, status],
        };
        Ok(specs.into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let shapes: Vec<&Shape> = inputs.iter().map(|s| &s.shape).collect();
        let flops = self.extents(&shapes).map_or(0, |Extents { count, m, n, k }| {
            let r = m.min(n);
            // LAPACK's count of getrf, and of the substitutions; an inverse takes 4/3·n³.
            let factor = 2 * m * n * r - (m + n) * r * r + 2 * r * r * r / 3;
            count * if self.0 == Kind::Inv { factor + 4 * n * n * n / 3 } else { factor + 2 * n * n * k }
        });
        Cost::streaming(inputs, &outputs, flops.max(1) as u64)
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
        let shapes: Vec<&Shape> = inputs.iter().map(|t| t.shape()).collect();
        cpu::run(self.0, self.extents(&shapes)?, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let shapes: Vec<&Shape> = inputs.iter().map(|t| t.shape()).collect();
        gpu::run(gpu, self.0, self.extents(&shapes)?, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let torch = match self.0 {
            _ if inputs[0].dtype.size() == 2 => None,
            Kind::Lu => Some("torch.linalg.lu_factor_ex(x0, out=(y0, y1, y2))"),
            Kind::Solve => Some("torch.linalg.solve_ex(x0, x1, out=(y0, y1))"),
            Kind::Inv => Some("torch.linalg.inv_ex(x0, out=(y0, y1))"),
            Kind::Det => Some("torch.linalg.det(x0, out=y0)"),
            Kind::Slogdet => Some("torch.linalg.slogdet(x0, out=(y0, y1))"),
        };
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: None }
    }
}

impl Properties for LuOp {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let shapes: Vec<&Shape> = inputs.iter().map(|v| &v.spec.shape).collect();
        let k = self.extents(&shapes).map_or(0, |extents| extents.k);
        reference::judge(self.0, k, inputs, outputs)
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        LuOp(*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Lu => "P·A = L·U with partial pivoting",
            Self::Solve => "X with A·X = B",
            Self::Inv => "the inverse",
            Self::Det => "the determinant",
            Self::Slogdet => "sign and logarithm of the determinant",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        cases::cases(*self)
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        cases::at_shape(*self, shape)
    }
}
