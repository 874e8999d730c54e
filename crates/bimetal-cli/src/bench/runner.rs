//! One row: ours and the peers timed in turns on the same inputs, then the timed run's outputs compared with the reference.

use super::machine::Roof;
use super::row::Row;
use super::timing::{self, Runner};
use super::work::{Ready, Unit};
use crate::peers::{Job, Peers};
use bimetal::Tensor;
use bimetal_core::op::{Case, Cost, Expected};
use bimetal_core::{Gpu, verify};

/// Turns that we and the peers take: what disturbs the machine for a moment then disturbs both.
const TURNS: usize = 3;

/// Samples of a turn, at least.
const LEAST: usize = 2;

/// Sets of buffers that a GPU run rotates over, at most.
const MOST_SETS: u64 = 32;

/// Times a prepared unit on a device.
pub fn row(unit: &Unit, ready: &Result<Ready, String>, roof: &Roof, peers: &mut Peers, budget: f64) -> Row {
    let specs = unit.case.specs(unit.dtype);
    let specs: Vec<_> = specs.iter().collect();
    let cost = unit.case.op.cost(&specs);
    let mut row = Row {
        op: unit.op,
        domain: unit.domain,
        case: unit.case.label.clone(),
        dtype: unit.dtype.name(),
        device: roof.info.device.to_string(),
        elements: specs.first().map_or(0, |s| s.numel()),
        bytes: cost.bytes,
        flops: cost.flops,
        ..Row::default()
    };
    if let Some(why) = too_long(unit, roof) {
        row.skipped = Some(why);
        return row;
    }
    let ready = match ready {
        Ok(ready) => ready,
        Err(why) => {
            row.notes.push(why.clone());
            return row;
        }
    };
    if let Some(why) = lacks(unit, ready, roof) {
        row.skipped = Some(why);
        return row;
    }
    match time(unit, ready, roof, cost, peers, budget, &mut row) {
        Ok(samples) => finish(&mut row, roof, &samples),
        Err(why) => row.notes.push(why),
    }
    row
}

/// Longest call that a device is asked for, in seconds at its measured rates: some cases are for the fastest devices.
const LONGEST_S: f64 = 0.5;

/// Why a case is not for this device, if it would take too long there. What `--shape` asks for always runs.
pub fn too_long(unit: &Unit, roof: &Roof) -> Option<String> {
    let specs = unit.case.specs(unit.dtype);
    let least = roof.rates.floor_s(unit.case.op.cost(&specs.iter().collect::<Vec<_>>()));
    (least > LONGEST_S && !unit.asked).then(|| format!("a call takes at least {least:.1} s here; --shape times it"))
}

/// Why the device cannot run the unit, if it cannot.
fn lacks(unit: &Unit, ready: &Ready, roof: &Roof) -> Option<String> {
    if !roof.info.device.is_gpu() {
        return None;
    }
    let gpu = match Gpu::get(roof.info.device) {
        Ok(gpu) => gpu,
        Err(e) => return Some(e.to_string()),
    };
    let specs: Vec<_> = ready.inputs.iter().map(|t| t.spec()).collect();
    let outputs = unit.case.op.outputs(&specs).unwrap_or_default();
    let largest = specs.iter().map(|s| s.bytes()).chain(outputs.iter().map(|s| s.bytes())).max().unwrap_or(0);
    let dtypes = specs.iter().map(|s| s.dtype).chain(outputs.iter().map(|s| s.dtype));
    let missing = dtypes.into_iter().find(|&dtype| !gpu.supports(dtype));
    missing.map(|dtype| format!("the device has no {dtype} storage")).or_else(|| {
        (largest as u64 > gpu.largest_buffer()).then(|| "a tensor is larger than the device's largest buffer".into())
    })
}

/// Sets of buffers: enough that a memory-bound GPU run does not find its data in the cache from its last turn.
fn sets(roof: &Roof, cost: Cost) -> usize {
    let rates = &roof.rates;
    let memory_s = cost.bytes as f64 / rates.memory_bytes_per_s;
    let memory_bound = memory_s >= cost.flops as f64 / rates.flops_per_s && memory_s >= rates.launch_s;
    if !roof.info.device.is_gpu() || !memory_bound || cost.bytes >= 2 * rates.cache_bytes {
        return 1;
    }
    let room = roof.info.memory.unwrap_or(4 << 30) / 4;
    (2 * rates.cache_bytes).div_ceil(cost.bytes).min(MOST_SETS).min(room / cost.bytes.max(1)).max(1) as usize
}

/// The samples of a run whose outputs were right; what was found is noted in `row`.
fn time(
    unit: &Unit,
    ready: &Ready,
    roof: &Roof,
    cost: Cost,
    peers: &mut Peers,
    budget: f64,
    row: &mut Row,
) -> Result<Vec<f64>, String> {
    let device = roof.info.device;
    let gpu = Gpu::get(device).ok().filter(|gpu| gpu.reset_peak_memory().is_ok());
    let mut runner = Runner::new(unit.case.op.as_ref(), &ready.inputs, device, sets(roof, cost)).map_err(text)?;
    runner.warm_up().map_err(text)?;
    row.cached = cost.bytes * runner.sets() as u64 <= roof.rates.cache_bytes;
    let mut jobs = peers.load(unit, ready, device, runner.sets(), &mut row.notes);
    let turns = if jobs.is_empty() { 1 } else { TURNS };
    let mut samples = Vec::new();
    for turn in 0..turns {
        if turn > 0 {
            // The peers had the caches and the threads meanwhile.
            runner.warm_up().map_err(text)?;
        }
        let least = if turns == 1 { TURNS * LEAST } else { LEAST };
        runner.sample(budget / turns as f64, least, &mut samples).map_err(text)?;
        for job in &mut jobs {
            job.sample(peers, budget / turns as f64, LEAST);
        }
    }
    row.calls = runner.calls();
    row.peak_bytes = gpu.and_then(|gpu| gpu.memory_report().ok()).map(|report| report.peak);
    let (inputs, outputs) = runner.latest();
    let right = judge(&unit.case, inputs, outputs, &ready.expected, row)?;
    for job in jobs {
        settle(job, peers, &unit.case, ready, row);
    }
    if right { Ok(samples) } else { Ok(Vec::new()) }
}

