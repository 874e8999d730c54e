//! Status codes of the CUDA driver as errors.

use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::poison::DevicePoison;
use cubecl_runtime::server::{IoError, LaunchError, ServerError};
use cudarc::driver::sys::{CUresult, cuGetErrorName, cuGetErrorString};
use std::ffi::{CStr, c_char};

/// A driver or library call that failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{call} failed: {reason}")]
pub struct Failure {
    /// The entry point, as its documentation names it.
    pub call: &'static str,
    /// The status in words.
    pub reason: String,
    /// Whether the device's context is lost: every later call on it fails too, until the process ends.
    pub fatal: bool,
    /// Whether the device had no memory left.
    pub out_of_memory: bool,
}

impl Failure {
    /// A failure that leaves the device as it was.
    pub fn new(call: &'static str, reason: impl Into<String>) -> Self {
        Self { call, reason: reason.into(), fatal: false, out_of_memory: false }
    }
}

/// Statuses after which a context is unusable.
fn is_fatal(status: CUresult) -> bool {
    use CUresult::*;
    matches!(
        status,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_UNKNOWN
    )
}

/// Turns a driver status into a result.
pub(crate) fn check(call: &'static str, status: CUresult) -> Result<(), Failure> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Failure {
        call,
        reason: describe(status),
        fatal: is_fatal(status),
        out_of_memory: status == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    })
}

/// The driver's name and sentence for a status.
fn describe(status: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut found = std::ptr::null();
        // SAFETY: the driver writes a pointer to a static string, or leaves null for a status it does not know.
        unsafe {
            let known = get(status, &mut found) == CUresult::CUDA_SUCCESS && !found.is_null();
            known.then(|| CStr::from_ptr(found).to_string_lossy().into_owned())
        }
    };
    match (text(cuGetErrorName), text(cuGetErrorString)) {
        (Some(name), Some(sentence)) => format!("{name} ({sentence})"),
        _ => format!("status {}", status as u32),
    }
}

impl From<Failure> for ServerError {
    fn from(failure: Failure) -> Self {
        if failure.fatal {
            return DevicePoison::new(failure.to_string()).into();
        }
        Self::Generic { reason: failure.to_string(), backtrace: BackTrace::capture() }
    }
}

impl From<Failure> for IoError {
    fn from(failure: Failure) -> Self {
        if failure.fatal {
            return DevicePoison::new(failure.to_string()).into();
        }
        Self::Unknown { description: failure.to_string(), backtrace: BackTrace::capture() }
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        if failure.fatal {
            return DevicePoison::new(failure.to_string()).into();
        }
        if failure.out_of_memory {
            return Self::OutOfMemory { reason: failure.to_string(), backtrace: BackTrace::capture() };
        }
        Self::Unknown { reason: failure.to_string(), backtrace: BackTrace::capture() }
    }
}

impl From<Failure> for CompilationError {
    fn from(failure: Failure) -> Self {
        if failure.fatal {
            return DevicePoison::new(failure.to_string()).into();
        }
        Self::Generic { reason: failure.to_string(), backtrace: BackTrace::capture() }
    }
}
