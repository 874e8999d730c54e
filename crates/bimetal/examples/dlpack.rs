//! A C interface for `dlpack.py`: PyTorch's tensors through our kernels and back, without a copy.

use bimetal::dlpack::DLManagedTensor;
use bimetal::{Device, Gpu, Tensor, add_into};

/// Doubles the CUDA tensor of `managed` in place on our stream, after what `stream` has been given so far and before what
/// it is given later, and gives the same memory as an array of our own. Null on failure, which is printed.
///
/// # Safety
/// `managed` is a valid DLPack array of f32 that is handed over, and `stream` a CUDA stream or 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bimetal_double(managed: *mut DLManagedTensor, stream: usize) -> *mut DLManagedTensor {
    let doubled = || -> bimetal::Result<*mut DLManagedTensor> {
        let gpu = Gpu::get(Device::Cuda(0))?;
        gpu.wait_for(stream)?;
        // SAFETY: the caller's.
        let x = unsafe { Tensor::from_dlpack(managed) }?;
        // A second tensor over the same memory: one is read, the other written, element by element.
        // SAFETY: the array was just made and is handed over.
        let mut doubled = unsafe { Tensor::from_dlpack(x.to_dlpack()?) }?;
        add_into(&x, &x, &mut doubled)?;
        gpu.let_wait(stream)?;
        doubled.to_dlpack()
    };
    doubled().unwrap_or_else(|reason| {
        eprintln!("{reason}");
        std::ptr::null_mut()
    })
}

/// Bytes of the device's memory that our pools and tensors hold.
#[unsafe(no_mangle)]
pub extern "C" fn bimetal_reserved() -> u64 {
    let report = Gpu::get(Device::Cuda(0)).and_then(|gpu| {
        gpu.sync()?;
        gpu.memory_report()
    });
    report.map_or(u64::MAX, |report| report.reserved)
}
