//! LU on the GPU: matrices that fit in a cube's shared memory in one launch, with their right-hand sides; larger ones by
//! blocks in the device's memory.

mod determinant;
mod ends;
mod large;
mod lines;
mod panels;
mod pivot;
mod rows;

use self::determinant::{logarithm, scaled, signum, unscaled};
use super::Kind;
use super::cpu::Extents;
use crate::blocks::{elems, not_finite, working};
use crate::small::rounded;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units that share a matrix of up to so many rows.
const TEAMS: [(usize, usize); 5] = [(8, 16), (16, 32), (32, 64), (48, 128), (64, 256)];
/// Units of a cube, for several small matrices and for a larger one.
const UNITS: [usize; 2] = [64, 512];
/// Units that share a row of the update.
const ACROSS: usize = 8;
/// Units that look for a pivot.
const SEARCH: usize = 16;
/// Right-hand sides of a cube: at most so many.
const COLUMNS: [usize; 4] = [0, 1, 8, 64];

/// What a launch makes: the operation, and the columns beside each matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    kind: Kind,
    columns: usize,
    room: usize,
    teams: usize,
    double: bool,
}

pub(super) fn run(
    gpu: &Gpu,
    kind: Kind,
    extents: Extents,
    inputs: &[&Tensor],
    outputs: &mut [&mut Tensor],
) -> Result<()> {
    let Extents { count, m, n, k } = extents;
    if count == 0 {
        return Ok(());
    }
    let alone = kind == Kind::Lu || kind == Kind::Solve && k == 1;
    if m == n && alone && crate::rows::fit(gpu, n) {
        return rows::run(gpu, [count, n], inputs, outputs);
    }
    let dtype = working(inputs[0].dtype());
    let sides = if kind == Kind::Inv { n } else { k };
    let Some(columns) = columns_beside(gpu, dtype, [m, n], sides) else {
        return large::run(gpu, kind, extents, inputs, outputs);
    };
    let room = fits_rectangle(gpu, dtype, m, n + columns).unwrap_or(0);
    let largest = m.max(n);
    let units = TEAMS.iter().find(|(most, _)| largest <= *most).map_or(UNITS[1], |(_, units)| *units);
    let available = (gpu.shared_memory.saturating_sub(reserved()) / dtype.size() / room.max(1)).max(1);
    let teams = (UNITS[0] / units).max(1).min(1 << available.ilog2());
    let chunks = sides.div_ceil(columns.max(1)).max(1);
    let elems = elems(gpu, inputs[0].dtype())?;
    let form = Form { kind, columns, room, teams, double: dtype == DType::F64 };
    let dummy = |bytes: usize| gpu.alloc(bytes);
    let (last, first) = outputs.split_last().expect("the outputs were checked");
    let middle = first.get(1);
    // SAFETY: the buffers hold `count` matrices and right-hand sides; dummies are neither read nor written.
    unsafe {
        let spare = || BufferArg::from_raw_parts(dummy(8), 1);
        lu_in_shared_memory::launch_unchecked(
            gpu.client(),
            gpu.cubes((count * chunks).div_ceil(teams)),
            CubeDim::new_1d((units.min(gpu.max_units as usize) * teams) as u32),
            address_type(inputs[0].numel().max(first[0].numel())),
            inputs[0].gpu_arg()?,
            match inputs.get(1) {
                Some(b) => b.gpu_arg()?,
                None => spare(),
            },
            first[0].gpu_arg()?,
            match middle {
                Some(second) if kind == Kind::Slogdet => second.gpu_arg()?,
                _ => spare(),
            },
            match middle {
                Some(pivots) if kind == Kind::Lu => pivots.gpu_arg()?,
                _ => spare(),
            },
            last.gpu_arg()?,
            count,
            m as u32,
            n as u32,
            sides as u32,
            InputScalar::new(f64::NAN, elems[1]),
            InputScalar::new(f64::NEG_INFINITY, elems[1]),
            form,
            elems,
        );
    }
    Ok(())
}

