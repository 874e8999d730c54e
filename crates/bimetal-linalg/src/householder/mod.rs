//! Householder reflectors `H = 1 − τ·v·vᵀ`: making one, applying one, and applying the product that `geqrf` leaves.

mod cpu;
mod gpu;
mod reference;

use crate::status;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Vector, &Kind::Apply, &Kind::Ormqr];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vector,
    Apply,
    Ormqr,
}

/// On which side of a matrix an orthogonal factor is applied, and whether transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OrmqrParams {
    /// `C·Q` rather than `Q·C`.
    pub right: bool,
    /// `Qᵀ` rather than `Q`.
    pub transpose: bool,
}

/// A reflector made by [`householder_vector`].
#[derive(Clone, Debug)]
pub struct Reflector {
    /// `[…, m]`: the vector; its first element is 1.
    pub v: Tensor,
    /// The leading extents: the factor τ, 0 where the vector needed no reflector.
    pub tau: Tensor,
    /// The leading extents: what the reflector makes of the first element; the others become 0.
    pub beta: Tensor,
    /// i32, the leading extents: 0, or −1 for a vector with NaN or infinity, whose results are NaN.
    pub status: Tensor,
}

struct MakeVector;

/// The product of reflectors with a matrix.
struct Product {
    /// One reflector whose vector is given whole.
    single: bool,
    params: OrmqrParams,
}

/// Extents of a product: reflectors of `m` elements, stored in matrices of `n` columns; `c` is `rows`×`columns`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    rows: usize,
    columns: usize,
}

/// The reflector `H = 1 − τ·v·vᵀ` that takes each vector of `[…, m]` to `(β, 0, …, 0)` (LAPACK's `larfg`), with `|β|` its
/// norm and the sign that avoids cancellation. A vector whose elements after the first are 0 has τ = 0 and β its first.
/// Neither overflow nor underflow of squares matters.
///
/// f32, f64, f16 and bf16; 16-bit types are computed in f32.
///
/// # Errors
/// A scalar, vectors without elements, another dtype, or [`Problem::NotFinite`].
///
/// ```
/// # use bimetal_linalg::householder_vector;
/// # use bimetal_core::Tensor;
/// let made = householder_vector(&Tensor::from_slice(&[3.0f64, 4.0], &[2])?)?;
/// assert_eq!(made.v.to_vec::<f64>()?, [1.0, 0.5]);
/// assert_eq!((made.tau.to_vec::<f64>()?[0], made.beta.to_vec::<f64>()?[0]), (1.6, -5.0));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn householder_vector(x: &Tensor) -> Result<Reflector> {
    let made = householder_vector_unchecked(x)?;
    ensure(&made.status)?;
    Ok(made)
}

/// [`householder_vector`] without waiting for the device: a vector with NaN or infinity has the status −1.
///
/// # Errors
/// As [`householder_vector`], without the last.
///
/// ```
/// # use bimetal_linalg::householder_vector_unchecked;
/// # use bimetal_core::Tensor;
/// let made = householder_vector_unchecked(&Tensor::from_slice(&[f32::NAN, 4.0], &[2, 1])?)?;
/// assert_eq!(made.status.to_vec::<i32>()?, [-1, 0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn householder_vector_unchecked(x: &Tensor) -> Result<Reflector> {
    let mut made = op::run(&MakeVector, &[x])?.into_iter();
    let mut next = || made.next().expect("there are four outputs");
    Ok(Reflector { v: next(), tau: next(), beta: next(), status: next() })
}

/// [`householder_vector`] into existing tensors of the results' shapes and dtypes on the operand's device.
///
/// # Errors
/// As [`householder_vector`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{householder_vector, householder_vector_into};
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[3.0f64, 4.0], &[2])?;
/// let mut made = householder_vector(&x)?;
/// householder_vector_into(&x, &mut made)?;
/// assert_eq!(made.v.to_vec::<f64>()?, [1.0, 0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn householder_vector_into(x: &Tensor, out: &mut Reflector) -> Result<()> {
    let outputs = &mut [&mut out.v, &mut out.tau, &mut out.beta, &mut out.status];
    op::run_into(&MakeVector, &[x], outputs)?;
    ensure(&out.status)
}

