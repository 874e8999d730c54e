//! The CPU side: vector levels, vector math, 16-bit conversion and the policy for threads.

pub mod element;
pub mod math;
pub mod parallel;
pub mod row;
pub mod scratch;
pub mod simd;
mod team;

use crate::{Device, DeviceInfo};

/// What this machine's CPU is.
pub(crate) fn info() -> DeviceInfo {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        text.lines().find(|l| l.starts_with(key)).and_then(|l| l.split(':').nth(1)).map(|v| v.trim().to_string())
    };
    let kib = field(&read("/proc/meminfo"), "MemTotal").and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
    DeviceInfo {
        device: Device::Cpu,
        name: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
        driver: format!("{} threads", parallel::threads()),
        memory: kib.map(|k| k * 1024),
        cores: std::thread::available_parallelism().ok().map(|n| n.get() as u32),
        levels: simd::Level::detected().iter().map(|l| l.to_string()).collect(),
        software: false,
    }
}
