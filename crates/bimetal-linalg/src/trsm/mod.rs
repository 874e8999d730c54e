//! Systems with triangular matrices: `op(T)·X = α·B` and `X·op(T) = α·B`.

mod cpu;
mod gpu;
mod reference;

use crate::blocks::Place;
use crate::cholesky::Solution;
use crate::lanes::DTYPES;
use crate::status::ensure;
use crate::system::{self, System, labelled};
use bimetal_core::op::{
    self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum,
    Structure, Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Problem, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Trsm];

/// Options of [`trsm_with`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrsmParams {
    /// `op(T)·X = α·B` if set, else `X·op(T) = α·B`.
    pub left: bool,
    /// The upper triangle is used, else the lower one; the other is not read.
    pub upper: bool,
    /// `op(T)` is the transpose.
    pub transpose: bool,
    /// The diagonal counts as ones and is not read.
    pub unit: bool,
    /// The factor of the right-hand sides.
    pub alpha: f64,
    /// Whether to wait for the statuses and return an error for the first system that failed.
    pub check_errors: bool,
}

impl TrsmParams {
    /// A lower triangle on the left, as it is, with errors checked.
    pub fn auto() -> Self {
        Self { left: true, upper: false, transpose: false, unit: false, alpha: 1.0, check_errors: true }
    }
}

impl Default for TrsmParams {
    fn default() -> Self {
        Self::auto()
    }
}

/// The solutions of `T·X = B` with lower triangular `T` (BLAS `trsm`).
///
/// `t` is `[…, n, n]`, of which the lower triangle is read; `b` is `[…, n, k]` with the same leading extents and dtype: f32,
/// f64, f16 or bf16 (which are computed in f32). The result has the shape of `b`.
///
/// # Errors
/// Shapes or dtypes that do not go together; [`Error::Matrix`] for the first system with NaN or infinity, or with a zero on
/// the diagonal.
///
/// ```
/// # use bimetal_linalg::trsm;
/// # use bimetal_core::Tensor;
/// let t = Tensor::from_slice(&[2.0f32, 0.0, 1.0, 4.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[2.0f32, 9.0], &[2, 1])?;
/// assert_eq!(trsm(&t, &b)?.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn trsm(t: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(trsm_with(t, b, TrsmParams::default())?.x)
}

/// [`trsm`] on either side, with either triangle, transposed, with a unit diagonal, a factor, or the statuses instead of an
/// error: see [`TrsmParams`]. On the right, `b` is `[…, k, n]`.
///
/// # Errors
/// As [`trsm`]; none for systems unless `check_errors` is set.
///
/// ```
/// # use bimetal_linalg::{TrsmParams, trsm_with};
/// # use bimetal_core::Tensor;
/// let t = Tensor::from_slice(&[9.0f32, 3.0, 0.0, 9.0], &[2, 2])?;
/// let b = Tensor::from_slice(&[1.0f32, 5.0], &[1, 2])?;
/// let params = TrsmParams { left: false, upper: true, unit: true, alpha: 2.0, ..TrsmParams::default() };
/// assert_eq!(trsm_with(&t, &b, params)?.x.to_vec::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn trsm_with(t: &Tensor, b: &Tensor, params: TrsmParams) -> Result<Solution> {
    let mut outputs = op::run(&TrsmOp(params), &[t, b])?;
    let (status, x) = (outputs.remove(1), outputs.remove(0));
    if params.check_errors {
        ensure("trsm", &status, |pivot| Problem::Singular { pivot })?;
    }
    Ok(Solution { x, status })
}

/// [`trsm_with`] into an existing tensor of the shape and dtype of `b` on its device; errors are always checked.
///
/// # Errors
/// As [`trsm`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{TrsmParams, trsm_into};
/// # use bimetal_core::{DType, Tensor};
/// let t = Tensor::from_slice(&[4.0f32], &[1, 1])?;
/// let mut x = Tensor::zeros(&[1, 1], DType::F32)?;
/// trsm_into(&t, &t, TrsmParams::default(), &mut x)?;
/// assert_eq!(x.to_vec::<f32>()?, [1.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn trsm_into(t: &Tensor, b: &Tensor, params: TrsmParams, x: &mut Tensor) -> Result<()> {
    let op = TrsmOp(params);
    let specs = op.outputs(&[t.spec(), b.spec()])?;
    let mut status = Tensor::empty_on(specs[1].clone(), t.device())?;
    op::run_into(&op, &[t, b], &mut [x, &mut status])?;
    ensure("trsm", &status, |pivot| Problem::Singular { pivot })
}

#[derive(Clone, Copy)]
struct TrsmOp(TrsmParams);

/// A system from the left with a lower triangle, or with an upper one, that is the same as another.
struct Way {
    /// `n` rows of the triangle and `k` right-hand sides.
    system: System,
    triangle: Place,
    sides: Place,
    upper: bool,
}

impl TrsmOp {
    fn way(&self, t: &Shape, b: &Shape) -> Result<Way> {
        let [count, n] = system::square("trsm", "t", t)?;
        let [sides, rows, columns] = system::matrices("trsm", "b", b)?;
        let leading = |s: &Shape| s.dims()[..s.rank() - 2].to_vec();
        let (fits, k) = if self.0.left { (rows == n, columns) } else { (columns == n, rows) };
        if !fits || sides != count || leading(t) != leading(b) {
            let expected = format!("right-hand sides with the leading extents and order of {t}, got {b}");
            return Err(Error::argument("trsm", "b", expected));
        }
        let (triangle, place) =
            (Place { start: 0, row: n, column: 1 }, Place { start: 0, row: columns, column: 1 });
        // From the right it is the transposed system.
        let transposed = self.0.transpose == self.0.left;
        Ok(Way {
            system: System { count, n, k },
            triangle: if transposed { triangle.transposed() } else { triangle },
            sides: if self.0.left { place } else { place.transposed() },
            upper: self.0.upper != transposed,
        })
    }
}