fn ensure(found: &Tensor) -> Result<()> {
    status::ensure(Kind::Vector.name(), found, |_| Problem::NotFinite)
}

/// `H·c` for `H = 1 − τ·v·vᵀ` (LAPACK's `larf`): `v` is `[…, m]`, `tau` has the leading extents, and `c` is `[…, m, p]`.
/// [`OrmqrParams::right`] gives `c·H`, with `c` of shape `[…, p, m]`; H is its own transpose.
///
/// All three have the same dtype: f32, f64, f16 or bf16. NaN and infinity follow IEEE 754.
///
/// # Errors
/// Extents that do not go together, or another dtype.
///
/// ```
/// # use bimetal_linalg::{OrmqrParams, apply_householder, householder_vector};
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[3.0f64, 4.0], &[2])?;
/// let made = householder_vector(&x)?;
/// let y = apply_householder(&made.v, &made.tau, &x.reshape(&[2, 1])?, OrmqrParams::default())?.to_vec::<f64>()?;
/// assert!((y[0] + 5.0).abs() < 1e-14 && y[1].abs() < 1e-14);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn apply_householder(v: &Tensor, tau: &Tensor, c: &Tensor, params: OrmqrParams) -> Result<Tensor> {
    op::run_one(&Product { single: true, params }, &[v, tau, c])
}

/// [`apply_householder`] into an existing tensor of `c`'s shape and dtype on its device.
///
/// # Errors
/// As [`apply_householder`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{OrmqrParams, apply_householder_into};
/// # use bimetal_core::{DType, Tensor};
/// let one = Tensor::from_slice(&[1.0f32], &[1])?;
/// let mut y = Tensor::zeros(&[1, 1], DType::F32)?;
/// apply_householder_into(&one, &one.reshape(&[])?, &one.reshape(&[1, 1])?, OrmqrParams::default(), &mut y)?;
/// assert_eq!(y.to_vec::<f32>()?, [0.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn apply_householder_into(
    v: &Tensor,
    tau: &Tensor,
    c: &Tensor,
    params: OrmqrParams,
    out: &mut Tensor,
) -> Result<()> {
    op::run_into(&Product { single: true, params }, &[v, tau, c], &mut [out])
}

/// `Q·c`, `Qᵀ·c`, `c·Q` or `c·Qᵀ` for the `m`×`m` factor Q of [`geqrf`](crate::geqrf), without making Q (LAPACK's `ormqr`):
/// `packed` is `[…, m, n]`, `tau` `[…, k]` with `k ≤ min(m, n)`, and `c` `[…, m, p]`, or `[…, p, m]` from the right.
///
/// All three have the same dtype: f32, f64, f16 or bf16. NaN and infinity follow IEEE 754.
///
/// # Errors
/// Extents that do not go together, or another dtype.
///
/// ```
/// # use bimetal_linalg::{OrmqrParams, geqrf, ormqr};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f64, 4.0], &[2, 1])?;
/// let made = geqrf(&a)?;
/// let params = OrmqrParams { transpose: true, ..OrmqrParams::default() };
/// let r = ormqr(&made.packed, &made.tau, &a, params)?.to_vec::<f64>()?;
/// assert!((r[0] + 5.0).abs() < 1e-14 && r[1].abs() < 1e-14);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn ormqr(packed: &Tensor, tau: &Tensor, c: &Tensor, params: OrmqrParams) -> Result<Tensor> {
    op::run_one(&Product { single: false, params }, &[packed, tau, c])
}

