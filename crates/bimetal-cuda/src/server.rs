//! The server behind CubeCL's client: it owns a device's streams, memory, kernels and graphs.

use crate::compile::Kernels;
use crate::context::Context;
use crate::device::{self, MAX_BINDINGS_INLINE};
use crate::driver::{Failure, check};
use crate::graph::Graph;
use crate::launch;
use crate::memory::{Memory, Pinned, pinned};
use crate::service::Packed;
use crate::stream::{MAX_STREAMS, Streams};
use cubecl::bytes::Bytes;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::{
    BufferBinding, CopyDescriptor, KernelArguments, KernelResource, ProfilingToken, ServerError, ServerUtilities,
};
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::profile::Instant;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::id::GraphId;
use cubecl_runtime::kernel::BufferIOAttr;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cubecl_runtime::server::LaunchError;
use cudarc::driver::sys;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The server of one CUDA device.
#[derive(Debug)]
pub struct CudaServer {
    pub(crate) context: Context,
    pub(crate) utilities: Arc<ServerUtilities>,
    kernels: Kernels,
    pub(crate) memory: Memory,
    pub(crate) streams: Streams,
    by_id: HashMap<StreamId, usize>,
    /// Memory that more than one stream has used, with the work that last wrote it and has read it since.
    shared: HashMap<usize, Users>,
    /// Memory whose last writer failed.
    pub(crate) unwritten: HashMap<usize, ServerError>,
    pub(crate) graphs: HashMap<GraphId, Graph>,
    pub(crate) staging: Arc<Mutex<Vec<Pinned>>>,
    pub(crate) profiles: HashMap<ProfilingToken, Instant>,
    pub(crate) next_profile: u64,
}

/// Which work of which stream a later user of some memory must wait for.
#[derive(Debug)]
struct Users {
    writer: (usize, u64),
    readers: Vec<(usize, u64)>,
}

/// Reads up to this size go through pinned memory.
const STAGED: usize = 1 << 20;

