//! The driver's primary context of a device, shared with every other CUDA library in the process.

use crate::driver::{Failure, check};
use cudarc::driver::sys::{self, CUcontext, CUdevice};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A device and its primary context, retained for the life of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub device: CUdevice,
    raw: CUcontext,
}

// SAFETY: the driver's contexts may be made current on any thread, and are never released here.
unsafe impl Send for Context {}
// SAFETY: as above; the handle itself is never written.
unsafe impl Sync for Context {}

impl Context {
    /// The context of device `index`, made on the first call.
    ///
    /// # Errors
    /// A driver that does not start, or has no such device.
    pub fn of(index: u16) -> Result<Self, Failure> {
        static CONTEXTS: OnceLock<Mutex<HashMap<u16, Context>>> = OnceLock::new();
        initialise()?;
        let mut contexts = CONTEXTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(&index) {
            return Ok(*context);
        }
        let mut device = 0;
        let mut raw = std::ptr::null_mut();
        // SAFETY: both calls write their result through a pointer to a local.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, i32::from(index)))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut raw, device))?;
        }
        let context = Self { device, raw };
        contexts.insert(index, context);
        Ok(context)
    }

    /// Makes the context current on the calling thread.
    ///
    /// # Errors
    /// A context that was lost.
    pub fn enter(&self) -> Result<(), Failure> {
        // SAFETY: the context was retained and is never released.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// A device attribute, or 0 where the driver does not know it.
    pub fn attribute(&self, attribute: sys::CUdevice_attribute) -> i32 {
        let mut value = 0;
        // SAFETY: the driver writes one integer.
        let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
        if status == sys::CUresult::CUDA_SUCCESS { value } else { 0 }
    }
}

/// Starts the driver once for the process.
///
/// # Errors
/// No libcuda, or a driver that refuses.
pub(crate) fn initialise() -> Result<(), Failure> {
    static STARTED: OnceLock<Result<(), Failure>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // SAFETY: this only looks for the library.
            if !unsafe { sys::is_culib_present() } {
                return Err(Failure::new("loading libcuda", "no NVIDIA driver is installed"));
            }
            // SAFETY: the call has no preconditions.
            check("cuInit", unsafe { sys::cuInit(0) })
        })
        .clone()
}
