//! The one error type: it names the operation, the argument and what was expected.

use crate::DType;

/// Shorthand for results of bimetal's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was refused or failed. No output was written when an input is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape, axis, attribute or value that the operation does not accept.
    #[error("{op}: argument `{argument}`: expected {expected}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What would have been accepted, and what was given.
        expected: String,
    },
    /// An element type that the operation does not accept.
    #[error("{op}: argument `{argument}`: dtype {got} is not one of {accepted:?}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The dtype that was given.
        got: DType,
        /// The accepted dtypes.
        accepted: Vec<DType>,
    },
    /// A tensor that lives on another device than the operation runs on.
    #[error("{op}: argument `{argument}` lives on {got}, expected {expected}")]
    Device {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// Where the argument lives.
        got: String,
        /// Where it should live.
        expected: String,
    },
    /// A device that this machine, driver or build does not have, or a feature that the device lacks.
    #[error("device `{device}` is not available: {reason}")]
    Unavailable {
        /// The device's name as given.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// A device that refused or failed a launch, an allocation or a transfer.
    #[error("{op}: {device} failed: {reason}")]
    Runtime {
        /// The operation.
        op: &'static str,
        /// The device.
        device: String,
        /// The driver's words.
        reason: String,
    },
    /// A matrix that the operation is not defined for. In a batch the others are not disturbed.
    #[error("{op}: matrix {index} of the batch {problem}")]
    Matrix {
        /// The operation.
        op: &'static str,
        /// Which matrix of the batch, in row-major order; the first that is at fault.
        index: usize,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A file that is truncated, malformed or holds something that is not supported.
    #[error("{format} file: {reason}")]
    Format {
        /// The file format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An input or output failure of the operating system.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Argument`]; `expected` says what was expected and what was given.
    pub fn argument(op: &'static str, argument: &'static str, expected: impl Into<String>) -> Self {
        Self::Argument { op, argument, expected: expected.into() }
    }

    /// An [`Error::DType`].
    pub fn dtype(op: &'static str, argument: &'static str, got: DType, accepted: &[DType]) -> Self {
        Self::DType { op, argument, got, accepted: accepted.to_vec() }
    }
}

/// Why an operation is not defined for a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// NaN or infinity among the elements.
    #[error("holds NaN or infinity")]
    NotFinite,
    /// A leading minor that is not positive.
    #[error("is not positive definite: the leading minor of order {order} is not")]
    NotPositiveDefinite {
        /// The order of the first such minor, from 1.
        order: usize,
    },
    /// A pivot that is exactly zero.
    #[error("is singular: pivot {pivot} is zero")]
    Singular {
        /// The first such pivot, from 1.
        pivot: usize,
    },
    /// An iteration that did not end within its limit.
    #[error("did not converge: {unconverged} values are left")]
    NoConvergence {
        /// Values that were not found.
        unconverged: usize,
    },
}
