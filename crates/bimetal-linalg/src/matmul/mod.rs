//! Products of matrices and vectors: `d = α·op(a)·op(b)`, `a·x` and `x·yᵀ`, with batches that broadcast.

mod cpu;
mod gpu;
mod plan;
mod reference;

pub(crate) use cpu::update;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};
use plan::Plan;

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Matmul, &Kind::Matvec, &Kind::OuterProduct];

/// What products are defined for.
const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I8];

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Matmul,
    Matvec,
    OuterProduct,
}

/// Options of [`matmul_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatmulParams {
    /// The left operand's last two axes are exchanged; no data moves. Without effect on a vector.
    pub transpose_a: bool,
    /// The same for the right operand.
    pub transpose_b: bool,
    /// Factor of the product; 1 for i8.
    pub alpha: f64,
    /// f32 operands may be rounded to TF32 (10 bits of fraction) where a device is faster that way.
    pub tf32: bool,
}

impl Default for MatmulParams {
    fn default() -> Self {
        Self { transpose_a: false, transpose_b: false, alpha: 1.0, tf32: false }
    }
}

pub(crate) struct Product {
    pub(crate) kind: Kind,
    pub(crate) params: MatmulParams,
}

/// The matrix product `a·b`, by the rules of NumPy and PyTorch: `a` is `[…, m, k]` and `b` `[…, k, n]`, the leading axes
/// broadcast (what is shared is not copied), and the result is `[…, m, n]`. A vector `[k]` on either side stands for one
/// row or one column, and its axis is not in the result.
///
/// Both operands are f32, f16, bf16 or f64, and the result has their dtype; f16 and bf16 are summed in f32. Products of i8
/// are i32, wrapping. A sum of nothing (`k` = 0) is 0.
///
/// # Errors
/// A scalar, lengths of the sum or leading axes that do not go together, dtypes that differ or are others.
///
/// ```
/// # use bimetal_linalg::matmul;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[1.0f32, 0.0, 1.0, 1.0], &[2, 2])?;
/// assert_eq!(matmul(&a, &b)?.to_vec::<f32>()?, [3.0, 2.0, 7.0, 4.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    matmul_with(a, b, MatmulParams::default())
}

/// [`matmul`] into an existing tensor of the result's shape and dtype on the operands' device.
///
/// # Errors
/// As [`matmul`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::matmul_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[1i8, 2, 3, 4], &[2, 2])?;
/// let mut d = Tensor::zeros(&[2, 2], DType::I32)?;
/// matmul_into(&a, &a, &mut d)?;
/// assert_eq!(d.to_vec::<i32>()?, [7, 10, 15, 22]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matmul_into(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    matmul_with_into(a, b, MatmulParams::default(), out)
}

/// [`matmul`] with transposed operands, a factor, or leave to round: see [`MatmulParams`].
///
/// # Errors
/// As [`matmul`], or a factor other than 1 for i8.
///
/// ```
/// # use bimetal_linalg::{MatmulParams, matmul_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// let params = MatmulParams { transpose_a: true, alpha: 0.5, ..MatmulParams::default() };
/// assert_eq!(matmul_with(&a, &a, params)?.to_vec::<f32>()?, [5.0, 7.0, 7.0, 10.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matmul_with(a: &Tensor, b: &Tensor, params: MatmulParams) -> Result<Tensor> {
    op::run_one(&Product { kind: Kind::Matmul, params }, &[a, b])
}

/// [`matmul_with`] into an existing tensor of the result's shape and dtype on the operands' device.
///
/// # Errors
/// As [`matmul_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{MatmulParams, matmul_with_into};
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?;
/// let mut d = Tensor::zeros(&[1, 1], DType::F32)?;
/// matmul_with_into(&a, &a, MatmulParams { transpose_b: true, ..MatmulParams::default() }, &mut d)?;
/// assert_eq!(d.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matmul_with_into(a: &Tensor, b: &Tensor, params: MatmulParams, out: &mut Tensor) -> Result<()> {
    op::run_into(&Product { kind: Kind::Matmul, params }, &[a, b], &mut [out])
}

