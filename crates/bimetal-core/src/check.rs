//! The agreement check: an operation's cases on every target, compared with the f64 reference.

use crate::cpu::parallel;
use crate::cpu::simd::{self, Level};
use crate::op::{self, Case, Definition, Expected, Role};
use crate::{DType, Device, Gpu, Spec, Tensor, devices, verify};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where a case is run: a CPU vector level or a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU at a forced vector level.
    Level(Level),
    /// A GPU.
    Gpu(Device),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(level) => write!(f, "cpu/{level}"),
            Self::Gpu(device) => write!(f, "{device}"),
        }
    }
}

/// What is checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub targets: Vec<Target>,
    /// Targets and backends that were wanted and are missing, with the reason.
    pub missing: Vec<(String, String)>,
    /// A skip of what should have run is a failure.
    pub strict: bool,
    /// Benchmark cases up to this many elements in all inputs are checked too.
    pub bench_elements: usize,
    /// Seed of the inputs.
    pub seed: u64,
}

impl Plan {
    /// Every CPU level and every GPU of this machine.
    pub fn everything() -> Self {
        let mut targets: Vec<_> = Level::detected().iter().map(|&l| Target::Level(l)).collect();
        let (found, absent) = devices();
        targets.extend(found.iter().filter(|d| d.device.is_gpu()).map(|d| Target::Gpu(d.device)));
        let missing = absent.iter().map(|a| (a.backend.to_string(), a.reason.clone())).collect();
        Self { targets, missing, strict: false, bench_elements: 300_000, seed: 1 }
    }

    /// As [`Plan::everything`], or what `BIMETAL_DEVICES` (a comma-separated list) names; strict if `BIMETAL_STRICT`
    /// is set. A named device that is missing is a failure in strict mode.
    pub fn from_env() -> Self {
        let mut plan = Self::everything();
        plan.strict = std::env::var_os("BIMETAL_STRICT").is_some_and(|v| v != "0");
        if let Ok(names) = std::env::var("BIMETAL_DEVICES") {
            plan.restrict(names.split(','));
        }
        plan
    }

    /// Keeps the named devices only; a name that is not here becomes `missing`.
    pub fn restrict<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let all = std::mem::take(&mut self.targets);
        self.missing.clear();
        for name in names.filter(|n| !n.is_empty()) {
            let wanted = Device::parse(name);
            let kept = all.iter().filter(|t| match (t, &wanted) {
                (Target::Level(_), Ok(Device::Cpu)) => true,
                (Target::Gpu(device), Ok(named)) => device == named,
                _ => false,
            });
            let before = self.targets.len();
            self.targets.extend(kept);
            if self.targets.len() == before {
                let reason = wanted.map_or_else(|e| e.to_string(), |_| "this machine has no such device".to_string());
                self.missing.push((name.to_string(), reason));
            }
        }
    }
}

/// What became of one run.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Within tolerance: the worst error and what was allowed.
    Passed {
        /// Relative error of the worst element.
        error: f64,
        /// What was allowed there.
        tolerance: f64,
    },
    /// Wrong, or refused.
    Failed {
        /// The worst element, or the error.
        why: String,
    },
    /// Not run.
    Skipped {
        /// The reason.
        why: String,
    },
}

/// One run of a case.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation.
    pub op: &'static str,
    /// The case's label; empty for a target that is missing altogether.
    pub case: String,
    /// The dtype under test.
    pub dtype: DType,
    /// Where it ran.
    pub target: String,
    /// How it went.
    pub outcome: Outcome,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] {} on {}", self.op, self.case, self.dtype, self.target)
    }
}

/// Benchmark cases with more arithmetic than this are checked by the bench alone: a device that is a CPU in truth would take
/// minutes.
const BENCH_FLOPS: u64 = 100_000_000;

fn flops(case: &Case) -> u64 {
    let specs = case.specs(DType::F32);
    case.op.cost(&specs.iter().collect::<Vec<_>>()).flops
}

/// Runs every case of `op` on every target and dtype of the plan.
pub fn check(op: &dyn Definition, plan: &Plan, report: &mut dyn FnMut(Row)) {
    let row = |case: &str, dtype, target: String, outcome| Row {
        op: op.name(),
        case: case.to_string(),
        dtype,
        target,
        outcome,
    };
    for (name, reason) in &plan.missing {
        let outcome = match plan.strict {
            // Strict: a backend that was asked for by name must be there.
            true if name.contains(':') || name == "gpu" => Outcome::Failed { why: format!("missing: {reason}") },
            _ => Outcome::Skipped { why: reason.clone() },
        };
        report(row("", DType::F32, name.clone(), outcome));
    }
    for case in op.cases() {
        let elements: usize = case.inputs.iter().map(|i| i.shape.numel()).sum();
        if case.role == Role::Bench && (elements > plan.bench_elements || flops(&case) > BENCH_FLOPS) {
            continue;
        }
        for &dtype in op.dtypes() {
            let prepared = prepare(&case, dtype, plan.seed);
            for &target in &plan.targets {
                let outcome = match &prepared {
                    Ok((inputs, expected)) => run_on(&case, dtype, inputs, expected, target),
                    Err(why) => Outcome::Failed { why: why.clone() },
                };
                report(row(&case.label, dtype, target.to_string(), outcome));
            }
        }
    }
}

