//! Multiply-add on vectors.

use crate::pointwise::cpu::functions;

functions! {
    3:
    Fma |s, [a, b, c], _p| s.fma(a, b, c);
}
