//! Products on the GPU: tiles of the result with both operands in shared memory; where one operand is a few vectors, one
//! pass over the other with 16-byte loads.

mod kernels;

use self::kernels::{columns_of_large, lines_of_large, tiles};
use super::plan::Plan;
use super::{Kind, MatmulParams};
use bimetal_core::gpu::Product;
use bimetal_core::gpu::kernel::{address_type, row_vector};
use bimetal_core::{DType, Error, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// How products are divided.
struct Params {
    /// Rows and columns that a unit sums.
    unit: usize,
    /// Units along each side of a large and of a small tile: 128×128 and 64×64 results.
    large_side: usize,
    small_side: usize,
    /// Steps of the inner dimension in shared memory: tiles of 128 take 16.5 KiB of f32.
    depth: usize,
    /// Most vectors of the small operand for one pass over the large one.
    vectors: usize,
    /// Units of a cube that passes over an operand.
    units: usize,
    /// Of those, the ones that share a line of the large operand, and the neighbouring columns of the others.
    team: usize,
    lanes: usize,
    /// Rows that a unit loads before it multiplies, so that enough bytes are on their way.
    ahead: usize,
}

const PARAMS: Params =
    Params { unit: 8, large_side: 16, small_side: 8, depth: 16, vectors: 8, units: 256, team: 32, lanes: 16, ahead: 4 };

/// The code that computes a product.
enum Way {
    /// Tiles, with this many units along each side.
    Tiles(usize),
    /// The large operand's lines run along the sum; the small operand is the left one if the flag is set.
    Lines(bool),
    /// The large operand's columns run along the sum.
    Columns(bool),
}

/// What is launched for each matrix or row of matrices of the batch.
struct Launch<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    operands: [&'a Tensor; 2],
    d: &'a Tensor,
    alpha: f64,
    tf32: bool,
    /// Products, and the strides of the operands from one to the next.
    batch: [usize; 3],
    /// First elements of the operands and of the result.
    starts: [usize; 3],
}

pub(super) fn matmul(
    gpu: &Gpu,
    kind: Kind,
    plan: &Plan,
    params: &MatmulParams,
    operands: [&Tensor; 2],
    d: &mut Tensor,
) -> Result<()> {
    if plan.numel() == 0 {
        return Ok(());
    }
    if plan.m.max(plan.n).max(plan.k) > i32::MAX as usize {
        let expected = format!("extents of fewer than 2^31 elements, got {}", operands[1].shape());
        return Err(Error::argument(kind.name(), kind.arguments()[1], expected));
    }
    // One axis of the batch goes into a launch; the others are launches of their own.
    let (last, outer) = match plan.batch.split_last() {
        Some((&last, outer)) => (last, outer.iter().map(|axis| axis[0]).product()),
        None => ([1, 0, 0], 1),
    };
    for index in 0..outer {
        let [a, b] = plan.starts(index * last[0]);
        let starts = [a, b, index * last[0] * plan.m * plan.n];
        let launch = Launch { gpu, plan, operands, d, alpha: params.alpha, tf32: params.tf32, batch: last, starts };
        run(&launch)?;
    }
    Ok(())
}

/// Runs the products of a launch: the one place where their implementation is chosen. The vendor's library comes first, but
/// for a matrix times a vector along its lines: on an H200 14336×4096 takes our kernel 63.6 µs and cuBLASLt 65.6.
fn run(launch: &Launch) -> Result<()> {
    let way = choose(launch);
    let one_vector = matches!(way, Way::Lines(_)) && launch.plan.m.min(launch.plan.n) == 1;
    if !one_vector && launch.vendor()? {
        return Ok(());
    }
    match way {
        Way::Tiles(side) => launch.tiles(side),
        Way::Lines(left) => launch.lines(left),
        Way::Columns(left) => launch.columns(left),
    }
}

fn choose(launch: &Launch) -> Way {
    let Plan { m, n, k, a, b, .. } = *launch.plan;
    // WGSL has no i8: its words of four go through the tiles, which take elements one by one.
    if m.min(n) <= PARAMS.vectors && k > 1 && launch.operands[0].dtype() != DType::I8 {
        // With few on both sides, the one that is contiguous along the sum is read as the large one.
        let left = if m.max(n) <= PARAMS.vectors { b[0] == 1 || a[1] != 1 } else { m <= n };
        let (small, large) = if left { (a[1], [b[1], b[0]]) } else { (b[0], a) };
        if large[1] == 1 && small == 1 {
            return Way::Lines(left);
        }
        if large[0] == 1 {
            return Way::Columns(left);
        }
    }
    // Small tiles until large ones would occupy every processor.
    let large = PARAMS.large_side * PARAMS.unit;
    let tiles = launch.batch[0] * m.div_ceil(large) * n.div_ceil(large);
    let shared = 2 * (large + 1) * PARAMS.depth * launch.operands[0].dtype().size().max(4);
    let fits = launch.gpu.max_units as usize >= PARAMS.large_side * PARAMS.large_side && shared <= 32 << 10;
    Way::Tiles(if fits && tiles >= 2 * launch.gpu.processors as usize { PARAMS.large_side } else { PARAMS.small_side })
}

/// Whether a matrix of these strides and extents is stored transposed; none where it has gaps or is neither way contiguous.
fn transposed(strides: [usize; 2], extents: [usize; 2]) -> Option<bool> {
    let contiguous = |outer: usize, inner: usize| {
        (strides[inner] == 1 || extents[inner] == 1) && (strides[outer] == extents[inner] || extents[outer] == 1)
    };
    if contiguous(0, 1) { Some(false) } else { contiguous(1, 0).then_some(true) }
}

impl Launch<'_> {
    /// Runs the products by the vendor's library; false, and nothing done, where it has none for them.
    fn vendor(&self) -> Result<bool> {
        let Plan { m, n, k, a, b, .. } = *self.plan;
        let (Some(a_transposed), Some(b_transposed)) = (transposed(a, [m, k]), transposed(b, [k, n])) else {
            return Ok(false);
        };
        if k == 0 {
            return Ok(false);
        }
        let [batch, a_step, b_step] = self.batch;
        let strides = [a_step, b_step, m * n];
        let (starts, tf32) = (self.starts, self.tf32);
        let product = Product { batch, m, n, k, a_transposed, b_transposed, strides, starts, rows: [0; 3], tf32 };
        let [a, b] = self.operands;
        self.gpu.gemm(&product, self.alpha, 0.0, a, b, self.d)
    }

    fn elements(&self) -> AddressType {
        address_type(self.operands[0].numel().max(self.operands[1].numel()).max(self.d.numel()))
    }

    /// The types of the operands (words of four for i8), of the sums and of the result.
    fn elems(&self) -> Result<[ElemType; 3]> {
        let (operands, sums) = match self.operands[0].dtype() {
            DType::F64 => (DType::F64, DType::F64),
            DType::I8 => (DType::U32, DType::I32),
            dtype => (dtype, DType::F32),
        };
        Ok([self.gpu.elem(operands)?, self.gpu.elem(sums)?, self.gpu.elem(self.d.dtype())?])
    }

    fn tiles(&self, side: usize) -> Result<()> {
        let Plan { m, n, k, a, b, .. } = *self.plan;
        let tile = side * PARAMS.unit;
        let total = self.batch[0] * m.div_ceil(tile) * n.div_ceil(tile);
        let elems = self.elems()?;
        // SAFETY: the strides and extents are those of the buffers, and the kernel drops what is past them.
        unsafe {
            tiles::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(total),
                CubeDim::new_1d((side * side) as u32),
                self.elements(),
                self.operands[0].gpu_arg()?,
                self.operands[1].gpu_arg()?,
                self.d.gpu_arg()?,
                m as u32,
                n as u32,
                k as u32,
                self.batch[0],
                self.starts[0],
                self.starts[1],
                self.starts[2],
                self.batch[1],
                self.batch[2],
                if a[1] == 1 { a[0] } else { a[1] },
                if b[1] == 1 { b[0] } else { b[1] },
                InputScalar::new(self.alpha, elems[1]),
                a[1] == 1,
                b[1] == 1,
                side,
                self.operands[0].dtype() == DType::I8,
                elems,
            );
        }
        Ok(())
    }

    /// The strides of the small operand (from vector to vector, along one), of the large one (from line to line, along
    /// the sum) and of the result (for each of them).
    fn sides(&self, left: bool) -> [[usize; 2]; 3] {
        let Plan { n, a, b, .. } = *self.plan;
        if left { [a, [b[1], b[0]], [n, 1]] } else { [[b[1], b[0]], a, [1, n]] }
    }

    /// The small and the large operand, with first element and stride of the batch.
    fn ordered(&self, left: bool) -> [(&Tensor, usize, usize); 2] {
        let operand = |i: usize| (self.operands[i], self.starts[i], self.batch[i + 1]);
        if left { [operand(0), operand(1)] } else { [operand(1), operand(0)] }
    }

    fn lines(&self, left: bool) -> Result<()> {
        let Plan { m, n, k, .. } = *self.plan;
        let (count, lines) = if left { (m, n) } else { (n, m) };
        let [small, large, out] = self.sides(left);
        let [x, y] = self.ordered(left);
        // Every line and vector starts on a whole vector of this width.
        let starts = [x.1, x.2, y.1, y.2, small[0], large[0], k];
        let width = starts.iter().fold(self.gpu.vector(x.0.dtype()), |width, &n| row_vector(width, n));
        let units = PARAMS.units.min(self.gpu.max_units as usize);
        let elems = self.elems()?;
        // SAFETY: as for tiles.
        unsafe {
            lines_of_large::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.batch[0] * lines.div_ceil(units / PARAMS.team)),
                CubeDim::new_1d(units as u32),
                self.elements(),
                width,
                x.0.gpu_arg()?,
                y.0.gpu_arg()?,
                self.d.gpu_arg()?,
                lines,
                k / width,
                self.batch[0],
                x.1 / width,
                y.1 / width,
                self.starts[2],
                x.2 / width,
                y.2 / width,
                m * n,
                small[0] / width,
                large[0] / width,
                out[0],
                out[1],
                InputScalar::new(self.alpha, elems[1]),
                count,
                units,
                elems,
            );
        }
        Ok(())
    }

    fn columns(&self, left: bool) -> Result<()> {
        let Plan { m, n, k, .. } = *self.plan;
        let (count, lines) = if left { (m, n) } else { (n, m) };
        let [small, large, out] = self.sides(left);
        let [x, y] = self.ordered(left);
        let starts = [y.1, y.2, large[1], lines];
        let width = starts.iter().fold(self.gpu.vector(x.0.dtype()), |width, &n| row_vector(width, n));
        let units = PARAMS.units.min(self.gpu.max_units as usize);
        let elems = self.elems()?;
        // SAFETY: as for tiles.
        unsafe {
            columns_of_large::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(self.batch[0] * (lines / width).div_ceil(PARAMS.lanes)),
                CubeDim::new_1d(units as u32),
                self.elements(),
                width,
                x.0.gpu_arg()?,
                y.0.gpu_arg()?,
                self.d.gpu_arg()?,
                lines / width,
                k,
                self.batch[0],
                x.1,
                y.1 / width,
                self.starts[2],
                x.2,
                y.2 / width,
                m * n,
                small[0],
                small[1],
                large[1] / width,
                out[0],
                out[1],
                InputScalar::new(self.alpha, elems[1]),
                count,
                units,
                elems,
            );
        }
        Ok(())
    }
}

