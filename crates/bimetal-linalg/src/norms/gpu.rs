//! Traces and norms on the GPU: a cube for each matrix, or for each part of a large one and another for their sum.

use super::Kind;
use crate::blocks::{elems, not_finite, working};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

const UNITS: usize = 128;
/// Elements of a part.
const PART: usize = 16384;

pub(super) fn numbers(gpu: &Gpu, kind: Kind, [count, m, n]: [usize; 3], a: &Tensor, out: &mut Tensor) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let elems = elems(gpu, a.dtype())?;
    let trace = kind == Kind::Trace;
    // Diagonals are m.min(n) elements n + 1 apart.
    let (terms, step) = if trace { (m.min(n), n + 1) } else { (m * n, 1) };
    let parts = terms.div_ceil(PART).max(1);
    let partials = gpu.alloc(count * parts * 2 * working(a.dtype()).size());
    // SAFETY: the terms lie within the matrices, and there are two numbers for each part.
    unsafe {
        parts_of_sums::launch_unchecked(
            gpu.client(),
            gpu.cubes(count * parts),
            CubeDim::new_1d(UNITS as u32),
            address_type(a.numel()),
            a.gpu_arg()?,
            BufferArg::from_raw_parts(partials.clone(), count * parts * 2),
            count,
            m * n,
            terms,
            step,
            parts,
            trace,
            a.dtype() == DType::F64,
            elems,
        );
        whole_sums::launch_unchecked(
            gpu.client(),
            gpu.cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(partials, count * parts * 2),
            out.gpu_arg()?,
            count as u32,
            parts as u32,
            trace,
            elems,
        );
    }
    Ok(())
}

/// The largest magnitude of a part, or 1, and the sum of the squares of quotients by it; or the sum of a diagonal.
#[cube(launch_unchecked, address_type = "dynamic")]
fn parts_of_sums<I: Float, A: Float>(
    a: &[I],
    partials: &mut [A],
    count: usize,
    size: usize,
    terms: usize,
    step: usize,
    parts: usize,
    #[comptime] trace: bool,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut scratch = Shared::<[A]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    let matrix = min(CUBE_POS / parts, count - 1);
    let part = CUBE_POS % parts;
    let start = part * comptime!(PART) + unit;
    let end = min((part + 1) * comptime!(PART), terms);
    let mut scale = A::new(1.0);
    if comptime!(!trace) {
        let mut largest = A::new(0.0);
        let mut e = start;
        while e < end {
            let size_of_term = A::cast_from(a[matrix * size + e]).abs();
            largest = select(size_of_term > largest, size_of_term, largest);
            e += comptime!(UNITS);
        }
        scratch[unit] = largest;
        let mut half = comptime!(UNITS / 2).runtime();
        while half > 0 {
            sync_cube();
            if unit < half {
                let other = scratch[unit + half];
                scratch[unit] = select(other > scratch[unit], other, scratch[unit]);
            }
            half /= 2;
        }
        sync_cube();
        let found = scratch[0];
        // Quotients by the largest f32 stay infinite.
        let finite = select(not_finite::<A>(found, double), A::new(3e38), found);
        scale = select(found == A::new(0.0), A::new(1.0), finite);
        sync_cube();
    }
    let mut sum = A::new(0.0);
    let mut e = start;
    while e < end {
        let term = A::cast_from(a[matrix * size + e * step]);
        if comptime!(trace) {
            sum += term;
        } else {
            let quotient = term / scale;
            sum += quotient * quotient;
        }
        e += comptime!(UNITS);
    }
    scratch[unit] = sum;
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        sync_cube();
        if unit < half {
            scratch[unit] = scratch[unit] + scratch[unit + half];
        }
        half /= 2;
    }
    if unit == 0 && CUBE_POS / parts < count {
        partials[2 * CUBE_POS] = scale;
        partials[2 * CUBE_POS + 1] = scratch[0];
    }
}

/// A unit for each matrix adds up its parts.
#[cube(launch_unchecked)]
fn whole_sums<I: Float, A: Float>(
    partials: &[A],
    out: &mut [I],
    count: u32,
    parts: u32,
    #[comptime] trace: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let matrix = ABSOLUTE_POS;
    let parts = parts as usize;
    if matrix < count as usize {
        let mut scale = A::new(0.0);
        let mut sum = A::new(0.0);
        for p in 0..parts {
            let own = partials[2 * (matrix * parts + p)];
            scale = select(own > scale, own, scale);
        }
        for p in 0..parts {
            let quotient = partials[2 * (matrix * parts + p)] / scale;
            let own = partials[2 * (matrix * parts + p) + 1];
            sum += own * quotient * quotient;
        }
        if comptime!(!trace) {
            sum = scale * sum.sqrt();
        }
        out[matrix] = I::cast_from(sum);
    }
}
