//! A CUDA runtime for CubeCL.
//!
//! CubeCL's client talks to a server that owns the device; this crate is that server for NVIDIA GPUs, written for what
//! bimetal needs: kernels compiled by NVRTC and kept on disk, one stream for each client thread whose raw handle is
//! available, memory pools that are ordered by their stream, CUDA graphs, memory that someone else allocated, and calls
//! into NVIDIA's libraries between kernels without a host synchronisation.
//!
//! Nothing of CUDA is needed to build. At run time the driver is needed; NVRTC and the CUDA headers only for a kernel that
//! is not in the disk cache yet.

mod cache;
mod call;
pub mod collective;
mod compile;
mod context;
mod device;
mod driver;
mod element;
mod external;
pub mod gemm;
mod graph;
mod launch;
mod library;
mod memory;
mod server;
mod service;
mod stream;

pub use call::{Arguments, call, wait};
pub use device::{Found, found};
pub use driver::Failure;
pub use external::{
    VECTOR, address, copy_from, free_memory, import, let_wait, memory_report, reset_peak_memory, wait_for,
};
pub use memory::MemoryReport;
pub use server::CudaServer;
pub use stream::raw_stream;

use cubecl::client::Client;
use cubecl_common::device::DeviceId;

/// CubeCL keeps servers apart by their type and device, so any number serves.
const DEVICE_TYPE: u16 = 0;

/// A client of CUDA device `index`; its server starts with the first client.
///
/// # Errors
/// No driver, no such device, or a context that the driver does not give.
pub fn connect(index: u16) -> Result<Client, String> {
    let devices = found()?;
    if index as usize >= devices.len() {
        return Err(format!("this machine has {} CUDA device(s)", devices.len()));
    }
    context::Context::of(index).map_err(|e| e.to_string())?;
    Ok(Client::load::<CudaServer>(DeviceId { type_id: DEVICE_TYPE, index_id: index }))
}
