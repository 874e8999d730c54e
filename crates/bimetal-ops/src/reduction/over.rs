//! What is reduced: every element or one axis, seen as `[outer, n, inner]`; shared by the families of this domain.

use bimetal_core::{DType, Error, Result, Shape, Spec, Tensor};

/// The reduced axis, and whether it stays in the result's shape with extent 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Over {
    /// The axis, counted from the end if negative; `None` for all elements.
    pub axis: Option<isize>,
    /// Whether the result keeps the rank of the input.
    pub keepdim: bool,
}

impl Over {
    /// Drops the axis from the result.
    pub fn new(axis: Option<isize>) -> Self {
        Self { axis, keepdim: false }
    }

    /// As `out` has it: an output of the input's rank keeps the axis.
    pub fn into(axis: Option<isize>, x: &Tensor, out: &Tensor) -> Self {
        Self { axis, keepdim: x.shape().rank() > 0 && out.shape().rank() == x.shape().rank() }
    }

    /// The shape as `(outer, n, inner)`: `n` elements, `inner` apart, become one.
    ///
    /// # Errors
    /// An axis that the shape does not have.
    pub fn around(&self, op: &'static str, shape: &Shape) -> Result<(usize, usize, usize)> {
        match self.axis {
            None => Ok((1, shape.numel(), 1)),
            Some(axis) => Ok(shape.around(shape.axis(op, axis)?)),
        }
    }

    /// The shape of the result.
    ///
    /// # Errors
    /// An axis that the shape does not have.
    pub fn shape(&self, op: &'static str, shape: &Shape) -> Result<Shape> {
        let axis = self.axis.map(|axis| shape.axis(op, axis)).transpose()?;
        let reduced = |i: usize| axis.is_none_or(|a| a == i);
        let kept = shape.dims().iter().enumerate().filter(|&(i, _)| self.keepdim || !reduced(i));
        Shape::new(&kept.map(|(i, &d)| if reduced(i) { 1 } else { d }).collect::<Vec<_>>())
    }

    /// The one float input of a reduction and its `(outer, n, inner)`.
    ///
    /// # Errors
    /// Another number of inputs, another dtype, or an axis that the input does not have.
    pub fn accept<'a>(&self, op: &'static str, inputs: &[&'a Spec]) -> Result<(&'a Spec, (usize, usize, usize))> {
        let [x] = inputs else {
            return Err(Error::argument(op, "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(op, "x", x.dtype, &DType::FLOATS));
        }
        Ok((x, self.around(op, &x.shape)?))
    }

    /// What a case's label says of the axis.
    pub fn tag(&self) -> String {
        let keep = if self.keepdim { " kept" } else { "" };
        self.axis.map_or(format!("all{keep}"), |axis| format!("axis {axis}{keep}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_the_axis() {
        let x = Shape::new(&[2, 3, 5]).unwrap();
        let shape = |axis, keepdim| Over { axis, keepdim }.shape("t", &x).unwrap().dims().to_vec();
        assert_eq!(shape(None, false), [0usize; 0]);
        assert_eq!(shape(None, true), [1, 1, 1]);
        assert_eq!(shape(Some(1), false), [2, 5]);
        assert_eq!(shape(Some(-1), true), [2, 3, 1]);
        assert_eq!(Over::new(Some(0)).around("t", &x).unwrap(), (1, 2, 15));
        assert!(Over::new(Some(3)).around("t", &x).is_err());
    }
}
