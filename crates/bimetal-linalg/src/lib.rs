//! Linear algebra: products, factorisations, solvers and decompositions.

mod blocks;
mod compose;
mod dense;
mod jacobi;
mod lanes;
mod ratio;
mod rows;
mod small;
mod status;
mod system;

bimetal_core::domain!(pub "linalg": matmul, cholesky, lu, trsm, qr, householder, lstsq, eigh, svd, svd_truncated, pinv, pca, syrk, norms, spmv_csr, pipeline);
