//! The kernels for large matrices, which are kept transposed, a column after another: panels of a few columns are
//! factorised by one cube, whose units hold rows in registers, and applied to each further column by a cube.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::ir::ElemType;
use cubecl::prelude::*;

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
    /// Units of a plane, where that is fixed and no less than the panel's columns, else 0.
    pub plane: usize,
    /// The computation is in f64.
    pub double: bool,
}

/// Replaces each of `count` values of the units by its sum over the cube. `scratch` has `count` values for each plane from `from`
/// on, which are not written again before another barrier. `plane` is the size of planes, where it is fixed and at least
/// `count`, else 0.
#[cube]
pub fn sum_all<A: Float>(
    values: &mut Array<A>,
    scratch: &mut Shared<[A]>,
    from: usize,
    #[comptime] count: usize,
    #[comptime] plane: usize,
) {
    let own = from + (UNIT_POS / PLANE_DIM) as usize * count;
    let planes = CUBE_DIM.div_ceil(PLANE_DIM) as usize;
    if comptime!(plane == 0) {
        #[unroll]
        for j in 0..count {
            let partial = plane_sum(values[j]);
            if UNIT_POS_PLANE == 0 {
                scratch[own + j] = partial;
            }
            values[j] = A::from_int(0);
        }
        sync_cube();
        for i in 0..planes {
            #[unroll]
            for j in 0..count {
                values[j] += scratch[from + i * count + j];
            }
        }
    } else {
        // Each step halves the values of a lane and doubles the lanes that share a sum.
        let lane = UNIT_POS_PLANE as usize;
        #[unroll]
        for step in 0..comptime!(count.trailing_zeros()) {
            let half = comptime!(count >> (step + 1));
            let upper = lane & half != 0;
            #[unroll]
            for j in 0..half {
                let (low, high) = (values[j], values[comptime!(j + half)]);
                values[j] = select(upper, high, low) + plane_shuffle_xor(select(upper, low, high), half as u32);
            }
        }
        let partial = lanes_sum::<A>(values[0], count, plane);
        if lane < count {
            scratch[own + lane] = partial;
        }
        sync_cube();
        let mut sum = A::from_int(0);
        let mut i = lane / count;
        while i < planes {
            sum += scratch[from + i * count + lane % count];
            i += comptime!(plane / count);
        }
        let sum = lanes_sum::<A>(sum, count, plane);
        #[unroll]
        for j in 0..count {
            values[j] = plane_shuffle(sum, j as u32);
        }
    }
}

/// The sum of the values of the lanes that are a multiple of `count` apart.
#[cube]
fn lanes_sum<A: Float>(value: A, #[comptime] count: usize, #[comptime] plane: usize) -> A {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!((plane / count).trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!((count << step) as u32));
    }
    sum
}

/// Factorises the columns `first..first + used` of each matrix, by a cube: R goes back to `x`, the reflectors with their
/// zeros, from row `clear` on, and ones to `v`, and their triangle, for which their product is `1 − V·T·Vᵀ`, to `t`. The
/// others of `width` reflectors are zero.
///
/// Columns take turns in the first place: the code of a step is the same for all, as code that runs once is fetched slowly.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn panel<A: Float>(
    x: &mut [A],
    v: &mut [A],
    tau: &mut [A],
    t: &mut [A],
    batch: usize,
    m: usize,
    n: usize,
    reflectors: usize,
    stride: usize,
    first: usize,
    clear: usize,
    t_start: usize,
    used: u32,
    #[comptime] form: Code,
    #[define(A)] _elem: ElemType,
) {
    let (width, rows) = (comptime!(form.width), comptime!(form.rows));
    let mut scratch = Shared::<[A]>::new_slice(comptime!(2 * form.planes * width));
    let mut pivots = Shared::<[A]>::new_slice(comptime!(2 * width));
    let (matrix, unit, active) = (CUBE_POS, UNIT_POS as usize, CUBE_POS < batch);
    let zero = A::from_int(0);
    let place = Place { column: matrix * n + first, line: matrix * reflectors + first, m, stride, first, clear };
    let mut held = Array::<A>::new(comptime!(width * rows));
    load_panel::<A>(&mut held, x, &place, select(active, used, 0u32), form);
    // A row of the triangle.
    let mut line = Array::<A>::new(width);
    #[unroll]
    for c in 0..width {
        line[c] = zero;
    }
    for j in 0..width as u32 {
        let turn = (j % 2) as usize;
        let mut sums = Array::<A>::new(width);
        let near = select(UNIT_POS > j, held[0], zero);
        #[unroll]
        for c in 0..width {
            sums[c] = near * held[comptime!(c * rows)];
            #[unroll]
            for r in 1..rows {
                sums[c] += held[r] * held[comptime!(c * rows + r)];
            }
        }
        if UNIT_POS == j {
            #[unroll]
            for c in 0..width {
                pivots[turn * width + c] = held[comptime!(c * rows)];
            }
        }
        sum_all::<A>(&mut sums, &mut scratch, turn * comptime!(form.planes * width), width, form.plane);
        let head = pivots[turn * width];
        let none = sums[0] == zero || sums[0] + head * head < least_norm::<A>(form.double);
        let norm = (head * head + sums[0]).sqrt();
        let beta = select(head > zero, -norm, norm);
        let factor = select(none, zero, A::from_int(1) / (head - beta));
        let scalar = select(none, zero, (beta - head) / beta);
        let mut total = zero;
        #[unroll]
        for c in 1..width {
            let product = pivots[turn * width + c] + factor * sums[c];
            total += line[c] * product;
            let weight = select(j + (c as u32) < width as u32, scalar * product, zero);
            let step = weight * factor;
            let own = held[comptime!(c * rows)];
            let below = own - step * held[0];
            held[comptime!(c * rows)] = select(UNIT_POS > j, below, select(UNIT_POS == j, own - weight, own));
            #[unroll]
            for r in 1..rows {
                let other = held[r];
                held[comptime!(c * rows + r)] -= step * other;
            }
        }
        let own = held[0];
        let diagonal = select(none, head, beta);
        held[0] = select(UNIT_POS > j, own * factor, select(UNIT_POS == j, diagonal, own));
        #[unroll]
        for r in 1..rows {
            held[r] *= factor;
        }
        rotate::<A>(&mut held, width, rows);
        line[0] = select(UNIT_POS == j, scalar, zero - scalar * total);
        rotate::<A>(&mut line, width, 1usize);
        if UNIT_POS == 0 && active {
            tau[matrix * reflectors + first + j as usize] = scalar;
        }
    }
    if active {
        if unit < width {
            #[unroll]
            for c in 0..width {
                t[t_start + (matrix * width + unit) * width + c] = line[c];
            }
        }
        store_panel::<A>(&held, x, v, &place, used, form);
    }
}

