//! Devices: how they are named, and which of them this machine has.

use crate::{Error, Result, gpu};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Where a tensor lives and an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The host's cores and vector units.
    Cpu,
    /// The CUDA device of this index.
    Cuda(u16),
    /// The Vulkan adapter of this index, hardware first.
    Vulkan(u16),
    /// The Metal device of this index.
    Metal(u16),
}

impl Device {
    /// The backend's name: `cpu`, `cuda`, `vulkan` or `metal`.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
            Self::Vulkan(_) => "vulkan",
            Self::Metal(_) => "metal",
        }
    }

    /// Whether this is a GPU backend.
    pub fn is_gpu(self) -> bool {
        self != Self::Cpu
    }

    /// The best hardware GPU of this machine: Metal, then CUDA, then Vulkan. Software drivers are never chosen.
    ///
    /// # Errors
    /// A machine without one; the reason lists what was looked for.
    pub fn best_gpu() -> Result<Self> {
        let (found, absent) = gpu::discover();
        found.iter().find(|info| !info.software).map(|info| info.device).ok_or_else(|| Error::Unavailable {
            device: "gpu".into(),
            reason: if absent.is_empty() {
                "only software drivers are here".into()
            } else {
                absent.iter().map(|a| format!("{}: {}", a.backend, a.reason)).collect::<Vec<_>>().join("; ")
            },
        })
    }

    /// Parses `cpu`, `gpu` (the best hardware GPU), `cuda`, `cuda:0`, `vulkan:1`, `metal:0`, ….
    ///
    /// # Errors
    /// An unknown name, or `gpu` on a machine without one.
    pub fn parse(name: &str) -> Result<Self> {
        if name == "gpu" { Self::best_gpu() } else { name.parse() }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(i) | Self::Vulkan(i) | Self::Metal(i) => f.pad(&format!("{}:{i}", self.backend())),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown =
            || Error::argument("device", "name", format!("cpu, gpu, cuda[:N], vulkan[:N] or metal[:N], got `{name}`"));
        let (backend, index) = match name.split_once(':') {
            Some((backend, index)) => (backend, index.parse::<u16>().map_err(|_| unknown())?),
            None => (name, 0),
        };
        match backend {
            "cpu" if index == 0 => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "vulkan" => Ok(Self::Vulkan(index)),
            "metal" => Ok(Self::Metal(index)),
            _ => Err(unknown()),
        }
    }
}

/// What is known of a device that is here.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// How to name it.
    #[serde(serialize_with = "as_text")]
    pub device: Device,
    /// The hardware's name.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of memory, where known.
    pub memory: Option<u64>,
    /// Cores or multiprocessors, where known.
    pub cores: Option<u32>,
    /// CPU vector levels, best last; empty for a GPU.
    pub levels: Vec<String>,
    /// Whether it is a software driver on the CPU (for tests; never chosen by itself).
    pub software: bool,
}

fn as_text<S: serde::Serializer>(device: &Device, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.collect_str(device)
}

/// A backend that has no device here, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Absent {
    /// The backend.
    pub backend: &'static str,
    /// What is missing.
    pub reason: String,
}

/// Every device of this machine, the CPU first, and the backends that are absent with the reason.
pub fn devices() -> (Vec<DeviceInfo>, Vec<Absent>) {
    let (gpus, absent) = gpu::discover();
    let mut all = vec![crate::cpu::info()];
    all.extend(gpus.iter().cloned());
    (all, absent.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for name in ["cpu", "cuda:0", "vulkan:3", "metal:1"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
        for bad in ["", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "tpu", "vulkan:99999"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_cpu_is_always_listed_first() {
        let (all, _) = devices();
        assert_eq!(all[0].device, Device::Cpu);
        assert!(!all[0].levels.is_empty());
    }
}
