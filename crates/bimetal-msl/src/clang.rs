//! Type-checks Metal source with clang and the stand-in for Metal's headers in `shim/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Metal is C++14 with its own keywords; what Apple's compiler refuses and clang only warns of is an error here.
const FLAGS: &[&str] = &[
    "-xc++",
    "-std=c++14",
    "-fsyntax-only",
    "-ferror-limit=5",
    "-Werror",
    "--target=aarch64-linux-gnu",
    "-nostdinc",
    "-Wno-unknown-attributes",
    // `constant` implies `const` in Metal.
    "-Wno-duplicate-decl-specifier",
];

/// Whether clang is installed.
pub fn available() -> bool {
    Command::new("clang++").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Checks one file.
///
/// # Errors
/// What clang says of it, or that clang did not start.
pub fn check(file: &Path) -> Result<(), String> {
    // Cargo's answer of today comes first: a target folder may be shared by several checkouts.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let out = Command::new("clang++").args(FLAGS).arg("-isystem").arg(here.join("shim")).arg(file).output();
    let out = out.map_err(|e| format!("clang++ did not start: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

/// Checks files on every core and gives what clang refuses.
pub fn check_all(files: &[PathBuf]) -> Vec<String> {
    let (next, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(reason) = check(file) {
                        refused.lock().unwrap_or_else(|e| e.into_inner()).push(reason);
                    }
                }
            });
        }
    });
    refused.into_inner().unwrap_or_else(|e| e.into_inner())
}
