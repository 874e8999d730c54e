//! Triangular systems on the CPU: substitution in working memory, by faer.

use super::{TrsmParams, Way};
use crate::lanes::{Entry, Mat, MatTo, Real, each_float, grain, threads_within};
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::{Result, Tensor};

pub(super) fn trsm(params: &TrsmParams, way: &Way, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    let status = status.as_mut_slice::<i32>()?;
    each_float!(inputs[0].dtype(), T => {
        batch::<T>(params, way, inputs[0].as_slice()?, inputs[1].as_slice()?, x.as_mut_slice()?, status);
    });
    Ok(())
}

fn batch<E: Entry>(params: &TrsmParams, way: &Way, t: &[E], b: &[E], x: &mut [E], status: &mut [i32]) {
    let (n, k) = (way.system.n, way.system.k);
    let [matrix, sides] = way.system.sizes();
    let (solutions, statuses) = (Shared::new(x), Shared::new(status));
    let alpha = E::Real::of_f64(params.alpha);
    parallel::ranges(way.system.count, grain(n * n * k / 2, 1), |range| {
        // SAFETY: the ranges are disjoint, and so are the outputs of their matrices.
        let (x, status) =
            unsafe { (solutions.slice(range.start * sides..range.end * sides), statuses.slice(range.clone())) };
        let threads = threads_within(way.system.count, n);
        E::Real::scratch(matrix + sides, |work| {
            for (i, index) in range.enumerate() {
                let (triangle, right) = work.split_at_mut(matrix);
                let (t, b) = (&t[index * matrix..][..matrix], &b[index * sides..][..sides]);
                let x = &mut x[i * sides..][..sides];
                let mut found = copy_triangle(params, n, t, triangle);
                for (to, b) in right.iter_mut().zip(b) {
                    *to = b.real() * alpha;
                    if !b.real().finite() {
                        found = NOT_FINITE;
                    }
                }
                status[i] = found;
                if found != 0 {
                    x.fill(E::of(E::Real::NAN));
                    continue;
                }
                let strides = |row: usize, column: usize| [row as isize, column as isize];
                let matrix = Mat {
                    p: triangle.as_ptr(),
                    extents: [n, n],
                    strides: strides(way.triangle.row, way.triangle.column),
                };
                let to = MatTo {
                    p: right.as_mut_ptr(),
                    extents: [n, k],
                    strides: strides(way.sides.row, way.sides.column),
                };
                if n > 0 && k > 0 {
                    E::Real::triangular(matrix, params.unit, way.upper, to, threads);
                }
                x.iter_mut().zip(right.iter()).for_each(|(x, right)| *x = E::of(*right));
            }
        });
    });
}

/// Copies the triangle in use, and answers the status that it gives.
fn copy_triangle<E: Entry>(params: &TrsmParams, n: usize, t: &[E], to: &mut [E::Real]) -> i32 {
    let (mut zero, mut sound) = (0, true);
    for i in 0..n {
        let columns = if params.upper { i..n } else { 0..i + 1 };
        for j in columns {
            let unit = params.unit && i == j;
            let value = if unit { E::Real::ONE } else { t[i * n + j].real() };
            sound &= value.finite();
            to[i * n + j] = value;
        }
        if zero == 0 && to[i * n + i] == E::Real::default() {
            zero = i as i32 + 1;
        }
    }
    if sound { zero } else { NOT_FINITE }
}
