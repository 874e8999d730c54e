//! Singular values and vectors: `A = U·Σ·Vᵀ`, descending, thin or full, alone or in batches.

mod api;
mod cpu;
pub(crate) mod gpu;
mod lanes;
pub(crate) mod reference;

pub use api::*;

use crate::ratio::{compared_columns, extents, orthogonality, product, reconstruction, transposed, worst};
use crate::status;
use bimetal_core::op::{
    Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values,
};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Svd, &Kind::Svdvals];

/// With vectors or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Svd,
    Svdvals,
}

struct Decomposition {
    kind: Kind,
    full: bool,
}

/// The operation of [`svd`] with thin matrices.
pub(crate) fn thin() -> impl Op {
    Decomposition { kind: Kind::Svd, full: false }
}

impl Decomposition {
    /// The leading extents, rows and columns.
    fn extents<'a>(&self, spec: &'a Spec) -> Result<(&'a [usize], usize, usize)> {
        match spec.shape.dims() {
            [batch @ .., m, n] => Ok((batch, *m, *n)),
            _ => Err(Error::argument(self.name(), "a", format!("matrices […, m, n], got {}", spec.shape))),
        }
    }
}

impl Op for Decomposition {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [a] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !self.kind.accepted().contains(&a.dtype) {
            return Err(Error::dtype(self.name(), "a", a.dtype, self.kind.accepted()));
        }
        let (batch, m, n) = self.extents(a)?;
        let k = m.min(n);
        let too_large = |_| Error::argument(self.name(), "a", format!("factors that fit in memory, got {}", a.shape));
        let spec = |last: &[usize], dtype| {
            Ok::<_, Error>(Spec::new(Shape::new(&[batch, last].concat()).map_err(too_large)?, dtype))
        };
        let [left, right] = if self.full { [m, n] } else { [k, k] };
        let (values, status) = (spec(&[k], a.dtype)?, spec(&[], DType::I32)?);
        Ok(match self.kind {
            Kind::Svd => [spec(&[m, left], a.dtype)?, values, spec(&[right, n], a.dtype)?, status].into_iter().collect(),
            Kind::Svdvals => [values, status].into_iter().collect(),
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let (batch, m, n) = self.extents(inputs[0]).unwrap_or((&[], 0, 0));
        let (count, long, short) = (batch.iter().product::<usize>() as u64, m.max(n) as u64, m.min(n) as u64);
        // Golub and Van Loan, 4th edition, figure 8.6.1: QR first, then the SVD of R.
        let flops = match self.kind {
            Kind::Svd => 6 * long * short * short + 20 * short * short * short,
            Kind::Svdvals => 2 * long * short * short + 2 * short * short * short,
        };
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), (count * flops).max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = self.extents(inputs[0]).map_or(0, |(_, m, n)| m.max(n)) as f64;
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + n.sqrt() / 2.0,
            why: "singular values move by at most the norm of the backward error, a few roots of n times ‖A‖·ε",
        }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        (self.kind == Kind::Svd).then_some(self)
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        if self.kind == Kind::Svd {
            return Vec::new();
        }
        let [count, m, n] = extents(&inputs[0]);
        let (mut values, mut scale, mut status) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let a = &inputs[0].data[i * m * n..][..m * n];
            let found = if a.iter().all(|x| x.is_finite()) {
                status.push(0.0);
                reference::singular_values(a, m, n)
            } else {
                status.push(f64::from(status::NOT_FINITE));
                vec![f64::NAN; m.min(n)]
            };
            scale.extend(vec![found.first().copied().unwrap_or(0.0); found.len()]);
            values.extend(found);
        }
        vec![Expected::sums(values, scale), Expected::exact(status)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::svd(inputs[0], outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::svd(gpu, inputs[0], outputs)
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let torch = match (self.kind, self.full) {
            (Kind::Svd, false) => "torch.linalg.svd(x0, full_matrices=False, out=(y0, y1, y2))",
            (Kind::Svd, true) => "torch.linalg.svd(x0, out=(y0, y1, y2))",
            (Kind::Svdvals, _) => "torch.linalg.svdvals(x0, out=y0)",
        };
        Peer { torch: Some(torch.into()), ..Peer::default() }
    }
}

