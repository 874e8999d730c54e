//! Calls into CUDA libraries as pieces of work in a client's order.
//!
//! A call is handed to the server the way a kernel is, so it runs on the device thread after what was launched before it,
//! with the addresses of its buffers and the stream that its work must go to. Nothing waits for the device.

use crate::context::Context;
use crate::driver::Failure;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::{BufferBinding, KernelArguments};
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{BufferIOAttr, KernelDefinition, KernelMetadata};
use cudarc::driver::sys::CUstream;
use std::any::Any;
use std::sync::Mutex;

/// What a call works with.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// The stream that the work must go to.
    pub stream: CUstream,
    /// The device addresses of the call's buffers, in their order.
    pub addresses: &'a [u64],
    pub(crate) server: ServerParts<'a>,
}

/// What calls of this crate may reach of the server.
pub(crate) struct ServerParts<'a> {
    pub memory: &'a mut crate::memory::Memory,
    pub stream: usize,
    pub context: Context,
    pub spare: &'a std::sync::Arc<crate::stream::Spare>,
}

impl std::fmt::Debug for ServerParts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerParts").field("stream", &self.stream).finish_non_exhaustive()
    }
}

type Work = Box<dyn FnOnce(&mut Arguments) -> Result<(), Failure> + Send>;

/// Work in a kernel's place.
pub(crate) struct Call {
    work: Mutex<Option<Work>>,
}

impl Call {
    /// The call that `kernel` carries, or the kernel.
    pub fn from_kernel(kernel: Box<dyn CubeKernel>) -> Result<Work, Box<dyn CubeKernel>> {
        let any: &dyn Any = &*kernel;
        let Some(call) = any.downcast_ref::<Self>() else { return Err(kernel) };
        let work = call.work.lock().unwrap_or_else(|e| e.into_inner()).take();
        work.ok_or(kernel)
    }
}

impl KernelMetadata for Call {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
    }

    fn address_type(&self) -> ElemType {
        ElemType::Index
    }
}

impl CubeKernel for Call {
    fn define(&self) -> KernelDefinition {
        unreachable!("a call is run by its server and has no definition")
    }
}

/// Enqueues `work` on `client`'s stream of this thread. It reads and writes `buffers` as declared; a failure is reported by
/// the next read of what it was to write, and by the next synchronisation.
///
/// # Errors
/// A client of another runtime, which could not run it.
pub fn call(
    client: &Client,
    buffers: Vec<(BufferBinding, BufferIOAttr)>,
    work: impl FnOnce(&mut Arguments) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    if client.service_id().service != std::any::TypeId::of::<crate::CudaServer>() {
        return Err(Failure::new("call", format!("the client is of the runtime {}", client.name())));
    }
    let mut arguments = KernelArguments::new();
    for (buffer, io) in buffers {
        arguments = arguments.with_buffer_io(buffer, io);
    }
    let call = Call { work: Mutex::new(Some(Box::new(work))) };
    client.launch(Box::new(call), CubeCount::new_single(), arguments);
    Ok(())
}

/// Waits until the device thread has enqueued everything launched so far from this thread; not for the device.
///
/// # Errors
/// A lost device.
pub fn wait(client: &Client) -> Result<(), Failure> {
    client.flush().map_err(|e| Failure::new("flush", e.to_string()))
}
