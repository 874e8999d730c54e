//! Sums over a tensor or an axis: `Σ x`, `Σ x / n`, `√Σ x²`, `Σ (x − mean)² / (n − correction)` and its square root.

mod cpu;
mod gpu;
mod reference;

use super::over::Over;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] =
    &[&Kind::Sum, &Kind::Mean, &Kind::L2Norm, &Kind::Variance, &Kind::StandardDeviation];

/// What is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Sum,
    Mean,
    L2Norm,
    Variance,
    StandardDeviation,
}

struct Sums {
    kind: Kind,
    over: Over,
    /// Subtracted from the number of elements in the divisor of a variance.
    correction: usize,
}

/// The two public functions of a kind.
macro_rules! reduction {
    ($kind:ident: $name:ident, $into:ident $(, $correction:ident = $one:literal)?; $what:literal; $notes:literal; $example:literal) => {
        #[doc = $what]
        ///
        /// `x` is f32, f16 or bf16; the result has its dtype, without the axis (a scalar, shape `[]`, for `None`).
        /// Sums are f32 in blocks and pairs, so that the error grows with the logarithm of the number of terms.
        #[doc = $notes]
        ///
        /// # Errors
        /// An axis that `x` does not have, or another dtype.
        ///
        /// ```
        /// # use bimetal_core::{DType, Tensor};
        #[doc = concat!("# use bimetal_ops::", stringify!($name), ";")]
        /// let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 6.0], &[2, 2])?;
        #[doc = $example]
        /// # Ok::<(), bimetal_core::Error>(())
        /// ```
        pub fn $name(x: &Tensor, axis: Option<isize> $(, $correction: usize)?) -> Result<Tensor> {
            op::run_one(&Sums::new(Kind::$kind, Over::new(axis)) $(.corrected($correction))?, &[x])
        }

        #[doc = concat!("[`", stringify!($name), "`] into an existing tensor of `x`'s dtype and device. Its shape is")]
        /// `x`'s without the axis, or with extent 1 there (with extents 1 everywhere for `None`).
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($name), "`], or an output of another shape, dtype or device.")]
        ///
        /// ```
        /// # use bimetal_core::{DType, Tensor};
        #[doc = concat!("# use bimetal_ops::{", stringify!($name), ", ", stringify!($into), "};")]
        /// let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 6.0], &[2, 2])?;
        /// let mut y = Tensor::zeros(&[2, 1], DType::F32)?;
        #[doc = concat!(stringify!($into), "(&x, Some(1) ", $(", ", stringify!($one), )? ", &mut y)?;")]
        #[doc = concat!("let expected = ", stringify!($name), "(&x, Some(1)", $(", ", stringify!($one), )? ")?;")]
        /// assert_eq!(y.to_vec::<f32>()?, expected.to_vec::<f32>()?);
        /// # Ok::<(), bimetal_core::Error>(())
        /// ```
        pub fn $into(x: &Tensor, axis: Option<isize> $(, $correction: usize)?, out: &mut Tensor) -> Result<()> {
            let op = Sums::new(Kind::$kind, Over::into(axis, x, out)) $(.corrected($correction))?;
            op::run_into(&op, &[x], &mut [out])
        }
    };
}

reduction!(
    Sum: sum, sum_into;
    "The sum of `x` over `axis` (negative axes count from the end), or over all elements for `None`.";
    "The sum of no elements is 0.";
    "assert_eq!(sum(&x, Some(0))?.to_vec::<f32>()?, [4.0, 8.0]);\nassert_eq!(sum(&x, None)?.to_vec::<f32>()?, [12.0]);"
);
reduction!(
    Mean: mean, mean_into;
    "The mean of `x` over `axis` (negative axes count from the end), or of all elements for `None`.";
    "The mean of no elements is NaN.";
    "assert_eq!(mean(&x, Some(1))?.to_vec::<f32>()?, [1.5, 4.5]);"
);
reduction!(
    L2Norm: l2_norm, l2_norm_into;
    "The Euclidean norm `√Σ x²` over `axis` (negative axes count from the end), or of all elements for `None`.";
    "As LAPACK's `nrm2`, it is right wherever it is representable, though the squares may not be.";
    "let huge = Tensor::from_slice(&[3e30f32, 4e30], &[2])?;\nassert_eq!(l2_norm(&huge, None)?.to_vec::<f32>()?, [5e30]);"
);
reduction!(
    Variance: variance, variance_into, correction = 1;
    "The variance `Σ (x − mean)² / (n − correction)` over `axis`, or of all elements for `None`; `correction` 1 is the unbiased estimate.";
    "Deviations are from the mean of each block, and blocks are merged by Chan's formula. With `n ≤ correction` it is NaN.";
    "assert_eq!(variance(&x, Some(1), 1)?.to_vec::<f32>()?, [0.5, 4.5]);"
);
reduction!(
    StandardDeviation: standard_deviation, standard_deviation_into, correction = 1;
    "The square root of the variance over `axis`, or of all elements for `None`; see `variance` for `correction`.";
    "A variance that f32 cannot hold may overflow or underflow on a GPU.";
    "assert_eq!(standard_deviation(&x, Some(0), 0)?.to_vec::<f32>()?, [1.0, 2.0]);"
);

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::L2Norm => "l2_norm",
            Self::Variance => "variance",
            Self::StandardDeviation => "standard_deviation",
        }
    }

}