impl Op for TrsmOp {
    fn name(&self) -> &'static str {
        "trsm"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        system::check(self.name(), inputs, &["t", "b"])?;
        self.way(&inputs[0].shape, &inputs[1].shape)?;
        Ok([inputs[1].clone(), system::status(&inputs[0].shape)?].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let n = inputs[0].shape.dims().last().copied().unwrap_or(0);
        Cost::streaming(inputs, &outputs, (n * inputs[1].numel()).max(1) as u64)
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 0.0, scaled: 0.0, why: "judged by the residual and by the status" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::trsm(&self.0, &self.way(inputs[0].shape(), inputs[1].shape())?, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::trsm(gpu, &self.0, &self.way(inputs[0].shape(), inputs[1].shape())?, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let flag = |b: bool| if b { "True" } else { "False" };
        let TrsmParams { left, upper, transpose, unit, alpha, .. } = self.0;
        let (t, upper) = if transpose { ("x0.mT", !upper) } else { ("x0", upper) };
        let torch = (alpha == 1.0 && inputs[0].dtype.size() > 2).then(|| {
            let (upper, left, unit) = (flag(upper), flag(left), flag(unit));
            format!("torch.linalg.solve_triangular({t}, x1, upper={upper}, left={left}, unitriangular={unit}, out=y0)")
        });
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: None }
    }
}

impl Properties for TrsmOp {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::judge(&self.0, inputs, outputs)
    }
}

struct Trsm;

impl Definition for Trsm {
    fn name(&self) -> &'static str {
        "trsm"
    }

    fn doc(&self) -> &'static str {
        "X with op(T)·X = α·B or X·op(T) = α·B, T triangular"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = vec![
            case(TrsmParams::auto(), &[500, 16, 16], 1, POSITIVE, Role::Bench, "500x16x16,500x16x1"),
            case(TrsmParams::auto(), &[200, 48, 48], 16, POSITIVE, Role::Bench, "200x48x48,200x48x16"),
            case(TrsmParams::auto(), &[10000, 32, 32], 1, POSITIVE, Role::Bench, "10000x32x32,10000x32x1"),
            case(TrsmParams::auto(), &[1024, 1024], 256, POSITIVE, Role::Bench, "1024x1024,1024x256"),
        ];
        let forms = (0..16).map(|bits| TrsmParams {
            left: bits & 1 == 0,
            upper: bits & 2 != 0,
            transpose: bits & 4 != 0,
            unit: bits & 8 != 0,
            alpha: if bits % 3 == 0 { -0.5 } else { 1.0 },
            check_errors: false,
        });
        for (i, params) in forms.enumerate() {
            // A unit triangle of normal elements is as ill-conditioned as they come.
            // All forms at one size in shared memory, and the others by turns.
            let others = [(1, 1), (17, 20), (40, 70), (130, 5), (33, 1)];
            for (n, k) in [(9, 3), others[i % 5]] {
                let label = format!("{n} {k} form {i}");
                cases.push(case(params, &[3, n, n], k, POSITIVE, Role::Agree, &label));
            }
            // Many small ones, of which the last ones do not fill a vector.
            let (n, k) = [(3, 1), (16, 1), (9, 3), (40, 6), (63, 8)][i % 5];
            cases.push(case(params, &[19, n, n], k, POSITIVE, Role::Agree, &format!("19 of {n} {k} form {i}")));
            let spectra = [
                (Spectrum::Zero, "zero"),
                (Spectrum::Identity, "identity"),
                (Spectrum::Banded, "banded"),
                (Spectrum::Scaled(20), "1e20"),
                (Spectrum::Scaled(-20), "1e-20"),
                (Spectrum::OneNan, "one-nan"),
            ];
            for (spectrum, tag) in spectra.into_iter().filter(|_| i % 3 == 1) {
                // What is solved with huge elements beside a unit diagonal is not finite.
                if params.unit && spectrum == Spectrum::Scaled(20) {
                    continue;
                }
                let fill = Fill::Matrices(Structure::Positive, spectrum);
                cases.push(case(params, &[5, 24, 24], 2, fill, Role::Agree, &format!("24 {tag} form {i}")));
            }
        }
        for (dims, k) in [(&[0usize, 0][..], 3), (&[4, 4], 0), (&[0, 3, 3], 2), (&[2, 0, 0], 1), (&[2, 3, 9, 9], 2), (&[200, 200], 150)] {
            cases.push(case(TrsmParams::auto(), dims, k, POSITIVE, Role::Agree, &format!("{dims:?} {k} sizes")));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        system::square("trsm", "t", shape)?;
        let inputs = vec![Input::new(shape.dims(), POSITIVE), Input::new(shape.dims(), Fill::Normal)];
        Ok(Case::new(TrsmOp(TrsmParams::auto()), inputs, Role::Bench))
    }
}

const POSITIVE: Fill = Fill::Matrices(Structure::Positive, Spectrum::Random);

fn case(params: TrsmParams, dims: &[usize], k: usize, fill: Fill, role: Role, label: &str) -> Case {
    let (leading, n) = (&dims[..dims.len() - 2], dims[dims.len() - 1]);
    let mut b = leading.to_vec();
    b.extend(if params.left { [n, k] } else { [k, n] });
    labelled(TrsmOp(params), vec![Input::new(dims, fill), Input::new(&b, Fill::Normal)], role, label)
}
