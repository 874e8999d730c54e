//! LAPACK's test ratios in f64: how far a factorisation is from its matrix, in multiples of what rounding explains.

use bimetal_core::DType;
use bimetal_core::cpu::parallel;
use bimetal_core::op::{Property, Values};
use faer::{Accum, MatMut, MatRef, Par};

/// Extents of a batch of matrices: how many, rows, columns.
pub(crate) fn extents(values: &Values) -> [usize; 3] {
    let dims = values.dims();
    let [m, n] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    [dims[..dims.len() - 2].iter().product(), m, n]
}

/// Columns that are compared: all of up to 512, 256 spread evenly of more, because a product costs O(n³).
pub(crate) fn compared_columns(n: usize) -> Vec<usize> {
    if n <= 512 { (0..n).collect() } else { (0..256).map(|i| i * n / 256).collect() }
}

/// Multiply-adds from which a product is left to faer.
const LARGE: usize = 1 << 20;

/// The columns `columns` of `a·b`, `m`×`k` by `k`×`n`, as an `m`×`columns.len()` matrix.
pub(crate) fn product(a: &[f64], b: &[f64], [m, k, n]: [usize; 3], columns: &[usize]) -> Vec<f64> {
    let width = columns.len();
    let mut picked = Vec::with_capacity(k * width);
    b.chunks_exact(n.max(1)).take(k).for_each(|row| picked.extend(columns.iter().map(|&j| row[j])));
    let mut out = vec![0.0; m * width];
    if m * k * width >= LARGE {
        let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(&picked, k, width));
        let to = MatMut::from_row_major_slice_mut(&mut out, m, width);
        faer::linalg::matmul::matmul(to, Accum::Replace, a, b, 1.0, Par::rayon(parallel::threads()));
        return out;
    }
    for (i, row) in out.chunks_exact_mut(width.max(1)).enumerate().take(m) {
        for (p, picked) in picked.chunks_exact(width).enumerate() {
            let factor = a[i * k + p];
            row.iter_mut().zip(picked).for_each(|(out, b)| *out += factor * b);
        }
    }
    out
}

/// Columns that an elimination in f64 takes together; what they subtract from the rest is a product.
pub(crate) const PANEL: usize = 64;

/// Subtracts `left·right`, with `k` columns and rows, from the part of a row-major matrix of `n` columns that begins at
/// (`first`, `first`).
pub(crate) fn subtract_product(w: &mut [f64], n: usize, first: usize, [left, right]: [&[f64]; 2], k: usize) {
    let m = w.len() / n;
    let to = MatMut::from_row_major_slice_mut(w, m, n).submatrix_mut(first, first, m - first, n - first);
    let left = MatRef::from_row_major_slice(left, m - first, k);
    let right = MatRef::from_row_major_slice(right, k, n - first);
    faer::linalg::matmul::matmul(to, Accum::Add, left, right, -1.0, Par::rayon(parallel::threads()));
}

/// Side of the squares in which a matrix is transposed.
const TILE: usize = 16;

/// The transpose of an `m`×`n` matrix.
pub(crate) fn transposed(a: &[f64], m: usize, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    // Squares, so that neither side is walked with a long stride.
    for first in (0..m).step_by(TILE) {
        for column in (0..n).step_by(TILE) {
            for i in first..m.min(first + TILE) {
                for j in column..n.min(column + TILE) {
                    out[j * m + i] = a[i * n + j];
                }
            }
        }
    }
    out
}

/// The largest column sum of magnitudes of a matrix with `n` columns; NaN if it holds one.
pub(crate) fn norm1(a: &[f64], n: usize) -> f64 {
    let mut sums = vec![0.0; n];
    for row in a.chunks_exact(n.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.abs());
    }
    sums.into_iter().fold(0.0, |worst: f64, sum| if worst.is_nan() || sum.is_nan() { f64::NAN } else { worst.max(sum) })
}

/// `‖A − B‖₁ / (max(m, n)·‖A‖₁·ε)`, where `b` holds the columns `columns` of an approximation of the `m`×`n` matrix `a`.
/// A zero matrix must be met exactly, but for numbers below the dtype's normal ones.
pub(crate) fn reconstruction(a: &[f64], b: &[f64], [m, n]: [usize; 2], columns: &[usize], dtype: DType) -> f64 {
    let width = columns.len();
    let difference: Vec<f64> = (0..m * width).map(|i| a[i / width * n + columns[i % width]] - b[i]).collect();
    let distance = norm1(&difference, width);
    let floor = dtype.min_positive() / dtype.epsilon();
    let unit = m.max(n) as f64 * norm1(a, n).max(floor) * dtype.epsilon();
    if distance == 0.0 { 0.0 } else { distance / unit }
}

/// `‖I − QᵀQ‖₁ / (m·ε)` of an `m`×`n` matrix with orthonormal columns.
pub(crate) fn orthogonality(q: &[f64], [m, n]: [usize; 2], dtype: DType) -> f64 {
    let columns = compared_columns(n);
    let mut gram = product(&transposed(q, m, n), q, [n, m, n], &columns);
    let width = columns.len();
    for (j, &column) in columns.iter().enumerate() {
        gram[column * width + j] -= 1.0;
    }
    norm1(&gram, width) / (m.max(1) as f64 * dtype.epsilon())
}

/// The worst of a batch; matrices that are not judged are not given.
pub(crate) fn worst(name: &'static str, allowed: f64, errors: impl Iterator<Item = (usize, f64)>) -> Property {
    let nan_last = |error: f64| if error.is_nan() { f64::INFINITY } else { error };
    let (index, error) = errors.max_by(|a, b| nan_last(a.1).total_cmp(&nan_last(b.1))).unwrap_or((0, 0.0));
    Property { name, error: nan_last(error), allowed, index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_known_matrices() {
        let (columns, q) = (compared_columns(2), [0.6, 0.8, -0.8, 0.6]);
        assert!(orthogonality(&q, [2, 2], DType::F32) < 1e-6);
        assert!(orthogonality(&[0.6, 0.8, -0.8, 0.7], [2, 2], DType::F32) > 1e5);
        let identity = product(&q, &transposed(&q, 2, 2), [2, 2, 2], &columns);
        assert!(reconstruction(&[1.0, 0.0, 0.0, 1.0], &identity, [2, 2], &columns, DType::F32) < 1e-6);
        assert_eq!(reconstruction(&[0.0; 4], &[0.0; 4], [2, 2], &columns, DType::F32), 0.0);
        assert!(reconstruction(&[0.0; 4], &[1e-9; 4], [2, 2], &columns, DType::F32) > 1e5);
        assert!(worst("orthogonality", 30.0, [(0, 1.0), (1, f64::NAN), (2, 3.0)].into_iter()).error.is_infinite());
    }
}
