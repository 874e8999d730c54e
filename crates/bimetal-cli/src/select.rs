//! Choosing operations and devices by name, with suggestions for names that are not there.

use anyhow::{Result, anyhow, bail};
use bimetal::registry::{self, Domain};
use bimetal::{Device, DeviceInfo, devices};
use bimetal_core::op::Definition;

/// An operation and the domain it belongs to.
pub type Entry = (&'static Domain, &'static dyn Definition);

/// The operations that `filters` name: each takes the operation of exactly that name, else the whole domain of exactly
/// that name, else every operation with the text in its name or its domain's. No filter takes all.
///
/// # Errors
/// A filter that matches nothing; the error suggests names.
pub fn ops(filters: &[String]) -> Result<Vec<Entry>> {
    let all: Vec<Entry> = registry::ops().collect();
    matching(&all, filters)
}

fn matching(all: &[Entry], filters: &[String]) -> Result<Vec<Entry>> {
    if filters.is_empty() {
        return Ok(all.to_vec());
    }
    let mut kept = vec![false; all.len()];
    for filter in filters {
        let wanted = filter.to_lowercase();
        let tests: [&dyn Fn(&Entry) -> bool; 3] =
            [&|(_, op)| op.name() == wanted, &|(domain, _)| domain.name == wanted, &|(domain, op)| {
                op.name().contains(&wanted) || domain.name.contains(&wanted)
            }];
        let found = tests.iter().find(|test| all.iter().any(test));
        let Some(test) = found else { bail!(unknown_op(filter)) };
        all.iter().zip(&mut kept).for_each(|(entry, keep)| *keep |= test(entry));
    }
    Ok(all.iter().zip(kept).filter(|(_, keep)| *keep).map(|(entry, _)| *entry).collect())
}

/// The operation of exactly this name.
///
/// # Errors
/// An unknown name; the error suggests names.
pub fn op(name: &str) -> Result<Entry> {
    registry::ops().find(|(_, op)| op.name() == name.to_lowercase()).ok_or_else(|| anyhow!(unknown_op(name)))
}

fn unknown_op(name: &str) -> String {
    let names = registry::ops().flat_map(|(domain, op)| [op.name(), domain.name]);
    let close = suggestions(name, names);
    let hint = if close.is_empty() { String::new() } else { format!("; did you mean {}?", close.join(", ")) };
    format!("no operation or domain matches `{name}`{hint} (`bimetal ops` lists them)")
}

/// Up to three names near `wanted`, nearest first.
fn suggestions<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = (wanted.chars().count() / 2).max(2);
    let mut near: Vec<(usize, &str)> = names
        .map(|name| (edits(&wanted.to_lowercase(), name), name))
        .filter(|&(distance, name)| distance <= limit && distance < name.chars().count())
        .collect();
    near.sort();
    near.dedup();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Insertions, deletions and substitutions between two words (Levenshtein's distance).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A device of this machine by name (`cpu`, `gpu`, `cuda:0`, …).
///
/// # Errors
/// A name that is malformed or not here; the error lists the devices.
pub fn device(name: &str) -> Result<DeviceInfo> {
    let (found, absent) = devices();
    let here = || {
        let mut lines: Vec<String> = found.iter().map(|d| format!("  {}  {}", d.device, d.name)).collect();
        lines.extend(absent.iter().map(|a| format!("  no {}: {}", a.backend, a.reason)));
        lines.join("\n")
    };
    let device = Device::parse(name).map_err(|e| anyhow!("{e}\nthis machine has:\n{}", here()))?;
    let info = found.iter().find(|info| info.device == device);
    info.cloned().ok_or_else(|| anyhow!("this machine has no device `{name}`; it has:\n{}", here()))
}

/// The named devices, each once; without names the CPU and the best hardware GPU, if there is one.
///
/// # Errors
/// As [`device`].
pub fn device_list(names: &[String]) -> Result<Vec<DeviceInfo>> {
    let mut chosen: Vec<DeviceInfo> = Vec::new();
    if names.is_empty() {
        chosen.push(device("cpu")?);
        chosen.extend(Device::best_gpu().ok().and_then(|gpu| device(&gpu.to_string()).ok()));
    }
    for name in names {
        let info = device(name.trim())?;
        if !chosen.iter().any(|c| c.device == info.device) {
            chosen.push(info);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_win_over_parts() {
        let exact = ops(&["softmax".into()]).unwrap();
        assert_eq!(exact.len(), 1);
        assert!(ops(&["soft".into()]).unwrap().len() > 1);
        assert_eq!(ops(&[]).unwrap().len(), registry::ops().count());
    }

    #[test]
    fn unknown_names_get_suggestions() {
        let error = ops(&["sofmax".into()]).err().unwrap().to_string();
        assert!(error.contains("softmax"), "{error}");
        assert!(op("SOFTMAX").is_ok());
        assert!(!op("zzzzzzzzzzzz").err().unwrap().to_string().contains("did you mean"));
        let error = device("cuda:77").err().unwrap().to_string();
        assert!(error.contains("cpu"), "{error}");
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
