//! `bimetal route`: where an operation on host tensors of some shape runs, and why.

use crate::{select, text};
use anyhow::{Result, bail};
use bimetal::{DType, devices};
use bimetal_core::calibrate::{self, Calibration};
use bimetal_core::route::{self, Decision, Estimate};
use serde_json::json;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// The operation
    op: String,
    /// Its first input's shape, such as 4096x4096 or 1e7
    shape: String,
    /// Element type
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// Print JSON, times in seconds
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (_, definition) = select::op(&args.op)?;
    if !definition.dtypes().contains(&args.dtype) {
        let known: Vec<_> = definition.dtypes().iter().map(|d| d.name()).collect();
        bail!("{} has no {} form; it has {}", definition.name(), args.dtype, known.join(", "));
    }
    let case = definition.at_shape(&text::shape(&args.shape)?)?;
    let specs = case.specs(args.dtype);
    let specs: Vec<_> = specs.iter().collect();
    let outputs = case.op.outputs(&specs)?;
    let cost = case.op.cost(&specs);
    let bytes_in: u64 = specs.iter().map(|s| s.bytes() as u64).sum();
    let bytes_out: u64 = outputs.iter().map(|s| s.bytes() as u64).sum();
    let decision = route::choose(cost, bytes_in, bytes_out);
    if args.json {
        let estimates = |e: Option<Estimate>| {
            e.map(|e| {
                json!({"device": e.device.to_string(), "launch_s": e.launch_s, "transfer_s": e.transfer_s,
                    "work_s": e.work_s, "total_s": e.total_s()})
            })
        };
        text::print_json(&json!({
            "op": definition.name(), "case": case.label, "dtype": args.dtype.name(), "bytes": cost.bytes,
            "flops": cost.flops, "bytes_in": bytes_in, "bytes_out": bytes_out,
            "device": decision.device.to_string(), "cpu": estimates(decision.cpu), "gpu": estimates(decision.gpu),
            "why": why(&decision),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = format!(
        "{} [{}] {}: {} through memory, {} floating-point operations; {} in, {} out\n",
        definition.name(),
        case.label,
        args.dtype,
        text::bytes(cost.bytes),
        cost.flops,
        text::bytes(bytes_in),
        text::bytes(bytes_out),
    );
    let mut table = text::table(&["device", "launch", "transfers", "work", "total"]);
    for e in [decision.cpu, decision.gpu].into_iter().flatten() {
        let times = [e.launch_s, e.transfer_s, e.work_s, e.total_s()].map(text::seconds);
        table.add_row([vec![e.device.to_string()], times.to_vec()].concat());
    }
    if !table.is_empty() {
        out += &format!("{table}\n");
    }
    text::print(&format!("{out}host tensors run on {}: {}", decision.device, why(&decision)))?;
    Ok(ExitCode::SUCCESS)
}

fn why(decision: &Decision) -> String {
    match (decision.cpu, decision.gpu) {
        (Some(cpu), Some(gpu)) if decision.device.is_gpu() => format!(
            "its {} with transfers are {:.1} times shorter than the CPU's {}",
            text::seconds(gpu.total_s()),
            cpu.total_s() / gpu.total_s(),
            text::seconds(cpu.total_s())
        ),
        (Some(cpu), Some(gpu)) if gpu.transfer_s >= cpu.total_s() => format!(
            "moving the data to {} and back alone would take {}, the CPU's whole work {}; a tensor that lives on the \
             GPU stays there",
            gpu.device,
            text::seconds(gpu.transfer_s),
            text::seconds(cpu.total_s())
        ),
        (Some(cpu), Some(gpu)) => format!(
            "{} would take {} with launch and transfers, which is not clearly less than the CPU's {}",
            gpu.device,
            text::seconds(gpu.total_s()),
            text::seconds(cpu.total_s())
        ),
        (Some(_), None) => "no calibrated GPU is here and has room for it".into(),
        _ => uncalibrated(),
    }
}

/// Why there was nothing to choose between.
fn uncalibrated() -> String {
    let (found, _) = devices();
    if !found.iter().any(|info| info.device.is_gpu() && !info.software) {
        return "this machine has no hardware GPU".into();
    }
    let file = calibrate::path().map_or("the cache directory".into(), |p| p.display().to_string());
    match Calibration::load() {
        None => format!("nothing has been measured yet ({file}): run `bimetal calibrate`"),
        Some(_) => format!("{file} lacks this CPU or a hardware GPU: run `bimetal calibrate`"),
    }
}
