//! The rules that no compiler checks: what each file opens with, budgets, justified `unsafe`, and the shape of families.

mod families;
mod rules;
mod source;

use source::Source;
use std::path::Path;
use std::process::Command;
use std::{fs, str};

/// A file that git tracks or would track.
pub struct File {
    /// Path from the repository's root, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Checks the repository.
///
/// # Errors
/// The list of violations, or that git did not answer.
pub fn run(root: &Path) -> Result<String, String> {
    let files = files(root)?;
    let found = check(&files);
    if found.is_empty() {
        return Ok(format!("tidy: {} files are in order", files.len()));
    }
    Err(format!("{}\ntidy: {} violations", found.join("\n"), found.len()))
}

/// Every violation, as `path:line: rule`.
fn check(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        rules::any_file(file, &mut found);
        let ours = file.path.starts_with("crates/") || file.path.starts_with("xtask/");
        if ours && file.path.ends_with(".rs") {
            rules::rust_file(file, &Source::new(&file.text), &mut found);
        }
    }
    families::check(files, &mut found);
    found
}

/// The files that git knows or that are new and not ignored; binary files are left out.
fn files(root: &Path) -> Result<Vec<File>, String> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let out = Command::new("git").args(args).current_dir(root).output().map_err(|e| format!("git: {e}"))?;
    if !out.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&out.stderr).trim()));
    }
    let paths = out.stdout.split(|&b| b == 0).filter_map(|p| str::from_utf8(p).ok()).filter(|p| !p.is_empty());
    let mut files: Vec<File> = paths
        .filter_map(|path| Some(File { path: path.into(), text: fs::read_to_string(root.join(path)).ok()? }))
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The violations of one file.
    pub(super) fn violations(path: &str, text: &str) -> Vec<String> {
        check(&[File { path: path.into(), text: text.into() }])
    }

    #[test]
    fn a_good_file_is_in_order() {
        let text = "//! Adds.\n\n/// a + b\npub fn add(a: f32, b: f32) -> f32 {\n    a + b\n}\n";
        assert_eq!(violations("crates/a/src/lib.rs", text), [""; 0]);
    }

    #[test]
    fn this_crate_is_in_order() {
        let files = files(&crate::root()).unwrap();
        let ours: Vec<File> = files.into_iter().filter(|f| f.path.starts_with("xtask/")).collect();
        assert!(ours.len() > 3);
        assert_eq!(check(&ours), [""; 0]);
    }
}
