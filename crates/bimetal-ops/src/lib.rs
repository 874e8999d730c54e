//! The operations of bimetal: each kernel family in one folder, with its definition, f64 reference, CPU and GPU code,
//! cases and tests.

pub mod activation;
pub mod elementwise;
mod pointwise;
pub mod registry;
pub mod softmax;

pub use activation::*;
pub use elementwise::*;
pub use softmax::*;
