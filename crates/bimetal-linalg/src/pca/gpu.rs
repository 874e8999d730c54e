//! Signs and variances on the GPU: a cube for each component.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::Found;
use crate::qr::gpu::columns::not_a_number;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units that share a component.
const UNITS: usize = 64;

pub(super) fn describe(gpu: &Gpu, found: &Found, signs: &Tensor, variance: &Tensor, ratio: &Tensor) -> Result<()> {
    let elems = [gpu.elem(found.s.dtype())?, gpu.elem(variance.dtype())?];
    // SAFETY: there are `columns` values and rows of `features` for each of the batch, and `k` ≤ `columns` outputs.
    unsafe {
        describe_components::launch_unchecked(
            gpu.client(),
            gpu.cubes(signs.numel()),
            CubeDim::new_1d(UNITS as u32),
            address_type(found.vh.numel()),
            found.s.gpu_arg()?,
            found.vh.gpu_arg()?,
            found.total.gpu_arg()?,
            found.status.gpu_arg()?,
            signs.gpu_arg()?,
            variance.gpu_arg()?,
            ratio.gpu_arg()?,
            signs.numel(),
            found.columns,
            found.k,
            found.features,
            InputScalar::new(1.0 / (found.samples as f64 - 1.0).sqrt(), elems[0]),
            elems,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn describe_components<A: Float, O: Float>(
    s: &[A],
    vh: &[A],
    total: &[A],
    status: &[i32],
    signs: &mut [A],
    variance: &mut [O],
    ratio: &mut [O],
    all: usize,
    columns: usize,
    k: usize,
    features: usize,
    samples: InputScalar,
    #[define(A, O)] _elems: [ElemType; 2],
) {
    let mut sizes = Shared::<[A]>::new_slice(UNITS);
    let mut places = Shared::<[u32]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    let component = min(CUBE_POS, all - 1);
    let matrix = component / k;
    let row = matrix * columns + component % k;
    let mut largest = A::new(-1.0);
    let mut place = 0u32;
    let mut j = unit;
    while j < features {
        let size = vh[row * features + j].abs();
        if size > largest {
            largest = size;
            place = j as u32;
        }
        j += comptime!(UNITS);
    }
    sizes[unit] = largest;
    places[unit] = place;
    sync_cube();
    if unit == 0 && CUBE_POS < all {
        // Of equal ones the first.
        for i in 1..comptime!(UNITS) {
            let other = places[i];
            if sizes[i] > largest || (sizes[i] == largest && other < place) {
                largest = sizes[i];
                place = other;
            }
        }
        let element = vh[row * features + place as usize];
        signs[component] = select(element < A::new(0.0), A::new(-1.0), A::new(1.0));
        let value = s[row];
        let whole = total[matrix];
        let part = select(whole > A::new(0.0), value / select(whole > A::new(0.0), whole, A::new(1.0)), A::new(0.0));
        let deviation = value * samples.get::<A>();
        let failed = status[matrix] != 0i32;
        variance[component] = O::cast_from(select(failed, not_a_number::<A>(), deviation * deviation));
        ratio[component] = O::cast_from(select(failed, not_a_number::<A>(), part * part));
    }
}
