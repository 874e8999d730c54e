//! Numeric operations on the better of a machine's two metals: its GPU or its CPU's vector units.
//!
//! ```
//! use bimetal::{Tensor, softmax};
//! let x = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0], &[2, 2])?;
//! let y = softmax(&x, -1)?;
//! assert!((y.to_vec::<f32>()?[0] - 0.268_941_43).abs() < 1e-6);
//! # Ok::<(), bimetal::Error>(())
//! ```
//!
//! A function runs where its tensors live. For host tensors [`route::choose`] decides: on the CPU, unless this machine
//! was calibrated ([`calibrate`], or the command `bimetal calibrate`) and a hardware GPU is predicted to be faster with
//! both transfers.

pub use bimetal_core::{
    DType, Device, DeviceInfo, Error, Gpu, Graph, Result, Shape, Spec, Tensor, devices, trim_host_pool,
};
pub use bimetal_core::{calibrate, dlpack, gpu, io, route};
pub use bimetal_ops::*;
