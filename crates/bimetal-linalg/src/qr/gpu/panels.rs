//! The kernels for large matrices, which are kept transposed, a column after another: panels of a few columns are
//! factorised by one cube, whose units hold rows in registers, and applied to each further column by a cube.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::columns::{is_finite, magnitude_bits, normalizer, not_a_number};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Rows and columns of the squares in which matrices are transposed.
pub const TILE: usize = 32;
/// Units that transpose a square.
pub const TILE_UNITS: usize = 256;

/// What the kernels' code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Columns of a panel.
    pub width: usize,
    /// Rows of each unit; only for factorising.
    pub rows: usize,
    /// Units of a cube, and the most planes that they make.
    pub units: usize,
    pub planes: usize,
    /// The computation is in f64.
    pub double: bool,
}

/// Replaces each of `count` values of the units by its sum over the cube.
#[cube]
fn sum_all<A: Float>(values: &mut Array<A>, scratch: &mut Shared<[A]>, #[comptime] count: usize) {
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    sync_cube();
    #[unroll]
    for j in 0..count {
        let partial = plane_sum(values[j]);
        if UNIT_POS_PLANE == 0 {
            scratch[plane * count + j] = partial;
        }
        values[j] = A::from_int(0);
    }
    sync_cube();
    for i in 0..CUBE_DIM.div_ceil(PLANE_DIM) {
        #[unroll]
        for j in 0..count {
            values[j] += scratch[i as usize * count + j];
        }
    }
}

/// The powers of two with which columns are multiplied, 0 for columns that are not finite: a cube for each 32 columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn column_scales<I: Float, A: Float>(
    a: &[I],
    scales: &mut [A],
    batch: usize,
    m: usize,
    n: usize,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut found = Shared::<[u32]>::new_slice(TILE_UNITS);
    let groups = n.div_ceil(TILE);
    let matrix = CUBE_POS / groups;
    let column = CUBE_POS % groups * TILE + UNIT_POS as usize % TILE;
    let mut largest = 0u32;
    if matrix < batch && column < n {
        let mut i = UNIT_POS as usize / TILE;
        while i < m {
            let x = A::cast_from(a[(matrix * m + i) * n + column]);
            largest = max(largest, magnitude_bits::<A>(x, double));
            i += comptime!(TILE_UNITS / TILE);
        }
    }
    found[UNIT_POS as usize] = largest;
    sync_cube();
    if (UNIT_POS as usize) < TILE && matrix < batch && column < n {
        let mut all = 0u32;
        #[unroll]
        for i in 0..comptime!(TILE_UNITS / TILE) {
            all = max(all, found[UNIT_POS as usize + i * TILE]);
        }
        scales[matrix * n + column] = select(is_finite(all, double), normalizer::<A>(all, double), A::from_int(0));
    }
}

/// The status of each matrix from its columns' scales: a cube for each.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn statuses<A: Float>(
    scales: &[A],
    status: &mut [i32],
    batch: usize,
    n: usize,
    #[define(A)] _elem: ElemType,
) {
    let mut flag = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        flag[0] = 0u32;
    }
    sync_cube();
    if CUBE_POS < batch {
        let mut column = UNIT_POS as usize;
        while column < n {
            if scales[CUBE_POS * n + column] == A::from_int(0) {
                flag[0] = 1u32;
            }
            column += CUBE_DIM as usize;
        }
    }
    sync_cube();
    if UNIT_POS == 0 && CUBE_POS < batch {
        status[CUBE_POS] = select(flag[0] != 0u32, -1i32, 0i32);
    }
}

/// Transposes and scales matrices: `x` has `stride` elements for each column, those past its rows zero.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn load<I: Float, A: Float>(
    a: &[I],
    scales: &[A],
    x: &mut [A],
    batch: usize,
    m: usize,
    n: usize,
    stride: usize,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let down = stride.div_ceil(TILE);
    let across = n.div_ceil(TILE);
    let matrix = CUBE_POS / (down * across);
    let row = CUBE_POS % (down * across) / across * TILE;
    let column = CUBE_POS % across * TILE;
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        let mut value = A::from_int(0);
        if matrix < batch && row + far < m && column + near < n {
            let scale = scales[matrix * n + column + near];
            value = A::cast_from(a[(matrix * m + row + far) * n + column + near]) * scale;
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        if matrix < batch && column + far < n && row + near < stride {
            x[(matrix * n + column + far) * stride + row + near] = tile[near * comptime!(TILE + 1) + far];
        }
    }
}

/// What of a transposed matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// The elements.
    Whole,
    /// Those on and above the diagonal, scaled back; zeros below it.
    Triangle,
    /// The same, with the reflectors below the diagonal.
    Packed,
}

