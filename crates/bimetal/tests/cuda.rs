//! Faults and sharing on a CUDA device. Without one every test says so and passes; what they prove is proven on a GPU.

use bimetal::{DType, Device, Gpu, Graph, Shape, Spec, Tensor, add, exp, mul, sum};
use cubecl::ir::ElemType;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::KernelArguments;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{KernelDefinition, KernelMetadata, PrecompiledSource};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const DEVICE: Device = Device::Cuda(0);

/// Tests that fill the memory must not run beside others.
static ALONE: Mutex<()> = Mutex::new(());

fn gpu() -> Option<&'static Gpu> {
    match Gpu::get(DEVICE) {
        Ok(gpu) => Some(gpu),
        Err(reason) => {
            let wanted =
                std::env::var("BIMETAL_DEVICES").is_ok_and(|devices| devices.split(',').any(|d| d == "cuda:0"));
            assert!(!wanted, "cuda:0 is to be tested: {reason}");
            println!("skipped: {reason}");
            None
        }
    }
}

fn ones(n: usize) -> Tensor {
    Tensor::from_slice(&vec![1.0f32; n], &[n]).unwrap().to_device(DEVICE).unwrap()
}

/// A kernel given as CUDA C++, with one buffer.
#[derive(Clone, Copy)]
struct Own(&'static str);

impl KernelMetadata for Own {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.0)
    }

    fn address_type(&self) -> ElemType {
        ElemType::Index
    }
}

impl CubeKernel for Own {
    fn define(&self) -> KernelDefinition {
        unreachable!("the source is given")
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource { source: self.0.into(), entrypoint_name: "own".into(), lang: "cuda" })
    }
}

fn launch(gpu: &Gpu, source: &'static str, x: &Tensor) {
    let arguments = KernelArguments::new().with_buffer(x.gpu_handle().unwrap().binding());
    gpu.client().launch(Box::new(Own(source)), CubeCount::new_single(), arguments);
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_of_its_output_alone() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    let (x, other) = (ones(64), ones(64));
    launch(gpu, "extern \"C\" __global__ void own(float* x) { x[0] = no_such_thing; }", &x);
    let reason = x.to_vec::<f32>().unwrap_err().to_string();
    assert!(reason.contains("no_such_thing"), "{reason}");
    assert!(gpu.sync().is_err(), "the next synchronisation tells");
    gpu.sync().unwrap();
    // What reads the unwritten buffer fails too, what does not goes on.
    let downstream = add(&x, &other).unwrap();
    assert!(downstream.to_vec::<f32>().is_err());
    let _ = gpu.sync();
    assert_eq!(add(&other, &other).unwrap().to_vec::<f32>().unwrap(), [2.0; 64]);
    // The same kernel type with source that compiles runs.
    launch(gpu, "extern \"C\" __global__ void own(float* x) { for (int i = 0; i < 64; i++) x[i] = 3.0f; }", &other);
    assert_eq!(other.to_vec::<f32>().unwrap(), [3.0; 64]);
}

#[test]
fn out_of_memory_is_an_error_and_the_process_goes_on() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    let gigabyte = Spec::new(Shape::new(&[1 << 28]).unwrap(), DType::F32);
    let mut held = Vec::new();
    let reason = loop {
        match Tensor::empty_on(gigabyte.clone(), DEVICE) {
            Ok(tensor) => held.push(tensor),
            Err(reason) => break reason.to_string(),
        }
        assert!(held.len() < 4096, "no device has this much");
    };
    assert!(reason.contains("memory"), "{reason}");
    let most = held.len();
    assert!(most > 0);
    held.clear();
    let _ = gpu.sync();
    // The pools give back what one size no longer needs to another.
    let larger = Spec::new(Shape::new(&[(most / 2).max(1) << 28]).unwrap(), DType::F32);
    drop(Tensor::empty_on(larger, DEVICE).unwrap());
    assert_eq!(
        exp(&Tensor::zeros(&[5], DType::F32).unwrap().to_device(DEVICE).unwrap()).unwrap().to_vec::<f32>().unwrap(),
        [1.0; 5]
    );
    gpu.client().memory_cleanup().unwrap();
    gpu.sync().unwrap();
}

