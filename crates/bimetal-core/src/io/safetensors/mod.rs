//! The safetensors format: a JSON header of names, dtypes, shapes and byte ranges, and the tensors' bytes behind it.
//!
//! All dtypes of tensors are read and written. Dtypes that only the format has (fp8, 16-bit integers, …) are listed and
//! can be skipped, not loaded.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

mod header;

pub use header::Entry;

use super::{at, check_truth_values, fill, malformed, open, replace, unreadable, unwritable};
use crate::host::HostBuffer;
use crate::{DType, Device, Error, Result, Spec, Tensor};
use header::Header;
use memmap2::{Mmap, MmapOptions};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const FORMAT: &str = "safetensors";

/// Where the tensors' bytes come from.
enum Source {
    Memory(Vec<u8>),
    File(Mutex<File>),
    Map(Arc<Mmap>),
}

/// An open safetensors file: its header is read and checked, its tensors are read when they are asked for.
///
/// ```
/// use bimetal_core::{Tensor, io::safetensors};
/// let path = std::env::temp_dir().join(format!("bimetal-doc-{}.safetensors", std::process::id()));
/// let weight = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// safetensors::write(&path, &[("weight", &weight)], &[("format", "pt")])?;
///
/// let archive = safetensors::Archive::open(&path)?;
/// let listing: Vec<_> = archive.entries().iter().map(|e| (e.name.as_str(), e.dtype, &e.shape[..])).collect();
/// assert_eq!(listing, [("weight", "F32", &[2, 2][..])]);
/// assert_eq!(archive.metadata()["format"], "pt");
/// assert_eq!(archive.tensor("weight")?.to_vec::<f32>()?, [1.0, 2.0, 3.0, 4.0]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub struct Archive {
    source: Source,
    header: Header,
    /// Named in errors; empty for bytes in memory.
    path: PathBuf,
}