/// Transposes matrices back, `rows`×`columns` of each; NaN for those that failed.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn store<I: Float, A: Float>(
    x: &[A],
    reflectors: &[A],
    scales: &[A],
    status: &[i32],
    out: &mut [I],
    batch: usize,
    rows: usize,
    columns: usize,
    reflector_count: usize,
    stride: usize,
    #[comptime] stores: Stores,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[A]>::new_slice(comptime!(TILE * (TILE + 1)));
    let down = rows.div_ceil(TILE);
    let across = columns.div_ceil(TILE);
    let matrix = CUBE_POS / (down * across);
    let row = CUBE_POS % (down * across) / across * TILE;
    let column = CUBE_POS % across * TILE;
    let near = UNIT_POS as usize % TILE;
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        let (i, j) = (row + near, column + far);
        let mut value = A::from_int(0);
        if matrix < batch && i < rows && j < columns {
            let at = (matrix * columns + j) * stride + i;
            if comptime!(stores == Stores::Whole) {
                value = x[at];
            } else if i <= j {
                let scale = magnitude_bits::<A>(scales[matrix * columns + j], double);
                value = x[at] * normalizer::<A>(scale, double);
            } else if comptime!(stores == Stores::Packed) {
                value = reflectors[(matrix * reflector_count + j) * stride + i];
            }
        }
        tile[far * comptime!(TILE + 1) + near] = value;
    }
    sync_cube();
    #[unroll]
    for step in 0..comptime!(TILE * TILE / TILE_UNITS) {
        let far = UNIT_POS as usize / TILE + comptime!(step * TILE_UNITS / TILE);
        if matrix < batch && row + far < rows && column + near < columns {
            let value = tile[near * comptime!(TILE + 1) + far];
            let bad = status[matrix] != 0i32;
            out[(matrix * rows + row + far) * columns + column + near] =
                I::cast_from(select(bad, not_a_number::<A>(), value));
        }
    }
}

/// Stores τ; NaN for matrices that failed.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn store_tau<I: Float, A: Float>(
    tau: &[A],
    status: &[i32],
    out: &mut [I],
    total: usize,
    k: usize,
    stride: usize,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < total {
        let bad = status[i / k] != 0i32;
        out[i] = I::cast_from(select(bad, not_a_number::<A>(), tau[i / k * stride + i % k]));
    }
}

/// The first `columns` columns of identities, a column after another.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn identity<A: Float>(x: &mut [A], total: usize, columns: usize, stride: usize, #[define(A)] _elem: ElemType) {
    let i = ABSOLUTE_POS;
    if i < total {
        x[i] = select(i % stride == i / stride % columns, A::from_int(1), A::from_int(0));
    }
}

/// Factorises the columns `first..first + used` of each matrix, by a cube: R goes back to `x`, the reflectors with their
/// zeros and ones to `v`, and the products of their pairs to `gram`. The others of `width` reflectors are zero.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn panel<A: Float>(
    x: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    gram: &mut [A],
    batch: usize,
    m: usize,
    n: usize,
    reflectors: usize,
    stride: usize,
    first: usize,
    gram_start: usize,
    used: u32,
    #[comptime] form: Code,
    #[define(A)] _elem: ElemType,
) {
    let (width, rows) = (comptime!(form.width), comptime!(form.rows));
    let mut scratch = Shared::<[A]>::new_slice(comptime!(form.planes * width));
    let mut pivots = Shared::<[A]>::new_slice(comptime!(2 * width));
    let matrix = CUBE_POS;
    let active = matrix < batch;
    let unit = UNIT_POS as usize;
    let zero = A::from_int(0);
    let mut held = Array::<A>::new(comptime!(width * rows));
    #[unroll]
    for c in 0..width {
        #[unroll]
        for r in 0..rows {
            let row = first + unit + r * form.units;
            let at = comptime!(c * rows + r);
            held[at] = zero;
            if active && (c as u32) < used && row < m {
                held[at] = x[(matrix * n + first + c) * stride + row];
            }
        }
    }
    #[unroll]
    for j in 0..width {
        let mut sums = Array::<A>::new(width);
        let near = select(UNIT_POS > j as u32, held[comptime!(j * rows)], zero);
        #[unroll]
        for c in 0..width {
            sums[c] = near * held[comptime!(c * rows)];
            #[unroll]
            for r in 1..rows {
                sums[c] += held[comptime!(j * rows + r)] * held[comptime!(c * rows + r)];
            }
        }
        if UNIT_POS == j as u32 {
            #[unroll]
            for c in 0..width {
                pivots[comptime!(j % 2 * width + c)] = held[comptime!(c * rows)];
            }
        }
        sum_all::<A>(&mut sums, &mut scratch, width);
        let head = pivots[comptime!(j % 2 * width + j)];
        let none = sums[j] == zero || sums[j] + head * head < least_norm::<A>(form.double);
        let norm = (head * head + sums[j]).sqrt();
        let beta = select(head > zero, -norm, norm);
        let factor = select(none, zero, A::from_int(1) / (head - beta));
        let scalar = select(none, zero, (beta - head) / beta);
        #[unroll]
        for c in 0..width {
            let product = pivots[comptime!(j % 2 * width + c)] + factor * sums[c];
            if comptime!(c > j) {
                let weight = scalar * product;
                let step = weight * factor;
                let own = held[comptime!(c * rows)];
                let below = own - step * held[comptime!(j * rows)];
                held[comptime!(c * rows)] =
                    select(UNIT_POS > j as u32, below, select(UNIT_POS == j as u32, own - weight, own));
                #[unroll]
                for r in 1..rows {
                    let other = held[comptime!(j * rows + r)];
                    held[comptime!(c * rows + r)] -= step * other;
                }
            } else if comptime!(c < j) {
                if UNIT_POS == 0 && active {
                    gram[gram_start + (matrix * width + c) * width + j] = product;
                }
            }
        }
        let own = held[comptime!(j * rows)];
        let diagonal = select(none, head, beta);
        held[comptime!(j * rows)] =
            select(UNIT_POS > j as u32, own * factor, select(UNIT_POS == j as u32, diagonal, own));
        #[unroll]
        for r in 1..rows {
            held[comptime!(j * rows + r)] *= factor;
        }
        if UNIT_POS == 0 && active {
            tau[matrix * reflectors + first + j] = scalar;
        }
    }
    if active {
        #[unroll]
        for c in 0..width {
            let start = (matrix * reflectors + first + c) * stride;
            let own = held[comptime!(c * rows)];
            if UNIT_POS <= c as u32 && (c as u32) < used && first + unit < m {
                x[(matrix * n + first + c) * stride + first + unit] = own;
            }
            let one = select(UNIT_POS == c as u32, A::from_int(1), zero);
            let mut row = unit;
            while row < first {
                v[start + row] = zero;
                row += form.units;
            }
            #[unroll]
            for r in 0..rows {
                let row = first + unit + r * form.units;
                if row < stride {
                    if comptime!(r == 0) {
                        v[start + row] = select(UNIT_POS > c as u32, own, one);
                    } else {
                        v[start + row] = held[comptime!(c * rows + r)];
                    }
                }
            }
            row = first + unit + comptime!(rows * form.units);
            while row < stride {
                v[start + row] = zero;
                row += form.units;
            }
        }
    }
}

