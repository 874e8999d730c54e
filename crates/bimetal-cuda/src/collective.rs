//! Collectives between processes, one GPU each, by NCCL on the client's stream.
//!
//! Ranks find each other as torchrun's do: by `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`.

use crate::call::call;
use crate::context::Context;
use crate::driver::Failure;
use crate::gemm::Element;
use crate::library;
use cubecl::client::Client;
use cubecl::server::Handle;
use cubecl_runtime::kernel::BufferIOAttr;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(300);

/// What an all-reduce computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Sums.
    Sum,
    /// Products.
    Product,
    /// Largest values.
    Max,
    /// Smallest values.
    Min,
    /// Means.
    Mean,
}

/// Where a process stands among those of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// This process's number, from 0.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// The GPU's number on this host.
    pub local_rank: u16,
    /// Where rank 0 listens, as `host:port`.
    pub address: String,
}

impl Place {
    /// The place that torchrun gave this process.
    ///
    /// # Errors
    /// A variable that is missing or no number, or a rank that is not below the size.
    pub fn from_environment() -> Result<Self, Failure> {
        let text = |name: &'static str| {
            std::env::var(name).map_err(|_| Failure::new("collectives", format!("the variable {name} is not set")))
        };
        let number = |name: &'static str| {
            let value = text(name)?;
            value
                .parse::<usize>()
                .map_err(|_| Failure::new("collectives", format!("{name} is `{value}`, not a number")))
        };
        let (rank, size) = (number("RANK")?, number("WORLD_SIZE")?);
        let mut port = number("MASTER_PORT")?;
        // torchrun's own store listens at the port itself.
        if std::env::var("TORCHELASTIC_USE_AGENT_STORE").is_ok_and(|value| value == "True") {
            port += 1;
        }
        if rank >= size {
            return Err(Failure::new("collectives", format!("RANK {rank} is not below WORLD_SIZE {size}")));
        }
        let alone = size == 1 && std::env::var_os("LOCAL_RANK").is_none();
        let local_rank = if alone { 0 } else { number("LOCAL_RANK")? };
        Ok(Self { rank, size, local_rank: local_rank as u16, address: format!("{}:{port}", text("MASTER_ADDR")?) })
    }
}

/// NCCL's name for a group of ranks.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// A group of processes that work together.
#[derive(Debug, Clone)]
pub struct Group {
    place: Place,
    communicator: Arc<Communicator>,
}

#[derive(Debug)]
struct Communicator(*mut c_void);

// SAFETY: NCCL's communicators may be used from any thread, one at a time: the device thread, here.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Drop for Communicator {
    fn drop(&mut self) {
        if let Ok(nccl) = Nccl::get() {
            // SAFETY: the communicator is alive and destroyed once.
            unsafe { (nccl.destroy)(self.0) };
        }
    }
}

impl Group {
    /// Joins the group of `place`; every rank must, and this waits for them.
    ///
    /// # Errors
    /// No NCCL on this machine, no such device, or ranks that do not come.
    pub fn join(place: Place) -> Result<Self, Failure> {
        let nccl = Nccl::get()?;
        Context::of(place.local_rank)?.enter()?;
        let mut id = UniqueId([0; 128]);
        if place.rank == 0 {
            // SAFETY: NCCL writes the whole of the id.
            nccl.ok("ncclGetUniqueId", unsafe { (nccl.unique_id)(&mut id) })?;
        }
        exchange(&place, &mut id.0).map_err(|e| Failure::new("collectives", format!("{}: {e}", place.address)))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the id is rank 0's, the device's context is current, and the handle is written into a local.
        let status = unsafe { (nccl.init)(&mut raw, place.size as c_int, id, place.rank as c_int) };
        nccl.ok("ncclCommInitRank", status)?;
        Ok(Self { place, communicator: Arc::new(Communicator(raw)) })
    }

    /// Where this process stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Replaces the `count` elements of `buffer` by their reduction over the ranks.
    ///
    /// # Errors
    /// A client of another runtime. What NCCL refuses is reported where the buffer is read.
    pub fn all_reduce(
        &self,
        client: &Client,
        buffer: Handle,
        count: usize,
        element: Element,
        reduction: Reduction,
    ) -> Result<(), Failure> {
        let (nccl, communicator) = (Nccl::get()?, self.communicator.clone());
        let (kind, operation) = (data_type(element), reduction as c_int);
        call(client, vec![(buffer.binding(), BufferIOAttr::ReadWrite)], move |arguments| {
            let at = arguments.addresses[0] as *mut c_void;
            let stream = arguments.stream.cast();
            // SAFETY: the buffer has `count` elements and the communicator is alive.
            let status = unsafe { (nccl.all_reduce)(at, at, count, kind, operation, communicator.0, stream) };
            nccl.ok("ncclAllReduce", status)
        })
    }

