//! Linear algebra: products, factorisations, solvers and decompositions.

mod alone;
mod blocks;
mod compose;
mod condense;
mod conquer;
mod dense;
mod eliminate;
mod interleaved;
mod jacobi;
mod lanes;
mod ratio;
mod rows;
mod scratch;
mod small;
mod status;
mod system;
mod triangles;

pub use scratch::{cholesky_scratch, eigh_scratch, lu_scratch, qr_scratch, svd_scratch};

bimetal_core::domain!(pub "linalg": matmul, cholesky, lu, trsm, qr, householder, lstsq, eigh, svd, svd_truncated, pinv, pca, syrk, norms, spmv_csr, pipeline);
