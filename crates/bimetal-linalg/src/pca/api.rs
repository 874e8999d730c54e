//! The functions of this family, and their options and results.

use super::Analysis;
use crate::status;
use bimetal_core::op::{self, Op};
use bimetal_core::{Problem, Result, Tensor};

/// How [`pca_with`] decomposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcaMethod {
    /// The whole singular value decomposition.
    Full,
    /// A random sketch, as [`svd_truncated`](crate::svd_truncated()).
    Randomized {
        /// Columns of the sketch beyond the components.
        oversampling: usize,
        /// Times that the sketch is multiplied by the matrix and its transpose.
        power_iterations: usize,
        /// Key of the random numbers.
        seed: u64,
    },
}

impl PcaMethod {
    /// A sketch of ten columns more with four iterations, as scikit-learn has.
    pub const fn randomized() -> Self {
        Self::Randomized { oversampling: 10, power_iterations: 4, seed: 0 }
    }
}

/// Options of [`pca_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcaParams {
    /// How it is decomposed.
    pub method: PcaMethod,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl PcaParams {
    /// The whole decomposition, with errors.
    pub const fn auto() -> Self {
        Self { method: PcaMethod::Full, check_errors: true }
    }
}

impl Default for PcaParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// Principal components of samples in the rows of `[…, m, n]`.
#[derive(Clone, Debug)]
pub struct Pca {
    /// `[…, k, n]`: orthonormal rows, by falling variance; of each the element of largest magnitude is positive.
    pub components: Tensor,
    /// `[…, k]`: the samples' variance along each, `σ²/(m − 1)`.
    pub explained_variance: Tensor,
    /// `[…, k]`: its part of the variance along all; 0 for samples that are all the same.
    pub explained_variance_ratio: Tensor,
    /// `[…, n]`: the samples' mean.
    pub mean: Tensor,
    /// `[…, k]`: the singular values of the samples less their mean.
    pub singular_values: Tensor,
    /// i32, the leading extents: 0 for success, −1 for NaN or infinity, positive if the iteration for singular values did not
    /// end. All else of a matrix that failed is NaN.
    pub status: Tensor,
}

/// The first `components` principal components of samples in the rows of `[…, m, n]`, as scikit-learn's `PCA`.
///
/// f32, f64, f16 and bf16; 16-bit types are computed in f32. The signs are those of scikit-learn (its `svd_flip` by the
/// rows of V, since version 1.5), so that the result does not depend on a device's choice.
///
/// # Errors
/// A vector or scalar, another dtype, fewer than two samples, more components than `min(m, n)`, or NaN or infinity among the
/// samples of a matrix, which is named by its index.
///
/// ```
/// # use bimetal_linalg::pca;
/// # use bimetal_core::Tensor;
/// // Along (1, −2)/√5 from (1, 1), by −1, 0 and 1.
/// let x = Tensor::from_slice(&[0.0f64, 3.0, 1.0, 1.0, 2.0, -1.0], &[3, 2])?;
/// let made = pca(&x, 1)?;
/// let axis = made.components.to_vec::<f64>()?;
/// assert!((axis[0] + 0.2f64.sqrt()).abs() < 1e-14 && (axis[1] - 0.8f64.sqrt()).abs() < 1e-14);
/// assert!((made.explained_variance.to_vec::<f64>()?[0] - 5.0).abs() < 1e-13);
/// assert_eq!(made.mean.to_vec::<f64>()?, [1.0, 1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pca(x: &Tensor, components: usize) -> Result<Pca> {
    pca_with(x, components, PcaParams::auto())
}

/// [`pca`] by a sketch, or without waiting for the device: see [`PcaParams`].
///
/// # Errors
/// As [`pca`]; no error for a matrix unless errors are checked.
///
/// ```
/// # use bimetal_linalg::{PcaMethod, PcaParams, pca_with};
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[0.0f64, 3.0, 1.0, 1.0, 2.0, -1.0], &[3, 2])?;
/// let params = PcaParams { method: PcaMethod::randomized(), ..PcaParams::auto() };
/// let ratio = pca_with(&x, 1, params)?.explained_variance_ratio.to_vec::<f64>()?;
/// assert!((ratio[0] - 1.0).abs() < 1e-14);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pca_with(x: &Tensor, components: usize, params: PcaParams) -> Result<Pca> {
    let op = Analysis { components, method: params.method };
    let mut made = op::run(&op, &[x])?.into_iter();
    let mut next = || made.next().expect("there are six outputs");
    let made = Pca {
        components: next(),
        explained_variance: next(),
        explained_variance_ratio: next(),
        mean: next(),
        singular_values: next(),
        status: next(),
    };
    ensure(&op, params, &made.status)?;
    Ok(made)
}

/// [`pca_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`pca_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{PcaParams, pca, pca_into};
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 3.0], &[2, 1])?;
/// let mut out = pca(&x, 1)?;
/// pca_into(&x, 1, PcaParams::auto(), &mut out)?;
/// assert_eq!(out.mean.to_vec::<f32>()?, [2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pca_into(x: &Tensor, components: usize, params: PcaParams, out: &mut Pca) -> Result<()> {
    let op = Analysis { components, method: params.method };
    let [rows, variance, ratio] =
        [&mut out.components, &mut out.explained_variance, &mut out.explained_variance_ratio];
    let outputs = &mut [rows, variance, ratio, &mut out.mean, &mut out.singular_values, &mut out.status];
    op::run_into(&op, &[x], outputs)?;
    ensure(&op, params, &out.status)
}

fn ensure(op: &Analysis, params: PcaParams, found: &Tensor) -> Result<()> {
    match params.check_errors {
        true => status::ensure(op.name(), found, |unconverged| Problem::NoConvergence { unconverged }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::{DType, Error};

    #[test]
    fn wrong_arguments_are_refused() {
        let x = Tensor::zeros(&[3, 2], DType::F32).unwrap();
        assert!(matches!(pca(&x, 3), Err(Error::Argument { argument: "components", .. })));
        let one = Tensor::zeros(&[1, 2], DType::F32).unwrap();
        assert!(matches!(pca(&one, 1), Err(Error::Argument { argument: "x", .. })));
        assert!(matches!(pca(&Tensor::zeros(&[3], DType::F32).unwrap(), 1), Err(Error::Argument { argument: "x", .. })));
        assert!(matches!(pca(&Tensor::zeros(&[3, 2], DType::U8).unwrap(), 1), Err(Error::DType { .. })));
        let bad = Tensor::from_slice(&[f32::NAN, 1.0], &[2, 1]).unwrap();
        assert!(matches!(pca(&bad, 1), Err(Error::Matrix { index: 0, problem: Problem::NotFinite, .. })));
    }
}
