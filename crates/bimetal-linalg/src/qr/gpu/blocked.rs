//! Large matrices on the GPU: panels one after another, each applied to the columns after it; then Q from the last one back.

use super::super::{Dims, Form};
use super::ends::{Ends, parts};
use super::moves::{self, Stores};
use super::panels::{self, Code};
use super::wy::{BLOCK, Groups, Lines};
use bimetal_core::gpu::counted;
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use std::ops::Range;

/// How panels are given to units.
pub(crate) struct Params {
    /// Units that factorise a panel, and that apply it to a column.
    units: usize,
    applying: usize,
    /// Columns of a panel, where planes have at least 16 units and otherwise, and elements that a unit holds of it: taller
    /// matrices have narrower panels.
    widths: [usize; 2],
    held: usize,
    /// Elements of a matrix from which the vendor's products are used.
    vendor: usize,
    /// Reflectors that are applied together to all columns after them by the vendor's products.
    group: usize,
}

pub(crate) const PARAMS: Params =
    Params { units: 512, applying: 1024, widths: [16, 8], held: 64, vendor: 300 * 300, group: 256 };

/// Columns of the widest panel.
pub(crate) fn widest(gpu: &Gpu) -> usize {
    PARAMS.widths[usize::from(gpu.plane.0 < 16)]
}

/// Whether the vendor's products are used for matrices of so many elements.
pub(crate) fn by_products(gpu: &Gpu, elements: usize) -> bool {
    elements >= PARAMS.vendor && gpu.has_gemm()
}

/// How many of so many reflectors make a group.
pub(crate) fn group(count: usize) -> usize {
    count.next_multiple_of(BLOCK).min(PARAMS.group)
}

/// Columns are this many elements apart, or a multiple: what the vendor's products want.
pub(crate) const STRIDE: usize = 64;

/// Matrices and what has become of them.
pub(crate) struct Work<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) dims: Dims,
    /// Elements from one column to the next.
    pub(crate) stride: usize,
    /// Reflectors for which there is room, and columns of the widest panel.
    pub(crate) reflectors: usize,
    pub(crate) widest: usize,
    /// Columns, reflectors, and for each panel the triangle of its reflectors.
    pub(crate) x: Tensor,
    pub(crate) v: Tensor,
    pub(crate) tau: Tensor,
    pub(crate) t: Tensor,
    pub(crate) elem: ElemType,
    pub(crate) address: AddressType,
}

/// A panel's place.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) first: usize,
    pub(crate) width: usize,
}

pub(super) fn factor(gpu: &Gpu, form: Form, dims: &Dims, a: &Tensor, outputs: &mut [&mut Tensor]) -> Result<()> {
    let Dims { batch, m, n, k } = *dims;
    let [first, second, status] = outputs else { unreachable!("outputs were checked") };
    let computed = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let elems = [gpu.elem(a.dtype())?, gpu.elem(computed)?];
    let make = |extents: &[usize]| Tensor::empty_on(Spec::new(Shape::new(extents)?, computed), gpu.device());
    let stride = m.next_multiple_of(STRIDE);
    let steps = steps(gpu, m, k)?;
    let columns = form.columns(dims);
    let widest = widest(gpu);
    let reflectors = room(k, widest);
    let work = Work {
        gpu,
        dims: *dims,
        stride,
        reflectors,
        widest,
        x: make(&[batch, n, stride])?,
        v: make(&[batch, reflectors, stride])?,
        tau: make(&[batch, reflectors])?,
        t: make(&[steps.len(), batch, widest, widest])?,
        elem: elems[1],
        address: address_type(batch * n.max(columns).max(reflectors) * stride),
    };
    let ends = Ends { work: &work, scales: make(&[batch, n])?, status, elems };
    ends.load(a)?;
    let groups = match by_products(gpu, m * n) {
        true => {
            let extents = group_extents(&steps, n.max(columns));
            Some(Groups::new(gpu, [&work.v, &work.tau], extents, elems[1])?)
        }
        false => None,
    };
    match &groups {
        Some(groups) => work.factor_by_groups(&steps, groups, form != Form::Packed)?,
        None => work.factor_by_panels(&steps)?,
    }
    if form == Form::Packed {
        ends.store_tau(second)?;
        return ends.store(&work.x, first, [m, n], Stores::Packed);
    }
    ends.store(&work.x, second, [columns, n], Stores::Triangle)?;
    let q = work.orthogonal(&steps, groups.as_ref(), columns, make(&[batch, columns, stride])?)?;
    ends.store(&q, first, [m, columns], Stores::Whole)
}

