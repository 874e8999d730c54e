//! NumPy's npy format: a Python dictionary with dtype, order and shape, and the elements behind it.
//!
//! Read: versions 1 to 3, both byte orders, C and Fortran order, all dtypes but bf16. Written: version 1, little-endian,
//! C order, byte for byte as NumPy writes it. The format has no bfloat16 (`ml_dtypes` stores it as untyped 2-byte
//! records, `V2`, which could be anything), so bf16 is refused both ways: use [`safetensors`](super::safetensors).
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

mod header;

use super::{at, check_truth_values, fill, malformed, open, replace, unwritable};
use crate::{DType, Error, Result, Tensor};
use std::io::{Read, Write};
use std::path::Path;

const FORMAT: &str = "npy";

/// The dtypes that the format has.
const DTYPES: [DType; 9] =
    [DType::F16, DType::F32, DType::F64, DType::I8, DType::U8, DType::I32, DType::U32, DType::I64, DType::Bool];

/// Reads a `.npy` file into a host tensor, row-major whatever the order in the file.
///
/// # Errors
/// A file that cannot be opened, or one that is truncated, longer than its header says, malformed, or of a dtype that
/// tensors do not have (or bf16).
///
/// ```
/// use bimetal_core::{Tensor, io::npy};
/// let path = std::env::temp_dir().join(format!("bimetal-doc-{}.npy", std::process::id()));
/// npy::write(&path, &Tensor::from_slice(&[1.0f32, 2.0, 3.0], &[3])?)?;
/// assert_eq!(npy::read(&path)?.to_vec::<f32>()?, [1.0, 2.0, 3.0]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn read(path: impl AsRef<Path>) -> Result<Tensor> {
    let path = path.as_ref();
    let (mut file, len) = open(path)?;
    at(path, decode(&mut file, len))
}

/// Reads the bytes of a `.npy` file.
///
/// # Errors
/// As [`read`], except for opening.
///
/// ```
/// use bimetal_core::{DType, Tensor, io::npy};
/// let bytes = npy::to_bytes(&Tensor::zeros(&[2, 3], DType::I64)?)?;
/// assert_eq!(npy::from_bytes(&bytes)?.shape().dims(), [2, 3]);
/// assert!(npy::from_bytes(&bytes[..100]).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn from_bytes(bytes: &[u8]) -> Result<Tensor> {
    decode(&mut &*bytes, bytes.len() as u64)
}

/// Writes a `.npy` file, from whichever device holds the tensor.
///
/// # Errors
/// A bf16 tensor, a device that fails, or a file that cannot be written.
///
/// ```
/// use bimetal_core::{DType, Tensor, io::npy};
/// let path = std::env::temp_dir().join(format!("bimetal-doc-write-{}.npy", std::process::id()));
/// npy::write(&path, &Tensor::zeros(&[2, 3], DType::Bool)?)?;
/// assert_eq!(std::fs::metadata(&path).unwrap().len(), 128 + 6);
/// # std::fs::remove_file(&path).unwrap();
/// assert!(npy::write(&path, &Tensor::zeros(&[2], DType::BF16)?).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn write(path: impl AsRef<Path>, tensor: &Tensor) -> Result<()> {
    let (header, tensor) = encode(tensor)?;
    replace(path.as_ref(), |file| {
        let data = tensor.host_bytes()?;
        file.write_all(&header).and_then(|()| file.write_all(data)).map_err(|e| unwritable(&e))
    })
}

/// The bytes of a `.npy` file of this tensor.
///
/// # Errors
/// A bf16 tensor, or a device that fails.
///
/// ```
/// use bimetal_core::{Tensor, io::npy};
/// let bytes = npy::to_bytes(&Tensor::from_slice(&[7u8], &[1])?)?;
/// assert_eq!((&bytes[..6], bytes.len()), (&b"\x93NUMPY"[..], 129));
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let (mut bytes, tensor) = encode(tensor)?;
    bytes.extend_from_slice(tensor.host_bytes()?);
    Ok(bytes)
}

/// The header of a tensor's file, and the tensor on the host.
pub(super) fn encode(tensor: &Tensor) -> Result<(Vec<u8>, Tensor)> {
    if !DTYPES.contains(&tensor.dtype()) {
        return Err(Error::dtype("npy::write", "tensor", tensor.dtype(), &DTYPES));
    }
    Ok((header::write(tensor.spec()), tensor.to_device(crate::Device::Cpu)?))
}

