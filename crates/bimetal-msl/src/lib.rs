//! The Metal source of every kernel in the registry, emitted and type-checked on a machine without Metal.
//!
//! [`connect`] gives a [`Gpu`] behind which [`recorder`] only compiles what it is asked to launch;
//! [`emit::all`] walks the registry's cases through it; [`clang`] checks the sources against a stand-in for Metal's
//! headers. This proves lowering, types and limits, not Apple's compiler.

pub mod apple;
pub mod clang;
pub mod emit;
pub mod recorder;

use bimetal_core::{Device, Gpu};
use cubecl::client::Client;
use cubecl_common::device::DeviceId;

/// The device under which the recorder answers: no adapter of a real machine has this index.
pub const DEVICE: Device = Device::Metal(u16::MAX);

/// The recording GPU: an Apple GPU as [`apple::properties`] describes it.
pub fn connect() -> &'static Gpu {
    let client = Client::load::<recorder::Recorder>(DeviceId { type_id: 0, index_id: 0 });
    Gpu::from_client(DEVICE, client)
}
