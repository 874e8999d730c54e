//! Extrema on the GPU, by integer keys in the order of the values.
//!
//! Keys keep NaN (the largest of all) and the equality of both zeros on devices whose comparisons of floats may assume
//! that there is no NaN. A state is a key, and for an index the step at which it was first. Long lines leave a state for
//! each chunk to a second launch, which numbers chunks as the first numbers steps.

use super::Kind;
use crate::reduction::grid::{BATCH, FOUR_CUBES, Grid, THREE_CUBES, place};
use bimetal_core::gpu::math::Arithmetic;
use bimetal_core::{DType, Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// What a launch reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stage {
    /// Whether the largest or the smallest element is wanted.
    largest: bool,
    /// Whether its index is wanted, not its value.
    indexed: bool,
    /// The input holds states, not elements.
    from_states: bool,
    /// The output holds states, not results.
    to_states: bool,
    /// The device has PTX's addition, which gives every NaN the same bits.
    native: bool,
}

impl Stage {
    const fn parts(self) -> usize {
        1 + self.indexed as usize
    }
}

pub(super) fn extrema(gpu: &Gpu, kind: Kind, x: &Tensor, dims: (usize, usize, usize), y: &mut Tensor) -> Result<()> {
    let (outer, n, inner) = dims;
    if y.numel() == 0 {
        return Ok(());
    }
    if inner > u32::MAX as usize {
        return Err(Error::argument(kind.name(), "x", format!("fewer than 2^32 columns, got {inner}")));
    }
    let cubes = if kind.indexed() == (inner == 1) { THREE_CUBES } else { FOUR_CUBES };
    let grid = Grid::new(gpu, (outer, n, inner), gpu.vector(x.dtype()), Some(cubes));
    let (largest, indexed) = (kind.largest(), kind.indexed());
    let native = gpu.arithmetic() == Arithmetic::Native;
    let stage = Stage { largest, indexed, from_states: false, to_states: grid.chunks > 1, native };
    let input = (x.gpu_handle()?, gpu.elem(x.dtype())?);
    // An i64 is written as two words.
    let output = (y.gpu_handle()?, gpu.elem(if indexed { DType::U32 } else { y.dtype() })?);
    if grid.chunks == 1 {
        launch(gpu, grid, stage, input, output, 0);
        return Ok(());
    }
    let key = gpu.elem(DType::I32)?;
    let states = gpu.alloc(grid.results() * stage.parts() * 4);
    launch(gpu, grid, stage, input, (states.clone(), key), 0);
    let widest = if inner == 1 { 1 } else { gpu.vector(DType::I32) };
    let merge = Grid::new(gpu, (outer, grid.chunks, inner), widest, None);
    let stage = Stage { from_states: true, to_states: false, ..stage };
    let chunk = grid.chunk * if grid.lanes { grid.width } else { 1 };
    launch(gpu, merge, stage, (states, key), output, chunk as u32);
    Ok(())
}

