//! Linear algebra: products of matrices and vectors, factorisations and decompositions.

mod dense;
mod jacobi;
#[allow(dead_code)]
mod ratio;
#[allow(dead_code)]
mod status;

bimetal_core::domain!(pub "linalg": matmul, eigh, svd);
