//! The way back: products of reflectors applied to vectors, block by block as `X − Y·T·(Yᵀ·X)`.

use crate::matmul::update::{Store, Updates, View};
use crate::qr::real::Memory;

/// Reflectors of a block: fewer where there are fewer rows than the last number.
const WIDTHS: [usize; 3] = [32, 64, 400];

/// Reflectors `1 − τ·v·vᵀ`, one in each row.
#[derive(Clone, Copy)]
pub(super) struct Reflectors<'a> {
    pub(super) v: &'a [f32],
    pub(super) line: usize,
    pub(super) tau: &'a [f32],
    /// Elements of a vector.
    pub(super) len: usize,
}

/// What reflectors are applied to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    Columns,
    Rows,
}

impl Reflectors<'_> {
    /// `H(n − 1)·…·H(1)·X`, where row `i` has zeros from element `i` on, for the columns of `x`.
    pub(super) fn downwards(self, x: &mut [f32], [count, line]: [usize; 2], shared: bool) {
        let width = self.width();
        // The first reflector has no element but its one: it does nothing.
        for first in (2..self.len).step_by(width) {
            let block = Block { of: self, first, count: width.min(self.len - first), reverse: true, from: 0 };
            block.apply(Vectors::Columns, x, [count, line], shared);
        }
    }

    /// `H(0)·H(1)·…·X`, where row `i` has zeros before element `i + offset`, for vectors that are columns or rows of `x`.
    pub(super) fn upwards(
        self,
        x: &mut [f32],
        vectors: Vectors,
        [count, line]: [usize; 2],
        offset: usize,
        shared: bool,
    ) {
        let (width, n) = (self.width(), self.tau.len());
        for first in (0..n).step_by(width).rev() {
            let block = Block { of: self, first, count: width.min(n - first), reverse: false, from: first + offset };
            block.apply(vectors, x, [count, line], shared);
        }
    }

    fn width(&self) -> usize {
        WIDTHS[usize::from(self.len >= WIDTHS[2])]
    }
}

/// Reflectors that are applied together, to elements from `from` on.
struct Block<'a> {
    of: Reflectors<'a>,
    first: usize,
    count: usize,
    /// The last one is the first factor of the product; otherwise it is the last.
    reverse: bool,
    from: usize,
}

impl Block<'_> {
    /// Applies the product to so many vectors.
    fn apply(&self, vectors: Vectors, x: &mut [f32], [across, line]: [usize; 2], shared: bool) {
        let Self { of, first, count, reverse, from } = *self;
        let end = if reverse { first + count - 1 } else { of.len };
        if end <= from {
            return;
        }
        let elements = end - from;
        let mut memory = Memory::<f32>::take(2 * count * count + 2 * count * across);
        let (squares, products) = memory.slice().split_at_mut(2 * count * count);
        let (gram, t) = squares.split_at_mut(count * count);
        let (products, weights) = products.split_at_mut(count * across);
        let y = View { p: of.v[first * of.line + from..].as_ptr(), row: of.line, column: 1 };
        let view = |p: *const f32, row: usize| View { p, row, column: 1 };
        let multiply = |store, extents, operands, d: *mut f32, line| {
            // SAFETY: extents within the slices.
            unsafe { f32::multiply(store, extents, operands, d, line, shared) }
        };
        multiply(Store::Replace, [count, elements, count], [y, y.transposed()], gram.as_mut_ptr(), count);
        triangle(&of.tau[first..][..count], gram, t, reverse);
        let t = view(t.as_ptr(), count);
        if vectors == Vectors::Columns {
            let x = &mut x[from * line..];
            let old = view(x.as_ptr(), line);
            multiply(Store::Replace, [count, elements, across], [y, old], products.as_mut_ptr(), across);
            let operands = [t, view(products.as_ptr(), across)];
            multiply(Store::Replace, [count, count, across], operands, weights.as_mut_ptr(), across);
            let operands = [y.transposed(), view(weights.as_ptr(), across)];
            multiply(Store::Subtract, [elements, count, across], operands, x.as_mut_ptr(), line);
        } else {
            let x = &mut x[from..];
            let old = view(x.as_ptr(), line);
            multiply(Store::Replace, [across, elements, count], [old, y.transposed()], products.as_mut_ptr(), count);
            let operands = [view(products.as_ptr(), count), t.transposed()];
            multiply(Store::Replace, [across, count, count], operands, weights.as_mut_ptr(), count);
            multiply(
                Store::Subtract,
                [across, count, elements],
                [view(weights.as_ptr(), count), y],
                x.as_mut_ptr(),
                line,
            );
        }
    }
}

/// The triangle `T` with `H(k − 1)·…·H(0) = 1 − Yᵀ·T·Y` if `reverse`, else `H(0)·…·H(k − 1)`, from the products of reflectors.
fn triangle(tau: &[f32], gram: &[f32], t: &mut [f32], reverse: bool) {
    let k = tau.len();
    t.fill(0.0);
    let at = |i: usize| if reverse { k - 1 - i } else { i };
    for j in 0..k {
        let column = at(j);
        for i in 0..j {
            let row = &t[at(i) * k..][..k];
            let range = if reverse { column + 1..at(i) + 1 } else { i..j };
            let products = &gram[column * k..][..k][range.clone()];
            let sum: f32 = row[range].iter().zip(products).map(|(t, g)| t * g).sum();
            t[at(i) * k + column] = -tau[column] * sum;
        }
        t[column * k + column] = tau[column];
    }
}
