//! Measures the CUDA runtime: time to the first result, host cost of a launch, and of an operation in a captured graph.

use bimetal::gpu::Product;
use bimetal::{DType, Device, Graph, Shape, Spec, Tensor, add, add_into};
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
    let mut burst = f64::INFINITY;
    for _ in 0..50 {
        gpu.sync()?;
        let start = Instant::now();
        for _ in 0..30 {
            add_into(&x, &x, &mut y)?;
        }
        burst = burst.min(start.elapsed().as_secs_f64() / 30.0);
    }
    println!("the caller's part      {:8.2} µs", burst * 1e6);
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
    products(gpu)
}

/// Times products by the vendor's library: batch, rows, columns, length.
fn products(gpu: &bimetal::Gpu) -> bimetal::Result<()> {
    let shapes = [
        (1, 8192, 8192, 8192),
        (1, 8192, 14336, 4096),
        (1, 1, 14336, 4096),
        (1, 8, 14336, 4096),
        (1, 128, 4096, 4096),
        (64, 128, 128, 128),
        (1, 2048, 2048, 2048),
    ];
    for dtype in [DType::BF16, DType::F32] {
        for (batch, m, n, k) in shapes {
            let random = |rows: usize, columns: usize, seed: u64| {
                let mut state = seed;
                let values: Vec<f32> = (0..batch * rows * columns)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                    })
                    .collect();
                let host = Tensor::from_f64(
                    &values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
                    &[batch, rows, columns],
                    dtype,
                )?;
                host.to_device(gpu.device())
            };
            let (a, b) = (random(m, k, 1)?, random(k, n, 2)?);
            let d = Tensor::empty_on(Spec::new(Shape::new(&[batch, m, n])?, dtype), gpu.device())?;
            let product = Product {
                batch,
                m,
                n,
                k,
                a_transposed: false,
                b_transposed: false,
                strides: [m * k, k * n, m * n],
                ..Product::default()
            };
            let repeats = if m > 4096 { 20 } else { 200 };
            let mut best = f64::INFINITY;
            for _ in 0..6 {
                gpu.sync()?;
                let start = Instant::now();
                for _ in 0..repeats {
                    assert!(gpu.gemm(&product, 1.0, 0.0, &a, &b, &d)?);
                }
                gpu.sync()?;
                best = best.min(start.elapsed().as_secs_f64() / f64::from(repeats));
            }
            let rate = 2.0 * (batch * m * n * k) as f64 / best / 1e12;
            println!("bimetal {dtype} {batch}x{m}x{n}x{k} {:10.2} µs {rate:8.1} TFLOP/s", best * 1e6);
        }
    }
    Ok(())
}
