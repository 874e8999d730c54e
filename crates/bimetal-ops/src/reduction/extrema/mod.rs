//! Extrema over a tensor or an axis: the largest and smallest element, and the index of the first of them.

mod cpu;
mod gpu;
mod reference;

use super::over::Over;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Kind::Max, &Kind::Min, &Kind::Argmax, &Kind::Argmin];

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Max,
    Min,
    Argmax,
    Argmin,
}

struct Extrema {
    kind: Kind,
    over: Over,
}

/// The two public functions of a kind.
macro_rules! extremum {
    ($kind:ident: $name:ident, $into:ident, $out:ident; $what:literal; $result:literal; $example:literal) => {
        #[doc = $what]
        ///
        /// `axis` counts from the end if it is negative; `None` takes all elements. `x` is f32, f16 or bf16;
        #[doc = $result]
        /// The axis is dropped from the shape (a scalar, shape `[]`, for `None`).
        ///
        /// # Errors
        /// An axis that `x` does not have or that has no elements, or another dtype.
        ///
        /// ```
        /// # use bimetal_core::Tensor;
        #[doc = concat!("# use bimetal_ops::", stringify!($name), ";")]
        /// let x = Tensor::from_slice(&[3.0f32, -1.0, 3.0, 2.0, 5.0, -4.0], &[2, 3])?;
        #[doc = $example]
        /// # Ok::<(), bimetal_core::Error>(())
        /// ```
        pub fn $name(x: &Tensor, axis: Option<isize>) -> Result<Tensor> {
            op::run_one(&Extrema { kind: Kind::$kind, over: Over::new(axis) }, &[x])
        }

        #[doc = concat!("[`", stringify!($name), "`] into an existing tensor of the result's dtype on `x`'s device. Its")]
        /// shape is `x`'s without the axis, or with extent 1 there (with extents 1 everywhere for `None`).
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($name), "`], or an output of another shape, dtype or device.")]
        ///
        /// ```
        /// # use bimetal_core::{DType, Tensor};
        #[doc = concat!("# use bimetal_ops::{", stringify!($name), ", ", stringify!($into), "};")]
        /// let x = Tensor::from_slice(&[3.0f32, -1.0, 3.0, 2.0, 5.0, -4.0], &[2, 3])?;
        #[doc = concat!("let mut y = Tensor::zeros(&[2, 1], DType::", stringify!($out), ")?;")]
        #[doc = concat!(stringify!($into), "(&x, Some(1), &mut y)?;")]
        #[doc = concat!("assert_eq!(y.to_f64_vec()?, ", stringify!($name), "(&x, Some(1))?.to_f64_vec()?);")]
        /// # Ok::<(), bimetal_core::Error>(())
        /// ```
        pub fn $into(x: &Tensor, axis: Option<isize>, out: &mut Tensor) -> Result<()> {
            op::run_into(&Extrema { kind: Kind::$kind, over: Over::into(axis, x, out) }, &[x], &mut [out])
        }
    };
}

extremum!(
    Max: max, max_into, F32;
    "The largest element along `axis`; NaN if any is NaN.";
    "the result has its dtype.";
    "assert_eq!(max(&x, Some(1))?.to_vec::<f32>()?, [3.0, 5.0]);"
);
extremum!(
    Min: min, min_into, F32;
    "The smallest element along `axis`; NaN if any is NaN.";
    "the result has its dtype.";
    "assert_eq!(min(&x, None)?.to_vec::<f32>()?, [-4.0]);"
);
extremum!(
    Argmax: argmax, argmax_into, I64;
    "The index along `axis` of the first largest element; of the first NaN if there is one.";
    "the result is i64 (for `None`, an index into all elements in row-major order).";
    "assert_eq!(argmax(&x, Some(1))?.to_vec::<i64>()?, [0, 1]);"
);
extremum!(
    Argmin: argmin, argmin_into, I64;
    "The index along `axis` of the first smallest element; of the first NaN if there is one.";
    "the result is i64 (for `None`, an index into all elements in row-major order).";
    "assert_eq!(argmin(&x, None)?.to_vec::<i64>()?, [5]);"
);

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Min => "min",
            Self::Argmax => "argmax",
            Self::Argmin => "argmin",
        }
    }

    const fn largest(self) -> bool {
        matches!(self, Self::Max | Self::Argmax)
    }

    const fn indexed(self) -> bool {
        matches!(self, Self::Argmax | Self::Argmin)
    }
}

