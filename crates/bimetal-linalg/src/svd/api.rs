//! The functions of this family, and their options and results.

use super::{Decomposition, Kind};
use crate::status;
use bimetal_core::op::{self, Op};
use bimetal_core::{Problem, Result, Tensor};

/// Options of [`svd_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvdParams {
    /// U and V are square, completed by orthonormal vectors; otherwise they have `min(m, n)` columns.
    pub full_matrices: bool,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl SvdParams {
    /// Thin matrices, with errors.
    pub const fn auto() -> Self {
        Self { full_matrices: false, check_errors: true }
    }
}

impl Default for SvdParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// Singular values and vectors.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[…, m, k]`, or `[…, m, m]` if full: the left singular vectors as columns.
    pub u: Tensor,
    /// `[…, k]`, `k = min(m, n)`: the singular values, descending and not negative.
    pub s: Tensor,
    /// `[…, k, n]`, or `[…, n, n]` if full: the right singular vectors as rows.
    pub vh: Tensor,
    /// `[…]`, i32: 0 for success, −1 for NaN or infinity, positive if the iteration did not end. All else of a matrix that
    /// failed is NaN.
    pub status: Tensor,
}

/// The singular value decomposition of matrices `[…, m, n]`, thin (LAPACK's `gesdd` with `jobz = 'S'`): `A = U·diag(s)·Vᴴ`.
///
/// f32, f64, f16 and bf16; 16-bit matrices are decomposed in f32. U and V are orthonormal whatever the rank. The method does
/// not square the condition number.
///
/// # Errors
/// A vector or scalar, another dtype, or a matrix with NaN or infinity, which is named by its index.
///
/// ```
/// # use bimetal_linalg::svd;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[0.0f32, 2.0, 0.0, -3.0, 0.0, 0.0], &[2, 3])?;
/// let svd = svd(&a)?;
/// let s = svd.s.to_vec::<f32>()?;
/// assert!((s[0] - 3.0).abs() < 1e-6 && (s[1] - 2.0).abs() < 1e-6);
/// assert_eq!((svd.u.shape().dims(), svd.vh.shape().dims()), (&[2, 2][..], &[2, 3][..]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd(a: &Tensor) -> Result<Svd> {
    svd_with(a, SvdParams::auto())
}

/// [`svd`] with square U and V, or without waiting for the device: see [`SvdParams`].
///
/// # Errors
/// As [`svd`]; no error for a matrix unless errors are checked.
///
/// ```
/// # use bimetal_linalg::{SvdParams, svd_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 4.0], &[2, 1])?;
/// let svd = svd_with(&a, SvdParams { full_matrices: true, ..SvdParams::auto() })?;
/// assert_eq!(svd.u.shape().dims(), [2, 2]);
/// assert!((svd.s.to_vec::<f32>()?[0] - 5.0).abs() < 1e-5);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_with(a: &Tensor, params: SvdParams) -> Result<Svd> {
    let op = Decomposition { kind: Kind::Svd, full: params.full_matrices };
    let mut made = op::run(&op, &[a])?.into_iter();
    let (Some(u), Some(s), Some(vh), Some(status)) = (made.next(), made.next(), made.next(), made.next()) else {
        unreachable!("four outputs")
    };
    checked(&op, params.check_errors, &status)?;
    Ok(Svd { u, s, vh, status })
}

/// [`svd_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`svd_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{Svd, SvdParams, svd_into};
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[-5.0f32], &[1, 1])?;
/// let one = || Tensor::zeros(&[1, 1], DType::F32);
/// let mut out =
///     Svd { u: one()?, s: Tensor::zeros(&[1], DType::F32)?, vh: one()?, status: Tensor::zeros(&[], DType::I32)? };
/// svd_into(&a, SvdParams::auto(), &mut out)?;
/// assert_eq!(out.s.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_into(a: &Tensor, params: SvdParams, out: &mut Svd) -> Result<()> {
    let op = Decomposition { kind: Kind::Svd, full: params.full_matrices };
    op::run_into(&op, &[a], &mut [&mut out.u, &mut out.s, &mut out.vh, &mut out.status])?;
    checked(&op, params.check_errors, &out.status)
}

/// The singular values of matrices `[…, m, n]`, descending, `[…, min(m, n)]`: [`svd`] without the vectors, for
/// f32, f16 and bf16.
///
/// # Errors
/// As [`svd`].
///
/// ```
/// # use bimetal_linalg::svdvals;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 0.0, 4.0, 0.0], &[2, 2])?;
/// let s = svdvals(&a)?.to_vec::<f32>()?;
/// assert!((s[0] - 5.0).abs() < 1e-5 && s[1].abs() < 1e-5);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svdvals(a: &Tensor) -> Result<Tensor> {
    let op = Decomposition { kind: Kind::Svdvals, full: false };
    let mut made = op::run(&op, &[a])?.into_iter();
    let (Some(s), Some(status)) = (made.next(), made.next()) else { unreachable!("two outputs") };
    checked(&op, true, &status)?;
    Ok(s)
}

/// [`svdvals`] into existing tensors on the input's device; the status, as in [`Svd`], is not checked, so that nothing waits.
///
/// # Errors
/// As [`svd_with`] without checks, or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::svdvals_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[-5.0f32], &[1, 1])?;
/// let (mut s, mut status) = (Tensor::zeros(&[1], DType::F32)?, Tensor::zeros(&[], DType::I32)?);
/// svdvals_into(&a, &mut s, &mut status)?;
/// assert_eq!((s.to_vec::<f32>()?, status.to_vec::<i32>()?), (vec![5.0], vec![0]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svdvals_into(a: &Tensor, s: &mut Tensor, status: &mut Tensor) -> Result<()> {
    op::run_into(&Decomposition { kind: Kind::Svdvals, full: false }, &[a], &mut [s, status])
}

fn checked(op: &Decomposition, check: bool, status: &Tensor) -> Result<()> {
    if !check {
        return Ok(());
    }
    status::ensure(op.name(), status, |unconverged| Problem::NoConvergence { unconverged })
}
