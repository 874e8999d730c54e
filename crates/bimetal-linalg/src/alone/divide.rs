//! Divide and conquer on the CPU: eigenvalues and eigenvectors of a tridiagonal matrix, singular values and vectors of an upper
//! bidiagonal one. Halves are decomposed and merged; threads share the halves, and the products of large merges.

use super::leaf::{self, Leaf};
use super::merge::{Merge, Vectors};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Level, dispatch_at};

/// Order from which threads take a half each.
const HALVES_FROM: usize = 128;

/// A tridiagonal or an upper bidiagonal matrix whose largest element is about 1 or 0: its diagonal, and what is beside it on the
/// right.
#[derive(Clone, Copy)]
pub(crate) struct Bands<'a> {
    pub(crate) d: &'a [f32],
    pub(crate) e: &'a [f32],
}

/// Where vectors go: rows of matrices that are `line` apart, all of the same size.
pub(crate) struct Room<'a> {
    /// Eigenvectors or right singular vectors, as rows.
    pub(crate) right: &'a mut [f32],
    /// Left singular vectors; empty for eigenvectors.
    pub(crate) left: &'a mut [f32],
    pub(crate) spare: &'a mut [f32],
    pub(crate) mix: &'a mut [f32],
    pub(crate) line: usize,
}

/// The values of the rows, and the rows in ascending order of their values.
pub(crate) struct Values {
    pub(crate) values: Vec<f32>,
    pub(crate) order: Vec<u32>,
}

impl Bands<'_> {
    /// Eigenvalues and eigenvectors; `None` if an iteration did not end.
    pub(crate) fn eigen(self, room: Room, shared: bool) -> Option<Values> {
        self.decompose::<false>(room, shared)
    }

    /// Singular values, and right and left singular vectors.
    pub(crate) fn singular(self, room: Room, shared: bool) -> Option<Values> {
        self.decompose::<true>(room, shared)
    }

    fn decompose<const SQUARED: bool>(self, room: Room, shared: bool) -> Option<Values> {
        let n = self.d.len();
        let Room { right, left, spare, mix, line } = room;
        right.fill(0.0);
        left.fill(0.0);
        let mut found = Values { values: vec![0.0; n], order: vec![0; n] };
        let part = Part { first: 0, n, line, values: &mut found.values, order: &mut found.order };
        let done = self.part::<SQUARED>(part, Vectors { right, left, spare, mix }, shared);
        done.is_some().then_some(found)
    }

    /// Decomposes the diagonal block of a part, from which the couplings of all rows were taken; gives the row whose right vector
    /// has no left one, if there is one.
    fn part<const SQUARED: bool>(self, part: Part, mut vectors: Vectors, shared: bool) -> Option<Option<usize>> {
        let Part { first, n, line, values, order } = part;
        if n == 1 && SQUARED {
            order[0] = 0;
            vectors.right[first] = 1.0;
            if first + 1 < self.d.len() {
                values[0] = 0.0;
                return Some(Some(0));
            }
            values[0] = self.d[first].abs();
            vectors.left[first] = 1f32.copysign(self.d[first]);
            return Some(None);
        }
        if n == 2 && SQUARED && first + 2 < self.d.len() {
            // One row: its length, its direction, and what is across it.
            let [d, e] = [self.d[first], self.e[first]].map(f64::from);
            let length = d.hypot(e);
            let [d, e] = if length > 0.0 { [d / length, e / length].map(|x| x as f32) } else { [1.0, 0.0] };
            values.copy_from_slice(&[length as f32, 0.0]);
            order.copy_from_slice(&[1, 0]);
            vectors.right[first..first + 2].copy_from_slice(&[d, e]);
            vectors.right[line + first..line + first + 2].copy_from_slice(&[-e, d]);
            vectors.left[first] = 1.0;
            return Some(Some(1));
        }
        if n <= leaf::MOST && !SQUARED {
            return self.leaf(Part { first, n, line, values, order }, vectors.right).then_some(None);
        }
        let left = n / 2;
        let (low_values, high_values) = values.split_at_mut(left);
        let (low_order, high_order) = order.split_at_mut(left);
        let low = Part { first, n: left, line, values: low_values, order: low_order };
        let high = Part { first: first + left, n: n - left, line, values: high_values, order: high_order };
        let [low_vectors, high_vectors] = vectors.split(left * line);
        let mut null = [None; 2];
        if shared && n >= HALVES_FROM {
            let mut halves = [Some((low, low_vectors)), Some((high, high_vectors))];
            let (halves, found) = (Shared::new(&mut halves), Shared::new(&mut null));
            parallel::ranges(2, 1, |range| {
                for half in range {
                    // SAFETY: each half is taken once.
                    let (taken, null) =
                        unsafe { (halves.slice(half..half + 1)[0].take(), &mut found.slice(half..half + 1)[0]) };
                    if let Some((part, vectors)) = taken {
                        *null = self.part::<SQUARED>(part, vectors, parallel::threads() > 2);
                    }
                }
            });
        } else {
            null = [self.part::<SQUARED>(low, low_vectors, false), self.part::<SQUARED>(high, high_vectors, false)];
        }
        let null = [null[0]?, null[1]?];
        let middle = first + left - 1;
        let coupling = if SQUARED { [self.d[middle], self.e[middle]] } else { [self.e[middle]; 2] };
        let merge = Merge { first, left, len: n, line, coupling, null, values, order, vectors, shared };
        Some(merge.run::<SQUARED>())
    }

    /// Decomposes a small part; whether the iteration ended.
    fn leaf(self, part: Part, q: &mut [f32]) -> bool {
        let Part { first, n, line, values, order } = part;
        values.copy_from_slice(&self.d[first..first + n]);
        if first > 0 {
            values[0] -= self.e[first - 1].abs();
        }
        if first + n < self.d.len() {
            values[n - 1] -= self.e[first + n - 1].abs();
        }
        let (d, e) = (&mut *values, &self.e[first..first + n - 1]);
        let done = dispatch_at(Level::current(), Leaf { d, e, q: &mut q[first..], line });
        order.iter_mut().enumerate().for_each(|(i, row)| *row = i as u32);
        order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
        done
    }
}

