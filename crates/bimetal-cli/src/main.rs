//! The `bimetal` command: what this machine has, whether every operation is right on it, and how fast each is.

mod bench;
mod calibrate;
mod check;
mod devices;
mod interrupt;
mod memory;
mod ops;
mod peers;
mod report;
mod route;
mod select;
mod text;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Numeric operations on the better of a machine's two metals: its GPU or its CPU's vector units.
#[derive(Parser)]
#[command(name = "bimetal", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the devices of this machine, and why a backend is absent
    Devices(devices::Args),
    /// List the operations
    Ops(ops::Args),
    /// Compare every operation with its f64 reference on every device and vector level
    Check(check::Args),
    /// Time the operations that are right, and write a report
    Bench(bench::Args),
    /// Measure what a launch, a transfer, a byte and a multiply-add cost on each device, and keep it
    Calibrate(calibrate::Args),
    /// Explain where an operation on host tensors of some shape runs, and why
    Route(route::Args),
}

fn main() -> ExitCode {
    memory::keep();
    let done = match Cli::parse().command {
        Command::Devices(args) => devices::run(&args),
        Command::Ops(args) => ops::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Route(args) => route::run(&args),
    };
    match done {
        Ok(code) => code,
        // A closed pipe (`bimetal ops | head`) is the reader's choice, not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
