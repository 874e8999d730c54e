//! What CubeCL's client asks of the server.

use crate::call::{Arguments, Call, ServerParts};
use crate::device::ALIGNMENT;
use crate::server::{Copied, CudaServer, Uses};
use crate::stream::Event;
use cubecl::bytes::Bytes;
use cubecl::future::DynFut;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::{
    BufferBinding, CopyDescriptor, Handle, KernelArguments, MemoryLayout, MemoryLayoutDescriptor, MemoryLayoutPolicy,
    ProfileError, ProfilingToken, Server, ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_common::device::ServiceId;
use cubecl_common::profile::{Instant, ProfileDuration};
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::id::GraphId;
use cubecl_runtime::kernel::BufferIOAttr;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport};
use cubecl_runtime::server::IoError;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};
use std::sync::Arc;

impl ServerCommunication for CudaServer {}

impl Server for CudaServer {
    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, id: StreamId) -> Result<(), ServerError> {
        let reserved = self.stream(id).and_then(|stream| self.memory.reserve(memory.clone(), size, stream));
        self.forget_freed();
        reserved.map_err(|failure| {
            let error: ServerError = if failure.out_of_memory {
                IoError::OutOfMemory { size, backtrace: BackTrace::capture() }.into()
            } else {
                failure.into()
            };
            self.unwritten.insert(memory.binding().id().value, error.clone());
            if let Ok(stream) = self.stream(id) {
                self.streams.all[stream].failure.get_or_insert(error.clone());
            }
            error
        })
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(&mut self, wanted: Vec<CopyDescriptor>, id: StreamId) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let copied = self.ensure_written(wanted.iter().map(|w| &w.handle)).and_then(|()| {
            let stream = self.stream(id)?;
            if self.streams.all[stream].capture.as_ref().is_some_and(|c| c.recording) {
                return Err(ServerError::graph_state("read: a graph that is being recorded cannot be read from"));
            }
            let copies = wanted.iter().map(|w| self.copy_out(w, stream)).collect::<Result<Vec<_>, _>>()?;
            self.streams.all[stream].enqueued += 1;
            Ok((copies, self.streams.event(stream)?))
        });
        let staging = self.staging.clone();
        Box::pin(async move {
            let (copies, event): (Vec<Copied>, Event) = copied?;
            event.wait()?;
            Ok(copies.into_iter().map(|copy| copy.finish(&staging)).collect())
        })
    }

    fn write(&mut self, copies: Vec<(CopyDescriptor, Bytes)>, id: StreamId) {
        let stream = match self.stream(id) {
            Ok(stream) => stream,
            Err(failure) => {
                let written: Vec<_> = copies.into_iter().map(|(to, _)| to.handle).collect();
                return self.fail(usize::MAX, &written, failure.into());
            }
        };
        for (to, data) in &copies {
            self.copy_in(to, data, stream);
        }
    }

    fn sync(&mut self, handles: Vec<BufferBinding>, id: StreamId) -> DynFut<Result<(), ServerError>> {
        let synced = self.ensure_written(handles.iter()).and_then(|()| {
            let stream = self.stream(id)?;
            if self.streams.all[stream].capture.as_ref().is_some_and(|c| c.recording) {
                return Err(ServerError::graph_state("sync: a graph is being recorded"));
            }
            self.give_back(stream)?;
            Ok((self.streams.event(stream)?, self.streams.all[stream].failure.take()))
        });
        Box::pin(async move {
            let (event, failure) = synced?;
            event.wait()?;
            failure.map_or(Ok(()), Err)
        })
    }

    fn check(&mut self, handles: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        self.ensure_written(handles.iter())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        arguments: KernelArguments,
        id: StreamId,
        mode: LaunchMode,
    ) {
        let stream = match self.stream(id) {
            Ok(stream) => stream,
            Err(failure) => {
                let written: Vec<_> = arguments.buffers_written(None).cloned().collect();
                return self.fail(usize::MAX, &written, failure.into());
            }
        };
        match Call::from_kernel(kernel) {
            Err(kernel) => self.launch_kernel(kernel, &count, arguments, stream, mode),
            Ok(work) => {
                let read: Vec<_> = arguments.buffers_read(None).map(|b| b.claim_key()).collect();
                let written: Vec<_> = arguments.buffers_written(None).map(|b| b.claim_key()).collect();
                let io = |b: &BufferBinding| match (read.contains(&b.claim_key()), written.contains(&b.claim_key())) {
                    (true, false) => BufferIOAttr::ReadOnly,
                    (false, true) => BufferIOAttr::WriteOnly,
                    _ => BufferIOAttr::ReadWrite,
                };
                let uses: Uses = arguments.buffers().map(|b| (b.clone(), io(b))).collect();
                self.enqueue(stream, &uses, |server, addresses| {
                    let raw = server.streams.all[stream].raw;
                    let parts = ServerParts {
                        memory: &mut server.memory,
                        stream,
                        context: server.context,
                        spare: &server.streams.spare,
                    };
                    let done = work(&mut Arguments { stream: raw, addresses, server: parts });
                    // Libraries may have made another context current.
                    server.context.enter()?;
                    for (user, owner) in server.memory.take_leaving() {
                        server.streams.leave(user, owner)?;
                    }
                    done.map_err(ServerError::from)
                });
            }
        }
    }

    fn flush(&mut self, id: StreamId) -> Result<(), ServerError> {
        let stream = self.stream(id)?;
        Ok(self.give_back(stream)?)
    }

    fn graph_prepare(&mut self, id: StreamId) -> Result<(), ServerError> {
        let stream = self.stream(id)?;
        let capture = self.streams.all[stream].capture.get_or_insert_default();
        if capture.recording {
            return Err(ServerError::graph_state("graph_prepare: a graph is being recorded"));
        }
        Ok(())
    }

    fn begin_capture(&mut self, id: StreamId) -> Result<(), ServerError> {
        let stream = self.stream(id)?;
        let Some(capture) = self.streams.all[stream].capture.as_mut().filter(|c| !c.recording) else {
            return Err(ServerError::graph_state("begin_capture: the stream was not prepared, or records already"));
        };
        let mut capture = std::mem::take(capture);
        capture.begin(self.streams.all[stream].raw)?;
        self.streams.all[stream].capture = Some(capture);
        Ok(())
    }

    fn end_capture(&mut self, id: StreamId) -> Result<GraphId, ServerError> {
        let stream = self.stream(id)?;
        let Some(capture) = self.streams.all[stream].capture.take().filter(|c| c.recording) else {
            return Err(ServerError::graph_state("end_capture: the stream records no graph"));
        };
        let graph = capture.end(self.streams.all[stream].raw)?;
        let id = GraphId::new();
        self.graphs.insert(id, graph);
        Ok(id)
    }

    fn replay(&mut self, graph: GraphId, id: StreamId) -> Result<(), ServerError> {
        let stream = self.stream(id)?;
        let Some(graph) = self.graphs.get(&graph) else {
            return Err(ServerError::graph_state("replay: there is no such graph"));
        };
        graph.replay(self.streams.all[stream].raw)?;
        self.streams.all[stream].enqueued += 1;
        if !self.unwritten.is_empty() {
            for binding in &graph.written {
                self.unwritten.remove(&binding.memory.id().value);
            }
        }
        Ok(())
    }

    fn graph_destroy(&mut self, graph: GraphId, _: StreamId) {
        self.graphs.remove(&graph);
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, id: StreamId) -> Result<(), ServerError> {
        let stream = self.stream(id)?;
        self.memory.search();
        self.give_back(stream)?;
        self.forget_freed();
        Ok(self.memory.trim()?)
    }

    fn start_profile(&mut self, id: StreamId) -> Result<ProfilingToken, ServerError> {
        cubecl::future::block_on(self.sync(Vec::new(), id))?;
        let token = ProfilingToken { id: self.next_profile };
        self.next_profile += 1;
        self.profiles.insert(token, Instant::now());
        Ok(token)
    }

    fn end_profile(&mut self, id: StreamId, token: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        let synced = cubecl::future::block_on(self.sync(Vec::new(), id));
        let start = self.profiles.remove(&token);
        synced.map_err(|e| ProfileError::Server(Box::new(e)))?;
        let start = start.unwrap_or_else(Instant::now);
        Ok(ProfileDuration::new_system_time(start, Instant::now()))
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

impl ServerStorage for CudaServer {
    type Storage = Addresses;

    fn get_resource(&mut self, binding: BufferBinding, id: StreamId) -> Result<ManagedResource<u64>, ServerError> {
        self.ensure_written(std::iter::once(&binding))?;
        let stream = self.stream(id)?;
        let address = self.address(&binding, BufferIOAttr::ReadWrite, stream)?;
        Ok(ManagedResource::new(binding.memory, address))
    }
}

/// Names the resource that CubeCL's clients get for a buffer: its device address. The server allocates by itself.
pub struct Addresses;

fn unsupported() -> IoError {
    IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }
}

impl ComputeStorage for Addresses {
    type Resource = u64;

    fn alignment(&self) -> usize {
        ALIGNMENT as usize
    }

    fn get(&mut self, _: &StorageHandle) -> Result<u64, IoError> {
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

/// One allocation for what is asked for together, each part row-major and aligned.
pub(crate) struct Packed;

impl MemoryLayoutPolicy for Packed {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        wanted: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let bytes = |d: &MemoryLayoutDescriptor| (d.shape.iter().product::<usize>() * d.elem_size) as u64;
        let total: u64 = wanted.iter().map(|d| bytes(d).next_multiple_of(ALIGNMENT)).sum();
        let base = Handle::new(service, stream, total);
        let mut start = 0;
        let layouts = wanted.iter().map(|d| {
            let mut handle = base.clone();
            if wanted.len() > 1 {
                handle = handle.offset_start(start);
            }
            handle = handle.offset_end(total - start - bytes(d));
            start += bytes(d).next_multiple_of(ALIGNMENT);
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
