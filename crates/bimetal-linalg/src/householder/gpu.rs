//! Reflectors on the GPU: a cube makes one, and panels of them are applied as those of a QR factorisation are.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::{Dims, OrmqrParams};
use crate::qr::gpu::blocked::{STRIDE, Step, Work, by_products, group, plane, widest};
use crate::qr::gpu::columns::{is_finite, magnitude_bits, normalizer, not_a_number};
use crate::qr::gpu::moves::{self, Stores};
use crate::qr::gpu::panels::{Code, sum_all};
use crate::qr::gpu::wy::{Groups, Lines};
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units that make a reflector.
const UNITS: usize = 256;

pub(super) fn vectors(gpu: &Gpu, dims: [usize; 2], x: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let [count, m] = dims;
    if count == 0 {
        return Ok(());
    }
    let double = x.dtype() == DType::F64;
    let units = UNITS.min(gpu.max_units as usize);
    let computed = gpu.elem(if double { DType::F64 } else { DType::F32 })?;
    // SAFETY: there are `count` vectors of `m` elements, past which the kernel touches nothing.
    unsafe {
        make_vectors::launch_unchecked(
            gpu.client(),
            gpu.cubes(count),
            CubeDim::new_1d(units as u32),
            address_type(x.numel()),
            x.gpu_arg()?,
            outputs[0].gpu_arg()?,
            outputs[1].gpu_arg()?,
            outputs[2].gpu_arg()?,
            outputs[3].gpu_arg()?,
            count,
            m,
            Code {
                width: 1,
                rows: 0,
                units,
                planes: units.div_ceil(gpu.plane.0 as usize),
                plane: plane(gpu, 1),
                double,
            },
            [gpu.elem(x.dtype())?, computed],
        );
    }
    Ok(())
}

/// A cube makes the reflector of a vector: magnitudes first, then the sum of squares of scaled elements.
#[cube(launch_unchecked, address_type = "dynamic")]
fn make_vectors<I: Float, A: Float>(
    x: &[I],
    v: &mut [I],
    tau: &mut [I],
    beta: &mut [I],
    status: &mut [i32],
    count: usize,
    m: usize,
    #[comptime] code: Code,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut largest = Shared::<[u32]>::new_slice(code.units);
    let mut scratch = Shared::<[A]>::new_slice(code.planes);
    let unit = UNIT_POS as usize;
    let active = CUBE_POS < count;
    let start = CUBE_POS * m;
    let mut bits = 0u32;
    let mut head = A::from_int(0);
    if active {
        head = A::cast_from(x[start]);
        let mut i = unit + 1;
        while i < m {
            bits = max(bits, magnitude_bits::<A>(A::cast_from(x[start + i]), code.double));
            i += code.units;
        }
    }
    largest[unit] = bits;
    sync_cube();
    for i in 0..code.units {
        bits = max(bits, largest[i]);
    }
    let none = bits == 0u32;
    let all = max(bits, magnitude_bits::<A>(head, code.double));
    let bad = !is_finite(all, code.double);
    let scale = normalizer::<A>(all, code.double);
    let mut sums = Array::<A>::new(1usize);
    sums[0] = A::from_int(0);
    if active {
        let mut i = unit + 1;
        while i < m {
            let element = A::cast_from(x[start + i]) * scale;
            sums[0] += element * element;
            i += code.units;
        }
    }
    sum_all::<A>(&mut sums, &mut scratch, 0, 1usize, code.plane);
    let scaled = head * scale;
    let norm = (scaled * scaled + sums[0]).sqrt();
    let made = select(scaled > A::from_int(0), -norm, norm);
    let scalar = select(none, A::from_int(0), (made - scaled) / made);
    let factor = select(none, A::from_int(0), A::from_int(1) / (scaled - made));
    if active {
        let mut i = unit;
        while i < m {
            let tail = A::cast_from(x[start + i]) * scale * factor;
            let value = select(i == 0, A::from_int(1), tail);
            v[start + i] = I::cast_from(select(bad, not_a_number::<A>(), value));
            i += code.units;
        }
        if unit == 0 {
            let back = normalizer::<A>(magnitude_bits::<A>(scale, code.double), code.double);
            let value = select(none, head, made * back);
            beta[CUBE_POS] = I::cast_from(select(bad, not_a_number::<A>(), value));
            tau[CUBE_POS] = I::cast_from(select(bad, not_a_number::<A>(), scalar));
            status[CUBE_POS] = select(bad, -1i32, 0i32);
        }
    }
}

