//! Histogram on the GPU: each cube counts in shared memory and leaves its table to a second launch, which adds the
//! tables in 64 bits. Tables that shared memory does not hold are counted in global memory, one for 2³¹ elements.

use super::Histogram;
use crate::reduction::grid::is_nan_bits;
use bimetal_core::{Device, Error, Gpu, Result, Tensor};
use cubecl::ir::features::AtomicUsage;
use cubecl::ir::{ElemType, Type, UIntKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::sync::Mutex;

/// Most bins that cubes of [`UNITS`] count in shared memory: 16 KiB, so that two cubes fit where there are 32.
const SMALL_BINS: usize = 4096;

/// Shared memory that cubes of [`MANY_UNITS`] use at most for more bins: what CUDA gives without being asked for more.
const LARGE_TABLE: usize = 48 << 10;

/// Units of a cube whose table leaves no room for many cubes.
const MANY_UNITS: u32 = 1024;

/// Cubes for each multiprocessor.
const CUBES: usize = 8;

/// Words of all tables in shared memory at most, so that the second launch stays small.
const TABLE_WORDS: usize = 1 << 21;

/// Vectors that a unit loads at once.
const BATCH: usize = 4;

/// Binary logarithm of the elements that a table in global memory counts: their counts fit in u32.
const SPAN: usize = 31;

/// Units of a cube.
const UNITS: u32 = 256;

/// Bins of a cube of the second launch.
const ACROSS: u32 = 32;

pub(super) fn histogram(gpu: &Gpu, op: &Histogram, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let word = Type::atomic(ElemType::UInt(UIntKind::U32));
    if !gpu.client().properties().atomic_type_usage(word).contains(AtomicUsage::Add) {
        let reason = "it has no 32-bit atomic addition, which histogram needs".to_string();
        return Err(Error::Unavailable { device: gpu.device().to_string(), reason });
    }
    let (bins, n, width) = (op.bins, x.numel(), gpu.vector(x.dtype()));
    let shared = bins <= SMALL_BINS.max(gpu.shared_memory.min(LARGE_TABLE) / 4);
    let units = if shared && bins > SMALL_BINS { MANY_UNITS } else { UNITS }.min(gpu.max_units);
    let wanted = n.div_ceil(width * units as usize * BATCH).max(1).min(gpu.processors as usize * CUBES);
    let fitting = (TABLE_WORDS / bins).max(1);
    // As many for each multiprocessor, or one of them takes twice as long.
    let even = fitting.saturating_sub(fitting % gpu.processors as usize).max(fitting.min(gpu.processors as usize));
    let cubes = if shared { wanted.min(even) } else { wanted };
    let tables = if shared { cubes } else { n.div_ceil(1 << SPAN).max(1) };
    let counts = gpu.alloc(tables * bins * 4);
    let edges = edges(gpu, op);
    let address = if n > i32::MAX as usize { AddressType::U64 } else { AddressType::U32 };
    let elem = gpu.elem(x.dtype())?;
    // SAFETY: `x` holds `n` elements and its buffer the whole of the last vector, `counts` the tables, one for each cube
    // if they are shared, `y` two words for each bin, and the kernels drop elements, words and bins past those counts.
    unsafe {
        if !shared {
            zero::launch_unchecked(
                gpu.client(),
                gpu.cubes((tables * bins).div_ceil(units as usize)),
                CubeDim::new_1d(units),
                BufferArg::from_raw_parts(counts.clone(), tables * bins),
                tables * bins,
            );
        }
        count::launch_unchecked(
            gpu.client(),
            gpu.cubes(cubes),
            CubeDim::new_1d(units),
            address,
            width,
            x.gpu_arg()?,
            BufferArg::from_raw_parts(edges.handle, bins + 1),
            BufferArg::from_raw_parts(counts.clone(), tables * bins),
            n,
            bins as u32,
            edges.scale,
            if shared { table_length(bins) } else { 0 },
            edges.guess,
            elem,
        );
        add_tables::launch_unchecked(
            gpu.client(),
            gpu.cubes(bins.div_ceil(ACROSS.min(gpu.max_units) as usize)),
            CubeDim::new_1d(UNITS.min(gpu.max_units)),
            BufferArg::from_raw_parts(counts, tables * bins),
            BufferArg::from_raw_parts(y.gpu_handle()?, 2 * bins),
            bins as u32,
            tables as u32,
            UNITS.min(gpu.max_units),
        );
    }
    Ok(())
}

/// The length of a table in shared memory: few, so that few kernels are compiled.
fn table_length(bins: usize) -> usize {
    if bins > SMALL_BINS { bins.next_multiple_of(1024) } else { bins.next_power_of_two().max(256) }
}

/// Edges on a device.
#[derive(Clone)]
struct Edges {
    handle: Handle,
    scale: f32,
    /// Whether a position's bin is the right one or a neighbour of it.
    guess: bool,
}

/// The edges of `op` on `gpu`; those of the latest calls are kept there, because an upload takes as long as counting
/// some million elements.
fn edges(gpu: &Gpu, op: &Histogram) -> Edges {
    const KEPT: usize = 8;
    static CACHE: Mutex<Vec<(Device, Histogram, Edges)>> = Mutex::new(Vec::new());
    let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, _, edges)) = cache.iter().find(|(device, known, _)| *device == gpu.device() && known == op) {
        return edges.clone();
    }
    let bins = op.bins();
    let bytes: Vec<u8> = bins.edges.iter().flat_map(|e| e.to_ne_bytes()).collect();
    let edges = Edges { handle: gpu.upload(&bytes), scale: bins.scale, guess: bins.error.is_finite() };
    if cache.len() == KEPT {
        cache.remove(0);
    }
    cache.push((gpu.device(), *op, edges.clone()));
    edges
}

