//! Small matrices on the GPU, a row to a unit: how their elements come coalesced into shared memory and go out of it.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::blocks::not_finite;
use bimetal_core::gpu::kernel::row_vector;
use bimetal_core::{DType, Gpu};
use cubecl::prelude::*;

/// Units of a cube: of one plane on most devices, whose barriers cost next to nothing.
pub(crate) const UNITS: usize = 32;
/// Rows of the kernels that are compiled.
const SIDES: [usize; 4] = [8, 16, 24, 32];

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Rows and columns in registers, and units of a matrix.
    pub(crate) side: usize,
    pub(crate) team: usize,
    /// The matrices have exactly `side` rows.
    pub(crate) whole: bool,
    /// Only the lower triangle counts; it is the transposed upper one of the tensor if `upper`.
    pub(crate) triangle: bool,
    pub(crate) upper: bool,
    pub(crate) double: bool,
    /// Vectors of the tensor that a unit moves.
    pub(crate) per_unit: usize,
}

/// Whether matrices of order `n` are small enough: a barrier between many planes costs more than it saves.
pub(crate) fn fit(gpu: &Gpu, n: usize) -> bool {
    (1..=SIDES[SIDES.len() - 1].min(gpu.plane.0 as usize)).contains(&n)
}

/// The form for matrices of order `n`, and the elements of a vector of the tensor.
pub(crate) fn form(gpu: &Gpu, dtype: DType, n: usize, [triangle, upper]: [bool; 2]) -> (Form, usize) {
    let side = SIDES.into_iter().find(|side| n <= *side).unwrap_or(SIDES[SIDES.len() - 1]);
    let team = side.next_power_of_two();
    let width = row_vector(gpu.vector(dtype), n * n);
    let per_unit = (side * side).div_ceil(width * team);
    (Form { side, team, whole: n == side, triangle, upper, double: dtype == DType::F64, per_unit }, width)
}

/// Copies a matrix of `n`·`n` elements from vector `from` on into rows of `side` + 1 elements from `tile` on, and sets
/// `bad[team]` if one that counts is not finite.
#[cube]
pub(crate) fn load<I: Float, A: Float, N: Size>(
    a: &[Vector<I, N>],
    tiles: &mut Shared<[A]>,
    bad: &mut Shared<[i32]>,
    from: usize,
    n: usize,
    team: usize,
    #[comptime] form: Form,
) {
    let line = comptime!(form.side + 1);
    let tile = team * comptime!(form.side * (form.side + 1));
    let unit = UNIT_POS as usize % comptime!(form.team);
    let vectors = n * n / N::value();
    let mut loaded = Array::<Vector<I, N>>::new(form.per_unit);
    #[unroll]
    for i in 0..form.per_unit {
        let v = unit + i * comptime!(form.team);
        loaded[i] = a[from + min(v, vectors - 1)];
    }
    #[unroll]
    for i in 0..form.per_unit {
        let v = unit + i * comptime!(form.team);
        if v < vectors {
            #[unroll]
            for c in 0..N::value() {
                let e = v * N::value() + c;
                let (row, column) = if comptime!(form.upper) { (e % n, e / n) } else { (e / n, e % n) };
                if comptime!(!form.triangle) || column <= row {
                    let value = A::cast_from(loaded[i].extract(c));
                    tiles[tile + row * line + column] = value;
                    if not_finite::<A>(value, form.double) {
                        bad[team] = 1i32;
                    }
                }
            }
        }
    }
}

/// The reverse of [`load`], with zeros for what does not count; NaN if `failed`.
#[cube]
pub(crate) fn store<I: Float, A: Float, N: Size>(
    out: &mut [Vector<I, N>],
    tiles: &Shared<[A]>,
    from: usize,
    n: usize,
    team: usize,
    failed: bool,
    nan: A,
    #[comptime] form: Form,
) {
    let line = comptime!(form.side + 1);
    let tile = team * comptime!(form.side * (form.side + 1));
    let unit = UNIT_POS as usize % comptime!(form.team);
    let vectors = n * n / N::value();
    #[unroll]
    for i in 0..form.per_unit {
        let v = unit + i * comptime!(form.team);
        if v < vectors {
            let mut values = Vector::<I, N>::new(I::new(0.0));
            #[unroll]
            for c in 0..N::value() {
                let e = v * N::value() + c;
                let (row, column) = if comptime!(form.upper) { (e % n, e / n) } else { (e / n, e % n) };
                let mut value = A::new(0.0);
                if comptime!(!form.triangle) || column <= row {
                    value = tiles[tile + row * line + column];
                }
                values.insert(c, I::cast_from(select(failed, nan, value)));
            }
            out[from + v] = values;
        }
    }
}

/// A unit's row of a matrix of order `n`; of the identity past its last row and column.
#[cube]
pub(crate) fn own_row<A: Float>(tiles: &Shared<[A]>, n: usize, team: usize, #[comptime] form: Form) -> Array<A> {
    let unit = UNIT_POS as usize % comptime!(form.team);
    let start = team * comptime!(form.side * (form.side + 1)) + unit * comptime!(form.side + 1);
    let mut row = Array::<A>::new(form.side);
    #[unroll]
    for j in 0..form.side {
        row[j] = select(unit == j, A::new(1.0), A::new(0.0));
        let last = if comptime!(form.triangle) { unit + 1 } else { n };
        if unit < n && j < last {
            row[j] = tiles[start + j];
        }
    }
    row
}
