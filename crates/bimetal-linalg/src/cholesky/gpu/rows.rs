//! Small Cholesky on the GPU: a unit keeps a row in registers, and columns go around through shared memory.

use crate::blocks::elems;
use crate::rows::{Form, UNITS, form, load, own_row, store};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

pub(super) fn cholesky(
    gpu: &Gpu,
    upper: bool,
    [count, n]: [usize; 2],
    a: &Tensor,
    l: &Tensor,
    status: &Tensor,
) -> Result<()> {
    let (form, width) = form(gpu, a.dtype(), n, [true, upper]);
    let elems = elems(gpu, a.dtype())?;
    // SAFETY: both buffers hold `count` matrices of order `n`; teams past the last one store nothing.
    unsafe {
        one_unit_per_row::launch_unchecked(
            gpu.client(),
            gpu.cubes(count.div_ceil(UNITS / form.team)),
            CubeDim::new_1d(UNITS as u32),
            address_type(a.numel()),
            width,
            a.gpu_arg()?,
            l.gpu_arg()?,
            status.gpu_arg()?,
            count,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            form,
            elems,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_unit_per_row<I: Float, A: Float, N: Size>(
    a: &[Vector<I, N>],
    l: &mut [Vector<I, N>],
    status: &mut [i32],
    count: usize,
    n: u32,
    nan: InputScalar,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let side = comptime!(form.side);
    let mut tiles = Shared::<[A]>::new_slice(comptime!(UNITS / form.team * form.side * (form.side + 1)));
    // Two columns, so that one barrier for each is enough.
    let mut columns = Shared::<[A]>::new_slice(comptime!(2 * UNITS));
    let mut bad = Shared::<[i32]>::new_slice(comptime!(UNITS / form.team));
    let team = UNIT_POS as usize / comptime!(form.team);
    let unit = UNIT_POS as usize % comptime!(form.team);
    let matrix = CUBE_POS * comptime!(UNITS / form.team) + team;
    let n = if comptime!(form.whole) { side.runtime() } else { n as usize };
    let from = min(matrix, count - 1) * (n * n / N::value());
    if unit == 0 {
        bad[team] = 0i32;
    }
    sync_cube();
    load::<I, A, N>(a, &mut tiles, &mut bad, from, n, team, form);
    sync_cube();
    let mut row = own_row::<A>(&tiles, n, team, form);
    let mut info = 0i32 - bad[team];
    #[unroll]
    for k in 0..side {
        let column = comptime!(k % 2 * UNITS) + team * comptime!(form.team);
        columns[column + unit] = row[k];
        sync_cube();
        let found = columns[column + k];
        let positive = found > A::new(0.0);
        if !positive && info == 0i32 {
            info = comptime!(k as i32 + 1).runtime();
        }
        let inverse = A::new(1.0) / select(positive, found, A::new(1.0)).sqrt();
        row[k] = row[k] * inverse;
        let factor = row[k] * inverse;
        #[unroll]
        for j in comptime!(k + 1)..side {
            row[j] = row[j] - factor * columns[column + j];
        }
    }
    let start = team * comptime!(form.side * (form.side + 1)) + unit * comptime!(form.side + 1);
    #[unroll]
    for j in 0..side {
        if unit < n && j <= unit {
            tiles[start + j] = row[j];
        }
    }
    sync_cube();
    if matrix < count {
        store::<I, A, N>(l, &tiles, from, n, team, info != 0i32, nan.get::<A>(), form);
        if unit == 0 {
            status[matrix] = info;
        }
    }
}
