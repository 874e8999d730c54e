//! Singular values in f64 by Hestenes' method: columns are rotated in pairs until all are orthogonal. Those of large
//! matrices, where it would take minutes, are faer's in f64.

use faer::MatRef;

/// Largest smaller extent that is left to rotations.
const LARGEST: usize = 256;

/// Smaller extents up to which matrices are judged by all of their singular values.
pub(crate) const JUDGED: usize = 300;

/// The largest singular value by power iteration from a fixed vector: from below, and close where the first ones are not all
/// alike. `apply` gives the product with a vector, `back` that of the transpose.
pub(crate) fn largest_value(n: usize, apply: impl Fn(&[f64]) -> Vec<f64>, back: impl Fn(&[f64]) -> Vec<f64>) -> f64 {
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x: Vec<f64> = (0..n).map(|i| ((i * i + 1) as f64).sin()).collect();
    let mut found = 0.0;
    for _ in 0..30 {
        let size = length(&x).max(f64::MIN_POSITIVE);
        x.iter_mut().for_each(|x| *x /= size);
        let image = apply(&x);
        found = length(&image);
        x = back(&image);
    }
    found
}

/// `A·x` for a matrix of `n` columns.
pub(crate) fn times(a: &[f64], n: usize, x: &[f64]) -> Vec<f64> {
    a.chunks_exact(n.max(1)).map(|row| row.iter().zip(x).map(|(a, x)| a * x).sum()).collect()
}

/// `Aᵀ·x` for a matrix of `n` columns.
pub(crate) fn transposed_times(a: &[f64], n: usize, x: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; n];
    for (row, x) in a.chunks_exact(n.max(1)).zip(x) {
        out.iter_mut().zip(row).for_each(|(out, a)| *out += a * x);
    }
    out
}

/// The singular values of an `m`×`n` matrix, descending.
pub(crate) fn singular_values(a: &[f64], m: usize, n: usize) -> Vec<f64> {
    if m.min(n) > LARGEST
        && let Ok(values) = MatRef::from_row_major_slice(a, m, n).singular_values()
    {
        return values;
    }
    singular_columns(a, m, n).into_iter().map(|(value, _)| value).collect()
}

/// The singular values, descending, each with its vector times the value: the left one for `m ≥ n`, else the right one.
pub(crate) fn singular_columns(a: &[f64], m: usize, n: usize) -> Vec<(f64, Vec<f64>)> {
    let at = |i: usize, j: usize| if m >= n { a[i * n + j] } else { a[j * n + i] };
    let (rows, cols) = (m.max(n), m.min(n));
    // Columns of the matrix or of its transpose, whichever are fewer.
    let mut columns: Vec<Vec<f64>> = (0..cols).map(|j| (0..rows).map(|i| at(i, j)).collect()).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    for _sweep in 0..60 {
        let mut rotated = false;
        for p in 0..cols {
            for q in p + 1..cols {
                let (xx, yy) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let xy = dot(&columns[p], &columns[q]);
                if xy.abs() <= 1e-14 * xx.sqrt() * yy.sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (yy - xx) / (2.0 * xy);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for i in 0..rows {
                    let (x, y) = (columns[p][i], columns[q][i]);
                    columns[p][i] = c * x - s * y;
                    columns[q][i] = s * x + c * y;
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let mut found: Vec<(f64, Vec<f64>)> = columns.into_iter().map(|x| (dot(&x, &x).sqrt(), x)).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found
}
