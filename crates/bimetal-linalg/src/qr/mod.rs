//! QR factorisations `A = Q·R` by Householder reflectors, with Q explicit (reduced or complete) or as reflectors.

mod cpu;
pub(crate) use cpu::{large, panel, real, tiles};
pub(crate) mod gpu;
mod reference;

use crate::status;
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum,
    Structure, Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Qr, &Kind::Geqrf];

/// What factorisations are defined for.
pub(crate) const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Qr,
    Geqrf,
}

/// What is made of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Q with `min(m, n)` columns, R with as many rows.
    Reduced,
    /// Q with `m` columns, R with `m` rows.
    Complete,
    /// R and the reflectors in one matrix, and τ.
    Packed,
}

impl Form {
    /// Columns of Q.
    pub(crate) fn columns(self, dims: &Dims) -> usize {
        match self {
            Self::Reduced => dims.k,
            Self::Complete => dims.m,
            Self::Packed => 0,
        }
    }
}

/// Matrices, their extents and the smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Dims {
    /// The extents of `[…, m, n]`.
    pub(crate) fn of(op: &'static str, argument: &'static str, shape: &Shape) -> Result<Self> {
        match shape.dims() {
            [leading @ .., m, n] => {
                Ok(Self { batch: leading.iter().product(), m: *m, n: *n, k: *m.min(n) })
            }
            _ => Err(Error::argument(op, argument, format!("matrices of shape […, m, n], got {shape}"))),
        }
    }
}

/// Options of [`qr_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QrParams {
    /// Q is `m`×`m` and R is `m`×`n`, rather than only their first `min(m, n)` columns and rows.
    pub complete: bool,
    /// Waits for the device and returns an error for a matrix with NaN or infinity. Otherwise its status is −1.
    pub check_errors: bool,
}

impl Default for QrParams {
    fn default() -> Self {
        Self { complete: false, check_errors: true }
    }
}

/// The result of [`qr`].
#[derive(Clone, Debug)]
pub struct Qr {
    /// Orthonormal columns, `[…, m, k]`.
    pub q: Tensor,
    /// Upper triangular, `[…, k, n]`; its diagonal may have either sign.
    pub r: Tensor,
    /// i32, the leading extents: 0, or −1 for a matrix with NaN or infinity, whose Q and R are NaN.
    pub status: Tensor,
}

/// The result of [`geqrf`]: `Q = H₁·H₂⋯`, with `Hⱼ = 1 − τⱼ·vⱼ·vⱼᵀ`.
#[derive(Clone, Debug)]
pub struct Reflectors {
    /// `[…, m, n]`: R on and above the diagonal, below it in column j the tail of `vⱼ`, whose element j is 1 and whose
    /// elements before it are 0.
    pub packed: Tensor,
    /// `[…, min(m, n)]`: the factors τ; 0 where a column needed no reflector.
    pub tau: Tensor,
    /// i32, the leading extents: 0, or −1 for a matrix with NaN or infinity, whose factors are NaN.
    pub status: Tensor,
}

struct Factor {
    form: Form,
}

/// The reduced QR factorisation of `[…, m, n]` (LAPACK's `geqrf` and `orgqr`): `a = q·r` with `q` of shape `[…, m, k]`,
/// whose columns are orthonormal, and `r` upper triangular of shape `[…, k, n]`, `k = min(m, n)`.
///
/// f32, f64, f16 and bf16; 16-bit types are computed in f32. It is Householder's method: backward stable for every
/// matrix, singular or not, of any scale.
///
/// # Errors
/// A tensor without two axes, another dtype, or [`Problem::NotFinite`] for the first matrix with NaN or infinity.
///
/// ```
/// # use bimetal_linalg::qr;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f64, 1.0, 4.0, 2.0], &[2, 2])?;
/// let qr = qr(&a)?;
/// let r = qr.r.to_vec::<f64>()?;
/// assert!((r[0].abs() - 5.0).abs() < 1e-14 && r[2] == 0.0);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn qr(a: &Tensor) -> Result<Qr> {
    qr_with(a, QrParams::default())
}