/// Loads the `used` columns of a panel, zeros beside and below them.
#[cube]
fn load_panel<A: Float>(held: &mut Array<A>, x: &mut [A], place: &Place, used: u32, #[comptime] form: Code) {
    #[unroll]
    for c in 0..form.width {
        #[unroll]
        for r in 0..form.rows {
            let row = place.first + UNIT_POS as usize + r * form.units;
            let at = comptime!(c * form.rows + r);
            held[at] = A::from_int(0);
            if (c as u32) < used && row < place.m {
                held[at] = x[(place.column + c) * place.stride + row];
            }
        }
    }
}

/// Moves each of `width` columns of `rows` elements a place ahead, and the first one to the end.
#[cube]
pub fn rotate<A: Float>(held: &mut Array<A>, #[comptime] width: usize, #[comptime] rows: usize) {
    #[unroll]
    for r in 0..rows {
        let first = held[r];
        #[unroll]
        for c in 1..width {
            held[comptime!((c - 1) * rows + r)] = held[comptime!(c * rows + r)];
        }
        held[comptime!((width - 1) * rows + r)] = first;
    }
}

/// Where a panel is: its first column and its first reflector among those of all matrices, its first row, and the first
/// one where reflectors have zeros.
#[derive(CubeType, Clone, Copy)]
struct Place {
    column: usize,
    line: usize,
    m: usize,
    stride: usize,
    first: usize,
    clear: usize,
}

/// Stores the panel's part of R, and its reflectors with their zeros and ones.
#[cube]
fn store_panel<A: Float>(held: &Array<A>, x: &mut [A], v: &mut [A], place: &Place, used: u32, #[comptime] form: Code) {
    let (width, rows) = (comptime!(form.width), comptime!(form.rows));
    let unit = UNIT_POS as usize;
    let zero = A::from_int(0);
    #[unroll]
    for c in 0..width {
        let start = (place.line + c) * place.stride;
        let own = held[comptime!(c * rows)];
        if UNIT_POS <= c as u32 && (c as u32) < used && place.first + unit < place.m {
            x[(place.column + c) * place.stride + place.first + unit] = own;
        }
        let one = select(UNIT_POS == c as u32, A::from_int(1), zero);
        let mut row = place.clear + unit;
        while row < place.first {
            v[start + row] = zero;
            row += form.units;
        }
        #[unroll]
        for r in 0..rows {
            let row = place.first + unit + r * form.units;
            if row < place.stride {
                if comptime!(r == 0) {
                    v[start + row] = select(UNIT_POS > c as u32, own, one);
                } else {
                    v[start + row] = held[comptime!(c * rows + r)];
                }
            }
        }
        row = place.first + unit + comptime!(rows * form.units);
        while row < place.stride {
            v[start + row] = zero;
            row += form.units;
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
    t: &[A],
    batch: usize,
    m: usize,
    columns: usize,
    reflectors: usize,
    stride: usize,
    first: usize,
    from: usize,
    count: usize,
    t_start: usize,
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
    sum_all::<A>(&mut sums, &mut scratch, 0, width, form.plane);
    let mut weights = Shared::<[A]>::new_slice(width);
    let unit = UNIT_POS as usize;
    if active && unit < width {
        let base = t_start + matrix * width * width;
        let mut sum = A::from_int(0);
        #[unroll]
        for c in 0..width {
            let at = if comptime!(forward) { c * width + unit } else { unit * width + c };
            sum += t[base + at] * sums[c];
        }
        weights[unit] = sum;
    }
    sync_cube();
    #[unroll]
    for c in 0..width {
        sums[c] = weights[c];
    }
    if active {
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
