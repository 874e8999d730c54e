//! Products by the vendor's library on a CUDA device: what is done to them before they are stored, and integers. Without a
//! device every test says so and passes.

use bimetal::{DType, Device, Gpu, Tensor};
use bimetal_core::verify::Random;
use bimetal_cuda::gemm::{Buffers, Element, Epilogue, Shape, available, gemm};

const DEVICE: Device = Device::Cuda(0);
const SIZES: [usize; 3] = [96, 160, 128];

fn gpu() -> Option<&'static Gpu> {
    match Gpu::get(DEVICE) {
        Ok(gpu) if available() => Some(gpu),
        Ok(_) => {
            println!("skipped: no cuBLASLt");
            None
        }
        Err(reason) => {
            let wanted =
                std::env::var("BIMETAL_DEVICES").is_ok_and(|devices| devices.split(',').any(|d| d == "cuda:0"));
            assert!(!wanted, "cuda:0 is to be tested: {reason}");
            println!("skipped: {reason}");
            None
        }
    }
}

fn random(seed: u64, n: usize, dtype: DType) -> Tensor {
    let mut random = Random::new(seed);
    Tensor::from_f64(&(0..n).map(|_| random.normal()).collect::<Vec<_>>(), &[n], dtype).unwrap()
}

/// GELU in its tanh form, and its derivative.
fn gelu(x: f64) -> [f64; 2] {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let t = (c * (x + 0.044715 * x * x * x)).tanh();
    let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x);
    [0.5 * x * (1.0 + t), slope]
}

