//! Cholesky on the GPU: matrices that fit in a cube's shared memory or in registers in one launch; larger
//! ones by blocks in the device's memory.

mod rows;

use crate::blocks::{BLOCK, Place, Work, copied_bytes, elems, not_finite, working};
use crate::small::{Form, fits, substitute};
use crate::system::System;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube for matrices of up to so many rows.
const UNITS: [(usize, usize); 3] = [(48, 256), (128, 512), (usize::MAX, 1024)];
/// Units that share a row of the update.
const ACROSS: u32 = 16;

pub(super) fn cholesky(
    gpu: &Gpu,
    upper: bool,
    [count, n]: [usize; 2],
    a: &Tensor,
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let [l, status] = outputs else { unreachable!("the outputs were checked") };
    if count == 0 {
        return Ok(());
    }
    if crate::rows::fit(gpu, n) {
        return rows::cholesky(gpu, upper, [count, n], a, l, status);
    }
    let Some(room) = fits(gpu, working(a.dtype()), n, 0) else {
        return large(gpu, upper, [count, n], a, l, status);
    };
    let units = UNITS.iter().find(|(most, _)| n <= *most).map_or(1024, |(_, units)| *units);
    let elems = elems(gpu, a.dtype())?;
    // SAFETY: both buffers hold `count` matrices of order `n`; teams past the last one store nothing.
    unsafe {
        one_cube_per_matrix::launch_unchecked(
            gpu.client(),
            gpu.cubes(count),
            CubeDim::new_1d((units as u32).min(gpu.max_units)),
            address_type(a.numel()),
            a.gpu_arg()?,
            l.gpu_arg()?,
            status.gpu_arg()?,
            count,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            room,
            upper,
            a.dtype() == DType::F64,
            elems,
        );
    }
    Ok(())
}

/// Bytes that [`cholesky`] allocates beside inputs and outputs.
pub(crate) fn scratch(gpu: &Gpu, [count, n]: [usize; 2], dtype: DType) -> usize {
    let in_one_launch = crate::rows::fit(gpu, n) || fits(gpu, working(dtype), n, 0).is_some();
    if count == 0 || in_one_launch { 0 } else { copied_bytes(dtype, count, n * n) }
}

/// Right-looking Cholesky in shared memory with one barrier for each column: a column is divided by its root at the end.
#[cube(launch_unchecked, address_type = "dynamic")]
fn one_cube_per_matrix<I: Float, A: Float>(
    a: &[I],
    l: &mut [I],
    status: &mut [i32],
    count: usize,
    n: u32,
    nan: InputScalar,
    #[comptime] room: usize,
    #[comptime] upper: bool,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(room);
    let mut bad = Shared::<[i32]>::new_slice(1usize);
    let units = CUBE_DIM;
    let unit = UNIT_POS;
    let matrix = CUBE_POS;
    let n = n as usize;
    let row = n + 1 - n % 2;
    let from = min(matrix, count - 1) * n * n;
    if unit == 0 {
        bad[0] = 0i32;
    }
    sync_cube();
    let mut e = unit as usize;
    while e < n * n {
        let (i, j) = if comptime!(upper) { (e % n, e / n) } else { (e / n, e % n) };
        if j <= i {
            let value = A::cast_from(a[from + e]);
            tile[i * row + j] = value;
            if not_finite::<A>(value, double) {
                bad[0] = 1i32;
            }
        }
        e += units as usize;
    }
    sync_cube();
    let mut info = 0i32 - bad[0];
    let x = (unit % ACROSS) as usize;
    let y = (unit / ACROSS) as usize;
    let down = (units / ACROSS) as usize;
    for k in 0..n {
        let found = tile[k * row + k];
        let positive = found > A::new(0.0);
        if !positive && info == 0i32 {
            info = k as i32 + 1i32;
        }
        let pivot = select(positive, found, A::new(1.0));
        let mut i = k + 1 + y;
        while i < n {
            let factor = tile[i * row + k] / pivot;
            let mut j = k + 1 + x;
            while j <= i {
                tile[i * row + j] = tile[i * row + j] - factor * tile[j * row + k];
                j += comptime!(ACROSS as usize);
            }
            i += down;
        }
        sync_cube();
    }
    // The roots replace the diagonal, which nothing else reads any more.
    let mut k = unit as usize;
    while k < n {
        let pivot = tile[k * row + k];
        tile[k * row + k] = select(pivot > A::new(0.0), pivot, A::new(1.0)).sqrt();
        k += units as usize;
    }
    sync_cube();
    if matrix < count {
        let failed = info != 0i32;
        let mut e = unit as usize;
        while e < n * n {
            let (i, j) = if comptime!(upper) { (e % n, e / n) } else { (e / n, e % n) };
            let mut value = A::new(0.0);
            if j <= i {
                let root = tile[j * row + j];
                value = select(i == j, root, tile[i * row + j] / root);
            }
            l[from + e] = I::cast_from(select(failed, nan.get::<A>(), value));
            e += units as usize;
        }
        if unit == 0 {
            status[matrix] = info;
        }
    }
}

