//! LU on the GPU: matrices that fit in a cube's shared memory in one launch, with their right-hand sides; larger ones by
//! blocks in the device's memory.

mod large;

use super::Kind;
use super::cpu::Extents;
use crate::blocks::{elems, not_finite, working};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units that share a matrix of up to so many rows.
const TEAMS: [(usize, usize); 4] = [(8, 16), (16, 32), (32, 64), (64, 128)];
/// Units of a cube, for several small matrices and for a larger one.
const UNITS: [usize; 2] = [64, 256];
/// Units that share a row of the update.
const ACROSS: usize = 8;
/// Units that look for a pivot.
const SEARCH: usize = 16;
/// Right-hand sides of a cube: at most so many.
const COLUMNS: [usize; 5] = [0, 1, 4, 16, 64];

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
    let dtype = working(inputs[0].dtype());
    let sides = if kind == Kind::Inv { n } else { k };
    let most = COLUMNS.iter().copied().find(|&c| c >= sides).unwrap_or(COLUMNS[4]);
    let room = |columns: usize| fits_rectangle(gpu, dtype, m, n + columns);
    let columns = COLUMNS.iter().copied().rev().filter(|&c| c <= most && (c > 0) == (sides > 0)).find(|&c| room(c).is_some());
    // Cubes that share a matrix each factor it again.
    let Some(columns) = columns.filter(|&c| sides <= 4 * c.max(1)) else {
        return large::run(gpu, kind, extents, inputs, outputs);
    };
    let room = room(columns).unwrap_or(0);
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

/// Bytes of shared memory for the search of all teams, their flags, and what a compiler may add.
fn reserved() -> usize {
    UNITS[0] / TEAMS[0].1 * (SEARCH * 12 + 4) + 256
}

