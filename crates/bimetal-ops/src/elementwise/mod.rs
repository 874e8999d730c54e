//! Functions of single elements, with NumPy broadcasting where there are several operands.

bimetal_core::domain!("elementwise": unary, unary_backward, binary, compare, fma);