#[test]
fn freed_memory_is_used_again() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    gpu.reset_peak_memory().unwrap();
    let before = gpu.memory_report().unwrap();
    let x = ones(1 << 20);
    for _ in 0..1000 {
        drop(add(&x, &x).unwrap());
    }
    gpu.sync().unwrap();
    let after = gpu.memory_report().unwrap();
    assert!(after.peak_reserved <= before.reserved + (256 << 20), "{before:?} {after:?}");
    drop(x);
    assert!(gpu.memory_report().unwrap().in_use <= before.in_use + (64 << 20));
}

#[test]
fn threads_share_a_device_and_tensors() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    let n = 1 << 18;
    let shared = ones(n);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let shared = &shared;
            scope.spawn(move || {
                let mut x = shared.clone();
                for _ in 0..thread {
                    for _ in 0..50 {
                        x = mul(&add(&x, shared).unwrap(), &half(n)).unwrap();
                    }
                    x = add(&x, shared).unwrap();
                }
                // (1 + 1)/2 stays 1 and each round adds 1, which the next 50 halvings take back.
                let got = x.to_vec::<f32>().unwrap();
                let wanted = if thread == 0 { 1.0 } else { 2.0 };
                assert!(got.iter().all(|&v| (v - wanted).abs() < 1e-5), "{}", got[0]);
            });
        }
    });
    // A tensor made by one thread and finished by another.
    let made =
        std::thread::spawn(move || exp(&Tensor::zeros(&[n], DType::F32).unwrap().to_device(DEVICE).unwrap()).unwrap());
    let made = made.join().unwrap();
    let total = sum(&add(&made, &shared).unwrap(), None).unwrap();
    assert_eq!(total.to_vec::<f32>().unwrap(), [2.0 * n as f32]);
    gpu.sync().unwrap();
}

fn half(n: usize) -> Tensor {
    static HALF: Mutex<Option<Tensor>> = Mutex::new(None);
    let mut half = HALF.lock().unwrap();
    half.get_or_insert_with(|| Tensor::from_slice(&vec![0.5f32; n], &[n]).unwrap().to_device(DEVICE).unwrap()).clone()
}

#[test]
fn a_thousand_tensors_freed_on_another_thread() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    let x = ones(1000);
    for _ in 0..5 {
        let many: Vec<Tensor> = (0..1000).map(|_| add(&x, &x).unwrap()).collect();
        let last = many[999].clone();
        std::thread::spawn(move || drop(many)).join().unwrap();
        assert_eq!(last.to_vec::<f32>().unwrap(), [2.0; 1000]);
    }
    gpu.sync().unwrap();
}

#[test]
fn outside_memory_is_used_in_place_and_given_back_after_the_work() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    static RELEASED: AtomicUsize = AtomicUsize::new(0);
    struct Owner {
        _tensor: Tensor,
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            RELEASED.fetch_add(1, Ordering::SeqCst);
        }
    }
    for _ in 0..100 {
        let source = ones(4096);
        let client = gpu.client();
        let address = bimetal_cuda::address(client, &source.gpu_handle().unwrap()).unwrap();
        let handle = bimetal_cuda::import(client, address, 4096 * 4, Box::new(Owner { _tensor: source })).unwrap();
        assert_eq!(bimetal_cuda::address(client, &handle).unwrap(), address);
        launch(
            gpu,
            "extern \"C\" __global__ void own(float* x) { for (int i = 0; i < 4096; i++) x[i] += 1.0f; }",
            &borrowed(&handle),
        );
    }
    gpu.sync().unwrap();
    for _ in 0..10 {
        gpu.sync().unwrap();
    }
    assert_eq!(RELEASED.load(Ordering::SeqCst), 100);
    assert!(bimetal_cuda::import(gpu.client(), 8, 64, Box::new(())).is_err());
    assert!(bimetal_cuda::import(gpu.client(), 16, 63, Box::new(())).is_err());
}

