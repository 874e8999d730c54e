//! Results in the dtype and the order that the caller wants: NaN for matrices that failed.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use bimetal_core::gpu::kernel::{ELEMENTWISE_UNITS, address_type};
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Rows and columns of a tile, and units that copy it.
const TILE: usize = 32;
const UNITS: u32 = 256;

/// How vectors, which are rows of `found` elements, become an output.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    /// Vectors that are kept, of how many, and elements of each.
    pub(crate) rows: usize,
    pub(crate) of: usize,
    pub(crate) len: usize,
    /// They become columns.
    pub(crate) columns: bool,
    /// The first `turned` of them are taken from the last of these to the first.
    pub(crate) turned: usize,
}

/// Writes values, times each matrix's scale; from the last to the first if `descending`.
///
/// # Errors
/// A dtype that the device lacks.
pub(crate) fn store_values(
    gpu: &Gpu,
    values: &Tensor,
    scale: &Handle,
    status: &Tensor,
    out: &Tensor,
    descending: bool,
) -> Result<()> {
    let (total, batch) = (out.numel(), status.numel());
    // SAFETY: `scale` has a number for each matrix, and the kernel stops at `total`.
    unsafe {
        write_values::launch_unchecked(
            gpu.client(),
            gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(total),
            values.gpu_arg()?,
            BufferArg::from_raw_parts(scale.clone(), batch),
            status.gpu_arg()?,
            out.gpu_arg()?,
            total,
            total / batch,
            InputScalar::new(f64::NAN, gpu.elem(values.dtype())?),
            descending,
            [gpu.elem(out.dtype())?, gpu.elem(values.dtype())?],
        );
    }
    Ok(())
}

/// Writes vectors.
///
/// # Errors
/// As [`store_values`].
pub(crate) fn store_vectors(
    gpu: &Gpu,
    vectors: &Handle,
    dtype: DType,
    status: &Tensor,
    out: &Tensor,
    kept: Kept,
) -> Result<()> {
    let batch = status.numel();
    let tiles = kept.rows.div_ceil(TILE) * kept.len.div_ceil(TILE);
    let elements = batch * kept.of * kept.len;
    // SAFETY: the buffer has `of` vectors of `len` elements for each matrix, and the kernel stops at those that are kept.
    unsafe {
        write_vectors::launch_unchecked(
            gpu.client(),
            gpu.cubes(batch * tiles),
            CubeDim::new_1d(UNITS.min(gpu.max_units)),
            address_type(elements.max(out.numel())),
            BufferArg::from_raw_parts(vectors.clone(), elements),
            status.gpu_arg()?,
            out.gpu_arg()?,
            batch,
            kept.rows,
            kept.of,
            kept.len,
            kept.turned,
            InputScalar::new(f64::NAN, gpu.elem(dtype)?),
            kept.columns,
            [gpu.elem(out.dtype())?, gpu.elem(dtype)?],
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub fn write_values<I: Float, F: Float>(
    values: &[F],
    scale: &[F],
    status: &[i32],
    out: &mut [I],
    total: usize,
    n: usize,
    nan: InputScalar,
    #[comptime] descending: bool,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let matrix = e / n;
        let from = if comptime!(descending) { matrix * n + (n - 1 - e % n) } else { e };
        let value = values[from] * scale[matrix];
        out[e] = I::cast_from(select(status[matrix] < 0, nan.get::<F>(), value));
    }
}

/// A cube for each tile, through shared memory if vectors become columns.
#[cube(launch_unchecked, address_type = "dynamic")]
pub fn write_vectors<I: Float, F: Float>(
    vectors: &[F],
    status: &[i32],
    out: &mut [I],
    batch: usize,
    rows: usize,
    of: usize,
    len: usize,
    turned: usize,
    nan: InputScalar,
    #[comptime] columns: bool,
    #[define(I, F)] _elems: [ElemType; 2],
) {
    let mut tile = Shared::<[F]>::new_slice(comptime!(TILE * (TILE + 1)));
    let across = len.div_ceil(comptime!(TILE));
    let tiles = rows.div_ceil(comptime!(TILE)) * across;
    let matrix = min(CUBE_POS / tiles, batch - 1);
    let inside = CUBE_POS / tiles < batch;
    let row = CUBE_POS % tiles / across * comptime!(TILE);
    let column = CUBE_POS % across * comptime!(TILE);
    let failed = status[matrix] < 0;
    let nan = nan.get::<F>();
    let mut e = UNIT_POS as usize;
    while e < comptime!(TILE * TILE) {
        let (r, c) = (row + e / comptime!(TILE), column + e % comptime!(TILE));
        if inside && r < rows && c < len {
            let from = select(r < turned, turned - 1 - min(r, turned), r);
            let value = select(failed, nan, vectors[(matrix * of + from) * len + c]);
            if comptime!(columns) {
                tile[e % comptime!(TILE) * comptime!(TILE + 1) + e / comptime!(TILE)] = value;
            } else {
                out[(matrix * rows + r) * len + c] = I::cast_from(value);
            }
        }
        e += CUBE_DIM as usize;
    }
    if comptime!(columns) {
        sync_cube();
        e = UNIT_POS as usize;
        while e < comptime!(TILE * TILE) {
            let (r, c) = (row + e % comptime!(TILE), column + e / comptime!(TILE));
            if inside && r < rows && c < len {
                let value = tile[e / comptime!(TILE) * comptime!(TILE + 1) + e % comptime!(TILE)];
                out[(matrix * len + c) * rows + r] = I::cast_from(value);
            }
            e += CUBE_DIM as usize;
        }
    }
}

/// `rows` vectors of `m` elements: the `n` that are given, with zeros at their ends, and unit vectors.
///
/// # Errors
/// As [`store_values`].
pub(crate) fn lengthen(
    gpu: &Gpu,
    dtype: DType,
    batch: usize,
    vectors: Option<&Handle>,
    [n, rows, m]: [usize; 3],
) -> Result<Handle> {
    let total = batch * rows * m;
    let out = gpu.alloc(total.max(1) * dtype.size());
    let nothing = gpu.alloc(8);
    if total == 0 {
        return Ok(out);
    }
    // SAFETY: the buffers have these lengths, past which the kernel touches nothing.
    unsafe {
        write_longer::launch_unchecked(
            gpu.client(),
            gpu.cubes(total.div_ceil(ELEMENTWISE_UNITS as usize)),
            CubeDim::new_1d(ELEMENTWISE_UNITS),
            address_type(total),
            match vectors {
                Some(vectors) => BufferArg::from_raw_parts(vectors.clone(), batch * n * n),
                None => BufferArg::from_raw_parts(nothing, 1),
            },
            BufferArg::from_raw_parts(out.clone(), total),
            total,
            n,
            rows,
            m,
            gpu.elem(dtype)?,
        );
    }
    Ok(out)
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub fn write_longer<F: Float>(
    vectors: &[F],
    out: &mut [F],
    total: usize,
    n: usize,
    rows: usize,
    m: usize,
    #[define(F)] _elem: ElemType,
) {
    let e = ABSOLUTE_POS;
    if e < total {
        let (matrix, r, c) = (e / m / rows, e / m % rows, e % m);
        let mut value = select(r == c, F::new(1.0), F::new(0.0));
        if r < n {
            value = F::new(0.0);
            if c < n {
                value = vectors[(matrix * n + r) * n + c];
            }
        }
        out[e] = value;
    }
}
