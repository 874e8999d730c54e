//! Least squares by singular values: `x = V·Σ⁺·Uᵀ·b`, the shortest of the solutions whatever the rank.

use super::{Dims, Solve, dims, reference, solution_and_status};
use crate::compose::{self, Batch, Decomposed, Source};
use crate::status;
use bimetal_core::op::{
    self, Case, Cost, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure, Tolerance,
    Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// How [`lstsq_with`] solves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LstsqMethod {
    /// Householder QR (LAPACK's `gels`): for matrices of full rank; others are an error.
    Qr,
    /// Singular values (LAPACK's `gelsd`): the shortest solution for any rank.
    Svd {
        /// Singular values up to this part of the largest one count as zero; `None` is `max(m, n)·ε`, with the ε of f64 or
        /// f32 (in which 16-bit types are computed).
        rcond: Option<f64>,
    },
}

/// Options of [`lstsq_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LstsqParams {
    /// How it is solved.
    pub method: LstsqMethod,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl LstsqParams {
    /// Singular values with the usual cutoff, and with errors.
    pub const fn auto() -> Self {
        Self { method: LstsqMethod::Svd { rcond: None }, check_errors: true }
    }
}

impl Default for LstsqParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// The result of [`lstsq_with`].
#[derive(Clone, Debug)]
pub struct LeastSquares {
    /// `[…, n, p]`, or `[…, n]` for vectors: the solutions.
    pub x: Tensor,
    /// i32, the leading extents: how many singular values were above the cutoff; −1 for a matrix that failed. None by QR.
    pub rank: Option<Tensor>,
    /// `[…, min(m, n)]`: the singular values, descending. None by QR.
    pub singular_values: Option<Tensor>,
    /// i32, the leading extents: 0 for success, −1 for NaN or infinity in the matrix, positive for QR's first column that depends
    /// on those before it, or if the iteration for singular values did not end. The solution is NaN then.
    pub status: Tensor,
}

struct Shortest {
    rcond: Option<f64>,
}

/// [`lstsq`](crate::lstsq()) by the method of [`LstsqParams`]: for rank-deficient matrices the shortest of all least-squares
/// solutions, and the rank. NaN or infinity in `b` reaches the solutions of its own column alone.
///
/// # Errors
/// Extents or dtypes that do not go together, or a cutoff that is negative or NaN; [`Problem::NotFinite`] for the first
/// matrix with NaN or infinity; by QR [`Problem::Singular`] for the first whose rank is not full.
///
/// ```
/// # use bimetal_linalg::{LstsqParams, lstsq_with};
/// # use bimetal_core::Tensor;
/// // Of all x with x₀ + x₁ = 2 the shortest.
/// let a = Tensor::from_slice(&[1.0f64, 1.0, 1.0, 1.0], &[2, 2])?;
/// let made = lstsq_with(&a, &Tensor::from_slice(&[2.0f64, 2.0], &[2])?, LstsqParams::auto())?;
/// assert!(made.x.to_vec::<f64>()?.iter().all(|x| (x - 1.0).abs() < 1e-14));
/// assert_eq!(made.rank.unwrap().to_vec::<i32>()?, [1]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lstsq_with(a: &Tensor, b: &Tensor, params: LstsqParams) -> Result<LeastSquares> {
    let made = match params.method {
        LstsqMethod::Qr => {
            let [x, status] = super::lstsq_unchecked(a, b)?;
            LeastSquares { x, rank: None, singular_values: None, status }
        }
        LstsqMethod::Svd { rcond } => {
            let mut made = op::run(&Shortest { rcond }, &[a, b])?.into_iter();
            let mut next = || made.next().expect("there are four outputs");
            let (x, rank, singular_values) = (next(), next(), next());
            LeastSquares { x, rank: Some(rank), singular_values: Some(singular_values), status: next() }
        }
    };
    params.ensure(&made.status)?;
    Ok(made)
}

