//! Wrong calls: each gives its typed error, names what is wrong, and panics nowhere.

use bimetal_core::io::safetensors::Archive;
use bimetal_core::io::{npy, npz, safetensors};
use bimetal_core::{DType, Device, Error, Gpu, Result, Shape, Spec, Tensor, devices};
use bimetal_ops::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// The variant of an error.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Argument,
    DType,
    Device,
    Unavailable,
    Format,
    Io,
    Other,
}
use Kind::Argument;

impl Kind {
    fn of(error: &Error) -> Self {
        match error {
            Error::Argument { .. } => Argument,
            Error::DType { .. } => Self::DType,
            Error::Device { .. } => Self::Device,
            Error::Unavailable { .. } => Self::Unavailable,
            Error::Format { .. } => Self::Format,
            Error::Io { .. } => Self::Io,
            _ => Self::Other,
        }
    }
}

/// A call, the variant of its error and phrases that its message holds.
type Row = (&'static str, fn() -> Result<()>, Kind, &'static [&'static str]);

fn f32s(dims: &[usize]) -> Tensor {
    zeros(dims, DType::F32)
}

fn zeros(dims: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(dims, dtype).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bimetal-core/tests/data").join(name)
}

fn nowhere(name: &str) -> PathBuf {
    std::env::temp_dir().join("bimetal-no-such-folder").join(name)
}

/// A safetensors file with this header and `data` zeros.
fn archive(header: &str, data: usize) -> Result<Archive> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 0);
    Archive::from_bytes(bytes)
}

const TENSORS: &[Row] = &[
    ("shape: product", || Shape::new(&[1 << 31, 1 << 31]).map(drop), Argument, &["shape", "dims", "2147483648"]),
    ("shape: product past a zero", || Shape::new(&[0, usize::MAX, 2]).map(drop), Argument, &["shape", "dims"]),
    ("shape: nine axes", || Shape::new(&[1; 9]).map(drop), Argument, &["at most 8 dimensions"]),
    ("shape: axis", || Shape::new(&[2, 3])?.axis("probe", 2).map(drop), Argument, &["probe", "axis", "-2..2", "got 2"]),
    (
        "shape: broadcast",
        || Shape::new(&[2, 3])?.broadcast(&Shape::new(&[3, 2])?, "probe").map(drop),
        Argument,
        &["probe", "[2, 3] and [3, 2]"],
    ),
    (
        "shape: broadcast past the largest shape",
        || Shape::new(&[1 << 40, 1])?.broadcast(&Shape::new(&[1, 1 << 40])?, "probe").map(drop),
        Argument,
        &["dims", "1099511627776"],
    ),
    ("zeros: product", || Tensor::zeros(&[usize::MAX, 2], DType::U8).map(drop), Argument, &["dims"]),
    ("empty: product", || Tensor::empty(&[1 << 62], DType::F64).map(drop), Argument, &["dims"]),
    ("from_slice: short", || Tensor::from_slice(&[1.0f32], &[2]).map(drop), Argument, &["from_slice", "data", "got 1"]),
    ("from_slice: long", || Tensor::from_slice(&[1u8; 3], &[2, 0]).map(drop), Argument, &["0 elements", "got 3"]),
    ("from_f64: short", || Tensor::from_f64(&[], &[], DType::BF16).map(drop), Argument, &["1 elements", "got 0"]),
    ("reshape: elements", || f32s(&[2, 3]).reshape(&[4]).map(drop), Argument, &["reshape", "6 elements", "[4]"]),
    ("reshape: product", || f32s(&[2]).reshape(&[1 << 60, 16]).map(drop), Argument, &["dims"]),
    ("slice: past the end", || f32s(&[3, 2]).slice(2..4).map(drop), Argument, &["slice", "0..3", "2..4"]),
    ("slice: of nothing", || f32s(&[0, 3]).slice(0..1).map(drop), Argument, &["slice", "0..0"]),
    (
        "slice: backwards",
        || {
            let (start, end) = (2, 1);
            f32s(&[3]).slice(start..end).map(drop)
        },
        Argument,
        &["slice", "2..1"],
    ),
    ("slice: scalar", || f32s(&[]).slice(0..0).map(drop), Argument, &["slice", "scalar"]),
    ("as_slice: dtype", || f32s(&[2]).as_slice::<f64>().map(|_| ()), Kind::DType, &["as_slice", "f32", "F64"]),
    ("as_mut_slice: dtype", || f32s(&[2]).as_mut_slice::<u32>().map(|_| ()), Kind::DType, &["as_mut_slice", "f32"]),
    ("to_vec: dtype", || zeros(&[2], DType::F16).to_vec::<f32>().map(drop), Kind::DType, &["f16", "F32"]),
    ("gpu_handle: host", || f32s(&[2]).gpu_handle().map(drop), Kind::Device, &["gpu_handle", "cpu", "a GPU"]),
    ("gpu_arg: host", || f32s(&[2]).gpu_arg().map(drop), Kind::Device, &["cpu", "a GPU"]),
    ("to_device: none", || f32s(&[2]).to_device(Device::Cuda(60000)).map(drop), Kind::Unavailable, &["cuda:60000"]),
    (
        "empty_on: none",
        || Tensor::empty_on(Spec::new(Shape::new(&[2])?, DType::F32), Device::Metal(60000)).map(drop),
        Kind::Unavailable,
        &["metal:60000"],
    ),
    ("gpu: none", || Gpu::get(Device::Vulkan(60000)).map(|_| ()), Kind::Unavailable, &["vulkan:60000"]),
    ("gpu: the cpu", || Gpu::get(Device::Cpu).map(|_| ()), Kind::Unavailable, &["cpu"]),
    ("device: empty", || Device::parse("").map(drop), Argument, &["device", "name", "cuda[:N]", "``"]),
    ("device: unknown", || Device::parse("tpu").map(drop), Argument, &["`tpu`"]),
    ("device: index", || Device::parse("cuda:x").map(drop), Argument, &["`cuda:x`"]),
    ("device: large index", || Device::parse("vulkan:99999").map(drop), Argument, &["`vulkan:99999`"]),
    ("device: second cpu", || Device::parse("cpu:1").map(drop), Argument, &["`cpu:1`"]),
];