/// Right-hand sides that a cube keeps beside a matrix in shared memory; none if the matrix alone is too large.
fn columns_beside(gpu: &Gpu, dtype: DType, [m, n]: [usize; 2], sides: usize) -> Option<usize> {
    let most = COLUMNS.iter().copied().find(|&c| c >= sides).unwrap_or(COLUMNS[3]);
    let room = |columns: usize| fits_rectangle(gpu, dtype, m, n + columns);
    let wanted = COLUMNS.iter().copied().rev().filter(|&c| c <= most && (c > 0) == (sides > 0));
    // Cubes that share a matrix each factor it again.
    wanted.into_iter().find(|&c| room(c).is_some()).filter(|&c| sides <= 4 * c.max(1))
}

/// Bytes that factors take beside inputs and outputs.
pub(crate) fn scratch(gpu: &Gpu, [count, m, n]: [usize; 3], dtype: DType) -> usize {
    let in_one_launch = m == n && crate::rows::fit(gpu, n) || columns_beside(gpu, working(dtype), [m, n], 0).is_some();
    if count == 0 || in_one_launch { 0 } else { large::scratch(gpu, [count, m, n], dtype) }
}

/// Bytes of shared memory for the search of all teams, their flags, and what a compiler may add.
fn reserved() -> usize {
    UNITS[0] / TEAMS[0].1 * (SEARCH * 12 + 4) + 256
}

/// Elements of shared memory, by powers of two so that few kernels are compiled, for `m` odd rows of at least `n` columns;
/// none if a cube has less beside the scratch of the search.
fn fits_rectangle(gpu: &Gpu, dtype: DType, m: usize, n: usize) -> Option<usize> {
    let most = gpu.shared_memory.saturating_sub(reserved()) / dtype.size();
    let needed = m.checked_mul(n | 1)?.max(1);
    if m <= 1024 { rounded(gpu, needed, most) } else { None }
}

/// Elimination with partial pivoting; columns of factors are divided by their pivots at the end.
#[cube(launch_unchecked, address_type = "dynamic")]
fn lu_in_shared_memory<I: Float, A: Float>(
    a: &[I],
    b: &[I],
    out: &mut [I],
    second: &mut [I],
    pivots: &mut [i32],
    status: &mut [i32],
    count: usize,
    m: u32,
    n: u32,
    sides: u32,
    nan: InputScalar,
    below: InputScalar,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut memory = Shared::<[A]>::new_slice(comptime!(form.teams * form.room));
    let mut sizes = Shared::<[A]>::new_slice(comptime!(form.teams * SEARCH));
    let mut places = Shared::<[u32]>::new_slice(comptime!(form.teams * SEARCH));
    // Whether an element is not finite.
    let mut bad = Shared::<[i32]>::new_slice(form.teams);
    let columns = comptime!(form.columns);
    let units = (CUBE_DIM / comptime!(form.teams as u32)) as usize;
    let team = UNIT_POS as usize / units;
    let unit = UNIT_POS as usize % units;
    let (m, n, sides) = (m as usize, n as usize, sides as usize);
    let chunks = if comptime!(form.columns == 0) { 1usize.runtime() } else { sides.div_ceil(comptime!(if form.columns == 0 { 1 } else { form.columns })) };
    let wanted = CUBE_POS * comptime!(form.teams) + team;
    let matrix = min(wanted / chunks, count - 1);
    let inside = wanted / chunks < count;
    let first = wanted % chunks * columns;
    let width = n + columns;
    let row = width + 1 - width % 2;
    let tile = team * comptime!(form.room);
    if unit == 0 {
        bad[team] = 0i32;
    }
    sync_cube();
    load::<I, A>(a, b, &mut memory, &mut bad, tile, team, unit, units, matrix, first, m, n, sides, row, form);
    sync_cube();
    let mut info = 0i32 - bad[team];
    let mut sign = A::new(1.0);
    let steps = min(m, n);
    let x = unit % comptime!(ACROSS);
    let y = unit / comptime!(ACROSS);
    let down = units / comptime!(ACROSS);
    for k in 0..steps {
        let mut found = Array::<A>::new(1usize);
        let p = find_pivot::<A>(&memory, &mut sizes, &mut places, &mut found, tile, team, unit, k, m, row) as usize;
        let zero = found[0] <= A::new(0.0);
        if zero && info == 0i32 {
            info = k as i32 + 1i32;
        }
        if p != k {
            sign = -sign;
            exchange::<A>(&mut memory, tile + k * row, tile + p * row, unit, units, width);
        }
        if comptime!(form.kind == Kind::Lu) && unit == 0 && inside {
            pivots[matrix * steps + k] = select(bad[team] != 0i32, 0i32, p as i32 + 1i32);
        }
        sync_cube();
        let pivot = select(zero, A::new(1.0), memory[tile + k * row + k]);
        let mut i = k + 1 + y;
        while i < m {
            let factor = memory[tile + i * row + k] / pivot;
            let mut j = k + 1 + x;
            while j < width {
                memory[tile + i * row + j] = memory[tile + i * row + j] - factor * memory[tile + k * row + j];
                j += comptime!(ACROSS);
            }
            i += down;
        }
        sync_cube();
    }
    if comptime!(form.columns > 0) {
        back::<A>(&mut memory, tile, unit, units, n, row, columns);
    }
    if inside {
        write::<I, A>(out, &memory, tile, unit, units, matrix, first, m, n, sides, row, info, nan.get::<A>(), form);
        if unit == 0 && first == 0 {
            if comptime!(form.kind == Kind::Det || form.kind == Kind::Slogdet) {
                let mut numbers = Array::<A>::new(2usize);
                determinants::<A>(&memory, &mut numbers, tile, n, row, sign, below.get::<A>(), form);
                let failed = info < 0i32;
                out[matrix] = I::cast_from(select(failed, nan.get::<A>(), numbers[0]));
                if comptime!(form.kind == Kind::Slogdet) {
                    second[matrix] = I::cast_from(select(failed, nan.get::<A>(), numbers[1]));
                }
                status[matrix] = min(info, 0i32);
            } else {
                status[matrix] = info;
            }
        }
    }
}

