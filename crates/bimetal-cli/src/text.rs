//! Words for people: times, rates, sizes, tables, shapes and dates, and the standard output.

use anyhow::{Context, Result, bail};
use bimetal::Shape;
use comfy_table::{Table, presets};
use std::io::Write;

/// Writes to the standard output; a closed pipe is an error that `main` takes for a quiet end.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// A table without frames.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

/// A time in seconds with three digits and a unit.
pub fn seconds(s: f64) -> String {
    let (value, unit) = split(s);
    format!("{} {unit}", digits(value))
}

fn split(s: f64) -> (f64, &'static str) {
    match s {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    }
}

/// A power of ten of seconds, for an axis.
pub fn seconds_short(s: f64) -> String {
    let (value, unit) = split(s * 1.000_001);
    format!("{value:.0} {unit}")
}

/// Three significant digits.
pub fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.01 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// A size in bytes with a binary unit.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{} {}", digits(value), UNITS[unit]) }
}

/// Parses `4096x4096`, `1e7`, `10_000_000` or `3,5`.
pub fn shape(text: &str) -> Result<Shape> {
    let extents = text.split(['x', 'X', ',', '×']).map(|part| extent(part.trim()));
    let dims = extents.collect::<Result<Vec<_>>>().with_context(|| format!("shape `{text}`"))?;
    Ok(Shape::new(&dims)?)
}

fn extent(text: &str) -> Result<usize> {
    let plain = text.replace('_', "");
    if let Ok(n) = plain.parse::<usize>() {
        return Ok(n);
    }
    match plain.parse::<f64>() {
        Ok(n) if n >= 0.0 && n <= 2f64.powi(53) && n.fract() == 0.0 => Ok(n as usize),
        _ => bail!("`{text}` is not an extent: write shapes like 4096x4096 or 1e7"),
    }
}

/// Today's date and time in UTC.
pub fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    date(now.map_or(0, |d| d.as_secs()))
}

/// Seconds since 1970 as a date and time in UTC (Hinnant's days-to-civil method).
fn date(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_parse() {
        assert_eq!(shape("4096x4096").unwrap().dims(), [4096, 4096]);
        assert_eq!(shape("1e7").unwrap().dims(), [10_000_000]);
        assert_eq!(shape("3, 5").unwrap().dims(), [3, 5]);
        for bad in ["", "4x", "-1", "1.5", "ax3", "1e400"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59 UTC");
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(seconds(1.234_5e-5), "12.3 µs");
        assert_eq!(seconds(0.5), "500 ms");
        assert_eq!([1e-5, 1e-3, 0.1, 1.0].map(seconds_short), ["10 µs", "1 ms", "100 ms", "1 s"]);
        assert_eq!(bytes(40_000_000), "38.1 MiB");
        assert_eq!(bytes(7), "7 B");
    }
}
