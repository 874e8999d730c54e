//! The npy header: `\x93NUMPY`, a version, a length and a Python dictionary of `descr`, `fortran_order` and `shape`.

use super::{FORMAT, fill};
use crate::io::malformed;
use crate::{DType, Result, Shape, Spec};
use std::io::Read;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Longest header text that is read; NumPy refuses longer ones too, because it evaluates them.
const LONGEST: usize = 10_000;

/// What a header says, and how much data follows it.
pub(super) struct Header {
    pub spec: Spec,
    pub big_endian: bool,
    pub fortran_order: bool,
    /// Bytes behind the header.
    pub data: u64,
}

/// Reads the header of a file of `len` bytes.
pub(super) fn read(reader: &mut dyn Read, len: u64) -> Result<Header> {
    let mut start = [0; 8];
    fill(FORMAT, reader, &mut start)?;
    if &start[..6] != MAGIC {
        return Err(malformed(FORMAT, "it does not begin with \\x93NUMPY"));
    }
    let (text_len, prefix) = match start[6] {
        1 => {
            let mut size = [0; 2];
            fill(FORMAT, reader, &mut size)?;
            (u16::from_le_bytes(size) as usize, 10)
        }
        2 | 3 => {
            let mut size = [0; 4];
            fill(FORMAT, reader, &mut size)?;
            (u32::from_le_bytes(size) as usize, 12)
        }
        version => return Err(malformed(FORMAT, format!("version {version} is not one of 1, 2, 3"))),
    };
    if text_len > LONGEST {
        return Err(malformed(FORMAT, format!("a header of {text_len} bytes, expected at most {LONGEST}")));
    }
    let Some(data) = len.checked_sub(prefix + text_len as u64) else {
        return Err(malformed(FORMAT, format!("truncated: a header of {text_len} bytes in a file of {len}")));
    };
    let mut text = vec![0; text_len];
    fill(FORMAT, reader, &mut text)?;
    let dict = Dict::parse(&text)?;
    let (dtype, big_endian) = dtype(&dict.descr)?;
    let shape = Shape::new(&dict.shape).map_err(|e| malformed(FORMAT, format!("shape: {e}")))?;
    Ok(Header { spec: Spec::new(shape, dtype), big_endian, fortran_order: dict.fortran_order, data })
}

/// The header of a row-major file of `spec`, spaced as NumPy does: the first extent may grow to 21 digits in place,
/// and the data begins at a multiple of 64 bytes.
pub(super) fn write(spec: &Spec) -> Vec<u8> {
    let dims = spec.shape.dims();
    let shape = match dims {
        [one] => format!("({one},)"),
        _ => format!("({})", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let growth = dims.first().map_or(0, |d| 21usize.saturating_sub(d.to_string().len()));
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}", descr(spec.dtype));
    text.extend(std::iter::repeat_n(' ', growth));
    let written = 10 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', 64 - written % 64));
    text.push('\n');
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    // Eight extents of twenty digits take less than 300 bytes.
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.bytes());
    header
}

fn descr(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::I8 => "|i1",
        DType::U8 => "|u1",
        DType::I32 => "<i4",
        DType::U32 => "<u4",
        DType::I64 => "<i8",
        DType::Bool => "|b1",
        DType::BF16 => unreachable!("`encode` refuses bf16"),
    }
}

/// The dtype that a `descr` names, and whether its bytes are swapped.
fn dtype(descr: &str) -> Result<(DType, bool)> {
    let (order, kind) = match descr.split_at_checked(1) {
        Some((order @ ("<" | ">" | "=" | "|"), kind)) => (order, kind),
        _ => ("=", descr),
    };
    let dtype = match kind {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "u1" => DType::U8,
        "i4" => DType::I32,
        "u4" => DType::U32,
        "i8" => DType::I64,
        "b1" => DType::Bool,
        _ => {
            let known = "f2, f4, f8, i1, u1, i4, u4, i8 and b1";
            return Err(malformed(FORMAT, format!("dtype '{descr}' is not supported, only {known} are")));
        }
    };
    if order == "|" && dtype.size() > 1 {
        return Err(malformed(FORMAT, format!("dtype '{descr}' has no byte order")));
    }
    Ok((dtype, order == ">"))
}

