//! The machine that a report is about: its devices with their measured limits, and the versions of what ran.

use crate::peers::Peers;
use crate::text;
use anyhow::Result;
use bimetal::DeviceInfo;
use bimetal_core::calibrate::{self, Calibration, Rates};
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::Level;

/// A device with the limits that it was measured to have at the start of the run.
#[derive(Clone)]
pub struct Roof {
    pub info: DeviceInfo,
    pub rates: Rates,
}

/// What stands at the head of a report.
pub struct Machine {
    /// Names and values.
    pub lines: Vec<(String, String)>,
    /// The devices that are timed.
    pub roofs: Vec<Roof>,
}

impl Machine {
    /// Measures the limits of the devices, and collects what identifies the run.
    ///
    /// # Errors
    /// A device that fails.
    pub fn measure(devices: &[DeviceInfo], seed: u64, peers: &Peers) -> Result<Self> {
        let mut roofs = Vec::new();
        let kept = Calibration::load().unwrap_or_default();
        for info in devices {
            let mut rates = calibrate::measure(info.device)?.rates;
            // A limit is what the undisturbed machine reaches: an earlier and higher measurement counts.
            if let Some(earlier) = kept.of(info) {
                rates.raise(&earlier.rates);
            }
            roofs.push(Roof { info: info.clone(), rates });
        }
        let cpu = bimetal::devices().0.swap_remove(0);
        let mut lines = vec![
            ("Date".into(), text::now()),
            ("bimetal".into(), format!("{} ({})", env!("CARGO_PKG_VERSION"), profile())),
            ("System".into(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("CPU".into(), cpu.name),
            (
                "Threads, vector level".into(),
                format!("{} of {} cores, {}", parallel::threads(), cpu.cores.unwrap_or(0), Level::current()),
            ),
        ];
        lines.extend(load().map(|load| ("Load at the start".into(), load)));
        for roof in &roofs {
            lines.push((format!("Limits of {}", roof.info.device), limits(roof)));
        }
        lines.extend(peers.versions());
        lines.push(("Seed".into(), seed.to_string()));
        Ok(Self { lines, roofs })
    }
}

/// How busy the machine was with other things in the minute before, where the system says.
fn load() -> Option<String> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let busy: f64 = text.split(' ').next()?.parse().ok()?;
    let warning = if busy > 1.0 { ": other programs disturb the times" } else { "" };
    Some(format!("{busy:.1} runnable threads{warning}"))
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug build: its times mean nothing" } else { "release build" }
}

fn limits(roof: &Roof) -> String {
    let Roof { info, rates } = roof;
    let card = if info.device.is_gpu() { format!("{}, {}: ", info.name, info.driver) } else { String::new() };
    format!(
        "{card}copy {} GB/s ({} in a cache of {}), f32 {} GFLOP/s, launch {}, launch and wait {}",
        text::digits(rates.memory_bytes_per_s / 1e9),
        text::digits(rates.cache_bytes_per_s / 1e9),
        text::bytes(rates.cache_bytes),
        text::digits(rates.flops_per_s / 1e9),
        text::seconds(rates.launch_s),
        text::seconds(rates.sync_s),
    )
}