/// A tensor through DLPack whose memory is a handle's.
fn borrowed(handle: &cubecl::server::Handle) -> Tensor {
    let gpu = Gpu::get(DEVICE).unwrap();
    let address = bimetal_cuda::address(gpu.client(), handle).unwrap();
    let keep = Box::new(handle.clone());
    unsafe extern "C" fn free(managed: *mut bimetal::dlpack::DLManagedTensor) {
        // SAFETY: both boxes were leaked below, and this runs once.
        unsafe {
            drop(Box::from_raw((*managed).manager_ctx.cast::<cubecl::server::Handle>()));
            drop(Box::from_raw((*managed).dl_tensor.shape));
            drop(Box::from_raw(managed));
        }
    }
    use bimetal::dlpack::{DLDataType, DLDevice, DLManagedTensor, DLTensor};
    let dl_tensor = DLTensor {
        data: address as *mut _,
        device: DLDevice { device_type: 2, device_id: 0 },
        ndim: 1,
        dtype: DLDataType { code: 2, bits: 32, lanes: 1 },
        shape: Box::into_raw(Box::new((handle.size_in_used() / 4) as i64)),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    let managed = DLManagedTensor { dl_tensor, manager_ctx: Box::into_raw(keep).cast(), deleter: Some(free) };
    // SAFETY: the array is valid and handed over.
    unsafe { Tensor::from_dlpack(Box::into_raw(Box::new(managed))) }.unwrap()
}

#[test]
fn graphs_replay_with_new_data_and_refuse_reads() {
    let _alone = ALONE.lock();
    let Some(gpu) = gpu() else { return };
    let x = ones(10_001);
    let mut graph = Graph::capture(DEVICE, vec![x.clone(), x], |inputs| {
        let product = mul(&inputs[0], &inputs[1])?;
        Ok(vec![add(&product, &inputs[0])?, sum(&product, None)?])
    })
    .unwrap();
    assert!(graph.is_recorded());
    assert_eq!(graph.outputs()[1].to_vec::<f32>().unwrap(), [10_001.0]);
    for round in 1..20 {
        let value = round as f32;
        graph.write(0, &Tensor::from_slice(&vec![value; 10_001], &[10_001]).unwrap()).unwrap();
        graph.replay().unwrap();
        // Other work between replays must not disturb the graph's memory.
        drop((0..10).map(|_| add(&ones(10_001), &ones(10_001)).unwrap()).collect::<Vec<_>>());
        assert_eq!(graph.outputs()[0].to_vec::<f32>().unwrap(), vec![2.0 * value; 10_001]);
        assert_eq!(graph.outputs()[1].to_vec::<f32>().unwrap(), [value * 10_001.0]);
    }
    let refused = Graph::capture(DEVICE, vec![ones(4)], |inputs| {
        inputs[0].to_vec::<f32>()?;
        Ok(vec![])
    });
    assert!(refused.is_err());
    gpu.sync().unwrap();
    assert_eq!(add(&ones(3), &ones(3)).unwrap().to_vec::<f32>().unwrap(), [2.0; 3]);
}

/// A fault loses the device for the process, so another process has it.
#[test]
fn a_fault_is_an_error_and_nothing_hangs() {
    const CHILD: &str = "BIMETAL_TEST_FAULT";
    if std::env::var_os(CHILD).is_some() {
        let gpu = Gpu::get(DEVICE).unwrap();
        let x = ones(64);
        launch(gpu, "extern \"C\" __global__ void own(float* x) { *(volatile float*)8 = x[0]; }", &x);
        let told = [gpu.sync().is_err(), x.to_vec::<f32>().is_err(), add(&x, &x).is_err() || gpu.sync().is_err()];
        println!("told {told:?} {:?}", gpu.sync().map_err(|e| e.to_string()));
        std::process::exit(if told == [true; 3] { 42 } else { 1 });
    }
    let _alone = ALONE.lock();
    if gpu().is_none() {
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_fault_is_an_error_and_nothing_hangs", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(60) => {
                child.kill().unwrap();
                panic!("the process hangs after a fault");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(status.code(), Some(42), "the fault was not reported");
}
