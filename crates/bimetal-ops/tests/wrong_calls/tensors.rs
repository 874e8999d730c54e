//! Wrong calls of tensors, shapes and devices.

use super::{Kind, Kind::Argument, Row, f32s, zeros};
use bimetal_core::{DType, Device, Gpu, Shape, Spec, Tensor};

pub const TENSORS: &[Row] = &[
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
    ("zeros: memory", || Tensor::zeros(&[1 << 50], DType::U8).map(drop), Kind::Runtime, &["cpu", "1125899906842624"]),
    ("empty: last shape", || Tensor::empty(&[(1 << 60) - 1], DType::F64).map(drop), Kind::Runtime, &["no memory"]),
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