/// Bytes that [`factor`] allocates beside inputs and outputs; on CUDA as if the vendor's library never refused.
pub(super) fn scratch(gpu: &Gpu, form: Form, dims: &Dims, dtype: DType) -> Result<usize> {
    let Dims { batch, m, n, k } = *dims;
    let size = if dtype == DType::F64 { 8 } else { 4 };
    let bytes = |elements: usize| counted(batch * elements * size);
    let (stride, steps, columns) = (m.next_multiple_of(STRIDE), steps(gpu, m, k)?, form.columns(dims));
    let reflectors = room(k, widest(gpu));
    let mut all = bytes(n)
        + counted(batch * parts(m) * n * 4)
        + bytes(n * stride)
        + bytes(reflectors * stride)
        + bytes(reflectors);
    all += bytes(steps.len() * widest(gpu) * widest(gpu));
    all += if form == Form::Packed { 0 } else { bytes(columns * stride) };
    if by_products(gpu, m * n) {
        all += Groups::bytes(batch, group_extents(&steps, n.max(columns)), size);
    }
    Ok(all)
}

/// Reflectors for which there is room: those of a last panel that is not full are there too.
fn room(k: usize, widest: usize) -> usize {
    k.next_multiple_of(widest) + widest
}

/// The reflectors of so many panels, those of a group, and the lines that they are applied to.
fn group_extents(steps: &[Step], lines: usize) -> [usize; 3] {
    let count = steps.last().map_or(0, Step::end);
    [count, group(count), lines]
}

/// Units that factorise a panel: 16 planes, if the device has them.
fn most_units(gpu: &Gpu) -> usize {
    PARAMS.units.min(gpu.max_units as usize).min(16 * gpu.plane.1 as usize)
}

/// Units of a panel of so many rows, of which `least` are needed: few, as every step of each plane costs, but all rows at
/// once where planes are small.
pub(crate) fn panel_units(gpu: &Gpu, least: usize, rows: usize, most: usize) -> usize {
    let wanted = if gpu.plane.0 < 16 { rows } else { least };
    wanted.next_power_of_two().clamp(128.min(most), most)
}