impl DeviceService for CudaServer {
    fn init(id: DeviceId) -> Self {
        // `connect` has made the context, so what fails here is a device lost since; CubeCL takes a panic for that.
        let context = Context::of(id.index_id).expect("the CUDA context exists");
        context.enter().expect("the CUDA context is usable");
        let found = device::found().expect("the driver works")[id.index_id as usize].clone();
        let properties = device::properties(&context, &found);
        let shared_memory = properties.hardware.max_shared_memory_size;
        let (utilities, _) = ServerUtilities::init(
            ServiceId::of::<Self>(id),
            "cuda",
            properties,
            device::target_properties(),
            Arc::new(ServerLogger::default()),
            Packed,
        );
        Self {
            context,
            utilities: Arc::new(utilities),
            kernels: Kernels::new(found, shared_memory),
            memory: Memory::default(),
            streams: Streams::new(context),
            by_id: HashMap::new(),
            shared: HashMap::new(),
            unwritten: HashMap::new(),
            graphs: HashMap::new(),
            staging: Arc::default(),
            profiles: HashMap::new(),
            next_profile: 0,
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

/// A buffer's address with what a launch does to it.
pub(crate) type Uses = SmallVec<[(BufferBinding, BufferIOAttr); 8]>;

impl CudaServer {
    /// The stream of a client thread.
    pub(crate) fn stream(&mut self, id: StreamId) -> Result<usize, Failure> {
        if let Some(&stream) = self.by_id.get(&id) {
            return Ok(stream);
        }
        let stream = match self.streams.all.len() {
            count if count < MAX_STREAMS => self.streams.create()?,
            count => self.by_id.len() % count,
        };
        self.by_id.insert(id, stream);
        Ok(stream)
    }

    /// A buffer's address on `stream`, which from here on waits for what other streams have done to it.
    pub(crate) fn address(
        &mut self,
        binding: &BufferBinding,
        io: BufferIOAttr,
        stream: usize,
    ) -> Result<u64, ServerError> {
        let Some((start, size, owner)) = self.memory.resolve(&binding.memory) else {
            return Err(validation("a buffer that was never allocated"));
        };
        let offset = binding.offset_start.unwrap_or(0);
        if offset > size {
            return Err(validation(&format!("offset {offset} in a buffer of {size} bytes")));
        }
        if owner != stream || !self.shared.is_empty() {
            self.share(binding, io, stream, owner)?;
        }
        Ok(start + offset)
    }

    fn share(&mut self, binding: &BufferBinding, io: BufferIOAttr, stream: usize, owner: usize) -> Result<(), Failure> {
        let id = binding.memory.id().value;
        if owner == stream && !self.shared.contains_key(&id) {
            return Ok(());
        }
        let written_by_owner = (owner, self.streams.all[owner].enqueued);
        let users = self.shared.entry(id).or_insert_with(|| Users { writer: written_by_owner, readers: Vec::new() });
        let mine = (stream, self.streams.all[stream].enqueued + 1);
        self.streams.order(stream, users.writer.0, users.writer.1)?;
        if io.is_writable() {
            for (reader, upto) in std::mem::take(&mut users.readers) {
                self.streams.order(stream, reader, upto)?;
            }
            users.writer = mine;
        } else {
            users.readers.retain(|&(reader, _)| reader != stream);
            users.readers.push(mine);
        }
        if owner != stream {
            self.streams.borrow(stream, binding.memory.clone())?;
        }
        Ok(())
    }

    /// Forgets what is known of memory that has gone.
    pub(crate) fn forget_freed(&mut self) {
        for id in self.memory.take_freed() {
            self.shared.remove(&id);
            self.unwritten.remove(&id);
        }
    }

    /// Lets go of what `stream` no longer needs.
    pub(crate) fn give_back(&mut self, stream: usize) -> Result<(), Failure> {
        for (user, owner) in self.memory.take_leaving() {
            self.streams.leave(user, owner)?;
        }
        self.streams.give_back(stream)
    }

    /// Lets what a failed piece of work was to write carry the failure.
    pub(crate) fn fail(&mut self, stream: usize, written: &[BufferBinding], error: ServerError) {
        for binding in written {
            self.unwritten.insert(binding.memory.id().value, error.clone());
        }
        if let Some(stream) = self.streams.all.get_mut(stream) {
            if let Some(capture) = stream.capture.as_mut().filter(|c| c.recording) {
                capture.refused.get_or_insert_with(|| error.to_string());
            }
            stream.failure.get_or_insert(error);
        }
    }

    /// The failure of the work that was to write one of `bindings`.
    pub(crate) fn ensure_written<'a>(
        &self,
        mut bindings: impl Iterator<Item = &'a BufferBinding>,
    ) -> Result<(), ServerError> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        match bindings.find_map(|binding| self.unwritten.get(&binding.memory.id().value)) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Runs `work` with the addresses of `uses` on `stream`, and settles what they hold afterwards.
    pub(crate) fn enqueue(
        &mut self,
        stream: usize,
        uses: &[(BufferBinding, BufferIOAttr)],
        work: impl FnOnce(&mut Self, &[u64]) -> Result<(), ServerError>,
    ) {
        let read = uses.iter().filter(|(_, io)| io.is_readable()).map(|(binding, _)| binding);
        let result = self.ensure_written(read).and_then(|()| {
            let mut addresses = SmallVec::<[u64; MAX_BINDINGS_INLINE]>::new();
            for (binding, io) in uses {
                addresses.push(self.address(binding, *io, stream)?);
            }
            work(self, &addresses)
        });
        self.streams.all[stream].enqueued += 1;
        let written = uses.iter().filter(|(_, io)| io.is_writable()).map(|(binding, _)| binding);
        match result {
            Ok(()) => {
                if !self.unwritten.is_empty() {
                    for binding in written.clone() {
                        self.unwritten.remove(&binding.memory.id().value);
                    }
                }
                if let Some(capture) = self.streams.all[stream].capture.as_mut().filter(|c| c.recording) {
                    capture.keep(uses.iter().map(|(binding, _)| binding), written);
                }
            }
            Err(error) => {
                let written: Vec<_> = written.cloned().collect();
                self.fail(stream, &written, error);
            }
        }
    }

    pub(crate) fn launch_kernel(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: &CubeCount,
        arguments: KernelArguments,
        stream: usize,
        mode: LaunchMode,
    ) {
        let id = kernel.id();
        let found = match self.kernels.find(&id) {
            Some(index) => Ok(index),
            None => self.kernels.load(&id, &*kernel),
        };
        if mode.is_skipped() {
            return;
        }
        let index = match found {
            Ok(index) => index,
            Err(error) => {
                let written: Vec<_> = arguments.buffers_written(None).cloned().collect();
                return self.fail(stream, &written, LaunchError::from(error).into());
            }
        };
        let (info, uses) = {
            let known = self.kernels.get(index).io.as_deref();
            let io = |i: usize| known.and_then(|io| io.get(i)).copied().unwrap_or(BufferIOAttr::ReadWrite);
            let mut uses = Uses::new();
            for (i, resource) in arguments.resources.into_iter().enumerate() {
                match resource {
                    KernelResource::Buffer(binding) => uses.push((binding, io(i))),
                    KernelResource::TensorMap(map) => {
                        let error = validation("this runtime has no tensor maps");
                        return self.fail(stream, &[map.binding], error);
                    }
                }
            }
            (arguments.info, uses)
        };
        let CubeCount::Static(x, y, z) = *count else {
            let written: Vec<_> = uses.into_iter().map(|(binding, _)| binding).collect();
            return self.fail(stream, &written, validation("this runtime has no counts that are read from a buffer"));
        };
        self.enqueue(stream, &uses, |server, addresses| {
            server.dispatch(index, (x, y, z), stream, addresses, &info.data, info.dynamic_metadata_offset)
        });
    }

    /// Hands a launch to the driver: scalars and lengths go by value where the architecture has that, shapes in a buffer.
    fn dispatch(
        &mut self,
        kernel: usize,
        count: (u32, u32, u32),
        stream: usize,
        addresses: &[u64],
        info: &[u64],
        dynamic: usize,
    ) -> Result<(), ServerError> {
        let by_value = self.kernels.grid_constants();
        let in_memory = if by_value { info.get(dynamic..).unwrap_or_default() } else { info };
        let raw = self.streams.all[stream].raw;
        let parameters = by_value.then_some(info);
        if in_memory.is_empty() {
            launch::launch(self.kernels.get(kernel), count, raw, addresses, parameters).map_err(LaunchError::from)?;
            return Ok(());
        }
        let handle = ManagedMemoryHandle::new();
        let bytes = std::mem::size_of_val(in_memory);
        self.memory.reserve(handle.clone(), bytes as u64, stream).map_err(LaunchError::from)?;
        let binding = handle.binding();
        let Some((address, ..)) = self.memory.resolve(&binding) else { return Err(validation("no memory for shapes")) };
        // SAFETY: the words outlive the call, which copies pageable memory before it returns; the buffer is as long.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(address, in_memory.as_ptr().cast(), bytes, raw) };
        check("cuMemcpyHtoDAsync", status).map_err(LaunchError::from)?;
        let all: SmallVec<[u64; MAX_BINDINGS_INLINE]> = addresses.iter().copied().chain([address]).collect();
        launch::launch(self.kernels.get(kernel), count, raw, &all, parameters).map_err(LaunchError::from)?;
        Ok(())
    }

    /// Copies to the host and gives what to wait for.
    pub(crate) fn copy_out(&mut self, from: &CopyDescriptor, stream: usize) -> Result<Copied, ServerError> {
        let bytes = contiguous(from)?;
        if bytes == 0 {
            return Ok(Copied::Whole(Vec::new()));
        }
        let address = self.address(&from.handle, BufferIOAttr::ReadOnly, stream)?;
        let raw = self.streams.all[stream].raw;
        let copy = |to: *mut u8| {
            // SAFETY: `to` has `bytes` bytes, and the allocation at `address` at least as many.
            check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), address, bytes, raw) })
        };
        if bytes <= STAGED {
            let kept = self.staging.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let buffer = kept.map_or_else(|| pinned(self.context, STAGED), Ok)?;
            copy(buffer.address)?;
            return Ok(Copied::Staged { buffer, bytes });
        }
        let mut whole = vec![0; bytes];
        copy(whole.as_mut_ptr())?;
        Ok(Copied::Whole(whole))
    }

    pub(crate) fn copy_in(&mut self, to: &CopyDescriptor, data: &Bytes, stream: usize) {
        let uses = [(to.handle.clone(), BufferIOAttr::WriteOnly)];
        self.enqueue(stream, &uses, |server, addresses| {
            if server.streams.all[stream].capture.as_ref().is_some_and(|c| c.recording) {
                return Err(validation("a graph that is being recorded cannot take data from the host"));
            }
            let bytes = contiguous(to)?.min(data.len());
            if bytes == 0 {
                return Ok(());
            }
            let raw = server.streams.all[stream].raw;
            // SAFETY: pageable memory is copied before the call returns; the allocation has `bytes` bytes.
            let status = unsafe { sys::cuMemcpyHtoDAsync_v2(addresses[0], data.as_ptr().cast(), bytes, raw) };
            check("cuMemcpyHtoDAsync", status)?;
            Ok(())
        });
    }
}

