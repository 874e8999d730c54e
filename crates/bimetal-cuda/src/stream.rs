//! CUDA streams and events: one stream for each client thread, and the order between streams that share memory.

use crate::context::Context;
use crate::driver::{Failure, check};
use crate::memory::Owner;
use cubecl_runtime::memory_management::ManagedMemoryBinding;
use cubecl_runtime::server::ServerError;
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUstream, CUstream_flags};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// An event without timing, kept for reuse.
#[derive(Debug)]
pub(crate) struct Event {
    raw: CUevent,
    context: Context,
    spare: Arc<Spare>,
}

/// Events that nobody waits for any more.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Vec<usize>>);

// SAFETY: events may be recorded, waited for and queried from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event recorded on `stream` now.
    ///
    /// # Errors
    /// A lost context.
    pub fn record(context: Context, spare: &Arc<Spare>, stream: CUstream) -> Result<Self, Failure> {
        let kept = spare.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut raw = kept.map_or(std::ptr::null_mut(), |kept| kept as CUevent);
        if raw.is_null() {
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the driver writes the new event into a local.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        }
        let event = Self { raw, context, spare: spare.clone() };
        // SAFETY: both handles are live and of the same context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(raw, stream) })?;
        Ok(event)
    }

    /// Makes `stream` wait for the event without stopping the host.
    ///
    /// # Errors
    /// A lost context.
    pub fn wait_on(&self, stream: CUstream) -> Result<(), Failure> {
        // SAFETY: both handles are live.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, self.raw, 0) })
    }

    /// Whether the work before the event has run.
    ///
    /// # Errors
    /// A fault of that work.
    pub fn is_done(&self) -> Result<bool, Failure> {
        // SAFETY: the event is live.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Stops the calling thread until the work before the event has run.
    ///
    /// # Errors
    /// A fault of that work.
    pub fn wait(&self) -> Result<(), Failure> {
        self.context.enter()?;
        // SAFETY: the event is live.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.raw as usize);
    }
}

/// A client thread's stream.
pub(crate) struct Stream {
    pub raw: CUstream,
    /// Pieces of work enqueued so far.
    pub enqueued: u64,
    /// For each stream, how much of its work this one has waited for.
    waited: Vec<u64>,
    /// Memory of other streams used here since the last event; it must not be reused before that work has run.
    borrowed: Vec<ManagedMemoryBinding>,
    returning: VecDeque<(Event, Vec<ManagedMemoryBinding>)>,
    /// Owners of outside memory whose last work is before the event.
    leaving: VecDeque<(Event, Owner)>,
    /// The first failure since the last time somebody was told.
    pub failure: Option<ServerError>,
    pub capture: Option<crate::graph::Capture>,
}

/// Borrowed buffers after which an event is recorded.
const BORROWED: usize = 256;

/// Streams that a device gets; threads beyond them share.
pub(crate) const MAX_STREAMS: usize = 32;

/// Every stream of a device.
pub(crate) struct Streams {
    context: Context,
    pub spare: Arc<Spare>,
    pub all: Vec<Stream>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("count", &self.all.len()).finish_non_exhaustive()
    }
}

// SAFETY: streams are used from any thread that has the context current; the server serialises access.
unsafe impl Send for Streams {}

impl Streams {
    pub fn new(context: Context) -> Self {
        Self { context, spare: Arc::default(), all: Vec::new() }
    }

    /// Makes another stream and gives its index.
    ///
    /// # Errors
    /// A lost context.
    pub fn create(&mut self) -> Result<usize, Failure> {
        let mut raw = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes the new stream into a local.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        self.all.push(Stream {
            raw,
            enqueued: 0,
            waited: Vec::new(),
            borrowed: Vec::new(),
            returning: VecDeque::new(),
            leaving: VecDeque::new(),
            failure: None,
            capture: None,
        });
        Ok(self.all.len() - 1)
    }

    /// An event after everything enqueued on a stream so far.
    ///
    /// # Errors
    /// A lost context.
    pub fn event(&self, stream: usize) -> Result<Event, Failure> {
        Event::record(self.context, &self.spare, self.all[stream].raw)
    }

    /// Makes `stream` wait until `other` has run its first `upto` pieces of work.
    ///
    /// # Errors
    /// A lost context.
    pub fn order(&mut self, stream: usize, other: usize, upto: u64) -> Result<(), Failure> {
        if stream == other || self.all[stream].waited.get(other).is_some_and(|&seen| seen >= upto) {
            return Ok(());
        }
        self.event(other)?.wait_on(self.all[stream].raw)?;
        let seen = self.all[other].enqueued;
        let waited = &mut self.all[stream].waited;
        waited.resize(waited.len().max(other + 1), 0);
        waited[other] = seen;
        Ok(())
    }

    /// Keeps another stream's memory from being reused while this stream's work on it is under way.
    ///
    /// # Errors
    /// A lost context.
    pub fn borrow(&mut self, stream: usize, memory: ManagedMemoryBinding) -> Result<(), Failure> {
        self.all[stream].borrowed.push(memory);
        if self.all[stream].borrowed.len() >= BORROWED {
            self.give_back(stream)?;
        }
        Ok(())
    }

    /// Lets go of borrowed memory whose work has run, and of owners of outside memory.
    ///
    /// # Errors
    /// A fault of that work.
    pub fn give_back(&mut self, stream: usize) -> Result<(), Failure> {
        if !self.all[stream].borrowed.is_empty() {
            let event = self.event(stream)?;
            let borrowed = std::mem::take(&mut self.all[stream].borrowed);
            self.all[stream].returning.push_back((event, borrowed));
        }
        drop_done(&mut self.all[stream].returning)?;
        drop_done(&mut self.all[stream].leaving)
    }

    /// Drops `owner` once what `stream` has been given so far has run.
    ///
    /// # Errors
    /// A lost context.
    pub fn leave(&mut self, stream: usize, owner: Owner) -> Result<(), Failure> {
        let event = self.event(stream)?;
        self.all[stream].leaving.push_back((event, owner));
        drop_done(&mut self.all[stream].leaving)
    }
}

fn drop_done<T>(queue: &mut VecDeque<(Event, T)>) -> Result<(), Failure> {
    while let Some((event, _)) = queue.front() {
        if !event.is_done()? {
            break;
        }
        queue.pop_front();
    }
    Ok(())
}

/// The raw handle of the stream on which `client`'s work of this thread runs, for libraries that want one; work given to
/// it is ordered after what was launched before this call, which waits for the device thread but not for the device.
///
/// # Errors
/// A client of another runtime, or a lost device.
pub fn raw_stream(client: &cubecl::client::Client) -> Result<CUstream, Failure> {
    let (sender, receiver) = std::sync::mpsc::channel();
    crate::call::call(client, Vec::new(), move |arguments| {
        // The receiver only goes when its thread does.
        let _ = sender.send(arguments.stream as usize);
        Ok(())
    })?;
    crate::call::wait(client)?;
    receiver.recv().map(|raw| raw as CUstream).map_err(|_| Failure::new("raw_stream", "the device thread is gone"))
}
