//! Chains of operations whose tensors stay where they are, QR of QR, truncated reconstructions and mixes of fast and slow
//! steps: cases of the bench, judged by what comes out in the end.

mod cpu;
mod gpu;
mod reference;

use crate::compose::{self, Batch, Source};
use crate::{eigh, qr, system};
use bimetal_core::op::{
    Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Properties, Property, Role, Specs, Spectrum, Structure,
    Tolerance, Values, run_here,
};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Pipelines];

const DTYPES: [DType; 2] = [DType::F32, DType::F64];

struct Pipelines;

/// Which operations follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pipeline {
    /// The factor Q of the factor Q of the factor Q.
    QrThreeTimes,
    /// `U·Σ·Vᵀ` of the first so many singular values.
    SvdTruncateReconstruct(usize),
    /// The factor Q times another matrix.
    QrMatmul,
    /// `V·Λ·Vᵀ` of `A·Aᵀ`: a product, eigenvectors, a product.
    ProductEighProduct,
}

impl Pipeline {
    fn steps(self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let [result, status] = outputs else { unreachable!("two outputs") };
        let a = inputs[0];
        let Batch { count, m, n, ref leading } = Batch::of("pipeline", "a", a.shape())?;
        let with = |last: [usize; 2]| [&leading[..], &last].concat();
        match self {
            Self::QrThreeTimes => {
                let [first, _] = compose::applied_with(&qr::reduced(), &[a], status)?;
                let [second, _, _] = compose::applied(&qr::reduced(), &[&first])?;
                let [_, mut r, mut last] = compose::outputs_of(&qr::reduced(), &[&second])?;
                run_here(&qr::reduced(), &[&second], &mut [result, &mut r, &mut last])
            }
            Self::SvdTruncateReconstruct(rank) => {
                let [u, s, vh] = compose::svd(a, status)?;
                let k = m.min(n);
                let scaled = Source::all(&u, [count, m, k]).times(&s, [k, 0, 1]);
                let scaled = scaled.made(&with([m, rank]), [count, m, rank], a.dtype())?;
                let rows = Source::all(&vh, [count, k, n]).made(&with([rank, n]), [count, rank, n], a.dtype())?;
                compose::product_into(&scaled, &rows, [false, false], result)
            }
            Self::QrMatmul => {
                let [q, _] = compose::applied_with(&qr::reduced(), &[a], status)?;
                compose::product_into(&q, inputs[1], [false, false], result)
            }
            Self::ProductEighProduct => {
                let gram = compose::product(a, a, [false, true])?;
                let [values, vectors] = compose::applied_with(&eigh::lower(), &[&gram], status)?;
                let scaled = Source::all(&vectors, [count, m, m]).times(&values, [m, 0, 1]);
                let scaled = scaled.made(&with([m, m]), [count, m, m], a.dtype())?;
                compose::product_into(&scaled, &vectors, [false, true], result)
            }
        }
    }

    const fn inputs(self) -> &'static [&'static str] {
        if matches!(self, Self::QrMatmul) { &["a", "b"] } else { &["a"] }
    }
}

impl Op for Pipeline {
    fn name(&self) -> &'static str {
        "pipeline"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        system::check(self.name(), inputs, self.inputs())?;
        let (a, batch) = (inputs[0], Batch::of(self.name(), "a", &inputs[0].shape)?);
        let (m, n) = (batch.m, batch.n);
        let last = match self {
            Self::QrThreeTimes => [m, m.min(n)],
            Self::SvdTruncateReconstruct(rank) if *rank <= m.min(n) => [m, n],
            Self::SvdTruncateReconstruct(rank) => {
                return Err(Error::argument(self.name(), "rank", format!("at most min({m}, {n}), got {rank}")));
            }
            Self::QrMatmul => match Batch::of(self.name(), "b", &inputs[1].shape)? {
                b if b.leading == batch.leading && b.m == m.min(n) => [m, b.n],
                _ => {
                    let expected = format!("{} rows and the leading extents of {}", m.min(n), a.shape);
                    return Err(Error::argument(self.name(), "b", format!("{expected}, got {}", inputs[1].shape)));
                }
            },
            Self::ProductEighProduct => [m, m],
        };
        let result = batch.spec(self.name(), "a", &last, a.dtype)?;
        Ok([result, batch.spec(self.name(), "a", &[], DType::I32)?].into_iter().collect())
    }

    /// The sums of the steps' counts.
    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let Ok(batch) = Batch::of(self.name(), "a", &inputs[0].shape) else { return Cost::default() };
        let (m, n, last) = (batch.m, batch.n, outputs.first().map_or(1, |y| y.shape[y.shape.rank() - 1]));
        let k = m.min(n);
        let factors = |n: usize| 4 * k * k * (3 * m.max(n) - k) / 3;
        let flops = match self {
            Self::QrThreeTimes => factors(n) + 2 * factors(k),
            Self::SvdTruncateReconstruct(rank) => 6 * m.max(n) * k * k + 20 * k * k * k + 2 * m * rank * n,
            Self::QrMatmul => factors(n) + 2 * m * k * last,
            Self::ProductEighProduct => 2 * m * m * n + 9 * m * m * m + 2 * m * m * m,
        };
        Cost::streaming(inputs, &outputs, (batch.count * flops).max(1) as u64)
    }

    fn tolerance(&self, _: &[&Spec]) -> Tolerance {
        Tolerance { ulps: 60.0, scaled: 60.0, why: "LAPACK's ratios for the steps; results are judged by their properties" }
    }

    fn properties(&self) -> Option<&dyn Properties> {
        Some(self)
    }

    fn reference(&self, _: &[Values]) -> Vec<Expected> {
        Vec::new()
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::run(*self, inputs, outputs)
    }

    fn gpu(&self, _: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::run(*self, inputs, outputs)
    }

    fn peer(&self, _: &[&Spec]) -> Peer {
        let torch = match self {
            Self::QrThreeTimes => "y0.copy_(torch.linalg.qr(torch.linalg.qr(torch.linalg.qr(x0)[0])[0])[0])".to_string(),
            Self::SvdTruncateReconstruct(k) => format!(
                "[torch.matmul(u[..., :{k}] * s[..., None, :{k}], v[..., :{k}, :], out=y0) for u, s, v in \
                 [torch.linalg.svd(x0, full_matrices=False)]]"
            ),
            Self::QrMatmul => "torch.matmul(torch.linalg.qr(x0)[0], x1, out=y0)".to_string(),
            Self::ProductEighProduct => "[torch.matmul(v * w.unsqueeze(-2), v.mT, out=y0) for w, v in \
                 [torch.linalg.eigh(torch.matmul(x0, x0.mT))]]"
                .to_string(),
        };
        Peer { torch: Some(torch.into()), torch_setup: None, numpy: None }
    }
}

