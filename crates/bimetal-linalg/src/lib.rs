//! Linear algebra: products of matrices and vectors.

#[allow(dead_code)]
mod ratio;
#[allow(dead_code)]
mod status;

bimetal_core::domain!(pub "linalg": matmul);
