//! Linear algebra: products of matrices and vectors, factorisations.

mod ratio;

mod status;

bimetal_core::domain!(pub "linalg": householder, lstsq, matmul, qr);
