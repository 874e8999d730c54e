//! Linear algebra: products, factorisations, solvers and decompositions.

mod blocks;
mod dense;
mod eliminate;
mod interleaved;
mod jacobi;
mod lanes;
mod ratio;
mod rows;
mod small;
mod status;
mod system;

bimetal_core::domain!(pub "linalg": matmul, cholesky, lu, trsm, qr, householder, lstsq, eigh, svd, syrk, norms);
