//! The report: one set of rows as Markdown, JSON and HTML files and as tables on the terminal.

mod html;
mod markdown;
mod plots;
mod svg;

use crate::bench::{Machine, Row, summaries, verdict};
use crate::text;
use anyhow::{Context, Result};
use std::path::Path;

/// What a run has found so far.
pub struct Report {
    /// The machine and what ran on it.
    pub machine: Machine,
    /// Everything that was left out, and why.
    pub notes: Vec<String>,
    /// The rows, in the order in which they were timed.
    pub rows: Vec<Row>,
    /// Whether every row is there.
    pub complete: bool,
}

impl Report {
    pub fn new(machine: Machine, notes: Vec<String>) -> Self {
        Self { machine, notes, rows: Vec::new(), complete: false }
    }

    /// The domains with rows, in their order.
    fn domains(&self) -> Vec<&'static str> {
        let mut domains: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !domains.contains(&row.domain) {
                domains.push(row.domain);
            }
        }
        domains
    }

    /// Peers that any row has a time of.
    fn peers(&self) -> Vec<&str> {
        let mut peers: Vec<&str> = self.rows.iter().flat_map(|row| row.peers.keys().map(String::as_str)).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// One sentence on how many rows there are and how many are right.
    fn tally(&self) -> String {
        let skipped = self.rows.iter().filter(|r| r.skipped.is_some()).count();
        let wrong = self.rows.iter().filter(|r| r.skipped.is_none() && !r.ok).count();
        let right = self.rows.len() - skipped - wrong;
        let partial = if self.complete { "" } else { " This is a partial report: the run had not ended." };
        format!("{right} rows right, {wrong} wrong (no time is given), {skipped} skipped.{partial}")
    }
}

/// Writes `report.md`, `report.json` and `report.html` into `folder`, each whole or not at all.
///
/// # Errors
/// A folder that cannot be made or written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    put(folder, "report.json", &format!("{}\n", serde_json::to_string_pretty(&report.rows)?))?;
    put(folder, "report.md", &markdown::page(report))?;
    put(folder, "report.html", &html::page(report))
}

/// Writes beside the file and renames, so that whoever reads or interrupts sees a whole file.
fn put(folder: &Path, name: &str, content: &str) -> Result<()> {
    let (path, partial) = (folder.join(name), folder.join(format!(".{name}.partial")));
    std::fs::write(&partial, content).with_context(|| format!("{}", partial.display()))?;
    std::fs::rename(&partial, &path).with_context(|| format!("{}", path.display()))
}

