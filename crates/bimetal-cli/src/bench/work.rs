//! What is timed: cases with their inputs and exact outputs, prepared several at a time.

use crate::select::Entry;
use anyhow::{Result, bail};
use bimetal::{DType, Shape, Tensor};
use bimetal_core::cpu::parallel;
use bimetal_core::op::{Case, Expected, Role};
use bimetal_core::verify;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Elements of the inputs and outputs of the units that are prepared together: about 1 GiB with their f64 values.
const BATCH_ELEMENTS: usize = 48 << 20;

/// Units prepared together, at most: the bar stands still meanwhile.
const BATCH_UNITS: usize = 8;

/// Largest input of a quick run, in elements.
const QUICK_ELEMENTS: usize = 4 << 20;

/// Bytes of inputs that are kept for later units with the same ones.
const KEPT_BYTES: usize = 512 << 20;

/// A case to be timed under a dtype.
pub struct Unit {
    pub domain: &'static str,
    pub op: &'static str,
    pub case: Case,
    pub dtype: DType,
    /// Its shape was asked for by name.
    pub asked: bool,
}

impl Unit {
    pub fn label(&self) -> String {
        format!("{} {}", self.op, self.case.label)
    }

    /// Elements of all inputs and outputs.
    fn elements(&self) -> usize {
        let specs = self.case.specs(self.dtype);
        let inputs: usize = specs.iter().map(|s| s.numel()).sum();
        let outputs = self.case.op.outputs(&specs.iter().collect::<Vec<_>>());
        inputs + outputs.map_or(0, |specs| specs.iter().map(|s| s.numel()).sum())
    }
}

/// What a run will time.
pub struct Plan {
    pub units: Vec<Unit>,
    /// Operations that were left out, and why.
    pub notes: Vec<String>,
}

/// The benchmark cases of some operations, or one case of each at `shape`.
///
/// # Errors
/// A plan with nothing in it.
pub fn plan(entries: &[Entry], shape: Option<&Shape>, dtype: DType, quick: bool) -> Result<Plan> {
    let mut plan = Plan { units: Vec::new(), notes: Vec::new() };
    for (domain, op) in entries {
        if !op.dtypes().contains(&dtype) {
            plan.notes.push(format!("{} is left out: it has no {dtype} form", op.name()));
            continue;
        }
        let mut cases = match shape {
            Some(shape) => match op.at_shape(shape) {
                Ok(case) => vec![case],
                Err(e) => {
                    plan.notes.push(format!("{} is left out: {e}", op.name()));
                    continue;
                }
            },
            None => op.cases().into_iter().filter(|case| case.role == Role::Bench).collect(),
        };
        let size = |case: &Case| case.inputs.iter().map(|i| i.shape.numel()).max().unwrap_or(0);
        if quick && shape.is_none() {
            let smallest = cases.iter().map(size).min().unwrap_or(0);
            cases.retain(|case| size(case) <= QUICK_ELEMENTS.max(smallest));
        }
        let asked = shape.is_some();
        let unit = |case| Unit { domain: domain.name, op: op.name(), case, dtype, asked };
        plan.units.extend(cases.into_iter().map(unit));
    }
    if plan.units.is_empty() {
        bail!("nothing to time: {}", plan.notes.join("; "));
    }
    Ok(plan)
}

impl Plan {
    /// Runs of units that can be prepared together.
    pub fn batches(&self) -> impl Iterator<Item = &[Unit]> {
        let mut elements = self.units.first().map_or(0, Unit::elements);
        let mut count = 0;
        self.units.chunk_by(move |_, next| {
            elements += next.elements();
            count += 1;
            let together = elements <= BATCH_ELEMENTS && count < BATCH_UNITS;
            if !together {
                (elements, count) = (next.elements(), 0);
            }
            together
        })
    }
}

/// A unit's inputs on the host, and its exact outputs.
pub struct Ready {
    pub inputs: Vec<Tensor>,
    pub expected: Vec<Expected>,
}