/// [`qr`] with a complete Q, or without waiting for errors: see [`QrParams`].
///
/// # Errors
/// As [`qr`]; [`Problem::NotFinite`] only where errors are checked.
///
/// ```
/// # use bimetal_linalg::{QrParams, qr_with};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 0.0, 4.0], &[3, 1])?;
/// let complete = qr_with(&a, QrParams { complete: true, ..QrParams::default() })?;
/// assert_eq!((complete.q.shape().dims(), complete.r.shape().dims()), (&[3, 3][..], &[3, 1][..]));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn qr_with(a: &Tensor, params: QrParams) -> Result<Qr> {
    let mut made = op::run(&Factor::new(params), &[a])?.into_iter();
    let mut next = || made.next().expect("there are three outputs");
    let qr = Qr { q: next(), r: next(), status: next() };
    params.ensure(&qr.status)?;
    Ok(qr)
}

/// [`qr_with`] into existing tensors of the results' shapes and dtypes on the operand's device.
///
/// # Errors
/// As [`qr_with`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{QrParams, qr, qr_with_into};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f32, 1.0, 4.0, 2.0], &[2, 2])?;
/// let mut out = qr(&a)?;
/// qr_with_into(&out.q.clone(), QrParams::default(), &mut out)?;
/// assert!((out.r.to_vec::<f32>()?[0].abs() - 1.0).abs() < 1e-6);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn qr_with_into(a: &Tensor, params: QrParams, out: &mut Qr) -> Result<()> {
    op::run_into(&Factor::new(params), &[a], &mut [&mut out.q, &mut out.r, &mut out.status])?;
    params.ensure(&out.status)
}

/// The QR factorisation of `[…, m, n]` with Q as reflectors (LAPACK's `geqrf`): what [`qr`] makes Q of.
///
/// # Errors
/// As [`qr`].
///
/// ```
/// # use bimetal_linalg::geqrf;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f64, 4.0], &[2, 1])?;
/// let made = geqrf(&a)?;
/// assert_eq!(made.packed.to_vec::<f64>()?, [-5.0, 0.5]);
/// assert_eq!(made.tau.to_vec::<f64>()?, [1.6]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn geqrf(a: &Tensor) -> Result<Reflectors> {
    let made = geqrf_unchecked(a)?;
    QrParams::default().ensure(&made.status)?;
    Ok(made)
}

/// [`geqrf`] without waiting for the device: a matrix with NaN or infinity has the status −1.
///
/// # Errors
/// A tensor without two axes, or another dtype.
///
/// ```
/// # use bimetal_linalg::geqrf_unchecked;
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[f32::NAN, 4.0], &[2, 1, 1])?;
/// assert_eq!(geqrf_unchecked(&a)?.status.to_vec::<i32>()?, [-1, 0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn geqrf_unchecked(a: &Tensor) -> Result<Reflectors> {
    let mut made = op::run(&Factor { form: Form::Packed }, &[a])?.into_iter();
    let mut next = || made.next().expect("there are three outputs");
    Ok(Reflectors { packed: next(), tau: next(), status: next() })
}

/// [`geqrf`] into existing tensors of the results' shapes and dtypes on the operand's device.
///
/// # Errors
/// As [`geqrf`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{geqrf, geqrf_into};
/// # use bimetal_core::Tensor;
/// let a = Tensor::from_slice(&[3.0f64, 4.0], &[2, 1])?;
/// let mut made = geqrf(&a)?;
/// geqrf_into(&a, &mut made)?;
/// assert_eq!(made.packed.to_vec::<f64>()?, [-5.0, 0.5]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn geqrf_into(a: &Tensor, out: &mut Reflectors) -> Result<()> {
    let outputs = &mut [&mut out.packed, &mut out.tau, &mut out.status];
    op::run_into(&Factor { form: Form::Packed }, &[a], outputs)?;
    QrParams::default().ensure(&out.status)
}

/// The operation of [`qr`].
pub(crate) fn reduced() -> impl Op {
    Factor { form: Form::Reduced }
}

/// The operation of [`geqrf`].
pub(crate) fn reflectors() -> impl Op {
    Factor { form: Form::Packed }
}