impl Properties for Decomposition {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        let [count, m, n] = extents(&inputs[0]);
        let (dtype, k) = (inputs[0].spec.dtype, m.min(n));
        let columns = compared_columns(n);
        let [left, right] = if self.full { [m, n] } else { [k, k] };
        let judged: Vec<[f64; 4]> = (0..count)
            .map(|i| {
                let a = &inputs[0].data[i * m * n..][..m * n];
                let (u, s) = (&outputs[0].data[i * m * left..][..m * left], &outputs[1].data[i * k..][..k]);
                let (vh, status) = (&outputs[2].data[i * right * n..][..right * n], outputs[3].data[i]);
                if a.iter().any(|x| !x.is_finite()) {
                    let failed = u.iter().chain(s).chain(vh).all(|x| x.is_nan());
                    let marked = status == f64::from(status::NOT_FINITE) && failed;
                    return [0.0, 0.0, 0.0, if marked { 0.0 } else { f64::INFINITY }];
                }
                let scaled: Vec<f64> = (0..m * k).map(|e| u[e / k * left + e % k] * s[e % k]).collect();
                let back = product(&scaled, &vh[..k * n], [m, k, n], &columns);
                let sorted = s.windows(2).all(|pair| pair[0] >= pair[1]) && s.iter().all(|&x| x >= 0.0);
                let right_vectors = transposed(vh, right, n);
                [
                    reconstruction(a, &back, [m, n], &columns, dtype),
                    orthogonality(u, [m, left], dtype).max(orthogonality(&right_vectors, [n, right], dtype)),
                    if sorted { 0.0 } else { f64::INFINITY },
                    if status == 0.0 { 0.0 } else { f64::INFINITY },
                ]
            })
            .collect();
        let property = |name, allowed, k: usize| worst(name, allowed, judged.iter().map(|j| j[k]).enumerate());
        vec![
            property("reconstruction", 35.0, 0),
            property("orthogonality", 35.0, 1),
            property("order", 0.0, 2),
            property(Property::STATUS, 0.0, 3),
        ]
    }
}

impl Kind {
    /// Values alone are judged by those of a reference in f64, which is no more exact than f64's own.
    fn accepted(self) -> &'static [DType] {
        match self {
            Self::Svd => &crate::qr::FLOATS,
            Self::Svdvals => &DType::FLOATS,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Svd => "svd",
            Self::Svdvals => "svdvals",
        }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Svd => "singular values, descending, and both kinds of vectors",
            Self::Svdvals => "singular values, descending",
        }
    }

    fn dtypes(&self) -> &'static [DType] {
        self.accepted()
    }

    fn cases(&self) -> Vec<Case> {
        cases(*self)
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let op = Decomposition { kind: *self, full: false };
        op.extents(&Spec::new(shape.clone(), DType::F32))?;
        Ok(case(op, shape.dims(), Spectrum::Random, Role::Bench))
    }
}

fn case(op: Decomposition, dims: &[usize], spectrum: Spectrum, role: Role) -> Case {
    Case::new(op, vec![Input::new(dims, Fill::Matrices(Structure::General, spectrum))], role)
}

fn cases(kind: Kind) -> Vec<Case> {
    let new = |dims: &[usize], spectrum, role| case(Decomposition { kind, full: false }, dims, spectrum, role);
    let mut cases = Vec::new();
    let bench: &[&[usize]] = match kind {
        Kind::Svd => &[
            &[100, 32, 32], &[50, 64, 64], &[100, 64, 64], &[200, 64, 64], &[20, 128, 128], &[50, 128, 128],
            &[10, 256, 256], &[5, 512, 512], &[32, 32], &[64, 64], &[128, 128], &[256, 256], &[512, 512], &[1024, 1024],
            &[2048, 2048], &[256, 128], &[512, 256], &[1024, 512], &[2048, 512], &[128, 256], &[4096, 4096],
        ],
        Kind::Svdvals => &[&[100, 64, 64], &[1024, 1024]],
    };
    cases.extend(bench.iter().map(|dims| new(dims, Spectrum::Random, Role::Bench)));
    let sizes = [
        [0, 0], [0, 3], [3, 0], [1, 1], [1, 5], [5, 1], [2, 2], [3, 3], [5, 5], [7, 7], [7, 16], [16, 7], [16, 16], [17, 17],
        [31, 33], [33, 31], [48, 48], [63, 65], [65, 65], [100, 20], [20, 100], [129, 70], [1000, 3], [3, 1000], [129, 129],
    ];
    cases.extend(sizes.iter().map(|dims| new(dims, Spectrum::Random, Role::Agree).tagged("sizes")));
    let spectra = [
        Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular, Spectrum::Repeated,
        Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::Scaled(30), Spectrum::Scaled(-30),
        Spectrum::OneBad, Spectrum::OneNan,
    ];
    for spectrum in spectra {
        let mut shapes: Vec<&[usize]> = vec![&[3, 9, 9], &[18, 32, 32], &[3, 45, 30]];
        if kind == Kind::Svd {
            shapes.extend::<[&[usize]; 3]>([&[3, 16, 16], &[3, 20, 45], &[3, 70, 70]]);
        }
        cases.extend(shapes.iter().map(|dims| new(dims, spectrum, Role::Agree).tagged(&format!("{spectrum:?}"))));
    }
    let batches: [&[usize]; 5] = [&[0, 4, 4], &[2, 0, 3], &[2, 3, 6, 5], &[37, 5, 5], &[3, 2, 1, 24, 20]];
    cases.extend(batches.iter().map(|dims| new(dims, Spectrum::Random, Role::Agree).tagged("batch")));
    if kind == Kind::Svd {
        let shapes: [&[usize]; 7] =
            [&[5, 5], &[3, 9, 4], &[3, 4, 9], &[2, 0, 3], &[3, 0], &[100, 20], &[2, 20, 100]];
        for spectrum in [Spectrum::Random, Spectrum::RankDeficient, Spectrum::OneBad, Spectrum::OneNan] {
            for dims in shapes {
                let op = Decomposition { kind, full: true };
                cases.push(case(op, dims, spectrum, Role::Agree).tagged(&format!("full {spectrum:?}")));
            }
        }
    }
    cases
}