/// Prepares each wanted unit, as many at a time as there are threads: references are plain loops on one thread.
pub fn prepare(units: &[Unit], seed: u64, wanted: impl Fn(&Unit) -> bool + Sync) -> Vec<Result<Ready, String>> {
    let ready: Vec<OnceLock<Result<Ready, String>>> = units.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..parallel::threads().min(units.len()) {
            scope.spawn(|| {
                while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < units.len()) {
                    if !wanted(&units[i]) {
                        continue;
                    }
                    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| prepare_one(&units[i], seed)));
                    let _ = ready[i].set(made.unwrap_or_else(|_| Err("the reference panicked".into())));
                }
            });
        }
    });
    ready.into_iter().map(|cell| cell.into_inner().unwrap_or_else(|| Err("not prepared".into()))).collect()
}

fn prepare_one(unit: &Unit, seed: u64) -> Result<Ready, String> {
    // What the operation refuses has no reference.
    let specs = unit.case.specs(unit.dtype);
    unit.case.op.outputs(&specs.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    let inputs = inputs(unit, seed).map_err(|e| e.to_string())?;
    let values = verify::values(&inputs).map_err(|e| e.to_string())?;
    let expected = unit.case.op.reference(&values);
    Ok(Ready { inputs, expected })
}

/// As [`verify::inputs`], sharing tensors between units: most operations of a domain take the same ones.
fn inputs(unit: &Unit, seed: u64) -> bimetal::Result<Vec<Tensor>> {
    static KEPT: Mutex<Option<HashMap<String, Tensor>>> = Mutex::new(None);
    let filled = (0u64..).zip(&unit.case.inputs).map(|(i, input)| {
        let (spec, seed) = (input.spec(unit.dtype), verify::input_seed(seed, i));
        let key = format!("{} {} {:?} {seed}", spec.dtype, spec.shape, input.fill);
        let kept = |map: &Option<HashMap<String, Tensor>>| map.as_ref().and_then(|m| m.get(&key).cloned());
        if let Some(tensor) = kept(&KEPT.lock().unwrap_or_else(|e| e.into_inner())) {
            return Ok(tensor);
        }
        let tensor = verify::fill(&spec, input.fill, seed)?;
        let mut guard = KEPT.lock().unwrap_or_else(|e| e.into_inner());
        let map = guard.get_or_insert_default();
        let bytes: usize = map.values().map(|t| t.spec().bytes()).sum();
        if bytes + tensor.spec().bytes() > KEPT_BYTES {
            map.clear();
        }
        map.insert(key, tensor.clone());
        Ok(tensor)
    });
    filled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select;

    #[test]
    fn batches_hold_every_unit_once_and_inputs_are_those_of_the_check() {
        let plan = plan(&select::ops(&["softmax".into()]).unwrap(), None, DType::F32, false).unwrap();
        let labels: Vec<String> = plan.units.iter().map(Unit::label).collect();
        let batched: Vec<String> = plan.batches().flatten().map(Unit::label).collect();
        assert_eq!(labels, batched);
        let small = &plan.units[0];
        let ours = prepare(std::slice::from_ref(small), 7, |_| true).remove(0).unwrap();
        let theirs = verify::inputs(&small.case, DType::F32, 7).unwrap();
        assert_eq!(ours.inputs[0].to_vec::<f32>().unwrap(), theirs[0].to_vec::<f32>().unwrap());
    }

    #[test]
    fn quick_keeps_a_case_of_every_operation() {
        let entries = select::ops(&[]).unwrap();
        let plan = plan(&entries, None, DType::F32, true).unwrap();
        for (_, op) in entries.iter().filter(|(_, op)| op.dtypes().contains(&DType::F32)) {
            assert!(plan.units.iter().any(|u| u.op == op.name()), "{}", op.name());
        }
    }
}
