//! Functions of single elements, with NumPy broadcasting where there are several operands.

crate::registry::domain!("elementwise": unary, unary_backward, binary, compare, fma);
