//! The operations of bimetal: each kernel family in one folder, with its definition, f64 reference, CPU and GPU code,
//! cases and tests.

pub mod activation;
pub mod elementwise;
pub mod linalg;
pub mod normalization;
mod pointwise;
pub mod reduction;
pub mod registry;
pub mod softmax;

pub use activation::*;
pub use elementwise::*;
pub use linalg::*;
pub use normalization::*;
pub use reduction::*;
pub use softmax::*;