/// [`ormqr`] into an existing tensor of `c`'s shape and dtype on its device.
///
/// # Errors
/// As [`ormqr`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{OrmqrParams, geqrf, ormqr_into};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[1.0f32], &[1, 1])?;
/// let (made, mut out) = (geqrf(&a)?, a.clone());
/// ormqr_into(&made.packed, &made.tau, &a, OrmqrParams::default(), &mut out)?;
/// assert_eq!(out.to_vec::<f32>()?, [1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn ormqr_into(packed: &Tensor, tau: &Tensor, c: &Tensor, params: OrmqrParams, out: &mut Tensor) -> Result<()> {
    op::run_into(&Product { single: false, params }, &[packed, tau, c], &mut [out])
}

/// The operation of [`ormqr`] from the left.
pub(crate) fn from_left(transpose: bool) -> impl Op {
    Product { single: false, params: OrmqrParams { right: false, transpose } }
}

fn floats(op: &'static str, argument: &'static str, dtype: DType) -> Result<()> {
    if crate::qr::FLOATS.contains(&dtype) { Ok(()) } else { Err(Error::dtype(op, argument, dtype, &crate::qr::FLOATS)) }
}

impl MakeVector {
    /// Vectors, and elements of each.
    fn dims(shape: &Shape) -> Result<[usize; 2]> {
        match shape.dims() {
            [leading @ .., m] if *m > 0 => Ok([leading.iter().product(), *m]),
            _ => Err(Error::argument("householder_vector", "x", format!("vectors of shape […, m], m > 0, got {shape}"))),
        }
    }
}

