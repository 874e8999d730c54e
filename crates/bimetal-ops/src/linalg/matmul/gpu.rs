//! Products on the GPU: tiles of the result with both operands in shared memory; where one operand is a few vectors, one
//! pass over the other with 16-byte loads.

use super::plan::Plan;
use super::{Kind, MatmulParams};
use bimetal_core::gpu::kernel::{address_type, row_vector};
use bimetal_core::{DType, Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How products are divided.
struct Params {
    /// Rows and columns that a unit sums.
    unit: usize,
    /// Units along each side of a large and of a small tile: 128×128 and 64×64 results.
    large_side: usize,
    small_side: usize,
    /// Steps of the inner dimension in shared memory: tiles of 128 take 16.5 KiB of f32.
    depth: usize,
    /// Most vectors of the small operand for one pass over the large one.
    vectors: usize,
    /// Units of a cube that passes over an operand.
    units: usize,
    /// Of those, the ones that share a line of the large operand, and the neighbouring columns of the others.
    team: usize,
    lanes: usize,
    /// Rows that a unit loads before it multiplies, so that enough bytes are on their way.
    ahead: usize,
}

const PARAMS: Params =
    Params { unit: 8, large_side: 16, small_side: 8, depth: 16, vectors: 8, units: 256, team: 32, lanes: 16, ahead: 4 };

/// The code that computes a product.
enum Way {
    /// Tiles, with this many units along each side.
    Tiles(usize),
    /// The large operand's lines run along the sum; the small operand is the left one if the flag is set.
    Lines(bool),
    /// The large operand's columns run along the sum.
    Columns(bool),
}

/// What is launched for each matrix or row of matrices of the batch.
struct Launch<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    operands: [&'a Tensor; 2],
    d: &'a Tensor,
    alpha: f64,
    /// Products, and the strides of the operands from one to the next.
    batch: [usize; 3],
    /// First elements of the operands and of the result.
    starts: [usize; 3],
}

pub(super) fn matmul(
    gpu: &Gpu,
    kind: Kind,
    plan: &Plan,
    params: &MatmulParams,
    operands: [&Tensor; 2],
    d: &mut Tensor,
) -> Result<()> {
    if plan.numel() == 0 {
        return Ok(());
    }
    if plan.m.max(plan.n).max(plan.k) > i32::MAX as usize {
        let expected = format!("extents of fewer than 2^31 elements, got {}", operands[1].shape());
        return Err(Error::argument(kind.name(), kind.arguments()[1], expected));
    }
    // One axis of the batch goes into a launch; the others are launches of their own.
    let (last, outer) = match plan.batch.split_last() {
        Some((&last, outer)) => (last, outer.iter().map(|axis| axis[0]).product()),
        None => ([1, 0, 0], 1),
    };
    for index in 0..outer {
        let [a, b] = plan.starts(index * last[0]);
        let starts = [a, b, index * last[0] * plan.m * plan.n];
        let launch = Launch { gpu, plan, operands, d, alpha: params.alpha, batch: last, starts };
        run(&launch)?;
    }
    Ok(())
}

/// Runs the products of a launch: the one place where their implementation is chosen.
fn run(launch: &Launch) -> Result<()> {
    match choose(launch) {
        Way::Tiles(side) => launch.tiles(side),
        Way::Lines(left) => launch.lines(left),
        Way::Columns(left) => launch.columns(left),
    }
}

fn choose(launch: &Launch) -> Way {
    let Plan { m, n, k, a, b, .. } = *launch.plan;
    // WGSL has no i8: its words of four go through the tiles, which take elements one by one.
    if m.min(n) <= PARAMS.vectors && k > 1 && launch.operands[0].dtype() != DType::I8 {
        // With few on both sides, the one that is contiguous along the sum is read as the large one.
        let left = if m.max(n) <= PARAMS.vectors { b[0] == 1 || a[1] != 1 } else { m <= n };
        let (small, large) = if left { (a[1], [b[1], b[0]]) } else { (b[0], a) };
        if large[1] == 1 && small == 1 {
            return Way::Lines(left);
        }
        if large[0] == 1 {
            return Way::Columns(left);
        }
    }
    // Small tiles until large ones would occupy every processor.
    let large = PARAMS.large_side * PARAMS.unit;
    let tiles = launch.batch[0] * m.div_ceil(large) * n.div_ceil(large);
    let fits = launch.gpu.max_units as usize >= PARAMS.large_side * PARAMS.large_side;
    Way::Tiles(if fits && tiles >= 2 * launch.gpu.processors as usize { PARAMS.large_side } else { PARAMS.small_side })
}

impl Launch<'_> {
    fn elements(&self) -> AddressType {
        address_type(self.operands[0].numel().max(self.operands[1].numel()).max(self.d.numel()))
    }

    /// The types of the operands (words of four for i8), of the sums and of the result.
    fn elems(&self) -> Result<[ElemType; 3]> {
        let (operands, sums) = match self.operands[0].dtype() {
            DType::F64 => (DType::F64, DType::F64),
            DType::I8 => (DType::U32, DType::I32),
            dtype => (dtype, DType::F32),
        };
        Ok([self.gpu.elem(operands)?, self.gpu.elem(sums)?, self.gpu.elem(self.d.dtype())?])
    }

    fn tiles(&self, side: usize) -> Result<()> {
        let Plan { m, n, k, a, b, .. } = *self.plan;
        let tile = side * PARAMS.unit;
        let total = self.batch[0] * m.div_ceil(tile) * n.div_ceil(tile);
        let elems = self.elems()?;
        // SAFETY: the strides and extents are those of the buffers, and the kernel drops what is past them.
        unsafe {
            tiles::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(total),
                CubeDim::new_1d((side * side) as u32),
                self.elements(),
                self.operands[0].gpu_arg()?,
                self.operands[1].gpu_arg()?,
                self.d.gpu_arg()?,
                m as u32,
                n as u32,
                k as u32,
                self.batch[0],
                self.starts[0],
                self.starts[1],
                self.starts[2],
                self.batch[1],
                self.batch[2],
                if a[1] == 1 { a[0] } else { a[1] },
                if b[1] == 1 { b[0] } else { b[1] },
                InputScalar::new(self.alpha, elems[1]),
                a[1] == 1,
                b[1] == 1,
                side,
                self.operands[0].dtype() == DType::I8,
                elems,
            );
        }
        Ok(())
    }

    /// The strides of the small operand (from vector to vector, along one), of the large one (from line to line, along
    /// the sum) and of the result (for each of them).
    fn sides(&self, left: bool) -> [[usize; 2]; 3] {
        let Plan { n, a, b, .. } = *self.plan;
        if left { [a, [b[1], b[0]], [n, 1]] } else { [[b[1], b[0]], a, [1, n]] }
    }

    /// The small and the large operand, with first element and stride of the batch.
    fn ordered(&self, left: bool) -> [(&Tensor, usize, usize); 2] {
        let operand = |i: usize| (self.operands[i], self.starts[i], self.batch[i + 1]);
        if left { [operand(0), operand(1)] } else { [operand(1), operand(0)] }
    }

    fn lines(&self, left: bool) -> Result<()> {
        let Plan { m, n, k, .. } = *self.plan;
        let (count, lines) = if left { (m, n) } else { (n, m) };
        let [small, large, out] = self.sides(left);
        let [x, y] = self.ordered(left);
        // Every line and vector starts on a whole vector of this width.
        let starts = [x.1, x.2, y.1, y.2, small[0], large[0], k];
        let width = starts.iter().fold(self.gpu.vector(x.0.dtype()), |width, &n| row_vector(width, n));
        let units = PARAMS.units.min(self.gpu.max_units as usize);
        let elems = self.elems()?;
        // SAFETY: as for tiles.
        unsafe {
            lines_of_large::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.batch[0] * lines.div_ceil(units / PARAMS.team)),
                CubeDim::new_1d(units as u32),
                self.elements(),
                width,
                x.0.gpu_arg()?,
                y.0.gpu_arg()?,
                self.d.gpu_arg()?,
                lines,
                k / width,
                self.batch[0],
                x.1 / width,
                y.1 / width,
                self.starts[2],
                x.2 / width,
                y.2 / width,
                m * n,
                small[0] / width,
                large[0] / width,
                out[0],
                out[1],
                InputScalar::new(self.alpha, elems[1]),
                count,
                units,
                elems,
            );
        }
        Ok(())
    }

    fn columns(&self, left: bool) -> Result<()> {
        let Plan { m, n, k, .. } = *self.plan;
        let (count, lines) = if left { (m, n) } else { (n, m) };
        let [small, large, out] = self.sides(left);
        let [x, y] = self.ordered(left);
        let starts = [y.1, y.2, large[1], lines];
        let width = starts.iter().fold(self.gpu.vector(x.0.dtype()), |width, &n| row_vector(width, n));
        let units = PARAMS.units.min(self.gpu.max_units as usize);
        let elems = self.elems()?;
        // SAFETY: as for tiles.
        unsafe {
            columns_of_large::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.batch[0] * (lines / width).div_ceil(PARAMS.lanes)),
                CubeDim::new_1d(units as u32),
                self.elements(),
                width,
                x.0.gpu_arg()?,
                y.0.gpu_arg()?,
                self.d.gpu_arg()?,
                lines / width,
                k,
                self.batch[0],
                x.1,
                y.1 / width,
                self.starts[2],
                x.2,
                y.2 / width,
                m * n,
                small[0],
                small[1],
                large[1] / width,
                out[0],
                out[1],
                InputScalar::new(self.alpha, elems[1]),
                count,
                units,
                elems,
            );
        }
        Ok(())
    }
}