fn large(gpu: &Gpu, upper: bool, [count, n]: [usize; 2], a: &Tensor, l: &Tensor, status: &Tensor) -> Result<()> {
    let part = if upper { 2 } else { 1 };
    let (work, flags, chunks) = Work::copied(gpu, a, count, n, part)?;
    let whole = Place { start: 0, row: n, column: 1 };
    let whole = if upper { whole.transposed() } else { whole };
    work.verdict(status, &[(&flags, chunks)], None)?;
    for start in (0..n).step_by(BLOCK) {
        let size = BLOCK.min(n - start);
        let (rest, next) = (n - start - size, start + size);
        let corner = whole.at(start, start);
        diagonal(&work, status, corner, size, start)?;
        let below = whole.at(next, start);
        work.solve(None, corner, below.transposed(), [size, rest], [false, false])?;
        work.update(None, [whole.at(next, next), below, below.transposed()], [rest, rest, size], true)?;
    }
    work.finish(l, status, n, part, true)
}

/// Factors the block on the diagonal.
fn diagonal(work: &Work, status: &Tensor, place: Place, size: usize, start: usize) -> Result<()> {
    // SAFETY: the block lies within the matrices.
    unsafe {
        factor_block::launch_unchecked(
            work.gpu.client(),
            work.gpu.cubes(work.count),
            CubeDim::new_1d(64),
            work.address(),
            work.arg(),
            status.gpu_arg()?,
            work.count,
            size as u32,
            work.batch,
            place.start,
            place.row,
            place.column,
            start as u32,
            work.gpu.elem(work.dtype)?,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn factor_block<A: Float>(
    w: &mut [A],
    status: &mut [i32],
    count: usize,
    size: u32,
    batch: usize,
    start: usize,
    row: usize,
    column: usize,
    before: u32,
    #[define(A)] _elem: ElemType,
) {
    let line = comptime!(BLOCK + 1);
    let mut tile = Shared::<[A]>::new_slice(comptime!(BLOCK * (BLOCK + 1)));
    let matrix = min(CUBE_POS, count - 1);
    let from = matrix * batch + start;
    let n = size as usize;
    let unit = UNIT_POS as usize;
    let mut e = unit;
    while e < n * n {
        let (i, j) = (e / n, e % n);
        if j <= i {
            tile[i * line + j] = w[from + i * row + j * column];
        }
        e += CUBE_DIM as usize;
    }
    let mut info = status[matrix];
    sync_cube();
    let x = unit % comptime!(ACROSS as usize);
    let y = unit / comptime!(ACROSS as usize);
    let down = (CUBE_DIM / ACROSS) as usize;
    for k in 0..n {
        let found = tile[k * line + k];
        let positive = found > A::new(0.0);
        if !positive && info == 0i32 {
            info = (before as usize + k) as i32 + 1i32;
        }
        let pivot = select(positive, found, A::new(1.0));
        let mut i = k + 1 + y;
        while i < n {
            let factor = tile[i * line + k] / pivot;
            let mut j = k + 1 + x;
            while j <= i {
                tile[i * line + j] = tile[i * line + j] - factor * tile[j * line + k];
                j += comptime!(ACROSS as usize);
            }
            i += down;
        }
        sync_cube();
    }
    if CUBE_POS < count {
        let mut e = unit;
        while e < n * n {
            let (i, j) = (e / n, e % n);
            if j <= i {
                let pivot = tile[j * line + j];
                let root = select(pivot > A::new(0.0), pivot, A::new(1.0)).sqrt();
                w[from + i * row + j * column] = select(i == j, root, tile[i * line + j] / root);
            }
            e += CUBE_DIM as usize;
        }
        if unit == 0 {
            status[matrix] = info;
        }
    }
}

pub(super) fn solve(gpu: &Gpu, upper: bool, system: System, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let System { count, n, k } = system;
    let [x, status] = outputs else { unreachable!("the outputs were checked") };
    if count == 0 {
        return Ok(());
    }
    let [l, b] = [inputs[0], inputs[1]];
    let triangle = Place { start: 0, row: n, column: 1 };
    let triangle = if upper { triangle.transposed() } else { triangle };
    let sides = Place { start: 0, row: k, column: 1 };
    let form = Form { unit: false, upper: false, both: true };
    if substitute(gpu, system, form, [l, b], [x, status], [triangle, sides], 1.0)? {
        return Ok(());
    }
    let part = if upper { 2 } else { 1 };
    let (matrix, flags, chunks) = Work::copied(gpu, l, count, n, part)?;
    let (right, more, right_chunks) = Work::copied(gpu, b, count, k, 0)?;
    let zeros = Some((&matrix, n));
    right.verdict(status, &[(&flags, chunks), (&more, right_chunks)], zeros)?;
    right.substitute(&matrix, triangle, sides, [n, k], [false, false])?;
    right.substitute(&matrix, triangle.transposed(), sides, [n, k], [false, true])?;
    right.finish(x, status, k, 0, true)
}