pub(super) fn product(
    gpu: &Gpu,
    dims: &Dims,
    single: bool,
    params: OrmqrParams,
    inputs: &[&Tensor],
    out: &mut Tensor,
) -> Result<()> {
    let Dims { batch, m, n, k, rows, columns } = *dims;
    if out.numel() == 0 {
        return Ok(());
    }
    let computed = if out.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let elems = [gpu.elem(out.dtype())?, gpu.elem(computed)?];
    let make = |extents: &[usize]| Tensor::empty_on(Spec::new(Shape::new(extents)?, computed), gpu.device());
    let stride = m.next_multiple_of(STRIDE);
    let widest = widest(gpu);
    let products = !single && k > 8 && by_products(gpu, m * if params.right { rows } else { columns });
    // Groups are filled up.
    let reflectors = k.next_multiple_of(if products { group(k) } else { widest });
    let steps = k.div_ceil(widest);
    let across = if params.right { rows } else { columns };
    let work = Work {
        gpu,
        dims: crate::qr::Dims { batch, m, n: across, k },
        stride,
        reflectors,
        widest,
        x: make(&[batch, across, stride])?,
        v: make(&[batch, reflectors, stride])?,
        tau: make(&[batch, reflectors])?,
        t: make(&[steps, batch, widest, widest])?,
        elem: elems[1],
        address: address_type(batch * across.max(reflectors).max(n) * stride),
    };
    load(&work, single, n, !products, [inputs[0], inputs[1]], elems)?;
    work.load_plain(inputs[2], rows, columns, params.right, elems)?;
    let forward = params.right != params.transpose;
    if products {
        let groups = Groups::new(gpu, [&work.v, &work.tau], [k, group(k), across], elems[1])?;
        groups.prepare(k)?;
        groups.apply_all(k, Lines { x: &work.x, count: across }, forward, |_| 0)?;
    } else {
        for turn in 0..steps {
            let index = if forward { turn } else { steps - 1 - turn };
            let step = Step { first: index * widest, width: widest };
            work.apply(&work.x, across, step, index, 0..across, forward)?;
        }
    }
    if params.right {
        return work.store_lines(out, elems);
    }
    let (x, v) = (&work.x, &work.v);
    // The scales and the status are not read.
    let tiles = gpu.cubes(batch * rows.div_ceil(moves::TILE) * columns.div_ceil(moves::TILE));
    // SAFETY: as above.
    unsafe {
        moves::store::launch_unchecked(
            gpu.client(),
            tiles,
            CubeDim::new_1d(moves::TILE_UNITS as u32),
            work.address,
            x.gpu_arg()?,
            v.gpu_arg()?,
            work.tau.gpu_arg()?,
            inputs[1].gpu_arg()?,
            out.gpu_arg()?,
            batch,
            rows,
            columns,
            reflectors,
            stride,
            Stores::Unjudged,
            computed == DType::F64,
            elems,
        );
    }
    Ok(())
}

