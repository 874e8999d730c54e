//! LU by blocks in the device's memory: a panel of columns, exchanges of rows, a triangular solve and an update each.

use super::super::Kind;
use super::super::cpu::Extents;
use super::determinant::{logarithm, scaled, signum, unscaled};
use crate::blocks::{BLOCK, Place, Work};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units that factor a panel.
const UNITS: u32 = 256;

pub(super) fn run(
    gpu: &Gpu,
    kind: Kind,
    extents: Extents,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let Extents { count, m, n, k } = extents;
    let r = m.min(n);
    let (last, first) = outputs.split_last().expect("the outputs were checked");
    let status: &Tensor = last;
    let (work, flags, chunks) = Work::copied(gpu, inputs[0], count, n, 0)?;
    let pivots = match first.get(1) {
        Some(pivots) if kind == Kind::Lu => pivots.gpu_handle()?,
        _ => gpu.alloc(count * r * 4),
    };
    let pivots = Pivots { handle: pivots, count, r };
    let right = match (kind, inputs.get(1)) {
        (Kind::Solve, Some(b)) => {
            let (right, more, right_chunks) = Work::copied(gpu, b, count, k, 0)?;
            right.verdict(status, &[(&flags, chunks), (&more, right_chunks)], None)?;
            Some(right)
        }
        (Kind::Inv, _) => {
            work.verdict(status, &[(&flags, chunks)], None)?;
            Some(identity(&work, n)?)
        }
        _ => {
            work.verdict(status, &[(&flags, chunks)], None)?;
            None
        }
    };
    factor(&work, [m, n], &pivots, status)?;
    let sides = if kind == Kind::Inv { n } else { k };
    match right {
        Some(right) => {
            let (triangle, place) =
                (Place { start: 0, row: n, column: 1 }, Place { start: 0, row: sides, column: 1 });
            exchange(&right, &pivots, [0, n], sides, [0, sides])?;
            right.substitute(&work, triangle, place, [n, sides], [true, false])?;
            right.substitute(&work, triangle, place, [n, sides], [false, true])?;
            right.finish(first[0], status, sides, 0, true)
        }
        None if kind == Kind::Lu => {
            work.finish(first[0], status, n, 0, false)?;
            clear(&pivots, gpu, status)
        }
        None => determinants(&work, kind, n, &pivots, first, status),
    }
}

/// The exchanges of each matrix, from 1.
struct Pivots {
    handle: Handle,
    count: usize,
    r: usize,
}

impl Pivots {
    fn arg(&self) -> BufferArg {
        // SAFETY: there are `r` for each matrix.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.count * self.r) }
    }
}

fn factor(work: &Work, [m, n]: [usize; 2], pivots: &Pivots, status: &Tensor) -> Result<()> {
    let whole = Place { start: 0, row: n, column: 1 };
    for start in (0..m.min(n)).step_by(BLOCK) {
        let size = BLOCK.min(m.min(n) - start);
        let next = start + size;
        // SAFETY: the panel lies within the matrices.
        unsafe {
            panel::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(work.count),
                CubeDim::new_1d(UNITS),
                work.address(),
                work.arg(),
                pivots.arg(),
                status.gpu_arg()?,
                work.count,
                m as u32,
                n as u32,
                start as u32,
                size as u32,
                pivots.r,
                work.batch,
                work.gpu.elem(work.dtype)?,
            );
        }
        exchange(work, pivots, [start, size], n, [0, start])?;
        exchange(work, pivots, [start, size], n, [next, n - next])?;
        let corner = whole.at(start, start);
        let beside = whole.at(start, next);
        work.solve(None, corner, beside, [size, n - next], [true, false])?;
        let places = [whole.at(next, next), whole.at(next, start), beside];
        work.update(None, places, [m - next, n - next, size], false)?;
    }
    Ok(())
}

/// Exchanges rows in columns `from..from + columns` of matrices of `n` columns, by pivots `first..first + size`.
fn exchange(
    work: &Work,
    pivots: &Pivots,
    [first, size]: [usize; 2],
    n: usize,
    [from, columns]: [usize; 2],
) -> Result<()> {
    if columns == 0 {
        return Ok(());
    }
    // SAFETY: the rows and columns lie within the matrices.
    unsafe {
        exchange_rows::launch_unchecked(
            work.gpu.client(),
            work.gpu.cubes(work.count * columns.div_ceil(UNITS as usize)),
            CubeDim::new_1d(UNITS),
            work.address(),
            work.arg(),
            pivots.arg(),
            work.count,
            first as u32,
            size as u32,
            n as u32,
            from as u32,
            columns as u32,
            pivots.r,
            work.batch,
            work.gpu.elem(work.dtype)?,
        );
    }
    Ok(())
}

