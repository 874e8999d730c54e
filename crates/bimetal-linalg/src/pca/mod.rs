//! Principal components: the right singular vectors of samples less their mean, `X − 1·x̄ᵀ = U·Σ·Vᵀ`, and the variances
//! `σᵢ²/(m − 1)` along them.

mod api;
mod cpu;
mod gpu;
mod reference;

pub use api::{Pca, PcaMethod, PcaParams, pca, pca_into, pca_with};

use crate::compose::{self, Batch, Decomposed, Source};
use crate::lanes::DTYPES;
use crate::svd_truncated::{self, SvdTruncatedParams};
use crate::{norms, system};
use bimetal_core::op::{
    Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Components];

struct Components;

struct Analysis {
    components: usize,
    method: PcaMethod,
}

/// Right singular vectors and values, and the Frobenius norms of what they are of; the first `k` of `columns` count.
struct Found<'a> {
    s: &'a Tensor,
    vh: &'a Tensor,
    total: &'a Tensor,
    status: &'a Tensor,
    columns: usize,
    k: usize,
    samples: usize,
    features: usize,
}

impl Analysis {
    fn sketch(&self) -> Option<svd_truncated::Decomposition> {
        let PcaMethod::Randomized { oversampling, power_iterations, seed } = self.method else { return None };
        let params = SvdTruncatedParams { oversampling, power_iterations, seed, ..SvdTruncatedParams::auto() };
        Some(svd_truncated::Decomposition { rank: self.components, params })
    }

    /// The steps, on the device of `x`. NaN or infinity reaches the mean, and by it every element of its column.
    fn steps(&self, x: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
        let [components, variance, ratio, mean, values, status] = outputs else { unreachable!("six outputs") };
        let batch = Batch::of(self.name(), "x", x.shape())?;
        let (count, m, n, k) = (batch.count, batch.m, batch.n, self.components);
        let w = compose::widened(x)?;
        let dtype = w.dtype();
        let ones = compose::filled(&w, &[1, m], dtype, 1.0)?;
        let average = compose::scaled_product(&ones, &w, [false, false], 1.0 / m as f64)?;
        let extents = [count, m, n];
        let centred = Source::all(&w, extents).minus(&average, [n, 0, 1]).made(w.shape().dims(), extents, dtype)?;
        let (s, vh, columns) = match self.sketch() {
            Some(sketch) => {
                let found = sketch.sketched(&centred, &batch, status)?;
                (found.s, found.vh, found.columns)
            }
            None => {
                let found = Decomposed::of(&centred, &batch, status)?;
                (found.s.clone(), found.right_vectors()?, batch.k())
            }
        };
        let [total] = compose::applied(&norms::Kind::FrobeniusNorm, &[&centred])?;
        let found = Found { s: &s, vh: &vh, total: &total, status, columns, k, samples: m, features: n };
        let mut signs = compose::make(&w, &batch.with(&[k]), dtype)?;
        if count * k > 0 {
            match w.gpu() {
                Some(gpu) => gpu::describe(gpu, &found, &signs, variance, ratio)?,
                None => cpu::describe(&found, &mut signs, variance, ratio)?,
            }
        }
        let rows = Source::all(&vh, [count, k, n]).strided([columns * n, n, 1]).times(&signs, [k, 1, 0]);
        rows.checked(status).copy(components, [count, k, n])?;
        Source::all(&average, [count, 1, n]).checked(status).copy(mean, [count, 1, n])?;
        Source::all(&s, [count, 1, k]).strided([columns, 0, 1]).checked(status).copy(values, [count, 1, k])
    }
}

