//! A family of pointwise functions as a table: what a function is called, what it costs, how exact it is and what other
//! libraries call it. From the table come the typed functions, the operations and their cases.

use super::{AWKWARD, BROADCASTS};
use bimetal_core::op::{Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// What the registry, the reports and the cases need to know of a function.
pub(crate) struct Facts {
    pub name: &'static str,
    /// The formula.
    pub doc: &'static str,
    /// Names of the operands.
    pub operands: &'static [&'static str],
    /// Where each operand is interesting.
    pub fill: &'static [Fill],
    pub flops: u64,
    pub tolerance: Tolerance,
    /// Default values of the attributes, for cases.
    pub attributes: [f32; 2],
    /// The peer's expression, with `{p}` and `{q}` for the attributes.
    pub torch: &'static str,
    pub numpy: &'static str,
    /// Further benchmark shapes.
    pub bench: Bench,
}

/// Which shapes are timed beside ten million elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bench {
    /// None.
    Plain,
    /// 256 MiB and a call too small to be worth a second thread.
    Sizes,
    /// A large and a small matrix, as a model's layers have.
    Matrices,
    /// 256 MiB and the matrices.
    Everything,
}

impl Bench {
    fn shapes(self) -> Vec<Vec<usize>> {
        let mut shapes = vec![vec![10_000_000]];
        if matches!(self, Self::Sizes | Self::Everything) {
            shapes.extend([vec![67_108_864], vec![1000]]);
        }
        if matches!(self, Self::Matrices | Self::Everything) {
            shapes.extend([vec![4096, 4096], vec![256, 1024]]);
        }
        shapes
    }
}

/// Functions that share their loops.
pub(crate) trait Family: Copy + Send + Sync + 'static {
    /// Whether operands broadcast; otherwise they have one shape.
    const BROADCASTS: bool = false;
    /// The output's dtype, where it is not the operands'.
    const OUTPUT: Option<DType> = None;

    fn facts(self) -> Facts;
    fn reference(self, p: [f32; 2], x: &[Values]) -> Expected;
    fn cpu(self, p: [f32; 2], x: &[&Tensor], y: &mut Tensor) -> Result<()>;
    fn gpu(self, p: [f32; 2], gpu: &Gpu, x: &[&Tensor], y: &Tensor) -> Result<()>;
    /// Cases that only this function needs: attributes, the operands' fills, and what they are.
    fn extra(self) -> Vec<([f32; 2], Vec<Fill>, &'static str)> {
        Vec::new()
    }
}

/// A function of a family with its attributes.
#[derive(Clone, Copy)]
pub(crate) struct Pointwise<F> {
    pub function: F,
    pub p: [f32; 2],
}

impl<F: Family> Op for Pointwise<F> {
    fn name(&self) -> &'static str {
        self.function.facts().name
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let Facts { name, operands, .. } = self.function.facts();
        if inputs.len() != operands.len() {
            return Err(Error::argument(name, "inputs", format!("{} tensors, got {}", operands.len(), inputs.len())));
        }
        let first = inputs[0];
        let mut shape = first.shape.clone();
        for (input, operand) in inputs.iter().zip(operands) {
            if !DType::FLOATS.contains(&input.dtype) {
                return Err(Error::dtype(name, operand, input.dtype, &DType::FLOATS));
            }
            if input.dtype != first.dtype {
                return Err(Error::dtype(name, operand, input.dtype, &[first.dtype]));
            }
            if F::BROADCASTS {
                shape = shape.broadcast(&input.shape, name)?;
            } else if input.shape != first.shape {
                let expected = format!("the shape {} of `{}`, got {}", first.shape, operands[0], input.shape);
                return Err(Error::argument(name, operand, expected));
            }
        }
        Ok([Spec::new(shape, F::OUTPUT.unwrap_or(first.dtype))].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let elements = outputs.first().map_or(0, Spec::numel) as u64;
        Cost::streaming(inputs, &outputs, self.function.facts().flops * elements)
    }