/// The panels: as wide as their rows allow.
fn steps(gpu: &Gpu, m: usize, k: usize) -> Result<Vec<Step>> {
    let units = most_units(gpu);
    let mut made = Vec::new();
    let mut first = 0;
    while first < k {
        let mut width = widest(gpu);
        // Blocks of panels start at multiples of them.
        while width > 0 && ((m - first).div_ceil(units) * width > PARAMS.held || !first.is_multiple_of(width)) {
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

impl Step {
    /// The column after the panel.
    pub(crate) fn end(&self) -> usize {
        self.first + self.width
    }
}

impl Work<'_> {
    fn form(&self, width: usize, rows: usize, units: usize) -> Code {
        let double = self.x.dtype() == DType::F64;
        Code {
            width,
            rows,
            units,
            planes: units.div_ceil(self.gpu.plane.0 as usize),
            plane: plane(self.gpu, width),
            double,
        }
    }

    /// Factorises a panel; its reflectors have zeros from row `clear` on.
    fn panel(&self, step: Step, index: usize, clear: usize) -> Result<()> {
        let Dims { batch, m, n, k } = self.dims;
        let Step { first, width } = step;
        let units = panel_units(self.gpu, (m - first) * width / PARAMS.held, m - first, most_units(self.gpu));
        let rows = (m - first).div_ceil(units).next_power_of_two();
        let t = index * batch * self.widest * self.widest;
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
                self.t.gpu_arg()?,
                batch,
                m,
                n,
                self.reflectors,
                self.stride,
                first,
                clear,
                t,
                width.min(k - first) as u32,
                self.form(width, rows, units),
                self.elem,
            );
        }
        Ok(())
    }

    /// Applies a panel to the columns `to` of `x`.
    pub(crate) fn apply(
        &self,
        x: &Tensor,
        columns: usize,
        step: Step,
        index: usize,
        to: Range<usize>,
        forward: bool,
    ) -> Result<()> {
        let Dims { batch, m, .. } = self.dims;
        if to.is_empty() {
            return Ok(());
        }
        let most = PARAMS.applying.min(self.gpu.max_units as usize).min(32 * self.gpu.plane.1 as usize);
        // A few rows for each unit, as they are read one after another.
        let units = ((m - step.first) / 2).next_power_of_two().clamp(64.min(most), most);
        // SAFETY: as for the panel.
        unsafe {
            panels::apply::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(batch * to.len()),
                CubeDim::new_1d(units as u32),
                self.address,
                x.gpu_arg()?,
                self.v.gpu_arg()?,
                self.t.gpu_arg()?,
                batch,
                m,
                columns,
                self.reflectors,
                self.stride,
                step.first,
                to.start,
                to.len(),
                index * batch * self.widest * self.widest,
                forward,
                self.form(step.width, 0, units),
                self.elem,
            );
        }
        Ok(())
    }

    /// All panels, each applied to all columns after it.
    fn factor_by_panels(&self, steps: &[Step]) -> Result<()> {
        let n = self.dims.n;
        for (index, &step) in steps.iter().enumerate() {
            self.panel(step, index, step.first)?;
            self.apply(&self.x, n, step, index, step.end()..n, true)?;
        }
        Ok(())
    }

    /// Panels are applied to the columns of their block, blocks to those of their group, and groups to all that is left.
    /// With `all` there is a triangle for the last group too.
    fn factor_by_groups(&self, steps: &[Step], groups: &Groups, all: bool) -> Result<()> {
        let n = self.dims.n;
        let lines = Lines { x: &self.x, count: n };
        let count = steps.last().map_or(0, Step::end);
        let mut panels = steps.iter().enumerate().peekable();
        for group in (0..count).step_by(groups.size) {
            let end = count.min(group + groups.size);
            for block in (group..end).step_by(BLOCK) {
                let block_end = end.min(block + BLOCK);
                while let Some((index, &step)) = panels.next_if(|(_, step)| step.first < block_end) {
                    self.panel(step, index, group)?;
                    self.apply(&self.x, n, step, index, step.end()..block_end.min(n), true)?;
                }
                if all || block_end < n {
                    groups.block(block..block_end)?;
                    groups.apply(block..block_end, lines, block_end..end.min(n), true)?;
                }
            }
            if all || end < n {
                groups.merge(group..end)?;
                groups.apply(group..end, lines, end..n, true)?;
            }
        }
        Ok(())
    }

    /// The first `columns` columns of Q, transposed, in `q`.
    fn orthogonal(&self, steps: &[Step], groups: Option<&Groups>, columns: usize, q: Tensor) -> Result<Tensor> {
        let total = q.numel();
        // SAFETY: `total` is the number of elements.
        unsafe {
            moves::identity::launch_unchecked(
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
        let lines = Lines { x: &q, count: columns };
        match groups {
            Some(groups) => groups.apply_all(steps.last().map_or(0, Step::end), lines, false, |first| first)?,
            None => {
                for (index, &step) in steps.iter().enumerate().rev() {
                    self.apply(&q, columns, step, index, step.first..columns, false)?;
                }
            }
        }
        Ok(q)
    }
}

/// The size of planes where it is fixed and at least `width`, else 0.
pub(crate) fn plane(gpu: &Gpu, width: usize) -> usize {
    let (least, most) = gpu.plane;
    if least == most && least as usize >= width { least as usize } else { 0 }
}