/// Takes a peer's time into the row if it computed the same thing.
fn settle(mut job: Job, peers: &mut Peers, case: &Case, ready: &Ready, row: &mut Row) {
    let name = job.name().to_string();
    match job.finish(peers, case, ready) {
        Ok(samples) => {
            if let Some((median, _, _)) = timing::statistics(&samples) {
                row.peers.insert(name, median);
            }
        }
        Err(why) => row.notes.push(format!("{name}: {why}")),
    }
}

/// Judges the outputs and notes the worst error.
fn judge(
    case: &Case,
    inputs: &[Tensor],
    outputs: &[Tensor],
    expected: &[Expected],
    row: &mut Row,
) -> Result<bool, String> {
    let inputs: Vec<_> = inputs.iter().collect();
    let found = verify::judge(case.op.as_ref(), &inputs, outputs, expected).map_err(text)?;
    let worst = found.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio())).ok_or("nothing was judged")?;
    (row.error, row.tolerance) = (Some(worst.error), Some(worst.tolerance));
    row.ok = worst.ok;
    row.notes.extend(found.iter().filter(|a| !a.ok).map(|a| a.worst.clone()));
    Ok(row.ok)
}

fn finish(row: &mut Row, roof: &Roof, samples: &[f64]) {
    let Some((median, min, spread)) = timing::statistics(samples) else { return };
    let floor = roof.rates.floor_s(Cost { bytes: row.bytes, flops: row.flops });
    row.samples = samples.len();
    (row.median_s, row.min_s, row.spread) = (Some(median), Some(min), Some(spread));
    row.gbs = Some(row.bytes as f64 / median / 1e9);
    row.gflops = Some(row.flops as f64 / median / 1e9);
    row.roofline = Some(floor / median);
}

fn text(error: bimetal::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::work;
    use super::*;
    use bimetal::{DType, Spec};
    use bimetal_core::calibrate::Rates;
    use bimetal_core::op::{Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};

    /// y = 2x, which multiplies by `factor` instead.
    struct Doubled {
        factor: f32,
    }

    impl Op for Doubled {
        fn name(&self) -> &'static str {
            "doubled"
        }
        fn outputs(&self, inputs: &[&Spec]) -> bimetal::Result<Specs> {
            Ok(inputs.iter().map(|s| (*s).clone()).collect())
        }
        fn cost(&self, inputs: &[&Spec]) -> Cost {
            Cost { bytes: 2 * inputs[0].bytes() as u64, flops: inputs[0].numel() as u64 }
        }
        fn tolerance(&self, _: &[&Spec]) -> Tolerance {
            Tolerance::EXACT
        }
        fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
            vec![Expected::exact(inputs[0].data.iter().map(|x| 2.0 * x).collect())]
        }
        fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> bimetal::Result<()> {
            let (x, y) = (inputs[0].as_slice::<f32>()?, outputs[0].as_mut_slice::<f32>()?);
            x.iter().zip(y).for_each(|(x, y)| *y = self.factor * x);
            Ok(())
        }
        fn gpu(&self, _: &Gpu, _: &[&Tensor], _: &mut [&mut Tensor]) -> bimetal::Result<()> {
            Err(bimetal::Error::argument("doubled", "device", "the CPU"))
        }
        fn peer(&self, _: &[&Spec]) -> Peer {
            Peer::default()
        }
    }

    fn timed(factor: f32) -> Row {
        let case = Case::new(Doubled { factor }, vec![Input::new(&[1000], Fill::Normal)], Role::Bench);
        let unit = Unit { domain: "test", op: "doubled", case, dtype: DType::F32, asked: false };
        let ready = work::prepare(std::slice::from_ref(&unit), 1, |_| true).remove(0);
        let rates = Rates {
            launch_s: 1e-6,
            sync_s: 1e-6,
            memory_bytes_per_s: 1e10,
            cache_bytes_per_s: 1e11,
            cache_bytes: 32 << 20,
            flops_per_s: 1e11,
            upload_bytes_per_s: None,
            download_bytes_per_s: None,
        };
        let roof = Roof { info: bimetal::devices().0.remove(0), rates };
        let mut peers = Peers::start(&[], 1).unwrap();
        row(&unit, &ready, &roof, &mut peers, 0.01)
    }

    #[test]
    fn a_right_operation_has_a_time() {
        let row = timed(2.0);
        assert!(row.ok && row.cached && row.error == Some(0.0), "{row:?}");
        assert!(row.median_s.unwrap() >= row.min_s.unwrap() && row.samples >= TURNS * LEAST);
        let share = row.roofline.unwrap() * row.median_s.unwrap();
        assert!((share - 8000.0 / 1e10).abs() < 1e-12);
    }

    #[test]
    fn a_wrong_operation_has_none() {
        let row = timed(2.0001);
        assert!(!row.ok && row.skipped.is_none());
        assert!(row.median_s.is_none() && row.min_s.is_none() && row.gbs.is_none() && row.roofline.is_none());
        assert!(row.error.unwrap() > row.tolerance.unwrap());
        assert!(row.notes[0].contains("exactly"), "{:?}", row.notes);
    }
}