/// The cells of a table: case, device, and everything that was found, in the words that all formats share.
struct Cells {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The rows of one domain as text.
fn cells(report: &Report, domain: &str) -> Cells {
    let peers = report.peers();
    let mut header: Vec<String> =
        ["", "operation", "case", "dtype", "device", "median", "±", "GB/s", "GFLOP/s", "roofline", "error"]
            .map(String::from)
            .to_vec();
    header.extend(peers.iter().map(|p| p.to_string()));
    if report.machine.roofs.len() > 1 {
        header.push("other devices".into());
    }
    header.push("verdict".into());
    let rows = report.rows.iter().filter(|row| row.domain == domain).map(|row| {
        let verdict = verdict(row, &report.rows);
        let figure = |x: Option<f64>| x.map_or("-".into(), text::digits);
        let mut cells = vec![
            verdict.as_ref().map_or("", |v| v.glyph).to_string(),
            row.op.to_string(),
            row.case.clone(),
            row.dtype.to_string(),
            row.device.clone(),
            row.median_s.map_or("-".into(), text::seconds),
            row.spread.map_or("-".into(), |s| format!("{:.0}%", s * 100.0)),
            figure(row.gbs),
            figure(row.gflops),
            row.roofline.map_or("-".into(), |r| format!("{:.0}%{}", r * 100.0, if row.cached { " c" } else { "" })),
            error(row),
        ];
        cells.extend(peers.iter().map(|&p| row.peers.get(p).map_or("-".into(), |&t| text::seconds(t))));
        if report.machine.roofs.len() > 1 {
            cells.push(others(row, &report.rows));
        }
        let words = match (&row.skipped, verdict) {
            (Some(why), _) => format!("skipped: {why}"),
            (None, _) if !row.ok => row.notes.first().cloned().unwrap_or_default(),
            (None, Some(verdict)) => verdict.words,
            (None, None) => String::new(),
        };
        cells.push(words);
        cells
    });
    Cells { rows: rows.collect(), header }
}

/// How many times the row's time the other devices take for the same case.
fn others(row: &Row, rows: &[Row]) -> String {
    let Some(ours) = row.median_s else { return "-".into() };
    let same = rows.iter().filter(|other| other.device != row.device && other.same_case(row));
    let ratios = same.filter_map(|other| Some(format!("{} {}×", other.device, text::digits(other.median_s? / ours))));
    ratios.collect::<Vec<_>>().join(", ")
}

/// The error with a ✓ or ✗ and what was allowed.
fn error(row: &Row) -> String {
    if row.skipped.is_some() {
        return "-".into();
    }
    let mark = if row.ok { "✓" } else { "✗" };
    match (row.error, row.tolerance) {
        (Some(error), Some(allowed)) if error > 0.0 => format!("{mark} {error:.0e} of {allowed:.0e}"),
        (Some(_), _) => format!("{mark} exact"),
        _ => mark.into(),
    }
}

/// Notes of single rows: what was wrong, and why a peer has no time.
fn row_notes(report: &Report) -> Vec<String> {
    let noted = report.rows.iter().flat_map(|row| {
        row.notes.iter().map(move |note| format!("{} [{}] {} on {}: {note}", row.op, row.case, row.dtype, row.device))
    });
    noted.collect()
}

/// What the columns mean.
const LEGEND: &str = "Times are medians of samples, each the mean of many calls with outputs preallocated; ± is half \
    the distance between the quartiles. GB/s and GFLOP/s count the fewest bytes and the operations that the work takes. \
    roofline is the share of the limit max(bytes / copy bandwidth, operations / f32 rate), measured at the start of this \
    run or by an earlier, higher calibration; c marks cases whose data fits in the last-level cache, which may exceed 100%. error is the worst element of the \
    timed run's outputs against an f64 reference, and what is allowed there. Verdict: 💚 wins by more than 3×, 🟢 wins, \
    🔵 within 5%, ⚪ loses, 🟠 loses by more than 3×, against the fastest peer on the same metal, else the fastest other \
    device.";

/// The report for the terminal.
pub fn terminal(report: &Report) -> String {
    let mut out = String::new();
    for (name, value) in &report.machine.lines {
        out += &format!("{name}: {value}\n");
    }
    for domain in report.domains() {
        let cells = cells(report, domain);
        let header: Vec<&str> = cells.header.iter().map(String::as_str).collect();
        let mut table = text::table(&header);
        table.add_rows(cells.rows);
        out += &format!("\n{}\n{table}\n", domain.to_uppercase());
    }
    let summaries = summary_lines(report);
    if !summaries.is_empty() {
        out += &format!("\n{}\n", summaries.join("\n"));
    }
    for note in report.notes.iter().chain(&row_notes(report)) {
        out += &format!("note: {note}\n");
    }
    out + &format!("\n{}\n", report.tally())
}

/// One line for each device, peer and group of rows.
fn summary_lines(report: &Report) -> Vec<String> {
    let line = |s: crate::bench::Summary| {
        format!(
            "{} against {}, {}: {:.2}× (geometric mean of {} rows; least {:.2}×, {})",
            s.device, s.peer, s.rows, s.mean, s.count, s.least.0, s.least.1
        )
    };
    summaries(&report.rows).into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal::devices;
    use bimetal_core::calibrate::Rates;

    /// A report with a right, a wrong and a skipped row.
    pub(super) fn sample() -> Report {
        let info = devices().0.remove(0);
        let rates = Rates {
            launch_s: 1e-6,
            sync_s: 1e-6,
            memory_bytes_per_s: 3e10,
            cache_bytes_per_s: 1e11,
            cache_bytes: 32 << 20,
            flops_per_s: 1e11,
            upload_bytes_per_s: None,
            download_bytes_per_s: None,
        };
        let machine = Machine {
            lines: vec![("CPU".into(), "a <fast> & cheap one".into())],
            roofs: vec![crate::bench::Roof { info, rates }],
        };
        let row = |op: &'static str, elements: usize, time: f64| Row {
            op,
            domain: "elementwise",
            case: elements.to_string(),
            dtype: "f32",
            device: "cpu".into(),
            median_s: Some(time),
            min_s: Some(time),
            spread: Some(0.01),
            elements,
            bytes: 8 * elements as u64,
            flops: 10 * elements as u64,
            gbs: Some(8.0 * elements as f64 / time / 1e9),
            gflops: Some(10.0 * elements as f64 / time / 1e9),
            roofline: Some(0.9),
            error: Some(1e-8),
            tolerance: Some(1e-7),
            ok: true,
            peers: [("torch".to_string(), 2.0 * time)].into(),
            ..Row::default()
        };
        let untimed = |op: &'static str| Row {
            op,
            domain: "elementwise",
            case: "1000".into(),
            dtype: "f32",
            device: "cpu".into(),
            elements: 1000,
            ..Row::default()
        };
        let mut wrong = untimed("log");
        (wrong.error, wrong.tolerance) = (Some(0.5), Some(1e-7));
        wrong.notes.push("output 0[3] = 1e0, exactly 2e0".into());
        let mut skipped = untimed("tanh");
        skipped.skipped = Some("the device has no f16 storage".into());
        let rows = vec![row("exp", 1000, 1e-6), row("exp", 10_000_000, 3e-3), wrong, skipped];
        Report { machine, notes: vec!["a note".into()], rows, complete: true }
    }

    #[test]
    fn a_wrong_row_has_a_cross_and_no_time() {
        let out = terminal(&sample());
        let wrong = out.lines().find(|line| line.contains("log")).unwrap();
        assert!(wrong.contains('✗') && wrong.contains("exactly 2e0") && !wrong.contains("µs "), "{wrong}");
        assert!(out.contains("2 rows right, 1 wrong (no time is given), 1 skipped."), "{out}");
        assert!(out.contains("skipped: the device has no f16 storage"));
        assert!(out.contains("cpu against torch, all: 2.00×"));
    }

    #[test]
    fn files_are_whole_and_nothing_else_is_left() {
        let folder = std::env::temp_dir().join(format!("bimetal-report-{}", std::process::id()));
        write(&sample(), &folder).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["report.html", "report.json", "report.md"]);
        let rows: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 4);
        assert!(rows[2]["median_s"].is_null() && rows[2]["ok"] == false);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
