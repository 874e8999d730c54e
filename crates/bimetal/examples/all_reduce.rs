//! Sums 256 MiB over the ranks of a run and times it; start one process a GPU with torchrun's variables set.

use bimetal::{Device, Gpu, Tensor};
use bimetal_cuda::collective::{Group, Place, Reduction};
use bimetal_cuda::gemm::Element;
use std::time::Instant;

const ELEMENTS: usize = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = Place::from_environment()?;
    let gpu = Gpu::get(Device::Cuda(place.local_rank))?;
    let group = Group::join(place.clone())?;
    let mine = vec![place.rank as f32 + 1.0; ELEMENTS];
    let x = Tensor::from_slice(&mine, &[ELEMENTS])?.to_device(gpu.device())?;
    let reduce = || {
        group
            .all_reduce(gpu.client(), x.gpu_handle()?, ELEMENTS, Element::F32, Reduction::Sum)
            .map_err(Box::<dyn std::error::Error>::from)
    };
    reduce()?;
    let sum = (place.size * (place.size + 1) / 2) as f32;
    let got = x.to_vec::<f32>()?;
    assert!(got.iter().all(|&v| v == sum), "the sum is {sum}, got {}", got[0]);
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        gpu.sync()?;
        let start = Instant::now();
        for _ in 0..10 {
            reduce()?;
        }
        gpu.sync()?;
        best = best.min(start.elapsed().as_secs_f64() / 10.0);
    }
    let moved = 2.0 * (place.size - 1) as f64 / place.size as f64 * (ELEMENTS * 4) as f64;
    println!("rank {}: all-reduce of 256 MiB {:8.1} µs, {:6.1} GB/s", place.rank, best * 1e6, moved / best / 1e9);
    Ok(())
}
