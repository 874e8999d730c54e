//! Shapes of factorisations and linear systems: batches of square matrices, and the right-hand sides that go with them.

use bimetal_core::op::{Case, Fill, Input, Op, Role, Spectrum, Structure};
use bimetal_core::{Error, Result, Shape, Spec};

use crate::lanes::DTYPES;

/// Checks that there are `count` inputs of one floating dtype.
pub(crate) fn check(op: &'static str, inputs: &[&Spec], names: &[&'static str]) -> Result<()> {
    if inputs.len() != names.len() {
        return Err(Error::argument(op, "inputs", format!("{} tensors, got {}", names.len(), inputs.len())));
    }
    for (input, name) in inputs.iter().zip(names) {
        if !DTYPES.contains(&input.dtype) {
            return Err(Error::dtype(op, name, input.dtype, &DTYPES));
        }
        if input.dtype != inputs[0].dtype {
            return Err(Error::dtype(op, name, input.dtype, &[inputs[0].dtype]));
        }
    }
    Ok(())
}

/// How many matrices, and their rows and columns.
pub(crate) fn matrices(op: &'static str, name: &'static str, shape: &Shape) -> Result<[usize; 3]> {
    match shape.dims() {
        [batch @ .., m, n] if *m <= i32::MAX as usize && *n <= i32::MAX as usize => {
            Ok([batch.iter().product(), *m, *n])
        }
        _ => Err(Error::argument(op, name, format!("matrices in the last two axes, got {shape}"))),
    }
}

/// How many square matrices, and their order.
pub(crate) fn square(op: &'static str, name: &'static str, shape: &Shape) -> Result<[usize; 2]> {
    match matrices(op, name, shape)? {
        [count, m, n] if m == n => Ok([count, n]),
        _ => Err(Error::argument(op, name, format!("square matrices, got {shape}"))),
    }
}

/// The spec of a status: the leading extents.
pub(crate) fn status(shape: &Shape) -> Result<Spec> {
    let leading = &shape.dims()[..shape.rank() - 2];
    Ok(Spec::new(Shape::new(leading)?, bimetal_core::DType::I32))
}

/// A system of equations: `count` matrices of order `n`, each with `k` right-hand sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) count: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl System {
    /// A system from the shapes of the matrices and of the right-hand sides: matrices of as many rows, or a vector for
    /// each matrix.
    pub(crate) fn new(op: &'static str, a: &Shape, b: &Shape) -> Result<Self> {
        let [count, n] = square(op, "a", a)?;
        let leading = &a.dims()[..a.rank() - 2];
        match b.dims() {
            [batch @ .., rows] if batch == leading && *rows == n => Ok(Self { count, n, k: 1 }),
            [batch @ .., rows, k] if batch == leading && *rows == n => Ok(Self { count, n, k: *k }),
            _ => {
                let expected = format!("right-hand sides with the leading extents and {n} rows of {a}, got {b}");
                Err(Error::argument(op, "b", expected))
            }
        }
    }

    /// Elements of a matrix and of its right-hand sides.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        [self.n * self.n, self.n * self.k]
    }
}

/// The matrices of DESIGN.md's list on which a factorisation is tried at `dims`.
pub(crate) fn spectra(structure: Structure, dims: &[usize], case: impl Fn(Fill, &str) -> Case) -> Vec<Case> {
    let all = [
        (Spectrum::Random, "random"),
        (Spectrum::Zero, "zero"),
        (Spectrum::Identity, "identity"),
        (Spectrum::RankDeficient, "rank-deficient"),
        (Spectrum::NearSingular, "near-singular"),
        (Spectrum::Repeated, "repeated"),
        (Spectrum::Clustered, "clustered"),
        (Spectrum::Graded, "graded"),
        (Spectrum::Banded, "banded"),
        (Spectrum::Scaled(30), "1e30"),
        (Spectrum::Scaled(-30), "1e-30"),
        (Spectrum::OneBad, "one-bad"),
        (Spectrum::OneNan, "one-nan"),
    ];
    let name = dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x");
    all.iter().map(|(spectrum, tag)| case(Fill::Matrices(structure, *spectrum), &format!("{name} {tag}"))).collect()
}

/// A case with a label of its own.
pub(crate) fn labelled(op: impl Op + 'static, inputs: Vec<Input>, role: Role, label: &str) -> Case {
    Case { label: label.to_string(), ..Case::new(op, inputs, role) }
}
