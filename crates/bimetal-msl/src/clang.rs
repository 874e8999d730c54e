//! Type-checks Metal source with clang and the stand-in for Metal's headers in `shim/`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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

/// Files that one clang checks: most of the time of a small one is clang's own start.
const TOGETHER: usize = 32;

/// Checks one file.
///
/// # Errors
/// What clang says of it, or that clang did not start.
pub fn check(file: &Path) -> Result<(), String> {
    let out = clang().arg(file).output();
    let out = out.map_err(|e| format!("clang++ did not start: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn clang() -> Command {
    // Cargo's answer of today comes first: a target folder may be shared by several checkouts.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let mut command = Command::new("clang++");
    command.args(FLAGS).arg("-isystem").arg(here.join("shim"));
    command
}

/// Whether clang accepts all of the files in one source, each in a namespace of its own.
fn accepts_together(files: &[PathBuf]) -> std::io::Result<bool> {
    let mut source = String::from("#include <metal_stdlib>\n");
    for (i, file) in files.iter().enumerate() {
        source += &format!("namespace k{i} {{\n#include \"{}\"\n}}\n", file.display());
    }
    let mut child = clang().arg("-").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().map_or(Ok(()), |mut input| input.write_all(source.as_bytes()))?;
    Ok(child.wait()?.success())
}

/// Checks files on every core and gives what clang refuses.
pub fn check_all(files: &[PathBuf]) -> Vec<String> {
    let (next, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let groups: Vec<&[PathBuf]> = files.chunks(TOGETHER).collect();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if accepts_together(group).unwrap_or(false) {
                        continue;
                    }
                    // Which of them it was, in clang's words.
                    let reasons: Vec<String> = group.iter().filter_map(|file| check(file).err()).collect();
                    let alone = reasons.is_empty().then(|| format!("{} and others, together", group[0].display()));
                    refused.lock().unwrap_or_else(|e| e.into_inner()).extend(reasons.into_iter().chain(alone));
                }
            });
        }
    });
    refused.into_inner().unwrap_or_else(|e| e.into_inner())
}