impl Op for Extrema {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let (x, (_, n, _)) = self.over.accept(self.name(), inputs)?;
        if n == 0 {
            let expected = format!("at least one element to choose from, got shape {}", x.shape);
            return Err(Error::argument(self.name(), "x", expected));
        }
        let dtype = if self.kind.indexed() { DType::I64 } else { x.dtype };
        Ok([Spec::new(self.over.shape(self.name(), &x.shape)?, dtype)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), inputs[0].numel() as u64)
    }

    fn tolerance(&self, _inputs: &[&Spec]) -> Tolerance {
        Tolerance::EXACT
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        let dims = self.over.around(self.name(), &inputs[0].spec.shape).expect("the case was checked");
        vec![reference::extrema(&inputs[0].data, dims, self.kind)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::extrema(self.kind, inputs[0], self.over.around(self.name(), inputs[0].shape())?, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::extrema(gpu, self.kind, inputs[0], self.over.around(self.name(), inputs[0].shape())?, outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let Over { axis, keepdim } = self.over;
        let name = self.name();
        let (keep, torch_keep) = if keepdim { ("True", ", keepdim=True") } else { ("False", "") };
        let numpy_axis = axis.map_or("None".to_string(), |a| a.to_string());
        let torch = match (axis, self.kind.indexed()) {
            (None, true) => format!("torch.{name}(x0, None{torch_keep}, out=y0)"),
            (None, false) => format!("torch.a{name}(x0, (){torch_keep}, out=y0)"),
            (Some(a), true) => format!("torch.{name}(x0, {a}{torch_keep}, out=y0)"),
            (Some(a), false) => format!("torch.a{name}(x0, {a}{torch_keep}, out=y0)"),
        };
        let numpy = format!("np.{name}(x0, axis={numpy_axis}, keepdims={keep}, out=y0)");
        Peer { torch: Some(torch.into()), numpy: Some(numpy.into()), ..Peer::default() }
    }
}

impl Definition for Kind {
    fn name(&self) -> &'static str {
        (*self).name()
    }

    fn doc(&self) -> &'static str {
        match self {
            Self::Max => "the largest element over an axis or of all",
            Self::Min => "the smallest element over an axis or of all",
            Self::Argmax => "the index of the first largest element over an axis or of all",
            Self::Argmin => "the index of the first smallest element over an axis or of all",
        }
    }

    fn cases(&self) -> Vec<Case> {
        let case = |dims: &[usize], axis, fill, role| {
            let op = Extrema { kind: *self, over: Over::new(axis) };
            let tag = op.over.tag();
            Case::new(op, vec![Input::new(dims, fill)], role).tagged(&tag)
        };
        let (bench, agree) = (|dims: &[usize], axis| case(dims, axis, Fill::Normal, Role::Bench), Role::Agree);
        let mut cases = vec![bench(&[10_000_000], None), bench(&[1000], None)];
        if self.largest() {
            cases.extend([bench(&[4096, 4096], Some(-1)), bench(&[4096, 4096], Some(0))]);
        }
        for n in [1, 2, 7, 15, 16, 17, 31, 33, 127, 129, 255, 257, 1023, 1025, 2049, 9001] {
            cases.push(case(&[3, n], Some(-1), Fill::Normal, agree));
        }
        for n in [1, 3, 5, 4099, 65_537, 300_007] {
            cases.push(case(&[n], None, Fill::Normal, agree));
        }
        // Few different values, so that every block and lane has an extremum and only the first index is right.
        let ties = Fill::Integers(-2, 2);
        for n in [5, 100, 4099, 140_003] {
            cases.push(case(&[n], None, ties, agree).tagged("ties"));
        }
        cases.push(case(&[], None, Fill::Normal, agree));
        cases.push(case(&[0, 5], Some(-1), Fill::Normal, agree));
        cases.push(case(&[2, 70_000], Some(1), Fill::Normal, agree).tagged("long rows"));
        cases.push(case(&[3000, 10], Some(1), ties, agree).tagged("many short rows"));
        for (dims, axis) in [([5, 37, 3], 1), ([1, 1300, 70], 1), ([17, 2, 2], 0), ([2, 40, 2500], 1), ([2, 1, 65], 1)] {
            cases.push(case(&dims, Some(axis), Fill::Normal, agree));
            cases.push(case(&dims, Some(axis), ties, agree).tagged("ties"));
        }
        cases.push(case(&[20_011, 3], Some(0), ties, agree).tagged("narrow"));
        cases.push(case(&[1100, 260], Some(0), ties, agree).tagged("deep"));
        for (fill, tag) in [(Fill::Specials, "specials"), (Fill::Constant(f64::NEG_INFINITY), "lowest")] {
            for (dims, axis) in [([40, 13], 1), ([300, 8], 1), ([40, 131], 1), ([131, 40], 0)] {
                cases.push(case(&dims, Some(axis), fill, agree).tagged(tag));
            }
        }
        cases.push(case(&[50, 3], Some(1), Fill::Constant(f64::NAN), agree).tagged("nan"));
        for axis in [None, Some(1)] {
            let op = Extrema { kind: *self, over: Over { axis, keepdim: true } };
            let tag = op.over.tag();
            cases.push(Case::new(op, vec![Input::new(&[6, 11], Fill::Normal)], agree).tagged(&tag));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let op = Extrema { kind: *self, over: Over::new(None) };
        Ok(Case::new(op, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_both_signs_are_equal() {
        let x = Tensor::from_slice(&[-0.0f32, 0.0, -0.0], &[3]).unwrap();
        assert_eq!(argmax(&x, None).unwrap().to_vec::<i64>().unwrap(), [0]);
        assert_eq!(argmin(&x, None).unwrap().to_vec::<i64>().unwrap(), [0]);
    }

    #[test]
    fn an_empty_axis_is_refused_and_empty_rows_are_not() {
        let x = Tensor::zeros(&[0, 4], DType::F32).unwrap();
        let refused = max(&x, Some(0)).unwrap_err().to_string();
        assert!(refused.contains("max") && refused.contains("[0, 4]"), "{refused}");
        assert!(argmin(&x, None).is_err());
        assert_eq!(argmax(&x, Some(1)).unwrap().numel(), 0);
    }
}