    /// Puts the `count` elements of every rank's `from` into `to`, which holds them all in the order of the ranks.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn all_gather(
        &self,
        client: &Client,
        from: Handle,
        to: Handle,
        count: usize,
        element: Element,
    ) -> Result<(), Failure> {
        let (nccl, communicator, kind) = (Nccl::get()?, self.communicator.clone(), data_type(element));
        let buffers = vec![(from.binding(), BufferIOAttr::ReadOnly), (to.binding(), BufferIOAttr::WriteOnly)];
        call(client, buffers, move |arguments| {
            let [from, to] = [arguments.addresses[0], arguments.addresses[1]].map(|a| a as *mut c_void);
            // SAFETY: the buffers have `count` elements and `count` for each rank; the communicator is alive.
            let status = unsafe { (nccl.all_gather)(from, to, count, kind, communicator.0, arguments.stream.cast()) };
            nccl.ok("ncclAllGather", status)
        })
    }

    /// Copies the `count` elements of `root`'s buffer to every rank's.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn broadcast(
        &self,
        client: &Client,
        buffer: Handle,
        count: usize,
        element: Element,
        root: usize,
    ) -> Result<(), Failure> {
        let (nccl, communicator, kind) = (Nccl::get()?, self.communicator.clone(), data_type(element));
        call(client, vec![(buffer.binding(), BufferIOAttr::ReadWrite)], move |arguments| {
            let at = arguments.addresses[0] as *mut c_void;
            let stream = arguments.stream.cast();
            // SAFETY: the buffer has `count` elements and the communicator is alive.
            let status = unsafe { (nccl.broadcast)(at, at, count, kind, root as c_int, communicator.0, stream) };
            nccl.ok("ncclBroadcast", status)
        })
    }
}

/// NCCL's number for a type.
fn data_type(element: Element) -> c_int {
    match element {
        Element::I8 => 0,
        Element::I32 => 2,
        Element::F16 => 6,
        Element::F32 => 7,
        Element::F64 => 8,
        Element::BF16 => 9,
    }
}

/// Brings rank 0's bytes to the other ranks.
fn exchange(place: &Place, bytes: &mut [u8; 128]) -> std::io::Result<()> {
    if place.size == 1 {
        return Ok(());
    }
    if place.rank == 0 {
        let port = place.address.rsplit(':').next().unwrap_or_default();
        let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
        listener.set_nonblocking(true)?;
        let start = Instant::now();
        let mut served = 1;
        while served < place.size {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.write_all(bytes)?;
                    served += 1;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => pause(start)?,
                Err(e) => return Err(e),
            }
        }
        return Ok(());
    }
    let start = Instant::now();
    loop {
        if let Ok(mut stream) = TcpStream::connect(&place.address) {
            stream.set_read_timeout(Some(PATIENCE))?;
            return stream.read_exact(bytes);
        }
        pause(start)?;
    }
}

fn pause(since: Instant) -> std::io::Result<()> {
    if since.elapsed() > PATIENCE {
        return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the other ranks did not come"));
    }
    std::thread::sleep(Duration::from_millis(5));
    Ok(())
}

/// NCCL's entry points.
struct Nccl {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(*mut c_void) -> c_int,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, *mut c_void, *mut c_void) -> c_int,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, *mut c_void) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

impl Nccl {
    fn get() -> Result<&'static Self, Failure> {
        static NCCL: OnceLock<Result<Nccl, String>> = OnceLock::new();
        NCCL.get_or_init(Self::load).as_ref().map_err(|reason| Failure::new("loading NCCL", reason.clone()))
    }

    fn load() -> Result<Self, String> {
        let library = library::load("nccl", &["2"])?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the types are those of NCCL 2's header.
                *unsafe { library.get($name) }.map_err(|e| e.to_string())?
            };
        }
        Ok(Self {
            unique_id: symbol!(b"ncclGetUniqueId"),
            init: symbol!(b"ncclCommInitRank"),
            destroy: symbol!(b"ncclCommDestroy"),
            all_reduce: symbol!(b"ncclAllReduce"),
            all_gather: symbol!(b"ncclAllGather"),
            broadcast: symbol!(b"ncclBroadcast"),
            error: symbol!(b"ncclGetErrorString"),
            _library: library,
        })
    }

    fn ok(&self, call: &'static str, status: c_int) -> Result<(), Failure> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NCCL gives a static string for every status.
        let text = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(Failure::new(call, text.to_string_lossy()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_what_the_first_has() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = |rank| Place { rank, size: 3, local_rank: 0, address: format!("127.0.0.1:{port}") };
        std::thread::scope(|scope| {
            for rank in 0..3 {
                scope.spawn(move || {
                    let mut bytes = [rank as u8 * 7; 128];
                    if rank == 0 {
                        bytes = [42; 128];
                    }
                    exchange(&place(rank), &mut bytes).unwrap();
                    assert_eq!(bytes, [42; 128]);
                });
            }
        });
    }

    #[test]
    fn a_missing_library_is_an_error_of_the_call() {
        let place = Place { rank: 0, size: 1, local_rank: 0, address: "127.0.0.1:0".into() };
        let joined = Group::join(place);
        match Nccl::get() {
            Ok(_) => assert_eq!(joined.is_ok(), Context::of(0).is_ok()),
            Err(missing) => {
                assert!(missing.to_string().contains("libnccl.so.2 was not found"), "{missing}");
                assert_eq!(joined.err(), Some(missing));
            }
        }
    }
}
