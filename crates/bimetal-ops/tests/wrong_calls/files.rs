//! Wrong calls of the file formats, and files that are wrong.

use super::{Kind, Kind::Argument, Row, f32s, zeros};
use bimetal_core::io::safetensors::Archive;
use bimetal_core::io::{npy, npz, safetensors};
use bimetal_core::{DType, Result};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bimetal-core/tests/data").join(name)
}

fn nowhere(name: &str) -> PathBuf {
    std::env::temp_dir().join("bimetal-no-such-folder").join(name)
}

/// A safetensors file with this header and `data` zeros.
fn archive(header: &str, data: usize) -> Result<Archive> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 0);
    Archive::from_bytes(bytes)
}

pub const FILES: &[Row] = &[
    ("npy: no file", || npy::read(nowhere("x.npy")).map(drop), Kind::Io, &["bimetal-no-such-folder", "x.npy"]),
    ("npy: a folder", || npy::read(std::env::temp_dir()).map(drop), Kind::Io, &["not a regular file"]),
    ("npy: no folder", || npy::write(nowhere("x.npy"), &f32s(&[2])), Kind::Io, &["bimetal-no-such-folder"]),
    ("npy: bf16", || npy::write(nowhere("x.npy"), &zeros(&[2], DType::BF16)), Kind::DType, &["npy::write", "bf16"]),
    ("npy: another file", || npy::read(fixture("stored.npz")).map(drop), Kind::Format, &["npy file", "stored.npz"]),
    ("npy: complex", || npy::read(fixture("complex.npy")).map(drop), Kind::Format, &["'<c16'", "f2, f4, f8"]),
    ("npy: objects", || npy::read(fixture("object.npy")).map(drop), Kind::Format, &["'|O'"]),
    ("npy: records", || npy::read(fixture("structured.npy")).map(drop), Kind::Format, &["structured"]),
    ("npy: nothing", || npy::from_bytes(&[]).map(drop), Kind::Format, &["npy file", "truncated"]),
    (
        "npy: short",
        || npy::from_bytes(&npy::to_bytes(&f32s(&[9]))?[..160]).map(drop),
        Kind::Format,
        &["f32 [9] takes 36 bytes, 32 follow"],
    ),
    ("npz: no file", || npz::read(nowhere("x.npz")).map(drop), Kind::Io, &["x.npz"]),
    ("npz: another file", || npz::read(fixture("f4.npy")).map(drop), Kind::Format, &["npz file", "f4.npy"]),
    ("npz: limit", || npz::read_within(fixture("stored.npz"), 10).map(drop), Kind::Format, &["the limit is 10"]),
    (
        "npz: name twice",
        || npz::to_bytes(&[("a", &f32s(&[1])), ("a", &f32s(&[2]))]).map(drop),
        Argument,
        &["npz::write", "each once, got `a`"],
    ),
    ("npz: no name", || npz::to_bytes(&[("", &f32s(&[1]))]).map(drop), Argument, &["npz::write", "got ``"]),
    ("npz: bf16", || npz::to_bytes(&[("a", &zeros(&[1], DType::BF16))]).map(drop), Kind::DType, &["bf16", "F16"]),
    ("safetensors: no file", || Archive::open(nowhere("x.st")).map(drop), Kind::Io, &["x.st"]),
    (
        "safetensors: another file",
        || Archive::open(fixture("f4.npy")).map(drop),
        Kind::Format,
        &["safetensors file", "f4.npy"],
    ),
    (
        "safetensors: unknown name",
        || Archive::open(fixture("all.safetensors"))?.tensor("absent").map(drop),
        Argument,
        &["name", "10 tensors", "`absent`"],
    ),
    (
        "safetensors: dtype of the format only",
        || Archive::open(fixture("foreign.safetensors"))?.tensor("fp8").map(drop),
        Kind::Format,
        &["foreign.safetensors", "`fp8`", "F8_E4M3"],
    ),
    (
        "safetensors: unknown dtype",
        || archive(r#"{"x":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4).map(drop),
        Kind::Format,
        &["`x`", "F33"],
    ),
    (
        "safetensors: product",
        || archive(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4).map(drop),
        Kind::Format,
        &["`x`", "overflows"],
    ),
    (
        "safetensors: range",
        || archive(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8).map(drop),
        Kind::Format,
        &["`x`", "hole"],
    ),
    (
        "safetensors: name twice",
        || safetensors::to_bytes(&[("a", &f32s(&[1])), ("a", &f32s(&[2]))], &[]).map(drop),
        Argument,
        &["safetensors::write", "`a`"],
    ),
    (
        "safetensors: reserved name",
        || safetensors::to_bytes(&[("__metadata__", &f32s(&[1]))], &[]).map(drop),
        Argument,
        &["safetensors::write", "__metadata__"],
    ),
    (
        "safetensors: key twice",
        || safetensors::to_bytes(&[], &[("k", "1"), ("k", "2")]).map(drop),
        Argument,
        &["safetensors::write", "metadata"],
    ),
];
