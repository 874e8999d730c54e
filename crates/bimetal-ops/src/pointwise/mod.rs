//! What pointwise families share: how operands broadcast, the loops of either metal, and their usual cases.

pub(crate) mod cpu;
pub(crate) mod family;
#[allow(missing_docs)]
pub(crate) mod gpu;

use bimetal_core::op::Values;
use bimetal_core::{MAX_RANK, Shape};

/// An output's dimensions with those merged that every operand runs through alike, and each operand's strides there.
#[derive(Clone, Debug)]
pub(crate) struct Layout<const K: usize> {
    rank: usize,
    dims: [usize; MAX_RANK],
    strides: [[usize; MAX_RANK]; K],
}

impl<const K: usize> Layout<K> {
    /// Of operands whose shapes broadcast to `out`.
    pub fn new(out: &Shape, operands: [&Shape; K]) -> Self {
        let mut layout = Self { rank: 0, dims: [1; MAX_RANK], strides: [[0; MAX_RANK]; K] };
        for axis in 0..out.rank() {
            let extent = out[axis];
            if extent == 1 {
                continue;
            }
            let strides = operands.map(|operand| stride(out, operand, axis));
            let outer = layout.rank.wrapping_sub(1);
            let merges = layout.rank > 0 && (0..K).all(|k| layout.strides[k][outer] == strides[k] * extent);
            let at = if merges { outer } else { layout.rank };
            layout.rank = at + 1;
            layout.dims[at] *= extent;
            for (all, stride) in layout.strides.iter_mut().zip(strides) {
                all[at] = stride;
            }
        }
        if layout.rank == 0 {
            layout.rank = 1;
            layout.strides = [[1, 0, 0, 0, 0, 0, 0, 0]; K];
        }
        layout
    }

    /// The merged dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Strides of operand `k` in these dimensions.
    pub fn strides(&self, k: usize) -> &[usize] {
        &self.strides[k][..self.rank]
    }

    /// The innermost extent.
    pub fn row(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// Whether operand `k` stays on one element through a row; it is contiguous otherwise.
    pub fn repeats(&self, k: usize) -> bool {
        self.strides[k][self.rank - 1] == 0
    }

    /// Whether every operand has the output's elements in the output's order.
    pub fn is_contiguous(&self) -> bool {
        (0..K).all(|k| self.follows(k))
    }

    /// Whether operand `k` has the output's elements in the output's order.
    pub fn follows(&self, k: usize) -> bool {
        let mut expected = 1;
        self.dims().iter().zip(self.strides(k)).rev().all(|(&extent, &stride)| {
            let same = stride == expected;
            expected *= extent;
            same
        })
    }

    /// Where operand `k` has element number `index` of the output.
    pub fn offset(&self, k: usize, mut index: usize) -> usize {
        let mut offset = 0;
        for (&extent, &stride) in self.dims().iter().zip(self.strides(k)).rev() {
            offset += index % extent * stride;
            index /= extent;
        }
        offset
    }
}

/// Elements of `operand` between neighbours along `axis` of the output; 0 where it repeats.
fn stride(out: &Shape, operand: &Shape, axis: usize) -> usize {
    let Some(own) = (axis + operand.rank()).checked_sub(out.rank()) else { return 0 };
    if operand[own] == 1 { 0 } else { operand.dims()[own + 1..].iter().product() }
}

/// Extents around the vector widths, the block and the unit of work of each loop.
pub(crate) const AWKWARD: [usize; 16] = [0, 1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 65, 1023, 1025, 2053, 16_411];

/// Shapes of up to three operands that broadcast: rows, columns, scalars, rows that are no whole vectors, short and long
/// ones, more dimensions on either side, empty ones, and all eight dimensions.
pub(crate) const BROADCASTS: &[[&[usize]; 3]] = &[
    [&[5, 7], &[7], &[5, 1]],
    [&[5, 7], &[5, 1], &[]],
    [&[33], &[], &[1]],
    [&[], &[9], &[9]],
    [&[64, 256], &[256], &[64, 1]],
    [&[3, 300], &[3, 1], &[300]],
    [&[3, 1], &[1, 300], &[3, 300]],
    [&[3, 1025], &[1025], &[3, 1025]],
    [&[40, 3], &[3], &[40, 1]],
    [&[5, 1, 3], &[1, 4, 1], &[3]],
    [&[2, 3, 4, 8], &[3, 1, 8], &[2, 1, 1, 1]],
    [&[1], &[1, 1], &[1]],
    [&[0, 3], &[1, 3], &[3]],
    [&[2, 1, 2, 1, 2, 1, 2, 5], &[1, 3, 1, 2, 1, 2, 2, 1], &[5]],
];

/// For references: calls `f` with the operands' values at every element of the shape that they broadcast to, in order.
/// Index arithmetic of its own, element by element, so that a mistake in [`Layout`] shows.
pub(crate) fn broadcast(x: &[Values], mut f: impl FnMut(&[f64])) {
    let shape = x[1..].iter().fold(x[0].spec.shape.clone(), |shape, x| {
        shape.broadcast(&x.spec.shape, "reference").expect("the case was checked")
    });
    let mut index = vec![0; shape.rank()];
    for _ in 0..shape.numel() {
        let values: Vec<f64> = x.iter().map(|x| x.data[position(&index, x.dims())]).collect();
        f(&values);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Where an operand of extents `dims` has the element at `index` of the broadcast shape.
fn position(index: &[usize], dims: &[usize]) -> usize {
    let aligned = &index[index.len() - dims.len()..];
    aligned.iter().zip(dims).fold(0, |at, (&i, &extent)| at * extent + if extent == 1 { 0 } else { i })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn dimensions_merge_where_all_operands_run_alike() {
        let layout = Layout::new(&shape(&[2, 3, 4]), [&shape(&[2, 3, 4]), &shape(&[2, 3, 4])]);
        assert_eq!((layout.dims(), layout.is_contiguous()), (&[24][..], true));
        let layout = Layout::new(&shape(&[2, 3, 4]), [&shape(&[2, 3, 4]), &shape(&[3, 4])]);
        assert_eq!((layout.dims(), layout.strides(1)), (&[2, 12][..], &[0, 1][..]));
        let layout = Layout::new(&shape(&[2, 3, 4]), [&shape(&[2, 1, 4]), &shape(&[])]);
        assert_eq!((layout.dims(), layout.strides(0)), (&[2, 3, 4][..], &[4, 0, 1][..]));
        assert!(layout.repeats(1) && !layout.repeats(0));
        let layout = Layout::new(&shape(&[1, 1]), [&shape(&[1])]);
        assert!(layout.is_contiguous());
    }

    #[test]
    fn offsets_are_those_of_the_broadcast_element() {
        let (out, a) = (shape(&[2, 3, 5]), shape(&[3, 1]));
        let layout = Layout::new(&out, [&a]);
        for i in 0..30 {
            assert_eq!(layout.offset(0, i), i / 5 % 3);
        }
    }
}