/// [`lstsq_with`] into existing tensors on the operands' device; by singular values with tensors for these and the rank.
///
/// # Errors
/// As [`lstsq_with`], or an output that is missing or of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{LstsqParams, lstsq_with, lstsq_with_into};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[2.0f64], &[1, 1])?;
/// let mut out = lstsq_with(&a, &a, LstsqParams::auto())?;
/// lstsq_with_into(&a, &Tensor::from_slice(&[6.0f64], &[1, 1])?, LstsqParams::auto(), &mut out)?;
/// assert_eq!(out.x.to_vec::<f64>()?, [3.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lstsq_with_into(a: &Tensor, b: &Tensor, params: LstsqParams, out: &mut LeastSquares) -> Result<()> {
    match params.method {
        LstsqMethod::Qr => op::run_into(&Solve, &[a, b], &mut [&mut out.x, &mut out.status])?,
        LstsqMethod::Svd { rcond } => {
            let (Some(rank), Some(values)) = (&mut out.rank, &mut out.singular_values) else {
                let expected = "tensors for the rank and the singular values, got none";
                return Err(Error::argument("lstsq", "out", expected));
            };
            op::run_into(&Shortest { rcond }, &[a, b], &mut [&mut out.x, rank, values, &mut out.status])?;
        }
    }
    params.ensure(&out.status)
}

impl LstsqParams {
    fn ensure(self, found: &Tensor) -> Result<()> {
        match (self.check_errors, self.method) {
            (false, _) => Ok(()),
            (true, LstsqMethod::Qr) => super::ensure(found),
            (true, LstsqMethod::Svd { .. }) => {
                status::ensure("lstsq", found, |unconverged| Problem::NoConvergence { unconverged })
            }
        }
    }
}

impl Shortest {
    /// The steps, on the device of `a`: a failed matrix has NaN for its vectors, which every later step keeps.
    fn steps(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let ([a, b], [x, rank, values, status]) = (inputs, outputs) else { unreachable!("both were checked") };
        let (Dims { m, n, p, .. }, _) = dims(a.shape(), b.shape())?;
        let batch = Batch::of("lstsq", "a", a.shape())?;
        let (k, count) = (batch.k(), batch.count);
        let parts = Decomposed::of(&compose::widened(a)?, &batch, status)?;
        let cutoff = compose::cutoff(self.rcond, m, n, a.dtype());
        let reciprocals = compose::inverted(&parts.s, status, rank, k, cutoff)?;
        let right = compose::widened(&b.reshape(&batch.with(&[m, p]))?)?;
        let found = parts.solve(&reciprocals, &right, &batch, p)?;
        Source::all(&found, [count, n, p]).checked(status).copy(x, [count, n, p])?;
        Source::all(&parts.s, [count, 1, k]).copy(values, [count, 1, k])
    }
}

impl Op for Shortest {
    fn name(&self) -> &'static str {
        "lstsq"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [x, status] = solution_and_status(inputs)?;
        compose::check_cutoff(self.name(), self.rcond)?;
        let a = &inputs[0];
        let k = a.shape[a.shape.rank() - 2].min(a.shape[a.shape.rank() - 1]);
        let values = Shape::new(&[status.shape.dims(), &[k]].concat())?;
        Ok([x, status.clone(), Spec::new(values, a.dtype), status].into_iter().collect())
    }

    /// The singular value decomposition and two products.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops = dims(&inputs[0].shape, &inputs[1].shape).map_or(0, |(Dims { batch, m, n, p }, _)| {
            let (long, short) = (m.max(n), m.min(n));
            batch * (6 * long * short * short + 20 * short * short * short + 2 * short * p * (m + n))
        });
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (flops as u64).max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 30.0, scaled: 30.0, why: "LAPACK's ratios for gelsd; solutions are judged by their residuals" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.steps(inputs, outputs)
    }

    fn gpu(&self, _: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.steps(inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let matrices = inputs[0].shape.rank() == inputs[1].shape.rank();
        let torch = (matrices && self.rcond.is_none() && matches!(inputs[0].dtype, DType::F32 | DType::F64))
            .then(|| "y0.copy_(torch.linalg.lstsq(x0, x1, driver='gelsd').solution)".into());
        Peer { torch, torch_setup: None, numpy: None }
    }
}