impl Op for MakeVector {
    fn name(&self) -> &'static str {
        Kind::Vector.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [x] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        floats(self.name(), "x", x.dtype)?;
        Self::dims(&x.shape)?;
        let leading = Shape::new(&x.shape.dims()[..x.shape.rank() - 1])?;
        let number = Spec::new(leading.clone(), x.dtype);
        Ok([(*x).clone(), number.clone(), number, Spec::new(leading, DType::I32)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (3 * inputs[0].numel() as u64).max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 30.0, scaled: 30.0, why: "LAPACK's ratio; reflectors are judged by what they do" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::vectors(Self::dims(inputs[0].shape())?, inputs[0], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::vectors(gpu, Self::dims(inputs[0].shape())?, inputs[0], outputs)
    }

    fn peer(&self, _: &[&Spec]) -> Peer {
        Peer::default()
    }
}

impl Properties for MakeVector {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::vector_properties(inputs, outputs)
    }
}

impl Product {
    fn dims(&self, [v, tau, c]: [&Shape; 3]) -> Result<Dims> {
        let argument = if self.single { "v" } else { "packed" };
        let wrong = |argument, expected: String| Err(Error::argument(self.name(), argument, expected));
        let (leading, m, n) = match (v.dims(), self.single) {
            ([leading @ .., m], true) => (leading, *m, 1),
            ([leading @ .., m, n], false) => (leading, *m, *n),
            _ => return wrong(argument, format!("a shape of more axes, got {v}")),
        };
        let k = match (tau.dims(), self.single) {
            (dims, true) if dims == leading => 1,
            ([dims @ .., k], false) if dims == leading && *k <= m.min(n) => *k,
            _ => return wrong("tau", format!("a factor for each of the reflectors of {v}, got {tau}")),
        };
        let side = if self.params.right { "columns" } else { "rows" };
        match c.dims() {
            [dims @ .., rows, columns] if dims == leading && m == if self.params.right { *columns } else { *rows } => {
                let batch = leading.iter().product();
                Ok(Dims { batch, m, n, k, rows: *rows, columns: *columns })
            }
            _ => wrong("c", format!("{m} {side} and the leading extents of {v}, got {c}")),
        }
    }
}

impl Op for Product {
    fn name(&self) -> &'static str {
        if self.single { Kind::Apply.name() } else { Kind::Ormqr.name() }
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [v, tau, c] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("3 tensors, got {}", inputs.len())));
        };
        floats(self.name(), if self.single { "v" } else { "packed" }, v.dtype)?;
        for (argument, spec) in [("tau", tau), ("c", c)] {
            if spec.dtype != v.dtype {
                return Err(Error::dtype(self.name(), argument, spec.dtype, &[v.dtype]));
            }
        }
        self.dims([&v.shape, &tau.shape, &c.shape])?;
        Ok([(*c).clone()].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops = self.dims([&inputs[0].shape, &inputs[1].shape, &inputs[2].shape]).map_or(0, |d| {
            let across = if self.params.right { d.rows } else { d.columns };
            4 * d.batch * across * d.k * (d.m - if self.single { 0 } else { d.k / 2 })
        });
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (flops as u64).max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let k = self.dims([&inputs[0].shape, &inputs[1].shape, &inputs[2].shape]).map_or(1, |d| d.k);
        let why = "each reflector rounds a column by a few epsilons of its norm (Higham, Lemma 19.3); then the result";
        Tolerance { ulps: 1.0, scaled: 8.0 + k as f64, why }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        let shape = |i: usize| &inputs[i].spec.shape;
        let dims = self.dims([shape(0), shape(1), shape(2)]).expect("the case was checked");
        vec![reference::product(&dims, self.single, self.params, inputs)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let dims = self.dims([inputs[0].shape(), inputs[1].shape(), inputs[2].shape()])?;
        cpu::product(&dims, self.single, self.params, inputs, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let dims = self.dims([inputs[0].shape(), inputs[1].shape(), inputs[2].shape()])?;
        gpu::product(gpu, &dims, self.single, self.params, inputs, outputs[0])
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        if self.single || !matches!(inputs[0].dtype, DType::F32 | DType::F64) {
            return Peer::default();
        }
        let flag = |x: bool| if x { "True" } else { "False" };
        let (left, transpose) = (flag(!self.params.right), flag(self.params.transpose));
        let torch = format!("torch.ormqr(x0, x1, x2, left={left}, transpose={transpose}, out=y0)");
        Peer { torch: Some(torch.into()), torch_setup: None, numpy: None }
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Vector => "householder_vector",
            Self::Apply => "apply_householder",
            Self::Ormqr => "ormqr",
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Vector => "the Householder reflector of a vector",
            Self::Apply => "product of a Householder reflector and a matrix",
            Self::Ormqr => "product of the Q of a QR factorisation, kept as reflectors, and a matrix",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &crate::qr::FLOATS
    }

    fn cases(&self) -> Vec<Case> {
        match self {
            Self::Vector => vector_cases(),
            Self::Apply => apply_cases(),
            Self::Ormqr => ormqr_cases(),
        }
    }

    /// Vectors, or a matrix with reflectors of as many elements as it has rows.
    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        if *self == Self::Vector {
            MakeVector::dims(shape)?;
            return Ok(Case::new(MakeVector, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench));
        }
        match shape.dims() {
            [leading @ .., m, p] => {
                Ok(product_case(*self == Self::Apply, leading, [*m, *m, *m, *p], OrmqrParams::default(), Role::Bench))
            }
            _ => Err(Error::argument((*self).name(), "c", format!("matrices of shape […, m, p], got {shape}"))),
        }
    }
}

/// A case whose reflectors do not lengthen a vector: `τ ≤ 2/m` and no element of `v` exceeds 1.
fn product_case(
    single: bool,
    leading: &[usize],
    [m, n, k, p]: [usize; 4],
    params: OrmqrParams,
    role: Role,
) -> Case {
    let shape = |extents: &[usize]| [leading, extents].concat();
    let v = if single { shape(&[m]) } else { shape(&[m, n]) };
    let tau = if single { leading.to_vec() } else { shape(&[k]) };
    let c = if params.right { shape(&[p, m]) } else { shape(&[m, p]) };
    let inputs = vec![
        Input::new(&v, Fill::Uniform(-1.0, 1.0)),
        Input::new(&tau, Fill::Uniform(0.0, 2.0 / m.max(1) as f64)),
        Input::new(&c, Fill::Normal),
    ];
    let side = if params.right { "right" } else { "left" };
    let transposed = if params.transpose { " transposed" } else { "" };
    Case::new(Product { single, params }, inputs, role).tagged(&format!("{side}{transposed}"))
}

