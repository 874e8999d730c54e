//! Triangular systems on the GPU in one launch: a cube keeps the triangle and some of the right-hand sides in shared memory.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::blocks::{Place, elems, not_finite, working};
use crate::system::System;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What a cube leaves of its shared memory for small things.
const SPARE: usize = 512;
/// Right-hand sides of a cube: at most so many.
const COLUMNS: [usize; 3] = [1, 8, 64];

/// The triangles of a system: a unit diagonal, backwards from the last row, and after the triangle its transpose as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) unit: bool,
    pub(crate) upper: bool,
    pub(crate) both: bool,
}

/// Elements of shared memory, by powers of two so that few kernels are compiled, for a square matrix of order `n` with odd
/// rows and `columns` more; none if a cube has less.
pub(crate) fn fits(gpu: &Gpu, dtype: DType, n: usize, columns: usize) -> Option<usize> {
    let most = (gpu.shared_memory.saturating_sub(SPARE)) / dtype.size();
    let needed = n.checked_mul((n | 1) + columns)?.max(1);
    rounded(gpu, needed, most)
}

/// A number of elements of at least `needed` and at most `most`, of few: on devices with much memory by powers of two.
pub(crate) fn rounded(gpu: &Gpu, needed: usize, most: usize) -> Option<usize> {
    let step = if gpu.shared_memory > 32 << 10 { 1 } else { 2 };
    let power = (needed.max(64).next_power_of_two().ilog2() as usize).next_multiple_of(step);
    (needed <= most).then_some((1 << power).min(most))
}

