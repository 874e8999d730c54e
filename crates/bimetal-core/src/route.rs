//! Where an operation on host tensors runs: the device whose predicted time, transfers included, is shortest.
//!
//! `t(cpu) = launch + max(bytes / bandwidth, flops / rate)`, and for a GPU the launch, its wait and both transfers besides.
//! The figures come from the calibration file; without one, or without a hardware GPU, everything runs on the CPU.

use crate::calibrate::{Calibration, Rates, Record};
use crate::cpu::parallel;
use crate::op::{Cost, MOST_OUTPUTS, Op};
use crate::{Device, Gpu, Result, Spec, Tensor, gpu};
use arrayvec::ArrayVec;
use std::sync::OnceLock;

/// A GPU must be predicted to be this much faster before data is moved to it: predictions are coarse.
const MARGIN: f64 = 1.25;

/// A predicted time on one device, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The device.
    pub device: Device,
    /// Launch and wait.
    pub launch_s: f64,
    /// To the device and back.
    pub transfer_s: f64,
    /// The work itself: the slower of memory and arithmetic.
    pub work_s: f64,
}

impl Estimate {
    fn on_cpu(rates: &Rates, cost: Cost) -> Self {
        let memory = if cost.bytes <= rates.cache_bytes { rates.cache_bytes_per_s } else { rates.memory_bytes_per_s };
        let work_s = (cost.bytes as f64 / memory).max(cost.flops as f64 / rates.flops_per_s);
        // Less work than this stays on the calling thread.
        let launch_s = if cost.bytes < 2 * parallel::BYTES_PER_THREAD as u64 { 0.0 } else { rates.launch_s };
        Self { device: Device::Cpu, launch_s, transfer_s: 0.0, work_s }
    }

    fn on_gpu(device: Device, rates: &Rates, cost: Cost, bytes_in: u64, bytes_out: u64) -> Self {
        let transfer = |bytes: u64, rate: Option<f64>| rate.map_or(f64::INFINITY, |r| bytes as f64 / r);
        let transfer_s = transfer(bytes_in, rates.upload_bytes_per_s) + transfer(bytes_out, rates.download_bytes_per_s);
        Self { device, launch_s: rates.sync_s, transfer_s, work_s: rates.floor_s(cost) }
    }

    /// The whole.
    pub fn total_s(&self) -> f64 {
        self.launch_s + self.transfer_s + self.work_s
    }
}

/// Where to run, and what it was chosen from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Where to run.
    pub device: Device,
    /// The prediction for the CPU; `None` without a calibration.
    pub cpu: Option<Estimate>,
    /// The prediction for the best GPU that could take the work.
    pub gpu: Option<Estimate>,
}

impl Decision {
    const CPU: Self = Self { device: Device::Cpu, cpu: None, gpu: None };
}

/// Where an operation of this cost runs when its `bytes_in` of inputs and `bytes_out` of outputs are host tensors.
///
/// Costs nanoseconds where there is no calibration or no hardware GPU.
///
/// ```
/// use bimetal_core::{Device, op::Cost, route};
/// let small = Cost { bytes: 64, flops: 16 };
/// assert_eq!(route::choose(small, 32, 32).device, Device::Cpu);
/// ```
pub fn choose(cost: Cost, bytes_in: u64, bytes_out: u64) -> Decision {
    table().map_or(Decision::CPU, |table| table.choose(cost, bytes_in, bytes_out))
}

/// What is known of the devices that work may be sent to.
struct Table {
    cpu: Rates,
    gpus: Vec<Candidate>,
}

struct Candidate {
    device: Device,
    record: Record,
    /// Whether the calibrated card is here now; asking starts its driver, so only work that it could win asks.
    present: OnceLock<bool>,
}

impl Candidate {
    fn is_present(&self) -> bool {
        *self.present.get_or_init(|| gpu::discover().0.iter().any(|info| self.record.is_of(info)))
    }

    fn holds(&self, bytes_in: u64, bytes_out: u64) -> bool {
        // An eighth stays free for workspace; no single tensor can be larger than the sum of them.
        let fits = self.record.memory.is_none_or(|m| bytes_in + bytes_out <= m / 8 * 7);
        fits && self.record.largest_buffer.is_none_or(|b| bytes_in.max(bytes_out) <= b)
    }
}

fn table() -> Option<&'static Table> {
    static TABLE: OnceLock<Option<Table>> = OnceLock::new();
    TABLE.get_or_init(|| Calibration::load().and_then(|found| Table::new(&found))).as_ref()
}

impl Table {
    /// `None` without the CPU that is here or without a GPU that may be chosen.
    fn new(calibration: &Calibration) -> Option<Self> {
        let candidates = calibration.devices.iter().filter(|record| !record.software);
        let gpus: Vec<_> = candidates
            .filter_map(|record| {
                let device = record.device.parse::<Device>().ok().filter(|d| d.is_gpu())?;
                Some(Candidate { device, record: record.clone(), present: OnceLock::new() })
            })
            .collect();
        if gpus.is_empty() {
            return None;
        }
        let cpu = calibration.of(&crate::cpu::info())?.rates;
        Some(Self { cpu, gpus })
    }

