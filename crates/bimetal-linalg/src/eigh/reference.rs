//! Eigenvalues in f64 by the classical Jacobi method: rotations `JᵀAJ` until nothing is left beside the diagonal. Those of
//! large matrices, where it would take minutes, are faer's in f64.

use faer::{MatRef, Side};

/// Largest order that is left to Jacobi's method.
const LARGEST: usize = 256;

/// The symmetric matrix of which one triangle is given.
pub(super) fn mirrored(a: &[f64], n: usize, upper: bool) -> Vec<f64> {
    (0..n * n)
        .map(|e| {
            let (i, j) = (e / n, e % n);
            if (j > i) == upper || i == j { a[e] } else { a[j * n + i] }
        })
        .collect()
}

/// The eigenvalues of a symmetric matrix, ascending.
pub(super) fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    if n > LARGEST
        && let Ok(values) = MatRef::from_row_major_slice(&a, n, n).self_adjoint_eigenvalues(Side::Lower)
    {
        return values;
    }
    let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for _sweep in 0..60 {
        let mut beside = 0.0f64;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                beside = beside.max(off.abs());
                if off.abs() <= 1e-18 * largest {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                }
            }
        }
        if beside <= 1e-15 * largest {
            break;
        }
    }
    let mut values: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    values.sort_by(f64::total_cmp);
    values
}
