//! Sums on the GPU: a unit adds batches of vectors in pairs, a cube adds its units in a tree, and the partial states of
//! long lines are added by a second launch.
//!
//! A state is one vector for a sum, `[Σ mid², Σ big², Σ small²]` for a norm (Blue's three accumulators) and
//! `[n, mean, variance]` for a variance (merged by Chan's formula, in a form that overflows only with its result).

use super::Kind;
use crate::reduction::grid::{BATCH, FOUR_CUBES, Grid, THREE_CUBES, is_nan_bits, place};
use bimetal_core::gpu::kernel::vector_max;
use bimetal_core::{DType, Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// What a state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Sum,
    Norm,
    Spread,
}

impl State {
    const fn parts(self) -> usize {
        match self {
            Self::Sum => 1,
            Self::Norm | Self::Spread => 3,
        }
    }
}

/// What a launch reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stage {
    state: State,
    /// The input holds states, not elements.
    from_states: bool,
    /// The output holds states, not results.
    to_states: bool,
    /// The result is the root of what `state` gives.
    root: bool,
}

pub(super) fn sums(
    gpu: &Gpu,
    kind: Kind,
    correction: usize,
    x: &Tensor,
    dims: (usize, usize, usize),
    y: &mut Tensor,
) -> Result<()> {
    let (outer, n, inner) = dims;
    if y.numel() == 0 {
        return Ok(());
    }
    if inner > u32::MAX as usize {
        return Err(Error::argument(kind.name(), "x", format!("fewer than 2^32 columns, got {inner}")));
    }
    let state = match kind {
        Kind::Sum | Kind::Mean => State::Sum,
        Kind::L2Norm => State::Norm,
        Kind::Variance | Kind::StandardDeviation => State::Spread,
    };
    // The divisor of no elements is 0 or negative: the mean is 0·∞ and the variance NaN by definition.
    let scale = match kind {
        Kind::Sum | Kind::L2Norm => 1.0,
        Kind::Mean => 1.0 / n as f64,
        _ if n > correction => n as f64 / (n - correction) as f64,
        _ => f64::NAN,
    } as f32;
    let cubes = if state == State::Sum && inner == 1 { THREE_CUBES } else { FOUR_CUBES };
    let grid = Grid::new(gpu, (outer, n, inner), gpu.vector(x.dtype()), Some(cubes));
    let stage = Stage { state, from_states: false, to_states: grid.chunks > 1, root: kind == Kind::StandardDeviation };
    let (input, elem) = (x.gpu_handle()?, gpu.elem(x.dtype())?);
    if grid.chunks == 1 {
        launch(gpu, grid, stage, (input, elem), (y.gpu_handle()?, elem), scale);
        return Ok(());
    }
    let float = gpu.elem(DType::F32)?;
    let states = gpu.alloc(grid.results() * state.parts() * 4);
    launch(gpu, grid, stage, (input, elem), (states.clone(), float), scale);
    let widest = if inner == 1 { 1 } else { gpu.vector(DType::F32) };
    let merge = Grid::new(gpu, (outer, grid.chunks, inner), widest, None);
    let stage = Stage { from_states: true, to_states: false, ..stage };
    launch(gpu, merge, stage, (states, float), (y.gpu_handle()?, elem), scale);
    Ok(())
}