/// Reads a file of exactly `len` bytes.
pub(super) fn decode(reader: &mut dyn Read, len: u64) -> Result<Tensor> {
    let header = header::read(reader, len)?;
    let spec = header.spec;
    if header.data != spec.bytes() as u64 {
        let reason = format!("{} {} takes {} bytes, {} follow", spec.dtype, spec.shape, spec.bytes(), header.data);
        return Err(malformed(FORMAT, reason));
    }
    let (dtype, shape) = (spec.dtype, spec.shape.clone());
    let mut tensor = Tensor::empty(shape.dims(), dtype)?;
    let bytes = tensor.host_bytes_mut()?;
    fill(FORMAT, reader, bytes)?;
    if dtype == DType::Bool {
        check_truth_values(FORMAT, bytes)?;
    }
    if header.big_endian && dtype.size() > 1 {
        bytes.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    if header.fortran_order && shape.dims().iter().filter(|&&d| d != 1).count() > 1 {
        return row_major(&tensor);
    }
    Ok(tensor)
}

/// The tensor whose elements lie in Fortran order in `stored`.
fn row_major(stored: &Tensor) -> Result<Tensor> {
    let dims = stored.shape().dims();
    let mut out = Tensor::empty(dims, stored.dtype())?;
    let (from, to) = (stored.host_bytes()?, out.host_bytes_mut()?);
    match stored.dtype().size() {
        1 => reverse_axes::<1>(from, to, dims),
        2 => reverse_axes::<2>(from, to, dims),
        4 => reverse_axes::<4>(from, to, dims),
        _ => reverse_axes::<8>(from, to, dims),
    }
    Ok(out)
}

/// Transposes in tiles over the first axis (contiguous in `from`) and the last (contiguous in `to`), so that every
/// cache line of both is used while it is there. At least two axes and one element.
fn reverse_axes<const SIZE: usize>(from: &[u8], to: &mut [u8], dims: &[usize]) {
    const TILE: usize = 64;
    if from.is_empty() {
        return;
    }
    let (from, to) = (from.as_chunks::<SIZE>().0, to.as_chunks_mut::<SIZE>().0);
    let (first, last) = (dims[0], dims[dims.len() - 1]);
    let middle = &dims[1..dims.len() - 1];
    let between: usize = middle.iter().product();
    for i in 0..between {
        // The same position between the outer axes, counted from the other end.
        let (mut rest, mut reversed) = (i, 0);
        for (k, &d) in middle.iter().enumerate().rev() {
            reversed += rest % d * middle[..k].iter().product::<usize>();
            rest /= d;
        }
        for row in (0..first).step_by(TILE) {
            for column in (0..last).step_by(TILE) {
                for r in row..(row + TILE).min(first) {
                    for c in column..(column + TILE).min(last) {
                        to[(r * between + i) * last + c] = from[r + first * (reversed + between * c)];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_but_bf16_comes_back() {
        for dtype in DTYPES {
            for dims in [&[][..], &[0], &[1], &[7], &[3, 5], &[2, 0, 4], &[2, 3, 1, 4]] {
                let n: usize = dims.iter().product();
                let values: Vec<f64> = (0..n).map(|i| (i as f64 * 37.0) % 120.0).collect();
                let x = Tensor::from_f64(&values, dims, dtype).unwrap();
                let bytes = to_bytes(&x).unwrap();
                assert!((bytes.len() - x.spec().bytes()).is_multiple_of(64));
                let y = from_bytes(&bytes).unwrap();
                assert_eq!(x.spec(), y.spec());
                assert_eq!(x.host_bytes().unwrap(), y.host_bytes().unwrap());
            }
        }
    }

    /// A file with this header text and these data bytes.
    fn file(text: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn fortran_order_is_transposed_at_every_rank() {
        for dims in [&[5][..], &[3, 4], &[70, 131], &[1, 6], &[2, 3, 4], &[3, 1, 2, 5], &[2, 0, 3]] {
            let n: usize = dims.iter().product();
            let data: Vec<u8> = (0..n as u32).flat_map(u32::to_be_bytes).collect();
            let shape = dims.iter().map(|d| format!("{d},")).collect::<String>();
            let text = format!("{{'descr': '>u4', 'fortran_order': True, 'shape': ({shape})}}\n");
            let got = from_bytes(&file(&text, &data)).unwrap().to_vec::<u32>().unwrap();
            for (flat, value) in got.iter().enumerate() {
                let (mut rest, mut index) = (flat, vec![0; dims.len()]);
                for k in (0..dims.len()).rev() {
                    index[k] = rest % dims[k];
                    rest /= dims[k];
                }
                let fortran = index.iter().zip(dims).rev().fold(0, |at, (&i, &d)| at * d + i);
                assert_eq!(*value, fortran as u32, "{dims:?} at {index:?}");
            }
        }
    }

    #[test]
    fn headers_that_lie_are_errors() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
        assert!(from_bytes(&file(good, &[0; 8])).is_ok());
        for (text, data, phrase) in [
            (good, 7, "takes 8 bytes, 7 follow"),
            (good, 9, "takes 8 bytes, 9 follow"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9)}", 8, "shape"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8, "shape"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", 4, "dimensions"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}", 8, "8 follow"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", 8, "shape"),
            ("{'descr': '<V2', 'fortran_order': False, 'shape': (4,)}", 8, "'<V2'"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", 8, "'|O'"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", 4, "structured"),
            ("{'descr': '<f4', 'shape': (2,)}", 8, "fortran_order"),
            ("{'descr': '<f4', 'descr': '<i4', 'fortran_order': False, 'shape': (2,)}", 8, "twice"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", 8, "unknown key"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}", 8, "True or False"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': 2}", 8, "("),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", 8, "after"),
            ("", 0, "{"),
            ("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", 0, "3 bytes, 0 follow"),
        ] {
            let error = from_bytes(&file(text, &vec![0; data])).unwrap_err();
            assert!(matches!(error, Error::Format { format: "npy", .. }), "{text}: {error}");
            assert!(error.to_string().contains(phrase), "{text}: {error}");
        }
        let truth = file("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", &[0, 1, 2]);
        assert!(from_bytes(&truth).unwrap_err().to_string().contains("truth value 2"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = to_bytes(&Tensor::from_slice(&[1i64, -2, 3], &[3]).unwrap()).unwrap();
        for len in 0..bytes.len() {
            assert!(matches!(from_bytes(&bytes[..len]), Err(Error::Format { .. })), "{len}");
        }
    }
}
