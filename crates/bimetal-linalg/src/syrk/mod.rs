//! Products of a matrix with its own transpose, `α·A·Aᵀ` or `α·Aᵀ·A`: those of `matmul`, with half of its work counted.

mod cpu;
mod gpu;
mod reference;

use crate::lanes::DTYPES;
use crate::matmul::{Kind, MatmulParams, Product};
use crate::system;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values,
};
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Syrk];

/// Options of [`syrk_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyrkParams {
    /// `Aᵀ·A` instead of `A·Aᵀ`.
    pub transpose: bool,
    /// The factor of the product.
    pub alpha: f64,
}

impl SyrkParams {
    /// `A·Aᵀ`.
    pub fn auto() -> Self {
        Self { transpose: false, alpha: 1.0 }
    }
}

impl Default for SyrkParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// The symmetric product `A·Aᵀ`, both of its triangles (BLAS `syrk`).
///
/// `a` is `[…, n, k]` of f32, f64, f16 or bf16 (which are summed in f32); the result is `[…, n, n]` of its dtype.
///
/// # Errors
/// Fewer than two axes, or another dtype.
///
/// ```
/// # use bimetal_linalg::syrk;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// assert_eq!(syrk(&a)?.to_vec::<f32>()?, [5.0, 11.0, 11.0, 25.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn syrk(a: &Tensor) -> Result<Tensor> {
    syrk_with(a, SyrkParams::default())
}

/// [`syrk`] of the transpose, or with a factor: see [`SyrkParams`].
///
/// # Errors
/// As [`syrk`].
///
/// ```
/// # use bimetal_linalg::{SyrkParams, syrk_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?;
/// let c = syrk_with(&a, SyrkParams { transpose: true, alpha: 2.0 })?;
/// assert_eq!(c.to_vec::<f32>()?, [2.0, 4.0, 4.0, 8.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn syrk_with(a: &Tensor, params: SyrkParams) -> Result<Tensor> {
    op::run_one(&SyrkOp(params), &[a])
}

/// [`syrk_with`] into an existing tensor of the result's shape and dtype on the device of `a`.
///
/// # Errors
/// As [`syrk`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{SyrkParams, syrk_into};
/// # use bimetal_core::{DType, Tensor};
/// let mut c = Tensor::zeros(&[1, 1], DType::F32)?;
/// syrk_into(&Tensor::from_slice(&[3.0f32], &[1, 1])?, SyrkParams::default(), &mut c)?;
/// assert_eq!(c.to_vec::<f32>()?, [9.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn syrk_into(a: &Tensor, params: SyrkParams, out: &mut Tensor) -> Result<()> {
    op::run_into(&SyrkOp(params), &[a], &mut [out])
}

struct SyrkOp(SyrkParams);

impl SyrkOp {
    /// The product that this is.
    fn product(&self) -> Product {
        let SyrkParams { transpose, alpha } = self.0;
        let params = MatmulParams { transpose_a: transpose, transpose_b: !transpose, alpha, tf32: false };
        Product { kind: Kind::Matmul, params }
    }
}

impl Op for SyrkOp {
    fn name(&self) -> &'static str {
        "syrk"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        system::check(self.name(), inputs, &["a"])?;
        system::matrices(self.name(), "a", &inputs[0].shape)?;
        self.product().outputs(&[inputs[0], inputs[0]])
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let flops = self.product().cost(&[inputs[0], inputs[0]]).flops / 2;
        Cost::streaming(inputs, &outputs, flops.max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        self.product().tolerance(&[inputs[0], inputs[0]])
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::syrk(&inputs[0], self.0)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::syrk(&self.product(), self.0, inputs[0], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::syrk(gpu, &self.product(), inputs[0], outputs)
    }

    fn peer(&self, _: &[&Spec]) -> Peer {
        let expression = if self.0.transpose { "torch.matmul(x0.mT, x0, out=y0)" } else { "torch.matmul(x0, x0.mT, out=y0)" };
        let torch = (self.0.alpha == 1.0).then(|| expression.into());
        Peer { torch, torch_setup: None, numpy: None }
    }
}

struct Syrk;

impl Definition for Syrk {
    fn name(&self) -> &'static str {
        "syrk"
    }

    fn doc(&self) -> &'static str {
        "α·A·Aᵀ or α·Aᵀ·A"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = vec![case(SyrkParams::auto(), &[1024, 1024], Role::Bench), case(SyrkParams::auto(), &[200, 64, 64], Role::Bench)];
        let sizes: [&[usize]; 8] =
            [&[0, 3], &[3, 0], &[1, 1], &[33, 17], &[2, 2, 31, 40], &[65, 130], &[9, 33, 17], &[8, 16, 49]];
        for dims in sizes {
            cases.push(case(SyrkParams::auto(), dims, Role::Agree).tagged("sizes"));
            cases.push(case(SyrkParams { transpose: true, alpha: -0.5 }, dims, Role::Agree).tagged("transposed"));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        system::matrices("syrk", "a", shape)?;
        Ok(case(SyrkParams::auto(), shape.dims(), Role::Bench))
    }
}

fn case(params: SyrkParams, dims: &[usize], role: Role) -> Case {
    Case::new(SyrkOp(params), vec![Input::new(dims, Fill::Normal)], role)
}