impl Op for Analysis {
    fn name(&self) -> &'static str {
        "pca"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let op = self.name();
        system::check(op, inputs, &["x"])?;
        let (x, batch) = (inputs[0], Batch::of(op, "x", &inputs[0].shape)?);
        let (m, n, k) = (batch.m, batch.n, self.components);
        if m < 2 {
            return Err(Error::argument(op, "x", format!("at least 2 samples, which a variance takes, got {m}")));
        }
        if k > batch.k() {
            return Err(Error::argument(op, "components", format!("at most min({m}, {n}), got {k}")));
        }
        let spec = |last: &[usize], dtype| batch.spec(op, "x", last, dtype);
        let (rows, each) = (spec(&[k, n], x.dtype)?, spec(&[k], x.dtype)?);
        let mean = spec(&[n], x.dtype)?;
        Ok([rows, each.clone(), each.clone(), mean, each, spec(&[], DType::I32)?].into_iter().collect())
    }

    /// The singular value decomposition, whole or by a sketch.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let flops = match self.sketch() {
            Some(sketch) => sketch.cost(inputs).flops,
            None => crate::svd::thin().cost(inputs).flops,
        };
        Cost::streaming(inputs, &outputs, flops + 3 * inputs[0].numel() as u64)
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 35.0, scaled: 35.0, why: "LAPACK's ratio for SVD; components are judged by their properties" }
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

    /// What PyTorch's users write: it has no explained variance of its own.
    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let (k, m) = (self.components, inputs[0].shape.dims()[inputs[0].shape.rank() - 2]);
        let torch = matches!(inputs[0].dtype, DType::F32 | DType::F64) && self.method == PcaMethod::Full;
        let torch = torch.then(|| {
            format!(
                "[y.copy_(z) for c in [x0.mean(-2, keepdim=True)] for u, s, v in [torch.linalg.svd(x0 - c, \
                 full_matrices=False)] for y, z in zip((y0, y1, y2, y3, y4), (v[..., :{k}, :], s[..., :{k}]**2/{d}, \
                 s[..., :{k}]**2/(s**2).sum(-1, keepdim=True), c.squeeze(-2), s[..., :{k}]))]",
                d = m - 1
            )
        });
        Peer { torch: torch.map(Into::into), torch_setup: None, numpy: None }
    }
}

impl Properties for Analysis {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let iterations = match self.method {
            PcaMethod::Full => None,
            PcaMethod::Randomized { power_iterations, .. } => Some(power_iterations),
        };
        reference::properties(self.components, iterations, inputs, outputs)
    }
}

impl Definition for Components {
    fn name(&self) -> &'static str {
        "pca"
    }

    fn doc(&self) -> &'static str {
        "principal components, the variances along them, and the mean"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let [_, m, n] = system::matrices("pca", "x", shape)?;
        let op = Analysis { components: m.min(n).min(16), method: PcaMethod::Full };
        Ok(Case::new(op, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

fn cases() -> Vec<Case> {
    let random = PcaMethod::randomized();
    let new = |dims: &[usize], components, method: PcaMethod, fill, role| {
        let tag = if method == PcaMethod::Full { "full" } else { "randomized" };
        let op = Analysis { components, method };
        Case::new(op, vec![Input::new(dims, fill)], role).tagged(&format!("{components} {tag}"))
    };
    let mut cases = vec![
        new(&[4000, 100], 8, PcaMethod::Full, Fill::Normal, Role::Bench),
        new(&[2000, 200], 16, random, Fill::Normal, Role::Bench),
        new(&[200, 64, 32], 4, PcaMethod::Full, Fill::Normal, Role::Bench),
    ];
    let agree = |dims: &[usize], components, method, fill, tag: &str| {
        new(dims, components, method, fill, Role::Agree).tagged(tag)
    };
    for spectrum in [
        Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular, Spectrum::Repeated,
        Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::Scaled(12), Spectrum::Scaled(-12),
        Spectrum::OneBad, Spectrum::OneNan,
    ] {
        let (fill, tag) = (Fill::Matrices(Structure::General, spectrum), format!("{spectrum:?}"));
        cases.push(agree(&[3, 14, 9], 3, PcaMethod::Full, fill, &tag));
        cases.push(agree(&[3, 12, 30], 4, random, fill, &tag));
    }
    let sizes: [(&[usize], usize); 11] = [
        (&[2, 0], 0), (&[2, 1], 1), (&[2, 5], 1), (&[3, 3], 3), (&[5, 2], 0), (&[17, 16], 16), (&[33, 65], 7), (&[100, 7], 2),
        (&[0, 4, 4], 2), (&[2, 3, 8, 5], 2), (&[70, 40], 5),
    ];
    for (dims, components) in sizes {
        for method in [PcaMethod::Full, random] {
            cases.push(agree(dims, components, method, Fill::Normal, "sizes"));
        }
    }
    cases.push(agree(&[50, 6], 3, PcaMethod::Full, Fill::Uniform(99.0, 101.0), "far from zero"));
    cases.push(agree(&[20, 6], 3, PcaMethod::Full, Fill::Constant(7.0), "constant"));
    cases
}
