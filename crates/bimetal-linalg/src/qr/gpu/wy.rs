//! Reflectors that are applied together, as `1 − V·T·Vᵀ` with a triangle `T`, by the vendor's products.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::gpu::{Product, counted};
use bimetal_core::{Error, Gpu, Result, Shape, Spec, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use std::ops::Range;

/// Reflectors whose triangle a cube makes; groups consist of so many, or a multiple.
pub(crate) const BLOCK: usize = 64;
/// Units that make it.
const UNITS: usize = 256;
/// Order of the triangles that units make alone, a column each.
const LEAF: usize = 8;

/// The reflectors of a batch of matrices, as rows of `stride` elements of which there are `rows` for each matrix, with the
/// triangles of groups of `size`. Starts of groups and of rows are multiples of [`BLOCK`].
pub(crate) struct Groups<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) v: &'a Tensor,
    pub(crate) tau: &'a Tensor,
    batch: usize,
    rows: usize,
    stride: usize,
    pub(crate) size: usize,
    /// For each group its products of pairs, and the triangle, one matrix after another.
    pub(crate) gram: Tensor,
    pub(crate) t: Tensor,
    /// Inner products of lines and reflectors, and what becomes of them; a part of each triangle while it grows.
    inner: Tensor,
    weights: Tensor,
    elem: ElemType,
}

/// Lines of `stride` elements, so many for each matrix.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) count: usize,
}

/// The group of a reflector, and its place there.
fn place(reflector: usize, size: usize) -> [usize; 2] {
    [reflector / size, reflector % size]
}

impl<'a> Groups<'a> {
    /// Room for groups of `size` of the first `count` reflectors, and for applying them to `lines` lines.
    pub(crate) fn new(
        gpu: &'a Gpu,
        [v, tau]: [&'a Tensor; 2],
        [count, size, lines]: [usize; 3],
        elem: ElemType,
    ) -> Result<Self> {
        let (batch, rows, stride) = (v.shape()[0], v.shape()[1], v.shape()[2]);
        let make = |extents: &[usize]| Tensor::empty_on(Spec::new(Shape::new(extents)?, v.dtype()), gpu.device());
        let groups = count.div_ceil(size);
        let made = Self {
            gpu,
            v,
            tau,
            batch,
            rows,
            stride,
            size,
            gram: make(&[groups, batch, size, size])?,
            t: make(&[groups, batch, size, size])?,
            inner: make(&[batch, lines.max(size), size])?,
            weights: make(&[batch, lines, size])?,
            elem,
        };
        let total = made.t.numel();
        // SAFETY: `total` is the number of elements.
        unsafe {
            clear::launch_unchecked(
                gpu.client(),
                gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
                CubeDim::new_1d(ELEMENTWISE_UNITS),
                address_type(total),
                made.t.gpu_arg()?,
                total,
                elem,
            );
        }
        Ok(made)
    }

    /// Bytes that [`Groups::new`] allocates.
    pub(crate) fn bytes(batch: usize, [count, size, lines]: [usize; 3], bytes: usize) -> usize {
        let all = |elements: usize| counted(batch * elements * bytes);
        2 * all(count.div_ceil(size) * size * size) + all(lines.max(size) * size) + all(lines * size)
    }

    /// Where in the triangles row `i` and column `j` of a group's are, for reflectors.
    fn at(&self, i: usize, j: usize) -> usize {
        let ([group, i], j) = (place(i, self.size), j % self.size);
        (group * self.batch * self.size + i) * self.size + j
    }

    fn multiply(&self, product: Product, [alpha, beta]: [f64; 2], [a, b, d]: [&Tensor; 3]) -> Result<()> {
        if self.gpu.gemm(&product, alpha, beta, a, b, d)? {
            return Ok(());
        }
        let reason = "the library of products refuses one".to_string();
        Err(Error::Unavailable { device: self.gpu.device().to_string(), reason })
    }

    /// The products of the pairs of a block of reflectors, and of each with those before it in the group, and the triangle
    /// of the block. The block starts at a multiple of [`BLOCK`].
    pub(crate) fn block(&self, block: Range<usize>) -> Result<()> {
        let Self { batch, size, stride, .. } = *self;
        let group = block.start / size * size;
        let (square, lines) = (size * size, self.rows * stride);
        let pairs = Product {
            batch,
            m: block.end - group,
            n: block.len(),
            k: stride - group,
            b_transposed: true,
            strides: [lines, lines, square],
            starts: [group * stride + group, block.start * stride + group, self.at(group, block.start)],
            rows: [stride, stride, size],
            ..Product::default()
        };
        self.multiply(pairs, [1.0, 0.0], [self.v, self.v, &self.gram])?;
        self.triangle(block)
    }

    /// The triangle of a block of reflectors, of which the products of the pairs are there.
    pub(crate) fn triangle(&self, block: Range<usize>) -> Result<()> {
        let Self { batch, size, .. } = *self;
        // SAFETY: the block of each matrix lies within the buffers.
        unsafe {
            triangle::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(batch),
                CubeDim::new_1d(UNITS as u32),
                address_type(self.gram.numel()),
                self.gram.gpu_arg()?,
                self.tau.gpu_arg()?,
                self.t.gpu_arg()?,
                batch,
                self.rows,
                size,
                block.start,
                self.at(block.start, block.start),
                block.len() as u32,
                self.elem,
            );
        }
        Ok(())
    }