/// A cube sums a square tile of one product: both operands go through shared memory, `PARAMS.depth` steps at a time, and a
/// unit keeps 8×8 sums whose rows and columns are `side` apart, so that neighbours touch neighbouring memory.
///
/// A's stride is that of its other axis than the one with stride 1, which is the sum's where `a_along`; B's likewise,
/// where `b_across` says that columns are neighbours.
#[cube(launch_unchecked, address_type = "dynamic")]
fn tiles<I: Numeric, A: Numeric, O: Numeric>(
    a: &[I],
    b: &[I],
    d: &mut [O],
    m: u32,
    n: u32,
    k: u32,
    products: usize,
    a_start: usize,
    b_start: usize,
    d_start: usize,
    a_batch: usize,
    b_batch: usize,
    a_stride: usize,
    b_stride: usize,
    alpha: InputScalar,
    #[comptime] a_along: bool,
    #[comptime] b_across: bool,
    #[comptime] side: usize,
    #[comptime] bytes: bool,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let tile = comptime!(side * PARAMS.unit);
    let depth = comptime!(PARAMS.depth);
    let per_unit = comptime!(PARAMS.unit);
    // A row is one longer than the tile, so that units that write a column hit different banks.
    let row = comptime!(tile + 1);
    let loads = comptime!(tile * depth / (side * side));
    let mut a_tile = Shared::<[A]>::new_slice(comptime!(row * depth));
    let mut b_tile = Shared::<[A]>::new_slice(comptime!(row * depth));
    let unit = UNIT_POS as usize;
    let (x, y) = (unit % side, unit / side);
    let across = n.div_ceil(tile as u32) as usize;
    let down = m.div_ceil(tile as u32) as usize;
    let product = CUBE_POS / (across * down);
    let at = CUBE_POS % (across * down);
    let first_row = (at / across) * tile;
    let first_column = (at % across) * tile;
    // Cubes past the last product have no rows.
    let rows = select(product < products, m, 0u32);
    let a_from = a_start + product * a_batch;
    let b_from = b_start + product * b_batch;
    let mut sums = Array::<A>::new(comptime!(per_unit * per_unit));
    #[unroll]
    for i in 0..comptime!(per_unit * per_unit) {
        sums[i] = A::from_int(0);
    }
    let mut step = 0u32;
    while step < k {
        #[unroll]
        for i in 0..loads {
            let e = unit + i * comptime!(side * side);
            let (line, l) = if comptime!(a_along) { (e / depth, e % depth) } else { (e % tile, e / tile) };
            let (i_row, i_l) = (first_row + line, step as usize + l);
            let mut value = A::from_int(0);
            if (i_row as u32) < rows && (i_l as u32) < k {
                let place = if comptime!(a_along) { i_row * a_stride + i_l } else { i_l * a_stride + i_row };
                value = element::<I, A>(a, a_from + place, bytes);
            }
            a_tile[l * row + line] = value;
        }
        #[unroll]
        for i in 0..loads {
            let e = unit + i * comptime!(side * side);
            let (line, l) = if comptime!(b_across) { (e % tile, e / tile) } else { (e / depth, e % depth) };
            let (i_column, i_l) = (first_column + line, step as usize + l);
            let mut value = A::from_int(0);
            if (i_column as u32) < n && (i_l as u32) < k && rows > 0u32 {
                let place = if comptime!(b_across) { i_l * b_stride + i_column } else { i_column * b_stride + i_l };
                value = element::<I, A>(b, b_from + place, bytes);
            }
            b_tile[l * row + line] = value;
        }
        sync_cube();
        for l in 0..depth {
            let mut left = Array::<A>::new(per_unit);
            let mut right = Array::<A>::new(per_unit);
            #[unroll]
            for i in 0..per_unit {
                left[i] = a_tile[l * row + y + i * side];
                right[i] = b_tile[l * row + x + i * side];
            }
            #[unroll]
            for i in 0..per_unit {
                #[unroll]
                for j in 0..per_unit {
                    let s = comptime!(i * per_unit + j);
                    sums[s] = sums[s] + left[i] * right[j];
                }
            }
        }
        sync_cube();
        step += comptime!(depth as u32);
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for i in 0..per_unit {
        let i_row = first_row + y + i * side;
        #[unroll]
        for j in 0..per_unit {
            let i_column = first_column + x + j * side;
            if (i_row as u32) < rows && (i_column as u32) < n {
                let place = d_start + (product * m as usize + i_row) * n as usize + i_column;
                d[place] = O::cast_from(sums[comptime!(i * per_unit + j)] * factor);
            }
        }
    }
}

/// Element `place`: of words that hold four i8 each if `bytes`.
#[cube]
fn element<I: Numeric, A: Numeric>(x: &[I], place: usize, #[comptime] bytes: bool) -> A {
    if comptime!(bytes) {
        let byte = (u32::cast_from(x[place / 4]) >> ((place % 4) as u32 * 8u32)) & 255u32;
        A::cast_from(i32::cast_from(byte) - select(byte > 127u32, 256i32, 0i32))
    } else {
        A::cast_from(x[place])
    }
}

/// A team of units sums one line of the large operand with each vector of the small one.
#[cube(launch_unchecked, address_type = "dynamic")]
fn lines_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
    x: &[Vector<I, N>],
    y: &[Vector<I, N>],
    d: &mut [O],
    lines: usize,
    k: usize,
    products: usize,
    x_start: usize,
    y_start: usize,
    d_start: usize,
    x_batch: usize,
    y_batch: usize,
    d_batch: usize,
    x_stride: usize,
    y_stride: usize,
    d_vector: usize,
    d_line: usize,
    alpha: InputScalar,
    #[comptime] count: usize,
    #[comptime] units: usize,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let team = comptime!(PARAMS.team);
    let at_once = comptime!(units / PARAMS.team);
    let mut scratch = Shared::<[A]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let member = unit % team;
    let cubes = lines.div_ceil(at_once);
    let product = CUBE_POS / cubes;
    let line = CUBE_POS % cubes * at_once + unit / team;
    let active = product < products && line < lines;
    let mut sums = Array::<Vector<A, N>>::new(count);
    #[unroll]
    for v in 0..count {
        sums[v] = Vector::new(A::from_int(0));
    }
    if active {
        let x_from = x_start + product * x_batch;
        let y_from = y_start + product * y_batch + line * y_stride;
        let mut l = member;
        while l < k {
            let value: Vector<A, N> = Vector::cast_from(y[y_from + l]);
            #[unroll]
            for v in 0..count {
                let other: Vector<A, N> = Vector::cast_from(x[x_from + v * x_stride + l]);
                sums[v] = sums[v] + other * value;
            }
            l += team;
        }
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for v in 0..count {
        let mut sum = sums[v].extract(0usize);
        #[unroll]
        for i in 1..N::value() {
            sum += sums[v].extract(i);
        }
        sync_cube();
        scratch[unit] = sum;
        #[unroll]
        for level in 0..comptime!(team.ilog2() as usize) {
            let half = comptime!(team >> (level + 1));
            sync_cube();
            if member < half {
                scratch[unit] = scratch[unit] + scratch[unit + half];
            }
        }
        if active && member == 0 {
            d[d_start + product * d_batch + v * d_vector + line * d_line] = O::cast_from(scratch[unit] * factor);
        }
    }
}

/// A cube sums neighbouring vectors of the large operand's rows with each vector of the small one: its units take rows a
/// fixed step apart.
#[cube(launch_unchecked, address_type = "dynamic")]
fn columns_of_large<I: Numeric, A: Numeric, O: Numeric, N: Size>(
    x: &[I],
    y: &[Vector<I, N>],
    d: &mut [O],
    columns: usize,
    k: usize,
    products: usize,
    x_start: usize,
    y_start: usize,
    d_start: usize,
    x_batch: usize,
    y_batch: usize,
    d_batch: usize,
    x_stride: usize,
    x_step: usize,
    y_stride: usize,
    d_vector: usize,
    d_line: usize,
    alpha: InputScalar,
    #[comptime] count: usize,
    #[comptime] units: usize,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let lanes = comptime!(PARAMS.lanes);
    let slices = comptime!(units / PARAMS.lanes);
    let ahead = comptime!(PARAMS.ahead);
    let mut scratch = Shared::<[Vector<A, N>]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let slice = unit / lanes;
    let cubes = columns.div_ceil(lanes);
    let product = CUBE_POS / cubes;
    let column = CUBE_POS % cubes * lanes + unit % lanes;
    let active = product < products && column < columns;
    let mut sums = Array::<Vector<A, N>>::new(count);
    #[unroll]
    for v in 0..count {
        sums[v] = Vector::new(A::from_int(0));
    }
    if active {
        let x_from = x_start + product * x_batch;
        let y_from = y_start + product * y_batch + column;
        let mut l = slice;
        while l + comptime!((ahead - 1) * slices) < k {
            let mut values = Array::<Vector<I, N>>::new(ahead);
            #[unroll]
            for i in 0..ahead {
                values[i] = y[y_from + (l + i * slices) * y_stride];
            }
            #[unroll]
            for i in 0..ahead {
                let value: Vector<A, N> = Vector::cast_from(values[i]);
                #[unroll]
                for v in 0..count {
                    let factor = A::cast_from(x[x_from + v * x_stride + (l + i * slices) * x_step]);
                    sums[v] = sums[v] + Vector::new(factor) * value;
                }
            }
            l += comptime!(ahead * slices);
        }
        while l < k {
            let value: Vector<A, N> = Vector::cast_from(y[y_from + l * y_stride]);
            #[unroll]
            for v in 0..count {
                let factor = A::cast_from(x[x_from + v * x_stride + l * x_step]);
                sums[v] = sums[v] + Vector::new(factor) * value;
            }
            l += slices;
        }
    }
    let factor = alpha.get::<A>();
    #[unroll]
    for v in 0..count {
        sync_cube();
        scratch[unit] = sums[v];
        #[unroll]
        for level in 0..comptime!(slices.ilog2() as usize) {
            let half = comptime!(slices >> (level + 1));
            sync_cube();
            if slice < half {
                scratch[unit] = scratch[unit] + scratch[unit + half * lanes];
            }
        }
        if active && slice == 0 {
            let place = d_start + product * d_batch + v * d_vector;
            #[unroll]
            for i in 0..N::value() {
                d[place + (column * N::value() + i) * d_line] = O::cast_from(scratch[unit].extract(i) * factor);
            }
        }
    }
}
