//! What a product is once its shapes are known: `d[b,i,j] = α Σₗ a[b,i,l]·b[b,l,j]` with a stride for each index.

use super::Kind;
use bimetal_core::{Error, Result, Shape};

/// The extents and strides (in elements) of a product. The result is row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Strides of the left operand: from row to row, and along the sum.
    pub a: [usize; 2],
    /// Strides of the right operand: along the sum, and from column to column.
    pub b: [usize; 2],
    /// Axes of the batch, outermost first: extent, stride of the left and of the right operand (0 where it is shared).
    pub batch: Vec<[usize; 3]>,
    /// Extents of the result.
    pub out: Vec<usize>,
}

impl Plan {
    /// The plan for operands of these shapes.
    ///
    /// # Errors
    /// Shapes that have no product, by the rules of `kind`.
    pub fn new(kind: Kind, transposed: [bool; 2], a: &Shape, b: &Shape) -> Result<Self> {
        let (name, [left, right]) = (kind.name(), kind.arguments());
        let wrong = |argument, expected: &str, got: &Shape| {
            Err(Error::argument(name, argument, format!("{expected}, got {got}")))
        };
        match kind {
            Kind::Matmul if a.rank() == 0 => return wrong(left, "at least one axis", a),
            Kind::Matmul if b.rank() == 0 => return wrong(right, "at least one axis", b),
            Kind::Matvec if a.rank() < 2 => return wrong(left, "a matrix or a batch of them", a),
            Kind::Matvec if b.rank() == 0 => return wrong(right, "a vector or a batch of them", b),
            Kind::OuterProduct if a.rank() != 1 => return wrong(left, "a vector", a),
            Kind::OuterProduct if b.rank() != 1 => return wrong(right, "a vector", b),
            _ => {}
        }
        if kind == Kind::OuterProduct {
            let (m, n) = (a[0], b[0]);
            let out = sized(name, right, vec![m, n])?;
            return Ok(Self { m, n, k: 1, a: [1, 1], b: [1, 1], batch: Vec::new(), out });
        }
        let (b_is_vectors, a_is_vector) = (kind == Kind::Matvec || b.rank() == 1, a.rank() == 1);
        let (a_batch, a_dims) = a.dims().split_at(a.rank() - if a_is_vector { 1 } else { 2 });
        let (b_batch, b_dims) = b.dims().split_at(b.rank() - if b_is_vectors { 1 } else { 2 });
        let (m, k, a_strides) = match *a_dims {
            [rows, columns] if transposed[0] => (columns, rows, [1, columns]),
            [rows, columns] => (rows, columns, [columns, 1]),
            _ => (1, a_dims[0], [a_dims[0], 1]),
        };
        let (l, n, b_strides) = match *b_dims {
            [rows, columns] if transposed[1] => (columns, rows, [1, columns]),
            [rows, columns] => (rows, columns, [columns, 1]),
            _ => (b_dims[0], 1, [1, 1]),
        };
        if k != l {
            return wrong(right, &format!("{k} elements to be summed over, as `{left}` of shape {a} has"), b);
        }
        let axes = broadcast(a_batch, b_batch, m * k, l * n).ok_or_else(|| {
            let expected = "leading extents that are equal or 1 after aligning the last of them";
            Error::argument(name, right, format!("{expected}, got {a} and {b}"))
        })?;
        let mut out: Vec<usize> = axes.iter().map(|axis| axis[0]).collect();
        if !a_is_vector {
            out.push(m);
        }
        if !b_is_vectors {
            out.push(n);
        }
        let out = sized(name, right, out)?;
        let mut plan = Self { m, n, k, a: a_strides, b: b_strides, batch: merged(&axes), out };
        plan.fold();
        Ok(plan)
    }

    /// Products in the batch.
    pub fn products(&self) -> usize {
        self.batch.iter().map(|axis| axis[0]).product()
    }

    /// Elements of the result.
    pub fn numel(&self) -> usize {
        self.out.iter().product()
    }

    /// Where the operands of a product of the batch start.
    pub fn starts(&self, index: usize) -> [usize; 2] {
        let (mut rest, mut starts) = (index, [0, 0]);
        for &[extent, a, b] in self.batch.iter().rev() {
            starts[0] += rest % extent * a;
            starts[1] += rest % extent * b;
            rest /= extent;
        }
        starts
    }

    /// A batch of row-major left operands that share the right one is one product with more rows.
    fn fold(&mut self) {
        if let [[count, stride, 0]] = self.batch[..]
            && self.a == [self.k, 1]
            && stride == self.m * self.k
        {
            self.m *= count;
            self.batch.clear();
        }
    }
}

/// The extents if a tensor can have them.
fn sized(name: &'static str, argument: &'static str, dims: Vec<usize>) -> Result<Vec<usize>> {
    match Shape::new(&dims) {
        Ok(_) => Ok(dims),
        Err(_) => Err(Error::argument(name, argument, format!("a product that fits in memory, got {dims:?}"))),
    }
}

/// The broadcast axes of two batches of contiguous matrices with these numbers of elements.
fn broadcast(a: &[usize], b: &[usize], a_matrix: usize, b_matrix: usize) -> Option<Vec<[usize; 3]>> {
    let rank = a.len().max(b.len());
    let mut axes = vec![[0; 3]; rank];
    let (mut a_stride, mut b_stride) = (a_matrix, b_matrix);
    for i in (0..rank).rev() {
        let extent = |dims: &[usize]| (i + dims.len()).checked_sub(rank).map_or(1, |at| dims[at]);
        let (a, b) = (extent(a), extent(b));
        if a != b && a != 1 && b != 1 {
            return None;
        }
        let shared = |extent: usize, stride: usize| if extent == 1 { 0 } else { stride };
        axes[i] = [if a == 1 { b } else { a }, shared(a, a_stride), shared(b, b_stride)];
        (a_stride, b_stride) = (a_stride.saturating_mul(a), b_stride.saturating_mul(b));
    }
    Some(axes)
}

/// The same batch with as few axes as possible.
fn merged(axes: &[[usize; 3]]) -> Vec<[usize; 3]> {
    let mut merged: Vec<[usize; 3]> = Vec::new();
    for &[extent, a, b] in axes.iter().filter(|axis| axis[0] != 1) {
        match merged.last_mut() {
            Some(outer) if outer[1] == extent.saturating_mul(a) && outer[2] == extent.saturating_mul(b) => {
                *outer = [outer[0] * extent, a, b];
            }
            _ => merged.push([extent, a, b]),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(a: &[usize], b: &[usize]) -> Plan {
        Plan::new(Kind::Matmul, [false; 2], &Shape::new(a).unwrap(), &Shape::new(b).unwrap()).unwrap()
    }

    #[test]
    fn batches_merge_and_shared_right_operands_fold() {
        let shared = plan(&[4, 5, 2, 3], &[3, 7]);
        assert_eq!((shared.m, shared.batch.len()), (40, 0));
        assert_eq!(plan(&[4, 5, 2, 3], &[4, 5, 3, 7]).batch, [[20, 6, 21]]);
        assert_eq!(plan(&[4, 1, 2, 3], &[5, 3, 7]).batch, [[4, 6, 0], [5, 0, 21]]);
        assert_eq!(plan(&[2, 3], &[5, 3, 7]).out, [5, 2, 7]);
        assert_eq!(plan(&[3], &[5, 3, 7]).out, [5, 7]);
        assert_eq!(plan(&[4, 1, 2, 3], &[5, 3, 7]).starts(7), [6, 42]);
    }
}
