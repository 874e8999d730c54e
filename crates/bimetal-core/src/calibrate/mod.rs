//! Calibration: what a launch, a transfer, a byte and a multiply-add cost on each device, measured once and kept.

#[allow(missing_docs)] // The `#[cube]` macro adds a public module without documentation beside each kernel.
mod gpu;
mod host;
mod store;

pub use store::{Calibration, path};

use crate::{Device, DeviceInfo, Error, Gpu, Result, devices};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What a device was measured to do. Times are seconds, rates are per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Time that each of many launches takes; on the CPU, to hand work to every thread and have it back.
    pub launch_s: f64,
    /// One launch and the wait for its end.
    pub sync_s: f64,
    /// Bytes that a large copy reads and writes.
    pub memory_bytes_per_s: f64,
    /// The same for a copy that fits in the last-level cache.
    pub cache_bytes_per_s: f64,
    /// Size of the last-level cache; a cautious guess where the driver does not say.
    pub cache_bytes: u64,
    /// f32 operations; a multiply-add is two.
    pub flops_per_s: f64,
    /// Bytes from host tensors to the device; `None` on the CPU.
    pub upload_bytes_per_s: Option<f64>,
    /// Bytes from the device to host tensors; `None` on the CPU.
    pub download_bytes_per_s: Option<f64>,
}

impl Rates {
    /// Shortest possible time for this much work: the slower of memory and arithmetic.
    pub fn floor_s(&self, cost: crate::op::Cost) -> f64 {
        (cost.bytes as f64 / self.memory_bytes_per_s).max(cost.flops as f64 / self.flops_per_s)
    }

    /// Takes the larger of both bandwidths and arithmetic rates.
    pub fn raise(&mut self, other: &Self) {
        self.memory_bytes_per_s = self.memory_bytes_per_s.max(other.memory_bytes_per_s);
        self.cache_bytes_per_s = self.cache_bytes_per_s.max(other.cache_bytes_per_s);
        self.flops_per_s = self.flops_per_s.max(other.flops_per_s);
    }

    /// Whether each figure is one that a measurement can give.
    fn is_plausible(&self) -> bool {
        let sane = |x: f64| x.is_finite() && x > 0.0;
        let transfer = |x: Option<f64>| x.is_none_or(sane);
        [self.launch_s, self.sync_s, self.memory_bytes_per_s, self.cache_bytes_per_s, self.flops_per_s]
            .into_iter()
            .all(sane)
            && transfer(self.upload_bytes_per_s)
            && transfer(self.download_bytes_per_s)
    }
}

/// A device's rates with what identifies it, so that another card or driver is measured again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How the device is named.
    pub device: String,
    /// The hardware's name.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// Whether it is a software driver, which is never chosen.
    pub software: bool,
    /// Bytes of memory, where known.
    pub memory: Option<u64>,
    /// Largest single buffer, in bytes; `None` on the CPU.
    pub largest_buffer: Option<u64>,
    /// When it was measured, in seconds since 1970.
    pub measured_at_s: f64,
    /// What was measured.
    pub rates: Rates,
}

impl Record {
    /// Whether this is the device that is here now.
    pub fn is_of(&self, info: &DeviceInfo) -> bool {
        self.device == info.device.to_string() && self.name == info.name && self.driver == info.driver
    }
}

/// Measures `device`; takes about a second.
///
/// # Errors
/// A device that is not here or fails.
pub fn measure(device: Device) -> Result<Record> {
    let (found, _) = devices();
    let info = found.into_iter().find(|info| info.device == device);
    let Some(info) = info else {
        let reason = "this machine has no such device".into();
        return Err(Error::Unavailable { device: device.to_string(), reason });
    };
    let (rates, largest_buffer) = match device {
        Device::Cpu => (host::rates()?, None),
        _ => {
            let gpu = Gpu::get(device)?;
            (gpu::rates(gpu, &info)?, Some(gpu.largest_buffer()))
        }
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(Record {
        device: device.to_string(),
        name: info.name,
        driver: info.driver,
        software: info.software,
        memory: info.memory,
        largest_buffer,
        measured_at_s: now.map_or(0.0, |d| d.as_secs_f64()),
        rates,
    })
}

/// The shortest of `times` runs, in seconds: a ceiling is what the undisturbed machine reaches.
fn fastest(times: usize, mut run: impl FnMut()) -> f64 {
    (0..times).map(|_| seconds(&mut run)).fold(f64::INFINITY, f64::min).max(1e-9)
}

/// The middle of `times` runs, in seconds.
fn typical(times: usize, mut run: impl FnMut()) -> f64 {
    let mut all: Vec<f64> = (0..times).map(|_| seconds(&mut run)).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2].max(1e-9)
}

fn seconds(run: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_can_be_measured() {
        let record = measure(Device::Cpu).unwrap();
        assert!(record.rates.is_plausible(), "{record:?}");
        assert!(record.rates.memory_bytes_per_s > 1e8 && record.rates.flops_per_s > 1e7, "{record:?}");
        assert!(record.is_of(&devices().0[0]));
    }

    #[test]
    fn a_missing_device_is_an_error() {
        assert!(measure(Device::Cuda(999)).is_err());
    }
}
