//! The shape of `crates/bimetal-ops/src/<domain>/<family>/`: four files, and more only where a file's budget is spent.

use super::File;
use super::rules::FILE_LINES;
use super::source::Source;
use std::collections::BTreeMap;

const FILES: [&str; 4] = ["cpu.rs", "gpu.rs", "mod.rs", "reference.rs"];

/// Checks every family's folder.
pub fn check(files: &[File], found: &mut Vec<String>) {
    let mut families: BTreeMap<&str, BTreeMap<&str, &File>> = BTreeMap::new();
    for file in files {
        let Some(rest) = file.path.strip_prefix("crates/bimetal-ops/src/") else { continue };
        // `<domain>/<family>/<file>`, the file perhaps in a folder of its own.
        if let [domain, family, name] = rest.splitn(3, '/').collect::<Vec<_>>()[..] {
            let folder = &file.path[..file.path.len() - name.len() - 1];
            debug_assert!(folder.ends_with(&format!("{domain}/{family}")));
            families.entry(folder).or_default().insert(name, file);
        }
    }
    for (folder, files) in families {
        for name in FILES.iter().filter(|name| !files.contains_key(**name)) {
            found.push(format!("{folder}: no {name}"));
        }
        for (name, file) in files.iter().filter(|(name, _)| !FILES.contains(name)) {
            if !is_needed(name, file, &files) {
                found.push(format!("{}: a fifth file, although the four have room for it", file.path));
            }
        }
    }
}

/// Whether no file of the four could take an extra one. A file in `cpu/`, or named `cpu_…`, belongs to `cpu.rs`.
fn is_needed(name: &str, extra: &File, files: &BTreeMap<&str, &File>) -> bool {
    let lines = |file: &File| Source::new(&file.text).lines_without_tests();
    let mut homes: Vec<&str> =
        FILES.into_iter().filter(|home| name.starts_with(home.trim_end_matches(".rs"))).collect();
    if homes.is_empty() {
        homes = vec!["cpu.rs", "gpu.rs", "mod.rs"];
    }
    let grown = |home: &&str| {
        let stem = home.trim_end_matches(".rs");
        let parts = files.iter().filter(|(n, f)| n.starts_with(stem) && f.path != extra.path);
        parts.map(|(_, f)| lines(f)).sum::<usize>() + lines(extra)
    };
    homes.iter().any(|home| grown(home) > FILE_LINES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(files: &[(&str, usize)]) -> Vec<String> {
        let path = |name: &str| format!("crates/bimetal-ops/src/softmax/softmax_axis/{name}");
        let text = |lines: usize| format!("//! A.\n{}", "const A: u8 = 0;\n".repeat(lines - 1));
        let files: Vec<File> =
            files.iter().map(|&(name, lines)| File { path: path(name), text: text(lines) }).collect();
        let mut found = Vec::new();
        check(&files, &mut found);
        found
    }

    #[test]
    fn the_four_files_are_needed() {
        assert!(family(&[("mod.rs", 9), ("reference.rs", 9), ("cpu.rs", 9), ("gpu.rs", 9)]).is_empty());
        let found = family(&[("mod.rs", 9), ("reference.rs", 9), ("cpu.rs", 9)]);
        assert!(found.len() == 1 && found[0].ends_with("no gpu.rs"), "{found:?}");
    }

    #[test]
    fn a_fifth_file_is_for_a_spent_budget_only() {
        let four = [("mod.rs", 9), ("reference.rs", 9), ("gpu.rs", 9)];
        let with = |cpu, extra| family(&[&four[..], &[("cpu.rs", cpu), extra]].concat());
        assert!(with(300, ("cpu/columns.rs", 201)).is_empty());
        assert_eq!(with(300, ("cpu/columns.rs", 200)).len(), 1);
        assert_eq!(with(20, ("helpers.rs", 20)).len(), 1);
    }
}
