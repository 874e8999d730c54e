//! Wrong calls: each gives its typed error, names what is wrong, and panics nowhere.

mod files;
mod operations;
mod tensors;

use bimetal_core::{DType, Error, Result, Shape, Spec, Tensor, devices};
use bimetal_ops::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The variant of an error.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Argument,
    DType,
    Device,
    Unavailable,
    Runtime,
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
            Error::Runtime { .. } => Self::Runtime,
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

const TABLES: &[&[Row]] = &[
    tensors::TENSORS,
    files::FILES,
    operations::SOFTMAX,
    operations::ELEMENTWISE,
    operations::BINARY,
    operations::REDUCTION,
    operations::NORMALIZATION,
    operations::LINALG,
];

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
