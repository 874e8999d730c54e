//! The Moore–Penrose inverse: `A⁺ = V·Σ⁺·Uᵀ` from the singular value decomposition.

mod cpu;
mod gpu;
pub(crate) mod reference;

use crate::compose::{self, Batch, Decomposed, Source};
use crate::system;
use crate::{blocks::working, lanes::DTYPES, status};
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum,
    Structure, Tolerance, Values,
};
use bimetal_core::{DType, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Pinv];

/// Options of [`pinv_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PinvParams {
    /// Singular values up to this part of the largest one count as zero; `None` is `max(m, n)·ε`, with the ε of f64 or f32
    /// (in which 16-bit types are computed).
    pub rcond: Option<f64>,
    /// A matrix that fails is an error, which waits for the device; otherwise the status alone tells of it.
    pub check_errors: bool,
}

impl PinvParams {
    /// The usual cutoff, with errors.
    pub const fn auto() -> Self {
        Self { rcond: None, check_errors: true }
    }
}

impl Default for PinvParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// The result of [`pinv_with`].
#[derive(Clone, Debug)]
pub struct PseudoInverse {
    /// `[…, n, m]`: the inverses.
    pub inverse: Tensor,
    /// i32, the leading extents: how many singular values were above the cutoff; −1 for a matrix that failed.
    pub rank: Tensor,
    /// i32, the leading extents: 0, or −1 for a matrix with NaN or infinity, or positive if the iteration for singular values
    /// did not end. The inverse is NaN then.
    pub status: Tensor,
}

struct Pinv;

struct Invert {
    rcond: Option<f64>,
}

/// The Moore–Penrose inverse of matrices `[…, m, n]`, of shape `[…, n, m]`: `A⁺ = V·Σ⁺·Uᵀ`, where singular values up to
/// `max(m, n)·ε` times the largest one count as zero (as in NumPy and PyTorch).
///
/// f32, f64, f16 and bf16; 16-bit types are computed in f32.
///
/// # Errors
/// A vector or scalar, another dtype, or a matrix with NaN or infinity, which is named by its index.
///
/// ```
/// # use bimetal_linalg::pinv;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f64, 1.0, 1.0, 1.0], &[2, 2])?;
/// assert!(pinv(&a)?.to_vec::<f64>()?.iter().all(|x| (x - 0.25).abs() < 1e-15));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pinv(a: &Tensor) -> Result<Tensor> {
    Ok(pinv_with(a, PinvParams::auto())?.inverse)
}

/// [`pinv`] with another cutoff or without waiting for the device, and with the rank: see [`PinvParams`].
///
/// # Errors
/// As [`pinv`], or a cutoff that is negative or NaN; no error for a matrix unless errors are checked.
///
/// ```
/// # use bimetal_linalg::{PinvParams, pinv_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[4.0f32, 0.0, 0.0, 0.01], &[2, 2])?;
/// let made = pinv_with(&a, PinvParams { rcond: Some(0.1), ..PinvParams::auto() })?;
/// assert_eq!(made.rank.to_vec::<i32>()?, [1]);
/// assert!((made.inverse.to_vec::<f32>()?[0] - 0.25).abs() < 1e-6);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pinv_with(a: &Tensor, params: PinvParams) -> Result<PseudoInverse> {
    let mut made = op::run(&Invert { rcond: params.rcond }, &[a])?.into_iter();
    let mut next = || made.next().expect("there are three outputs");
    let made = PseudoInverse { inverse: next(), rank: next(), status: next() };
    ensure(params, &made.status)?;
    Ok(made)
}

/// [`pinv_with`] into existing tensors of the results' shapes and dtypes on the input's device.
///
/// # Errors
/// As [`pinv_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{PinvParams, pinv_into, pinv_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[4.0f32, 0.0], &[1, 2])?;
/// let mut out = pinv_with(&a, PinvParams::auto())?;
/// pinv_into(&a, PinvParams::auto(), &mut out)?;
/// assert_eq!(out.inverse.to_vec::<f32>()?, [0.25, 0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn pinv_into(a: &Tensor, params: PinvParams, out: &mut PseudoInverse) -> Result<()> {
    let outputs = &mut [&mut out.inverse, &mut out.rank, &mut out.status];
    op::run_into(&Invert { rcond: params.rcond }, &[a], outputs)?;
    ensure(params, &out.status)
}

fn ensure(params: PinvParams, found: &Tensor) -> Result<()> {
    match params.check_errors {
        true => status::ensure("pinv", found, |unconverged| Problem::NoConvergence { unconverged }),
        false => Ok(()),
    }
}

/// The steps, on the device of `a`: a failed matrix has NaN for its vectors, which every later step keeps.
fn steps(rcond: Option<f64>, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [inverse, rank, status] = outputs else { unreachable!("three outputs") };
    let batch = Batch::of("pinv", "a", a.shape())?;
    let (m, n) = (batch.m, batch.n);
    let found = Decomposed::of(&compose::widened(a)?, &batch, status)?;
    let cutoff = compose::cutoff(rcond, m, n, a.dtype());
    let reciprocals = compose::inverted(&found.s, status, rank, batch.k(), cutoff)?;
    let dtype = working(a.dtype());
    if dtype == a.dtype() {
        return found.inverse(&reciprocals, &batch, inverse);
    }
    let mut made = compose::make(a, &batch.with(&[n, m]), dtype)?;
    found.inverse(&reciprocals, &batch, &mut made)?;
    let extents = [batch.count, n, m];
    Source::all(&made, extents).checked(status).copy(inverse, extents)
}

