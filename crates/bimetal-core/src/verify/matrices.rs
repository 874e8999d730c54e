//! Matrices on which factorisations founder: `U·Σ·Vᵀ` with random orthogonal factors and the values asked for.

use super::Random;
use crate::op::{Spectrum, Structure};
use crate::{DType, Result, Spec, Tensor};

/// Reflectors whose product is a random orthogonal matrix: enough to mix all rows.
const REFLECTORS: usize = 4;

/// Fills the last two axes of `spec` with matrices.
pub(super) fn fill(spec: &Spec, structure: Structure, spectrum: Spectrum, seed: u64) -> Result<Tensor> {
    let dims = spec.shape.dims();
    let (m, n) = match dims {
        [.., m, n] => (*m, *n),
        _ => panic!("matrices have two axes"),
    };
    let mut tensor = Tensor::empty(dims, spec.dtype)?;
    let count = spec.numel().checked_div(m * n).unwrap_or(0);
    let mut random = Random::new(seed);
    each_dtype!(spec.dtype, T => {
        let out = tensor.as_mut_slice::<T>()?;
        for (i, out) in out.chunks_exact_mut((m * n).max(1)).enumerate() {
            let plain = matches!(spectrum, Spectrum::OneBad | Spectrum::OneNan) && i != count / 2;
            let matrix = Matrix { m, n, dtype: spec.dtype, structure };
            let made = matrix.make(if plain { Spectrum::Random } else { spectrum }, &mut random);
            for (out, value) in out.iter_mut().zip(made) {
                *out = <T as crate::Scalar>::from_f64(value);
            }
        }
    });
    Ok(tensor)
}

struct Matrix {
    m: usize,
    n: usize,
    dtype: DType,
    structure: Structure,
}

impl Matrix {
    fn make(&self, spectrum: Spectrum, random: &mut Random) -> Vec<f64> {
        let (m, n) = (self.m, self.n);
        let diagonal = |value: f64| (0..m * n).map(|i| if i / n == i % n { value } else { 0.0 }).collect::<Vec<_>>();
        let small = self.dtype.size() == 2;
        match spectrum {
            Spectrum::Random => self.random(random),
            Spectrum::Zero => vec![0.0; m * n],
            Spectrum::Identity => diagonal(1.0),
            Spectrum::Banded => self.banded(random),
            Spectrum::Scaled(power) => {
                let power = if self.dtype == DType::F16 { power / 10 } else { power };
                self.random(random).iter().map(|x| x * 10f64.powi(power)).collect()
            }
            Spectrum::OneBad => match self.structure {
                Structure::General => vec![0.0; m * n],
                Structure::Symmetric => diagonal(0.0),
                Structure::Positive => diagonal(-1.0),
            },
            Spectrum::OneNan => {
                let mut made = self.random(random);
                let at = m.min(n).saturating_sub(1) * n / 2;
                if let Some(x) = made.get_mut(at) {
                    *x = f64::NAN;
                }
                made
            }
            Spectrum::Graded => {
                let decades = if small { 3.0 } else { 8.0 };
                let grade = |i: usize, n: usize| 10f64.powf(-0.5 * decades * i as f64 / n.max(1) as f64);
                let base = self.random(random);
                (0..m * n).map(|i| base[i] * grade(i / n, m) * grade(i % n, n)).collect()
            }
            Spectrum::RankDeficient | Spectrum::NearSingular | Spectrum::Repeated | Spectrum::Clustered => {
                let values = self.values(spectrum);
                self.rotated(&values, random)
            }
        }
    }

    /// The singular values or eigenvalues asked for.
    fn values(&self, spectrum: Spectrum) -> Vec<f64> {
        let (k, epsilon) = (self.m.min(self.n), self.dtype.epsilon());
        let value = |i: usize| match spectrum {
            Spectrum::RankDeficient if i >= k.div_ceil(2) => 0.0,
            Spectrum::NearSingular if i + 1 == k && k > 1 => 1e-3 * epsilon,
            Spectrum::Clustered => 1.0 + 4.0 * epsilon * i as f64,
            Spectrum::Repeated => [1.0, 2.0, 0.5][i % 3],
            _ => 1.0 + i as f64 / k as f64,
        };
        let sign = |i: usize| if self.structure == Structure::Symmetric && i % 2 == 1 { -1.0 } else { 1.0 };
        (0..k).map(|i| sign(i) * value(i)).collect()
    }

