//! The calibration file: JSON in the user's cache directory, written whole or not at all, trusted only if it is sound.

use super::Record;
use crate::{DeviceInfo, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Format of the file; another number is measured again.
const VERSION: u32 = 1;

/// Every device that has been measured on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    version: u32,
    /// One record for each device.
    pub devices: Vec<Record>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { version: VERSION, devices: Vec::new() }
    }
}

impl Calibration {
    /// What the user's cache directory holds; `None` if there is nothing, or nothing that can be trusted.
    pub fn load() -> Option<Self> {
        Self::load_from(&path()?)
    }

    /// What the file holds; `None` if it is missing, malformed, of another version or not plausible.
    pub fn load_from(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let found: Self = serde_json::from_str(&text).ok()?;
        (found.version == VERSION && found.devices.iter().all(|d| d.rates.is_plausible())).then_some(found)
    }

    /// Writes the file into the user's cache directory and says where.
    ///
    /// # Errors
    /// No home directory, or one that cannot be written.
    pub fn save(&self) -> Result<PathBuf> {
        let path = path().ok_or_else(|| Error::Io {
            path: "cache directory".into(),
            reason: "no home directory is known: set BIMETAL_CACHE_DIR".into(),
        })?;
        self.save_to(&path)?;
        Ok(path)
    }

    /// Writes the file under another name beside `path` and renames it, so that a reader never sees half of it.
    ///
    /// # Errors
    /// A directory that cannot be made or written.
    pub fn save_to(&self, path: &Path) -> Result<()> {
        let failed = |e: std::io::Error| Error::Io { path: path.display().to_string(), reason: e.to_string() };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(e.into()))?;
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path)).map_err(failed)
    }

    /// Puts a record in the place of an earlier one of the same device.
    pub fn insert(&mut self, record: Record) {
        self.devices.retain(|d| d.device != record.device);
        self.devices.push(record);
        self.devices.sort_by(|a, b| a.device.cmp(&b.device));
    }

    /// The record of the device that is here now.
    pub fn of(&self, info: &DeviceInfo) -> Option<&Record> {
        self.devices.iter().find(|d| d.is_of(info))
    }
}

/// Where the file is: `BIMETAL_CACHE_DIR`, or the system's cache directory for this user.
pub fn path() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = var("BIMETAL_CACHE_DIR").or_else(|| {
        if cfg!(windows) {
            return var("LOCALAPPDATA").map(|d| d.join("bimetal"));
        }
        if cfg!(target_os = "macos") {
            return var("HOME").map(|d| d.join("Library/Caches/bimetal"));
        }
        var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|d| d.join(".cache"))).map(|d| d.join("bimetal"))
    });
    folder.map(|d| d.join("calibration.json"))
}

#[cfg(test)]
mod tests {
    use super::super::Rates;
    use super::*;

    fn record(device: &str, rate: f64) -> Record {
        Record {
            device: device.into(),
            name: "a card".into(),
            driver: "1.0".into(),
            software: false,
            memory: None,
            largest_buffer: None,
            measured_at_s: 0.0,
            rates: Rates {
                launch_s: 1e-6,
                sync_s: 1e-5,
                memory_bytes_per_s: rate,
                cache_bytes_per_s: rate,
                cache_bytes: 1 << 20,
                flops_per_s: rate,
                upload_bytes_per_s: None,
                download_bytes_per_s: None,
            },
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_not_trusted() {
        let folder = std::env::temp_dir().join(format!("bimetal-store-{}", std::process::id()));
        let path = folder.join("calibration.json");
        let mut made = Calibration::default();
        made.insert(record("cpu", 1e10));
        made.insert(record("cpu", 2e10));
        assert_eq!(made.devices.len(), 1);
        made.save_to(&path).unwrap();
        assert_eq!(Calibration::load_from(&path), Some(made.clone()));
        let text = std::fs::read_to_string(&path).unwrap();
        let damaged = [
            text[..text.len() / 2].to_string(),
            text.replace("\"version\": 1", "\"version\": 0"),
            text.replace("1e-6", "-1e-6").replace("0.000001", "-0.000001"),
            String::new(),
        ];
        for bad in damaged {
            assert_ne!(bad, text);
            std::fs::write(&path, bad).unwrap();
            assert_eq!(Calibration::load_from(&path), None);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(Calibration::load_from(&path), None);
    }
}
