//! The operations of bimetal: each kernel family in one folder, with its definition, f64 reference, CPU and GPU code,
//! cases and tests.

pub mod activation;
pub mod elementwise;
pub mod normalization;
mod pointwise;
pub mod reduction;
pub mod registry;
pub mod softmax;

pub use bimetal_linalg as linalg;

pub use activation::*;
pub use elementwise::*;
// Every domain has a list called DOMAIN; nobody asks for one at this level.
#[allow(ambiguous_glob_reexports)]
pub use linalg::*;
pub use normalization::*;
pub use reduction::*;
pub use softmax::*;
