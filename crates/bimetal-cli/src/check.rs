//! `bimetal check`: agreement with the f64 reference on every device and vector level.

use crate::{select, text};
use anyhow::{Result, bail};
use bimetal_core::check::{self, Outcome, Plan, Row, Target};
use bimetal_core::cpu::simd::Level;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Operations or domains, or parts of their names; all without one
    filter: Vec<String>,
    /// Devices, separated by commas: cpu, gpu, cuda:0, vulkan:0, metal:0 [default: everything here]
    #[arg(long, short, value_delimiter = ',')]
    device: Vec<String>,
    /// Fail on a device that was asked for and skipped
    #[arg(long)]
    strict: bool,
    /// Check the CPU at this vector level only: scalar, neon, avx2 or avx512
    #[arg(long)]
    level: Option<Level>,
    /// Seed of the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON: an array of {op, case, dtype, target, outcome, …}
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let ops = select::ops(&args.filter)?;
    let plan = plan(args)?;
    let bar = ProgressBar::new(ops.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta} left)")?);
    let mut tally = Tally::default();
    let ops: Vec<_> = ops.into_iter().map(|(_, op)| op).collect();
    check::check_all(&ops, &plan, &mut |op, rows| {
        bar.set_message(format!("after {}", op.name()));
        for row in rows {
            if let (Outcome::Failed { why }, false) = (&row.outcome, args.json) {
                bar.suspend(|| eprintln!("FAILED {row}: {why}"));
            }
            tally.add(row, args.json);
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    if args.json {
        text::print_json(&tally.rows)?;
    } else {
        text::print(&tally.summary())?;
    }
    Ok(if tally.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn plan(args: &Args) -> Result<Plan> {
    let mut plan = if args.device.is_empty() { Plan::from_env() } else { Plan::everything() };
    plan.strict |= args.strict;
    plan.seed = args.seed;
    if !args.device.is_empty() {
        let infos = select::device_list(&args.device)?;
        let names: Vec<String> = infos.iter().map(|info| info.device.to_string()).collect();
        plan.restrict(names.iter().map(String::as_str));
    }
    if let Some(level) = args.level {
        if !level.is_available() {
            let here: Vec<String> = Level::detected().iter().map(Level::to_string).collect();
            bail!("this machine has no vector level {level}; it has {}", here.join(", "));
        }
        plan.targets.retain(|target| match target {
            Target::Level(l) => *l == level,
            // A level without devices means the CPU; with devices, the GPUs among them stay.
            Target::Gpu(_) => !args.device.is_empty(),
        });
    }
    Ok(plan)
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Where and why, with how often.
    skips: BTreeMap<(String, String), usize>,
    /// The row closest to its tolerance.
    tightest: Option<(f64, String)>,
    rows: Vec<serde_json::Value>,
}

impl Tally {
    fn add(&mut self, row: Row, keep: bool) {
        let (outcome, details) = match &row.outcome {
            Outcome::Passed { error, tolerance } => {
                self.passed += 1;
                let ratio = if *tolerance > 0.0 { error / tolerance } else { 0.0 };
                if self.tightest.as_ref().is_none_or(|(worst, _)| ratio > *worst) {
                    self.tightest = Some((ratio, row.to_string()));
                }
                ("passed", json!({"error": error, "tolerance": tolerance}))
            }
            Outcome::Failed { why } => {
                self.failed += 1;
                ("failed", json!({"why": why}))
            }
            Outcome::Skipped { why } => {
                self.skipped += 1;
                *self.skips.entry((row.target.clone(), why.clone())).or_default() += 1;
                ("skipped", json!({"why": why}))
            }
        };
        if keep {
            let mut value = json!({
                "op": row.op, "case": row.case, "dtype": row.dtype.name(), "target": row.target, "outcome": outcome,
            });
            if let (Some(object), serde_json::Value::Object(details)) = (value.as_object_mut(), details) {
                object.extend(details);
            }
            self.rows.push(value);
        }
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        for ((target, why), times) in &self.skips {
            out += &format!("skipped {target} ({times}): {why}\n");
        }
        if let Some((ratio, row)) = self.tightest.as_ref().filter(|(ratio, _)| *ratio > 0.0) {
            out += &format!("closest to its tolerance: {row}, {:.0}% of it\n", ratio * 100.0);
        }
        out + &format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}
