//! The error of an approximation from its probes, on the GPU: a cube for each matrix.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::{MOST_PROBES, Probes};
use crate::qr::gpu::columns::not_a_number;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = MOST_PROBES;

pub(super) fn errors(gpu: &Gpu, job: &Probes, error: &Tensor) -> Result<()> {
    let elem = gpu.elem(error.dtype())?;
    // SAFETY: the buffers hold a matrix of rows·probes and `rank` values for each status.
    unsafe {
        probe_errors::launch_unchecked(
            gpu.client(),
            gpu.cubes(error.numel()),
            CubeDim::new_1d(UNITS as u32),
            address_type(job.exact.numel()),
            job.exact.gpu_arg()?,
            job.found.gpu_arg()?,
            job.values.gpu_arg()?,
            job.status.gpu_arg()?,
            error.gpu_arg()?,
            error.numel(),
            job.rows,
            job.probes,
            job.rank,
            InputScalar::new(job.factor, elem),
            InputScalar::new(job.rounding, elem),
            elem,
        );
    }
    Ok(())
}

/// Differences are divided by the largest, so that their squares fit.
#[cube(launch_unchecked, address_type = "dynamic")]
fn probe_errors<A: Float>(
    exact: &[A],
    found: &[A],
    values: &[A],
    status: &[i32],
    error: &mut [A],
    batch: usize,
    rows: usize,
    probes: usize,
    rank: usize,
    factor: InputScalar,
    rounding: InputScalar,
    #[define(A)] _elem: ElemType,
) {
    let mut parts = Shared::<[A]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    let matrix = min(CUBE_POS, batch - 1);
    let start = matrix * rows * probes;
    let total = rows * probes;
    // Each unit stays in one column.
    let step = comptime!(UNITS).runtime() / probes * probes;
    let mut largest = A::new(0.0);
    let mut e = unit;
    while e < total {
        let difference = (exact[start + e] - found[start + e]).abs();
        largest = select(difference > largest, difference, largest);
        e += comptime!(UNITS);
    }
    parts[unit] = largest;
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        sync_cube();
        if unit < half {
            let other = parts[unit + half];
            parts[unit] = select(other > parts[unit], other, parts[unit]);
        }
        half /= 2;
    }
    sync_cube();
    let found_scale = parts[0];
    let scale = select(found_scale > A::new(0.0), found_scale, A::new(1.0));
    sync_cube();
    let mut sum = A::new(0.0);
    if unit < step {
        let mut e = unit;
        while e < total {
            let part = (exact[start + e] - found[start + e]) / scale;
            sum += part * part;
            e += step;
        }
    }
    parts[unit] = sum;
    sync_cube();
    if unit < probes {
        let mut at = unit + probes;
        while at < step {
            sum += parts[at];
            at += probes;
        }
    }
    sync_cube();
    parts[unit] = select(unit < probes, sum, A::new(0.0));
    sync_cube();
    if unit == 0 && CUBE_POS < batch {
        let mut longest = A::new(0.0);
        for j in 0..probes {
            longest = select(parts[j] > longest, parts[j], longest);
        }
        let mut bound = factor.get::<A>() * scale * longest.sqrt();
        if rank > 0 {
            bound += rounding.get::<A>() * values[matrix * rank];
        }
        error[matrix] = select(status[matrix] != 0i32, not_a_number::<A>(), bound);
    }
}
