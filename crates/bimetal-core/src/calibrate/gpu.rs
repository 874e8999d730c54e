//! A GPU's rates: launches with and without waiting, large copies on it and to it, and chains of multiply-adds.

use super::{Rates, fastest, typical};
use crate::{DType, Device, DeviceInfo, Gpu, Result, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Cache that a GPU is taken to have, because no driver interface here says: the H200 has 50 MiB.
const ASSUMED_CACHE: u64 = 64 << 20;

/// Launches of a series without a wait.
const SERIES: usize = 200;

/// Vectors that one unit copies in the two forms that are tried.
const PER_UNIT: [usize; 2] = [1, 4];

/// Steps of the multiply-add kernel; each is eight chains of four-wide vectors.
const STEPS: u32 = 512;

const CHAINS: usize = 8;
const UNITS: u32 = 256;

pub(super) fn rates(gpu: &'static Gpu, info: &DeviceInfo) -> Result<Rates> {
    // A software driver shares the host's memory and is thousands of times slower at arithmetic.
    let large = if info.software { 32 << 20 } else { 1 << 30 };
    let room = info.memory.unwrap_or(4 << 30) / 8;
    let large = large.min(room).min(gpu.largest_buffer()) as usize;
    let tiny = Copy::new(gpu, 4096);
    tiny.launch(1);
    gpu.sync()?;
    let sync_s = typical(30, || {
        tiny.launch(1);
        let _ = gpu.sync();
    });
    let launch_s = fastest(5, || {
        for _ in 0..SERIES {
            tiny.launch(1);
        }
        let _ = gpu.sync();
    }) / SERIES as f64;
    let cache_bytes = gpu.client().properties().hardware.last_level_cache_size.map_or(ASSUMED_CACHE, |b| b as u64);
    // Eight copies to a wait keep the wait below a percent.
    let memory_bytes_per_s = copy_rate(gpu, large, if info.software { 1 } else { 8 })?;
    let cache_bytes_per_s = copy_rate(gpu, (cache_bytes as usize / 4).min(large), 20)?;
    let flops_per_s = multiply_add_rate(gpu, info.software)?;
    let (upload, download) = transfer_rates(gpu, large.min(64 << 20))?;
    Ok(Rates {
        launch_s,
        sync_s,
        memory_bytes_per_s,
        cache_bytes_per_s,
        cache_bytes,
        flops_per_s,
        upload_bytes_per_s: Some(upload),
        download_bytes_per_s: Some(download),
    })
}

struct Copy {
    gpu: &'static Gpu,
    x: Handle,
    y: Handle,
    bytes: usize,
}

impl Copy {
    fn new(gpu: &'static Gpu, bytes: usize) -> Self {
        let bytes = bytes.next_multiple_of(16);
        Self { gpu, x: gpu.alloc(bytes), y: gpu.alloc(bytes), bytes }
    }

    fn launch(&self, per_unit: usize) {
        let vectors = self.bytes / 16;
        let units = UNITS.min(self.gpu.max_units);
        // SAFETY: both buffers hold `vectors` vectors, and the kernel drops positions past them.
        unsafe {
            copy_vectors::launch_unchecked(
                self.gpu.client(),
                self.gpu.cubes(vectors.div_ceil(units as usize * per_unit)),
                CubeDim::new_1d(units),
                4,
                BufferArg::from_raw_parts(self.x.clone(), self.bytes / 4),
                BufferArg::from_raw_parts(self.y.clone(), self.bytes / 4),
                vectors as u32,
                per_unit,
            );
        }
    }
}

fn copy_rate(gpu: &'static Gpu, bytes: usize, series: usize) -> Result<f64> {
    let copy = Copy::new(gpu, bytes);
    // Unwritten pages may share one physical page, which would flatter the copy.
    let words = copy.bytes / 4;
    let units = UNITS.min(gpu.max_units);
    for buffer in [&copy.x, &copy.y] {
        // SAFETY: the buffer holds `words` words, and the kernel drops positions past them.
        unsafe {
            count_up::launch_unchecked(
                gpu.client(),
                gpu.cubes(words.div_ceil(units as usize)),
                CubeDim::new_1d(units),
                BufferArg::from_raw_parts(buffer.clone(), words),
                words as u32,
            );
        }
    }
    let mut best = f64::INFINITY;
    for per_unit in PER_UNIT {
        copy.launch(per_unit);
        gpu.sync()?;
        let time = fastest(5, || {
            (0..series).for_each(|_| copy.launch(per_unit));
            let _ = gpu.sync();
        });
        best = best.min(time / series as f64);
    }
    gpu.sync()?;
    Ok(2.0 * copy.bytes as f64 / best)
}

fn multiply_add_rate(gpu: &'static Gpu, software: bool) -> Result<f64> {
    let units = UNITS.min(gpu.max_units);
    let cubes = if software { 16 } else { gpu.processors as usize * 64 };
    let total = cubes * units as usize;
    let out = gpu.alloc(total * 4);
    let launch = || {
        // SAFETY: the buffer holds one value for each unit.
        unsafe {
            multiply_adds::launch_unchecked(
                gpu.client(),
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d(units),
                4,
                BufferArg::from_raw_parts(out.clone(), total),
                0.999,
                0.001,
                STEPS,
            );
        }
        let _ = gpu.sync();
    };
    launch();
    gpu.sync()?;
    let time = fastest(5, launch);
    Ok(2.0 * 4.0 * (CHAINS * STEPS as usize * total) as f64 / time)
}

fn transfer_rates(gpu: &'static Gpu, bytes: usize) -> Result<(f64, f64)> {
    let host = Tensor::zeros(&[bytes / 4], DType::F32)?;
    let mut there = host.to_device(gpu.device())?;
    gpu.sync()?;
    let mut failed = Ok(());
    let up = fastest(5, || {
        let moved = host.to_device(gpu.device()).and_then(|t| gpu.sync().map(|()| t));
        match moved {
            Ok(tensor) => there = tensor,
            Err(e) => failed = Err(e),
        }
    });
    let mut back = there.to_device(Device::Cpu)?;
    let down = fastest(5, || match there.to_device(Device::Cpu) {
        Ok(tensor) => back = tensor,
        Err(e) => failed = Err(e),
    });
    failed?;
    Ok((bytes as f64 / up, bytes as f64 / down))
}

#[cube(launch_unchecked)]
fn copy_vectors<N: Size>(x: &[Vector<u32, N>], y: &mut [Vector<u32, N>], vectors: u32, #[comptime] per_unit: usize) {
    let first = CUBE_POS * CUBE_DIM as usize * per_unit + UNIT_POS as usize;
    #[unroll]
    for i in 0..per_unit {
        let k = first + i * CUBE_DIM as usize;
        if k < vectors as usize {
            y[k] = x[k];
        }
    }
}

#[cube(launch_unchecked)]
fn count_up(x: &mut [u32], n: u32) {
    if ABSOLUTE_POS < n as usize {
        x[ABSOLUTE_POS] = ABSOLUTE_POS as u32;
    }
}

#[cube(launch_unchecked)]
fn multiply_adds<N: Size>(out: &mut [f32], a: f32, b: f32, steps: u32) {
    let scale = Vector::<f32, N>::new(a);
    let shift = Vector::<f32, N>::new(b);
    let mut chains = Array::<Vector<f32, N>>::new(8usize);
    #[unroll]
    for c in 0..8usize {
        chains[c] = Vector::new(b + f32::cast_from(UNIT_POS) + f32::cast_from(c as u32));
    }
    for _ in 0..steps {
        #[unroll]
        for c in 0..8usize {
            chains[c] = fma(chains[c], scale, shift);
        }
    }
    let mut sum = chains[0];
    #[unroll]
    for c in 1..8usize {
        sum += chains[c];
    }
    let mut total = sum.extract(0usize);
    #[unroll]
    for i in 1..sum.vector_size() {
        total += sum.extract(i);
    }
    out[ABSOLUTE_POS] = total;
}