/// The product of matrices `[…, m, k]` with vectors `[…, k]`: `[…, m]`, where leading axes broadcast.
///
/// Dtypes are those of [`matmul`].
///
/// # Errors
/// A vector for `a` or a scalar for `x`, and as [`matmul`].
///
/// ```
/// # use bimetal_linalg::matvec;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// let x = Tensor::from_slice(&[1.0f32, -1.0], &[2])?;
/// assert_eq!(matvec(&a, &x)?.to_vec::<f32>()?, [-1.0, -1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matvec(a: &Tensor, x: &Tensor) -> Result<Tensor> {
    op::run_one(&Product { kind: Kind::Matvec, params: MatmulParams::default() }, &[a, x])
}

/// [`matvec`] into an existing tensor of the result's shape and dtype on the operands' device.
///
/// # Errors
/// As [`matvec`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::matvec_into;
/// # use bimetal_core::{DType, Tensor};
/// let a = Tensor::from_slice(&[1.0f32, 2.0], &[1, 2])?;
/// let mut y = Tensor::zeros(&[1], DType::F32)?;
/// matvec_into(&a, &a.reshape(&[2])?, &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [5.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn matvec_into(a: &Tensor, x: &Tensor, out: &mut Tensor) -> Result<()> {
    op::run_into(&Product { kind: Kind::Matvec, params: MatmulParams::default() }, &[a, x], &mut [out])
}

/// The products of all elements of two vectors: `x·yᵀ`, shape `[m, n]` for `[m]` and `[n]`.
///
/// Dtypes are those of [`matmul`].
///
/// # Errors
/// Operands that are not vectors, dtypes that differ or are others.
///
/// ```
/// # use bimetal_linalg::outer_product;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 2.0], &[2])?;
/// assert_eq!(outer_product(&x, &x)?.to_vec::<f32>()?, [1.0, 2.0, 2.0, 4.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn outer_product(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    op::run_one(&Product { kind: Kind::OuterProduct, params: MatmulParams::default() }, &[x, y])
}

/// [`outer_product`] into an existing tensor of shape `[m, n]` and the result's dtype on the operands' device.
///
/// # Errors
/// As [`outer_product`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::outer_product_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[3.0f32], &[1])?;
/// let mut d = Tensor::zeros(&[1, 1], DType::F32)?;
/// outer_product_into(&x, &x, &mut d)?;
/// assert_eq!(d.to_vec::<f32>()?, [9.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn outer_product_into(x: &Tensor, y: &Tensor, out: &mut Tensor) -> Result<()> {
    op::run_into(&Product { kind: Kind::OuterProduct, params: MatmulParams::default() }, &[x, y], &mut [out])
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
            Self::Matvec => "matvec",
            Self::OuterProduct => "outer_product",
        }
    }

    /// The names of its arguments.
    const fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::Matmul => ["a", "b"],
            Self::Matvec => ["a", "x"],
            Self::OuterProduct => ["x", "y"],
        }
    }
}

impl Product {
    fn new(kind: Kind) -> Self {
        Self { kind, params: MatmulParams::default() }
    }

    fn plan(&self, a: &Shape, b: &Shape) -> Result<Plan> {
        Plan::new(self.kind, [self.params.transpose_a, self.params.transpose_b], a, b)
    }
}