/// Checks several operations, one on each core: references and a GPU's compiler take turns in waiting for nobody. What is
/// missing is reported with the first of them. `report` gets the rows of each operation in the order given.
pub fn check_all(ops: &[&dyn Definition], plan: &Plan, report: &mut (dyn FnMut(&dyn Definition, Vec<Row>) + Send)) {
    struct Done<'a> {
        reported: usize,
        waiting: BTreeMap<usize, Vec<Row>>,
        report: &'a mut (dyn FnMut(&dyn Definition, Vec<Row>) + Send),
    }
    let rest = Plan { missing: Vec::new(), ..plan.clone() };
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Done { reported: 0, waiting: BTreeMap::new(), report });
    let work = || {
        while let Some((i, op)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, *ops.get(i)?))) {
            let mut rows = Vec::new();
            check(op, if i == 0 { plan } else { &rest }, &mut |row| rows.push(row));
            let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
            done.waiting.insert(i, rows);
            while let Some(rows) = {
                let at = done.reported;
                done.waiting.remove(&at)
            } {
                let op = ops[done.reported];
                (done.report)(op, rows);
                done.reported += 1;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..parallel::threads().min(ops.len()) {
            scope.spawn(work);
        }
        work();
    });
}

/// The inputs and the exact outputs of a case.
///
/// # Errors
/// An input that cannot be made, in words.
pub fn prepare(case: &Case, dtype: DType, seed: u64) -> Result<(Vec<Tensor>, Vec<Expected>), String> {
    let inputs = verify::inputs(case, dtype, seed).map_err(|e| e.to_string())?;
    let values = verify::values(&inputs).map_err(|e| e.to_string())?;
    Ok((inputs, case.op.reference(&values)))
}

fn run_on(case: &Case, dtype: DType, inputs: &[Tensor], expected: &[Expected], target: Target) -> Outcome {
    match target {
        Target::Level(level) => at_level(level, || compare_run(case, inputs, expected)),
        Target::Gpu(device) => match Gpu::get(device) {
            Err(e) => Outcome::Failed { why: e.to_string() },
            Ok(gpu) if !gpu.supports(dtype) => Outcome::Skipped { why: format!("the device has no {dtype} storage") },
            Ok(_) => {
                let moved: Result<Vec<_>, _> = inputs.iter().map(|t| t.to_device(device)).collect();
                match moved {
                    Ok(moved) => compare_run(case, &moved, expected),
                    Err(e) => Outcome::Failed { why: e.to_string() },
                }
            }
        },
    }
}

/// Runs `f` with a vector level forced; one caller at a time, because the level belongs to the process.
fn at_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let forced = simd::force(Some(level));
    let out = f();
    if forced.is_ok() {
        let _ = simd::force(None);
    }
    out
}

fn compare_run(case: &Case, inputs: &[Tensor], expected: &[Expected]) -> Outcome {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    match poisoned_run(case, &inputs) {
        Ok(outputs) => judge(case, &inputs, &outputs, expected),
        Err(e) => Outcome::Failed { why: e.to_string() },
    }
}

/// A tensor on `device` that holds a pattern, so that an element that is never written shows.
///
/// # Errors
/// A device that is not available or fails.
pub fn poisoned(spec: &Spec, device: Device) -> crate::Result<Tensor> {
    let mut poison = Tensor::empty(spec.shape.dims(), spec.dtype)?;
    let pattern = if spec.dtype == DType::Bool { 1 } else { 0xa5 };
    poison.host_bytes_mut()?.fill(pattern);
    poison.to_device(device)
}

fn poisoned_run(case: &Case, inputs: &[&Tensor]) -> crate::Result<Vec<Tensor>> {
    let specs: Vec<_> = inputs.iter().map(|t| t.spec()).collect();
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    let made = case.op.outputs(&specs)?.iter().map(|spec| poisoned(spec, device)).collect::<crate::Result<_>>();
    let mut outputs: Vec<Tensor> = made?;
    op::run_here(case.op.as_ref(), inputs, &mut outputs.iter_mut().collect::<Vec<_>>())?;
    Ok(outputs)
}

/// Judges the outputs of a case; the worst finding decides.
pub fn judge(case: &Case, inputs: &[&Tensor], outputs: &[Tensor], expected: &[Expected]) -> Outcome {
    let found = match verify::judge(case.op.as_ref(), inputs, outputs, expected) {
        Ok(found) => found,
        Err(e) => return Outcome::Failed { why: e.to_string() },
    };
    match found.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio())) {
        None => Outcome::Failed { why: "nothing was judged".into() },
        Some(a) if a.ok => Outcome::Passed { error: a.error, tolerance: a.tolerance },
        Some(a) => Outcome::Failed { why: format!("{}: error {:.3e}, allowed {:.3e}", a.worst, a.error, a.tolerance) },
    }
}