impl Archive {
    /// Opens a file whose tensors are copied into memory, each when it is asked for.
    ///
    /// # Errors
    /// A file that cannot be opened, or one whose header is malformed, too large (100 MB), names a tensor twice, has
    /// ranges that overlap, leave holes or do not match shape and dtype, or does not end where the file ends.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, len) = open(path)?;
        let header = at(path, header::read(&mut file, len))?;
        Ok(Self { source: Source::File(Mutex::new(file)), header, path: path.to_path_buf() })
    }

    /// Opens a file whose tensors lie in a mapping of it, without a copy: their pages are read when they are touched
    /// and need no memory of their own. Writing into such a tensor copies it first. A tensor that is not aligned for
    /// its dtype in the file is copied.
    ///
    /// # Errors
    /// As [`Archive::open`], or a file that cannot be mapped.
    ///
    /// # Safety
    /// Nobody may change or shorten the file while the archive or one of its tensors lives: its bytes are read as
    /// immutable memory, and those of a shortened file are gone.
    ///
    /// ```
    /// # use bimetal_core::{Tensor, io::safetensors};
    /// # let path = std::env::temp_dir().join(format!("bimetal-doc-map-{}.safetensors", std::process::id()));
    /// safetensors::write(&path, &[("bias", &Tensor::from_slice(&[5i32, 6], &[2])?)], &[])?;
    /// // SAFETY: the file was made here and nothing else knows it.
    /// let bias = unsafe { safetensors::Archive::map(&path)? }.tensor("bias")?;
    /// assert_eq!(bias.as_slice::<i32>()?, [5, 6]);
    /// # std::fs::remove_file(&path).unwrap();
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, len) = open(path)?;
        let header = at(path, header::read(&mut file, len))?;
        // SAFETY: the caller keeps the file as it is.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(|e| super::system(path, &e))?;
        if map.len() as u64 != len {
            return at(path, Err(malformed(FORMAT, "its length changed while it was opened")));
        }
        Ok(Self { source: Source::Map(Arc::new(map)), header, path: path.to_path_buf() })
    }

    /// Reads an archive from the bytes of a file.
    ///
    /// # Errors
    /// As [`Archive::open`], except for opening.
    ///
    /// ```
    /// use bimetal_core::{DType, Tensor, io::safetensors};
    /// let bytes = safetensors::to_bytes(&[("x", &Tensor::zeros(&[3], DType::BF16)?)], &[])?;
    /// assert_eq!(safetensors::Archive::from_bytes(bytes)?.tensor("x")?.dtype(), DType::BF16);
    /// assert!(safetensors::Archive::from_bytes(b"{}".to_vec()).is_err());
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let header = header::read(&mut &bytes[..], bytes.len() as u64)?;
        Ok(Self { source: Source::Memory(bytes), header, path: PathBuf::new() })
    }

    /// Every tensor, in the order of the data.
    pub fn entries(&self) -> &[Entry] {
        &self.header.entries
    }

    /// The names of all tensors, in the order of the data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|e| e.name.as_str())
    }

    /// The file's own key and value texts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Shape and dtype of a tensor.
    ///
    /// # Errors
    /// A name that the archive does not have, or a dtype or rank that tensors do not have.
    ///
    /// ```
    /// # use bimetal_core::{DType, Tensor, io::safetensors};
    /// # let bytes = safetensors::to_bytes(&[("x", &Tensor::zeros(&[3, 1], DType::U32)?)], &[])?;
    /// let archive = safetensors::Archive::from_bytes(bytes)?;
    /// assert_eq!(archive.spec("x")?.shape.dims(), [3, 1]);
    /// assert!(archive.spec("y").is_err());
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn spec(&self, name: &str) -> Result<Spec> {
        self.entry(name).and_then(|entry| at(&self.path, entry.spec()))
    }

    /// Loads a tensor to the host.
    ///
    /// # Errors
    /// As [`Archive::spec`], a truth value that is neither 0 nor 1, or a file that cannot be read any more.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        at(&self.path, entry.spec().and_then(|spec| self.load(spec, entry.range.clone())))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.header.find(name).ok_or_else(|| {
            let expected = format!("the name of one of the archive's {} tensors, got `{name}`", self.entries().len());
            Error::argument("safetensors", "name", expected)
        })
    }

    /// `range` of the data as a tensor of `spec`, which takes as many bytes.
    fn load(&self, spec: Spec, range: Range<u64>) -> Result<Tensor> {
        let start = self.header.data_start + range.start;
        let inside = |bytes: &[u8]| {
            let part = usize::try_from(start).ok().and_then(|start| Some(start..start.checked_add(spec.bytes())?));
            part.filter(|part| part.end <= bytes.len()).ok_or_else(|| malformed(FORMAT, "truncated"))
        };
        let bool_checked = |tensor: Tensor| {
            if tensor.dtype() == DType::Bool {
                check_truth_values(FORMAT, tensor.host_bytes()?)?;
            }
            Ok(tensor)
        };
        let from_reader = |reader: &mut dyn Read| {
            let mut tensor = Tensor::empty_spec(spec.clone())?;
            fill(FORMAT, reader, tensor.host_bytes_mut()?)?;
            bool_checked(tensor)
        };
        match &self.source {
            Source::Memory(bytes) => from_reader(&mut &bytes[inside(bytes)?]),
            Source::Map(map) => {
                let part = inside(map)?;
                let aligned = (map.as_ptr() as usize + part.start).is_multiple_of(spec.dtype.size());
                if aligned && !part.is_empty() {
                    bool_checked(Tensor::over(spec.clone(), HostBuffer::file(map.clone(), part)))
                } else {
                    from_reader(&mut &map[part])
                }
            }
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
                file.seek(SeekFrom::Start(start)).map_err(|e| unreadable(FORMAT, &e))?;
                from_reader(&mut *file)
            }
        }
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({} tensors, {})", self.entries().len(), self.path.display())
    }
}

/// Writes a safetensors file of tensors, from whichever devices hold them, with texts of your own in its header.
///
/// Wider dtypes come first, so that every tensor is aligned for its dtype; the data begins at a multiple of 64 bytes.
///
/// # Errors
/// A name or metadata key that stands twice, the name `__metadata__`, a device that fails, or a file that cannot be
/// written.
///
/// ```
/// use bimetal_core::{DType, Tensor, io::safetensors};
/// let x = Tensor::zeros(&[4], DType::F16)?;
/// assert!(safetensors::write("/nowhere/x.safetensors", &[("x", &x)], &[]).is_err());
/// assert!(safetensors::write("x.safetensors", &[("x", &x), ("x", &x)], &[]).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    let (header, order) = header::write(tensors, metadata)?;
    replace(path.as_ref(), |file| put(file, &header, &order))
}

/// The bytes of a safetensors file; as [`write()`].
///
/// # Errors
/// As [`write()`], except for the file.
///
/// ```
/// use bimetal_core::{DType, Tensor, io::safetensors};
/// let bytes = safetensors::to_bytes(&[("x", &Tensor::zeros(&[5], DType::F64)?)], &[])?;
/// assert!((bytes.len() - 40).is_multiple_of(64));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn to_bytes(tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (header, order) = header::write(tensors, metadata)?;
    let mut bytes = Vec::new();
    put(&mut bytes, &header, &order)?;
    Ok(bytes)
}

fn put(writer: &mut dyn Write, header: &[u8], tensors: &[&Tensor]) -> Result<()> {
    writer.write_all(header).map_err(|e| unwritable(&e))?;
    for tensor in tensors {
        let tensor = tensor.to_device(Device::Cpu)?;
        writer.write_all(tensor.host_bytes()?).map_err(|e| unwritable(&e))?;
    }
    Ok(())
}