impl Sums {
    fn new(kind: Kind, over: Over) -> Self {
        Self { kind, over, correction: 1 }
    }

    fn corrected(self, correction: usize) -> Self {
        Self { correction, ..self }
    }
}

impl Op for Sums {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let (x, _) = self.over.accept(self.name(), inputs)?;
        Ok([Spec::new(self.over.shape(self.name(), &x.shape)?, x.dtype)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let per_element = match self.kind {
            Kind::Sum | Kind::Mean => 1,
            Kind::L2Norm => 2,
            Kind::Variance | Kind::StandardDeviation => 4,
        };
        let outputs = self.outputs(inputs).unwrap_or_default();
        Cost::streaming(inputs, &outputs, per_element * inputs[0].numel() as u64)
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        let n = self.over.around(self.name(), &inputs[0].shape).map_or(1, |(_, n, _)| n).max(2) as f64;
        Tolerance {
            ulps: 1.0,
            scaled: 4.0 + n.log2(),
            why: "f32 sums of at most 16 terms are added in pairs; rounding of the deviations and of the result",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        let dims = self.over.around(self.name(), &inputs[0].spec.shape).expect("the case was checked");
        vec![reference::sums(&inputs[0].data, dims, self.kind, self.correction)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let dims = self.over.around(self.name(), inputs[0].shape())?;
        cpu::sums(self.kind, self.correction, inputs[0], dims, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let dims = self.over.around(self.name(), inputs[0].shape())?;
        gpu::sums(gpu, self.kind, self.correction, inputs[0], dims, outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let Over { axis, keepdim } = self.over;
        let keep = if keepdim { ("True", "True") } else { ("False", "False") };
        let torch_axis = axis.map_or("None".to_string(), |a| format!("({a},)"));
        let numpy_axis = axis.map_or("None".to_string(), |a| a.to_string());
        let (torch, numpy) = match self.kind {
            Kind::Sum | Kind::Mean => {
                let name = self.name();
                (
                    format!("torch.{name}(x0, {torch_axis}, keepdim={}, out=y0)", keep.0),
                    format!("np.{name}(x0, axis={numpy_axis}, keepdims={}, out=y0)", keep.1),
                )
            }
            Kind::L2Norm => (
                format!("torch.linalg.vector_norm(x0, 2, {torch_axis}, keepdim={}, out=y0)", keep.0),
                format!("np.copyto(y0, np.linalg.norm(x0{}, axis={numpy_axis}, keepdims={}))", flat(axis), keep.1),
            ),
            Kind::Variance | Kind::StandardDeviation => {
                let (name, c) = (if self.kind == Kind::Variance { "var" } else { "std" }, self.correction);
                (
                    format!("torch.{name}(x0, {torch_axis}, correction={c}, keepdim={}, out=y0)", keep.0),
                    format!("np.{name}(x0, axis={numpy_axis}, ddof={c}, keepdims={}, out=y0)", keep.1),
                )
            }
        };
        Peer { torch: Some(torch.into()), numpy: Some(numpy.into()), ..Peer::default() }
    }
}

/// NumPy's norm of all elements of a matrix would be its spectral norm.
fn flat(axis: Option<isize>) -> &'static str {
    if axis.is_none() { ".ravel()" } else { "" }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Sum => "Σ x over an axis or all elements",
            Self::Mean => "Σ x / n over an axis or all elements",
            Self::L2Norm => "√Σ x² over an axis or all elements, without overflow of the squares",
            Self::Variance => "Σ (x − mean)² / (n − correction) over an axis or all elements",
            Self::StandardDeviation => "√(Σ (x − mean)² / (n − correction)) over an axis or all elements",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let case = |dims: &[usize], axis, fill, role| {
            let over = Over::new(axis);
            Case::new(Sums::new(*self, over), vec![Input::new(dims, fill)], role).tagged(&over.tag())
        };
        let (bench, agree) = (|dims: &[usize], axis| case(dims, axis, Fill::Normal, Role::Bench), Role::Agree);
        let mut cases = vec![bench(&[10_000_000], None), bench(&[1000], None)];
        if matches!(self, Self::Sum | Self::Variance) {
            cases.extend([bench(&[4096, 4096], Some(-1)), bench(&[4096, 4096], Some(0))]);
        }
        if *self == Self::Sum {
            cases.extend([bench(&[1_000_000, 10], Some(-1)), bench(&[10, 1_000_000], Some(-1))]);
            cases.push(bench(&[67_108_864], None));
        }
        for n in [0, 1, 2, 7, 15, 16, 17, 31, 33, 127, 129, 255, 257, 1023, 1025, 2049, 9001] {
            cases.push(case(&[3, n], Some(-1), Fill::Normal, agree));
        }
        for n in [1, 5, 4099, 65_537, 300_007] {
            cases.push(case(&[n], None, Fill::Uniform(0.5, 1.5), agree));
        }
        cases.push(case(&[], None, Fill::Normal, agree));
        cases.push(case(&[0, 5], Some(-1), Fill::Normal, agree));
        cases.push(case(&[0, 5], Some(0), Fill::Normal, agree));
        cases.push(case(&[2, 70_000], Some(1), Fill::Normal, agree).tagged("long rows"));
        cases.push(case(&[3000, 10], Some(1), Fill::Uniform(-30.0, 30.0), agree).tagged("many short rows"));
        for (dims, axis) in [([5, 37, 3], 1), ([1, 1300, 70], 1), ([17, 2, 2], 0), ([2, 40, 2500], 1), ([2, 1, 65], 1)] {
            cases.push(case(&dims, Some(axis), Fill::Normal, agree));
        }
        cases.push(case(&[20_011, 3], Some(0), Fill::Uniform(0.0, 1.0), agree).tagged("narrow"));
        cases.push(case(&[1100, 260], Some(0), Fill::Uniform(0.0, 1.0), agree).tagged("deep"));
        for (fill, tag) in [
            (Fill::Specials, "specials"),
            (Fill::Constant(0.1), "constant"),
            (Fill::Constant(0.0), "zeros"),
            (Fill::Uniform(1000.0, 1001.0), "far from zero"),
            (Fill::Magnitudes(1e-6, 1e6, false), "wide range"),
        ] {
            cases.push(case(&[40, 131], Some(1), fill, agree).tagged(tag));
            cases.push(case(&[131, 40], Some(0), fill, agree).tagged(tag));
        }
        if *self == Self::L2Norm {
            for (lo, hi, tag) in [(1e-37, 1e-33, "tiny"), (1e30, 1e36, "huge"), (1e-37, 1e36, "everything")] {
                cases.push(case(&[9, 999], Some(1), Fill::Magnitudes(lo, hi, false), agree).tagged(tag));
                cases.push(case(&[999, 9], Some(0), Fill::Magnitudes(lo, hi, false), agree).tagged(tag));
            }
        }
        for (axis, correction) in [(None, 0), (Some(1), 2)] {
            let op = Sums { kind: *self, over: Over { axis, keepdim: true }, correction };
            let tag = format!("{} correction {correction}", op.over.tag());
            cases.push(Case::new(op, vec![Input::new(&[6, 11], Fill::Normal)], agree).tagged(&tag));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        Ok(Case::new(Sums::new(*self, Over::new(None)), vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::DType;

    #[test]
    fn ten_million_equal_terms_add_up() {
        let x = Tensor::from_slice(&vec![0.1f32; 10_000_000], &[10_000_000]).unwrap();
        let exact = 0.1f32 as f64 * 1e7;
        assert!((sum(&x, None).unwrap().to_f64_vec().unwrap()[0] / exact - 1.0).abs() < 4e-7);
        assert!(variance(&x, None, 1).unwrap().to_f64_vec().unwrap()[0] < 1e-15);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let data: Vec<f32> = (0..700_001u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32).sqrt()).collect();
        let x = Tensor::from_slice(&data, &[700_001]).unwrap();
        let columns = x.slice(0..700_000).unwrap().reshape(&[7000, 100]).unwrap();
        let all = || {
            let whole = [sum(&x, None), l2_norm(&x, None), variance(&x, None, 1), sum(&columns, Some(0))];
            whole.map(|y| y.unwrap().to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        };
        let pool = |n| bimetal_core::cpu::parallel::with_threads(n, all).unwrap();
        assert_eq!(pool(1), pool(3));
    }

    #[test]
    fn sixteen_bit_sums_overflow_only_at_the_end() {
        let x = Tensor::from_f64(&[60000.0, 60000.0, -60000.0], &[3], DType::F16).unwrap();
        assert_eq!(sum(&x, None).unwrap().to_f64_vec().unwrap(), [60000.0]);
        assert_eq!(sum(&x.slice(0..2).unwrap(), None).unwrap().to_f64_vec().unwrap(), [f64::INFINITY]);
    }

    #[test]
    fn too_few_elements_have_no_variance() {
        let x = Tensor::from_slice(&[3.0f32, 4.0], &[2, 1]).unwrap();
        assert!(variance(&x, Some(1), 1).unwrap().to_f64_vec().unwrap().iter().all(|v| v.is_nan()));
        assert_eq!(variance(&x, Some(1), 0).unwrap().to_f64_vec().unwrap(), [0.0, 0.0]);
        assert!(sum(&x, Some(2)).is_err());
    }
}
