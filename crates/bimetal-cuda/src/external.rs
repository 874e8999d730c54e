//! Memory and streams of others: PyTorch's, or any library's that speaks DLPack or CUDA.

use crate::call::{call, wait};
use crate::driver::{Failure, check};
use crate::memory::MemoryReport;
use crate::stream::Event;
use cubecl::client::Client;
use cubecl::server::Handle;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::kernel::BufferIOAttr;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cudarc::driver::sys::{self, CUstream};
use std::any::Any;

/// Kernels read and write vectors of this many bytes: memory from outside must start and end on one.
pub const VECTOR: u64 = 16;

/// A handle of `bytes` bytes at the device address `address`, which `owner` keeps alive: it is dropped some time after the
/// last use of the handle, on the device thread, when the work launched by then has run.
///
/// # Errors
/// Memory whose start or size is not a multiple of [`VECTOR`] bytes, or that is not the device's.
pub fn import(client: &Client, address: u64, bytes: u64, owner: Box<dyn Any + Send>) -> Result<Handle, Failure> {
    if !address.is_multiple_of(VECTOR) || !bytes.is_multiple_of(VECTOR) {
        let reason = format!("{bytes} bytes at {address:#x}: start and size must be multiples of {VECTOR} bytes");
        return Err(Failure::new("import", reason));
    }
    let memory = ManagedMemoryHandle::new();
    let handle = Handle::from_memory(memory.clone(), client.service_id(), StreamId::current(), bytes);
    call(client, Vec::new(), move |arguments| {
        arguments.server.memory.adopt(memory, address, bytes, arguments.server.stream, owner);
        Ok(())
    })?;
    Ok(handle)
}

/// The device address of a handle's memory.
///
/// # Errors
/// Memory that was never allocated, or whose writer failed; a client of another runtime.
pub fn address(client: &Client, handle: &Handle) -> Result<u64, Failure> {
    let resource = client.get_resource::<crate::CudaServer>(handle.clone());
    resource.map(|r| *r.resource()).map_err(|e| Failure::new("address", e.to_string()))
}

/// Copies `bytes` bytes from `address`, which may be another device's memory, to the start of `out`, in this thread's order:
/// directly where the devices reach each other's memory, else as the driver sees fit. What is at the address must be
/// there already and stay until the copy has run.
///
/// # Errors
/// A client of another runtime. A copy that fails is reported by the next read of `out`.
pub fn copy_from(client: &Client, address: u64, out: &Handle, bytes: u64) -> Result<(), Failure> {
    call(client, vec![(out.clone().binding(), BufferIOAttr::WriteOnly)], move |arguments| {
        let to = arguments.addresses[0];
        // SAFETY: the caller vouches for the source; the buffer has at least `bytes` bytes.
        let status = unsafe { sys::cuMemcpyAsync(to, address, bytes as usize, arguments.stream) };
        check("cuMemcpyAsync", status)
    })
}

/// Makes this thread's later work wait for what `stream`, a raw handle or 0 for the default stream, has been given so far.
/// The host does not wait for the device.
///
/// # Errors
/// A client of another runtime.
pub fn wait_for(client: &Client, stream: usize) -> Result<(), Failure> {
    call(client, Vec::new(), move |arguments| {
        let event = Event::record(arguments.server.context, arguments.server.spare, stream as CUstream)?;
        event.wait_on(arguments.stream)
    })?;
    // The other stream's order is read now, not when the device thread comes to it.
    wait(client)
}

/// Makes `stream`, a raw handle or 0 for the default stream, wait for what this thread has launched so far. The host does
/// not wait for the device.
///
/// # Errors
/// A client of another runtime.
pub fn let_wait(client: &Client, stream: usize) -> Result<(), Failure> {
    call(client, Vec::new(), move |arguments| {
        let event = Event::record(arguments.server.context, arguments.server.spare, arguments.stream)?;
        event.wait_on(stream as CUstream)
    })?;
    wait(client)
}

/// What the device's memory holds for this process.
///
/// # Errors
/// A client of another runtime, or a lost device.
pub fn memory_report(client: &Client) -> Result<MemoryReport, Failure> {
    ask(client, |arguments| {
        arguments.server.memory.search();
        arguments.server.memory.report()
    })
}

/// Starts new peaks in [`memory_report`] at what is held now.
///
/// # Errors
/// A client of another runtime, or a lost device.
pub fn reset_peak_memory(client: &Client) -> Result<(), Failure> {
    ask(client, |arguments| {
        arguments.server.memory.search();
        arguments.server.memory.reset_peak();
    })
}

/// Free and total memory of the device in bytes, as the driver counts them.
///
/// # Errors
/// A client of another runtime, or a lost device.
pub fn free_memory(client: &Client) -> Result<(u64, u64), Failure> {
    ask(client, |_| {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two locals.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    })?
}

/// What `question` answers on the device thread.
fn ask<T: Send + 'static>(
    client: &Client,
    question: impl FnOnce(&mut crate::Arguments) -> T + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = std::sync::mpsc::channel();
    call(client, Vec::new(), move |arguments| {
        // The receiver only goes when its thread does.
        let _ = sender.send(question(arguments));
        Ok(())
    })?;
    wait(client)?;
    receiver.recv().map_err(|_| Failure::new("call", "the device thread is gone"))
}
