//! CUDA graphs: a sequence of launches recorded once and replayed as one.

use crate::driver::{Failure, check};
use cubecl_runtime::memory_management::ManagedMemoryBinding;
use cubecl_runtime::server::BufferBinding;
use cudarc::driver::sys::{self, CUgraphExec, CUstream};

/// A stream on its way to a graph.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    /// Whether launches are being recorded; before that the stream only warms up.
    pub recording: bool,
    /// What recorded launches work on: it stays allocated as long as the graph.
    memory: Vec<ManagedMemoryBinding>,
    /// What they write.
    written: Vec<BufferBinding>,
    /// Why the recording cannot be used.
    pub refused: Option<String>,
}

impl Capture {
    /// Keeps what a recorded launch works on.
    pub fn keep<'a>(
        &mut self,
        used: impl Iterator<Item = &'a BufferBinding>,
        written: impl Iterator<Item = &'a BufferBinding>,
    ) {
        self.memory.extend(used.map(|binding| binding.memory.clone()));
        self.written.extend(written.cloned());
    }

    /// Starts recording.
    ///
    /// # Errors
    /// A stream that cannot, or a lost device.
    pub fn begin(&mut self, stream: CUstream) -> Result<(), Failure> {
        // Relaxed: other threads and libraries may go on allocating.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is live.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        self.recording = true;
        Ok(())
    }

    /// Ends the recording and makes it ready for replay.
    ///
    /// # Errors
    /// Work that could not be recorded, or a lost device.
    pub fn end(self, stream: CUstream) -> Result<Graph, Failure> {
        let mut graph = std::ptr::null_mut();
        let mut executable = std::ptr::null_mut();
        // SAFETY: the stream is live and records; the driver writes handles into locals.
        unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(stream, &mut graph))?;
            let instantiated = match self.refused {
                Some(reason) => Err(Failure::new("graph capture", reason)),
                None => check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0)),
            };
            // The executable has its own copy.
            let destroyed = check("cuGraphDestroy", sys::cuGraphDestroy(graph));
            instantiated.and(destroyed)?;
        }
        Ok(Graph { executable, written: self.written, _memory: self.memory })
    }
}

/// A recorded sequence.
#[derive(Debug)]
pub(crate) struct Graph {
    executable: CUgraphExec,
    /// What a replay writes.
    pub written: Vec<BufferBinding>,
    _memory: Vec<ManagedMemoryBinding>,
}

// SAFETY: executables may be launched from any thread, one at a time; the server serialises access.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues the sequence.
    ///
    /// # Errors
    /// A lost device.
    pub fn replay(&self, stream: CUstream) -> Result<(), Failure> {
        // SAFETY: both handles are live, and the memory of the recorded launches is kept by `self`.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, stream) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is live and dropped once. The driver defers it until running replays have ended.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
