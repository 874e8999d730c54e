//! Least squares: the `x` that minimises `‖A·x − b‖₂`, and of those the shortest, by QR for matrices of full rank, or by
//! singular values for any.

mod cpu;
mod gpu;
mod reference;
mod shortest;

pub use shortest::{LeastSquares, LstsqMethod, LstsqParams, lstsq_with, lstsq_with_into};

use crate::status;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum,
    Structure, Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Lstsq];

struct Lstsq;

struct Solve;

/// Extents: `m`×`n` matrices and `p` right-hand sides.
#[derive(Clone, Copy, Debug)]
struct Dims {
    batch: usize,
    m: usize,
    n: usize,
    p: usize,
}

/// A column of R whose diagonal element is at most this times its largest one makes a matrix rank-deficient.
fn rank_tolerance(m: usize, n: usize, dtype: DType) -> f64 {
    let computed = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    m.max(n) as f64 * computed.epsilon()
}

/// The least-squares solution of `a·x = b` by QR (LAPACK's `gels`): `a` is `[…, m, n]`, `b` `[…, m, p]` or `[…, m]`, and
/// `x` `[…, n, p]` or `[…, n]`. For `m ≥ n` it minimises `‖a·x − b‖₂`; for `m < n` it is the shortest exact solution.
///
/// Both have the same dtype: f32, f64, f16 or bf16; 16-bit types are computed in f32.
///
/// # Errors
/// Extents or dtypes that do not go together; [`Problem::NotFinite`] for the first matrix with NaN or infinity;
/// [`Problem::Singular`] for the first whose rank is not full: where a diagonal element of R (of `aᵀ` for `m < n`) is not
/// above `max(m, n)·ε` times the largest element of its column. Such systems have no stable solution by QR;
/// [`lstsq_with`] gives their shortest one by singular values.
///
/// ```
/// # use bimetal_linalg::lstsq;
/// # use bimetal_core::Tensor;
/// // The line through (0, 1), (1, 3), (2, 5).
/// let a = Tensor::from_slice(&[1.0f64, 0.0, 1.0, 1.0, 1.0, 2.0], &[3, 2])?;
/// let x = lstsq(&a, &Tensor::from_slice(&[1.0f64, 3.0, 5.0], &[3])?)?.to_vec::<f64>()?;
/// assert!((x[0] - 1.0).abs() < 1e-14 && (x[1] - 2.0).abs() < 1e-14);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lstsq(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [x, status] = lstsq_unchecked(a, b)?;
    ensure(&status)?;
    Ok(x)
}

/// [`lstsq`] without waiting for the device: the solutions, and an i32 status for each matrix. It is 0, or −1 for NaN or
/// infinity in `a`, or the first column, from 1, that depends on those before it; the solution is NaN then.
///
/// # Errors
/// Extents or dtypes that do not go together.
///
/// ```
/// # use bimetal_linalg::lstsq_unchecked;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 2.0, 4.0], &[2, 2])?;
/// let [x, status] = lstsq_unchecked(&a, &Tensor::from_slice(&[1.0f32, 1.0], &[2])?)?;
/// assert!(x.to_vec::<f32>()?[0].is_nan() && status.to_vec::<i32>()? == [2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lstsq_unchecked(a: &Tensor, b: &Tensor) -> Result<[Tensor; 2]> {
    let mut made = op::run(&Solve, &[a, b])?.into_iter();
    let mut next = || made.next().expect("there are two outputs");
    Ok([next(), next()])
}

/// [`lstsq`] into existing tensors for the solutions and the statuses, on the operands' device.
///
/// # Errors
/// As [`lstsq`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::lstsq_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[2.0f64], &[1, 1])?;
/// let (mut x, mut status) = (a.clone(), Tensor::zeros(&[], DType::I32)?);
/// lstsq_into(&a, &a, &mut x, &mut status)?;
/// assert_eq!(x.to_vec::<f64>()?, [1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lstsq_into(a: &Tensor, b: &Tensor, x: &mut Tensor, status: &mut Tensor) -> Result<()> {
    op::run_into(&Solve, &[a, b], &mut [x, status])?;
    ensure(status)
}

fn ensure(found: &Tensor) -> Result<()> {
    status::ensure("lstsq", found, |pivot| Problem::Singular { pivot })
}

/// Extents, and whether the right-hand sides are vectors.
fn dims(a: &Shape, b: &Shape) -> Result<(Dims, bool)> {
    let [leading @ .., m, n] = a.dims() else {
        return Err(Error::argument("lstsq", "a", format!("matrices of shape […, m, n], got {a}")));
    };
    let batch = leading.iter().product();
    match b.dims() {
        [same @ .., rows, p] if same == leading && rows == m => Ok((Dims { batch, m: *m, n: *n, p: *p }, false)),
        [same @ .., rows] if same == leading && rows == m => Ok((Dims { batch, m: *m, n: *n, p: 1 }, true)),
        _ => Err(Error::argument("lstsq", "b", format!("{m} rows and the leading extents of {a}, got {b}"))),
    }
}