    /// The triangle of a group of reflectors from those of its blocks, `T₁₂ = −T₁·G₁₂·T₂`.
    pub(crate) fn merge(&self, group: Range<usize>) -> Result<()> {
        let Self { batch, size, .. } = *self;
        let square = size * size;
        let mut half = BLOCK;
        while half < group.len() {
            for first in group.clone().step_by(2 * half).filter(|first| first + half < group.end) {
                let second = first + half;
                let columns = half.min(group.end - second);
                let (corner, next) = (self.at(first, second), self.at(second, second));
                let right = Product {
                    batch,
                    m: half,
                    n: columns,
                    k: columns,
                    strides: [square, square, half * columns.next_multiple_of(BLOCK)],
                    starts: [corner, next, 0],
                    rows: [size, size, columns.next_multiple_of(BLOCK)],
                    ..Product::default()
                };
                self.multiply(right, [1.0, 0.0], [&self.gram, &self.t, &self.inner])?;
                let left = Product {
                    k: half,
                    strides: [square, right.strides[2], square],
                    starts: [self.at(first, first), 0, corner],
                    rows: [size, right.rows[2], size],
                    ..right
                };
                self.multiply(left, [-1.0, 0.0], [&self.t, &self.inner, &self.t])?;
            }
            half *= 2;
        }
        Ok(())
    }

    /// Applies the reflectors of a block or a group to the lines `to` of each matrix, `x − x·Vᵀ·T·V`: the first one first if
    /// `forward`, else the last one. The triangle is there, and the reflectors' elements before `block.start` are zeros.
    pub(crate) fn apply(&self, block: Range<usize>, lines: Lines, to: Range<usize>, forward: bool) -> Result<()> {
        let Self { batch, size, stride, .. } = *self;
        if to.is_empty() {
            return Ok(());
        }
        let (own, all, part) = (self.rows * stride, lines.count * stride, to.len() * size);
        let x = to.start * stride + block.start;
        let v = block.start * stride + block.start;
        let first = Product {
            batch,
            m: to.len(),
            n: block.len(),
            k: stride - block.start,
            b_transposed: true,
            strides: [all, own, part],
            starts: [x, v, 0],
            rows: [stride, stride, size],
            ..Product::default()
        };
        self.multiply(first, [1.0, 0.0], [lines.x, self.v, &self.inner])?;
        let second = Product {
            k: block.len(),
            b_transposed: !forward,
            strides: [part, size * size, part],
            starts: [0, self.at(block.start, block.start), 0],
            rows: [size; 3],
            ..first
        };
        self.multiply(second, [1.0, 0.0], [&self.inner, &self.t, &self.weights])?;
        let third = Product {
            n: stride - block.start,
            k: block.len(),
            b_transposed: false,
            strides: [part, own, all],
            starts: [0, v, x],
            rows: [size, stride, stride],
            ..first
        };
        self.multiply(third, [-1.0, 1.0], [&self.weights, self.v, lines.x])
    }

    /// Makes the triangles of all groups of reflectors that are there already. Those of one matrix are made together if the last
    /// group is filled up with zeros.
    pub(crate) fn prepare(&self, count: usize) -> Result<()> {
        let groups = count.div_ceil(self.size);
        let room = self.inner.numel() >= groups * self.size * self.size / 4;
        if self.batch == 1 && self.rows >= groups * self.size && room {
            // The groups of one matrix are a batch of matrices with one group.
            let together = Self {
                batch: groups,
                rows: self.size,
                gram: self.gram.clone(),
                t: self.t.clone(),
                inner: self.inner.clone(),
                weights: self.weights.clone(),
                ..*self
            };
            for block in (0..self.size).step_by(BLOCK) {
                together.block(block..block + BLOCK)?;
            }
            return together.merge(0..self.size);
        }
        for group in (0..count).step_by(self.size) {
            let end = count.min(group + self.size);
            for block in (group..end).step_by(BLOCK) {
                self.block(block..end.min(block + BLOCK))?;
            }
            self.merge(group..end)?;
        }
        Ok(())
    }