/// A copy on its way to the host.
pub(crate) enum Copied {
    Staged { buffer: Pinned, bytes: usize },
    Whole(Vec<u8>),
}

impl Copied {
    /// The bytes, once the copy has run.
    pub(crate) fn finish(self, staging: &Mutex<Vec<Pinned>>) -> Bytes {
        match self {
            Self::Whole(bytes) => Bytes::from_bytes_vec(bytes),
            Self::Staged { buffer, bytes } => {
                // SAFETY: the copy has written this many bytes of the buffer.
                let copied = unsafe { std::slice::from_raw_parts(buffer.address, bytes) }.to_vec();
                staging.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
                Bytes::from_bytes_vec(copied)
            }
        }
    }
}

pub(crate) fn validation(message: &str) -> ServerError {
    ServerError::Validation { message: message.into(), backtrace: BackTrace::capture() }
}

/// The bytes of a copy that is one run of memory.
fn contiguous(copy: &CopyDescriptor) -> Result<usize, ServerError> {
    let mut step = 1;
    for axis in (0..copy.shape.len()).rev() {
        if copy.shape[axis] != 1 && copy.strides[axis] != step {
            return Err(validation("copies of strided memory are not supported"));
        }
        step *= copy.shape[axis];
    }
    Ok(step * copy.elem_size)
}