/// `elements` is the length of the chunks whose states are read.
fn launch(gpu: &Gpu, grid: Grid, stage: Stage, x: (Handle, ElemType), y: (Handle, ElemType), elements: u32) {
    let parts = stage.parts();
    let read = grid.outer * grid.steps * grid.columns + usize::from(grid.tail > 0);
    let words = if stage.to_states { parts } else { 1 + usize::from(stage.indexed) };
    // SAFETY: `x` holds that many vectors (states: of each part), `y` the words of the grid's results or states, and
    // units without a line read a valid place and write nothing.
    unsafe {
        choose::launch_unchecked(
            gpu.client(),
            gpu.cubes(grid.cubes()),
            CubeDim::new_1d(grid.units),
            grid.address(),
            grid.width,
            BufferArg::from_raw_parts(x.0, read * if stage.from_states { parts } else { 1 }),
            BufferArg::from_raw_parts(y.0, grid.results() * words),
            grid.outer,
            grid.steps,
            grid.columns,
            grid.chunk,
            grid.chunks,
            grid.tail as u32,
            elements,
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
fn choose<F: Numeric, O: Numeric, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [O],
    outer: usize,
    steps: usize,
    columns: usize,
    chunk: usize,
    chunks: usize,
    tail: u32,
    elements: u32,
    across: u32,
    team: u32,
    #[comptime] units: u32,
    #[comptime] lanes: bool,
    #[comptime] stage: Stage,
    #[define(F)] _input: ElemType,
    #[define(O)] _output: ElemType,
) {
    let parts = comptime!(stage.parts());
    let mut scratch = Shared::<[Vector<i32, N>]>::new_slice(comptime!(units as usize * parts));
    let at = place(outer, steps, columns, chunk, chunks, across, team);
    // A unit without steps of its own looks at another's, which changes nothing.
    let last = max(at.count, 1u32) - 1;
    let mut state = Array::<Vector<i32, N>>::new(parts);
    let mut k = min(at.member, last);
    state[0] = keys::<F, N>(x[at.base + k as usize * columns], stage);
    if comptime!(stage.indexed) {
        state[1] = Vector::new(k as i32);
    }
    k += team;
    while k <= last {
        let mut values = Array::<Vector<i32, N>>::new(BATCH);
        #[unroll]
        for i in 0..BATCH {
            let step = min(k + i as u32 * team, last);
            values[i] = keys::<F, N>(x[at.base + step as usize * columns], stage);
        }
        #[unroll]
        for i in 0..BATCH {
            let step = min(k + i as u32 * team, last);
            if comptime!(stage.indexed) {
                let above = values[i].greater_than(&state[0]);
                state[1] = select_many(above, Vector::new(step as i32), state[1]);
            }
            state[0] = state[0].max(values[i]);
        }
        k += BATCH as u32 * team;
    }
    choose_team::<N>(&mut state, &mut scratch, at.member, across, team, stage);
    if at.active && at.member == 0 {
        if comptime!(lanes) {
            choose_lane::<N>(&mut state, stage);
            if comptime!(!stage.from_states) {
                choose_tail::<F, N>(&mut state, x, steps, at.count, tail, at.last, stage);
            }
        }
        let width = if comptime!(lanes) { 1usize } else { N::value() };
        let place = (at.line * columns + at.column) * width;
        #[unroll]
        for lane in 0..width {
            if comptime!(stage.to_states) {
                let results = outer * chunks * columns * width;
                #[unroll]
                for p in 0..parts {
                    y[p * results + place + lane] = O::cast_from(state[p].extract(lane));
                }
            } else if comptime!(stage.indexed) {
                let step = u32::cast_from(state[1].extract(lane));
                let mut low = step;
                let mut high = 0u32;
                if comptime!(stage.from_states) {
                    // The winning chunk's number, and in its state the offset.
                    let winner = outer * steps * columns + at.base + step as usize * columns;
                    let offset = u32::cast_from(Vector::<i32, N>::cast_from(x[winner]).extract(lane));
                    low = step * elements + offset;
                    high = step.mul_hi(elements) + select(low < offset, 1u32, 0u32);
                }
                y[2 * (place + lane)] = O::cast_from(low);
                y[2 * (place + lane) + 1] = O::cast_from(high);
            } else {
                y[place + lane] = O::cast_from(value(state[0].extract(lane), stage));
            }
        }
    }
}

/// Keys of values, or keys as they were left.
#[cube]
fn keys<F: Numeric, N: Size>(v: Vector<F, N>, #[comptime] stage: Stage) -> Vector<i32, N> {
    if comptime!(stage.from_states) {
        Vector::cast_from(v)
    } else if comptime!(stage.native) {
        native_keys::<N>(Vector::cast_from(v), stage.largest)
    } else {
        let bits = Vector::<i32, N>::reinterpret(Vector::<f32, N>::cast_from(v));
        let magnitude = bits & Vector::new(i32::MAX);
        let negative = bits.less_than(&Vector::new(0i32));
        let down = Vector::new(0i32) - magnitude;
        let key = if comptime!(stage.largest) {
            select_many(negative, down, magnitude)
        } else {
            select_many(negative, magnitude, down)
        };
        select_many(magnitude.greater_than(&Vector::new(0x7f80_0000i32)), Vector::new(i32::MAX), key)
    }
}

/// [`keys`] in a third of the instructions: x + 0 or 0 − x has one zero and one NaN, whose bits are the largest integer.
#[cube]
fn native_keys<N: Size>(v: Vector<f32, N>, #[comptime] largest: bool) -> Vector<i32, N> {
    let mut keys = Vector::<i32, N>::new(0i32);
    #[unroll]
    for lane in 0..N::value() {
        let x = v.extract(lane);
        let one: f32;
        if comptime!(largest) {
            gpu_asm!("add.f32 {}, {}, 0f00000000;", out(_) one, in(_) x, options(pure, nomem));
        } else {
            gpu_asm!("sub.f32 {}, 0f00000000, {};", out(_) one, in(_) x, options(pure, nomem));
        }
        let bits = i32::reinterpret(one);
        keys.insert(lane, bits ^ ((bits >> 31i32) & i32::MAX));
    }
    keys
}

/// The value of a key; NaN for the largest.
#[cube]
fn value(key: i32, #[comptime] stage: Stage) -> f32 {
    let bits = if comptime!(stage.native) {
        let bits = key ^ ((key >> 31i32) & i32::MAX);
        if comptime!(stage.largest) { bits } else { bits ^ i32::MIN }
    } else {
        let ordered = if comptime!(stage.largest) { key } else { 0i32 - key };
        select(ordered < 0, (0i32 - ordered) | i32::MIN, ordered)
    };
    f32::reinterpret(select(key == i32::MAX, i32::MAX, bits))
}

/// Takes over another state where its key is larger, or its index smaller at equal keys.
#[cube]
fn merge<N: Size>(state: &mut Array<Vector<i32, N>>, other: &Array<Vector<i32, N>>, #[comptime] stage: Stage) {
    if comptime!(stage.indexed) {
        let above = other[0].greater_than(&state[0]);
        let equal = other[0].equal(&state[0]);
        let first = select_many(equal, state[1].min(other[1]), state[1]);
        state[1] = select_many(above, other[1], first);
    }
    state[0] = state[0].max(other[0]);
}

/// Merges the states of a team, in a tree, into its first member's.
#[cube]
fn choose_team<N: Size>(
    state: &mut Array<Vector<i32, N>>,
    scratch: &mut Shared<[Vector<i32, N>]>,
    member: u32,
    across: u32,
    team: u32,
    #[comptime] stage: Stage,
) {
    let parts = comptime!(stage.parts());
    let mut other = Array::<Vector<i32, N>>::new(parts);
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
            merge::<N>(state, &other, stage);
        }
        half /= 2;
    }
}

