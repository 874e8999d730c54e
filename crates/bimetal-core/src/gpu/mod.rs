//! GPU clients: one per device, with what kernels must know of it. Runtime features are named in this module only.

mod cuda;
mod discover;
mod gemm;
mod graph;
// The `#[cube]` macro adds a public module without documentation beside each function.
#[allow(missing_docs)]
pub mod kernel;
#[allow(missing_docs)]
pub mod math;

pub use cuda::MemoryReport;
pub(crate) use discover::discover;
pub use gemm::Product;
pub use graph::Graph;

use crate::{DType, Device, Error, Result};
use cubecl::client::Client;
use cubecl::ir::features::TypeUsage;
use cubecl::ir::{ElemType, FloatKind, IntKind, UIntKind};
use cubecl::prelude::CubeCount;
use cubecl::server::Handle;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Every allocation is a multiple of this many bytes, so that a kernel may touch the whole of its last vector.
const PADDING: usize = 256;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// What a buffer of `bytes` counts in [`allocated`] and in the functions that foretell it: its length with padding, and
/// nothing for the smallest ones, which stand for a flag or for an argument that is not read.
pub fn counted(bytes: usize) -> usize {
    let padded = bytes.next_multiple_of(PADDING);
    if padded > PADDING { padded } else { 0 }
}

/// Bytes of uninitialised buffers that this thread has asked GPUs for so far, each as [`counted`].
pub fn allocated() -> usize {
    ALLOCATED.get()
}

/// A GPU's client, and the properties that launches depend on.
pub struct Gpu {
    device: Device,
    client: Client,
    /// Smallest and largest plane (warp, subgroup) size.
    pub plane: (u32, u32),
    /// Largest number of units in a cube (threads in a block).
    pub max_units: u32,
    /// Shared memory per cube, in bytes.
    pub shared_memory: usize,
    /// Multiprocessors, or an estimate where the driver does not say.
    pub processors: u32,
    /// Offset alignment of a buffer view, in bytes.
    alignment: usize,
}

