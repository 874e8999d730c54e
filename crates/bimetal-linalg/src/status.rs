//! The status of each matrix of a batch, as LAPACK's `info`: an i32 tensor of the leading extents.
//!
//! 0 is success; [`NOT_FINITE`] marks NaN or infinity among a matrix's elements; a positive number is the operation's own:
//! the order of the first leading minor that is not positive, the first zero pivot, or 1 where
//! the iteration for values did not end. All other outputs of a matrix that failed are NaN; those of an iteration that did
//! not end on a GPU are as far as it came.

use bimetal_core::{Error, Problem, Result, Tensor};

/// A matrix with NaN or infinity among its elements.
pub(crate) const NOT_FINITE: i32 = -1;

/// An error for the first matrix whose status is not 0; `problem` names a positive status. Waits for the device.
pub(crate) fn ensure(op: &'static str, status: &Tensor, problem: fn(usize) -> Problem) -> Result<()> {
    let found = status.to_vec::<i32>()?;
    match found.iter().position(|&status| status != 0) {
        None => Ok(()),
        Some(index) => {
            let problem = if found[index] == NOT_FINITE {
                Problem::NotFinite
            } else {
                problem(found[index].unsigned_abs() as usize)
            };
            Err(Error::Matrix { op, index, problem })
        }
    }
}