/// Merges the lanes of a state into its first, with indices of elements in place of steps.
#[cube]
fn choose_lane<N: Size>(state: &mut Array<Vector<i32, N>>, #[comptime] stage: Stage) {
    let parts = comptime!(stage.parts());
    let width = N::value();
    if comptime!(stage.indexed) {
        let mut index = state[1] * Vector::new(width as i32);
        #[unroll]
        for lane in 0..width {
            index.insert(lane, index.extract(lane) + lane as i32);
        }
        state[1] = index;
    }
    let mut other = Array::<Vector<i32, N>>::new(parts);
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
        merge::<N>(state, &other, stage);
    }
}

/// Merges the elements after the last whole vector into the first lane.
#[cube]
fn choose_tail<F: Numeric, N: Size>(
    state: &mut Array<Vector<i32, N>>,
    x: &[Vector<F, N>],
    steps: usize,
    count: u32,
    tail: u32,
    last: bool,
    #[comptime] stage: Stage,
) {
    if tail > 0 && last {
        let rest = keys::<F, N>(x[steps], stage);
        #[unroll]
        for lane in 0..N::value() {
            if (lane as u32) < tail {
                let mut other = Array::<Vector<i32, N>>::new(comptime!(stage.parts()));
                other[0] = Vector::new(rest.extract(lane));
                if comptime!(stage.indexed) {
                    other[1] = Vector::new((count * N::value() as u32 + lane as u32) as i32);
                }
                merge::<N>(state, &other, stage);
            }
        }
    }
}
