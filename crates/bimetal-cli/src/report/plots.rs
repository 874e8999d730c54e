//! The report's plots: roofline scatter, ratios to the peers and devices, and time against size.

use super::Report;
use super::svg::{Axis, COLOURS, Canvas};
use crate::bench::{Row, verdict};
use crate::text;

const WIDTH: f64 = 860.0;

/// Bars in one plot of ratios, at most: the rest is in the table.
const MOST_BARS: usize = 400;

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// Arithmetic rate against operations per byte, with the measured limits of each device.
pub fn roofline(report: &Report) -> String {
    let height = 460.0;
    let mut canvas = Canvas::new(WIDTH, height);
    let intensity = |row: &Row| row.flops as f64 / row.bytes.max(1) as f64;
    let timed: Vec<&Row> = report.rows.iter().filter(|r| r.median_s.is_some()).collect();
    let roofs = &report.machine.roofs;
    let ridges = roofs.iter().map(|r| r.rates.flops_per_s / r.rates.memory_bytes_per_s);
    let x = Axis::new(timed.iter().map(|r| intensity(r)).chain(ridges), 70.0, WIDTH - 230.0);
    let tops = roofs.iter().map(|r| r.rates.flops_per_s / 1e9);
    let y = Axis::new(timed.iter().filter_map(|r| r.gflops).chain(tops), height - 45.0, 70.0 - height);
    canvas.axes(x, y, ("operations per byte", "GFLOP/s"), short, short);
    let (low, high) = x.ends();
    for roof in roofs {
        let rates = &roof.rates;
        let at = |i: f64| (x.at(i), y.at((rates.memory_bytes_per_s * i).min(rates.flops_per_s) / 1e9));
        let ridge = (rates.flops_per_s / rates.memory_bytes_per_s).clamp(low, high);
        canvas.path(&[at(low), at(ridge), at(high)], "#999999");
        let cached = |i: f64| (x.at(i), y.at(rates.cache_bytes_per_s * i / 1e9));
        let cache_ridge = (rates.flops_per_s / rates.cache_bytes_per_s).max(low);
        if cache_ridge < ridge && cache_ridge > low {
            canvas.line(cached(low), cached(cache_ridge), r##"stroke="#999999" stroke-dasharray="5 4""##);
            canvas.line(cached(cache_ridge), at(ridge), r##"stroke="#999999" stroke-dasharray="5 4""##);
        }
        let (tx, ty) = at(high);
        canvas.text((tx, ty - 6.0), "end", &format!("limit of {}", roof.info.device));
    }
    let domains = report.domains();
    for row in &timed {
        let place = domains.iter().position(|d| *d == row.domain).unwrap_or(0);
        if let (Some(rate), Some(time)) = (row.gflops, row.median_s) {
            let hint = format!("{} [{}] on {}: {}", row.op, row.case, row.device, text::seconds(time));
            let at = (x.at(intensity(row).max(low)), y.at(rate));
            if row.device == "cpu" {
                canvas.point(at, colour(place), &hint);
            } else {
                canvas.ring(at, colour(place), &hint);
            }
        }
    }
    for (i, domain) in domains.iter().enumerate() {
        let at = 40.0 + 20.0 * i as f64;
        canvas.point((WIDTH - 140.0, at), colour(i), domain);
        canvas.text((WIDTH - 128.0, at + 4.0), "start", domain);
    }
    let below = 50.0 + 20.0 * domains.len() as f64;
    for (i, line) in ["dots: CPU, rings: GPU", "dashed: from the cache"].iter().enumerate() {
        canvas.text((WIDTH - 145.0, below + 16.0 * i as f64), "start", line);
    }
    canvas.finish()
}

/// One bar a row: the rival's time over ours, to the right where ours is faster. Empty without rivals.
pub fn ratios(report: &Report) -> String {
    let compared = report.rows.iter().filter_map(|row| Some((row, verdict(row, &report.rows)?)));
    let compared: Vec<_> = compared.take(MOST_BARS).collect();
    if compared.is_empty() {
        return String::new();
    }
    let height = 60.0 + 16.0 * compared.len() as f64;
    let mut canvas = Canvas::new(WIDTH, height);
    let values = compared.iter().map(|(_, v)| v.ratio).chain([0.5, 2.0]);
    let x = Axis::new(values, 330.0, WIDTH - 470.0);
    let (low, high) = x.ends();
    for value in [1.0, low, high, 1.0 / 3.0, 3.0] {
        canvas.line((x.at(value), 25.0), (x.at(value), height - 30.0), r##"stroke="#ddd""##);
        // Over many decades the labels of a third and of three would cover that of one.
        if value.log10().fract() == 0.0 || high / low <= 1e3 {
            canvas.text((x.at(value), 18.0), "middle", &format!("{}×", text::digits(value)));
        }
    }
    for (i, (row, verdict)) in compared.iter().enumerate() {
        let top = 28.0 + 16.0 * i as f64;
        let (from, to) = (x.at(verdict.ratio.min(1.0)), x.at(verdict.ratio.max(1.0)));
        let fill = match verdict.glyph {
            "💚" => "#007a50",
            "🟢" => "#5cb88f",
            "🔵" => "#56b4e9",
            "⚪" => "#bbbbbb",
            _ => "#d55e00",
        };
        let name = format!("{} [{}] {}", row.op, row.case, row.device);
        canvas.text((322.0, top + 10.0), "end", &name);
        canvas.bar((from, top), ((to - from).max(1.0), 12.0), fill, &format!("{name}: {}", verdict.words));
        let label = format!("{} {}×", verdict.rival, text::digits(verdict.ratio));
        canvas.text((x.at(verdict.ratio.max(1.0)) + 5.0, top + 10.0), "start", &label);
    }
    canvas.finish()
}

/// Time against bytes for each operation with several sizes: one line a device, the crossover of CPU and GPU marked.
pub fn sizes(report: &Report) -> Vec<(String, String)> {
    let mut ops: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !ops.contains(&row.op) {
            ops.push(row.op);
        }
    }
    ops.into_iter().filter_map(|op| Some((op.to_string(), size_plot(report, op)?))).collect()
}

fn size_plot(report: &Report, op: &str) -> Option<String> {
    let (width, height) = (420.0, 280.0);
    let lines: Vec<(String, Vec<(f64, f64)>)> = report
        .machine
        .roofs
        .iter()
        .map(|roof| {
            let device = roof.info.device.to_string();
            let rows = report.rows.iter().filter(|r| r.op == op && r.device == device);
            let mut points: Vec<_> = rows.filter_map(|r| Some((r.bytes as f64, r.median_s?))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (device, points)
        })
        .filter(|(_, points)| points.first().map(|p| p.0) < points.last().map(|p| p.0))
        .collect();
    if lines.is_empty() {
        return None;
    }
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    let x = Axis::new(all().map(|p| p.0), 60.0, width - 80.0);
    let y = Axis::new(all().map(|p| p.1), height - 45.0, 80.0 - height);
    let mut canvas = Canvas::new(width, height);
    canvas.axes(x, y, ("bytes moved", "time"), short, text::seconds_short);
    for (i, (device, points)) in lines.iter().enumerate() {
        let pixels: Vec<_> = points.iter().map(|&(b, t)| (x.at(b), y.at(t))).collect();
        canvas.path(&pixels, colour(i));
        for (&(b, t), &pixel) in points.iter().zip(&pixels) {
            let hint = format!("{op} on {device}: {} for {}", text::seconds(t), text::bytes(b as u64));
            canvas.point(pixel, colour(i), &hint);
        }
        canvas.point((150.0 + 90.0 * i as f64, 14.0), colour(i), device);
        canvas.text((158.0 + 90.0 * i as f64, 18.0), "start", device);
    }
    if let [(_, cpu), (_, gpu), ..] = lines.as_slice()
        && let Some((bytes, time)) = crossover(cpu, gpu)
    {
        let at = x.at(bytes);
        canvas.line((at, height - 45.0), (at, 35.0), r##"stroke="#333" stroke-dasharray="4 3""##);
        canvas.text((at + 4.0, y.at(time) - 8.0), "start", &format!("equal at {}", text::bytes(bytes as u64)));
    }
    Some(canvas.finish())
}

/// Where two lines cross, straight between their points on logarithmic scales: bytes and time.
fn crossover(a: &[(f64, f64)], b: &[(f64, f64)]) -> Option<(f64, f64)> {
    let between = |points: &[(f64, f64)], x: f64| {
        let pair = points.windows(2).find(|w| w[0].0 <= x && x <= w[1].0 && w[0].0 < w[1].0)?;
        let part = (x / pair[0].0).ln() / (pair[1].0 / pair[0].0).ln();
        Some((pair[0].1.ln() + part * (pair[1].1 / pair[0].1).ln()).exp())
    };
    let gap = |x: f64| Some((between(a, x)? / between(b, x)?).ln());
    let mut places: Vec<f64> = a.iter().chain(b).map(|p| p.0).collect();
    places.sort_by(f64::total_cmp);
    for pair in places.windows(2) {
        if let (Some(left), Some(right)) = (gap(pair[0]), gap(pair[1]))
            && left.signum() != right.signum()
        {
            let part = left / (left - right);
            let x = (pair[0].ln() + part * (pair[1] / pair[0]).ln()).exp();
            return Some((x, between(a, x)?));
        }
    }
    None
}

/// A label of an axis: 1, 10k, 1M, 10µ, ….
fn short(value: f64) -> String {
    const UNITS: [(f64, &str); 8] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")];
    let (scale, unit) = UNITS.into_iter().find(|(scale, _)| value >= scale * 0.999).unwrap_or((1e-9, "n"));
    format!("{:.0}{unit}", value / scale)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn lines_cross_where_they_are_equal() {
        let cpu = [(1e3, 1e-6), (1e6, 1e-3)];
        let gpu = [(1e3, 1e-5), (1e6, 1e-5)];
        let (bytes, time) = crossover(&cpu, &gpu).unwrap();
        assert!((bytes / 1e4 - 1.0).abs() < 1e-9 && (time / 1e-5 - 1.0).abs() < 1e-9);
        assert_eq!(crossover(&cpu, &[(1e3, 1e-9), (1e6, 1e-8)]), None);
    }

    #[test]
    fn plots_hold_every_timed_row() {
        let report = sample();
        assert_eq!(roofline(&report).matches("exp [").count(), 2);
        assert_eq!(ratios(&report).matches("<rect").count(), 2);
        let sizes = sizes(&report);
        assert_eq!(sizes.len(), 1);
        assert_eq!(sizes[0].0, "exp");
    }

    #[test]
    fn labels_are_short() {
        let labels = [1.0, 1e4, 1e6, 0.01, 1e-6, 1e-10].map(short);
        assert_eq!(labels, ["1", "10k", "1M", "10m", "1µ", "0n"]);
    }
}