/// Rows of the matrix, from `first` on, that are decomposed alone.
struct Part<'a> {
    first: usize,
    n: usize,
    line: usize,
    values: &'a mut [f32],
    order: &'a mut [u32],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conquer::tests::{judged, matrices};

    /// Decomposes matrices of every kind that divide and conquer could stumble over, and judges values and vectors.
    fn check(symmetric: bool) {
        for n in [1, 2, 3, 5, 16, 17, 33, 64, 65, 100, 129, 200, 300] {
            for (name, diagonal, off) in matrices(n) {
                let [d, e] = [&diagonal, &off].map(|x| x.iter().map(|x| *x as f32).collect::<Vec<_>>());
                let line = crate::alone::line(n);
                let [mut right, mut left, mut spare, mut mix] = std::array::from_fn(|_| vec![f32::NAN; n * line]);
                let lefts = if symmetric { &mut [][..] } else { &mut left[..] };
                let room = Room { right: &mut right, left: lefts, spare: &mut spare, mix: &mut mix, line };
                let bands = Bands { d: &d, e: &e };
                let found = if symmetric { bands.eigen(room, true) } else { bands.singular(room, true) };
                let found = found.unwrap_or_else(|| panic!("{name} {n}"));
                let values: Vec<f64> = found.order.iter().map(|&row| f64::from(found.values[row as usize])).collect();
                assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{name} {n}");
                let rows = |x: &[f32]| -> Vec<f64> {
                    let row = |&row: &u32| x[row as usize * line..][..n].iter().map(|x| f64::from(*x));
                    found.order.iter().flat_map(row).collect()
                };
                let right = rows(&right);
                let left = if symmetric { right.clone() } else { rows(&left) };
                let [d, e] = [d, e].map(|x| x.into_iter().map(f64::from).collect::<Vec<_>>());
                let [residual, angle] = judged(&d, &e, &values, [&right, &left], symmetric);
                assert!(residual < 5.0 && angle < 5.0, "{name} {n}: {residual} {angle}");
            }
        }
    }

    #[test]
    fn every_kind_of_tridiagonal_matrix() {
        check(true);
    }

    #[test]
    fn every_kind_of_bidiagonal_matrix() {
        check(false);
    }
}