impl QrParams {
    fn ensure(self, found: &Tensor) -> Result<()> {
        if self.check_errors { status::ensure("qr", found, |_| Problem::NotFinite) } else { Ok(()) }
    }
}

impl Factor {
    fn new(params: QrParams) -> Self {
        Self { form: if params.complete { Form::Complete } else { Form::Reduced } }
    }

    fn dims(&self, shape: &Shape) -> Result<Dims> {
        Dims::of(self.name(), "a", shape)
    }
}

impl Op for Factor {
    fn name(&self) -> &'static str {
        if self.form == Form::Packed { Kind::Geqrf.name() } else { Kind::Qr.name() }
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [a] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !FLOATS.contains(&a.dtype) {
            return Err(Error::dtype(self.name(), "a", a.dtype, &FLOATS));
        }
        let Dims { m, n, k, .. } = self.dims(&a.shape)?;
        let leading = &a.shape.dims()[..a.shape.rank() - 2];
        let make = |extents: &[usize], dtype| {
            let shape = Shape::new(&[leading, extents].concat());
            let too_large = |_| Error::argument(self.name(), "a", format!("factors that fit in memory, got {}", a.shape));
            Ok(Spec::new(shape.map_err(too_large)?, dtype))
        };
        let (first, second) = match self.form {
            Form::Reduced => (make(&[m, k], a.dtype)?, make(&[k, n], a.dtype)?),
            Form::Complete => (make(&[m, m], a.dtype)?, make(&[m, n], a.dtype)?),
            Form::Packed => (make(&[m, n], a.dtype)?, make(&[k], a.dtype)?),
        };
        Ok([first, second, make(&[], DType::I32)?].into_iter().collect())
    }

    /// LAPACK's counts: `2·k²·(3·max(m, n) − k)/3` for the factors, as much again for a reduced Q.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let flops = self.dims(&inputs[0].shape).map_or(0, |Dims { batch, m, n, k }| {
            let factors = 2 * k * k * (3 * m.max(n) - k) / 3;
            let columns = self.form.columns(&Dims { batch, m, n, k });
            let q = if columns == 0 { 0 } else { (4 * m * columns * k + 4 * k * k * k / 3) - 2 * (m + columns) * k * k };
            batch * (factors + q)
        });
        Cost::streaming(inputs, &outputs, (flops as u64).max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 30.0, scaled: 30.0, why: "LAPACK's ratio for QR; factors are judged by their properties" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::factor(self.form, &self.dims(inputs[0].shape())?, inputs[0], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::factor(gpu, self.form, &self.dims(inputs[0].shape())?, inputs[0], outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        if !matches!(inputs[0].dtype, DType::F32 | DType::F64) {
            return Peer::default();
        }
        let torch = match self.form {
            Form::Reduced => "torch.linalg.qr(x0, out=(y0, y1))",
            Form::Complete => "torch.linalg.qr(x0, mode='complete', out=(y0, y1))",
            Form::Packed => "torch.geqrf(x0, out=(y0, y1))",
        };
        Peer { torch: Some(torch.into()), torch_setup: None, numpy: None }
    }
}

impl Properties for Factor {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::properties(self.form, inputs, outputs)
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Qr => "qr",
            Self::Geqrf => "geqrf",
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Qr => "QR factorisation with explicit Q, reduced or complete",
            Self::Geqrf => "QR factorisation with Q as Householder reflectors",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        &FLOATS
    }

    fn cases(&self) -> Vec<Case> {
        match self {
            Self::Qr => qr_cases(),
            Self::Geqrf => geqrf_cases(),
        }
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let form = if *self == Self::Qr { Form::Reduced } else { Form::Packed };
        Factor { form }.dims(shape)?;
        Ok(case(form, shape.dims(), Spectrum::Random, Role::Bench))
    }
}

fn case(form: Form, dims: &[usize], spectrum: Spectrum, role: Role) -> Case {
    let fill = match (role, spectrum) {
        (Role::Bench, Spectrum::Random) => Fill::Normal,
        _ => Fill::Matrices(Structure::General, spectrum),
    };
    Case::new(Factor { form }, vec![Input::new(dims, fill)], role)
}

