//! Least squares on the GPU: reflectors, their transpose times `b`, and substitution by a cube for each right-hand side.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::{Dims, rank_tolerance};
use crate::qr::gpu::columns::not_a_number;
use crate::qr::gpu::moves::{self, TILE, TILE_UNITS};
use crate::{householder, qr};
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::op::run_here;
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units that share a right-hand side, and a matrix whose rank is looked at.
const UNITS: usize = 64;

pub(super) fn solve(gpu: &Gpu, dims: &Dims, a: &Tensor, b: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let Dims { batch, m, n, p } = *dims;
    let [x, status] = outputs else { unreachable!("outputs were checked") };
    if batch == 0 {
        return Ok(());
    }
    let (tall, k) = (m.max(n), m.min(n));
    let dtype = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let room = held(gpu, k, dtype)?;
    let elems = [gpu.elem(a.dtype())?, gpu.elem(dtype)?];
    let make = |extents: &[usize], dtype| Tensor::empty_on(Spec::new(Shape::new(extents)?, dtype), gpu.device());
    let address = address_type(batch * tall * tall.max(p).max(k));
    let units = CubeDim::new_1d(ELEMENTWISE_UNITS);
    let elementwise = |count: usize| gpu.cubes(count.div_ceil(ELEMENTWISE_UNITS as usize));
    let wanted = make(&[batch, tall, k], dtype)?;
    let mut packed = make(&[batch, tall, k], dtype)?;
    let mut tau = make(&[batch, k], dtype)?;
    let mut found = make(&[batch], DType::I32)?;
    let c = make(&[batch, tall, p], dtype)?;
    let mut y = make(&[batch, tall, p], dtype)?;
    // SAFETY: the buffers have these extents, past which the kernels touch nothing; the transposition reads no scale.
    unsafe {
        if m < n {
            moves::load::launch_unchecked(
                gpu.client(), gpu.cubes(batch * m.div_ceil(TILE) * n.div_ceil(TILE)),
                CubeDim::new_1d(TILE_UNITS as u32), address, a.gpu_arg()?, tau.gpu_arg()?, wanted.gpu_arg()?, batch, m, n,
                m, false, elems,
            );
        } else {
            moves::copy_lines::launch_unchecked(
                gpu.client(), elementwise(batch * m * n), units, address, a.gpu_arg()?, wanted.gpu_arg()?,
                batch * m * n, 1, 1, false, elems,
            );
        }
    }
    run_here(&qr::reflectors(), &[&wanted], &mut [&mut packed, &mut tau, &mut found])?;
    // A right-hand side of `m·p` elements is a line that is filled up with zeros to `tall·p`.
    // SAFETY: as above.
    unsafe {
        ranks::launch_unchecked(
            gpu.client(), gpu.cubes(batch), CubeDim::new_1d(UNITS as u32), address, packed.gpu_arg()?, found.gpu_arg()?,
            status.gpu_arg()?, batch, tall * k, k, InputScalar::new(rank_tolerance(m, n, dtype), elems[1]), elems[1],
        );
        moves::copy_lines::launch_unchecked(
            gpu.client(), elementwise(batch * tall * p), units, address, b.gpu_arg()?, c.gpu_arg()?, batch * tall * p,
            (m * p).max(1), (tall * p).max(1), false, elems,
        );
    }
    let substitution = |y: &Tensor, transposed: bool| -> Result<()> {
        if p == 0 || k == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe {
            substitute::launch_unchecked(
                gpu.client(), gpu.cubes(batch * p), CubeDim::new_1d(UNITS as u32), address, packed.gpu_arg()?,
                y.gpu_arg()?, batch, tall, k, p, room, transposed, elems[1],
            );
        }
        Ok(())
    };
    if m < n {
        substitution(&c, true)?;
    }
    run_here(&householder::from_left(m >= n), &[&packed, &tau, &c], &mut [&mut y])?;
    if m >= n {
        substitution(&y, false)?;
    }
    // SAFETY: as above.
    unsafe {
        store::launch_unchecked(
            gpu.client(), elementwise(batch * n * p), units, address, y.gpu_arg()?, status.gpu_arg()?, x.gpu_arg()?,
            batch * n * p, (n * p).max(1), (tall * p).max(1), elems,
        );
    }
    Ok(())
}

