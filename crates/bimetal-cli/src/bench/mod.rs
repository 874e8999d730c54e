//! `bimetal bench`: times every operation that is right, against the machine's limits, its other devices and other
//! libraries, and writes the report as rows arrive.

mod machine;
mod row;
mod runner;
mod status;
pub mod timing;
pub mod work;

pub use machine::Machine;
#[cfg(test)]
pub use machine::Roof;
pub use row::Row;
pub use status::{Summary, summaries, verdict};

use crate::interrupt::{self, stopped};
use crate::peers::Peers;
use crate::report::Report;
use crate::{report, select, text};
use anyhow::Result;
use bimetal::DType;
use bimetal_core::cpu::parallel;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Operations or domains, or parts of their names; all without one
    filter: Vec<String>,
    /// Devices, separated by commas [default: the CPU and the best hardware GPU]
    #[arg(long, short, value_delimiter = ',')]
    device: Vec<String>,
    /// Time this shape of the first input, such as 4096x4096 or 1e7, instead of the operations' own cases
    #[arg(long)]
    shape: Option<String>,
    /// Element type
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// Compare with other libraries in the same run: torch, numpy (Python from PATH or $BIMETAL_PYTHON)
    #[arg(long, value_delimiter = ',')]
    against: Vec<String>,
    /// Cases of up to four million elements, a few samples each
    #[arg(long)]
    quick: bool,
    /// Where report.md, report.json and report.html go
    #[arg(long, default_value = "bimetal-report")]
    out: PathBuf,
    /// Seed of the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the rows as JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Time that all rows share in a full run, in seconds; preparing and checking them takes three times as long.
const SHARED_S: f64 = 30.0;

/// Least time between two writings of the report.
const REWRITE: Duration = Duration::from_secs(2);

pub fn run(args: &Args) -> Result<ExitCode> {
    let entries = select::ops(&args.filter)?;
    let devices = select::device_list(&args.device)?;
    let shape = args.shape.as_deref().map(text::shape).transpose()?;
    let plan = work::plan(&entries, shape.as_ref(), args.dtype, args.quick)?;
    interrupt::watch();
    let names: Vec<String> = devices.iter().map(|info| info.device.to_string()).collect();
    eprintln!("timing {} cases on {}", plan.units.len(), names.join(", "));
    let bar = progress(plan.units.len() * devices.len())?;
    bar.set_message("measuring the machine's limits");
    let peers = Peers::start(&args.against, parallel::threads())?;
    let machine = Machine::measure(&devices, args.seed, &peers)?;
    let notes = [plan.notes.clone(), peers.notes(&devices)].concat();
    let report = Report::new(machine, notes);
    report::write(&report, &args.out)?;
    let rows = (plan.units.len() * devices.len()).max(1) as f64;
    let budget = if args.quick { 0.02 } else { (SHARED_S / rows).clamp(0.04, 0.3) };
    let mut bench = Bench { args, bar, report, peers, budget, written: Instant::now() };
    for batch in plan.batches() {
        if stopped() {
            break;
        }
        bench.batch(batch)?;
    }
    bench.finish(plan.units.len() * devices.len())
}

struct Bench<'a> {
    args: &'a Args,
    bar: ProgressBar,
    report: Report,
    peers: Peers,
    budget: f64,
    written: Instant,
}

impl Bench<'_> {
    /// Prepares some units side by side, then times them one after the other.
    fn batch(&mut self, units: &[work::Unit]) -> Result<()> {
        self.bar.set_message(format!("preparing {}", units[0].label()));
        let roofs = &self.report.machine.roofs;
        let wanted = |unit: &work::Unit| roofs.iter().any(|roof| runner::too_long(unit, roof).is_none());
        let prepared = work::prepare(units, self.args.seed, wanted);
        for (unit, prepared) in units.iter().zip(&prepared) {
            for roof in self.report.machine.roofs.clone() {
                if stopped() {
                    return Ok(());
                }
                self.bar.set_message(format!("{} on {}", unit.label(), roof.info.device));
                let row = runner::row(unit, prepared, &roof, &mut self.peers, self.budget);
                if stopped() && row.ok && row.samples == 0 {
                    // Right, but interrupted before its first sample: neither timed nor wrong.
                    return Ok(());
                }
                self.report.rows.push(row);
                self.bar.inc(1);
                if self.written.elapsed() > REWRITE {
                    report::write(&self.report, &self.args.out)?;
                    self.written = Instant::now();
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, wanted: usize) -> Result<ExitCode> {
        self.bar.finish_and_clear();
        self.report.complete = self.report.rows.len() == wanted;
        report::write(&self.report, &self.args.out)?;
        if self.args.json {
            text::print_json(&self.report.rows)?;
        } else {
            text::print(&report::terminal(&self.report))?;
            eprintln!("report: {}", self.args.out.join("report.html").display());
        }
        let wrong = self.report.rows.iter().any(|row| !row.ok && row.skipped.is_none());
        Ok(match (stopped(), wrong) {
            (true, _) => ExitCode::from(interrupt::EXIT_CODE),
            (false, true) => ExitCode::FAILURE,
            (false, false) => ExitCode::SUCCESS,
        })
    }
}

fn progress(rows: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(rows as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} ({eta} left) {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}
