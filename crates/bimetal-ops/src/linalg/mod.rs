//! Linear algebra: products of matrices and vectors.

crate::registry::domain!("linalg": matmul);
