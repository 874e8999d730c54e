//! Large matrices on the GPU: panels one after another, each applied to the columns after it; then Q from the last one back.

use super::super::{Dims, Form};
use super::moves::{self, Stores, TILE, TILE_UNITS};
use super::panels::{self, BLOCK, Code, LINES};
use bimetal_core::gpu::{Product, counted};
use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Device, Error, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use std::ops::Range;

/// How panels are given to units.
pub(crate) struct Params {
    /// Units that factorise a panel, and that apply it to a column.
    units: usize,
    applying: usize,
    /// Columns of a panel, and elements that a unit holds of it: taller matrices have narrower panels.
    pub(crate) width: usize,
    held: usize,
    /// Elements of a matrix from which the vendor's products are used.
    vendor: usize,
}

pub(crate) const PARAMS: Params = Params { units: 512, applying: 256, width: 8, held: 64, vendor: 300 * 300 };

/// Columns are this many elements apart, or a multiple: what the vendor's products want.
pub(crate) const STRIDE: usize = 64;

/// Matrices and what has become of them.
pub(crate) struct Work<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) dims: Dims,
    /// Elements from one column to the next.
    pub(crate) stride: usize,
    /// Reflectors for which there is room.
    pub(crate) reflectors: usize,
    /// Panels: their first columns and widths, and where the products of their reflectors are.
    pub(crate) x: Tensor,
    pub(crate) v: Tensor,
    pub(crate) tau: Tensor,
    pub(crate) gram: Tensor,
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
        moves::column_scales::launch_unchecked(
            gpu.client(), tiles(1, n), units, work.address, a.gpu_arg()?, scales.gpu_arg()?, batch, m, n, double, elems,
        );
        moves::statuses::launch_unchecked(
            gpu.client(), gpu.cubes(batch), units, work.address, scales.gpu_arg()?, status.gpu_arg()?, batch, n, elems[1],
        );
        moves::load::launch_unchecked(
            gpu.client(), tiles(stride, n), units, work.address, a.gpu_arg()?, scales.gpu_arg()?, work.x.gpu_arg()?,
            batch, m, n, stride, true, elems,
        );
    }
    let blocks = blocks(&steps);
    let mut grams = Vec::new();
    for block in &blocks {
        let end = steps[block.end - 1].end().min(n);
        for index in block.clone() {
            work.panel(steps[index], index)?;
            work.apply(&work.x, n, steps[index], index, steps[index].end()..end, true)?;
        }
        grams.push(work.block_gram(&steps[block.clone()])?);
        let block = Block { steps: &steps[block.clone()], index: block.start, gram: grams.last().and_then(Option::as_ref) };
        work.apply_block(&work.x, n, &block, end, true)?;
    }
    let store = |x: &Tensor, out: &Tensor, rows: usize, columns: usize, stores: Stores| -> Result<()> {
        // SAFETY: as above.
        unsafe {
            moves::store::launch_unchecked(
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
            moves::store_tau::launch_unchecked(
                gpu.client(), gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS), work.address, work.tau.gpu_arg()?, status.gpu_arg()?,
                second.gpu_arg()?, total, k, reflectors, elems,
            );
        }
        return store(&work.x, first, m, n, Stores::Packed);
    }
    store(&work.x, second, columns, n, Stores::Triangle)?;
    let q = work.orthogonal(&steps, &blocks, &grams, columns, make(&[batch, columns, stride])?)?;
    store(&q, first, m, columns, Stores::Whole)
}

/// Bytes that [`factor`] allocates beside inputs and outputs; on CUDA as if the vendor's library never refused.
pub(super) fn scratch(gpu: &Gpu, form: Form, dims: &Dims, dtype: DType) -> Result<usize> {
    let Dims { batch, m, n, k } = *dims;
    let size = if dtype == DType::F64 { 8 } else { 4 };
    let bytes = |elements: usize| counted(batch * elements * size);
    let (stride, steps, columns) = (m.next_multiple_of(STRIDE), steps(gpu, m, k)?, form.columns(dims));
    let reflectors = k.next_multiple_of(PARAMS.width) + PARAMS.width;
    let mut all = bytes(n) + bytes(n * stride) + bytes(reflectors * stride) + bytes(reflectors);
    all += bytes(steps.len() * PARAMS.width * PARAMS.width);
    all += if form == Form::Packed { 0 } else { bytes(columns * stride) };
    if m * n >= PARAMS.vendor {
        for block in blocks(&steps) {
            let (first, end) = (steps[block.start].first, steps[block.end - 1].end());
            all += bytes((end - first) * (end - first));
            if matches!(gpu.device(), Device::Cuda(_)) {
                let applied = [n.saturating_sub(end), if form == Form::Packed { 0 } else { columns.saturating_sub(first) }];
                all += applied.iter().filter(|lines| **lines > 0).map(|lines| bytes(lines * (end - first))).sum::<usize>();
            }
        }
    }
    Ok(all)
}

