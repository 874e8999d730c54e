//! Small systems on the GPU: a unit keeps a row in registers and knows its place, so that exchanges move nothing; the row of
//! the pivot goes around through shared memory.

use crate::blocks::{elems, not_finite};
use crate::rows::{Form, UNITS, form, load, own_row, store};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Factors matrices of order `n` (`out` and `pivots`), or solves with one right-hand side each (`out`).
pub(super) fn run(
    gpu: &Gpu,
    [count, n]: [usize; 2],
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let solve = inputs.len() > 1;
    let a = inputs[0];
    let (form, width) = form(gpu, a.dtype(), n, [false, false]);
    let elems = elems(gpu, a.dtype())?;
    let spare = || {
        // SAFETY: allocations have at least 256 bytes.
        unsafe { BufferArg::from_raw_parts(gpu.alloc(8), 1) }
    };
    let (status, first) = outputs.split_last().expect("the outputs were checked");
    // SAFETY: the buffers hold `count` matrices of order `n`, and `n` numbers for each; what is spare is not touched.
    unsafe {
        one_unit_per_row::launch_unchecked(
            gpu.client(),
            gpu.cubes(count.div_ceil(UNITS / form.team)),
            CubeDim::new_1d(UNITS as u32),
            address_type(a.numel()),
            width,
            a.gpu_arg()?,
            if solve { inputs[1].gpu_arg()? } else { spare() },
            if solve { spare() } else { first[0].gpu_arg()? },
            if solve { first[0].gpu_arg()? } else { spare() },
            if solve { spare() } else { first[1].gpu_arg()? },
            status.gpu_arg()?,
            count,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            solve,
            form,
            elems,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_unit_per_row<I: Float, A: Float, N: Size>(
    a: &[Vector<I, N>],
    b: &[I],
    lu: &mut [Vector<I, N>],
    x: &mut [I],
    pivots: &mut [i32],
    status: &mut [i32],
    count: usize,
    n: u32,
    nan: InputScalar,
    #[comptime] solve: bool,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let side = comptime!(form.side);
    let mut tiles = Shared::<[A]>::new_slice(comptime!(UNITS / form.team * form.side * (form.side + 1)));
    let mut sizes = Shared::<[A]>::new_slice(UNITS);
    let mut bad = Shared::<[i32]>::new_slice(comptime!(UNITS / form.team));
    let team = UNIT_POS as usize / comptime!(form.team);
    let unit = UNIT_POS as usize % comptime!(form.team);
    let matrix = CUBE_POS * comptime!(UNITS / form.team) + team;
    let own = min(matrix, count - 1);
    let n = if comptime!(form.whole) { side.runtime() } else { n as usize };
    let from = own * (n * n / N::value());
    if unit == 0 {
        bad[team] = 0i32;
    }
    sync_cube();
    load::<I, A, N>(a, &mut tiles, &mut bad, from, n, team, form);
    let mut right = A::new(0.0);
    if comptime!(solve) {
        if unit < n {
            right = A::cast_from(b[own * n + unit]);
        }
        if not_finite::<A>(right, form.double) {
            bad[team] = 1i32;
        }
    }
    sync_cube();
    let mut row = own_row::<A>(&tiles, n, team, form);
    let mut state = Array::<i32>::new(2usize);
    state[0] = unit as i32;
    state[1] = 0i32 - bad[team];
    let sound = bad[team] == 0i32;
    #[unroll]
    for k in 0..side {
        let p = step::<A>(&mut row, &mut right, &mut state, &mut tiles, &mut sizes, team, k, form);
        if comptime!(!solve) && unit == 0 && k < n && matrix < count {
            pivots[matrix * n + k] = select(sound, p as i32 + 1i32, 0i32);
        }
    }
    let failed = state[1] < 0i32 || (comptime!(solve) && state[1] > 0i32);
    let line = team * comptime!(form.side * (form.side + 1));
    // The last pivot's row has been read from where rows go out.
    sync_cube();
    if comptime!(solve) {
        back::<A>(&row, &mut right, state[0], &mut sizes, team, form);
        if unit < n && matrix < count {
            let value = sizes[team * comptime!(form.team) + unit];
            x[matrix * n + unit] = I::cast_from(select(failed, nan.get::<A>(), value));
        }
    } else {
        #[unroll]
        for j in 0..side {
            if unit < n {
                tiles[line + state[0] as usize * comptime!(form.side + 1) + j] = row[j];
            }
        }
        sync_cube();
        if matrix < count {
            store::<I, A, N>(lu, &tiles, from, n, team, failed, nan.get::<A>(), form);
        }
    }
    if unit == 0 && matrix < count {
        status[matrix] = state[1];
    }
}

/// Finds the pivot of column `k` among the rows from place `k` on, exchanges the places, and eliminates below; the place of
/// the pivot. `state` is the unit's own place, and the status.
#[cube]
fn step<A: Float>(
    row: &mut Array<A>,
    right: &mut A,
    state: &mut Array<i32>,
    top: &mut Shared<[A]>,
    sizes: &mut Shared<[A]>,
    team: usize,
    #[comptime] k: usize,
    #[comptime] form: Form,
) -> u32 {
    let side = comptime!(form.side);
    let around = team * comptime!(form.team);
    let line = team * comptime!(form.side * (form.side + 1));
    let place = state[0] as usize;
    sizes[around + place] = row[k].abs();
    sync_cube();
    let mut best = A::new(-1.0);
    let mut p = comptime!(k as u32).runtime();
    #[unroll]
    for i in k..side {
        let candidate = sizes[around + i];
        let more = candidate > best;
        best = select(more, candidate, best);
        p = select(more, comptime!(i as u32).runtime(), p);
    }
    let zero = best <= A::new(0.0);
    if zero && state[1] == 0i32 {
        state[1] = comptime!(k as i32 + 1).runtime();
    }
    let chosen = place == p as usize;
    let displaced = place == k;
    state[0] = select(chosen, comptime!(k as i32).runtime(), select(displaced, p as i32, state[0]));
    if chosen {
        #[unroll]
        for j in k..side {
            top[line + j] = row[j];
        }
        top[line + side] = *right;
    }
    sync_cube();
    let pivot = select(zero, A::new(1.0), top[line + k]);
    let below = state[0] > comptime!(k as i32);
    let factor = select(below, row[k] / pivot, A::new(0.0));
    row[k] = select(below, factor, row[k]);
    #[unroll]
    for j in comptime!(k + 1)..side {
        row[j] = row[j] - factor * top[line + j];
    }
    *right = *right - factor * top[line + side];
    p
}

/// Substitution with the upper triangle; the solution is in `solved`, in the order of places.
#[cube]
fn back<A: Float>(
    row: &Array<A>,
    right: &mut A,
    place: i32,
    solved: &mut Shared<[A]>,
    team: usize,
    #[comptime] form: Form,
) {
    let around = team * comptime!(form.team);
    #[unroll]
    for q in 0..form.side {
        let k = comptime!(form.side - 1 - q);
        if place == comptime!(k as i32) {
            solved[around + k] = *right / select(row[k] == A::new(0.0), A::new(1.0), row[k]);
        }
        sync_cube();
        *right = *right - select(place < comptime!(k as i32), row[k], A::new(0.0)) * solved[around + k];
    }
}
