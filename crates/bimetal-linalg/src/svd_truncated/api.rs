//! The functions of this family, and their options and results.

use super::Decomposition;
use crate::status;
use bimetal_core::op::{self, Op};
use bimetal_core::{Problem, Result, Tensor};

/// Options of [`svd_truncated_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SvdTruncatedParams {
    /// Columns of the sketch beyond the rank.
    pub oversampling: usize,
    /// Times that the sketch is multiplied by `A·Aᵀ`, with QR before and after each product: for singular values that fall
    /// slowly.
    pub power_iterations: usize,
    /// Key of the random numbers, which are the same on every device.
    pub seed: u64,
    /// Random vectors that measure the error, 1 to 256: the more, the closer the bound.
    pub probes: usize,
    /// Probability, for each matrix, with which the error may exceed its bound: 10⁻³⁰ or more, and less than 1.
    pub failure: f64,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl SvdTruncatedParams {
    /// Ten columns more and two iterations; the bound, 2.4 times the largest of 16 probes, holds but once in a million.
    pub const fn auto() -> Self {
        Self { oversampling: 10, power_iterations: 2, seed: 0, probes: 16, failure: 1e-6, check_errors: true }
    }

    /// What the longest of the probes is multiplied with.
    pub(super) fn factor(&self) -> f64 {
        self.failure.powf(-1.0 / self.probes as f64)
    }
}

impl Default for SvdTruncatedParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// The first singular values and vectors, `A ≈ U·diag(s)·Vᴴ`.
#[derive(Clone, Debug)]
pub struct SvdTruncated {
    /// `[…, m, k]`: left singular vectors as columns, orthonormal.
    pub u: Tensor,
    /// `[…, k]`: singular values, descending and not negative.
    pub s: Tensor,
    /// `[…, k, n]`: right singular vectors as rows, orthonormal.
    pub vh: Tensor,
    /// The leading extents, f64 for f64 and else f32: a bound of `‖A − U·diag(s)·Vᴴ‖₂`, see [`svd_truncated`].
    pub error: Tensor,
    /// i32, the leading extents: 0 for success, −1 for NaN or infinity (or products with the sketch that overflow), positive if
    /// the iteration for singular values did not end. All else of a matrix that failed is NaN.
    pub status: Tensor,
}

/// The first `rank` singular values and vectors of matrices `[…, m, n]` by a random sketch, for a fraction of the work of
/// [`svd`](crate::svd()): the range of `(A·Aᵀ)^q·A·Ω`, and the decomposition of `A` within it (Halko, Martinsson and Tropp,
/// *Finding structure with randomness*, 2011, algorithms 4.4 and 5.1). Values are at most those of `A`; with `σ` falling fast
/// they are as good as those of `svd`, with `σ` falling slowly the error is within a small factor of the best, `σ_{rank+1}`.
///
/// The error comes with a bound that does not rest on such assumptions: random vectors `ω`, independent of the sketch, are
/// sent through `A − U·Σ·Vᵀ` (as it is returned, after rounding). Their elements are sums of eight uniform numbers, so that
/// the density of `⟨v, ω⟩` is at most ½ for every unit vector `v` (Ball's theorem on slices of the cube), and therefore
/// `‖A − U·Σ·Vᵀ‖₂ ≤ α·max‖(A − U·Σ·Vᵀ)·ω‖` except with probability `α⁻ʳ` for `r` probes, as in their lemma 4.1 for normal
/// numbers. By [`SvdTruncatedParams::failure`] that is 10⁻⁶; the rounding of the probes' products,
/// `4·√min(m, n)·ε·‖A‖₂`, is added.
///
/// f32, f64, f16 and bf16; 16-bit matrices are decomposed in f32. Deterministic: the same seed gives the same sketch on
/// every device, and each matrix of a batch is treated as if it were alone.
///
/// # Errors
/// A vector or scalar, another dtype, a rank above `min(m, n)`, or a matrix with NaN or infinity, which is named by its
/// index.
///
/// ```
/// # use bimetal_linalg::svd_truncated;
/// # use bimetal_core::Tensor;
/// let a: Vec<f64> = (0..60).map(|i| ((i / 6) * (i % 6)) as f64).collect();
/// let made = svd_truncated(&Tensor::from_slice(&a, &[10, 6])?, 1)?;
/// // (0, …, 9)·(0, …, 5)ᵀ has the one singular value √285·√55.
/// assert!((made.s.to_vec::<f64>()?[0] - (285.0f64 * 55.0).sqrt()).abs() < 1e-10);
/// assert!(made.error.to_vec::<f64>()?[0] < 1e-10);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_truncated(a: &Tensor, rank: usize) -> Result<SvdTruncated> {
    svd_truncated_with(a, rank, SvdTruncatedParams::auto())
}

