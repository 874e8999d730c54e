//! NumPy's npz format: a zip archive of npy files, stored (`savez`) or deflated (`savez_compressed`).

use super::{at, malformed, npy, open, replace, unreadable, unwritable};
use crate::{Error, Result, Tensor};
use std::io::{Cursor, Read, Seek, Write};
use std::path::Path;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FORMAT: &str = "npz";

/// Most bytes that deflate makes of one: 258 from two bits.
const DEFLATE_RATIO: u64 = 1032;

/// Uncompressed bytes that [`read`] always accepts, and how many times the file's length beyond that.
const ACCEPTED_BYTES: u64 = 1 << 30;
const ACCEPTED_RATIO: u64 = 128;

/// Reads every array of a `.npz` file into host tensors, in the archive's order, named without `.npy`.
///
/// An archive whose arrays take more than 1 GiB and more than 128 times its own length is refused before anything is
/// decompressed; [`read_within`] takes a limit of your own.
///
/// # Errors
/// A file that cannot be opened, a damaged or encrypted archive, members that overlap, share a name, are not npy files
/// or hold another number of bytes than the archive and their header say.
///
/// ```
/// use bimetal_core::{Tensor, io::npz};
/// let path = std::env::temp_dir().join(format!("bimetal-doc-{}.npz", std::process::id()));
/// let (a, b) = (Tensor::from_slice(&[1.0f32, 2.0], &[2])?, Tensor::from_slice(&[3i64], &[1, 1])?);
/// npz::write(&path, &[("a", &a), ("b", &b)])?;
/// let read = npz::read(&path)?;
/// # std::fs::remove_file(&path).unwrap();
/// assert_eq!(read[1].0, "b");
/// assert_eq!(read[1].1.to_vec::<i64>()?, [3]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn read(path: impl AsRef<Path>) -> Result<Vec<(String, Tensor)>> {
    let path = path.as_ref();
    let (file, len) = open(path)?;
    at(path, unpack(file, accepted(len)))
}

/// [`read`] with at most `limit` bytes of arrays instead of its own limit.
///
/// # Errors
/// As [`read`].
///
/// ```
/// # use bimetal_core::{DType, Tensor, io::npz};
/// # let path = std::env::temp_dir().join(format!("bimetal-doc-within-{}.npz", std::process::id()));
/// npz::write(&path, &[("a", &Tensor::zeros(&[1000], DType::F64)?)])?;
/// assert!(npz::read_within(&path, 1000).is_err());
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn read_within(path: impl AsRef<Path>, limit: u64) -> Result<Vec<(String, Tensor)>> {
    let path = path.as_ref();
    let (file, _) = open(path)?;
    at(path, unpack(file, limit))
}

/// Reads the bytes of a `.npz` file.
///
/// # Errors
/// As [`read`], except for opening.
///
/// ```
/// use bimetal_core::{Tensor, io::npz};
/// let bytes = npz::to_bytes(&[("x", &Tensor::from_slice(&[1u8, 2, 3], &[3])?)])?;
/// assert_eq!(npz::from_bytes(&bytes)?[0].0, "x");
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    unpack(Cursor::new(bytes), accepted(bytes.len() as u64))
}

/// Writes tensors, from whichever devices hold them, as a `.npz` file with stored members.
///
/// # Errors
/// A bf16 tensor, an empty name or one that stands twice, a device that fails, or a file that cannot be written.
///
/// ```
/// # use bimetal_core::{DType, Tensor, io::npz};
/// # let path = std::env::temp_dir().join(format!("bimetal-doc-twice-{}.npz", std::process::id()));
/// let x = Tensor::zeros(&[2], DType::F32)?;
/// assert!(npz::write(&path, &[("x", &x), ("x", &x)]).is_err());
/// assert!(!path.exists());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)]) -> Result<()> {
    check_names(tensors)?;
    replace(path.as_ref(), |file| pack(file, tensors))
}

/// The bytes of a `.npz` file of these tensors.
///
/// # Errors
/// As [`write()`], except for the file.
///
/// ```
/// use bimetal_core::{DType, Tensor, io::npz};
/// assert!(npz::to_bytes(&[("x", &Tensor::zeros(&[2], DType::BF16)?)]).is_err());
/// assert_eq!(npz::from_bytes(&npz::to_bytes(&[])?)?.len(), 0);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn to_bytes(tensors: &[(&str, &Tensor)]) -> Result<Vec<u8>> {
    check_names(tensors)?;
    let mut bytes = Cursor::new(Vec::new());
    pack(&mut bytes, tensors)?;
    Ok(bytes.into_inner())
}

