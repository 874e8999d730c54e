//! What CUDA devices can beyond running kernels: memory and streams of other libraries, and an account of their memory.

use super::Gpu;
use crate::Result;
use cubecl::server::Handle;
use std::any::Any;

/// What a device's memory holds for this process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// In tensors that are alive.
    pub in_use: u64,
    /// The most that `in_use` has been since the start or [`Gpu::reset_peak_memory`].
    pub peak: u64,
    /// Taken from the driver, tensors and what the pools keep for the next ones.
    pub reserved: u64,
    /// The most that `reserved` has been since the start or [`Gpu::reset_peak_memory`].
    pub peak_reserved: u64,
}

#[cfg(feature = "cuda")]
impl Gpu {
    fn told<T>(&self, op: &'static str, result: Result<T, bimetal_cuda::Failure>) -> Result<T> {
        result.map_err(|failure| self.failed(op, &failure))
    }

    /// A buffer over device memory that `owner` keeps alive. The address and size are multiples of 16 bytes.
    pub(crate) fn import(&self, address: u64, bytes: u64, owner: Box<dyn Any + Send>) -> Result<Handle> {
        self.told("import", bimetal_cuda::import(&self.client, address, bytes, owner))
    }

    /// The device address of a buffer.
    pub(crate) fn address(&self, handle: &Handle) -> Result<u64> {
        self.told("address", bimetal_cuda::address(&self.client, handle))
    }

    /// A buffer with a copy of one of another CUDA device; waits for both devices.
    pub(crate) fn copy_of(&self, other: &Gpu, handle: &Handle, bytes: usize) -> Result<Handle> {
        other.sync()?;
        let out = self.alloc(bytes);
        self.told("copy", bimetal_cuda::copy_from(&self.client, other.address(handle)?, &out, bytes as u64))?;
        // The source must outlive the copy, and its device does not know of it.
        self.sync()?;
        Ok(out)
    }

    /// Makes this thread's later work wait for what `stream`, a raw CUDA stream or 0 for the default one, has been given so
    /// far, without stopping the host.
    ///
    /// # Errors
    /// A device that is not CUDA's, or is lost.
    ///
    /// ```
    /// # use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     gpu.wait_for(0)?;
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn wait_for(&self, stream: usize) -> Result<()> {
        self.told("wait_for", bimetal_cuda::wait_for(&self.client, stream))
    }

    /// Makes `stream`, a raw CUDA stream or 0 for the default one, wait for what this thread has launched so far, without
    /// stopping the host.
    ///
    /// # Errors
    /// A device that is not CUDA's, or is lost.
    ///
    /// ```
    /// # use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     gpu.let_wait(0)?;
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn let_wait(&self, stream: usize) -> Result<()> {
        self.told("let_wait", bimetal_cuda::let_wait(&self.client, stream))
    }

    /// The raw CUDA stream that this thread's work runs on.
    ///
    /// # Errors
    /// A device that is not CUDA's, or is lost.
    ///
    /// ```
    /// # use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     assert_ne!(gpu.raw_stream()?, 0);
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn raw_stream(&self) -> Result<usize> {
        self.told("raw_stream", bimetal_cuda::raw_stream(&self.client).map(|stream| stream as usize))
    }

    /// What the device's memory holds for this process.
    ///
    /// # Errors
    /// A device whose runtime keeps no account, or that is lost.
    ///
    /// ```
    /// # use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     assert!(gpu.memory_report()?.reserved >= gpu.memory_report()?.in_use);
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn memory_report(&self) -> Result<MemoryReport> {
        let report = self.told("memory_report", bimetal_cuda::memory_report(&self.client))?;
        let bimetal_cuda::MemoryReport { in_use, peak, reserved, peak_reserved } = report;
        Ok(MemoryReport { in_use, peak, reserved, peak_reserved })
    }

    /// Starts new peaks in [`Gpu::memory_report`] at what is held now.
    ///
    /// # Errors
    /// As [`Gpu::memory_report`].
    ///
    /// ```
    /// # use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     gpu.reset_peak_memory()?;
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn reset_peak_memory(&self) -> Result<()> {
        self.told("reset_peak_memory", bimetal_cuda::reset_peak_memory(&self.client))
    }
}

/// The same functions where CUDA was not built in: no device can be CUDA's.
#[cfg(not(feature = "cuda"))]
#[allow(missing_docs)]
impl Gpu {
    fn without_cuda<T>(&self) -> Result<T> {
        Err(crate::Error::Unavailable {
            device: self.device.to_string(),
            reason: "built without the feature `cuda`".into(),
        })
    }

    pub(crate) fn import(&self, _address: u64, _bytes: u64, _owner: Box<dyn Any + Send>) -> Result<Handle> {
        self.without_cuda()
    }

    pub(crate) fn address(&self, _handle: &Handle) -> Result<u64> {
        self.without_cuda()
    }

    pub fn wait_for(&self, _stream: usize) -> Result<()> {
        self.without_cuda()
    }

    pub(crate) fn copy_of(&self, _other: &Gpu, _handle: &Handle, _bytes: usize) -> Result<Handle> {
        self.without_cuda()
    }

    pub fn let_wait(&self, _stream: usize) -> Result<()> {
        self.without_cuda()
    }

    pub fn raw_stream(&self) -> Result<usize> {
        self.without_cuda()
    }

    pub fn memory_report(&self) -> Result<MemoryReport> {
        self.without_cuda()
    }

    pub fn reset_peak_memory(&self) -> Result<()> {
        self.without_cuda()
    }
}
