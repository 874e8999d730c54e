//! The operations of bimetal: each kernel family in one folder, with its definition, f64 reference, CPU and GPU code,
//! cases and tests.

pub mod normalization;
pub mod registry;
pub mod softmax;

pub use normalization::*;
pub use softmax::*;