/// Solves systems that fit; false, and nothing done, for others. `places` are those of the triangle and of the sides.
pub(crate) fn substitute(
    gpu: &Gpu,
    system: System,
    form: Form,
    [t, b]: [&Tensor; 2],
    [x, status]: [&Tensor; 2],
    [triangle, sides]: [Place; 2],
    alpha: f64,
) -> Result<bool> {
    let System { count, n, k } = system;
    let dtype = working(b.dtype());
    let most = COLUMNS.iter().copied().find(|&c| c >= k).unwrap_or(COLUMNS[2]);
    let columns = COLUMNS.iter().copied().rev().filter(|&c| c <= most).find(|&c| fits(gpu, dtype, n, c).is_some());
    let Some((columns, room)) = columns.and_then(|c| Some((c, fits(gpu, dtype, n, c)?))) else { return Ok(false) };
    // Many cubes that each load the whole triangle for a few columns are slower than blocks.
    if k > 8 * columns {
        return Ok(false);
    }
    let chunks = k.div_ceil(columns).max(1);
    let units = if n * columns <= 64 {
        32
    } else if n * columns <= 1024 {
        64
    } else {
        256
    };
    let elems = elems(gpu, b.dtype())?;
    // SAFETY: the places are those of `count` systems in the buffers.
    unsafe {
        triangular_systems::launch_unchecked(
            gpu.client(),
            gpu.cubes(count * chunks),
            CubeDim::new_1d(units.min(gpu.max_units)),
            address_type(t.numel().max(b.numel())),
            t.gpu_arg()?,
            b.gpu_arg()?,
            x.gpu_arg()?,
            status.gpu_arg()?,
            count,
            n as u32,
            k as u32,
            triangle.row,
            triangle.column,
            sides.row,
            sides.column,
            InputScalar::new(alpha, elems[1]),
            InputScalar::new(f64::NAN, elems[1]),
            columns,
            room,
            form,
            dtype == DType::F64,
            elems,
        );
    }
    Ok(true)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn triangular_systems<I: Float, A: Float>(
    t: &[I],
    b: &[I],
    x: &mut [I],
    status: &mut [i32],
    count: usize,
    n: u32,
    k: u32,
    t_row: usize,
    t_column: usize,
    x_row: usize,
    x_column: usize,
    alpha: InputScalar,
    nan: InputScalar,
    #[comptime] columns: usize,
    #[comptime] room: usize,
    #[comptime] form: Form,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut memory = Shared::<[A]>::new_slice(room);
    // Whether an element is not finite, and the first zero on the diagonal from 1.
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let (n, k) = (n as usize, k as usize);
    let row = n + 1 - n % 2;
    let right = n * row;
    let chunks = max(k.div_ceil(columns), 1usize);
    let matrix = min(CUBE_POS / chunks, count - 1);
    let first = CUBE_POS % chunks * columns;
    let unit = UNIT_POS as usize;
    let step = CUBE_DIM as usize;
    if unit == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    triangle::<I, A>(t, &mut memory, &mut bad, matrix * n * n, n, t_row, t_column, form, double);
    let mut e = unit;
    while e < n * k {
        if not_finite::<A>(A::cast_from(b[matrix * n * k + e]), double) {
            bad[0] = 1i32;
        }
        e += step;
    }
    let factor = alpha.get::<A>();
    let mut e = unit;
    while e < n * columns {
        let (i, v) = (e / columns, e % columns);
        let mut value = A::new(0.0);
        if first + v < k {
            let at = if comptime!(form.upper) { n - 1 - i } else { i };
            value = A::cast_from(b[matrix * n * k + at * x_row + (first + v) * x_column]) * factor;
        }
        memory[right + e] = value;
        e += step;
    }
    sync_cube();
    let mut info = 0i32 - bad[0];
    for p in 0..n {
        let found = memory[p * row + p];
        let zero = found == A::new(0.0);
        // Backwards the last one found is the first.
        if zero && (info == 0i32 || (comptime!(form.upper) && info > 0i32)) {
            info = select(comptime!(form.upper), n - p, p + 1) as i32;
        }
        let diagonal = select(zero, A::new(1.0), found);
        let mut e = (p + 1) * columns + unit;
        while e < n * columns {
            let solved = memory[right + p * columns + e % columns] / diagonal;
            memory[right + e] = memory[right + e] - memory[e / columns * row + p] * solved;
            e += step;
        }
        sync_cube();
    }
    divide(&mut memory, n, row, right, columns);
    if comptime!(form.both) {
        transposed(&mut memory, n, row, right, columns);
    }
    if CUBE_POS / chunks < count {
        let mut e = unit;
        while e < n * columns {
            let (i, v) = (e / columns, e % columns);
            if first + v < k {
                let at = if comptime!(form.upper) { n - 1 - i } else { i };
                let value = select(info != 0i32, nan.get::<A>(), memory[right + e]);
                x[matrix * n * k + at * x_row + (first + v) * x_column] = I::cast_from(value);
            }
            e += step;
        }
        if unit == 0 && first == 0 {
            status[matrix] = info;
        }
    }
}

/// Copies the triangle that counts, as a lower one of odd rows, and flags what is not finite.
#[cube]
fn triangle<I: Float, A: Float>(
    t: &[I],
    memory: &mut Shared<[A]>,
    bad: &mut Shared<[i32]>,
    from: usize,
    n: usize,
    t_row: usize,
    t_column: usize,
    #[comptime] form: Form,
    #[comptime] double: bool,
) {
    let row = n + 1 - n % 2;
    let step = CUBE_DIM as usize;
    let mut e = UNIT_POS as usize;
    while e < n * n {
        // Neighbouring units read neighbouring elements of rows.
        let (r, c) = (e / n, e % n);
        let (i, j) = if comptime!(form.upper) { (n - 1 - r, n - 1 - c) } else { (r, c) };
        let straight = t_column == 1;
        let row_at = select(straight, i, j);
        let column_at = select(straight, j, i);
        let (li, lj) = (
            if comptime!(form.upper) { n - 1 - row_at } else { row_at },
            if comptime!(form.upper) { n - 1 - column_at } else { column_at },
        );
        if lj < li || (lj == li && comptime!(!form.unit)) {
            let value = A::cast_from(t[from + row_at * t_row + column_at * t_column]);
            memory[li * row + lj] = value;
            if not_finite::<A>(value, double) {
                bad[0] = 1i32;
            }
        } else if lj == li {
            memory[li * row + lj] = A::new(1.0);
        }
        e += step;
    }
}

/// Substitution with the transpose of the triangle, backwards.
#[cube]
fn transposed<A: Float>(memory: &mut Shared<[A]>, n: usize, row: usize, right: usize, #[comptime] columns: usize) {
    for q in 0..n {
        let p = n - 1 - q;
        let found = memory[p * row + p];
        let diagonal = select(found == A::new(0.0), A::new(1.0), found);
        let mut e = UNIT_POS as usize;
        while e < p * columns {
            let solved = memory[right + p * columns + e % columns] / diagonal;
            memory[right + e] = memory[right + e] - memory[p * row + e / columns] * solved;
            e += CUBE_DIM as usize;
        }
        sync_cube();
    }
    divide(memory, n, row, right, columns);
}

/// Divides each row by its diagonal element, which the elimination put off. Ends and is preceded by a barrier.
#[cube]
fn divide<A: Float>(memory: &mut Shared<[A]>, n: usize, row: usize, right: usize, #[comptime] columns: usize) {
    let mut e = UNIT_POS as usize;
    while e < n * columns {
        let found = memory[e / columns * row + e / columns];
        memory[right + e] = memory[right + e] / select(found == A::new(0.0), A::new(1.0), found);
        e += CUBE_DIM as usize;
    }
    sync_cube();
}