/// Largest difference, relative to the largest value.
fn distance(got: &Tensor, exact: &[f64]) -> f64 {
    let got = got.to_device(Device::Cpu).unwrap().to_f64_vec().unwrap();
    let largest = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    got.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

fn epilogue(gpu: &Gpu, epilogue: Epilogue, dtype: DType, element: Element, tolerance: f64) {
    let [m, n, k] = SIZES;
    let (a, b) = (random(1, m * k, dtype), random(2, n * k, dtype));
    let (bias, auxiliary) = (random(3, n, dtype), random(4, m * n, dtype));
    let [x, y] = [&a, &b].map(|t| t.to_f64_vec().unwrap());
    let product: Vec<f64> = (0..m * n).map(|i| (0..k).map(|l| x[i / n * k + l] * y[i % n * k + l]).sum()).collect();
    let [bias_in, kept] = [&bias, &auxiliary].map(|t| t.to_f64_vec().unwrap());
    let plus = |i: usize| product[i] + bias_in[i % n];
    let exact: Vec<f64> = (0..m * n)
        .map(|i| match epilogue {
            Epilogue::None => product[i],
            Epilogue::Bias => plus(i),
            Epilogue::Gelu | Epilogue::GeluKeep => gelu(product[i])[0],
            Epilogue::BiasGelu | Epilogue::BiasGeluKeep => gelu(plus(i))[0],
            Epilogue::GeluBackward | Epilogue::GeluBiasBackward => product[i] * gelu(kept[i])[1],
        })
        .collect();
    let on_device = |t: &Tensor| t.to_device(DEVICE).unwrap();
    let [a, b, bias, auxiliary] = [&a, &b, &bias, &auxiliary].map(on_device);
    let d = Tensor::zeros(&[m, n], dtype).unwrap().to_device(DEVICE).unwrap();
    let [a, b, out] = [&a, &b, &d].map(|t| t.gpu_handle().unwrap());
    let biased = !matches!(epilogue, Epilogue::None | Epilogue::Gelu | Epilogue::GeluKeep | Epilogue::GeluBackward);
    let kept = !matches!(epilogue, Epilogue::None | Epilogue::Bias | Epilogue::Gelu | Epilogue::BiasGelu);
    let handle = |wanted: bool, t: &Tensor| wanted.then(|| t.gpu_handle().unwrap());
    let buffers = Buffers { a, b, d: out, bias: handle(biased, &bias), auxiliary: handle(kept, &auxiliary) };
    let shape = Shape {
        batch: 1,
        m,
        n,
        k,
        a_transposed: false,
        b_transposed: true,
        strides: [0; 3],
        rows: [0; 3],
        input: element,
        output: element,
        tf32: false,
        epilogue,
    };
    gemm(gpu.client(), shape, 1.0, 0.0, buffers).unwrap();
    let name = format!("{epilogue:?} {dtype}");
    let got = distance(&d, &exact);
    assert!(got < tolerance, "{name}: {got:.2e}");
    if matches!(epilogue, Epilogue::GeluKeep | Epilogue::BiasGeluKeep) {
        let exact: Vec<f64> =
            (0..m * n).map(|i| if epilogue == Epilogue::GeluKeep { product[i] } else { plus(i) }).collect();
        let got = distance(&auxiliary, &exact);
        assert!(got < tolerance, "{name}, kept: {got:.2e}");
    }
    if epilogue == Epilogue::GeluBiasBackward {
        let exact: Vec<f64> = (0..n).map(|j| (0..m).map(|i| exact[i * n + j]).sum()).collect();
        let got = distance(&bias, &exact);
        assert!(got < tolerance, "{name}, bias: {got:.2e}");
    }
}

#[test]
fn epilogues_do_what_they_say() {
    let Some(gpu) = gpu() else { return };
    let all = [
        Epilogue::None,
        Epilogue::Bias,
        Epilogue::Gelu,
        Epilogue::BiasGelu,
        Epilogue::GeluKeep,
        Epilogue::BiasGeluKeep,
        Epilogue::GeluBackward,
        Epilogue::GeluBiasBackward,
    ];
    for kind in all {
        epilogue(gpu, kind, DType::BF16, Element::BF16, 2e-2);
        epilogue(gpu, kind, DType::F16, Element::F16, 3e-3);
    }
    for kind in [Epilogue::None, Epilogue::Bias, Epilogue::Gelu, Epilogue::BiasGelu] {
        epilogue(gpu, kind, DType::F32, Element::F32, 1e-5);
    }
}

#[test]
fn products_of_i8_are_exact() {
    let Some(gpu) = gpu() else { return };
    let [m, n, k] = SIZES;
    let numbers = |seed, n| {
        let mut random = Random::new(seed);
        (0..n).map(|_| random.bits() as i8).collect::<Vec<_>>()
    };
    let (a, b) = (numbers(1, m * k), numbers(2, n * k));
    let term = |i: usize, l: usize| a[i / n * k + l] as i32 * b[i % n * k + l] as i32;
    let exact: Vec<i32> = (0..m * n).map(|i| (0..k).map(|l| term(i, l)).sum()).collect();
    let on_device = |t: &[i8]| Tensor::from_slice(t, &[t.len()]).unwrap().to_device(DEVICE).unwrap();
    let (a, b) = (on_device(&a), on_device(&b));
    let d = Tensor::zeros(&[m, n], DType::I32).unwrap().to_device(DEVICE).unwrap();
    let product =
        bimetal_core::gpu::Product { batch: 1, m, n, k, a_transposed: false, b_transposed: true, ..Default::default() };
    assert!(gpu.gemm(&product, 1.0, 0.0, &a, &b, &d).unwrap());
    assert_eq!(d.to_vec::<i32>().unwrap(), exact);
}

#[test]
fn tensors_move_between_devices() {
    let (Some(_), Ok(second)) = (gpu(), Gpu::get(Device::Cuda(1))) else {
        return println!("skipped: two CUDA devices are needed");
    };
    let data: Vec<f32> = (0..1_000_003).map(|i| i as f32).collect();
    let there = Tensor::from_slice(&data, &[data.len()]).unwrap().to_device(DEVICE).unwrap();
    let doubled = bimetal::add(&there, &there).unwrap().to_device(second.device()).unwrap();
    let back = bimetal::add(&doubled, &doubled).unwrap().to_device(DEVICE).unwrap();
    assert!(back.to_vec::<f32>().unwrap().iter().zip(&data).all(|(got, x)| *got == 4.0 * x));
    let part = there.slice(7..1_000_000).unwrap().to_device(second.device()).unwrap();
    assert_eq!(part.to_vec::<f32>().unwrap(), data[7..1_000_000]);
}