/// The specs of solutions and statuses for inputs that go together.
fn solution_and_status(inputs: &[&Spec]) -> Result<[Spec; 2]> {
    let op = Lstsq.name();
    let [a, b] = inputs else {
        return Err(Error::argument(op, "inputs", format!("2 tensors, got {}", inputs.len())));
    };
    if !crate::qr::FLOATS.contains(&a.dtype) {
        return Err(Error::dtype(op, "a", a.dtype, &crate::qr::FLOATS));
    }
    if b.dtype != a.dtype {
        return Err(Error::dtype(op, "b", b.dtype, &[a.dtype]));
    }
    let (Dims { n, p, .. }, vectors) = dims(&a.shape, &b.shape)?;
    let leading = &a.shape.dims()[..a.shape.rank() - 2];
    let extents: &[usize] = if vectors { &[n] } else { &[n, p] };
    let x = Shape::new(&[leading, extents].concat()).map_err(|_| {
        let expected = format!("solutions that fit in memory, got {} for {}", b.shape, a.shape);
        Error::argument(op, "b", expected)
    })?;
    Ok([Spec::new(x, a.dtype), Spec::new(Shape::new(leading)?, DType::I32)])
}

impl Op for Solve {
    fn name(&self) -> &'static str {
        "lstsq"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        Ok(solution_and_status(inputs)?.into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops = dims(&inputs[0].shape, &inputs[1].shape).map_or(0, |(Dims { batch, m, n, p }, _)| {
            let k = m.min(n);
            batch * (2 * k * k * (3 * m.max(n) - k) / 3 + p * k * (4 * m.max(n) - k))
        });
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (flops as u64).max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 30.0, scaled: 30.0, why: "LAPACK's ratios for gels; solutions are judged by their residuals" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let (dims, _) = dims(inputs[0].shape(), inputs[1].shape())?;
        cpu::solve(&dims, inputs[0], inputs[1], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let (dims, _) = dims(inputs[0].shape(), inputs[1].shape())?;
        gpu::solve(gpu, &dims, inputs[0], inputs[1], outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let matrices = inputs[0].shape.rank() == inputs[1].shape.rank();
        let torch = (matrices && matches!(inputs[0].dtype, DType::F32 | DType::F64))
            .then(|| "y0.copy_(torch.linalg.lstsq(x0, x1).solution)".into());
        Peer { torch, torch_setup: None, numpy: None }
    }
}

impl Properties for Solve {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let (dims, _) = dims(&inputs[0].spec.shape, &inputs[1].spec.shape).expect("the case was checked");
        reference::properties(&dims, inputs, outputs)
    }
}

impl Definition for Lstsq {
    fn name(&self) -> &'static str {
        "lstsq"
    }

    fn doc(&self) -> &'static str {
        "least-squares and shortest solutions of linear systems, by QR or by singular values"
    }

    fn dtypes(&self) -> &'static [DType] {
        &crate::qr::FLOATS
    }

    fn cases(&self) -> Vec<Case> {
        let new = |a: &[usize], b: &[usize], spectrum, role| {
            let fill = Fill::Matrices(Structure::General, spectrum);
            Case::new(Solve, vec![Input::new(a, fill), Input::new(b, Fill::Normal)], role)
                .tagged(&format!("{spectrum:?}"))
        };
        let mut cases = vec![
            new(&[1000, 100], &[1000, 1], Spectrum::Random, Role::Bench),
            new(&[100, 64, 32], &[100, 64, 4], Spectrum::Random, Role::Bench),
        ];
        let agree = |a: &[usize], b: &[usize], spectrum| new(a, b, spectrum, Role::Agree);
        for spectrum in [
            Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::Repeated, Spectrum::Clustered,
            Spectrum::Graded, Spectrum::Scaled(25), Spectrum::Scaled(-25), Spectrum::OneBad, Spectrum::OneNan,
        ] {
            cases.push(agree(&[3, 12, 5], &[3, 12, 2], spectrum));
            cases.push(agree(&[3, 6, 13], &[3, 6, 3], spectrum));
        }
        for [m, n, p] in [
            [0, 0, 1], [3, 0, 2], [0, 3, 2], [1, 1, 1], [2, 1, 3], [1, 2, 3], [7, 7, 7], [17, 16, 1], [33, 31, 5],
            [16, 17, 1], [65, 40, 33], [100, 7, 2], [20, 90, 4], [130, 70, 3],
        ] {
            cases.push(agree(&[m, n], &[m, p], Spectrum::Random));
        }
        cases.push(agree(&[9, 4], &[9], Spectrum::Random));
        cases.push(agree(&[2, 3, 4, 9], &[2, 3, 4], Spectrum::Random));
        cases.push(agree(&[0, 4, 2], &[0, 4, 1], Spectrum::Random));
        cases.push(agree(&[4, 2], &[4, 0], Spectrum::Random));
        cases.extend(shortest::cases());
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        match shape.dims() {
            [leading @ .., m, _] => {
                let b = [leading, &[*m, 1]].concat();
                let inputs = vec![Input::new(shape.dims(), Fill::Normal), Input::new(&b, Fill::Normal)];
                Ok(Case::new(Solve, inputs, Role::Bench))
            }
            _ => Err(Error::argument("lstsq", "a", format!("matrices of shape […, m, n], got {shape}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_solution_and_the_matrix_without_one() {
        let a = Tensor::from_slice(&[1.0f64, 1.0, 1.0, 1.0], &[1, 4]).unwrap();
        let x = lstsq(&a, &Tensor::from_slice(&[8.0f64], &[1]).unwrap()).unwrap().to_vec::<f64>().unwrap();
        assert!(x.iter().all(|x| (x - 2.0).abs() < 1e-14), "{x:?}");
        let a = Tensor::from_slice(&[1.0f64, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0], &[2, 2, 2]).unwrap();
        let error = lstsq(&a, &Tensor::from_slice(&[1.0f64; 4], &[2, 2]).unwrap()).unwrap_err();
        assert_eq!(error, Error::Matrix { op: "lstsq", index: 1, problem: Problem::Singular { pivot: 2 } });
    }
}