fn identity<'a>(like: &Work<'a>, n: usize) -> Result<Work<'a>> {
    let work = Work { handle: like.gpu.alloc(like.count * n * n * like.dtype.size()), ..like.clone() };
    // SAFETY: the buffer holds `count` matrices of order `n`.
    unsafe {
        identities::launch_unchecked(
            work.gpu.client(),
            work.gpu.cubes((work.count * n * n).div_ceil(UNITS as usize)),
            CubeDim::new_1d(UNITS),
            work.address(),
            work.arg(),
            work.count * n * n,
            n as u32,
            work.gpu.elem(work.dtype)?,
        );
    }
    Ok(work)
}

/// A matrix that is not finite has no pivots.
fn clear(pivots: &Pivots, gpu: &Gpu, status: &Tensor) -> Result<()> {
    let total = pivots.count * pivots.r;
    // SAFETY: there are as many pivots, and a status for each matrix.
    unsafe {
        clear_pivots::launch_unchecked(
            gpu.client(),
            gpu.cubes(total.div_ceil(UNITS as usize)),
            CubeDim::new_1d(UNITS),
            pivots.arg(),
            status.gpu_arg()?,
            total as u32,
            pivots.r as u32,
        );
    }
    Ok(())
}

fn determinants(
    work: &Work,
    kind: Kind,
    n: usize,
    pivots: &Pivots,
    outputs: &[&mut Tensor],
    status: &Tensor,
) -> Result<()> {
    let elems = [work.gpu.elem(outputs[0].dtype())?, work.gpu.elem(work.dtype)?];
    // SAFETY: a value for each of `count` matrices.
    unsafe {
        from_diagonals::launch_unchecked(
            work.gpu.client(),
            work.gpu.cubes(work.count.div_ceil(UNITS as usize)),
            CubeDim::new_1d(UNITS),
            work.address(),
            work.arg(),
            pivots.arg(),
            outputs[0].gpu_arg()?,
            match outputs.get(1) {
                Some(second) => second.gpu_arg()?,
                None => work.dummy(),
            },
            status.gpu_arg()?,
            work.count as u32,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            InputScalar::new(f64::NEG_INFINITY, elems[1]),
            kind == Kind::Slogdet,
            work.double(),
            elems,
        );
    }
    Ok(())
}

/// A cube for each matrix factors `size` columns from row and column `start` on, exchanging rows within them.
#[cube(launch_unchecked, address_type = "dynamic")]
fn panel<A: Float>(
    w: &mut [A],
    pivots: &mut [i32],
    status: &mut [i32],
    count: usize,
    m: u32,
    n: u32,
    start: u32,
    size: u32,
    r: usize,
    batch: usize,
    #[define(A)] _elem: ElemType,
) {
    let mut sizes = Shared::<[A]>::new_slice(comptime!(UNITS as usize));
    let mut places = Shared::<[u32]>::new_slice(comptime!(UNITS as usize));
    let mut top = Shared::<[A]>::new_slice(BLOCK);
    let unit = UNIT_POS as usize;
    let (m, n, start, size) = (m as usize, n as usize, start as usize, size as usize);
    let from = min(CUBE_POS, count - 1) * batch;
    let matrix = min(CUBE_POS, count - 1);
    // Cubes past the last matrix have no rows, but all the barriers.
    let rows = select(CUBE_POS < count, m, 0usize);
    let mut info = status[matrix];
    for c in 0..size {
        let k = start + c;
        let mut best = A::new(-1.0);
        let mut place = k as u32;
        let mut i = k + unit;
        while i < rows {
            let candidate = w[from + i * n + k].abs();
            let more = candidate > best;
            best = select(more, candidate, best);
            place = select(more, i as u32, place);
            i += CUBE_DIM as usize;
        }
        sizes[unit] = best;
        places[unit] = place;
        let mut half = CUBE_DIM as usize / 2;
        while half > 0 {
            sync_cube();
            if unit < half {
                let candidate = sizes[unit + half];
                let own = places[unit + half];
                if candidate > sizes[unit] || (candidate == sizes[unit] && own < places[unit]) {
                    sizes[unit] = candidate;
                    places[unit] = own;
                }
            }
            half /= 2;
        }
        sync_cube();
        let p = places[0] as usize;
        let zero = sizes[0] <= A::new(0.0);
        if zero && info == 0i32 {
            info = k as i32 + 1i32;
        }
        if unit < size && rows > 0 {
            let other = w[from + p * n + start + unit];
            if p != k {
                w[from + p * n + start + unit] = w[from + k * n + start + unit];
                w[from + k * n + start + unit] = other;
            }
            top[unit] = other;
        }
        if unit == 0 && rows > 0 {
            pivots[matrix * r + k] = p as i32 + 1i32;
        }
        sync_storage();
        let pivot = select(zero, A::new(1.0), top[c]);
        let mut i = k + 1 + unit;
        while i < rows {
            let factor = w[from + i * n + k] / pivot;
            w[from + i * n + k] = factor;
            for j in (c + 1)..size {
                let at = from + i * n + start + j;
                w[at] = w[at] - factor * top[j];
            }
            i += CUBE_DIM as usize;
        }
        sync_storage();
    }
    if unit == 0 && rows > 0 {
        status[matrix] = info;
    }
}

