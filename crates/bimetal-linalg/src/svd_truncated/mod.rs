//! The first singular values and vectors by a random sketch: `Q` spans `(A·Aᵀ)^q·A·Ω`, and `A ≈ Q·(Qᵀ·A) = U·Σ·Vᵀ`
//! (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), with an estimate of what is left out.

mod api;
mod cpu;
mod gpu;
pub(crate) mod reference;

pub use api::{SvdTruncated, SvdTruncatedParams, svd_truncated, svd_truncated_into, svd_truncated_with};

use crate::blocks::working;
use crate::compose::{self, Batch, Source};
use crate::lanes::DTYPES;
use crate::{qr, system};
use bimetal_core::op::{
    Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Truncated];

/// Counters of random numbers: those of the sketch, and those of the probes, which must not depend on it.
const STREAMS: [u32; 2] = [0, 1];

/// Most probes of the error: the kernel gives each a unit.
const MOST_PROBES: usize = 256;

/// The least probability of failure: f32 holds the factors that belong to it.
const LEAST_FAILURE: f64 = 1e-30;

struct Truncated;

pub(crate) struct Decomposition {
    pub(crate) rank: usize,
    pub(crate) params: SvdTruncatedParams,
}

/// Singular values and vectors in the dtype of the computation: at least as many as were asked for.
pub(crate) struct Sketched {
    pub(crate) u: Tensor,
    pub(crate) s: Tensor,
    pub(crate) vh: Tensor,
    /// How many there are.
    pub(crate) columns: usize,
}

/// An orthonormal basis of the columns of `y`, and `y` in it; NaN for a matrix with NaN or infinity.
fn basis(y: &Tensor) -> Result<[Tensor; 2]> {
    let [q, r, _] = compose::applied(&qr::reduced(), &[y])?;
    Ok([q, r])
}

impl Decomposition {
    /// Columns of the sketch; one at least, in which NaN is found.
    fn columns(&self, batch: &Batch) -> usize {
        self.rank.saturating_add(self.params.oversampling).max(1).min(batch.k())
    }

    /// The decomposition of `w`, matrices in the dtype of the computation, by a sketch; U has `rank` columns.
    pub(crate) fn sketched(&self, w: &Tensor, batch: &Batch, status: &mut Tensor) -> Result<Sketched> {
        let (dtype, columns) = (w.dtype(), self.columns(batch));
        let sketch = compose::random(w, [batch.n, columns], dtype, self.params.seed, STREAMS[0])?;
        let [mut q, _] = basis(&compose::product(w, &sketch, [false, false])?)?;
        let [mut back, mut r] = basis(&compose::product(w, &q, [true, false])?)?;
        for _ in 0..self.params.power_iterations {
            [q, _] = basis(&compose::product(w, &back, [false, false])?)?;
            [back, r] = basis(&compose::product(w, &q, [true, false])?)?;
        }
        // Qᵀ·A is the transpose of `back·r`, and `r` is small.
        let [right, s, left] = compose::svd(&r, status)?;
        let extents = [batch.count, self.rank, columns];
        let left = Source::all(&left, extents).strided([columns * columns, columns, 1]);
        let left = left.made(&batch.with(&[self.rank, columns]), extents, dtype)?;
        let u = compose::product(&q, &left, [false, true])?;
        Ok(Sketched { u, s, vh: compose::product(&right, &back, [true, true])?, columns })
    }

    fn steps(&self, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
        let [u, s, vh, error, status] = outputs else { unreachable!("five outputs") };
        let batch = Batch::of(self.name(), "a", a.shape())?;
        let (count, m, n, k) = (batch.count, batch.m, batch.n, self.rank);
        let w = compose::widened(a)?;
        let found = self.sketched(&w, &batch, status)?;
        let columns = found.columns;
        Source::all(&found.u, [count, m, k]).checked(status).copy(u, [count, m, k])?;
        Source::all(&found.s, [count, 1, k]).strided([columns, 0, 1]).checked(status).copy(s, [count, 1, k])?;
        let rows = Source::all(&found.vh, [count, k, n]).strided([columns * n, n, 1]);
        rows.checked(status).copy(vh, [count, k, n])?;
        self.estimate(&w, &batch, [u, s, vh], error, status)
    }

    /// The bound of the error from what `A − U·Σ·Vᵀ` makes of random vectors: of the factors as they are given out.
    fn estimate(
        &self,
        w: &Tensor,
        batch: &Batch,
        [u, s, vh]: [&Tensor; 3],
        error: &mut Tensor,
        status: &Tensor,
    ) -> Result<()> {
        let (dtype, k, probes) = (w.dtype(), self.rank, self.params.probes);
        let omega = compose::random(w, [batch.n, probes], dtype, self.params.seed, STREAMS[1])?;
        let [u, s, vh] = [compose::widened(u)?, compose::widened(s)?, compose::widened(vh)?];
        let exact = compose::product(w, &omega, [false, false])?;
        let inner = compose::product(&vh, &omega, [false, false])?;
        let extents = [batch.count, k, probes];
        let inner = Source::all(&inner, extents).times(&s, [k, 1, 0]).made(&batch.with(&[k, probes]), extents, dtype)?;
        let found = compose::product(&u, &inner, [false, false])?;
        let job = Probes {
            exact: &exact,
            found: &found,
            values: &s,
            status,
            rows: batch.m,
            probes,
            rank: k,
            factor: self.params.factor(),
            rounding: self.params.factor() * 4.0 * (batch.k() as f64).sqrt() * dtype.epsilon(),
        };
        match w.gpu() {
            _ if batch.count == 0 => Ok(()),
            Some(gpu) => gpu::errors(gpu, &job, error),
            None => cpu::errors(&job, error),
        }
    }
}