    fn random(&self, random: &mut Random) -> Vec<f64> {
        let (m, n) = (self.m, self.n);
        let g: Vec<f64> = (0..m * n).map(|_| random.normal()).collect();
        match self.structure {
            Structure::General => g,
            Structure::Symmetric => (0..n * n).map(|i| 0.5 * (g[i] + g[i % n * n + i / n])).collect(),
            Structure::Positive => {
                let row = |i: usize| &g[i * n..][..n];
                let dot = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f64>();
                let one = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
                (0..n * n).map(|i| dot(i / n, i % n) / n as f64 + one(i / n, i % n)).collect()
            }
        }
    }

    fn banded(&self, random: &mut Random) -> Vec<f64> {
        let n = self.n;
        let base = Self { structure: Structure::General, ..*self }.random(random);
        let element = |i: usize, j: usize| match self.structure {
            _ if i.abs_diff(j) > 1 => 0.0,
            Structure::General => base[i * n + j],
            Structure::Symmetric => base[i.min(j) * n + i.max(j)],
            Structure::Positive if i == j => 2.0 + base[i * n + j].abs(),
            Structure::Positive => base[i.min(j) * n + i.max(j)].clamp(-1.0, 1.0),
        };
        (0..self.m * n).map(|i| element(i / n, i % n)).collect()
    }

    /// `U·diag(values)·Vᵀ`, with `U = V` for symmetric matrices.
    fn rotated(&self, values: &[f64], random: &mut Random) -> Vec<f64> {
        let (m, n) = (self.m, self.n);
        let mut a = vec![0.0; m * n];
        for (i, value) in values.iter().enumerate() {
            a[i * n + i] = *value;
        }
        for _ in 0..REFLECTORS {
            let left = unit(m, random);
            let right = if self.structure == Structure::General { unit(n, random) } else { left.clone() };
            for j in 0..n {
                let dot = (0..m).map(|i| left[i] * a[i * n + j]).sum::<f64>();
                (0..m).for_each(|i| a[i * n + j] -= 2.0 * dot * left[i]);
            }
            for i in 0..m {
                let dot = (0..n).map(|j| right[j] * a[i * n + j]).sum::<f64>();
                (0..n).for_each(|j| a[i * n + j] -= 2.0 * dot * right[j]);
            }
        }
        if self.structure != Structure::General {
            for i in 0..n {
                for j in 0..i {
                    a[i * n + j] = a[j * n + i];
                }
            }
        }
        a
    }
}

fn unit(n: usize, random: &mut Random) -> Vec<f64> {
    let mut v: Vec<f64> = (0..n).map(|_| random.normal()).collect();
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    fn made(dims: &[usize], structure: Structure, spectrum: Spectrum) -> Vec<f64> {
        let spec = Spec::new(Shape::new(dims).unwrap(), DType::F64);
        fill(&spec, structure, spectrum, 3).unwrap().to_f64_vec().unwrap()
    }

    #[test]
    fn rotations_keep_the_frobenius_norm_and_symmetry() {
        let a = made(&[9, 9], Structure::Symmetric, Spectrum::Repeated);
        let squares: f64 = a.iter().map(|x| x * x).sum();
        assert!((squares - 3.0 * (1.0 + 4.0 + 0.25)).abs() < 1e-12, "{squares}");
        assert!((0..81).all(|i| a[i] == a[i % 9 * 9 + i / 9]));
    }

    #[test]
    fn only_the_middle_matrix_is_bad() {
        let a = made(&[3, 4, 4], Structure::General, Spectrum::OneNan);
        let bad: Vec<usize> =
            a.chunks(16).enumerate().filter(|(_, m)| m.iter().any(|x| x.is_nan())).map(|x| x.0).collect();
        assert_eq!(bad, [1]);
    }

    #[test]
    fn half_the_rank_is_missing() {
        let a = made(&[4, 6], Structure::General, Spectrum::RankDeficient);
        let minor = |c: [usize; 3]| {
            let x = |i: usize, j: usize| a[i * 6 + c[j]];
            x(0, 0) * (x(1, 1) * x(2, 2) - x(1, 2) * x(2, 1)) - x(0, 1) * (x(1, 0) * x(2, 2) - x(1, 2) * x(2, 0))
                + x(0, 2) * (x(1, 0) * x(2, 1) - x(1, 1) * x(2, 0))
        };
        assert!(minor([0, 1, 2]).abs() < 1e-12 && minor([2, 4, 5]).abs() < 1e-12);
    }
}
