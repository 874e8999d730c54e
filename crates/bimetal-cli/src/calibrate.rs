//! `bimetal calibrate`: measures each device and keeps the figures for the router.

use crate::{select, text};
use anyhow::Result;
use bimetal::devices;
use bimetal_core::calibrate::{Calibration, Record, measure};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Devices, separated by commas [default: every device but software drivers]
    #[arg(long, short, value_delimiter = ',')]
    device: Vec<String>,
    /// Print JSON: an array of the devices' figures, times in seconds and rates per second
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let wanted = if args.device.is_empty() {
        devices().0.into_iter().filter(|info| !info.software).collect()
    } else {
        select::device_list(&args.device)?
    };
    // A file that is damaged or of another version counts as none, and is written anew.
    let mut calibration = Calibration::load().unwrap_or_default();
    let mut measured = Vec::new();
    for info in wanted {
        if !args.json {
            eprintln!("measuring {} ({})", info.device, info.name);
        }
        let record = measure(info.device)?;
        calibration.insert(record.clone());
        measured.push(record);
    }
    let path = calibration.save()?;
    if args.json {
        text::print_json(&measured)?;
    } else {
        text::print(&format!("{}\nkept in {}", table(&measured), path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures of some devices, for people.
pub fn table(records: &[Record]) -> comfy_table::Table {
    let mut table = text::table(&["device", "launch", "launch+wait", "copy", "in cache", "f32", "upload", "download"]);
    let rate = |bytes: f64| format!("{} GB/s", text::digits(bytes / 1e9));
    for record in records {
        let r = &record.rates;
        table.add_row([
            record.device.clone(),
            text::seconds(r.launch_s),
            text::seconds(r.sync_s),
            rate(r.memory_bytes_per_s),
            rate(r.cache_bytes_per_s),
            format!("{} GFLOP/s", text::digits(r.flops_per_s / 1e9)),
            r.upload_bytes_per_s.map_or("-".into(), rate),
            r.download_bytes_per_s.map_or("-".into(), rate),
        ]);
    }
    table
}