/// The matrices of DESIGN.md on which factorisations founder.
const AWKWARD: [Spectrum; 11] = [
    Spectrum::Zero,
    Spectrum::Identity,
    Spectrum::RankDeficient,
    Spectrum::NearSingular,
    Spectrum::Repeated,
    Spectrum::Clustered,
    Spectrum::Graded,
    Spectrum::Banded,
    Spectrum::Scaled(30),
    Spectrum::Scaled(-30),
    Spectrum::OneNan,
];

fn qr_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let batched = [
        [50, 8, 8], [100, 8, 8], [500, 8, 8], [50, 16, 16], [100, 16, 16], [200, 16, 16], [500, 16, 16],
        [1000, 16, 16], [50, 32, 32], [100, 32, 32], [200, 32, 32], [500, 32, 32], [50, 48, 48], [100, 48, 48],
        [100, 64, 32], [100, 32, 64], [200, 64, 32], [10000, 32, 32],
    ];
    cases.extend(batched.iter().map(|dims| case(Form::Reduced, dims, Spectrum::Random, Role::Bench)));
    let singles = [
        [16, 16], [32, 32], [64, 64], [128, 128], [256, 256], [512, 512], [1024, 1024], [256, 64], [256, 128],
        [512, 128], [512, 256], [1000, 200], [2000, 500], [4000, 1000],
    ];
    cases.extend(singles.iter().map(|dims| case(Form::Reduced, dims, Spectrum::Random, Role::Bench)));
    let agree = |form, dims: &[usize], spectrum: Spectrum| {
        case(form, dims, spectrum, Role::Agree).tagged(&format!("{form:?} {spectrum:?}"))
    };
    for spectrum in AWKWARD {
        cases.push(agree(Form::Reduced, &[3, 9, 9], spectrum));
        cases.push(agree(Form::Reduced, &[2, 40, 40], spectrum));
        cases.push(agree(Form::Complete, &[17, 11, 5], spectrum));
        cases.push(agree(Form::Reduced, &[129, 40], spectrum));
    }
    for n in [0, 1, 2, 3, 5, 7, 16, 17, 31, 32, 33, 48, 63, 65, 100, 129] {
        cases.push(agree(Form::Reduced, &[n, n], Spectrum::Random));
    }
    let shapes: [&[usize]; 22] = [
        &[0, 3], &[3, 0], &[1, 9], &[9, 1], &[17, 16], &[16, 17], &[33, 7], &[7, 33], &[100, 3], &[3, 100],
        &[130, 65], &[65, 130], &[20, 300], &[0, 4, 4], &[1, 5, 3], &[2, 0, 3, 6, 6], &[2, 3, 1, 8, 5],
        &[37, 4, 4], &[3, 129, 70], &[1030, 33], &[340, 300], &[2, 280, 330],
    ];
    for dims in shapes {
        cases.push(agree(Form::Reduced, dims, Spectrum::Random));
        if dims[dims.len() - 2] <= 130 {
            cases.push(agree(Form::Complete, dims, Spectrum::Random));
        }
    }
    cases.push(agree(Form::Complete, &[140, 70], Spectrum::Random));
    for spectrum in [Spectrum::RankDeficient, Spectrum::Zero, Spectrum::Graded] {
        cases.push(agree(Form::Reduced, &[310, 300], spectrum));
    }
    cases
}

