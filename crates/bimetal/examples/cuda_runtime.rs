//! Measures the CUDA runtime: time to the first result, host cost of a launch, and of an operation in a captured graph.

use bimetal::{Device, Graph, Tensor, add, add_into};
use std::time::Instant;

const LAUNCHES: usize = 20_000;
const OPS: usize = 100;
const REPLAYS: usize = 200;

fn main() -> bimetal::Result<()> {
    let start = Instant::now();
    let device = Device::Cuda(0);
    let gpu = bimetal::Gpu::get(device)?;
    println!("connected after        {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let x = Tensor::from_slice(&[1.0f32], &[1])?.to_device(device)?;
    let mut y = add(&x, &x)?;
    assert_eq!(y.to_vec::<f32>()?, [2.0]);
    println!("first result after     {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);

    let mut best = f64::INFINITY;
    for _ in 0..5 {
        gpu.sync()?;
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            add_into(&x, &x, &mut y)?;
        }
        let host = start.elapsed().as_secs_f64() / LAUNCHES as f64;
        gpu.sync()?;
        let device = start.elapsed().as_secs_f64() / LAUNCHES as f64;
        println!("launch, host           {:8.2} µs   with the device {:8.2} µs", host * 1e6, device * 1e6);
        best = best.min(device);
    }
    println!("launch, best           {:8.2} µs", best * 1e6);

    let mut graph = Graph::capture(device, vec![x.clone()], |inputs| {
        let mut sum = add(&inputs[0], &inputs[0])?;
        for _ in 1..OPS {
            sum = add(&sum, &inputs[0])?;
        }
        Ok(vec![sum])
    })?;
    assert!(graph.is_recorded());
    for _ in 0..5 {
        gpu.sync()?;
        let start = Instant::now();
        for _ in 0..REPLAYS {
            graph.replay()?;
        }
        gpu.sync()?;
        let each = start.elapsed().as_secs_f64() / (REPLAYS * OPS) as f64;
        println!("operation in a graph   {:8.2} µs", each * 1e6);
    }
    graph.write(0, &Tensor::from_slice(&[3.0f32], &[1])?)?;
    graph.replay()?;
    assert_eq!(graph.outputs()[0].to_vec::<f32>()?, [3.0 * (OPS + 1) as f32]);

    let before = Instant::now();
    for _ in 0..LAUNCHES {
        drop(Tensor::empty_on(x.spec().clone(), device)?);
    }
    gpu.sync()?;
    println!("allocation             {:8.2} µs", before.elapsed().as_secs_f64() / LAUNCHES as f64 * 1e6);
    println!("memory                 {:?}", gpu.memory_report()?);
    Ok(())
}