fn vector_cases() -> Vec<Case> {
    let new = |dims: &[usize], fill, role| Case::new(MakeVector, vec![Input::new(dims, fill)], role);
    let mut cases = vec![new(&[1 << 20], Fill::Normal, Role::Bench), new(&[1000, 100], Fill::Normal, Role::Bench)];
    for dims in [&[1][..], &[2], &[3], &[7], &[33], &[1000], &[0, 3], &[5, 1], &[3, 2, 65], &[70, 17]] {
        cases.push(new(dims, Fill::Normal, Role::Agree));
    }
    for fill in [Fill::Constant(0.0), Fill::Magnitudes(1e-30, 1e30, false), Fill::Integers(-1, 1), Fill::Specials] {
        cases.push(new(&[40, 6], fill, Role::Agree).tagged(&format!("{fill:?}")));
    }
    cases
}

fn apply_cases() -> Vec<Case> {
    let right = |right| OrmqrParams { right, transpose: false };
    let mut cases = vec![product_case(true, &[], [2048, 1, 1, 2048], right(false), Role::Bench)];
    for [m, p] in [[0, 3], [3, 0], [1, 1], [2, 3], [7, 17], [33, 5], [65, 33], [130, 100]] {
        cases.push(product_case(true, &[], [m, 1, 1, p], right(false), Role::Agree));
        cases.push(product_case(true, &[2, 3], [m, 1, 1, p], right(true), Role::Agree));
    }
    cases
}

fn ormqr_cases() -> Vec<Case> {
    let plain = OrmqrParams::default();
    let mut cases = vec![
        product_case(false, &[500], [32, 32, 32, 32], plain, Role::Bench),
        product_case(false, &[], [512, 512, 512, 512], plain, Role::Bench),
        product_case(false, &[], [1024, 1024, 1024, 1024], plain, Role::Bench),
    ];
    for (right, transpose) in [(false, false), (false, true), (true, false), (true, true)] {
        let params = OrmqrParams { right, transpose };
        for extents in [
            [0, 0, 0, 2], [1, 1, 1, 1], [3, 2, 2, 5], [5, 5, 0, 3], [7, 9, 7, 4], [17, 16, 16, 33], [33, 20, 12, 7],
            [65, 65, 65, 3], [130, 31, 31, 20],
        ] {
            cases.push(product_case(false, &[], extents, params, Role::Agree));
        }
        cases.push(product_case(false, &[3, 2], [9, 8, 8, 10], params, Role::Agree).tagged("batch"));
        cases.push(product_case(false, &[0], [4, 4, 4, 4], params, Role::Agree).tagged("batch"));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_vector_does_not_matter() {
        for scale in [1e-300, 1e-160, 1.0, 1e160, 1e300] {
            let made = householder_vector(&Tensor::from_slice(&[3.0 * scale, 4.0 * scale], &[2]).unwrap()).unwrap();
            let (v, beta) = (made.v.to_vec::<f64>().unwrap(), made.beta.to_vec::<f64>().unwrap()[0]);
            assert!((v[1] - 0.5).abs() < 1e-15 && (beta / scale + 5.0).abs() < 1e-14, "{scale}");
        }
    }

    #[test]
    fn extents_must_go_together() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32).unwrap();
        let plain = OrmqrParams::default();
        let refused = |e: Error| matches!(e, Error::Argument { argument: "c", .. });
        assert!(refused(ormqr(&zeros(&[3, 2]), &zeros(&[2]), &zeros(&[2, 2]), plain).unwrap_err()));
        assert!(refused(apply_householder(&zeros(&[3]), &zeros(&[]), &zeros(&[2, 3]), plain).unwrap_err()));
        assert!(ormqr(&zeros(&[3, 2]), &zeros(&[3]), &zeros(&[3, 2]), plain).is_err());
    }
}