const FILES: &[Row] = &[
    ("npy: no file", || npy::read(nowhere("x.npy")).map(drop), Kind::Io, &["bimetal-no-such-folder", "x.npy"]),
    ("npy: a folder", || npy::read(std::env::temp_dir()).map(drop), Kind::Io, &["not a regular file"]),
    ("npy: no folder", || npy::write(nowhere("x.npy"), &f32s(&[2])), Kind::Io, &["bimetal-no-such-folder"]),
    ("npy: bf16", || npy::write(nowhere("x.npy"), &zeros(&[2], DType::BF16)), Kind::DType, &["npy::write", "bf16"]),
    ("npy: another file", || npy::read(fixture("stored.npz")).map(drop), Kind::Format, &["npy file", "stored.npz"]),
    ("npy: complex", || npy::read(fixture("complex.npy")).map(drop), Kind::Format, &["'<c16'", "f2, f4, f8"]),
    ("npy: objects", || npy::read(fixture("object.npy")).map(drop), Kind::Format, &["'|O'"]),
    ("npy: records", || npy::read(fixture("structured.npy")).map(drop), Kind::Format, &["structured"]),
    ("npy: nothing", || npy::from_bytes(&[]).map(drop), Kind::Format, &["npy file", "truncated"]),
    (
        "npy: short",
        || npy::from_bytes(&npy::to_bytes(&f32s(&[9]))?[..160]).map(drop),
        Kind::Format,
        &["f32 [9] takes 36 bytes, 32 follow"],
    ),
    ("npz: no file", || npz::read(nowhere("x.npz")).map(drop), Kind::Io, &["x.npz"]),
    ("npz: another file", || npz::read(fixture("f4.npy")).map(drop), Kind::Format, &["npz file", "f4.npy"]),
    ("npz: limit", || npz::read_within(fixture("stored.npz"), 10).map(drop), Kind::Format, &["the limit is 10"]),
    (
        "npz: name twice",
        || npz::to_bytes(&[("a", &f32s(&[1])), ("a", &f32s(&[2]))]).map(drop),
        Argument,
        &["npz::write", "each once, got `a`"],
    ),
    ("npz: no name", || npz::to_bytes(&[("", &f32s(&[1]))]).map(drop), Argument, &["npz::write", "got ``"]),
    ("npz: bf16", || npz::to_bytes(&[("a", &zeros(&[1], DType::BF16))]).map(drop), Kind::DType, &["bf16", "F16"]),
    ("safetensors: no file", || Archive::open(nowhere("x.st")).map(drop), Kind::Io, &["x.st"]),
    (
        "safetensors: another file",
        || Archive::open(fixture("f4.npy")).map(drop),
        Kind::Format,
        &["safetensors file", "f4.npy"],
    ),
    (
        "safetensors: unknown name",
        || Archive::open(fixture("all.safetensors"))?.tensor("absent").map(drop),
        Argument,
        &["name", "10 tensors", "`absent`"],
    ),
    (
        "safetensors: dtype of the format only",
        || Archive::open(fixture("foreign.safetensors"))?.tensor("fp8").map(drop),
        Kind::Format,
        &["foreign.safetensors", "`fp8`", "F8_E4M3"],
    ),
    (
        "safetensors: unknown dtype",
        || archive(r#"{"x":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4).map(drop),
        Kind::Format,
        &["`x`", "F33"],
    ),
    (
        "safetensors: product",
        || archive(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4).map(drop),
        Kind::Format,
        &["`x`", "overflows"],
    ),
    (
        "safetensors: range",
        || archive(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8).map(drop),
        Kind::Format,
        &["`x`", "hole"],
    ),
    (
        "safetensors: name twice",
        || safetensors::to_bytes(&[("a", &f32s(&[1])), ("a", &f32s(&[2]))], &[]).map(drop),
        Argument,
        &["safetensors::write", "`a`"],
    ),
    (
        "safetensors: reserved name",
        || safetensors::to_bytes(&[("__metadata__", &f32s(&[1]))], &[]).map(drop),
        Argument,
        &["safetensors::write", "__metadata__"],
    ),
    (
        "safetensors: key twice",
        || safetensors::to_bytes(&[], &[("k", "1"), ("k", "2")]).map(drop),
        Argument,
        &["safetensors::write", "metadata"],
    ),
];

const SOFTMAX: &[Row] = &[
    ("softmax: axis", || softmax(&f32s(&[2, 3]), 2).map(drop), Argument, &["softmax", "axis", "-2..2", "got 2"]),
    ("softmax: negative axis", || softmax(&f32s(&[2, 3]), -3).map(drop), Argument, &["softmax", "axis", "got -3"]),
    ("softmax: farthest axis", || softmax(&f32s(&[2]), isize::MIN).map(drop), Argument, &["softmax", "axis"]),
    ("softmax: scalar", || softmax(&f32s(&[]), 0).map(drop), Argument, &["softmax", "axis", "[]"]),
    ("softmax: dtype", || softmax(&zeros(&[2], DType::I32), 0).map(drop), Kind::DType, &["softmax", "`x`", "i32"]),
    ("log_softmax: dtype", || log_softmax(&zeros(&[2], DType::F64), 0).map(drop), Kind::DType, &["log_softmax", "f64"]),
    (
        "softmax: output shape",
        || softmax_into(&f32s(&[2, 3]), 1, &mut f32s(&[3, 2])),
        Argument,
        &["softmax", "`out`", "[2, 3], got [3, 2]"],
    ),
    (
        "softmax: output dtype",
        || softmax_into(&f32s(&[2]), 0, &mut zeros(&[2], DType::F16)),
        Kind::DType,
        &["softmax", "`out`", "f16", "F32"],
    ),
    (
        "log_softmax: output rank",
        || log_softmax_into(&f32s(&[6]), 0, &mut f32s(&[1, 6])),
        Argument,
        &["log_softmax", "`out`"],
    ),
    (
        "softmax_backward: shapes",
        || softmax_backward(&f32s(&[2, 3]), &f32s(&[2, 4]), 1).map(drop),
        Argument,
        &["softmax_backward", "[2, 3]", "[2, 4]"],
    ),
    (
        "softmax_backward: dtypes",
        || softmax_backward(&f32s(&[2]), &zeros(&[2], DType::BF16), 0).map(drop),
        Kind::DType,
        &["softmax_backward", "f32", "BF16"],
    ),
    (
        "log_softmax_backward: axis",
        || log_softmax_backward(&f32s(&[2]), &f32s(&[2]), 1).map(drop),
        Argument,
        &["log_softmax_backward", "axis"],
    ),
    (
        "log_softmax_backward: output",
        || log_softmax_backward_into(&f32s(&[2]), &f32s(&[2]), 0, &mut f32s(&[3])),
        Argument,
        &["log_softmax_backward", "`out`"],
    ),
];

const TABLES: &[&[Row]] = &[TENSORS, FILES, SOFTMAX];

/// What is wrong with the outcome of a wrong call, if anything is.
fn fault(call: impl FnOnce() -> Result<()>, kind: Kind, phrases: &[&str]) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Err(_) => Some("it panicked".into()),
        Ok(Ok(())) => Some("it was accepted".into()),
        Ok(Err(error)) => {
            let text = error.to_string();
            let missing: Vec<_> = phrases.iter().filter(|p| !text.contains(**p)).collect();
            let wrong = Kind::of(&error) != kind || !missing.is_empty();
            wrong.then(|| format!("{:?} without {missing:?}: {text}", Kind::of(&error)))
        }
    }
}

