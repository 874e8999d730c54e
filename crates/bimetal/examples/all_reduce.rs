//! Sums 256 MiB over the ranks of a run and times it, and checks the other collectives; start one process a GPU with
//! torchrun's variables set.

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
    gather_and_broadcast(&group, gpu, &place)?;
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

/// Every rank's numbers in every rank, and the last rank's over all others'.
fn gather_and_broadcast(group: &Group, gpu: &Gpu, place: &Place) -> Result<(), Box<dyn std::error::Error>> {
    const EACH: usize = 1000;
    let of = |rank: usize| (0..EACH).map(move |i| (rank * EACH + i) as f32);
    let mine = Tensor::from_slice(&of(place.rank).collect::<Vec<_>>(), &[EACH])?.to_device(gpu.device())?;
    let all = Tensor::zeros(&[place.size * EACH], mine.dtype())?.to_device(gpu.device())?;
    group.all_gather(gpu.client(), mine.gpu_handle()?, all.gpu_handle()?, EACH, Element::F32)?;
    assert!(all.to_vec::<f32>()?.into_iter().eq((0..place.size).flat_map(of)), "all_gather");
    group.broadcast(gpu.client(), mine.gpu_handle()?, EACH, Element::F32, place.size - 1)?;
    assert!(mine.to_vec::<f32>()?.into_iter().eq(of(place.size - 1)), "broadcast");
    Ok(())
}
