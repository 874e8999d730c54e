//! The steps on the GPU: a unit for each element.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::{Change, Source};
use crate::blocks::working;
use crate::qr::gpu::columns::not_a_number;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// A cube count with a unit for each of `count`.
fn units(gpu: &Gpu, count: usize) -> CubeCount {
    gpu.cubes(count.div_ceil(ELEMENTWISE_UNITS as usize))
}

/// A buffer for an argument that is not read.
fn unread(gpu: &Gpu) -> BufferArg {
    // SAFETY: allocations have at least 256 bytes.
    unsafe { BufferArg::from_raw_parts(gpu.alloc(8), 1) }
}

pub(super) fn copy(gpu: &Gpu, from: &Source, to: &Tensor, [_, rows, columns]: [usize; 3]) -> Result<()> {
    let computed = working(from.tensor.dtype());
    let elems = [gpu.elem(from.tensor.dtype())?, gpu.elem(computed)?, gpu.elem(to.dtype())?];
    let [fb, fr, fc] = from.strides;
    let [ob, or, oc] = from.operand.map_or([0; 3], |(_, strides)| strides);
    // SAFETY: `to` has rows·columns elements for each of its batch, and the strides stay within the sources.
    unsafe {
        copy_elements::launch_unchecked(
            gpu.client(),
            units(gpu, to.numel()),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(to.numel().max(from.tensor.numel())),
            from.tensor.gpu_arg()?,
            from.operand.map_or_else(|| Ok(unread(gpu)), |(tensor, _)| tensor.gpu_arg())?,
            from.status.map_or_else(|| Ok(unread(gpu)), |status| status.gpu_arg())?,
            to.gpu_arg()?,
            to.numel(),
            rows,
            columns,
            fb,
            fr,
            fc,
            ob,
            or,
            oc,
            from.change,
            from.status.is_some(),
            elems,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_elements<I: Float, A: Float, O: Float>(
    from: &[I],
    operand: &[A],
    status: &[i32],
    to: &mut [O],
    total: usize,
    rows: usize,
    columns: usize,
    fb: usize,
    fr: usize,
    fc: usize,
    ob: usize,
    or: usize,
    oc: usize,
    #[comptime] change: Change,
    #[comptime] checked: bool,
    #[define(I, A, O)] _elems: [ElemType; 3],
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let (column, line) = (at % columns, at / columns);
        let (row, matrix) = (line % rows, line / rows);
        let mut value = A::cast_from(from[matrix * fb + row * fr + column * fc]);
        if comptime!(change == Change::Times) {
            value = value * operand[matrix * ob + row * or + column * oc];
        }
        if comptime!(change == Change::Minus) {
            value = value - operand[matrix * ob + row * or + column * oc];
        }
        if comptime!(checked) {
            value = select(status[matrix] != 0i32, not_a_number::<A>(), value);
        }
        to[at] = O::cast_from(value);
    }
}

pub(super) fn inverted(
    gpu: &Gpu,
    s: &Tensor,
    status: &Tensor,
    inverse: &Tensor,
    rank: &Tensor,
    k: usize,
    rcond: f64,
) -> Result<()> {
    let elem = gpu.elem(s.dtype())?;
    // SAFETY: there are `k` values for each status; without values only ranks are written.
    unsafe {
        inverted_values::launch_unchecked(
            gpu.client(),
            units(gpu, status.numel() * k.max(1)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(s.numel()),
            s.gpu_arg()?,
            status.gpu_arg()?,
            inverse.gpu_arg()?,
            rank.gpu_arg()?,
            status.numel(),
            k,
            InputScalar::new(rcond, elem),
            elem,
        );
    }
    Ok(())
}

/// The rank is written by the last value that is kept, or by the first one if none is.
#[cube(launch_unchecked, address_type = "dynamic")]
fn inverted_values<A: Float>(
    s: &[A],
    status: &[i32],
    inverse: &mut [A],
    rank: &mut [i32],
    batch: usize,
    k: usize,
    rcond: InputScalar,
    #[define(A)] _elem: ElemType,
) {
    let each = max(k, 1usize);
    let at = ABSOLUTE_POS;
    if at < batch * each {
        let (matrix, j) = (at / each, at % each);
        let failed = status[matrix] != 0i32;
        if k == 0 {
            rank[matrix] = select(failed, -1i32, 0i32);
        } else {
            let cut = rcond.get::<A>() * s[matrix * k];
            let own = s[at];
            let kept = own > cut;
            let value = select(kept, A::new(1.0) / select(kept, own, A::new(1.0)), A::new(0.0));
            inverse[at] = select(failed, not_a_number::<A>(), value);
            let next = s[matrix * k + min(j + 1, k - 1)];
            let last = j + 1 == k || next <= cut;
            if failed {
                if j == 0 {
                    rank[matrix] = -1i32;
                }
            } else if kept {
                if last {
                    rank[matrix] = j as i32 + 1i32;
                }
            } else if j == 0 {
                rank[matrix] = 0i32;
            }
        }
    }
}

pub(super) fn fill(gpu: &Gpu, out: &Tensor, value: f64) -> Result<()> {
    let elem = gpu.elem(out.dtype())?;
    // SAFETY: the kernel stops at the number of elements.
    unsafe {
        one_value::launch_unchecked(
            gpu.client(),
            units(gpu, out.numel()),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(out.numel()),
            out.gpu_arg()?,
            out.numel(),
            InputScalar::new(value, elem),
            elem,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn one_value<A: Float>(out: &mut [A], total: usize, value: InputScalar, #[define(A)] _elem: ElemType) {
    if ABSOLUTE_POS < total {
        out[ABSOLUTE_POS] = value.get::<A>();
    }
}

pub(super) fn random(gpu: &Gpu, out: &Tensor, columns: usize, seed: u64, stream: u32) -> Result<()> {
    // SAFETY: the kernel stops at the number of elements.
    unsafe {
        random_numbers::launch_unchecked(
            gpu.client(),
            units(gpu, out.numel()),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(out.numel()),
            out.gpu_arg()?,
            out.numel(),
            columns,
            seed as u32,
            (seed >> 32) as u32,
            stream,
            gpu.elem(out.dtype())?,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn random_numbers<A: Float>(
    out: &mut [A],
    total: usize,
    columns: usize,
    low: u32,
    high: u32,
    stream: u32,
    #[define(A)] _elem: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let mut a = (at / columns) as u32;
        let mut b = (at % columns) as u32;
        let mut c = stream;
        let mut d = 0u32;
        let mut low = low;
        let mut high = high;
        for _ in 0..10u32 {
            let first = a * 0xd251_1f53u32;
            let first_high = a.mul_hi(0xd251_1f53u32);
            let second = c * 0xcd9e_8d57u32;
            let second_high = c.mul_hi(0xcd9e_8d57u32);
            a = second_high ^ b ^ low;
            b = second;
            c = first_high ^ d ^ high;
            d = first;
            low += 0x9e37_79b9u32;
            high += 0xbb67_ae85u32;
        }
        let halves = 0xffffu32;
        let sum = (a & halves) + (a >> 16u32) + (b & halves) + (b >> 16u32) + (c & halves) + (c >> 16u32);
        let sum = sum + (d & halves) + (d >> 16u32);
        out[at] = A::cast_from(sum as i32 - 262_140i32) * A::new(0.0000152587890625);
    }
}
