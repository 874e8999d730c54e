//! A CubeCL server that allocates nothing and runs nothing: it compiles each launched kernel to Metal and keeps the text.

use crate::apple;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::future::DynFut;
use cubecl::ir::TargetProperties;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::{
    BufferBinding, CopyDescriptor, Handle, KernelArguments, MemoryLayout, MemoryLayoutDescriptor, MemoryLayoutPolicy,
    ProfileError, ProfilingToken, Server, ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::profile::ProfileDuration;
use cubecl_cpp::MslCompiler;
use cubecl_cpp::shared::CompilationOptions;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::compiler::Compiler;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::define_kernel;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport};
use cubecl_runtime::server::IoError;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// A kernel as Metal would be given it.
#[derive(Debug)]
pub struct Kernel {
    /// The Rust function's name.
    pub name: &'static str,
    /// Metal source.
    pub source: String,
}

/// A launched kernel, or why Metal cannot have it. Launches of the same kernel share it.
pub type Recorded = Result<Arc<Kernel>, String>;

static LAUNCHES: Mutex<Vec<Recorded>> = Mutex::new(Vec::new());

/// Waits for the client and takes the launches since the last call, in order.
///
/// # Errors
/// A device thread that died.
pub fn take(client: &Client) -> Result<Vec<Recorded>, String> {
    cubecl::future::block_on(client.sync()).map_err(|e| e.to_string())?;
    Ok(std::mem::take(&mut *LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The recording server.
#[derive(Debug)]
pub struct Recorder {
    utilities: Arc<ServerUtilities>,
    compiled: HashMap<KernelId, Result<Arc<Kernel>, String>>,
}

impl Recorder {
    fn record(&mut self, kernel: Box<dyn CubeKernel>, count: &CubeCount, args: &KernelArguments) -> Recorded {
        if let CubeCount::Static(x, y, z) = count {
            let (max_x, max_y, max_z) = self.utilities.properties.hardware.max_cube_count;
            if *x > max_x || *y > max_y || *z > max_z {
                return Err(format!(
                    "{} cubes are more than the device takes",
                    [*x, *y, *z].map(|n| n.to_string()).join("×")
                ));
            }
        }
        let bindings = args.resources.len() + usize::from(!args.info.data.is_empty());
        if bindings > apple::MAX_BINDINGS as usize {
            return Err(format!("{bindings} buffers are bound, {} is the limit", apple::MAX_BINDINGS));
        }
        let id = kernel.id();
        if let Some(done) = self.compiled.get(&id) {
            return done.clone();
        }
        let done = catch_unwind(AssertUnwindSafe(|| self.compile(&*kernel, &id)))
            .unwrap_or_else(|_| Err("the Metal compiler panicked".into()))
            .map_err(|reason| format!("{}: {reason}", id.short_name()));
        self.compiled.insert(id, done.clone());
        done
    }

    fn compile(&self, kernel: &dyn CubeKernel, id: &KernelId) -> Recorded {
        let hardware = &self.utilities.properties.hardware;
        let units = id.cube_dim.num_elems();
        if units > hardware.max_units_per_cube {
            return Err(format!("{units} units in a cube, {} is the limit", hardware.max_units_per_cube));
        }
        let definition = define_kernel(kernel).map_err(|e| e.to_string())?;
        let msl =
            MslCompiler::default().compile(definition, &CompilationOptions::default()).map_err(|e| e.to_string())?;
        if msl.shared_memory_size > hardware.max_shared_memory_size {
            let (got, most) = (msl.shared_memory_size, hardware.max_shared_memory_size);
            return Err(format!("{got} bytes of shared memory, {most} is the limit"));
        }
        Ok(Arc::new(Kernel { name: id.short_name(), source: msl.source }))
    }
}

impl DeviceService for Recorder {
    fn init(device: DeviceId) -> Self {
        let (utilities, _) = ServerUtilities::init(
            ServiceId::of::<Self>(device),
            "recorder<msl>",
            apple::properties(),
            TargetProperties { mma: Default::default() },
            Arc::new(ServerLogger::default()),
            Packed,
        );
        Self { utilities: Arc::new(utilities), compiled: HashMap::new() }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl ServerCommunication for Recorder {}

impl Server for Recorder {
    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(&mut self, wanted: Vec<CopyDescriptor>, _: StreamId) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let sizes = wanted.iter().map(|d| d.shape.iter().product::<usize>() * d.elem_size);
        let zeros: Vec<_> = sizes.map(|n| Bytes::from_bytes_vec(vec![0; n])).collect();
        Box::pin(async move { Ok(zeros) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: Vec<BufferBinding>, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        args: KernelArguments,
        _: StreamId,
        _: LaunchMode,
    ) {
        let recorded = self.record(kernel, &count, &args);
        LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(unsupported().into())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::Server(Box::new(unsupported().into())))
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

fn unsupported() -> IoError {
    IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }
}

impl ServerStorage for Recorder {
    type Storage = Nothing;

    fn get_resource(&mut self, _: BufferBinding, _: StreamId) -> Result<ManagedResource<()>, ServerError> {
        Err(unsupported().into())
    }
}

/// Storage that holds nothing.
pub struct Nothing;

impl ComputeStorage for Nothing {
    type Resource = ();

    fn alignment(&self) -> usize {
        256
    }

    fn get(&mut self, _: &StorageHandle) -> Result<(), IoError> {
        Err(unsupported())
    }

    fn alloc(&mut self, _: u64) -> Result<StorageHandle, IoError> {
        Err(unsupported())
    }

    fn dealloc(&mut self, _: StorageId) {}

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        0
    }
}

/// One buffer per allocation, row-major without padding.
struct Packed;

impl MemoryLayoutPolicy for Packed {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        wanted: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let padded =
            |d: &MemoryLayoutDescriptor| (d.shape.iter().product::<usize>() * d.elem_size).next_multiple_of(256) as u64;
        let total: u64 = wanted.iter().map(padded).sum();
        let base = Handle::new(service, stream, total);
        let mut start = 0;
        let layouts = wanted.iter().map(|d| {
            let bytes = (d.shape.iter().product::<usize>() * d.elem_size) as u64;
            let handle = base.clone().offset_start(start).offset_end(total - start - bytes);
            start += padded(d);
            let mut strides = vec![1; d.shape.len()];
            for axis in (1..strides.len()).rev() {
                strides[axis - 1] = strides[axis] * d.shape[axis];
            }
            MemoryLayout::new(handle, strides)
        });
        let layouts = layouts.collect();
        (base, layouts)
    }
}