impl Gpu {
    /// The client of `device`, made on first use and kept for the process.
    ///
    /// # Errors
    /// A device that this machine, driver or build does not have.
    pub fn get(device: Device) -> Result<&'static Self> {
        let mut clients = clients();
        if let Some(gpu) = clients.get(&device) {
            return Ok(gpu);
        }
        let gpu: &'static Self = Box::leak(Box::new(Self::new(device, discover::connect(device)?)));
        clients.insert(device, gpu);
        Ok(gpu)
    }

    /// Puts a client of a runtime that discovery does not know behind `device`, for as long as the process lives; the
    /// first client of a device stays.
    #[doc(hidden)]
    pub fn from_client(device: Device, client: Client) -> &'static Self {
        clients().entry(device).or_insert_with(|| Box::leak(Box::new(Self::new(device, client))))
    }

    fn new(device: Device, client: Client) -> Self {
        let props = client.properties();
        let hardware = &props.hardware;
        Self {
            device,
            plane: (hardware.plane_size_min.max(1), hardware.plane_size_max.max(1)),
            max_units: hardware.max_units_per_cube,
            shared_memory: hardware.max_shared_memory_size,
            processors: hardware.num_streaming_multiprocessors.unwrap_or(32),
            alignment: props.memory.alignment as usize,
            client,
        }
    }

    /// Which device this is.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The CubeCL client that launches go to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether buffers and arithmetic of `dtype` work here.
    pub fn supports(&self, dtype: DType) -> bool {
        let usage = self.client.properties().features.types.elem.get(&elem_type(dtype)).copied();
        usage.is_some_and(|u| u.contains(TypeUsage::Buffer) && u.contains(TypeUsage::Conversion))
    }

    /// `dtype` as a kernel's element type.
    ///
    /// # Errors
    /// A dtype that the device cannot store.
    pub fn elem(&self, dtype: DType) -> Result<ElemType> {
        if self.supports(dtype) {
            Ok(elem_type(dtype))
        } else {
            Err(Error::Unavailable {
                device: self.device.to_string(),
                reason: format!("the device has no {dtype} storage"),
            })
        }
    }

    /// Elements of `dtype` per vector for 16-byte accesses, limited by what the device's language has.
    pub fn vector(&self, dtype: DType) -> usize {
        let widest = self.client.properties().hardware.max_vector_size;
        (16 / dtype.size()).min(widest.max(1))
    }

    /// Whether `fma` rounds once here. Vulkan and WGSL leave it open, so there it counts as two roundings.
    pub fn fused(&self) -> bool {
        matches!(self.device, Device::Cuda(_) | Device::Metal(_))
    }

    /// A launch of at least `cubes` cubes, folded into two dimensions where one is too short. Kernels use `CUBE_POS`
    /// and drop the positions past their end.
    pub fn cubes(&self, cubes: usize) -> CubeCount {
        let (max_x, _, _) = self.client.properties().hardware.max_cube_count;
        let cubes = cubes.max(1);
        let x = cubes.min(max_x as usize);
        CubeCount::Static(x as u32, cubes.div_ceil(x) as u32, 1)
    }

    /// Most bytes that one buffer can have.
    pub fn largest_buffer(&self) -> u64 {
        self.client.properties().memory.max_page_size
    }

    /// An uninitialised buffer of at least `bytes`.
    pub fn alloc(&self, bytes: usize) -> Handle {
        ALLOCATED.set(ALLOCATED.get() + counted(bytes));
        self.client.empty(bytes.max(1).next_multiple_of(PADDING))
    }

    /// A buffer holding a copy of `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Handle {
        let mut padded = Vec::with_capacity(bytes.len().max(1).next_multiple_of(PADDING));
        padded.extend_from_slice(bytes);
        padded.resize(padded.capacity().min(bytes.len().max(1).next_multiple_of(PADDING)), 0);
        self.client.create(cubecl::bytes::Bytes::from_bytes_vec(padded))
    }

    /// Copies `bytes` to the start of a buffer that is at least as long.
    pub(crate) fn overwrite(&self, handle: &Handle, bytes: &[u8]) {
        self.client.write(handle, cubecl::bytes::Bytes::from_bytes_vec(bytes.to_vec()));
    }

    /// The part of a buffer from byte `start` on; a copy where the device cannot bind at that offset.
    pub(crate) fn view(&self, handle: &Handle, start: usize, bytes: usize) -> Handle {
        if start == 0 {
            return handle.clone();
        }
        if start.is_multiple_of(self.alignment) {
            return handle.clone().offset_start(start as u64);
        }
        kernel::copy_from(self, handle, start, bytes)
    }

    /// Copies the first `out.len()` bytes of a buffer to the host; waits for the work before it.
    ///
    /// # Errors
    /// A launch before it that failed, or a lost device.
    pub fn read(&self, handle: Handle, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let bytes = self.client.read_one(handle).map_err(|e| self.failed("read", &e))?;
        out.copy_from_slice(&bytes[..out.len()]);
        Ok(())
    }

    /// Waits until everything launched from this thread has run.
    ///
    /// # Errors
    /// A launch that failed, or a lost device.
    pub fn sync(&self) -> Result<()> {
        cubecl::future::block_on(self.client.sync()).map_err(|e| self.failed("sync", &e))
    }

    fn failed(&self, op: &'static str, reason: &dyn std::fmt::Display) -> Error {
        Error::Runtime { op, device: self.device.to_string(), reason: reason.to_string() }
    }
}

/// The clients made so far.
fn clients() -> MutexGuard<'static, HashMap<Device, &'static Gpu>> {
    static CLIENTS: OnceLock<Mutex<HashMap<Device, &'static Gpu>>> = OnceLock::new();
    CLIENTS.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner())
}

fn elem_type(dtype: DType) -> ElemType {
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::F64 => ElemType::Float(FloatKind::F64),
        DType::I8 => ElemType::Int(IntKind::I8),
        DType::I32 => ElemType::Int(IntKind::I32),
        DType::I64 => ElemType::Int(IntKind::I64),
        DType::U8 | DType::Bool => ElemType::UInt(UIntKind::U8),
        DType::U32 => ElemType::UInt(UIntKind::U32),
    }
}