/// Units that factorise a panel: 16 planes, if the device has them.
fn most_units(gpu: &Gpu) -> usize {
    PARAMS.units.min(gpu.max_units as usize).min(16 * gpu.plane.1 as usize)
}

/// The panels: as wide as their rows allow.
fn steps(gpu: &Gpu, m: usize, k: usize) -> Result<Vec<Step>> {
    let units = most_units(gpu);
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

/// Panels that are applied together, the number of the first one, and the products of their reflectors.
struct Block<'a> {
    steps: &'a [Step],
    index: usize,
    gram: Option<&'a Tensor>,
}

/// Panels that are applied together to the columns after them.
fn blocks(steps: &[Step]) -> Vec<Range<usize>> {
    let mut made: Vec<Range<usize>> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match made.last_mut() {
            Some(block) if step.end() - steps[block.start].first <= BLOCK => block.end = index + 1,
            _ => made.push(index..index + 1),
        }
    }
    made
}

impl Step {
    /// The column after the panel.
    fn end(&self) -> usize {
        self.first + self.width
    }
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
        let most = most_units(self.gpu);
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

    /// Applies a panel to the columns `to` of `x`.
    pub(crate) fn apply(&self, x: &Tensor, columns: usize, step: Step, index: usize, to: Range<usize>, forward: bool) -> Result<()> {
        let Dims { batch, m, .. } = self.dims;
        if to.is_empty() {
            return Ok(());
        }
        let most = PARAMS.applying.min(self.gpu.max_units as usize).min(8 * self.gpu.plane.1 as usize);
        let units = (m - step.first).next_power_of_two().clamp(64.min(most), most);
        // SAFETY: as for the panel.
        unsafe {
            panels::apply::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(batch * to.len()),
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
                to.start,
                to.len(),
                index * batch * PARAMS.width * PARAMS.width,
                forward,
                self.form(step.width, 0, units),
                self.elem,
            );
        }
        Ok(())
    }

    /// The products of a block's reflectors, by the vendor's library; none without it, or where it does not pay.
    fn block_gram(&self, block: &[Step]) -> Result<Option<Tensor>> {
        let Dims { batch, m, n, .. } = self.dims;
        if m * n < PARAMS.vendor {
            return Ok(None);
        }
        let first = block[0].first;
        let count = block[block.len() - 1].end() - first;
        let gram = self.empty(&[batch, count, count])?;
        let product = Product {
            batch,
            m: count,
            n: count,
            k: self.stride,
            a_transposed: false,
            b_transposed: true,
            strides: [self.reflectors * self.stride, self.reflectors * self.stride, count * count],
            starts: [first * self.stride, first * self.stride, 0],
            tf32: false,
        };
        Ok(self.gpu.gemm(&product, 1.0, 0.0, &self.v, &self.v, &gram)?.then_some(gram))
    }

    /// Applies a block of panels to the columns of `x` from `from` on: by two products, or panel by panel.
    fn apply_block(&self, x: &Tensor, columns: usize, block: &Block, from: usize, forward: bool) -> Result<()> {
        if from >= columns {
            return Ok(());
        }
        if let Some(gram) = block.gram
            && self.apply_products(x, columns, block.steps, gram, from, forward)?
        {
            return Ok(());
        }
        for turn in 0..block.steps.len() {
            let at = if forward { turn } else { block.steps.len() - 1 - turn };
            self.apply(x, columns, block.steps[at], block.index + at, from..columns, forward)?;
        }
        Ok(())
    }

    /// `x − x·Vᵀ·T·V` by the vendor's library; false, and nothing done, where it refuses.
    fn apply_products(
        &self,
        x: &Tensor,
        columns: usize,
        block: &[Step],
        gram: &Tensor,
        from: usize,
        forward: bool,
    ) -> Result<bool> {
        let batch = self.dims.batch;
        let first = block[0].first;
        let count = block[block.len() - 1].end() - first;
        let lines = columns - from;
        let weights = self.empty(&[batch, lines, count])?;
        let steps = [columns * self.stride, self.reflectors * self.stride, lines * count];
        let starts = [from * self.stride, first * self.stride, 0];
        let inner = Product {
            batch,
            m: lines,
            n: count,
            k: self.stride,
            a_transposed: false,
            b_transposed: true,
            strides: steps,
            starts,
            tf32: false,
        };
        if !self.gpu.gemm(&inner, 1.0, 0.0, x, &self.v, &weights)? {
            return Ok(false);
        }
        // SAFETY: the buffers have these extents.
        unsafe {
            panels::weights::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes((batch * lines).div_ceil(LINES)),
                CubeDim::new_1d(LINES as u32),
                self.address,
                weights.gpu_arg()?,
                gram.gpu_arg()?,
                self.tau.gpu_arg()?,
                batch * lines,
                lines,
                count,
                self.reflectors,
                first,
                forward,
                self.elem,
            );
        }
        let outer = Product {
            m: lines,
            n: self.stride,
            k: count,
            b_transposed: false,
            strides: [steps[2], steps[1], steps[0]],
            starts: [0, starts[1], starts[0]],
            ..inner
        };
        self.gpu.gemm(&outer, -1.0, 1.0, &weights, &self.v, x)
    }

    /// Multiplies the columns of `x` by the product of the first `count` reflectors, which need not be those of a QR factorisation,
    /// by the vendor's products; false, and nothing done, where it refuses.
    ///
    /// # Errors
    /// A library that takes some of the products and refuses others.
    pub(crate) fn apply_all(&self, x: &Tensor, columns: usize, count: usize) -> Result<bool> {
        let starts: Vec<usize> = (0..count).step_by(BLOCK).collect();
        for (turn, &first) in starts.iter().rev().enumerate() {
            let block = [Step { first, width: BLOCK.min(count - first) }];
            let gram = self.block_gram(&block)?;
            let done = match &gram {
                Some(gram) => self.apply_products(x, columns, &block, gram, 0, false)?,
                None => false,
            };
            if !done && turn > 0 {
                let reason = "the library of products takes some and refuses others".to_string();
                return Err(Error::Unavailable { device: self.gpu.device().to_string(), reason });
            }
            if !done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn empty(&self, extents: &[usize]) -> Result<Tensor> {
        Tensor::empty_on(Spec::new(Shape::new(extents)?, self.x.dtype()), self.gpu.device())
    }

    /// Fills `x` with matrices that are not scaled: with their columns, or with their rows.
    pub(crate) fn load_plain(
        &self,
        c: &Tensor,
        rows: usize,
        columns: usize,
        by_rows: bool,
        elems: [ElemType; 2],
    ) -> Result<()> {
        let (gpu, batch) = (self.gpu, self.dims.batch);
        let total = self.x.numel();
        // SAFETY: the buffers have these extents; no scale is read.
        unsafe {
            if by_rows {
                moves::copy_lines::launch_unchecked(
                    gpu.client(), gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                    CubeDim::new_1d(ELEMENTWISE_UNITS), self.address, c.gpu_arg()?, self.x.gpu_arg()?, total, columns,
                    self.stride, false, elems,
                );
            } else {
                moves::load::launch_unchecked(
                    gpu.client(), gpu.cubes(batch * self.stride.div_ceil(TILE) * columns.div_ceil(TILE)),
                    CubeDim::new_1d(TILE_UNITS as u32), self.address, c.gpu_arg()?, self.tau.gpu_arg()?,
                    self.x.gpu_arg()?, batch, rows, columns, self.stride, false, elems,
                );
            }
        }
        Ok(())
    }

    /// Stores the columns in `x` as rows.
    pub(crate) fn store_lines(&self, out: &Tensor, elems: [ElemType; 2]) -> Result<()> {
        let (gpu, total) = (self.gpu, out.numel());
        // SAFETY: `out` has as many lines as `x`, of `m` elements.
        unsafe {
            moves::copy_lines::launch_unchecked(
                gpu.client(), gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)), CubeDim::new_1d(ELEMENTWISE_UNITS),
                self.address, self.x.gpu_arg()?, out.gpu_arg()?, total, self.dims.m, self.stride, true,
                [elems[1], elems[0]],
            );
        }
        Ok(())
    }

    /// The first `columns` columns of Q, transposed, in `q`.
    fn orthogonal(
        &self,
        steps: &[Step],
        blocks: &[Range<usize>],
        grams: &[Option<Tensor>],
        columns: usize,
        q: Tensor,
    ) -> Result<Tensor> {
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
        for (block, gram) in blocks.iter().zip(grams).rev() {
            let block = Block { steps: &steps[block.clone()], index: block.start, gram: gram.as_ref() };
            self.apply_block(&q, columns, &block, block.steps[0].first, false)?;
        }
        Ok(q)
    }
}
