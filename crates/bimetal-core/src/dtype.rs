//! Element types of a tensor: names, sizes, limits and the Rust type behind each.

use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE 754 binary64.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer.
    I64,
    /// Truth value, one byte: 0 or 1.
    Bool,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 10] =
        [Self::F32, Self::F16, Self::BF16, Self::F64, Self::I8, Self::U8, Self::I32, Self::U32, Self::I64, Self::Bool];

    /// The floating-point types in which training and inference operations are defined.
    pub const FLOATS: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::Bool => "bool",
        }
    }

    /// Whether this is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::F64)
    }

    /// Distance from 1 to the next number; 0 for integers.
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::F32 => f32::EPSILON as f64,
            Self::F16 => 9.765_625e-4,
            Self::BF16 => 7.8125e-3,
            Self::F64 => f64::EPSILON,
            _ => 0.0,
        }
    }

    /// Largest finite value (for integers, the largest value).
    pub const fn max(self) -> f64 {
        match self {
            Self::F32 => f32::MAX as f64,
            Self::F16 => 65504.0,
            Self::BF16 => 3.389_531_389_251_535_5e38,
            Self::F64 => f64::MAX,
            Self::I8 => 127.0,
            Self::U8 => 255.0,
            Self::I32 => i32::MAX as f64,
            Self::U32 => u32::MAX as f64,
            Self::I64 => i64::MAX as f64,
            Self::Bool => 1.0,
        }
    }

    /// Smallest positive normal number; 0 for integers.
    pub const fn min_positive(self) -> f64 {
        match self {
            Self::F32 | Self::BF16 => f32::MIN_POSITIVE as f64,
            Self::F16 => 6.103_515_625e-5,
            Self::F64 => f64::MIN_POSITIVE,
            _ => 0.0,
        }
    }

    /// The distance between neighbouring numbers at `value` (never below the subnormal spacing).
    pub fn ulp(self, value: f64) -> f64 {
        if !self.is_float() {
            return 1.0;
        }
        let magnitude = value.abs().clamp(self.min_positive(), self.max());
        // A normal f64 without its fraction is the power of two below it.
        let power = f64::from_bits(magnitude.to_bits() & f64::INFINITY.to_bits());
        power * self.epsilon()
    }

    /// `value` rounded to this type and back.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::F32 => value as f32 as f64,
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::BF16 => bf16::from_f64(value).to_f64(),
            Self::F64 => value,
            Self::I8 => value as i8 as f64,
            Self::U8 => value as u8 as f64,
            Self::I32 => value as i32 as f64,
            Self::U32 => value as u32 as f64,
            Self::I64 => value as i64 as f64,
            Self::Bool => f64::from(u8::from(value != 0.0)),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            format!("unknown dtype `{name}`: expected one of f32, f16, bf16, f64, i8, u8, i32, u32, i64, bool")
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold.
pub trait Scalar: sealed::Sealed + Copy + Send + Sync + bytemuck::NoUninit + 'static {
    /// The matching element type.
    const DTYPE: DType;
    /// The value as f64 (i64 beyond 2^53 rounds).
    fn to_f64(self) -> f64;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

macro_rules! scalar {
    ($($t:ty => $d:ident, $to:expr, $from:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Scalar for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { let to: fn($t) -> f64 = $to; to(self) }
            fn from_f64(value: f64) -> Self { let from: fn(f64) -> $t = $from; from(value) }
        }
    )*};
}

scalar! {
    f32 => F32, |x| x as f64, |x| x as f32;
    f16 => F16, f16::to_f64, f16::from_f64;
    bf16 => BF16, bf16::to_f64, bf16::from_f64;
    f64 => F64, |x| x, |x| x;
    i8 => I8, |x| x as f64, |x| x as i8;
    u8 => U8, |x| x as f64, |x| x as u8;
    i32 => I32, |x| x as f64, |x| x as i32;
    u32 => U32, |x| x as f64, |x| x as u32;
    i64 => I64, |x| x as f64, |x| x as i64;
    bool => Bool, |x| f64::from(u8::from(x)), |x| x != 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulp_is_the_gap_to_the_next_number() {
        for x in [1.0f32, 1.5, 3.999_999_8, 1e-30, 7e37, 0.1] {
            let gap = (f32::from_bits(x.to_bits() + 1) as f64) - x as f64;
            assert_eq!(DType::F32.ulp(x as f64), gap, "{x}");
        }
        assert_eq!(DType::F16.ulp(1.0), f16::EPSILON.to_f64());
        assert_eq!(DType::BF16.ulp(1.0), bf16::EPSILON.to_f64());
        assert_eq!(DType::BF16.max(), bf16::MAX.to_f64());
    }

    #[test]
    fn names_parse_back() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse::<DType>(), Ok(dtype));
        }
        assert!("f8".parse::<DType>().is_err());
    }
}
