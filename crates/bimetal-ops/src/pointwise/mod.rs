//! What pointwise families share: how operands broadcast, the loops of either metal, and their usual cases.

pub(crate) mod cpu;
#[allow(missing_docs)]
pub(crate) mod gpu;

use bimetal_core::op::{Case, Fill, Input, Op, Role, Specs};
use bimetal_core::{DType, Error, MAX_RANK, Result, Shape, Spec};

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

/// Checks that the inputs are `names.len()` float tensors of one dtype.
pub(crate) fn floats(op: &'static str, names: &[&'static str], inputs: &[&Spec]) -> Result<()> {
    if inputs.len() != names.len() {
        return Err(Error::argument(op, "inputs", format!("{} tensors, got {}", names.len(), inputs.len())));
    }
    for (input, name) in inputs.iter().zip(names) {
        if !DType::FLOATS.contains(&input.dtype) {
            return Err(Error::dtype(op, name, input.dtype, &DType::FLOATS));
        }
        if input.dtype != inputs[0].dtype {
            return Err(Error::dtype(op, name, input.dtype, &[inputs[0].dtype]));
        }
    }
    Ok(())
}

/// The output of a function of float tensors that all have one shape and dtype.
pub(crate) fn same(op: &'static str, names: &[&'static str], inputs: &[&Spec]) -> Result<Specs> {
    floats(op, names, inputs)?;
    for (input, name) in inputs.iter().zip(names) {
        if input.shape != inputs[0].shape {
            let expected = format!("the shape {} of `{}`, got {}", inputs[0].shape, names[0], input.shape);
            return Err(Error::argument(op, name, expected));
        }
    }
    Ok([inputs[0].clone()].into_iter().collect())
}

/// The shape that float tensors of one dtype broadcast to.
pub(crate) fn broadcast(op: &'static str, names: &[&'static str], inputs: &[&Spec]) -> Result<Shape> {
    floats(op, names, inputs)?;
    inputs[1..].iter().try_fold(inputs[0].shape.clone(), |shape, input| shape.broadcast(&input.shape, op))
}

/// Extents of the benchmarks of a streaming operation, and whether it is one of those that are timed at every size.
pub(crate) fn bench_shapes(every_size: bool, matrices: bool) -> Vec<Vec<usize>> {
    let mut shapes = vec![vec![10_000_000]];
    if every_size {
        shapes.extend([vec![67_108_864], vec![1000]]);
    }
    if matrices {
        shapes.extend([vec![4096, 4096], vec![256, 1024]]);
    }
    shapes
}

/// Extents around the vector widths, the block and the unit of work of each loop.
pub(crate) const AWKWARD: [usize; 16] = [0, 1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 65, 1023, 1025, 2053, 16_411];

/// The usual cases of a function of `arity` tensors of one shape: benchmarks filled with `fill`, awkward extents, and
/// special values.
pub(crate) fn cases<O: Op + 'static>(op: impl Fn() -> O, arity: usize, fill: Fill, shapes: &[Vec<usize>]) -> Vec<Case> {
    let case = |dims: &[usize], fill, role| Case::new(op(), vec![Input::new(dims, fill); arity], role);
    let mut cases: Vec<_> = shapes.iter().map(|dims| case(dims, fill, Role::Bench)).collect();
    cases.extend(AWKWARD.iter().map(|&n| case(&[n], fill, Role::Agree)));
    cases.push(case(&[], fill, Role::Agree));
    cases.push(case(&[5, 7, 11], fill, Role::Agree));
    cases.push(case(&[3, 0, 4], fill, Role::Agree));
    cases.push(case(&[2003], Fill::Magnitudes(1e-6, 1e6, false), Role::Agree).tagged("wide range"));
    cases.push(case(&[1009], Fill::Specials, Role::Agree).tagged("specials"));
    cases
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