/// Copies a matrix and its right-hand sides, or those of the identity, and flags what is not finite.
#[cube]
fn load<I: Float, A: Float>(
    a: &[I],
    b: &[I],
    memory: &mut Shared<[A]>,
    bad: &mut Shared<[i32]>,
    tile: usize,
    team: usize,
    unit: usize,
    units: usize,
    matrix: usize,
    first: usize,
    m: usize,
    n: usize,
    sides: usize,
    row: usize,
    #[comptime] form: Form,
) {
    let columns = comptime!(form.columns);
    let mut e = unit;
    while e < m * n {
        let value = A::cast_from(a[matrix * m * n + e]);
        memory[tile + e / n * row + e % n] = value;
        if not_finite::<A>(value, form.double) {
            bad[team] = 1i32;
        }
        e += units;
    }
    if comptime!(form.columns > 0) {
        let mut e = unit;
        while e < n * columns {
            let (i, v) = (e / columns, e % columns);
            let mut value = A::new(0.0);
            if comptime!(form.kind == Kind::Inv) {
                value = select(i == first + v, A::new(1.0), A::new(0.0));
            } else if first + v < sides {
                value = A::cast_from(b[(matrix * n + i) * sides + first + v]);
            }
            memory[tile + i * row + n + v] = value;
            e += units;
        }
        if comptime!(form.kind == Kind::Solve) {
            let mut e = unit;
            while e < n * sides {
                if not_finite::<A>(A::cast_from(b[matrix * n * sides + e]), form.double) {
                    bad[team] = 1i32;
                }
                e += units;
            }
        }
    }
}

/// Substitution with the upper triangle; the division by the diagonal is put off.
#[cube]
fn back<A: Float>(
    memory: &mut Shared<[A]>,
    tile: usize,
    unit: usize,
    units: usize,
    n: usize,
    row: usize,
    #[comptime] columns: usize,
) {
    for q in 0..n {
        let p = n - 1 - q;
        let found = memory[tile + p * row + p];
        let pivot = select(found == A::new(0.0), A::new(1.0), found);
        let mut e = unit;
        while e < p * columns {
            let (i, v) = (e / columns, n + e % columns);
            let solved = memory[tile + p * row + v] / pivot;
            memory[tile + i * row + v] = memory[tile + i * row + v] - memory[tile + i * row + p] * solved;
            e += units;
        }
        sync_cube();
    }
}