/// Elements of shared memory for right-hand sides of `k`: few sizes, because each has code of its own.
fn held(gpu: &Gpu, k: usize, dtype: DType) -> Result<usize> {
    let most = gpu.shared_memory.min(48 << 10) / dtype.size();
    if k > most {
        return Err(Error::argument("lstsq", "a", format!("at most {most} rows or columns on this device, got {k}")));
    }
    Ok(if k <= 256 { 256 } else { most })
}

/// The first column of each R that depends on those before it.
#[cube(launch_unchecked, address_type = "dynamic")]
fn ranks<A: Float>(
    packed: &[A],
    found: &[i32],
    status: &mut [i32],
    batch: usize,
    size: usize,
    k: usize,
    limit: InputScalar,
    #[define(A)] _elem: ElemType,
) {
    let mut firsts = Shared::<[u32]>::new_slice(UNITS);
    let tolerance = limit.get::<A>();
    let unit = UNIT_POS as usize;
    let mut first = k as u32 + 1u32;
    if CUBE_POS < batch {
        let mut j = unit;
        while j < k {
            let mut largest = A::from_int(0);
            for i in 0..j + 1 {
                largest = max(largest, packed[CUBE_POS * size + i * k + j].abs());
            }
            if packed[CUBE_POS * size + j * k + j].abs() <= tolerance * largest {
                first = min(first, j as u32 + 1u32);
            }
            j += UNITS;
        }
    }
    firsts[unit] = first;
    sync_cube();
    if unit == 0 && CUBE_POS < batch {
        for i in 0..UNITS {
            first = min(first, firsts[i]);
        }
        let deficient = select(first as usize <= k, first as i32, 0i32);
        status[CUBE_POS] = select(found[CUBE_POS] == 0i32, deficient, found[CUBE_POS]);
    }
}

/// Solves `R·x = y`, or `Rᵀ·x = y`, in place: a cube for each column of `y`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn substitute<A: Float>(
    packed: &[A],
    y: &mut [A],
    batch: usize,
    tall: usize,
    k: usize,
    p: usize,
    #[comptime] room: usize,
    #[comptime] transposed: bool,
    #[define(A)] _elem: ElemType,
) {
    let mut held = Shared::<[A]>::new_slice(room);
    let unit = UNIT_POS as usize;
    let matrix = CUBE_POS / p;
    let active = matrix < batch;
    let start = matrix * tall * p + CUBE_POS % p;
    let r = matrix * tall * k;
    let mut i = unit;
    while i < k {
        if active {
            held[i] = y[start + i * p];
        }
        i += UNITS;
    }
    sync_cube();
    for step in 0..k {
        let j = if comptime!(transposed) { step } else { k - 1 - step };
        if active {
            let value = held[j] / packed[r + j * k + j];
            if comptime!(transposed) {
                let mut i = j + 1 + unit;
                while i < k {
                    held[i] -= packed[r + j * k + i] * value;
                    i += UNITS;
                }
            } else {
                let mut i = unit;
                while i < j {
                    held[i] -= packed[r + i * k + j] * value;
                    i += UNITS;
                }
            }
        }
        sync_cube();
    }
    i = unit;
    while i < k {
        if active {
            y[start + i * p] = held[i] / packed[r + i * k + i];
        }
        i += UNITS;
    }
}

/// Stores solutions; NaN for systems that failed.
#[cube(launch_unchecked, address_type = "dynamic")]
fn store<I: Float, A: Float>(
    y: &[A],
    status: &[i32],
    x: &mut [I],
    total: usize,
    size: usize,
    stride: usize,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < total {
        let matrix = at / size;
        let bad = status[matrix] != 0i32;
        x[at] = I::cast_from(select(bad, not_a_number::<A>(), y[matrix * stride + at % size]));
    }
}