impl Properties for Shortest {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let (dims, _) = dims(&inputs[0].spec.shape, &inputs[1].spec.shape).expect("the case was checked");
        reference::shortest(&dims, self.rcond, inputs, outputs)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let new = |a: &[usize], b: &[usize], rcond, spectrum, role| {
        let fill = Fill::Matrices(Structure::General, spectrum);
        let inputs = vec![Input::new(a, fill), Input::new(b, Fill::Normal)];
        Case::new(Shortest { rcond }, inputs, role).tagged(&format!("svd {spectrum:?}"))
    };
    let mut cases = vec![
        new(&[2000, 200], &[2000, 1], None, Spectrum::Random, Role::Bench),
        new(&[200, 64, 32], &[200, 64, 4], None, Spectrum::RankDeficient, Role::Bench),
    ];
    let agree = |a: &[usize], b: &[usize], spectrum| new(a, b, None, spectrum, Role::Agree);
    for spectrum in [
        Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular, Spectrum::Repeated,
        Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::Scaled(25), Spectrum::Scaled(-25),
        Spectrum::OneBad, Spectrum::OneNan,
    ] {
        cases.push(agree(&[3, 12, 5], &[3, 12, 2], spectrum));
        cases.push(agree(&[3, 6, 13], &[3, 6, 3], spectrum));
    }
    for [m, n, p] in [
        [0, 0, 1], [3, 0, 2], [0, 3, 2], [1, 1, 1], [1, 2, 3], [7, 7, 7], [17, 16, 1], [31, 33, 5], [65, 40, 33], [20, 70, 4],
    ] {
        cases.push(agree(&[m, n], &[m, p], Spectrum::Random));
    }
    cases.push(agree(&[9, 4], &[9], Spectrum::RankDeficient));
    cases.push(agree(&[2, 3, 4, 9], &[2, 3, 4], Spectrum::Random));
    cases.push(agree(&[0, 4, 2], &[0, 4, 1], Spectrum::Random));
    cases.push(agree(&[4, 2], &[4, 0], Spectrum::Random));
    for (rcond, tag) in [(0.4, "rcond 0.4"), (1.0, "rcond 1")] {
        cases.push(new(&[3, 12, 8], &[3, 12, 2], Some(rcond), Spectrum::Random, Role::Agree).tagged(tag));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_right_hand_side_stays_in_its_column() {
        let a = Tensor::from_slice(&[2.0f32, 0.0, 0.0, 4.0], &[2, 2]).unwrap();
        let b = Tensor::from_slice(&[2.0f32, f32::NAN, 4.0, 1.0], &[2, 2]).unwrap();
        let x = lstsq_with(&a, &b, LstsqParams::auto()).unwrap().x.to_vec::<f32>().unwrap();
        assert!((x[0] - 1.0).abs() < 1e-6 && (x[2] - 1.0).abs() < 1e-6 && x[1].is_nan(), "{x:?}");
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let a = Tensor::zeros(&[3, 2], DType::F32).unwrap();
        let method = LstsqMethod::Svd { rcond: Some(-0.5) };
        let params = LstsqParams { method, ..LstsqParams::auto() };
        assert!(matches!(lstsq_with(&a, &a, params), Err(Error::Argument { argument: "rcond", .. })));
        let wrong = Tensor::zeros(&[2, 2], DType::F32).unwrap();
        assert!(matches!(lstsq_with(&a, &wrong, LstsqParams::auto()), Err(Error::Argument { argument: "b", .. })));
        let qr = LstsqParams { method: LstsqMethod::Qr, check_errors: true };
        let full = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 0.0, 0.0], &[3, 2]).unwrap();
        let mut out = lstsq_with(&full, &full, qr).unwrap();
        let missing = lstsq_with_into(&full, &full, LstsqParams::auto(), &mut out);
        assert!(matches!(missing, Err(Error::Argument { argument: "out", .. })));
    }
}
