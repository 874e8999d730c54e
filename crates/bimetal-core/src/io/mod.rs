//! Tensor files and interchange: NumPy's npy and npz, safetensors, and ndarray arrays (feature `ndarray`).
//!
//! A file is believed only as far as its length bears it out: sizes are checked before anything is allocated, and a
//! file that is truncated, longer than it says or malformed is an [`Error::Format`] that names it. Files are written
//! beside their target and renamed over it, so a failed write leaves the old file.

#[cfg(feature = "ndarray")]
mod arrays;
pub mod npy;
pub mod npz;
pub mod safetensors;

use crate::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file opened for reading, and its length.
fn open(path: &Path) -> Result<(File, u64)> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|e| system(path, &e))?;
    if !metadata.is_file() {
        return Err(Error::Io { path: path.display().to_string(), reason: "not a regular file".into() });
    }
    Ok((file, metadata.len()))
}

/// A failure of the operating system at `path`.
fn system(path: &Path, error: &io::Error) -> Error {
    Error::Io { path: path.display().to_string(), reason: error.to_string() }
}

/// An [`Error::Format`].
fn malformed(format: &'static str, reason: impl Into<String>) -> Error {
    Error::Format { format, reason: reason.into() }
}

/// What a failed read of a file's contents means: a shorter or damaged file, or the system's failure (whose path
/// [`at`] fills in).
fn unreadable(format: &'static str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            malformed(format, "truncated: it ends before the data that its header promises")
        }
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            malformed(format, error.to_string())
        }
        _ => unwritable(error),
    }
}

/// A failed write, whose path [`at`] fills in.
fn unwritable(error: &io::Error) -> Error {
    Error::Io { path: String::new(), reason: error.to_string() }
}

/// Names the file in the errors of reading or writing it.
fn at<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Format { format, reason } => Error::Format { format, reason: format!("{}: {reason}", path.display()) },
        Error::Io { path: unknown, reason } if unknown.is_empty() => {
            Error::Io { path: path.display().to_string(), reason }
        }
        other => other,
    })
}

/// Fills `buffer`.
fn fill(format: &'static str, reader: &mut dyn Read, buffer: &mut [u8]) -> Result<()> {
    reader.read_exact(buffer).map_err(|e| unreadable(format, &e))
}

/// Refuses truth values other than 0 and 1, on which the memory safety of bool tensors rests.
fn check_truth_values(format: &'static str, bytes: &[u8]) -> Result<()> {
    match bytes.iter().position(|&b| b > 1) {
        None => Ok(()),
        Some(i) => Err(malformed(format, format!("truth value {i} is stored as {}, expected 0 or 1", bytes[i]))),
    }
}

/// Writes a file through a temporary one in the same folder, which replaces `path` once it is complete.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    // A link keeps pointing at the file that it names.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if target.exists() && !target.is_file() {
        return Err(Error::Io { path: path.display().to_string(), reason: "not a regular file".into() });
    }
    let temporary = temporary_beside(&target);
    let create = OpenOptions::new().write(true).create_new(true).open(&temporary);
    let mut writer = BufWriter::new(create.map_err(|e| system(path, &e))?);
    let written = at(path, write(&mut writer))
        .and_then(|()| writer.flush().and_then(|()| fs::rename(&temporary, &target)).map_err(|e| system(path, &e)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name in the folder of `target` that no other thread or process uses.
fn temporary_beside(target: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    target.with_file_name(name)
}

// Tensors hold the machine's byte order and the formats' data is written as it lies in memory.
const _: () = assert!(cfg!(target_endian = "little"), "bimetal's targets are little-endian");
