//! Small Cholesky on the GPU: a unit keeps a row in registers, and columns go around through shared memory.

use crate::blocks::{elems, not_finite};
use bimetal_core::gpu::kernel::{address_type, row_vector};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube: of one plane on most devices, whose barriers cost next to nothing.
const UNITS: usize = 32;
/// Rows of the kernels that are compiled.
const SIDES: [usize; 4] = [8, 16, 24, 32];

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// Rows and columns in registers, and units of a matrix.
    side: usize,
    team: usize,
    /// The matrices have exactly `side` rows.
    whole: bool,
    upper: bool,
    double: bool,
}

/// Whether matrices of order `n` are small enough: a barrier between many planes costs more than it saves.
pub(super) fn fit(gpu: &Gpu, n: usize) -> bool {
    (1..=SIDES[SIDES.len() - 1].min(2 * gpu.plane.0 as usize)).contains(&n)
}

pub(super) fn cholesky(
    gpu: &Gpu,
    upper: bool,
    [count, n]: [usize; 2],
    a: &Tensor,
    l: &Tensor,
    status: &Tensor,
) -> Result<()> {
    let side = SIDES.into_iter().find(|side| n <= *side).unwrap_or(SIDES[SIDES.len() - 1]);
    let team = side.next_power_of_two();
    let form = Form { side, team, whole: n == side, upper, double: a.dtype() == DType::F64 };
    let width = row_vector(gpu.vector(a.dtype()), n * n);
    let elems = elems(gpu, a.dtype())?;
    // SAFETY: both buffers hold `count` matrices of order `n`; teams past the last one store nothing.
    unsafe {
        one_unit_per_row::launch_unchecked(
            gpu.client(),
            gpu.cubes(count.div_ceil(UNITS / team)),
            CubeDim::new_1d(UNITS as u32),
            address_type(a.numel()),
            width,
            a.gpu_arg()?,
            l.gpu_arg()?,
            status.gpu_arg()?,
            count,
            n as u32,
            InputScalar::new(f64::NAN, elems[1]),
            (side * side).div_ceil(width * team),
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
    #[comptime] per_unit: usize,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let side = comptime!(form.side);
    let line = comptime!(form.side + 1);
    let team = comptime!(form.team);
    let mut tiles = Shared::<[A]>::new_slice(comptime!(UNITS / form.team * form.side * (form.side + 1)));
    // Two columns, so that one barrier for each is enough.
    let mut columns = Shared::<[A]>::new_slice(comptime!(2 * UNITS));
    let mut bad = Shared::<[i32]>::new_slice(comptime!(UNITS / form.team));
    let own_team = UNIT_POS as usize / team;
    let unit = UNIT_POS as usize % team;
    let matrix = CUBE_POS * comptime!(UNITS / form.team) + own_team;
    let n = if comptime!(form.whole) { side.runtime() } else { n as usize };
    let vectors = n * n / N::value();
    let from = min(matrix, count - 1) * vectors;
    let tile = own_team * comptime!(form.side * (form.side + 1));
    let around = own_team * team;
    if unit == 0 {
        bad[own_team] = 0i32;
    }
    sync_cube();
    let mut loaded = Array::<Vector<I, N>>::new(per_unit);
    #[unroll]
    for i in 0..per_unit {
        let v = unit + i * team;
        loaded[i] = a[from + min(v, vectors - 1)];
    }
    #[unroll]
    for i in 0..per_unit {
        let v = unit + i * team;
        if v < vectors {
            #[unroll]
            for c in 0..N::value() {
                let e = v * N::value() + c;
                let (row, column) = if comptime!(form.upper) { (e % n, e / n) } else { (e / n, e % n) };
                if column <= row {
                    let value = A::cast_from(loaded[i].extract(c));
                    tiles[tile + row * line + column] = value;
                    if not_finite::<A>(value, form.double) {
                        bad[own_team] = 1i32;
                    }
                }
            }
        }
    }
    sync_cube();
    let mut row = Array::<A>::new(side);
    #[unroll]
    for j in 0..side {
        row[j] = select(unit == j, A::new(1.0), A::new(0.0));
        if unit < n && j <= unit {
            row[j] = tiles[tile + unit * line + j];
        }
    }
    let mut info = 0i32 - bad[own_team];
    #[unroll]
    for k in 0..side {
        let column = comptime!(k % 2 * UNITS) + around;
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
    #[unroll]
    for j in 0..side {
        if unit < n && j <= unit {
            tiles[tile + unit * line + j] = row[j];
        }
    }
    sync_cube();
    if matrix < count {
        let failed = info != 0i32;
        #[unroll]
        for i in 0..per_unit {
            let v = unit + i * team;
            if v < vectors {
                let mut out = Vector::<I, N>::new(I::new(0.0));
                #[unroll]
                for c in 0..N::value() {
                    let e = v * N::value() + c;
                    let (row, column) = if comptime!(form.upper) { (e % n, e / n) } else { (e / n, e % n) };
                    let mut value = A::new(0.0);
                    if column <= row {
                        value = tiles[tile + row * line + column];
                    }
                    out.insert(c, I::cast_from(select(failed, nan.get::<A>(), value)));
                }
                l[from + v] = out;
            }
        }
        if unit == 0 {
            status[matrix] = info;
        }
    }
}