/// What matrices and their approximations, `[batch, rows, probes]` each, say of the error.
struct Probes<'a> {
    exact: &'a Tensor,
    found: &'a Tensor,
    /// `rank` singular values for each matrix.
    values: &'a Tensor,
    status: &'a Tensor,
    rows: usize,
    probes: usize,
    rank: usize,
    /// The bound is this times the longest difference, and `rounding` times the largest singular value.
    factor: f64,
    rounding: f64,
}

impl Op for Decomposition {
    fn name(&self) -> &'static str {
        "svd_truncated"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let op = self.name();
        system::check(op, inputs, &["a"])?;
        let (a, batch) = (inputs[0], Batch::of(op, "a", &inputs[0].shape)?);
        let (m, n, k) = (batch.m, batch.n, self.rank);
        if k > batch.k() {
            return Err(Error::argument(op, "rank", format!("at most min({m}, {n}), got {k}")));
        }
        if !(1..=MOST_PROBES).contains(&self.params.probes) {
            return Err(Error::argument(op, "probes", format!("1 to {MOST_PROBES}, got {}", self.params.probes)));
        }
        if !(self.params.failure >= LEAST_FAILURE && self.params.failure < 1.0) {
            let expected = format!("a probability from {LEAST_FAILURE} to below 1, got {}", self.params.failure);
            return Err(Error::argument(op, "failure", expected));
        }
        let spec = |last: &[usize], dtype| batch.spec(op, "a", last, dtype);
        let factors = [spec(&[m, k], a.dtype)?, spec(&[k], a.dtype)?, spec(&[k, n], a.dtype)?];
        let rest = [spec(&[], working(a.dtype))?, spec(&[], DType::I32)?];
        Ok(factors.into_iter().chain(rest).collect())
    }

    /// The products with the matrix, and QR of its sketches.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let flops = Batch::of(self.name(), "a", &inputs[0].shape).map_or(0, |batch| {
            let (columns, passes) = (self.columns(&batch), 2 + 2 * self.params.power_iterations);
            let products = 2 * batch.m * batch.n * (passes * columns + self.params.probes);
            let bases = 4 * columns * columns * ((batch.m + batch.n) * self.params.power_iterations + batch.m + batch.n);
            batch.count * (products + bases)
        });
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (flops as u64).max(1))
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 35.0, scaled: 35.0, why: "LAPACK's ratio for SVD; factors are judged by their properties" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.steps(inputs[0], outputs)
    }

    fn gpu(&self, _: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.steps(inputs[0], outputs)
    }

    /// PyTorch's `svd_lowrank` has no bound of the error, without which outputs are not accepted.
    fn peer(&self, _: &[&Spec]) -> Peer {
        Peer::default()
    }
}

impl Properties for Decomposition {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::properties(self, inputs, outputs)
    }
}

impl Definition for Truncated {
    fn name(&self) -> &'static str {
        "svd_truncated"
    }

    fn doc(&self) -> &'static str {
        "the first singular values and vectors by a random sketch, and a bound of the error"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let [_, m, n] = system::matrices("svd_truncated", "a", shape)?;
        Ok(case(shape.dims(), m.min(n).min(16), SvdTruncatedParams::auto(), Spectrum::Random, Role::Bench))
    }
}

fn case(dims: &[usize], rank: usize, params: SvdTruncatedParams, spectrum: Spectrum, role: Role) -> Case {
    let input = Input::new(dims, Fill::Matrices(Structure::General, spectrum));
    Case::new(Decomposition { rank, params }, vec![input], role).tagged(&format!("rank {rank}"))
}

fn cases() -> Vec<Case> {
    let auto = SvdTruncatedParams::auto();
    let benches: [(&[usize], usize); 4] =
        [(&[1024, 1024], 32), (&[4096, 4096], 64), (&[2048, 512], 16), (&[50, 128, 64], 16)];
    let mut cases: Vec<Case> =
        benches.iter().map(|(dims, rank)| case(dims, *rank, auto, Spectrum::Random, Role::Bench)).collect();
    let agree = |dims: &[usize], rank, params, spectrum: Spectrum, tag: &str| {
        case(dims, rank, params, spectrum, Role::Agree).tagged(&format!("{spectrum:?} {tag}"))
    };
    for spectrum in [
        Spectrum::Random, Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular,
        Spectrum::Repeated, Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::Scaled(30),
        Spectrum::Scaled(-30), Spectrum::OneBad, Spectrum::OneNan,
    ] {
        cases.push(agree(&[3, 24, 17], 5, SvdTruncatedParams { oversampling: 4, ..auto }, spectrum, ""));
        cases.push(agree(&[40, 60], 8, auto, spectrum, ""));
    }
    let sizes: [(&[usize], usize); 14] = [
        (&[0, 0], 0), (&[0, 3], 0), (&[3, 0], 0), (&[1, 1], 1), (&[1, 1], 0), (&[1, 7], 1), (&[7, 1], 1), (&[5, 5], 5),
        (&[16, 17], 3), (&[33, 31], 31), (&[0, 4, 4], 2), (&[2, 3, 12, 9], 2), (&[100, 20], 4), (&[17, 90], 4),
    ];
    cases.extend(sizes.iter().map(|(dims, rank)| agree(dims, *rank, auto, Spectrum::Random, "sizes")));
    let without = SvdTruncatedParams { oversampling: 0, power_iterations: 0, seed: u64::MAX, probes: 1, ..auto };
    cases.push(agree(&[2, 30, 20], 6, without, Spectrum::Random, "no oversampling"));
    cases.push(agree(&[2, 30, 20], 6, SvdTruncatedParams { probes: 256, ..auto }, Spectrum::Random, "256 probes"));
    cases
}