/// Elements of shared memory, by powers of two so that few kernels are compiled, for `m` odd rows of at least `n` columns;
/// none if a cube has less beside the scratch of the search.
fn fits_rectangle(gpu: &Gpu, dtype: DType, m: usize, n: usize) -> Option<usize> {
    let most = gpu.shared_memory.saturating_sub(reserved()) / dtype.size();
    let needed = m.checked_mul(n | 1)?.max(1);
    let rounded = needed.next_power_of_two().max(64);
    let rounded = if rounded <= most { rounded } else { most };
    (needed <= rounded && m <= 1024).then_some(rounded)
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
    let search = team * comptime!(SEARCH);
    if unit == 0 {
        bad[team] = 0i32;
    }
    sync_cube();
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
    sync_cube();
    let mut info = 0i32 - bad[team];
    let mut sign = A::new(1.0);
    let steps = min(m, n);
    let x = unit % comptime!(ACROSS);
    let y = unit / comptime!(ACROSS);
    let down = units / comptime!(ACROSS);
    for k in 0..steps {
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
        let p = place as usize;
        let zero = size <= A::new(0.0);
        if zero && info == 0i32 {
            info = k as i32 + 1i32;
        }
        if p != k {
            sign = -sign;
            let mut j = unit;
            while j < width {
                let other = memory[tile + p * row + j];
                memory[tile + p * row + j] = memory[tile + k * row + j];
                memory[tile + k * row + j] = other;
                j += units;
            }
        }
        if comptime!(form.kind == Kind::Lu) {
            if unit == 0 && inside {
                pivots[matrix * steps + k] = select(bad[team] != 0i32, 0i32, p as i32 + 1i32);
            }
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
    if inside {
        if comptime!(form.kind == Kind::Lu) {
            let mut e = unit;
            while e < m * n {
                let (i, j) = (e / n, e % n);
                let mut value = memory[tile + i * row + j];
                if j < i {
                    let found = memory[tile + j * row + j];
                    value = value / select(found == A::new(0.0), A::new(1.0), found);
                }
                out[matrix * m * n + e] = I::cast_from(select(info < 0i32, nan.get::<A>(), value));
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
                    out[(matrix * n + i) * sides + first + v] = I::cast_from(select(info != 0i32, nan.get::<A>(), value));
                }
                e += units;
            }
        }
        if unit == 0 && first == 0 {
            if comptime!(form.kind == Kind::Det || form.kind == Kind::Slogdet) {
                let mut product = sign;
                if comptime!(form.kind == Kind::Det) {
                    let mut state = Array::<A>::new(2usize);
                    state[0] = sign;
                    state[1] = A::new(0.0);
                    for k in 0..n {
                        scaled::<A>(&mut state, memory[tile + k * row + k]);
                    }
                    product = unscaled::<A>(&state);
                } else {
                    let mut state = Array::<A>::new(2usize);
                    state[0] = sign;
                    state[1] = A::new(0.0);
                    for k in 0..n {
                        scaled::<A>(&mut state, memory[tile + k * row + k]);
                    }
                    product = signum::<A>(state[0]);
                    let value = select(product == A::new(0.0), below.get::<A>(), logarithm::<A>(&state, form.double));
                    second[matrix] = I::cast_from(select(info < 0i32, nan.get::<A>(), value));
                }
                out[matrix] = I::cast_from(select(info < 0i32, nan.get::<A>(), product));
                status[matrix] = min(info, 0i32);
            } else {
                status[matrix] = info;
            }
        }
    }
}

/// Multiplies `state[0]`, whose power of 2⁴⁰ is kept apart in `state[1]`, so that only the result can overflow.
#[cube]
pub(super) fn scaled<A: Float>(state: &mut Array<A>, factor: A) {
    let one = A::new(1.0);
    let mut value = factor;
    #[unroll]
    for turn in 0..5 {
        if comptime!(turn == 4) {
            value = value * state[0];
        }
        let large = value.abs() >= A::new(1.099_511_6e12);
        let small = value.abs() < A::new(9.094_947e-13) && value != A::new(0.0);
        value = value * select(large, A::new(9.094_947e-13), select(small, A::new(1.099_511_6e12), one));
        state[1] = state[1] + select(large, one, select(small, -one, A::new(0.0)));
    }
    state[0] = value;
}

/// −1, 0 or 1.
#[cube]
pub(super) fn signum<A: Float>(x: A) -> A {
    select(x > A::new(0.0), A::new(1.0), select(x < A::new(0.0), A::new(-1.0), A::new(0.0)))
}

/// The logarithm of the magnitude of the product, if it is not 0. In f64, which shading languages have no logarithm of, by
/// the series of ln((1 + s)/(1 − s)).
#[cube]
pub(super) fn logarithm<A: Float>(state: &Array<A>, #[comptime] double: bool) -> A {
    let zero = state[0] == A::new(0.0);
    let mut value = select(zero, A::new(1.0), state[0].abs());
    // 40·ln 2 in parts of 24 bits.
    let mut log = state[1] * A::new(27.725_887);
    if comptime!(double) {
        log += state[1] * (A::new(LN_SECOND) + A::new(LN_THIRD));
        let mut power = A::new(0.0);
        for _ in 0..41u32 {
            let (large, small) = (value > A::new(1.5), value < A::new(0.75));
            value = value * select(large, A::new(0.5), select(small, A::new(2.0), A::new(1.0)));
            power += select(large, A::new(1.0), select(small, A::new(-1.0), A::new(0.0)));
        }
        log += power * (A::new(27.725_887) + A::new(LN_SECOND) + A::new(LN_THIRD)) / A::new(40.0);
        let s = (value - A::new(1.0)) / (value + A::new(1.0));
        let square = s * s;
        let mut sum = A::new(0.0);
        #[unroll]
        for i in 0..16 {
            let divisor = comptime!((31 - 2 * i) as f32);
            sum = sum * square + A::new(1.0) / A::new(divisor);
        }
        log += A::new(2.0) * s * sum;
    } else {
        log += value.ln();
    }
    log
}

/// What 40·ln 2 exceeds its f32 by, and what that leaves.
const LN_SECOND: f32 = -7.61861685e-08;
const LN_THIRD: f32 = -3.51327328e-15;

/// The product itself.
#[cube]
pub(super) fn unscaled<A: Float>(state: &Array<A>) -> A {
    let mut value = state[0];
    // Past 2¹⁶⁰⁰ every number has become infinite or zero.
    let up = state[1] > A::new(0.0);
    let step = select(up, A::new(1.099_511_6e12), A::new(9.094_947e-13));
    let turns = min(state[1].abs(), A::new(40.0));
    let mut turn = A::new(0.0);
    while turn < turns {
        value = value * step;
        turn += A::new(1.0);
    }
    value
}