/// [`svd_truncated`] with another sketch, another bound, or without waiting for the device: see [`SvdTruncatedParams`].
///
/// # Errors
/// As [`svd_truncated`], probes not from 1 to 256, or a probability that is not from 10⁻³⁰ to below 1; no error for a matrix unless
/// errors are checked.
///
/// ```
/// # use bimetal_linalg::{SvdTruncatedParams, svd_truncated_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 0.0, 2.0, 0.0], &[2, 3])?;
/// let params = SvdTruncatedParams { oversampling: 1, seed: 42, ..SvdTruncatedParams::auto() };
/// let made = svd_truncated_with(&a, 1, params)?;
/// assert!((made.s.to_vec::<f32>()?[0] - 3.0).abs() < 1e-5);
/// assert!(made.error.to_vec::<f32>()?[0] >= 2.0);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_truncated_with(a: &Tensor, rank: usize, params: SvdTruncatedParams) -> Result<SvdTruncated> {
    let op = Decomposition { rank, params };
    let mut made = op::run(&op, &[a])?.into_iter();
    let mut next = || made.next().expect("there are five outputs");
    let made = SvdTruncated { u: next(), s: next(), vh: next(), error: next(), status: next() };
    ensure(&op, &made.status)?;
    Ok(made)
}

/// [`svd_truncated_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`svd_truncated_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{SvdTruncatedParams, svd_truncated, svd_truncated_into};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 4.0], &[2, 1])?;
/// let mut out = svd_truncated(&a, 1)?;
/// svd_truncated_into(&a, 1, SvdTruncatedParams::auto(), &mut out)?;
/// assert!((out.s.to_vec::<f32>()?[0] - 5.0).abs() < 1e-5);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_truncated_into(a: &Tensor, rank: usize, params: SvdTruncatedParams, out: &mut SvdTruncated) -> Result<()> {
    let op = Decomposition { rank, params };
    let outputs = &mut [&mut out.u, &mut out.s, &mut out.vh, &mut out.error, &mut out.status];
    op::run_into(&op, &[a], outputs)?;
    ensure(&op, &out.status)
}

fn ensure(op: &Decomposition, found: &Tensor) -> Result<()> {
    match op.params.check_errors {
        true => status::ensure(op.name(), found, |unconverged| Problem::NoConvergence { unconverged }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::{DType, Error};

    #[test]
    fn a_matrix_of_a_batch_is_treated_as_if_alone() {
        let values: Vec<f64> = (0..3 * 12 * 9).map(|i| ((i * 37 % 101) as f64).sqrt()).collect();
        let a = Tensor::from_slice(&values, &[3, 12, 9]).unwrap();
        let all = svd_truncated(&a, 3).unwrap().s.to_vec::<f64>().unwrap();
        let one = svd_truncated(&a.slice(1..2).unwrap(), 3).unwrap().s.to_vec::<f64>().unwrap();
        assert!(one.iter().zip(&all[3..6]).all(|(a, b)| (a - b).abs() < 1e-12 * b), "{one:?} {all:?}");
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let a = Tensor::zeros(&[3, 2], DType::F32).unwrap();
        let auto = SvdTruncatedParams::auto();
        assert!(matches!(svd_truncated(&a, 3), Err(Error::Argument { argument: "rank", .. })));
        for probes in [0, 257] {
            let params = SvdTruncatedParams { probes, ..auto };
            assert!(matches!(svd_truncated_with(&a, 1, params), Err(Error::Argument { argument: "probes", .. })));
        }
        for failure in [0.0, 1e-31, 1.0, f64::NAN] {
            let params = SvdTruncatedParams { failure, ..auto };
            assert!(matches!(svd_truncated_with(&a, 1, params), Err(Error::Argument { argument: "failure", .. })));
        }
        let vector = Tensor::zeros(&[3], DType::F32).unwrap();
        assert!(matches!(svd_truncated(&vector, 1), Err(Error::Argument { argument: "a", .. })));
        let bad = Tensor::from_slice(&[f32::NAN, 1.0], &[1, 2]).unwrap();
        assert!(matches!(svd_truncated(&bad, 1), Err(Error::Matrix { index: 0, problem: Problem::NotFinite, .. })));
    }
}
