//! Types of elements, as NVIDIA's libraries number them.

use std::ffi::c_int;

/// Types of matrix elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 64-bit floats.
    F64,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit integers; products are of [`Element::I32`].
    I8,
    /// 32-bit integers.
    I32,
}

impl Element {
    /// NVIDIA's number for the type.
    pub(crate) fn data_type(self) -> c_int {
        match self {
            Self::F32 => 0,
            Self::F64 => 1,
            Self::F16 => 2,
            Self::I8 => 3,
            Self::I32 => 10,
            Self::BF16 => 14,
        }
    }
}