#[cube(launch_unchecked)]
fn zero(counts: &mut [u32], n: usize) {
    if ABSOLUTE_POS < n {
        counts[ABSOLUTE_POS] = 0;
    }
}

/// `table` is the length of the table in shared memory, 0 to count in global memory.
#[cube(launch_unchecked, address_type = "dynamic")]
fn count<F: Float, N: Size>(
    x: &[Vector<F, N>],
    edges: &[f32],
    counts: &mut [Atomic<u32>],
    n: usize,
    bins: u32,
    scale: f32,
    #[comptime] table: usize,
    #[comptime] guess: bool,
    #[define(F)] _dtype: ElemType,
) {
    let shared = Shared::<[Atomic<u32>]>::new_slice(comptime!(if table > 0 { table } else { 1 }));
    if comptime!(table > 0) {
        let mut i = UNIT_POS;
        while i < bins {
            shared[i as usize].store(0u32);
            i += CUBE_DIM;
        }
        sync_cube();
    }
    let width = N::value();
    let vectors = n.div_ceil(width);
    let stride = CUBE_COUNT * CUBE_DIM as usize;
    let (low, high) = (edges[0], edges[bins as usize]);
    let mut k = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    while k < vectors {
        let mut values = Array::<Vector<f32, N>>::new(BATCH);
        #[unroll]
        for i in 0..BATCH {
            values[i] = Vector::new(0.0f32);
            if k + i * stride < vectors {
                values[i] = Vector::cast_from(x[k + i * stride]);
            }
        }
        #[unroll]
        for i in 0..BATCH {
            let first = (k + i * stride) * width;
            #[unroll]
            for lane in 0..width {
                let v = values[i].extract(lane);
                if first + lane < n && v >= low && v <= high && !is_nan_bits(v) {
                    let bin = bin_of(v, edges, low, bins, scale, guess);
                    if comptime!(table > 0) {
                        shared[bin as usize].fetch_add(1u32);
                    } else {
                        counts[(first >> SPAN) * bins as usize + bin as usize].fetch_add(1u32);
                    }
                }
            }
        }
        k += BATCH * stride;
    }
    if comptime!(table > 0) {
        sync_cube();
        let mut i = UNIT_POS;
        while i < bins {
            counts[CUBE_POS * bins as usize + i as usize].store(shared[i as usize].load());
            i += CUBE_DIM;
        }
    }
}

/// The last bin whose lower edge is not above `v`.
#[cube]
fn bin_of(v: f32, edges: &[f32], low: f32, bins: u32, scale: f32, #[comptime] guess: bool) -> u32 {
    let mut bin = 0u32;
    if comptime!(guess) {
        bin = min(u32::cast_from((v - low) * scale), bins - 1);
        let down = select(v < edges[bin as usize], 1u32, 0u32);
        let up = select(v >= edges[bin as usize + 1] && bin + 1 < bins, 1u32, 0u32);
        bin = bin + up - down;
    } else {
        let mut end = bins;
        while end - bin > 1 {
            let middle = (bin + end) / 2;
            let not_above = edges[middle as usize] <= v;
            bin = select(not_above, middle, bin);
            end = select(not_above, end, middle);
        }
    }
    bin
}

/// Adds the tables: some units share a bin, and the first of them adds their sums.
#[cube(launch_unchecked)]
fn add_tables(counts: &[u32], y: &mut [u32], bins: u32, tables: u32, #[comptime] units: u32) {
    let mut lows = Shared::<[u32]>::new_slice(units as usize);
    let mut highs = Shared::<[u32]>::new_slice(units as usize);
    let shares = comptime!(if units > ACROSS { units / ACROSS } else { 1 });
    let across = comptime!(if units > ACROSS { ACROSS } else { units });
    let bin = CUBE_POS * across as usize + (UNIT_POS % across) as usize;
    let share = UNIT_POS / across;
    let mut low = 0u32;
    let mut high = 0u32;
    if bin < bins as usize {
        let mut t = share;
        while t < tables {
            let c = counts[t as usize * bins as usize + bin];
            low += c;
            high += select(low < c, 1u32, 0u32);
            t += shares;
        }
    }
    lows[UNIT_POS as usize] = low;
    highs[UNIT_POS as usize] = high;
    sync_cube();
    if share == 0 && bin < bins as usize {
        #[unroll]
        for other in 1..shares {
            let at = (UNIT_POS + other * across) as usize;
            low += lows[at];
            high += highs[at] + select(low < lows[at], 1u32, 0u32);
        }
        y[2 * bin] = low;
        y[2 * bin + 1] = high;
    }
}