    fn tolerance(&self, _inputs: &[&Spec]) -> Tolerance {
        self.function.facts().tolerance
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![self.function.reference(self.p, inputs)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.function.cpu(self.p, inputs, outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        self.function.gpu(self.p, gpu, inputs, outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let Facts { torch, numpy, .. } = self.function.facts();
        let fill_in = |text: &str| text.replace("{p}", &self.p[0].to_string()).replace("{q}", &self.p[1].to_string());
        let some = |text: &str| (!text.is_empty()).then(|| fill_in(text).into());
        Peer { torch: some(torch), numpy: some(numpy), ..Peer::default() }
    }
}

/// A function of a family in the registry.
pub(crate) struct Entry<F>(pub F);

impl<F: Family> Entry<F> {
    fn case(&self, shapes: &[&[usize]], fill: impl Fn(usize) -> Fill, role: Role) -> Case {
        let facts = self.0.facts();
        let shape = |k: usize| shapes[k.min(shapes.len() - 1)];
        let inputs = (0..facts.operands.len()).map(|k| Input::new(shape(k), fill(k))).collect();
        Case::new(Pointwise { function: self.0, p: facts.attributes }, inputs, role)
    }
}

impl<F: Family> Definition for Entry<F> {
    fn name(&self) -> &'static str {
        self.0.facts().name
    }

    fn doc(&self) -> &'static str {
        self.0.facts().doc
    }

    fn cases(&self) -> Vec<Case> {
        let facts = self.0.facts();
        let usual = |k: usize| facts.fill[k.min(facts.fill.len() - 1)];
        let mut cases: Vec<_> =
            facts.bench.shapes().iter().map(|dims| self.case(&[dims], usual, Role::Bench)).collect();
        if F::BROADCASTS && facts.bench != Bench::Plain {
            let [matrix, row, column] = [&[4096, 4096][..], &[4096], &[4096, 1]];
            cases.push(self.case(&[matrix, row], usual, Role::Bench));
            cases.push(self.case(&[matrix, column], usual, Role::Bench));
            cases.push(self.case(&[&[10_000_000], &[]], usual, Role::Bench));
        }
        cases.extend(AWKWARD.iter().map(|&n| self.case(&[&[n]], usual, Role::Agree)));
        for dims in [&[][..], &[5, 7, 11], &[3, 0, 4]] {
            cases.push(self.case(&[dims], usual, Role::Agree));
        }
        let wide = |_| Fill::Magnitudes(1e-6, 6e4, false);
        cases.push(self.case(&[&[2003]], wide, Role::Agree).tagged("wide range"));
        cases.push(self.case(&[&[1009]], |_| Fill::Specials, Role::Agree).tagged("specials"));
        let mixed = |k| if k == 0 { Fill::Specials } else { usual(k) };
        if facts.operands.len() > 1 {
            cases.push(self.case(&[&[1009]], mixed, Role::Agree).tagged("specials first"));
        }
        if F::BROADCASTS {
            for &shapes in BROADCASTS {
                let shapes = &shapes[..facts.operands.len()];
                cases.push(self.case(shapes, usual, Role::Agree).tagged("broadcast"));
            }
            let pairs: [&[usize]; 3] = [&[39, 1], &[1, 39], &[39, 1]];
            // Three would overflow in the middle, on devices that do not fuse.
            if facts.operands.len() == 2 {
                cases.push(self.case(&pairs, |_| Fill::Specials, Role::Agree).tagged("pairs of specials"));
            }
            cases.push(self.case(&[&[3000]], |_| Fill::Integers(-3, 3), Role::Agree).tagged("ties"));
        }
        for (p, fills, tag) in self.0.extra() {
            let inputs = fills.into_iter().map(|fill| Input::new(&[211], fill)).collect();
            cases.push(Case::new(Pointwise { function: self.0, p }, inputs, Role::Agree).tagged(tag));
        }
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let facts = self.0.facts();
        Ok(self.case(&[shape.dims()], |k| facts.fill[k.min(facts.fill.len() - 1)], Role::Bench))
    }
}

/// Declares a family: the enum of its functions, their facts, the registry's list, and the typed functions with their
/// documentation and examples. In an example `x` and the other operands are what `with` says, of one shape.
macro_rules! family {
    ($($(#[doc = $long:literal])*
    $variant:ident $name:ident $into:ident($($operand:ident),+ $(; $($attribute:ident = $default:literal),+)?) {
        $doc:literal, fill $fill:expr, flops $flops:literal, ulps $ulps:literal + $scaled:literal: $why:expr,
        torch $torch:literal, numpy $numpy:literal, bench $bench:ident,
        with $($with:literal)+ $(; $($value:literal)+)? gives $gives:literal
    })*) => {
        /// Which function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Function {
            $($variant,)*
        }

        impl Function {
            fn table(self) -> $crate::pointwise::family::Facts {
                match self {
                    $(Self::$variant => $crate::pointwise::family::Facts {
                        name: stringify!($name),
                        doc: $doc,
                        operands: &[$(stringify!($operand)),+],
                        fill: &$fill,
                        flops: $flops,
                        tolerance: bimetal_core::op::Tolerance { ulps: $ulps, scaled: $scaled, why: $why },
                        attributes: $crate::pointwise::family::attributes(&[$($($default),+)?]),
                        torch: $torch,
                        numpy: $numpy,
                        bench: $crate::pointwise::family::Bench::$bench,
                    },)*
                }
            }
        }

        /// The operations of this family.
        pub(crate) static OPS: &[&dyn bimetal_core::op::Definition] =
            &[$(&$crate::pointwise::family::Entry(Function::$variant)),*];

        $(
            $(#[doc = $long])*
            ///
            /// The dtype is f32, f16 or bf16, the same for every operand; the arithmetic is f32.
            ///
            /// # Errors
            /// Another dtype, or operands whose dtypes or shapes do not fit together.
            ///
            /// ```
            /// # use bimetal_core::Tensor;
            $(#[doc = concat!("let ", stringify!($operand), " = Tensor::from_slice(&", $with, ", &[2])?;")])+
            #[doc = concat!(
                "let y = bimetal_ops::", stringify!($name), "(", $("&", stringify!($operand), ", ",)+
                $($($value, ", ",)+)? ")?.to_f64_vec()?;"
            )]
            #[doc = concat!("assert!(y.iter().zip(", $gives, ").all(|(y, e): (&f64, f64)| (y - e).abs() < 1e-6));")]
            /// # Ok::<(), bimetal_core::Error>(())
            /// ```
            pub fn $name($($operand: &bimetal_core::Tensor,)+ $($($attribute: f32),+)?)
                -> bimetal_core::Result<bimetal_core::Tensor> {
                let p = $crate::pointwise::family::attributes(&[$($($attribute),+)?]);
                let op = $crate::pointwise::family::Pointwise { function: Function::$variant, p };
                bimetal_core::op::run_one(&op, &[$($operand),+])
            }

            #[doc = concat!("[`", stringify!($name), "`] into an existing tensor of the result's shape, dtype and device.")]
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($name), "`], or an output of another shape, dtype or device.")]
            ///
            /// ```
            /// # use bimetal_core::Tensor;
            $(#[doc = concat!("let ", stringify!($operand), " = Tensor::from_slice(&", $with, ", &[2])?;")])+
            #[doc = concat!(
                "let mut out = bimetal_ops::", stringify!($name), "(", $("&", stringify!($operand), ", ",)+
                $($($value, ", ",)+)? ")?;"
            )]
            #[doc = concat!(
                "bimetal_ops::", stringify!($into), "(", $("&", stringify!($operand), ", ",)+ $($($value, ", ",)+)?
                "&mut out)?;"
            )]
            #[doc = concat!(
                "assert!(out.to_f64_vec()?.iter().zip(", $gives, ").all(|(y, e): (&f64, f64)| (y - e).abs() < 1e-6));"
            )]
            /// # Ok::<(), bimetal_core::Error>(())
            /// ```
            pub fn $into($($operand: &bimetal_core::Tensor,)+ $($($attribute: f32,)+)? out: &mut bimetal_core::Tensor)
                -> bimetal_core::Result<()> {
                let p = $crate::pointwise::family::attributes(&[$($($attribute),+)?]);
                let op = $crate::pointwise::family::Pointwise { function: Function::$variant, p };
                bimetal_core::op::run_into(&op, &[$($operand),+], &mut [out])
            }
        )*
    };
}
pub(crate) use family;

/// Up to two attributes as a pair.
pub(crate) fn attributes(values: &[f32]) -> [f32; 2] {
    [values.first().copied().unwrap_or(0.0), values.get(1).copied().unwrap_or(0.0)]
}
