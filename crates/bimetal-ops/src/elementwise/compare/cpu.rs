//! The comparisons on vectors.

use super::Function;
use crate::pointwise::cpu::{Predicate, test};
use bimetal_core::cpu::simd::Simd;
use bimetal_core::{Result, Tensor};

macro_rules! predicates {
    ($($variant:ident $method:ident;)*) => {
        $(
            #[derive(Clone, Copy)]
            struct $variant;

            impl Predicate for $variant {
                #[inline(always)]
                fn eval<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::M {
                    s.$method(a, b)
                }
            }
        )*

        pub(super) fn compare(function: Function, x: [&Tensor; 2], y: &mut Tensor) -> Result<()> {
            match function {
                $(Function::$variant => test($variant, x, y),)*
            }
        }
    };
}

predicates! {
    Eq eq;
    Ne ne;
    Lt lt;
    Le le;
    Gt gt;
    Ge ge;
}