    fn choose(&self, cost: Cost, bytes_in: u64, bytes_out: u64) -> Decision {
        let cpu = Estimate::on_cpu(&self.cpu, cost);
        let mut decision = Decision { device: Device::Cpu, cpu: Some(cpu), gpu: None };
        for candidate in &self.gpus {
            let gpu = Estimate::on_gpu(candidate.device, &candidate.record.rates, cost, bytes_in, bytes_out);
            let best = decision.gpu.is_none_or(|best| gpu.total_s() < best.total_s());
            if best && candidate.holds(bytes_in, bytes_out) {
                // Work that is over before a GPU has answered stays, however the CPU's launch was measured.
                let wins = cpu.work_s > gpu.launch_s && gpu.total_s() * MARGIN < cpu.total_s();
                if wins && !candidate.is_present() {
                    continue;
                }
                decision.gpu = Some(gpu);
                decision.device = if wins { candidate.device } else { Device::Cpu };
            }
        }
        decision
    }
}

/// Runs on host tensors: on the CPU, or where [`choose`] says.
pub(crate) fn run_host(op: &dyn Op, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let Some(table) = table() else { return op.cpu(inputs, outputs) };
    let specs: ArrayVec<&Spec, 8> = inputs.iter().map(|t| t.spec()).collect();
    let bytes_in = specs.iter().map(|s| s.bytes() as u64).sum();
    let bytes_out = outputs.iter().map(|t| t.spec().bytes() as u64).sum();
    match table.choose(op.cost(&specs), bytes_in, bytes_out).device {
        Device::Cpu => op.cpu(inputs, outputs),
        device => run_there(op, device, inputs, outputs),
    }
}

/// Moves the inputs to a GPU, runs there, and brings the outputs back; on the CPU if the device lacks a dtype.
fn run_there(op: &dyn Op, device: Device, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let gpu = Gpu::get(device)?;
    let dtypes = inputs.iter().map(|t| t.dtype()).chain(outputs.iter().map(|t| t.dtype()));
    if !dtypes.into_iter().all(|dtype| gpu.supports(dtype)) {
        return op.cpu(inputs, outputs);
    }
    let moved = inputs.iter().map(|t| t.to_device(device)).collect::<Result<ArrayVec<Tensor, 8>>>()?;
    let made = outputs.iter().map(|t| Tensor::empty_on(t.spec().clone(), device));
    let mut made = made.collect::<Result<ArrayVec<Tensor, MOST_OUTPUTS>>>()?;
    op.gpu(
        gpu,
        &moved.iter().collect::<ArrayVec<_, 8>>(),
        &mut made.iter_mut().collect::<ArrayVec<_, MOST_OUTPUTS>>(),
    )?;
    for (output, made) in outputs.iter_mut().zip(&made) {
        gpu.read(made.gpu_handle()?, output.host_bytes_mut()?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(memory: f64, flops: f64, transfer: Option<f64>) -> Rates {
        Rates {
            launch_s: 5e-6,
            sync_s: 2e-5,
            memory_bytes_per_s: memory,
            cache_bytes_per_s: 4.0 * memory,
            cache_bytes: 32 << 20,
            flops_per_s: flops,
            upload_bytes_per_s: transfer,
            download_bytes_per_s: transfer,
        }
    }

    fn table(present: bool) -> Table {
        let record = Record {
            device: "cuda:0".into(),
            name: "a card".into(),
            driver: "1".into(),
            software: false,
            memory: Some(80 << 30),
            largest_buffer: Some(40 << 30),
            measured_at_s: 0.0,
            rates: rates(4e12, 5e13, Some(2e10)),
        };
        let gpu = Candidate { device: Device::Cuda(0), record, present: OnceLock::from(present) };
        Table { cpu: rates(4e10, 2e11, None), gpus: vec![gpu] }
    }

    #[test]
    fn streaming_stays_and_arithmetic_moves() {
        let table = table(true);
        let small = table.choose(Cost { bytes: 1 << 12, flops: 1 << 10 }, 1 << 11, 1 << 11);
        assert_eq!(small.device, Device::Cpu);
        // One pass over memory: the transfer alone takes longer than the CPU.
        let streaming = table.choose(Cost { bytes: 8 << 27, flops: 1 << 27 }, 4 << 27, 4 << 27);
        assert_eq!(streaming.device, Device::Cpu);
        assert!(streaming.gpu.unwrap().transfer_s > streaming.cpu.unwrap().total_s());
        // A 4096³ product.
        let product = table.choose(Cost { bytes: 3 << 26, flops: 2 << 36 }, 2 << 26, 1 << 26);
        assert_eq!(product.device, Device::Cuda(0));
        assert!(product.gpu.unwrap().total_s() < product.cpu.unwrap().total_s());
    }

    #[test]
    fn a_card_that_is_gone_or_too_small_is_not_chosen() {
        let heavy = Cost { bytes: 3 << 26, flops: 2 << 36 };
        assert_eq!(table(false).choose(heavy, 2 << 26, 1 << 26).device, Device::Cpu);
        assert_eq!(table(true).choose(heavy, 100 << 30, 1 << 26).device, Device::Cpu);
        assert_eq!(table(true).choose(heavy, 50 << 30, 1 << 26).device, Device::Cpu);
    }

    #[test]
    fn software_drivers_are_never_candidates() {
        let mut calibration = Calibration::default();
        let mut record = table(true).gpus.remove(0).record;
        record.software = true;
        calibration.insert(record);
        calibration.insert(crate::calibrate::measure(Device::Cpu).unwrap());
        assert!(Table::new(&calibration).is_none());
    }
}
