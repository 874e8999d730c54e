//! Shapes of row-major tensors: up to eight dimensions, held inline.

use crate::{Error, Result};
use arrayvec::ArrayVec;
use std::fmt;

/// Largest number of dimensions.
pub const MAX_RANK: usize = 8;

/// The extent of each dimension, outermost first.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(ArrayVec<usize, MAX_RANK>);

impl Shape {
    /// A shape with these extents.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or a product of the nonzero extents that overflows `usize`.
    pub fn new(dims: &[usize]) -> Result<Self> {
        let product = dims.iter().filter(|&&d| d != 0).try_fold(1usize, |n, &d| n.checked_mul(d));
        if dims.len() > MAX_RANK || product.is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(Error::argument(
                "shape",
                "dims",
                format!("at most {MAX_RANK} dimensions whose product fits in memory, got {dims:?}"),
            ));
        }
        Ok(Self(dims.iter().copied().collect()))
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of dimensions; 0 for a scalar.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements: 1 for a scalar, 0 if any extent is 0.
    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// `axis` as an index from 0; negative values count from the end.
    ///
    /// # Errors
    /// An axis outside `-rank..rank`.
    pub fn axis(&self, op: &'static str, axis: isize) -> Result<usize> {
        let rank = self.rank() as isize;
        let index = if axis < 0 { axis + rank } else { axis };
        if (0..rank).contains(&index) {
            Ok(index as usize)
        } else {
            Err(Error::argument(op, "axis", format!("a value in {}..{rank} for shape {self}, got {axis}", -rank)))
        }
    }

    /// The shape as `[outer, extent of axis, inner]`: a row-major tensor seen around one axis.
    pub fn around(&self, axis: usize) -> (usize, usize, usize) {
        (self.0[..axis].iter().product(), self.0[axis], self.0[axis + 1..].iter().product())
    }

    /// The shape after NumPy broadcasting of `self` with `other`.
    ///
    /// # Errors
    /// Extents that differ and are not 1.
    pub fn broadcast(&self, other: &Self, op: &'static str) -> Result<Self> {
        let rank = self.rank().max(other.rank());
        let extent = |s: &Self, i: usize| (i + s.rank()).checked_sub(rank).map_or(1, |k| s.0[k]);
        let mut dims = ArrayVec::<usize, MAX_RANK>::new();
        for i in 0..rank {
            dims.push(match (extent(self, i), extent(other, i)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(Error::argument(
                        op,
                        "shapes",
                        format!("extents that are equal or 1 after aligning the last axes, got {self} and {other}"),
                    ));
                }
            });
        }
        Self::new(&dims)
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = usize;
    fn index(&self, axis: usize) -> &usize {
        &self.0[axis]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let s = |d: &[usize]| Shape::new(d).unwrap();
        assert_eq!(s(&[3, 1]).broadcast(&s(&[4]), "add").unwrap(), s(&[3, 4]));
        assert_eq!(s(&[]).broadcast(&s(&[2, 0]), "add").unwrap(), s(&[2, 0]));
        assert_eq!(s(&[1]).broadcast(&s(&[0]), "add").unwrap(), s(&[0]));
        assert!(s(&[2, 3]).broadcast(&s(&[3, 2]), "add").is_err());
        assert!(s(&[2]).broadcast(&s(&[0]), "add").is_err());
    }

    #[test]
    fn axes_count_from_both_ends() {
        let s = Shape::new(&[2, 3, 5]).unwrap();
        assert_eq!(s.axis("t", -1).unwrap(), 2);
        assert_eq!(s.around(1), (2, 3, 5));
        assert!(s.axis("t", 3).is_err() && s.axis("t", -4).is_err());
        assert!(Shape::default().axis("t", 0).is_err());
    }

    #[test]
    fn impossible_shapes_are_errors() {
        assert!(Shape::new(&[usize::MAX, 2]).is_err());
        assert!(Shape::new(&[1; 9]).is_err());
        assert_eq!(Shape::new(&[]).unwrap().numel(), 1);
    }
}
