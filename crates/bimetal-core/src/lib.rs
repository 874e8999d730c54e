//! Tensors, devices, the operation contract, CPU vector levels and GPU clients: what every operation stands on.

pub mod calibrate;
pub mod check;
pub mod cpu;
mod device;
pub mod dlpack;
mod dtype;
mod error;
pub mod gpu;
mod host;
pub mod io;
pub mod op;
pub mod registry;
pub mod route;
mod shape;
mod tensor;
pub mod verify;

pub use device::{Absent, Device, DeviceInfo, devices};
pub use dtype::{DType, Scalar};
pub use error::{Error, Problem, Result};
pub use gpu::{Gpu, Graph};
pub use host::{ALIGNMENT, trim_host_pool};
pub use shape::{MAX_RANK, Shape};
pub use tensor::{Spec, Tensor};