/// The square of a norm below which a column, whose largest element was of order 1, counts as zero: what is dropped is far
/// below the rounding of the steps before.
#[cube]
fn least_norm<A: Float>(#[comptime] double: bool) -> A {
    if comptime!(double) {
        // 2^-900
        A::reinterpret(123u64 << 52u64)
    } else {
        A::new(1e-24f32)
    }
}

/// Applies a panel's reflectors to columns `from..from + count` of `x`, which has `columns`: the first one first if
/// `forward` (that is Qᵀ), else the last one (Q). A cube takes a column.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn apply<A: Float>(
    x: &mut [A],
    v: &[A],
    tau: &[A],
    gram: &[A],
    batch: usize,
    m: usize,
    columns: usize,
    reflectors: usize,
    stride: usize,
    first: usize,
    from: usize,
    count: usize,
    gram_start: usize,
    #[comptime] forward: bool,
    #[comptime] form: Code,
    #[define(A)] _elem: ElemType,
) {
    let width = comptime!(form.width);
    let mut scratch = Shared::<[A]>::new_slice(comptime!(form.planes * width));
    let matrix = CUBE_POS / count;
    let active = matrix < batch;
    let start = (matrix * columns + from + CUBE_POS % count) * stride;
    let basis = (matrix * reflectors + first) * stride;
    let mut sums = Array::<A>::new(width);
    #[unroll]
    for c in 0..width {
        sums[c] = A::from_int(0);
    }
    if active {
        let mut row = first + UNIT_POS as usize;
        while row < m {
            let value = x[start + row];
            #[unroll]
            for c in 0..width {
                sums[c] += value * v[basis + c * stride + row];
            }
            row += form.units;
        }
    }
    sum_all::<A>(&mut sums, &mut scratch, width);
    if active {
        #[unroll]
        for step in 0..width {
            let j = comptime!(if forward { step } else { width - 1 - step });
            #[unroll]
            for before in 0..step {
                let i = comptime!(if forward { before } else { width - 1 - before });
                let (low, high) = (comptime!(if i < j { i } else { j }), comptime!(if i < j { j } else { i }));
                let earlier = sums[i];
                sums[j] -= earlier * gram[gram_start + (matrix * width + low) * width + high];
            }
            sums[j] *= tau[matrix * reflectors + first + j];
        }
        let mut row = first + UNIT_POS as usize;
        while row < m {
            let mut value = x[start + row];
            #[unroll]
            for c in 0..width {
                value -= sums[c] * v[basis + c * stride + row];
            }
            x[start + row] = value;
            row += form.units;
        }
    }
}
