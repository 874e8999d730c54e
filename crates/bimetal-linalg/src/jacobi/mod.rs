//! One-sided Jacobi: rotations of pairs of columns until all are orthogonal, `A·V = U·Σ`.
//!
//! The singular values are the columns' lengths, `U` the columns of unit length, `V` the product of the rotations. A symmetric
//! matrix is shifted to `B = A + s·I`, positive definite: then `U = V`, the eigenvectors, and the lengths are `λ + s`, so
//! that nothing but the columns is rotated. Every singular value of a matrix with scaled columns has a small relative error
//! (Demmel and Veselić, 1992), as with LAPACK's `gesvj`.

pub(crate) mod cpu;

/// Cosines below this many epsilons, plus half of the root of the rows, are rounding errors of a scalar product.
pub(crate) const COSINE: f64 = 2.0;

/// The cosine of two columns of `rows` elements that counts as zero.
pub(crate) fn tolerance(rows: usize, epsilon: f64) -> f64 {
    epsilon * (COSINE + 0.5 * (rows as f64).sqrt())
}