fn accepted(len: u64) -> u64 {
    ACCEPTED_BYTES.max(len.saturating_mul(ACCEPTED_RATIO))
}

fn broken(error: ZipError) -> Error {
    match error {
        ZipError::Io(e) => unreadable(FORMAT, &e),
        other => malformed(FORMAT, other.to_string()),
    }
}

fn unwritten(error: ZipError) -> Error {
    unwritable(&error.into())
}

fn unpack(source: impl Read + Seek, limit: u64) -> Result<Vec<(String, Tensor)>> {
    let mut archive = ZipArchive::new(source).map_err(broken)?;
    check_members(&mut archive, limit)?;
    let mut tensors = Vec::with_capacity(archive.len());
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(broken)?;
        let name = member.name().map_err(broken)?.into_owned();
        let inside = |error| match error {
            Error::Format { reason, .. } => malformed(FORMAT, format!("member `{name}`: {reason}")),
            other => other,
        };
        let Some(stem) = name.strip_suffix(".npy") else {
            return Err(malformed(FORMAT, format!("member `{name}` is not an .npy file")));
        };
        let size = member.size();
        let tensor = npy::decode(&mut member, size).map_err(inside)?;
        // The end of the member is also where its checksum is verified.
        match member.read(&mut [0]) {
            Ok(0) => tensors.push((stem.to_string(), tensor)),
            Ok(_) => return Err(inside(malformed(FORMAT, format!("it is longer than its {size} bytes")))),
            Err(e) => return Err(inside(unreadable(FORMAT, &e))),
        }
    }
    Ok(tensors)
}

/// Refuses archives whose directory cannot be true, or whose arrays together exceed `limit`.
fn check_members<R: Read + Seek>(archive: &mut ZipArchive<R>, limit: u64) -> Result<()> {
    if archive.has_duplicate_names() {
        return Err(malformed(FORMAT, "two members have the same name"));
    }
    if archive.has_overlapping_entries().map_err(broken)? {
        return Err(malformed(FORMAT, "members overlap"));
    }
    let mut total = 0u64;
    for i in 0..archive.len() {
        let entry = archive.by_index_data(i).map_err(broken)?;
        let (size, compressed) = (entry.size(), entry.compressed_size());
        let possible = match entry.compression() {
            CompressionMethod::Stored => size == compressed,
            CompressionMethod::Deflated => size <= compressed.saturating_mul(DEFLATE_RATIO),
            other => return Err(malformed(FORMAT, format!("compression {other} is not stored or deflated"))),
        };
        if entry.encrypted() {
            return Err(malformed(FORMAT, "encrypted members are not supported"));
        }
        if !possible {
            return Err(malformed(FORMAT, format!("a member cannot make {size} bytes of its {compressed}")));
        }
        total = total.saturating_add(size);
    }
    if total > limit {
        return Err(malformed(
            FORMAT,
            format!("its arrays take {total} bytes, the limit is {limit} (npz::read_within)"),
        ));
    }
    Ok(())
}

fn check_names(tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for (name, _) in tensors {
        if name.is_empty() || name.len() > 60_000 || !seen.insert(*name) {
            let given = if name.len() > 60_000 { "one that is longer" } else { name };
            let expected = format!("names of 1 to 60000 bytes, each once, got `{given}`");
            return Err(Error::argument("npz::write", "tensors", expected));
        }
    }
    Ok(())
}

fn pack(writer: impl Write + Seek, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut archive = ZipWriter::new(writer);
    for (name, tensor) in tensors {
        let (header, tensor) = npy::encode(tensor)?;
        let data = tensor.host_bytes()?;
        let large = (header.len() + data.len()) as u64 >= u64::from(u32::MAX);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
        archive.start_file(format!("{name}.npy"), options).map_err(unwritten)?;
        archive.write_all(&header).and_then(|()| archive.write_all(data)).map_err(|e| unwritable(&e))?;
    }
    archive.finish().map_err(unwritten)?;
    Ok(())
}
