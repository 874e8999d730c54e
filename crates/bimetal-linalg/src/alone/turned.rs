//! Rows that become columns: `to[j][i] = from[order[i]][j]`.

use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd};

/// The rows of a matrix, in an order, that become columns of another one.
pub(super) struct Turned<'a> {
    pub(super) from: &'a [f32],
    /// Elements between rows of `from`.
    pub(super) line: usize,
    pub(super) order: &'a [u32],
    /// Elements of a row: rows of `to`.
    pub(super) rows: usize,
    pub(super) to: &'a mut [f32],
    /// Elements between rows of `to`.
    pub(super) step: usize,
}

impl Kernel for Turned<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, line, order, rows, to, step } = self;
        let columns = order.len();
        for first in (0..columns).step_by(S::LANES) {
            let whole = if first + S::LANES <= columns { rows / S::LANES * S::LANES } else { 0 };
            for row in (0..whole).step_by(S::LANES) {
                let at = |k: usize| &from[order[first + k.min(S::LANES - 1)] as usize * line + row..][..S::LANES];
                let from: [*const f32; MAX_LANES] = std::array::from_fn(|k| at(k).as_ptr());
                let to: [*mut f32; MAX_LANES] =
                    std::array::from_fn(|k| to[(row + k.min(S::LANES - 1)) * step + first..][..S::LANES].as_mut_ptr());
                // SAFETY: vectors within both slices, of which each pointer was made.
                unsafe { s.transpose(from, to) };
            }
            for row in whole..rows {
                for column in first..columns.min(first + S::LANES) {
                    to[row * step + column] = from[order[column] as usize * line + row];
                }
            }
        }
    }
}