impl Properties for Pipeline {
    fn properties(&self, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
        reference::properties(*self, inputs, outputs)
    }
}

impl Definition for Pipelines {
    fn name(&self) -> &'static str {
        "pipeline"
    }

    fn doc(&self) -> &'static str {
        "chains of factorisations and products without a transfer between them"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    /// QR three times.
    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        system::matrices("pipeline", "a", shape)?;
        Ok(case(Pipeline::QrThreeTimes, shape.dims(), Spectrum::Random, Role::Bench))
    }
}

fn case(op: Pipeline, dims: &[usize], spectrum: Spectrum, role: Role) -> Case {
    let tag = match op {
        Pipeline::QrThreeTimes => "qr, qr, qr".to_string(),
        Pipeline::SvdTruncateReconstruct(rank) => format!("svd, first {rank}, matmul"),
        Pipeline::QrMatmul => "qr, matmul".to_string(),
        Pipeline::ProductEighProduct => "matmul, eigh, matmul".to_string(),
    };
    let fill = Fill::Matrices(Structure::General, spectrum);
    let mut inputs = vec![Input::new(dims, fill)];
    if let (Pipeline::QrMatmul, [leading @ .., m, n]) = (op, dims) {
        inputs.push(Input::new(&[leading, &[*m.min(n), *n]].concat(), Fill::Normal));
    }
    Case::new(op, inputs, role).tagged(&tag)
}

fn cases() -> Vec<Case> {
    use Pipeline::{ProductEighProduct, QrMatmul, QrThreeTimes, SvdTruncateReconstruct};
    let benches: [(Pipeline, &[usize]); 6] = [
        (QrThreeTimes, &[200, 32, 32]),
        (QrThreeTimes, &[1024, 256]),
        (SvdTruncateReconstruct(16), &[50, 128, 64]),
        (SvdTruncateReconstruct(32), &[256, 256]),
        (QrMatmul, &[1000, 16, 16]),
        (ProductEighProduct, &[100, 64, 64]),
    ];
    let mut cases: Vec<Case> =
        benches.iter().map(|(op, dims)| case(*op, dims, Spectrum::Random, Role::Bench)).collect();
    let agree = |op, dims: &[usize], spectrum: Spectrum| {
        case(op, dims, spectrum, Role::Agree).tagged(&format!("{spectrum:?}"))
    };
    for spectrum in [
        Spectrum::Random, Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient, Spectrum::NearSingular,
        Spectrum::Repeated, Spectrum::Clustered, Spectrum::Graded, Spectrum::Banded, Spectrum::OneBad, Spectrum::OneNan,
    ] {
        cases.push(agree(QrThreeTimes, &[3, 12, 7], spectrum));
        cases.push(agree(SvdTruncateReconstruct(3), &[3, 12, 7], spectrum));
        cases.push(agree(QrMatmul, &[3, 12, 7], spectrum));
        cases.push(agree(ProductEighProduct, &[3, 9, 12], spectrum));
    }
    for op in [QrThreeTimes, SvdTruncateReconstruct(0), QrMatmul, ProductEighProduct] {
        for dims in [&[0, 3][..], &[3, 0], &[1, 1], &[9, 16], &[0, 2, 2], &[2, 3, 5, 4]] {
            cases.push(agree(op, dims, Spectrum::Random));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::op::run;

    #[test]
    fn wrong_arguments_are_refused() {
        let a = Tensor::zeros(&[3, 2], DType::F32).unwrap();
        let refused = |op: Pipeline, inputs: &[&Tensor]| match run(&op, inputs) {
            Err(Error::Argument { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(Pipeline::QrThreeTimes, &[&Tensor::zeros(&[3], DType::F32).unwrap()]), "a");
        assert_eq!(refused(Pipeline::SvdTruncateReconstruct(3), &[&a]), "rank");
        assert_eq!(refused(Pipeline::QrMatmul, &[&a, &a]), "b");
        assert_eq!(refused(Pipeline::QrMatmul, &[&a]), "inputs");
    }
}
