//! Checks and times operations of this domain by name, without building the rest of the library.
//!
//! `cargo run --release -p bimetal-linalg --example agree -- qr svd` checks on every vector level and GPU, or on those
//! that `BIMETAL_DEVICES` names; with `--time` the benchmark's cases are checked and timed instead, with `--shape=1024x512`
//! those of this shape, with `--verbose` every run is named.

use bimetal_core::check::{self, Outcome, Plan, Target};
use bimetal_core::op::{Case, Definition, Role, run_here};
use bimetal_core::{DType, Device, Gpu, Result, Shape, Tensor};
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let time = arguments.iter().any(|a| a == "--time");
    let shapes: Vec<Shape> = arguments.iter().filter_map(|a| a.strip_prefix("--shape=")).map(shape).collect();
    let verbose = arguments.iter().any(|a| a == "--verbose");
    let names: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let ops = bimetal_linalg::DOMAIN.ops().filter(|op| names.is_empty() || names.iter().any(|n| *n == op.name()));
    let plan = Plan::from_env();
    let mut failed = 0;
    for op in ops {
        for shape in &shapes {
            match op.at_shape(shape) {
                Ok(case) => time_case(op, &case, &plan),
                Err(e) => println!("{}: {e}", op.name()),
            }
        }
        if !shapes.is_empty() {
            continue;
        }
        if time {
            op.cases().iter().filter(|c| c.role == Role::Bench).for_each(|case| time_case(op, case, &plan));
            continue;
        }
        let (start, mut passed) = (Instant::now(), 0);
        check::check(op, &plan, &mut |row| match &row.outcome {
            Outcome::Passed { .. } => {
                passed += 1;
                if verbose {
                    println!("{row}");
                }
            }
            Outcome::Failed { why } => {
                failed += 1;
                println!("FAILED {row}: {why}");
            }
            Outcome::Skipped { .. } => {}
        });
        println!("{}: {passed} passed in {:.1} s", op.name(), start.elapsed().as_secs_f64());
    }
    std::process::exit(if failed > 0 { 1 } else { 0 });
}

/// The shape that a text like `8x1024x512` names.
fn shape(text: &str) -> Shape {
    let extents: Vec<usize> =
        text.split('x').map(|n| n.parse().expect("extents are numbers, as in 1024x512")).collect();
    Shape::new(&extents).expect("a shape")
}

/// Prints the median time of a case on the CPU and on every GPU of the plan.
fn time_case(op: &dyn Definition, case: &Case, plan: &Plan) {
    let mut devices: Vec<Device> = plan
        .targets
        .iter()
        .map(|target| match target {
            Target::Level(_) => Device::Cpu,
            Target::Gpu(device) => *device,
        })
        .collect();
    devices.dedup();
    let (inputs, expected) = match check::prepare(case, DType::F32, plan.seed) {
        Ok(prepared) => prepared,
        Err(why) => return println!("{} {}: {why}", op.name(), case.label),
    };
    for device in devices {
        match time_on(case, &inputs, device) {
            Ok((outputs, [first, median])) => {
                let inputs: Vec<&Tensor> = inputs.iter().collect();
                let outcome = check::judge(case, &inputs, &outputs, &expected);
                let (first, median) = (first * 1e6, median * 1e6);
                println!("{} {} {device}: {median:.1} µs (first call {first:.0}) {outcome:?}", op.name(), case.label);
            }
            Err(e) => println!("{} {} {device}: {e}", op.name(), case.label),
        }
    }
}

/// The outputs, and the first and median time of a call: on a GPU of twenty calls together.
fn time_on(case: &Case, inputs: &[Tensor], device: Device) -> Result<(Vec<Tensor>, [f64; 2])> {
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_device(device)).collect::<Result<_>>()?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let specs: Vec<_> = inputs.iter().map(|t| t.spec()).collect();
    let made = case.op.outputs(&specs)?;
    let mut outputs = made.into_iter().map(|s| Tensor::empty_on(s, device)).collect::<Result<Vec<_>>>()?;
    let gpu = if device.is_gpu() { Some(Gpu::get(device)?) } else { None };
    let mut call = |times: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..times {
            run_here(case.op.as_ref(), &inputs, &mut outputs.iter_mut().collect::<Vec<_>>())?;
        }
        if let Some(gpu) = gpu {
            gpu.sync()?;
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    };
    let first = call(1)?;
    let warm = call(1)?;
    let together = if gpu.is_some() { (0.02 / warm).clamp(1.0, 20.0) as usize } else { 1 };
    let repeats = ((0.5 / (warm * together as f64)) as usize).clamp(3, 100);
    let mut times = (0..repeats).map(|_| call(together)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok((outputs, [first, times[times.len() / 2]]))
}
