//! Who wins: a row against its best peer on the same metal, else against the other devices.

use super::Row;
use std::collections::BTreeMap;

/// Times within this factor of each other are close.
const CLOSE: f64 = 1.05;

/// Wins and losses beyond this factor have glyphs of their own.
const FAR: f64 = 3.0;

/// The comparison of a row with its rival.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// 💚 wins by more than 3×, 🟢 wins, 🔵 within 5%, ⚪ loses, 🟠 loses by more than 3×.
    pub glyph: &'static str,
    /// The rival's time over ours: above 1, ours is faster.
    pub ratio: f64,
    /// Who it was compared with.
    pub rival: String,
    /// The same in words, with the losing side named.
    pub words: String,
}

/// Compares `row` with its fastest peer, or if it has none with the fastest other device among `rows`.
pub fn verdict(row: &Row, rows: &[Row]) -> Option<Verdict> {
    let ours = row.median_s?;
    let peers = row.peers.iter().map(|(name, &time)| (name.clone(), time));
    let devices = rows.iter().filter(|other| other.device != row.device && other.same_case(row));
    let devices = devices.filter_map(|other| Some((other.device.clone(), other.median_s?)));
    let fastest = |times: &mut dyn Iterator<Item = (String, f64)>| times.min_by(|a, b| a.1.total_cmp(&b.1));
    let (rival, theirs) = fastest(&mut peers.into_iter()).or_else(|| fastest(&mut devices.into_iter()))?;
    let ratio = theirs / ours;
    let glyph = match ratio {
        r if r > FAR => "💚",
        r if r > CLOSE => "🟢",
        r if r >= 1.0 / CLOSE => "🔵",
        r if r >= 1.0 / FAR => "⚪",
        _ => "🟠",
    };
    let words = match ratio {
        r if r > CLOSE => format!("{rival} loses {r:.2}×"),
        r if r >= 1.0 / CLOSE => format!("close to {rival} ({r:.2}×)"),
        r => format!("{} loses {:.2}× to {rival}", row.device, 1.0 / r),
    };
    Some(Verdict { glyph, ratio, rival, words })
}

/// The comparisons of one device with one peer over some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Which rows: a domain, all, or those of ten million elements.
    pub rows: String,
    /// The device.
    pub device: String,
    /// The peer.
    pub peer: String,
    /// Number of rows compared.
    pub count: usize,
    /// Geometric mean of the peer's time over ours.
    pub mean: f64,
    /// The smallest ratio and its row.
    pub least: (f64, String),
}

/// Elements of the first input in the rows that are summed up by themselves.
const TEN_MILLION: std::ops::RangeInclusive<usize> = 10_000_000..=10_485_760;

/// Summaries for each device and peer: all rows, each domain, and the rows of ten million elements.
pub fn summaries(rows: &[Row]) -> Vec<Summary> {
    let mut groups: BTreeMap<(String, String, usize, String), Vec<(f64, String)>> = BTreeMap::new();
    let mut domains: Vec<&str> = Vec::new();
    for row in rows {
        let place = domains.iter().position(|d| *d == row.domain).unwrap_or_else(|| {
            domains.push(row.domain);
            domains.len() - 1
        });
        for (peer, theirs) in &row.peers {
            let Some(ours) = row.median_s else { continue };
            let entry = (theirs / ours, format!("{} {}", row.op, row.case));
            let mut add = |order: usize, name: &str| {
                let key = (row.device.clone(), peer.clone(), order, name.to_string());
                groups.entry(key).or_default().push(entry.clone());
            };
            add(0, "all");
            if TEN_MILLION.contains(&row.elements) {
                add(1, "10 million elements");
            }
            add(2 + place, row.domain);
        }
    }
    let summary = |((device, peer, _, name), ratios): (_, Vec<(f64, String)>)| {
        let least = ratios.iter().min_by(|a, b| a.0.total_cmp(&b.0)).cloned()?;
        let mean = (ratios.iter().map(|(r, _)| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
        Some(Summary { rows: name, device, peer, count: ratios.len(), mean, least })
    };
    groups.into_iter().filter_map(summary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: &str, time: f64, peers: &[(&str, f64)]) -> Row {
        Row {
            op: "exp",
            domain: "elementwise",
            case: "10000000".into(),
            device: device.into(),
            median_s: Some(time),
            elements: 10_000_000,
            peers: peers.iter().map(|(n, t)| (n.to_string(), *t)).collect(),
            ..Row::default()
        }
    }

    #[test]
    fn glyphs_follow_the_ratio_to_the_best_peer() {
        for (theirs, glyph) in [(3.1, "💚"), (1.2, "🟢"), (1.04, "🔵"), (0.96, "🔵"), (0.9, "⚪"), (0.3, "🟠")]
        {
            let row = row("cpu", 1.0, &[("torch", theirs), ("numpy", 50.0)]);
            let found = verdict(&row, &[]).unwrap();
            assert_eq!((found.glyph, found.rival.as_str()), (glyph, "torch"), "{theirs}");
        }
        assert!(verdict(&row("cpu", 2.0, &[("torch", 1.0)]), &[]).unwrap().words.starts_with("cpu loses 2.00×"));
    }

    #[test]
    fn without_peers_devices_are_compared_and_without_either_nothing_is_claimed() {
        let rows = [row("cpu", 1.0, &[]), row("cuda:0", 0.1, &[])];
        assert_eq!(verdict(&rows[0], &rows).unwrap().glyph, "🟠");
        assert_eq!(verdict(&rows[1], &rows).unwrap().glyph, "💚");
        assert_eq!(verdict(&rows[0], &rows[..1]), None);
        let mut wrong = row("cpu", 1.0, &[("torch", 1.0)]);
        wrong.median_s = None;
        assert_eq!(verdict(&wrong, &[]), None);
    }

    #[test]
    fn summaries_are_geometric_means() {
        let rows = [row("cpu", 1.0, &[("torch", 4.0)]), row("cpu", 1.0, &[("torch", 1.0)])];
        let found = summaries(&rows);
        assert_eq!(found.len(), 3);
        for summary in found {
            assert!((summary.mean - 2.0).abs() < 1e-12 && summary.count == 2 && summary.least.0 == 1.0);
        }
    }
}
