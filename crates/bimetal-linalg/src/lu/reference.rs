//! What an LU factorisation, solution, inverse and determinant must fulfil: LAPACK's ratios, `≤ 30`, against elimination
//! with partial pivoting in f64, and the status that each matrix deserves.

use super::Kind;
use crate::cholesky::reference::{ALLOWED, residual};
use crate::ratio::{PANEL, compared_columns, extents, norm1, product, reconstruction, subtract_product, worst};
use crate::status::NOT_FINITE;
use bimetal_core::DType;
use bimetal_core::op::{Property, Values};

/// Elimination in f64: the factors in place, and the row exchanged with each.
struct Eliminated {
    lu: Vec<f64>,
    swaps: Vec<usize>,
    n: usize,
    /// The first pivot, from 0, that rounding may turn into zero, and whether it is certainly zero.
    doubtful: Option<(usize, bool)>,
}

fn eliminate(a: &[f64], [m, n]: [usize; 2], dtype: DType) -> Eliminated {
    let epsilon = dtype.epsilon().min(DType::F32.epsilon());
    let doubt = 4.0 * m.max(n) as f64 * epsilon * norm1(a, n);
    let mut out = Eliminated { lu: a.to_vec(), swaps: Vec::new(), n, doubtful: None };
    let w = &mut out.lu;
    let r = m.min(n);
    for first in (0..r).step_by(PANEL) {
        let end = r.min(first + PANEL);
        for k in first..end {
            let p = (k..m).fold(k, |p, i| if w[i * n + k].abs() > w[p * n + k].abs() { i } else { p });
            out.swaps.push(p);
            (0..n).for_each(|j| w.swap(k * n + j, p * n + j));
            let pivot = w[k * n + k];
            if pivot.abs() <= doubt && out.doubtful.is_none() {
                out.doubtful = Some((k, k == 0 && pivot == 0.0));
            }
            for i in k + 1..m {
                let factor = if pivot == 0.0 { 0.0 } else { w[i * n + k] / pivot };
                w[i * n + k] = factor;
                for j in k + 1..end {
                    w[i * n + j] -= factor * w[k * n + j];
                }
            }
        }
        for i in first..end {
            for k in first..i {
                let factor = w[i * n + k];
                (end..n).for_each(|j| w[i * n + j] -= factor * w[k * n + j]);
            }
        }
        if end < m && end < n {
            let left: Vec<f64> = (end..m).flat_map(|i| w[i * n + first..i * n + end].to_vec()).collect();
            let right: Vec<f64> = (first..end).flat_map(|k| w[k * n + end..(k + 1) * n].to_vec()).collect();
            subtract_product(w, n, end, [&left, &right], end - first);
        }
    }
    out
}

impl Eliminated {
    /// Whether a status of 0 or more fits the pivots.
    fn deserves(&self, status: i32) -> bool {
        match self.doubtful {
            None => status == 0,
            Some((k, true)) => status == k as i32 + 1,
            Some((k, false)) => status == 0 || status > k as i32 && status <= self.n as i32,
        }
    }

    /// `A⁻¹·B` for `k` columns.
    fn solve(&self, b: &[f64], k: usize) -> Vec<f64> {
        let (n, mut x) = (self.n, b.to_vec());
        for (i, &p) in self.swaps.iter().enumerate() {
            (0..k).for_each(|j| x.swap(i * k + j, p * k + j));
        }
        for i in 0..n {
            for l in 0..i {
                (0..k).for_each(|j| x[i * k + j] -= self.lu[i * n + l] * x[l * k + j]);
            }
        }
        for i in (0..n).rev() {
            for l in i + 1..n {
                (0..k).for_each(|j| x[i * k + j] -= self.lu[i * n + l] * x[l * k + j]);
            }
            (0..k).for_each(|j| x[i * k + j] /= self.lu[i * n + i]);
        }
        x
    }

    /// The sign and the logarithm of the magnitude of the determinant.
    fn determinant(&self) -> (f64, f64) {
        let diagonal = (0..self.n).map(|i| self.lu[i * self.n + i]);
        let swaps = self.swaps.iter().enumerate().filter(|(i, p)| i != *p).count();
        let sign = if swaps % 2 == 1 { -1.0 } else { 1.0 };
        (diagonal.clone().fold(sign, |s, u| s * if u == 0.0 { 0.0 } else { u.signum() }), diagonal.map(|u| u.abs().ln()).sum())
    }
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|e| if e / n == e % n { 1.0 } else { 0.0 }).collect()
}

/// The properties of all outputs of an operation; `k` right-hand sides.
pub(super) fn judge(kind: Kind, k: usize, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [count, m, n] = extents(&inputs[0]);
    let dtype = inputs[0].spec.dtype;
    let (mut statuses, mut errors) = (vec![0.0; count], vec![0.0; count]);
    let statuses_found = &outputs[outputs.len() - 1].data;
    let name = match kind {
        Kind::Lu => "reconstruction",
        Kind::Solve | Kind::Inv => "residual",
        Kind::Det | Kind::Slogdet => "determinant",
    };
    for i in 0..count {
        let a = &inputs[0].data[i * m * n..][..m * n];
        let sides = inputs.get(1).map_or(&[][..], |b| &b.data[i * n * k..][..n * k]);
        let finite = a.iter().chain(sides).all(|x| x.is_finite());
        let status = statuses_found[i] as i32;
        let size = outputs[0].data.len() / count;
        let out = &outputs[0].data[i * size..][..size];
        let nan = || if out.iter().all(|x| x.is_nan()) { 0.0 } else { f64::INFINITY };
        if !finite {
            statuses[i] = if status == NOT_FINITE { 0.0 } else { f64::INFINITY };
            errors[i] = nan();
            continue;
        }
        let exact = eliminate(a, [m, n], dtype);
        let determinants = matches!(kind, Kind::Det | Kind::Slogdet);
        let deserved = if determinants { status == 0 } else { exact.deserves(status) };
        statuses[i] = if deserved { 0.0 } else { f64::INFINITY };
        errors[i] = match kind {
            Kind::Lu => {
                let r = m.min(n);
                factors(a, [m, n], out, &outputs[1].data[i * r..][..r], dtype)
            }
            Kind::Solve | Kind::Inv if status > 0 => nan(),
            Kind::Solve => solution(a, sides, [n, k], out, &exact, dtype),
            Kind::Inv => solution(a, &identity(n), [n, n], out, &exact, dtype),
            Kind::Det => determinant(a, out[0], &exact, dtype),
            Kind::Slogdet => logarithm(a, [out[0], outputs[1].data[i]], &exact, dtype),
        };
    }
    vec![
        worst(name, ALLOWED, errors.into_iter().enumerate()),
        worst(Property::STATUS, 0.0, statuses.into_iter().enumerate()),
    ]
}