fn launch(gpu: &Gpu, grid: Grid, stage: Stage, x: (Handle, ElemType), y: (Handle, ElemType), scale: f32) {
    let parts = stage.state.parts();
    let read = grid.outer * grid.steps * grid.columns + usize::from(grid.tail > 0);
    // SAFETY: `x` holds that many vectors (states: of each part), `y` the grid's results or states, and units without a
    // line read a valid place and write nothing.
    unsafe {
        reduce::launch_unchecked(
            gpu.client(),
            gpu.cubes(grid.cubes()),
            CubeDim::new_1d(grid.units),
            grid.address(),
            grid.width,
            BufferArg::from_raw_parts(x.0, read * if stage.from_states { parts } else { 1 }),
            BufferArg::from_raw_parts(y.0, grid.results() * if stage.to_states { parts } else { 1 }),
            grid.outer,
            grid.steps,
            grid.columns,
            grid.chunk,
            grid.chunks,
            grid.tail as u32,
            scale,
            grid.across,
            grid.team,
            grid.units,
            grid.lanes,
            stage,
            x.1,
            y.1,
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn reduce<F: Float, O: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [O],
    outer: usize,
    steps: usize,
    columns: usize,
    chunk: usize,
    chunks: usize,
    tail: u32,
    scale: f32,
    across: u32,
    team: u32,
    #[comptime] units: u32,
    #[comptime] lanes: bool,
    #[comptime] stage: Stage,
    #[define(F)] _input: ElemType,
    #[define(O)] _output: ElemType,
) {
    let parts = comptime!(stage.state.parts());
    let kind = comptime!(stage.state);
    let mut scratch = Shared::<[Vector<f32, N>]>::new_slice(comptime!(units as usize * parts));
    let at = place(outer, steps, columns, chunk, chunks, across, team);
    let mut state = Array::<Vector<f32, N>>::new(parts);
    #[unroll]
    for p in 0..parts {
        state[p] = Vector::new(0.0f32);
    }
    if comptime!(stage.from_states) {
        let mut other = Array::<Vector<f32, N>>::new(comptime!(BATCH * parts));
        let mut k = at.member;
        while k < at.count {
            // Loaded together: a state at a time would wait for memory as often as there are states.
            #[unroll]
            for i in 0..BATCH {
                let step = k + i as u32 * team;
                #[unroll]
                for p in 0..parts {
                    other[i * parts + p] = Vector::new(0.0f32);
                    if step < at.count {
                        let place = p * outer * steps * columns + at.base + step as usize * columns;
                        other[i * parts + p] = Vector::cast_from(x[place]);
                    }
                }
            }
            #[unroll]
            for i in 0..BATCH {
                merge::<N>(&mut state, &other, comptime!(i * parts), kind);
            }
            k += BATCH as u32 * team;
        }
    } else {
        let mut k = at.member;
        while k < at.count {
            // Loads past the end repeat the last step: a load under a condition waits for the one before it.
            let mut values = Array::<Vector<f32, N>>::new(BATCH);
            #[unroll]
            for i in 0..BATCH {
                let step = min(k + i as u32 * team, at.count - 1);
                values[i] = Vector::cast_from(x[at.base + step as usize * columns]);
            }
            #[unroll]
            for i in 0..BATCH {
                values[i] = select(k + (i as u32) * team < at.count, values[i], Vector::new(0.0f32));
            }
            // Steps of the batch that exist.
            let valid = min((at.count - k).div_ceil(team), BATCH as u32);
            batch::<N>(&mut state, &values, valid, kind);
            k += BATCH as u32 * team;
        }
    }
    add_team::<N>(&mut state, &mut scratch, at.member, across, team, kind);
    if at.active && at.member == 0 {
        if comptime!(lanes) {
            add_lanes::<N>(&mut state, kind);
            if comptime!(!stage.from_states) {
                add_tail::<F, N>(&mut state, x, steps, tail, at.last, kind);
            }
        }
        let width = if comptime!(lanes) { 1usize } else { N::value() };
        let place = (at.line * columns + at.column) * width;
        let results = outer * chunks * columns * width;
        #[unroll]
        for lane in 0..width {
            if comptime!(stage.to_states) {
                #[unroll]
                for p in 0..parts {
                    y[p * results + place + lane] = O::cast_from(state[p].extract(lane));
                }
            } else {
                y[place + lane] = O::cast_from(result::<N>(&state, lane, scale, stage));
            }
        }
    }
}

/// Adds a batch of vectors, of which the first `valid` are elements and the others zero.
#[cube]
fn batch<N: Size>(
    state: &mut Array<Vector<f32, N>>,
    values: &Array<Vector<f32, N>>,
    valid: u32,
    #[comptime] kind: State,
) {
    match kind {
        State::Sum => {
            state[0] = state[0] + total::<N>(values);
        }
        State::Norm => {
            let mut largest = values[0].abs();
            #[unroll]
            for i in 1..BATCH {
                largest = max(largest, values[i].abs());
            }
            let most = vector_max::<N>(largest);
            // Squares next to which those that underflow are nothing. NaN goes either way and reaches an accumulator.
            if most == 0.0f32 || (most > PLAIN && most < BIG) {
                #[unroll]
                for i in 0..BATCH {
                    state[0] = state[0] + values[i] * values[i];
                }
            } else {
                #[unroll]
                for i in 0..BATCH {
                    add_square::<N>(state, values[i]);
                }
            }
        }
        State::Spread => {
            let n = f32::cast_from(valid);
            let share = 1.0f32 / n;
            let mean = total::<N>(values) * Vector::new(share);
            let mut squares = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..BATCH {
                let d = values[i] - mean;
                squares = select((i as u32) < valid, squares + d * d, squares);
            }
            // As in `merge`, but every lane has as many elements.
            let before = state[0].extract(0usize);
            let weight = n / (before + n);
            let rest = before / (before + n);
            let apart = mean - state[1];
            let moved = apart * Vector::new(weight);
            let within = state[2] * Vector::new(rest) + squares * Vector::new(share * weight);
            state[2] = within + moved * (apart * Vector::new(rest));
            state[1] = state[1] + moved;
            state[0] = Vector::new(before + n);
        }
    }
}

/// The sum of a batch, in a tree.
#[cube]
fn total<N: Size>(values: &Array<Vector<f32, N>>) -> Vector<f32, N> {
    let left = (values[0] + values[1]) + (values[2] + values[3]);
    let right = (values[4] + values[5]) + (values[6] + values[7]);
    left + right
}

/// Adds the square of `v` to the accumulator of its magnitude.
#[cube]
fn add_square<N: Size>(state: &mut Array<Vector<f32, N>>, v: Vector<f32, N>) {
    let zero = Vector::<f32, N>::new(0.0f32);
    let a = v.abs();
    let big = a.greater_than(&Vector::new(BIG));
    let small = a.less_than(&Vector::new(SMALL));
    let shrunk = select_many(big, v * Vector::new(SHRINK), zero);
    let grown = select_many(small, v * Vector::new(GROW), zero);
    let middle = select_many(big, zero, select_many(small, zero, v));
    state[0] = state[0] + middle * middle;
    state[1] = state[1] + shrunk * shrunk;
    state[2] = state[2] + grown * grown;
}

/// Adds the state of other elements, which begins at `first`.
#[cube]
fn merge<N: Size>(
    state: &mut Array<Vector<f32, N>>,
    other: &Array<Vector<f32, N>>,
    #[comptime] first: usize,
    #[comptime] kind: State,
) {
    match kind {
        State::Sum => {
            state[0] = state[0] + other[first];
        }
        State::Norm => {
            #[unroll]
            for p in 0..3usize {
                state[p] = state[p] + other[comptime!(first + p)];
            }
        }
        State::Spread => {
            let one = Vector::<f32, N>::new(1.0f32);
            let n = state[0] + other[first];
            let weight = other[first] / n.max(one);
            let rest = one - weight;
            let apart = other[comptime!(first + 1)] - state[1];
            let moved = apart * weight;
            state[2] = state[2] * rest + other[comptime!(first + 2)] * weight + moved * (apart * rest);
            state[1] = state[1] + moved;
            state[0] = n;
        }
    }
}

/// Adds the states of a team, in a tree, into its first member's.
#[cube]
fn add_team<N: Size>(
    state: &mut Array<Vector<f32, N>>,
    scratch: &mut Shared<[Vector<f32, N>]>,
    member: u32,
    across: u32,
    team: u32,
    #[comptime] kind: State,
) {
    let parts = comptime!(kind.parts());
    let mut other = Array::<Vector<f32, N>>::new(parts);
    let mut half = team / 2;
    while half > 0 {
        if member >= half && member < 2 * half {
            #[unroll]
            for p in 0..parts {
                scratch[p * CUBE_DIM as usize + UNIT_POS as usize] = state[p];
            }
        }
        sync_cube();
        if member < half {
            #[unroll]
            for p in 0..parts {
                other[p] = scratch[p * CUBE_DIM as usize + (UNIT_POS + half * across) as usize];
            }
            merge::<N>(state, &other, 0usize, kind);
        }
        half /= 2;
    }
}

/// Adds the lanes of a state into its first.
#[cube]
fn add_lanes<N: Size>(state: &mut Array<Vector<f32, N>>, #[comptime] kind: State) {
    let parts = comptime!(kind.parts());
    let width = N::value();
    let mut other = Array::<Vector<f32, N>>::new(parts);
    #[unroll]
    for level in 0..comptime!(width.ilog2()) {
        let half = comptime!(width >> (level as usize + 1));
        #[unroll]
        for p in 0..parts {
            let mut upper = state[p];
            #[unroll]
            for lane in 0..half {
                upper.insert(lane, state[p].extract(comptime!(lane + half)));
            }
            other[p] = upper;
        }
        merge::<N>(state, &other, 0usize, kind);
    }
}

/// Adds the elements after the last whole vector to the first lane.
#[cube]
fn add_tail<F: Float, N: Size>(
    state: &mut Array<Vector<f32, N>>,
    x: &[Vector<F, N>],
    steps: usize,
    tail: u32,
    last: bool,
    #[comptime] kind: State,
) {
    if tail > 0 && last {
        let rest: Vector<f32, N> = Vector::cast_from(x[steps]);
        #[unroll]
        for lane in 0..N::value() {
            if (lane as u32) < tail {
                let mut values = Array::<Vector<f32, N>>::new(BATCH);
                #[unroll]
                for i in 0..BATCH {
                    values[i] = Vector::new(0.0f32);
                }
                values[0] = Vector::new(rest.extract(lane));
                batch::<N>(state, &values, 1u32, kind);
            }
        }
    }
}

/// The result of a lane.
#[cube]
fn result<N: Size>(
    state: &Array<Vector<f32, N>>,
    #[comptime] lane: usize,
    scale: f32,
    #[comptime] stage: Stage,
) -> f32 {
    let value = state[0].extract(lane);
    match comptime!(stage.state) {
        State::Sum => value * scale,
        State::Norm => {
            let (big, small) = (state[1].extract(lane), state[2].extract(lane));
            let large = (big + value * SHRINK * SHRINK).sqrt() / SHRINK;
            let middle = (value + small / GROW / GROW).sqrt();
            let tiny = small.sqrt() / GROW;
            let norm = select(big > 0.0f32, large, select(value == 0.0f32, tiny, middle));
            // Whichever accumulator a NaN went to.
            let any = value + big + small;
            select(is_nan_bits(value) || is_nan_bits(big) || is_nan_bits(small), any, norm)
        }
        State::Spread => {
            let variance = state[2].extract(lane) * scale;
            if comptime!(stage.root) { variance.sqrt() } else { variance }
        }
    }
}

/// Squares from 2⁻¹⁰⁰ to 2⁸⁰ are added as they are: sums of 2⁴⁸ of them neither overflow nor lose anything.
const BIG: f32 = 1_099_511_627_776.0;
/// 2⁻⁴⁵: next to its square those below 2⁻¹²⁶ do not count.
const PLAIN: f32 = 2.842_170_9e-14;
/// 2⁻⁵⁰
const SMALL: f32 = 8.881_784_2e-16;
/// 2⁻⁷⁶, for values above `BIG`.
const SHRINK: f32 = 1.323_489e-23;
/// 2⁸⁰, for values below `SMALL`.
const GROW: f32 = 1.208_925_8e24;