/// The three entries of a header's dictionary.
struct Dict {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Dict {
    fn parse(text: &[u8]) -> Result<Self> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut text = Text { rest: text };
        text.expect(b'{')?;
        while !text.take(b'}') {
            let key = text.string()?;
            text.expect(b':')?;
            let again = match key.as_str() {
                "descr" => descr.replace(text.descr()?).is_some(),
                "fortran_order" => fortran_order.replace(text.truth()?).is_some(),
                "shape" => shape.replace(text.tuple()?).is_some(),
                _ => return Err(malformed(FORMAT, format!("unknown key '{key}' in the header"))),
            };
            if again {
                return Err(malformed(FORMAT, format!("key '{key}' stands twice in the header")));
            }
            if !text.take(b',') {
                text.expect(b'}')?;
                break;
            }
        }
        text.end()?;
        let missing = |key: &str| malformed(FORMAT, format!("the header has no key '{key}'"));
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The unread part of a header: the few Python literals that NumPy writes there.
struct Text<'a> {
    rest: &'a [u8],
}

impl Text<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Skips `byte` if it is next.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.rest.first() == Some(&byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(&format!("`{}`", byte as char))) }
    }

    /// A quoted string without escapes.
    fn string(&mut self) -> Result<String> {
        self.skip_space();
        let quoted = match self.rest {
            [quote @ (b'\'' | b'"'), rest @ ..] => {
                rest.iter().position(|b| b == quote).map(|end| (&rest[..end], &rest[end + 1..]))
            }
            _ => None,
        };
        match quoted {
            Some((text, rest)) if text.iter().all(|b| b.is_ascii_graphic() && *b != b'\\') => {
                self.rest = rest;
                Ok(text.iter().map(|&b| b as char).collect())
            }
            _ => Err(self.unexpected("a quoted string")),
        }
    }

    fn descr(&mut self) -> Result<String> {
        self.skip_space();
        if self.rest.first() == Some(&b'[') {
            return Err(malformed(FORMAT, "structured dtypes are not supported"));
        }
        self.string()
    }

    fn truth(&mut self) -> Result<bool> {
        self.skip_space();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    /// A tuple of extents.
    fn tuple(&mut self) -> Result<Vec<usize>> {
        let mut items = Vec::new();
        self.expect(b'(')?;
        while !self.take(b')') {
            items.push(self.extent()?);
            if !self.take(b',') {
                if items.len() == 1 {
                    return Err(self.unexpected("a `,` after the only extent of shape"));
                }
                self.expect(b')')?;
                break;
            }
        }
        Ok(items)
    }

    /// A whole number, with the `L` that Python 2 wrote.
    fn extent(&mut self) -> Result<usize> {
        self.skip_space();
        let digits = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = std::str::from_utf8(&self.rest[..digits]).ok().and_then(|d| d.parse().ok());
        let value = value.ok_or_else(|| self.unexpected("an extent of shape that fits in memory"))?;
        self.rest = &self.rest[digits..];
        self.rest = self.rest.strip_prefix(b"L").unwrap_or(self.rest);
        Ok(value)
    }

    fn end(&mut self) -> Result<()> {
        self.skip_space();
        if self.rest.is_empty() { Ok(()) } else { Err(self.unexpected("nothing after the dictionary")) }
    }

    fn unexpected(&self, expected: &str) -> crate::Error {
        let found = self.rest[..self.rest.len().min(24)].escape_ascii();
        malformed(FORMAT, format!("header: expected {expected}, found `{found}`"))
    }
}