/// A unit for each column.
#[cube(launch_unchecked, address_type = "dynamic")]
fn exchange_rows<A: Float>(
    w: &mut [A],
    pivots: &[i32],
    count: usize,
    first: u32,
    size: u32,
    n: u32,
    start: u32,
    columns: u32,
    r: usize,
    batch: usize,
    #[define(A)] _elem: ElemType,
) {
    let groups = columns.div_ceil(CUBE_DIM) as usize;
    let matrix = CUBE_POS / groups;
    let column = (CUBE_POS % groups) as u32 * CUBE_DIM + UNIT_POS;
    if matrix < count && column < columns {
        let from = matrix * batch + (start + column) as usize;
        for c in 0..size {
            let k = (first + c) as usize;
            let p = pivots[matrix * r + k] as usize - 1;
            if p != k {
                let (above, below) = (w[from + k * n as usize], w[from + p * n as usize]);
                w[from + k * n as usize] = below;
                w[from + p * n as usize] = above;
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn identities<A: Float>(w: &mut [A], total: usize, n: u32, #[define(A)] _elem: ElemType) {
    let e = ABSOLUTE_POS;
    if e < total {
        let inside = e % (n as usize * n as usize);
        w[e] = select(inside / n as usize == inside % n as usize, A::new(1.0), A::new(0.0));
    }
}

#[cube(launch_unchecked)]
fn clear_pivots(pivots: &mut [i32], status: &[i32], total: u32, r: u32) {
    let e = ABSOLUTE_POS;
    if e < total as usize && status[e / r as usize] < 0i32 {
        pivots[e] = 0i32;
    }
}

/// A unit for each matrix.
#[cube(launch_unchecked, address_type = "dynamic")]
fn from_diagonals<I: Float, A: Float>(
    w: &[A],
    pivots: &[i32],
    out: &mut [I],
    second: &mut [I],
    status: &mut [i32],
    count: u32,
    n: u32,
    nan: InputScalar,
    below: InputScalar,
    #[comptime] signed: bool,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let matrix = ABSOLUTE_POS;
    let n = n as usize;
    if matrix < count as usize {
        let mut product = A::new(1.0);
        for k in 0..n {
            let exchanged = pivots[matrix * n + k] != k as i32 + 1i32;
            product = select(exchanged, -product, product);
        }
        let found = status[matrix];
        if comptime!(signed) {
            let mut state = Array::<A>::new(2usize);
            state[0] = product;
            state[1] = A::new(0.0);
            for k in 0..n {
                scaled::<A>(&mut state, w[matrix * n * n + k * (n + 1)]);
            }
            product = signum::<A>(state[0]);
            let value = select(product == A::new(0.0), below.get::<A>(), logarithm::<A>(&state, double));
            second[matrix] = I::cast_from(select(found < 0i32, nan.get::<A>(), value));
        } else {
            let mut state = Array::<A>::new(2usize);
            state[0] = product;
            state[1] = A::new(0.0);
            for k in 0..n {
                scaled::<A>(&mut state, w[matrix * n * n + k * (n + 1)]);
            }
            product = unscaled::<A>(&state);
        }
        out[matrix] = I::cast_from(select(found < 0i32, nan.get::<A>(), product));
        status[matrix] = min(found, 0i32);
    }
}