fn geqrf_cases() -> Vec<Case> {
    let benches: [&[usize]; 4] = [&[500, 32, 32], &[100, 64, 32], &[256, 256], &[1024, 1024]];
    let mut cases: Vec<Case> =
        benches.iter().map(|dims| case(Form::Packed, dims, Spectrum::Random, Role::Bench)).collect();
    let agree = |dims: &[usize], spectrum: Spectrum| {
        case(Form::Packed, dims, spectrum, Role::Agree).tagged(&format!("{spectrum:?}"))
    };
    for spectrum in AWKWARD {
        cases.push(agree(&[3, 9, 8], spectrum));
        cases.push(agree(&[2, 33, 33], spectrum));
        cases.push(agree(&[129, 40], spectrum));
    }
    let shapes: [&[usize]; 19] = [
        &[0, 0], &[0, 3], &[3, 0], &[1, 1], &[2, 2], &[5, 7], &[7, 5], &[1, 9], &[9, 1], &[17, 16], &[48, 63],
        &[100, 65], &[65, 130], &[129, 129], &[300, 20], &[0, 4, 4], &[2, 3, 1, 8, 5], &[37, 4, 4],
        &[320, 300],
    ];
    cases.extend(shapes.iter().map(|dims| agree(dims, Spectrum::Random)));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_matrix_is_named_and_its_neighbours_are_not_disturbed() {
        let mut values = vec![0.0f32; 3 * 4];
        values[..4].copy_from_slice(&[0.0, 2.0, 1.0, 0.0]);
        values[5] = f32::INFINITY;
        values[8..].copy_from_slice(&[1.0, 0.0, 0.0, 1.0]);
        let a = Tensor::from_slice(&values, &[3, 2, 2]).unwrap();
        let error = qr(&a).unwrap_err();
        assert_eq!(error, Error::Matrix { op: "qr", index: 1, problem: Problem::NotFinite });
        let made = qr_with(&a, QrParams { check_errors: false, ..QrParams::default() }).unwrap();
        assert_eq!(made.status.to_vec::<i32>().unwrap(), [0, -1, 0]);
        let r = made.r.to_vec::<f32>().unwrap();
        assert!(r[4..8].iter().all(|x| x.is_nan()));
        assert_eq!([r[0].abs(), r[1], r[2], r[3].abs()], [1.0, 0.0, 0.0, 2.0]);
        assert_eq!(r[8..], [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn tiny_tails_keep_their_size() {
        let a = Tensor::from_slice(&[1.0f32, 1.0, 0.0, 3e-25, 0.0, 4e-25], &[3, 2]).unwrap();
        let r = qr(&a).unwrap().r.to_vec::<f32>().unwrap();
        assert!((r[3].abs() / 5e-25 - 1.0).abs() < 1e-6, "{r:?}");
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..40 * 20 * 20u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32).sqrt()).collect();
        let a = Tensor::from_slice(&values, &[40, 20, 20]).unwrap();
        let bits = || qr(&a).unwrap().q.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let pool = |n| bimetal_core::cpu::parallel::with_threads(n, bits).unwrap();
        assert_eq!(pool(1), pool(3));
    }

    /// Wide panels and strips that threads share, which no case is large enough for.
    #[test]
    fn large_matrices_come_back_and_bits_do_not_depend_on_threads() {
        let (m, n) = (600, 530);
        let values: Vec<f32> = (0..m * n).map(|i| (i as u32).wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5).collect();
        let a = Tensor::from_slice(&values, &[m, n]).unwrap();
        let made = qr(&a).unwrap();
        let (q, r) = (made.q.to_vec::<f32>().unwrap(), made.r.to_vec::<f32>().unwrap());
        for i in (0..m).step_by(37) {
            let row: Vec<f64> = (0..n)
                .map(|j| (0..=j).map(|l| f64::from(q[i * n + l]) * f64::from(r[l * n + j])).sum::<f64>())
                .collect();
            assert!(row.iter().zip(&values[i * n..]).all(|(x, y)| (x - f64::from(*y)).abs() < 2e-5), "{i}");
        }
        for i in (0..n).step_by(41) {
            let dot = |j: usize| (0..m).map(|l| f64::from(q[l * n + i]) * f64::from(q[l * n + j])).sum::<f64>();
            assert!((0..n).all(|j| (dot(j) - f64::from(i == j)).abs() < 1e-5), "{i}");
        }
        let bits = || qr(&a).unwrap().q.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let pool = |n| bimetal_core::cpu::parallel::with_threads(n, bits).unwrap();
        assert_eq!(pool(1), pool(3));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        assert!(matches!(qr(&Tensor::zeros(&[3], DType::F32).unwrap()), Err(Error::Argument { argument: "a", .. })));
        assert!(matches!(qr(&Tensor::zeros(&[3, 3], DType::I32).unwrap()), Err(Error::DType { .. })));
    }
}
