//! Linear algebra: products, factorisations and solvers.

mod blocks;
mod lanes;
#[allow(dead_code)]
mod ratio;
mod rows;
mod small;
mod status;
mod system;

bimetal_core::domain!(pub "linalg": matmul, cholesky, lu, trsm, syrk, norms);