impl Op for Product {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [a, b] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("2 tensors, got {}", inputs.len())));
        };
        let [left, right] = self.kind.arguments();
        if !DTYPES.contains(&a.dtype) {
            return Err(Error::dtype(self.name(), left, a.dtype, &DTYPES));
        }
        if b.dtype != a.dtype {
            return Err(Error::dtype(self.name(), right, b.dtype, &[a.dtype]));
        }
        if a.dtype == DType::I8 && self.params.alpha != 1.0 {
            let expected = format!("1 for i8, got {}", self.params.alpha);
            return Err(Error::argument(self.name(), "alpha", expected));
        }
        let plan = self.plan(&a.shape, &b.shape)?;
        let dtype = if a.dtype == DType::I8 { DType::I32 } else { a.dtype };
        Ok([Spec::new(Shape::new(&plan.out)?, dtype)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let k = self.plan(&inputs[0].shape, &inputs[1].shape).map_or(0, |plan| plan.k) as u64;
        let flops = outputs.first().map_or(0, |d| 2 * k * d.numel() as u64);
        // A product without elements costs its call.
        Cost::streaming(inputs, &outputs, flops.max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        if inputs[0].dtype == DType::I8 {
            return Tolerance::EXACT;
        }
        let k = self.plan(&inputs[0].shape, &inputs[1].shape).map_or(1, |plan| plan.k).max(2) as f64;
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + k.log2(),
            why: "sums in f32 (f64 for f64) by blocks of the inner dimension, and the rounding of the result",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        let plan = self.plan(&inputs[0].spec.shape, &inputs[1].spec.shape).expect("the case was checked");
        vec![reference::matmul(&inputs[0].data, &inputs[1].data, &plan, self.params.alpha)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let plan = self.plan(inputs[0].shape(), inputs[1].shape())?;
        cpu::matmul(&plan, self.params.alpha, inputs[0], inputs[1], outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let plan = self.plan(inputs[0].shape(), inputs[1].shape())?;
        gpu::matmul(gpu, self.kind, &plan, &self.params, [inputs[0], inputs[1]], outputs[0])
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let operand = |name: &str, transposed: bool, spec: &Spec| {
            if transposed && spec.shape.rank() > 1 { format!("{name}.mT") } else { name.to_string() }
        };
        let a = operand("x0", self.params.transpose_a, inputs[0]);
        let b = operand("x1", self.params.transpose_b, inputs[1]);
        let (dtype, matrices) = (inputs[0].dtype, inputs.iter().all(|s| s.shape.rank() == 2));
        let torch = match self.kind {
            _ if self.params.alpha != 1.0 => None,
            Kind::Matmul if dtype == DType::I8 && matrices => Some(format!("torch._int_mm({a}, {b}, out=y0)")),
            _ if dtype == DType::I8 => None,
            Kind::Matmul => Some(format!("torch.matmul({a}, {b}, out=y0)")),
            Kind::Matvec if inputs[1].shape.rank() == 1 => Some("torch.matmul(x0, x1, out=y0)".to_string()),
            Kind::Matvec => None,
            Kind::OuterProduct => Some("torch.outer(x0, x1, out=y0)".to_string()),
        };
        // NumPy multiplies 16-bit floats and integers in plain loops.
        let numpy = matches!(dtype, DType::F32 | DType::F64).then(|| match self.kind {
            Kind::OuterProduct => "np.outer(x0, x1, out=y0)".to_string(),
            Kind::Matmul if self.params.alpha == 1.0 => format!("np.matmul({a}, {b}, out=y0)"),
            _ => "np.matmul(x0, x1, out=y0)".to_string(),
        });
        let numpy = numpy.filter(|_| torch.is_some());
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: numpy.map(Into::into) }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Matmul => "a·b, with broadcast batches; i8 products are i32",
            Self::Matvec => "a·x: a matrix, or a batch of them, with a vector",
            Self::OuterProduct => "x·yᵀ of two vectors",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        match self {
            Self::Matmul => matmul_cases(),
            Self::Matvec => matvec_cases(),
            Self::OuterProduct => outer_product_cases(),
        }
    }

    /// A matrix with a square one, or with a vector; a vector with itself.
    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let k = shape.dims().last().copied().unwrap_or(0);
        let other = if *self == Self::Matmul { vec![k, k] } else { vec![k] };
        let op = Product::new(*self);
        op.plan(shape, &Shape::new(&other)?)?;
        let inputs = vec![Input::new(shape.dims(), Fill::Normal), Input::new(&other, Fill::Normal)];
        Ok(Case::new(op, inputs, Role::Bench))
    }
}

fn case(op: Product, a: &[usize], b: &[usize], fill: Fill, role: Role) -> Case {
    Case::new(op, vec![Input::new(a, fill), Input::new(b, fill)], role)
}

fn matmul_cases() -> Vec<Case> {
    let new = || Product::new(Kind::Matmul);
    let bench = |a: &[usize], b: &[usize]| case(new(), a, b, Fill::Normal, Role::Bench);
    let agree = |a: &[usize], b: &[usize], fill| case(new(), a, b, fill, Role::Agree);
    let mut cases = vec![
        bench(&[2048, 2048], &[2048, 2048]).tagged("square"),
        bench(&[8192, 8192], &[8192, 8192]).tagged("large"),
        bench(&[8192, 4096], &[4096, 14336]),
        bench(&[1, 4096], &[4096, 14336]),
        bench(&[8, 4096], &[4096, 14336]),
        bench(&[128, 4096], &[4096, 4096]),
        bench(&[64, 128, 128], &[64, 128, 128]).tagged("batch"),
        bench(&[64, 64], &[64, 64]).tagged("small"),
    ];
    // Around the tiles of CPU (8×48, blocks of 96 and 384) and GPU (64 and 128, steps of 16), and tall, wide and deep.
    let sizes = [
        [0, 3, 4], [3, 0, 4], [3, 4, 0], [0, 0, 0], [1, 1, 1], [7, 7, 7], [2, 3, 1], [8, 48, 16], [9, 49, 17],
        [13, 47, 31], [16, 16, 15], [37, 41, 43], [63, 65, 64], [65, 63, 33], [97, 101, 7], [128, 96, 5], [129, 127, 13],
        [9, 97, 385], [16, 50, 769], [11, 9, 1601], [12, 200, 3], [200, 12, 100], [199, 485, 2], [1, 300, 129],
        [1, 17, 1003], [300, 1, 129], [5, 130, 67], [130, 5, 67], [8, 1, 4099], [3, 2, 5000],
    ];
    for [m, n, k] in sizes {
        cases.push(agree(&[m, k], &[k, n], Fill::Normal).tagged("sizes"));
    }
    for fill in [Fill::Integers(-128, 127), Fill::Uniform(0.0, 1.0), Fill::Magnitudes(1e-3, 1e3, false)] {
        let tag = format!("{fill:?}");
        cases.push(agree(&[19, 501], &[501, 53], fill).tagged(&tag));
        cases.push(agree(&[3, 501], &[501, 530], fill).tagged(&tag));
    }
    for (a, b) in [(vec![5], vec![5]), (vec![5], vec![5, 70]), (vec![70, 5], vec![5]), (vec![5], vec![3, 5, 9])] {
        cases.push(agree(&a, &b, Fill::Normal).tagged("vector"));
    }
    let batches: [(&[usize], &[usize]); 8] = [
        (&[3, 17, 33], &[3, 33, 20]),
        (&[3, 17, 33], &[33, 20]),
        (&[17, 33], &[3, 33, 20]),
        (&[2, 1, 9, 10], &[3, 10, 11]),
        (&[4, 1, 2, 20, 30], &[1, 3, 1, 30, 65]),
        (&[0, 4, 5], &[5, 6]),
        (&[2, 3, 1, 40], &[2, 3, 40, 70]),
        (&[5, 33, 1], &[5, 1, 35]),
    ];
    for (a, b) in batches {
        cases.push(agree(a, b, Fill::Normal).tagged("batch"));
    }
    for (transpose_a, transpose_b) in [(true, false), (false, true), (true, true)] {
        for [m, n, k] in [[1, 67, 130], [67, 1, 130], [4, 70, 129], [67, 75, 83], [9, 100, 400]] {
            let params = MatmulParams { transpose_a, transpose_b, alpha: 1.0, tf32: false };
            let (a, b) = (if transpose_a { [k, m] } else { [m, k] }, if transpose_b { [n, k] } else { [k, n] });
            let tag = format!("transposed {transpose_a} {transpose_b}");
            cases.push(case(Product { kind: Kind::Matmul, params }, &a, &b, Fill::Normal, Role::Agree).tagged(&tag));
        }
        let params = MatmulParams { transpose_a, transpose_b, ..MatmulParams::default() };
        let tag = format!("batch transposed {transpose_a} {transpose_b}");
        let op = Product { kind: Kind::Matmul, params };
        cases.push(case(op, &[3, 18, 18], &[1, 18, 18], Fill::Normal, Role::Agree).tagged(&tag));
    }
    cases
}

fn matvec_cases() -> Vec<Case> {
    let new = |a: &[usize], x: &[usize], role| case(Product::new(Kind::Matvec), a, x, Fill::Normal, role);
    let mut cases = vec![new(&[4096, 4096], &[4096], Role::Bench), new(&[14336, 4096], &[4096], Role::Bench)];
    for [m, k] in [[0, 3], [3, 0], [1, 1], [7, 5], [31, 33], [129, 17], [2, 4099], [1009, 8], [64, 257]] {
        cases.push(new(&[m, k], &[k], Role::Agree));
    }
    for (a, x) in [(vec![3, 5, 40], vec![40]), (vec![5, 40], vec![3, 40]), (vec![2, 1, 5, 7], vec![3, 7])] {
        cases.push(new(&a, &x, Role::Agree).tagged("batch"));
    }
    cases
}

fn outer_product_cases() -> Vec<Case> {
    let new = |m, n, role| case(Product::new(Kind::OuterProduct), &[m], &[n], Fill::Normal, role);
    let mut cases = vec![new(2048, 4096, Role::Bench)];
    for (m, n) in [(0, 3), (3, 0), (1, 1), (7, 1), (1, 7), (33, 65), (100, 48), (5, 1003), (500, 9)] {
        cases.push(new(m, n, Role::Agree));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_and_empty_sums() {
        let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let params = MatmulParams { alpha: -2.0, ..MatmulParams::default() };
        assert_eq!(matmul_with(&a, &a, params).unwrap().to_vec::<f32>().unwrap(), [-14.0, -20.0, -30.0, -44.0]);
        let ones = Tensor::from_f64(&[1.0; 30 * 40], &[30, 40], DType::BF16).unwrap();
        let params = MatmulParams { alpha: 0.5, transpose_b: true, ..params };
        assert_eq!(matmul_with(&ones, &ones, params).unwrap().to_f64_vec().unwrap(), [20.0; 900]);
        let nothing = Tensor::zeros(&[3, 0], DType::F64).unwrap();
        let mut out = Tensor::from_f64(&[7.0; 9], &[3, 3], DType::F64).unwrap();
        matmul_with_into(&nothing, &nothing, MatmulParams { transpose_b: true, ..Default::default() }, &mut out).unwrap();
        assert_eq!(out.to_f64_vec().unwrap(), [0.0; 9]);
    }

    #[test]
    fn integers_take_their_whole_range() {
        let (low, high) = (vec![-128i8; 9 * 1001], vec![127i8; 1001 * 50]);
        let a = Tensor::from_slice(&low, &[9, 1001]).unwrap();
        let b = Tensor::from_slice(&high, &[1001, 50]).unwrap();
        assert_eq!(matmul(&a, &b).unwrap().to_vec::<i32>().unwrap(), [-128 * 127 * 1001; 450]);
        let squares = matmul_with(&a, &a, MatmulParams { transpose_b: true, ..Default::default() }).unwrap();
        assert_eq!(squares.to_vec::<i32>().unwrap(), [128 * 128 * 1001; 81]);
    }

    #[test]
    fn not_a_number_and_infinity_go_where_they_belong() {
        let mut a = vec![1.0f32; 20 * 20];
        (a[3], a[25]) = (f32::NAN, f32::INFINITY);
        let a = Tensor::from_slice(&a, &[20, 20]).unwrap();
        let d = matmul(&a, &Tensor::from_slice(&[1.0f32; 400], &[20, 20]).unwrap()).unwrap().to_vec::<f32>().unwrap();
        assert!(d[..20].iter().all(|x| x.is_nan()) && d[20..40].iter().all(|&x| x == f32::INFINITY));
        assert!(d[40..].iter().all(|&x| x == 20.0));
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..300 * 300u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32).sqrt()).collect();
        let a = Tensor::from_slice(&values, &[300, 300]).unwrap();
        let row = a.slice(0..1).unwrap();
        let bits = |t: Tensor| t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let all = || [bits(matmul(&a, &a).unwrap()), bits(matmul(&row, &a).unwrap()), bits(matvec(&a, &row.reshape(&[300]).unwrap()).unwrap())];
        let pool = |n| bimetal_core::cpu::parallel::with_threads(n, all).unwrap();
        assert_eq!(pool(1), pool(3));
    }
}
