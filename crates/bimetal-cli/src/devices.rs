//! `bimetal devices`: what is here, and why a backend is absent.

use crate::text;
use anyhow::Result;
use bimetal::{DeviceInfo, devices};
use bimetal_core::Absent;
use serde::Serialize;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Print JSON: {"devices": […], "absent": […]}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    devices: Vec<DeviceInfo>,
    absent: Vec<Absent>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (devices, absent) = devices();
    if args.json {
        text::print_json(&Listing { devices, absent })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = text::table(&["device", "name", "driver", "memory", "cores", "levels"]);
    for info in &devices {
        let name =
            if info.software { format!("{} (software driver: tests only)", info.name) } else { info.name.clone() };
        table.add_row([
            info.device.to_string(),
            name,
            info.driver.clone(),
            info.memory.map_or("?".into(), text::bytes),
            info.cores.map_or("?".into(), |n| n.to_string()),
            info.levels.join(" "),
        ]);
    }
    let mut out = format!("{table}\n");
    for gone in &absent {
        out += &format!("no {}: {}\n", gone.backend, gone.reason);
    }
    text::print(&out)?;
    Ok(ExitCode::SUCCESS)
}