/// Writes the factors or the solutions.
#[cube]
fn write<I: Float, A: Float>(
    out: &mut [I],
    memory: &Shared<[A]>,
    tile: usize,
    unit: usize,
    units: usize,
    matrix: usize,
    first: usize,
    m: usize,
    n: usize,
    sides: usize,
    row: usize,
    info: i32,
    nan: A,
    #[comptime] form: Form,
) {
    let columns = comptime!(form.columns);
    if comptime!(form.kind == Kind::Lu) {
        let mut e = unit;
        while e < m * n {
            let (i, j) = (e / n, e % n);
            let mut value = memory[tile + i * row + j];
            if j < i {
                let found = memory[tile + j * row + j];
                value = value / select(found == A::new(0.0), A::new(1.0), found);
            }
            out[matrix * m * n + e] = I::cast_from(select(info < 0i32, nan, value));
            e += units;
        }
    }
    if comptime!(form.columns > 0) {
        let mut e = unit;
        while e < n * columns {
            let (i, v) = (e / columns, e % columns);
            if first + v < sides {
                let found = memory[tile + i * row + i];
                let value = memory[tile + i * row + n + v] / select(found == A::new(0.0), A::new(1.0), found);
                out[(matrix * n + i) * sides + first + v] = I::cast_from(select(info != 0i32, nan, value));
            }
            e += units;
        }
    }
}

/// The determinant; or its sign, and the logarithm of its magnitude.
#[cube]
fn determinants<A: Float>(
    memory: &Shared<[A]>,
    numbers: &mut Array<A>,
    tile: usize,
    n: usize,
    row: usize,
    sign: A,
    below: A,
    #[comptime] form: Form,
) {
    let mut state = Array::<A>::new(2usize);
    state[0] = sign;
    state[1] = A::new(0.0);
    for k in 0..n {
        scaled::<A>(&mut state, memory[tile + k * row + k]);
    }
    if comptime!(form.kind == Kind::Slogdet) {
        numbers[0] = signum::<A>(state[0]);
        numbers[1] = select(state[0] == A::new(0.0), below, logarithm::<A>(&state, form.double));
    } else {
        numbers[0] = unscaled::<A>(&state);
    }
}

/// Exchanges two rows.
#[cube]
fn exchange<A: Float>(memory: &mut Shared<[A]>, one: usize, other: usize, unit: usize, units: usize, width: usize) {
    let mut j = unit;
    while j < width {
        let (above, below) = (memory[one + j], memory[other + j]);
        memory[one + j] = below;
        memory[other + j] = above;
        j += units;
    }
}

/// The row of the largest magnitude in column `k` from row `k` on; the magnitude goes to `found`. Has one barrier.
#[cube]
fn find_pivot<A: Float>(
    memory: &Shared<[A]>,
    sizes: &mut Shared<[A]>,
    places: &mut Shared<[u32]>,
    found: &mut Array<A>,
    tile: usize,
    team: usize,
    unit: usize,
    k: usize,
    m: usize,
    row: usize,
) -> u32 {
    let search = team * comptime!(SEARCH);
    if unit < comptime!(SEARCH) {
        let mut size = A::new(-1.0);
        let mut place = k;
        let mut i = k + unit;
        while i < m {
            let candidate = memory[tile + i * row + k].abs();
            let more = candidate > size;
            size = select(more, candidate, size);
            place = select(more, i, place);
            i += comptime!(SEARCH);
        }
        sizes[search + unit] = size;
        places[search + unit] = place as u32;
    }
    sync_cube();
    let mut size = A::new(-1.0);
    let mut place = k as u32;
    for i in 0..comptime!(SEARCH) {
        let candidate = sizes[search + i];
        let own = places[search + i];
        // Of equal magnitudes the first row counts, as in LAPACK.
        let more = candidate > size || (candidate == size && own < place);
        size = select(more, candidate, size);
        place = select(more, own, place);
    }
    found[0] = size;
    place
}
