//! Large matrices on the GPU: panels one after another, each applied to the columns after it; then Q from the last one back.

use super::super::{Dims, Form};
use super::panels::{self, Code, Stores, TILE, TILE_UNITS};
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How panels are given to units.
struct Params {
    /// Units that factorise a panel, and that apply it to a column.
    units: usize,
    applying: usize,
    /// Columns of a panel, and elements that a unit holds of it: taller matrices have narrower panels.
    width: usize,
    held: usize,
}

const PARAMS: Params = Params { units: 512, applying: 256, width: 8, held: 64 };

/// Columns are this many elements apart, or a multiple: what the vendor's products want.
const STRIDE: usize = 64;

/// Matrices and what has become of them.
struct Work<'a> {
    gpu: &'a Gpu,
    dims: Dims,
    /// Elements from one column to the next.
    stride: usize,
    /// Reflectors for which there is room.
    reflectors: usize,
    /// Panels: their first columns and widths, and where the products of their reflectors are.
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    gram: Tensor,
    elem: ElemType,
    address: AddressType,
}

/// A panel's place.
#[derive(Clone, Copy)]
struct Step {
    first: usize,
    width: usize,
}

pub(super) fn factor(gpu: &Gpu, form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let Dims { batch, m, n, k } = *dims;
    let [first, second, status] = outputs else { unreachable!("outputs were checked") };
    let computed = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let double = computed == DType::F64;
    let elems = [gpu.elem(a.dtype())?, gpu.elem(computed)?];
    let make = |extents: &[usize]| Tensor::empty_on(Spec::new(Shape::new(extents)?, computed), gpu.device());
    let stride = m.next_multiple_of(STRIDE);
    let steps = steps(gpu, m, k)?;
    let columns = form.columns(dims);
    let reflectors = k.next_multiple_of(PARAMS.width) + PARAMS.width;
    let scales = make(&[batch, n])?;
    let work = Work {
        gpu,
        dims: *dims,
        stride,
        reflectors,
        x: make(&[batch, n, stride])?,
        v: make(&[batch, reflectors, stride])?,
        tau: make(&[batch, reflectors])?,
        gram: make(&[steps.len(), batch, PARAMS.width, PARAMS.width])?,
        elem: elems[1],
        address: address_type(batch * n.max(columns) * stride),
    };
    let tiles = |rows: usize, columns: usize| gpu.cubes(batch * rows.div_ceil(TILE) * columns.div_ceil(TILE));
    let units = CubeDim::new_1d(TILE_UNITS as u32);
    // SAFETY: the kernels drop what is past these extents, which are those of the buffers.
    unsafe {
        panels::column_scales::launch_unchecked(
            gpu.client(), tiles(1, n), units, work.address, a.gpu_arg()?, scales.gpu_arg()?, batch, m, n, double, elems,
        );
        panels::statuses::launch_unchecked(
            gpu.client(), gpu.cubes(batch), units, work.address, scales.gpu_arg()?, status.gpu_arg()?, batch, n, elems[1],
        );
        panels::load::launch_unchecked(
            gpu.client(), tiles(stride, n), units, work.address, a.gpu_arg()?, scales.gpu_arg()?, work.x.gpu_arg()?,
            batch, m, n, stride, elems,
        );
    }
    for (index, step) in steps.iter().enumerate() {
        work.panel(*step, index)?;
        let from = step.first + step.width;
        work.apply(&work.x, n, *step, index, from, true)?;
    }
    let store = |x: &Tensor, out: &Tensor, rows: usize, columns: usize, stores: Stores| -> Result<()> {
        // SAFETY: as above.
        unsafe {
            panels::store::launch_unchecked(
                gpu.client(), tiles(rows, columns), units, work.address, x.gpu_arg()?, work.v.gpu_arg()?,
                scales.gpu_arg()?, status.gpu_arg()?, out.gpu_arg()?, batch, rows, columns, reflectors, stride, stores,
                double, elems,
            );
        }
        Ok(())
    };
    if form == Form::Packed {
        let total = batch * k;
        // SAFETY: as above.
        unsafe {
            panels::store_tau::launch_unchecked(
                gpu.client(), gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS), work.address, work.tau.gpu_arg()?, status.gpu_arg()?,
                second.gpu_arg()?, total, k, reflectors, elems,
            );
        }
        return store(&work.x, first, m, n, Stores::Packed);
    }
    store(&work.x, second, columns, n, Stores::Triangle)?;
    let q = work.orthogonal(&steps, columns, make(&[batch, columns, stride])?)?;
    store(&q, first, m, columns, Stores::Whole)
}