impl Op for Invert {
    fn name(&self) -> &'static str {
        "pinv"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        system::check(self.name(), inputs, &["a"])?;
        compose::check_cutoff(self.name(), self.rcond)?;
        let (a, batch) = (inputs[0], Batch::of(self.name(), "a", &inputs[0].shape)?);
        let spec = |last: &[usize], dtype| batch.spec(self.name(), "a", last, dtype);
        Ok([spec(&[batch.n, batch.m], a.dtype)?, spec(&[], DType::I32)?, spec(&[], DType::I32)?].into_iter().collect())
    }

    /// The singular value decomposition and a product.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops = Batch::of(self.name(), "a", &inputs[0].shape).map_or(0, |batch| {
            let (long, short) = (batch.m.max(batch.n) as u64, batch.k() as u64);
            batch.count as u64 * (8 * long * short * short + 20 * short * short * short)
        });
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), flops.max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 30.0, scaled: 30.0, why: "LAPACK's ratio; inverses are judged by Penrose's four conditions" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::pinv(self.rcond, inputs[0], outputs)
    }

    fn gpu(&self, _: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::pinv(self.rcond, inputs[0], outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        if self.rcond.is_some() || inputs[0].dtype.size() == 2 {
            return Peer::default();
        }
        // PyTorch's own default for `rtol`, said so that it is known to be the same.
        Peer { torch: Some("torch.linalg.pinv(x0, out=y0)".into()), torch_setup: None, numpy: None }
    }
}

impl Properties for Invert {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::properties(self.rcond, inputs, outputs)
    }
}

impl Definition for Pinv {
    fn name(&self) -> &'static str {
        "pinv"
    }

    fn doc(&self) -> &'static str {
        "the Moore–Penrose inverse of matrices of any shape and rank"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        let new = |dims: &[usize], rcond, spectrum, role| {
            let input = Input::new(dims, Fill::Matrices(Structure::General, spectrum));
            Case::new(Invert { rcond }, vec![input], role)
        };
        let benches: [&[usize]; 4] = [&[1000, 32, 32], &[200, 64, 32], &[256, 256], &[1024, 512]];
        let mut cases: Vec<Case> =
            benches.iter().map(|dims| new(dims, None, Spectrum::Random, Role::Bench)).collect();
        for dims in [&[3, 9, 7][..], &[3, 12, 20]] {
            cases.extend(system::spectra(Structure::General, dims, |fill, tag| {
                system::labelled(Invert { rcond: None }, vec![Input::new(dims, fill)], Role::Agree, tag)
            }));
        }
        let sizes: [&[usize]; 17] = [
            &[0, 0], &[0, 3], &[3, 0], &[1, 1], &[1, 5], &[5, 1], &[2, 2], &[7, 7], &[16, 17], &[33, 31], &[48, 20], &[20, 63],
            &[65, 65], &[0, 4, 4], &[2, 0, 3], &[2, 3, 6, 5], &[18, 5, 5],
        ];
        cases.extend(sizes.iter().map(|dims| new(dims, None, Spectrum::Random, Role::Agree).tagged("sizes")));
        for (rcond, tag) in [(0.0, "rcond 0"), (0.3, "rcond 0.3"), (2.0, "rcond 2")] {
            cases.push(new(&[3, 11, 8], Some(rcond), Spectrum::Random, Role::Agree).tagged(tag));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        system::matrices("pinv", "a", shape)?;
        Ok(Case::new(Invert { rcond: None }, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::Error;

    #[test]
    fn inverses_by_hand() {
        // A column's is its transpose by its squared length; a zero matrix's is zero.
        let a = Tensor::from_slice(&[3.0f32, 4.0, 0.0, 0.0], &[2, 2, 1]).unwrap();
        let made = pinv_with(&a, PinvParams::auto()).unwrap();
        let x = made.inverse.to_vec::<f32>().unwrap();
        assert!((x[0] - 0.12).abs() < 1e-7 && (x[1] - 0.16).abs() < 1e-7 && x[2..] == [0.0, 0.0], "{x:?}");
        assert_eq!(made.rank.to_vec::<i32>().unwrap(), [1, 0]);
    }

    #[test]
    fn wrong_arguments_and_bad_matrices_are_refused() {
        let vector = Tensor::zeros(&[3], DType::F32).unwrap();
        assert!(matches!(pinv(&vector), Err(Error::Argument { argument: "a", .. })));
        assert!(matches!(pinv(&Tensor::zeros(&[3, 3], DType::I32).unwrap()), Err(Error::DType { .. })));
        let square = Tensor::zeros(&[3, 3], DType::F32).unwrap();
        for rcond in [-1.0, f64::NAN] {
            let params = PinvParams { rcond: Some(rcond), ..PinvParams::auto() };
            assert!(matches!(pinv_with(&square, params), Err(Error::Argument { argument: "rcond", .. })));
        }
        let bad = Tensor::from_slice(&[1.0f32, f32::INFINITY], &[2, 1, 1]).unwrap();
        assert_eq!(pinv(&bad).unwrap_err(), Error::Matrix { op: "pinv", index: 1, problem: Problem::NotFinite });
    }
}