    /// Applies the groups of the first `count` reflectors to the lines from `from(first reflector)` on.
    pub(crate) fn apply_all(
        &self,
        count: usize,
        lines: Lines,
        forward: bool,
        from: impl Fn(usize) -> usize,
    ) -> Result<()> {
        let groups = count.div_ceil(self.size);
        for turn in 0..groups {
            let first = self.size * if forward { turn } else { groups - 1 - turn };
            self.apply(first..count.min(first + self.size), lines, from(first)..lines.count, forward)?;
        }
        Ok(())
    }
}

/// Zeros.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn clear<A: Float>(x: &mut [A], total: usize, #[define(A)] _elem: ElemType) {
    if ABSOLUTE_POS < total {
        x[ABSOLUTE_POS] = A::from_int(0);
    }
}

/// The triangle of `count` ≤ 64 reflectors from number `first` on, for which their product is `1 − V·T·Vᵀ`, from the products of their
/// pairs: small triangles a column to a unit, then pairs of them, `T₁₂ = −T₁·G₁₂·T₂`. A cube for each matrix; both
/// squares start at `start`, in matrices of order `size`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn triangle<A: Float>(
    gram: &[A],
    tau: &[A],
    t: &mut [A],
    batch: usize,
    rows: usize,
    size: usize,
    first: usize,
    start: usize,
    count: u32,
    #[define(A)] _elem: ElemType,
) {
    let line = comptime!(BLOCK + 1);
    let mut g = Shared::<[A]>::new_slice(comptime!(BLOCK * (BLOCK + 1)));
    let mut half = Shared::<[A]>::new_slice(comptime!(BLOCK * BLOCK / 4));
    let count = count as usize;
    let unit = UNIT_POS as usize;
    let matrix = select(CUBE_POS < batch, CUBE_POS, 0usize);
    let base = start + matrix * size * size;
    let zero = A::from_int(0);
    #[unroll]
    for step in 0..comptime!(BLOCK * BLOCK / UNITS) {
        let e = unit + comptime!(step * UNITS);
        let (i, j) = (e / BLOCK, e % BLOCK);
        let mut value = zero;
        if i < count && j < count {
            value = gram[base + i * size + j];
        }
        g[i * line + j] = value;
    }
    sync_cube();
    leaves::<A>(&mut g, tau, matrix * rows + first, count);
    #[unroll]
    for level in 0..comptime!((BLOCK / LEAF).trailing_zeros()) {
        let h = comptime!(LEAF << level);
        sync_cube();
        let total = comptime!(BLOCK / (2 * h) * h * h);
        let mut e = unit;
        while e < total {
            let (corner, i, j) = (e / (h * h) * comptime!(2 * h), e / h % h, e % h);
            let mut sum = zero;
            for l in 0..j + 1 {
                sum += g[(corner + i) * line + corner + h + l] * g[(corner + h + j) * line + corner + h + l];
            }
            half[e] = sum;
            e += UNITS;
        }
        sync_cube();
        let mut e = unit;
        while e < total {
            let (pair, i, j) = (e / (h * h), e / h % h, e % h);
            let corner = pair * comptime!(2 * h);
            let mut sum = zero;
            for l in i..h {
                sum += g[(corner + l) * line + corner + i] * half[(pair * h + l) * h + j];
            }
            g[(corner + h + j) * line + corner + i] = zero - sum;
            e += UNITS;
        }
    }
    sync_cube();
    if CUBE_POS < batch {
        let mut e = unit;
        while e < count * count {
            let (i, j) = (e / count, e % count);
            t[base + i * size + j] = select(i <= j, g[j * line + i], zero);
            e += UNITS;
        }
    }
}

/// The small triangles on the diagonal, a column to a unit; `tau` has the first reflector's at `from`. The triangle is kept
/// transposed, below and on the diagonal.
#[cube]
fn leaves<A: Float>(g: &mut Shared<[A]>, tau: &[A], from: usize, count: usize) {
    let line = comptime!(BLOCK + 1);
    let unit = UNIT_POS as usize;
    let zero = A::from_int(0);
    if unit < BLOCK {
        let corner = unit / LEAF * LEAF;
        let own = unit % LEAF;
        let mut column = Array::<A>::new(LEAF);
        #[unroll]
        for step in 0..LEAF {
            let j = comptime!(LEAF - 1 - step);
            let mut sum = select(j == own, A::from_int(1), zero);
            #[unroll]
            for i in comptime!(j + 1)..LEAF {
                // Below the diagonal there are zeros.
                sum -= g[(corner + j) * line + corner + i] * column[i];
            }
            let mut factor = zero;
            if corner + j < count {
                factor = tau[from + corner + j];
            }
            column[j] = factor * sum;
            if j <= own {
                g[unit * line + corner + j] = factor * sum;
            }
        }
    }
}