/// The panels: as wide as their rows allow.
fn steps(gpu: &Gpu, m: usize, k: usize) -> Result<Vec<Step>> {
    let units = PARAMS.units.min(gpu.max_units as usize);
    let mut made = Vec::new();
    let mut first = 0;
    while first < k {
        let mut width = PARAMS.width;
        while width > 0 && (m - first).div_ceil(units) * width > PARAMS.held {
            width /= 2;
        }
        if width == 0 {
            let expected = format!("at most {} rows on this device, got {m}", units * PARAMS.held);
            return Err(Error::argument("qr", "a", expected));
        }
        made.push(Step { first, width: width.min(k - first).next_power_of_two().min(width) });
        first += width;
    }
    Ok(made)
}

impl Work<'_> {
    fn form(&self, width: usize, rows: usize, units: usize) -> Code {
        let planes = units.div_ceil(self.gpu.plane.0 as usize);
        Code { width, rows, units, planes, double: self.x.dtype() == DType::F64 }
    }

    /// Factorises a panel.
    fn panel(&self, step: Step, index: usize) -> Result<()> {
        let Dims { batch, m, n, k } = self.dims;
        let Step { first, width } = step;
        let most = PARAMS.units.min(self.gpu.max_units as usize);
        let units = (m - first).next_power_of_two().clamp(64.min(most), most);
        let rows = (m - first).div_ceil(units).next_power_of_two();
        let gram = index * batch * PARAMS.width * PARAMS.width;
        // SAFETY: the buffers have these extents; the panel and its reflectors are within them.
        unsafe {
            panels::panel::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(batch),
                CubeDim::new_1d(units as u32),
                self.address,
                self.x.gpu_arg()?,
                self.v.gpu_arg()?,
                self.tau.gpu_arg()?,
                self.gram.gpu_arg()?,
                batch,
                m,
                n,
                self.reflectors,
                self.stride,
                first,
                gram,
                width.min(k - first) as u32,
                self.form(width, rows, units),
                self.elem,
            );
        }
        Ok(())
    }

    /// Applies a panel to the columns of `x` from `from` on.
    fn apply(&self, x: &Tensor, columns: usize, step: Step, index: usize, from: usize, forward: bool) -> Result<()> {
        let Dims { batch, m, .. } = self.dims;
        if from >= columns {
            return Ok(());
        }
        let most = PARAMS.applying.min(self.gpu.max_units as usize);
        let units = (m - step.first).next_power_of_two().clamp(64.min(most), most);
        // SAFETY: as for the panel.
        unsafe {
            panels::apply::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(batch * (columns - from)),
                CubeDim::new_1d(units as u32),
                self.address,
                x.gpu_arg()?,
                self.v.gpu_arg()?,
                self.tau.gpu_arg()?,
                self.gram.gpu_arg()?,
                batch,
                m,
                columns,
                self.reflectors,
                self.stride,
                step.first,
                from,
                columns - from,
                index * batch * PARAMS.width * PARAMS.width,
                forward,
                self.form(step.width, 0, units),
                self.elem,
            );
        }
        Ok(())
    }

    /// The first `columns` columns of Q, transposed, in `q`.
    fn orthogonal(&self, steps: &[Step], columns: usize, q: Tensor) -> Result<Tensor> {
        let total = q.numel();
        // SAFETY: `total` is the number of elements.
        unsafe {
            panels::identity::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address,
                q.gpu_arg()?,
                total,
                columns,
                self.stride,
                self.elem,
            );
        }
        for (index, step) in steps.iter().enumerate().rev() {
            self.apply(&q, columns, *step, index, step.first, false)?;
        }
        Ok(q)
    }
}