#[test]
fn every_wrong_call_gives_its_typed_error() {
    let rows: Vec<_> = TABLES.iter().copied().flatten().collect();
    let mut names = std::collections::HashSet::new();
    let mut faults = Vec::new();
    for (name, call, kind, phrases) in &rows {
        assert!(names.insert(name), "{name} stands twice");
        faults.extend(fault(call, *kind, phrases).map(|why| format!("{name}: {why}")));
    }
    println!("{} wrong calls", rows.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Calls with a host tensor and one on a GPU.
type Mixed = (&'static str, fn(&Tensor, &mut Tensor) -> Result<()>, Kind, &'static [&'static str]);

const MIXED: &[Mixed] = &[
    ("softmax: output elsewhere", |host, gpu| softmax_into(host, 0, gpu), Kind::Device, &["softmax", "`out`", "cpu"]),
    (
        "softmax_backward: inputs apart",
        |host, gpu| softmax_backward(host, gpu, 0).map(drop),
        Kind::Device,
        &["softmax_backward", "`inputs`", "cpu"],
    ),
    ("as_slice: gpu", |_, gpu| gpu.as_slice::<f32>().map(|_| ()), Kind::Device, &["cpu"]),
    ("as_mut_slice: gpu", |_, gpu| gpu.as_mut_slice::<f32>().map(|_| ()), Kind::Device, &["cpu"]),
    ("host_bytes: gpu", |_, gpu| gpu.host_bytes().map(|_| ()), Kind::Device, &["host_bytes", "cpu"]),
    (
        "gpu: dtype",
        |_, gpu| softmax(&zeros(&[2], DType::I8).to_device(gpu.device())?, 0).map(drop),
        Kind::DType,
        &["i8"],
    ),
];

#[test]
fn tensors_on_different_devices_are_refused() {
    let Some(gpu) = devices().0.iter().map(|info| info.device).find(|device| device.is_gpu()) else {
        assert!(std::env::var_os("BIMETAL_STRICT").is_none_or(|v| v == "0"), "no GPU, and BIMETAL_STRICT is set");
        return println!("skipped: no GPU, not even a software one");
    };
    let host = f32s(&[4]);
    let mut faults = Vec::new();
    for (name, call, kind, phrases) in MIXED {
        let mut there = host.to_device(gpu).unwrap();
        faults.extend(fault(|| call(&host, &mut there), *kind, phrases).map(|why| format!("{name}: {why}")));
    }
    println!("{} wrong calls on {gpu}", MIXED.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Shapes that an operation may refuse, but must survive: no axes, many, extents of 0 and more than 2^31 elements.
fn strange_shapes() -> Vec<Shape> {
    let dims: [&[usize]; 12] = [
        &[],
        &[0],
        &[1],
        &[0, 0],
        &[3, 0, 2],
        &[7, 5],
        &[1 << 33],
        &[1 << 59],
        &[1 << 20, 1 << 20],
        &[2, 1 << 20, 1 << 20],
        &[1; 8],
        &[0, 1 << 59],
    ];
    dims.iter().map(|d| Shape::new(d).unwrap()).collect()
}

/// Every operation of the registry with every dtype and strange shapes, as specs: nothing of that size is allocated.
#[test]
fn operations_answer_whatever_the_specs() {
    let mut faults = Vec::new();
    let (mut refused, mut accepted) = (0, 0);
    for (_, definition) in registry::ops() {
        let name = definition.name();
        let Some(case) = definition.cases().into_iter().next() else { continue };
        let mut answer = |what: String, specs: &[&Spec]| {
            let outcome = catch_unwind(AssertUnwindSafe(|| case.op.outputs(specs)));
            match &outcome {
                Err(_) => faults.push(format!("{name}: panicked on {what}")),
                Ok(Err(e)) if !e.to_string().contains(name) => faults.push(format!("{name} on {what}: {e}")),
                Ok(Err(_)) => refused += 1,
                Ok(Ok(_)) => accepted += 1,
            }
            outcome.is_ok_and(|o| o.is_ok())
        };
        let inputs = case.inputs.len();
        let spec = Spec::new(Shape::new(&[4, 4]).unwrap(), DType::F32);
        if answer("no inputs".into(), &[]) || answer("eight inputs".into(), &[&spec; 8]) {
            panic!("{name} accepts any number of inputs");
        }
        for dtype in DType::ALL {
            for shape in strange_shapes() {
                let one = Spec::new(shape.clone(), dtype);
                answer(format!("{inputs} of {dtype} {shape}"), &vec![&one; inputs]);
                // The same for one input only, the others as they should be.
                for i in 0..inputs {
                    let mut specs = case.specs(DType::F32);
                    specs[i] = one.clone();
                    answer(format!("input {i} of {dtype} {shape}"), &specs.iter().collect::<Vec<_>>());
                }
            }
        }
        for shape in strange_shapes() {
            if catch_unwind(AssertUnwindSafe(|| definition.at_shape(&shape).map(drop))).is_err() {
                faults.push(format!("{name}: at_shape panicked on {shape}"));
            }
        }
    }
    println!("{refused} specs refused, {accepted} accepted");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(40)].join("\n"));
    assert!(refused > 0);
}

#[test]
fn a_refused_call_leaves_its_output() {
    let mut out = Tensor::from_slice(&[7.0f32; 4], &[4]).unwrap();
    assert!(softmax_into(&f32s(&[4]), 1, &mut out).is_err());
    assert!(softmax_into(&f32s(&[2, 2]), 1, &mut out).is_err());
    assert!(softmax_backward_into(&f32s(&[4]), &f32s(&[3]), 0, &mut out).is_err());
    assert_eq!(out.to_vec::<f32>().unwrap(), [7.0; 4]);
}