fn factors(a: &[f64], [m, n]: [usize; 2], lu: &[f64], pivots: &[f64], dtype: DType) -> f64 {
    let (r, mut rows) = (m.min(n), a.to_vec());
    for (i, &p) in pivots.iter().enumerate() {
        let p = p as usize;
        if p <= i || p > m {
            return f64::INFINITY;
        }
        (0..n).for_each(|j| rows.swap(i * n + j, (p - 1) * n + j));
    }
    let l: Vec<f64> = (0..m * r).map(|e| (e / r.max(1), e % r.max(1))).map(|(i, j)| lower(lu, n, i, j)).collect();
    let u: Vec<f64> = (0..r * n).map(|e| if e % n >= e / n { lu[e] } else { 0.0 }).collect();
    if l.iter().any(|x| x.abs() > 1.0 + 2.0 * dtype.epsilon()) {
        return f64::INFINITY;
    }
    let columns = compared_columns(n);
    reconstruction(&rows, &product(&l, &u, [m, r, n], &columns), [m, n], &columns, dtype)
}

fn lower(lu: &[f64], n: usize, i: usize, j: usize) -> f64 {
    match i.cmp(&j) {
        std::cmp::Ordering::Greater => lu[i * n + j],
        std::cmp::Ordering::Equal => 1.0,
        std::cmp::Ordering::Less => 0.0,
    }
}

fn solution(a: &[f64], b: &[f64], [n, k]: [usize; 2], x: &[f64], exact: &Eliminated, dtype: DType) -> f64 {
    if x.iter().all(|x| x.is_finite()) {
        return residual(a, x, b, [n, k], dtype);
    }
    // Only what the dtype cannot hold may be infinite; from a matrix that is singular but for rounding anything may come.
    let solved = exact.solve(b, k);
    let fits = solved.iter().zip(x).any(|(solved, x)| !x.is_finite() && solved.abs() < 0.25 * dtype.max());
    if exact.doubtful.is_none() && fits { f64::INFINITY } else { 0.0 }
}

/// `n·ε·‖A‖·‖A⁻¹‖`: the relative change of a determinant that rounding explains; none for singular matrices.
fn relative(a: &[f64], exact: &Eliminated, dtype: DType) -> Option<f64> {
    let n = exact.n;
    let singular = (0..n).any(|i| exact.lu[i * n + i] == 0.0);
    let epsilon = dtype.epsilon().min(DType::F32.epsilon());
    (!singular).then(|| n as f64 * epsilon * norm1(a, n) * norm1(&exact.solve(&identity(n), n), n))
}

fn determinant(a: &[f64], found: f64, exact: &Eliminated, dtype: DType) -> f64 {
    let (n, (sign, log)) = (exact.n, exact.determinant());
    let value = sign * log.exp();
    let Some(relative) = relative(a, exact, dtype) else {
        // Hadamard's bound on the determinant of what rounding adds.
        let rows = a.chunks(n).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt());
        let unit = n as f64 * dtype.epsilon() * rows.product::<f64>();
        return if found == 0.0 { 0.0 } else { found.abs() / unit };
    };
    let relative = relative + dtype.epsilon() * (1.0 + log.abs());
    if value.abs() * (1.0 + 30.0 * relative) >= dtype.max() {
        let large = found.abs() >= dtype.max() * (1.0 - 30.0 * relative).max(0.1) && found.signum() == sign;
        return if large || relative > 0.03 { 0.0 } else { f64::INFINITY };
    }
    let distance = (found - value).abs();
    if distance <= 2.0 * dtype.min_positive() { 0.0 } else { distance / (relative * value.abs()).max(dtype.min_positive()) }
}

fn logarithm(a: &[f64], [sign, log]: [f64; 2], exact: &Eliminated, dtype: DType) -> f64 {
    let (exact_sign, exact_log) = exact.determinant();
    let Some(relative) = relative(a, exact, dtype) else {
        // Zero, or what rounding made of it.
        let zero = sign == 0.0 && log == f64::NEG_INFINITY;
        return if zero || !a.iter().all(|&x| x == 0.0) && log.is_finite() { 0.0 } else { f64::INFINITY };
    };
    if relative > 0.03 {
        return if log < exact_log.max(0.0) + 10.0 * exact.n as f64 { 0.0 } else { f64::INFINITY };
    }
    let terms: f64 = (0..exact.n).map(|i| exact.lu[i * exact.n + i].abs().ln().abs()).sum();
    let distance = (log - exact_log).abs();
    if sign == exact_sign { distance / (relative + dtype.epsilon() * (1.0 + terms)) } else { f64::INFINITY }
}