/// Fills `v` and τ with the reflectors of `packed` matrices of `n` columns or single ones, and `t` with the triangles of panels if they
/// are wanted.
fn load(
    work: &Work,
    single: bool,
    n: usize,
    panels: bool,
    [packed, factors]: [&Tensor; 2],
    elems: [ElemType; 2],
) -> Result<()> {
    let Work { gpu, dims, stride, reflectors, widest, .. } = *work;
    let (batch, m, k) = (dims.batch, dims.m, dims.k);
    if k == 0 {
        return Ok(());
    }
    let total = batch * reflectors * stride;
    let units = UNITS.min(gpu.max_units as usize);
    let code = Code {
        width: widest,
        rows: 0,
        units,
        planes: units.div_ceil(gpu.plane.0 as usize),
        plane: plane(gpu, widest),
        double: work.x.dtype() == DType::F64,
    };
    // SAFETY: the buffers have these extents, past which the kernels touch nothing.
    unsafe {
        load_reflectors::launch_unchecked(
            gpu.client(),
            gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            work.address,
            packed.gpu_arg()?,
            factors.gpu_arg()?,
            work.v.gpu_arg()?,
            work.tau.gpu_arg()?,
            total,
            m,
            n,
            k,
            reflectors,
            stride,
            single,
            elems,
        );
        if panels {
            let panels = batch * k.div_ceil(widest);
            triangles::launch_unchecked(
                gpu.client(),
                gpu.cubes(panels),
                CubeDim::new_1d(units as u32),
                work.address,
                work.v.gpu_arg()?,
                work.tau.gpu_arg()?,
                work.t.gpu_arg()?,
                batch,
                panels,
                m,
                reflectors,
                stride,
                code,
                elems[1],
            );
        }
    }
    Ok(())
}

/// Reflectors as lines of `stride` elements, with their zeros and ones, and τ; those past the last are zero.
#[cube(launch_unchecked, address_type = "dynamic")]
fn load_reflectors<I: Float, A: Float>(
    packed: &[I],
    factors: &[I],
    v: &mut [A],
    tau: &mut [A],
    total: usize,
    m: usize,
    n: usize,
    k: usize,
    reflectors: usize,
    stride: usize,
    #[comptime] single: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let (line, row) = (at / stride, at % stride);
        let (matrix, j) = (line / reflectors, line % reflectors);
        let mut value = A::from_int(0);
        if j < k && row < m {
            if comptime!(single) {
                value = A::cast_from(packed[matrix * m + row]);
            } else {
                if row > j {
                    value = A::cast_from(packed[(matrix * m + row) * n + j]);
                }
                value = select(row == j, A::from_int(1), value);
            }
        }
        v[at] = value;
        if row == 0 {
            let mut factor = A::from_int(0);
            if j < k {
                factor = A::cast_from(factors[matrix * k + j]);
            }
            tau[line] = factor;
        }
    }
}

/// The triangle of each panel's reflectors, for which their product is `1 − V·T·Vᵀ`: a cube for each panel.
#[cube(launch_unchecked, address_type = "dynamic")]
fn triangles<A: Float>(
    v: &[A],
    tau: &[A],
    t: &mut [A],
    batch: usize,
    total: usize,
    m: usize,
    reflectors: usize,
    stride: usize,
    #[comptime] code: Code,
    #[define(A)] _elem: ElemType,
) {
    let width = comptime!(code.width);
    let mut scratch = Shared::<[A]>::new_slice(comptime!(2 * code.planes * width));
    let (panel, matrix) = (CUBE_POS / batch, CUBE_POS % batch);
    let active = CUBE_POS < total;
    let base = (matrix * reflectors + panel * width) * stride;
    // A row of the triangle.
    let mut line = Array::<A>::new(width);
    #[unroll]
    for c in 0..width {
        line[c] = A::from_int(0);
    }
    for j in 0..width {
        let mut sums = Array::<A>::new(width);
        #[unroll]
        for c in 0..width {
            sums[c] = A::from_int(0);
        }
        if active {
            let mut row = UNIT_POS as usize;
            while row < m {
                let value = v[base + j * stride + row];
                #[unroll]
                for c in 0..width {
                    sums[c] += value * v[base + c * stride + row];
                }
                row += code.units;
            }
        }
        sum_all::<A>(&mut sums, &mut scratch, j % 2 * comptime!(code.planes * width), width, code.plane);
        let scalar = tau[select(active, matrix * reflectors + panel * width + j, 0usize)];
        let mut sum = A::from_int(0);
        #[unroll]
        for c in 0..width {
            sum += line[c] * sums[c];
        }
        let last = select(UNIT_POS as usize == j, scalar, A::from_int(0) - scalar * sum);
        #[unroll]
        for c in 0..width {
            line[c] = select(c.runtime() == j, last, line[c]);
        }
    }
    if active && (UNIT_POS as usize) < width {
        #[unroll]
        for c in 0..width {
            t[(CUBE_POS * width + UNIT_POS as usize) * width + c] = line[c];
        }
    }
}
