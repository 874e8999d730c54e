//! The safetensors header: its length in eight bytes, and JSON `{"name": {"dtype", "shape", "data_offsets"}, …}`.

use super::{FORMAT, fill};
use crate::io::malformed;
use crate::{ALIGNMENT, DType, Error, Result, Shape, Spec, Tensor};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::ops::Range;

/// Longest header; the format's own reader draws the line there.
const LONGEST: u64 = 100_000_000;

/// Where the format keeps texts that describe the file.
const METADATA: &str = "__metadata__";

/// The format's dtypes: its name, its bits, and the tensors' dtype where they have it.
const DTYPES: [(&str, u64, Option<DType>); 21] = [
    ("F64", 64, Some(DType::F64)),
    ("F32", 32, Some(DType::F32)),
    ("F16", 16, Some(DType::F16)),
    ("BF16", 16, Some(DType::BF16)),
    ("I64", 64, Some(DType::I64)),
    ("I32", 32, Some(DType::I32)),
    ("U32", 32, Some(DType::U32)),
    ("I8", 8, Some(DType::I8)),
    ("U8", 8, Some(DType::U8)),
    ("BOOL", 8, Some(DType::Bool)),
    ("U64", 64, None),
    ("I16", 16, None),
    ("U16", 16, None),
    ("C64", 64, None),
    ("F8_E4M3", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E8M0", 8, None),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F4", 4, None),
    ("F8_E4M3FNUZ", 8, None),
];

/// A tensor of an archive as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The format's name of the dtype: `F32`, `BF16`, `F8_E4M3`, ….
    pub dtype: &'static str,
    /// The extents.
    pub shape: Vec<u64>,
    /// Its bytes, counted from the start of the data.
    pub(super) range: Range<u64>,
}

impl Entry {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub(super) fn spec(&self) -> Result<Spec> {
        let refused = |why: String| malformed(FORMAT, format!("tensor `{}`: {why}", self.name));
        let dtype = DTYPES.iter().find(|(name, ..)| *name == self.dtype).and_then(|(.., dtype)| *dtype);
        let dtype = dtype.ok_or_else(|| refused(format!("dtype {} is not one that tensors have", self.dtype)))?;
        let dims: Option<Vec<usize>> = self.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = dims.ok_or_else(|| refused("shape: it does not fit in memory".into()))?;
        let spec = Spec::new(Shape::new(&shape).map_err(|e| refused(e.to_string()))?, dtype);
        debug_assert_eq!(spec.bytes() as u64, self.bytes());
        Ok(spec)
    }
}

/// A checked header: ranges are contiguous, fill the data and match their shapes and dtypes.
pub(super) struct Header {
    pub entries: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
    /// First byte of the data in the file.
    pub data_start: u64,
    by_name: HashMap<String, usize>,
}

impl Header {
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }
}

/// Reads and checks the header of a file of `len` bytes.
pub(super) fn read(reader: &mut dyn Read, len: u64) -> Result<Header> {
    let mut size = [0; 8];
    fill(FORMAT, reader, &mut size)?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST {
        return Err(malformed(FORMAT, format!("a header of {size} bytes, expected at most {LONGEST}")));
    }
    let Some(data) = len.checked_sub(8 + size) else {
        return Err(malformed(FORMAT, format!("truncated: a header of {size} bytes in a file of {len}")));
    };
    let mut text = vec![0; size as usize];
    fill(FORMAT, reader, &mut text)?;
    if text.first() != Some(&b'{') {
        return Err(malformed(FORMAT, "the header does not begin with `{`"));
    }
    let raw: RawHeader = serde_json::from_slice(&text).map_err(|e| malformed(FORMAT, format!("header: {e}")))?;
    let mut entries = raw.tensors.into_iter().map(checked).collect::<Result<Vec<_>>>()?;
    entries.sort_by_key(|e| (e.range.start, e.range.end));
    let mut end = 0;
    for entry in &entries {
        if entry.range.start != end {
            let how = if entry.range.start < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(malformed(FORMAT, format!("tensor `{}` at {:?} {how}", entry.name, entry.range)));
        }
        end = entry.range.end;
    }
    if end != data {
        return Err(malformed(FORMAT, format!("its tensors take {end} bytes, {data} follow the header")));
    }
    let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    Ok(Header { entries, metadata: raw.metadata, data_start: 8 + size, by_name })
}

/// An entry whose range, shape and dtype agree.
fn checked((name, raw): (String, RawEntry)) -> Result<Entry> {
    let refused = |why: String| malformed(FORMAT, format!("tensor `{name}`: {why}"));
    let Some(&(dtype, bits, _)) = DTYPES.iter().find(|(known, ..)| *known == raw.dtype) else {
        return Err(refused(format!("unknown dtype `{}`", raw.dtype.escape_debug())));
    };
    let [start, end] = raw.data_offsets;
    // An extent of zero makes an empty tensor; the others must still have a product.
    let product = raw.shape.iter().filter(|&&d| d != 0).try_fold(bits, |n, &d| n.checked_mul(d));
    let bits = match product {
        None => return Err(refused("shape: the number of bytes overflows".into())),
        Some(_) if raw.shape.contains(&0) => 0,
        Some(bits) => bits,
    };
    if !bits.is_multiple_of(8) || end.checked_sub(start) != Some(bits / 8) {
        return Err(refused(format!("{dtype} {:?} takes {bits} bits, its range is {start}..{end}", raw.shape)));
    }
    Ok(Entry { dtype, shape: raw.shape, range: start..end, name })
}

#[derive(Serialize, Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            // A name that stands twice would let two readers of one file see two different tensors.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let (mut metadata, mut tensors, mut seen) = (BTreeMap::new(), Vec::new(), HashSet::new());
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format_args!("`{}` stands twice", key.escape_debug())));
                    }
                    if key == METADATA {
                        metadata = map.next_value::<Texts>()?.0;
                    } else {
                        tensors.push((key, map.next_value()?));
                    }
                }
                Ok(RawHeader { metadata, tensors })
            }
        }

        deserializer.deserialize_map(Once)
    }
}

/// Metadata, each key once.
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if texts.contains_key(&key) {
                        return Err(serde::de::Error::custom(format_args!("`{}` stands twice", key.escape_debug())));
                    }
                    texts.insert(key, value);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

/// The header of a file of these tensors, and the order in which their bytes follow it.
pub(super) fn write<'a>(
    tensors: &[(&str, &'a Tensor)],
    metadata: &[(&str, &str)],
) -> Result<(Vec<u8>, Vec<&'a Tensor>)> {
    let mut names = HashSet::from([METADATA]);
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name)) {
        return Err(refused("tensors", format!("names that differ, none of them {METADATA}, got `{name}`")));
    }
    let texts: BTreeMap<_, _> = metadata.iter().copied().collect();
    if texts.len() != metadata.len() {
        return Err(refused("metadata", "keys that differ".into()));
    }
    let mut order: Vec<_> = tensors.to_vec();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));
    let text = json(&order, &texts).map_err(|e| refused("tensors", e.to_string()))?;
    let padded = (8 + text.len()).next_multiple_of(ALIGNMENT) - 8;
    if padded as u64 > LONGEST {
        return Err(refused("tensors", format!("a header of at most {LONGEST} bytes, got {padded}")));
    }
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(text);
    header.resize(8 + padded, b' ');
    Ok((header, order.into_iter().map(|(_, tensor)| tensor).collect()))
}

fn json(tensors: &[(&str, &Tensor)], texts: &BTreeMap<&str, &str>) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let mut map = serializer.serialize_map(None)?;
    if !texts.is_empty() {
        map.serialize_entry(METADATA, texts)?;
    }
    let mut start = 0;
    for (name, tensor) in tensors {
        let end = start + tensor.spec().bytes() as u64;
        let (dtype, ..) = DTYPES.iter().find(|(.., dtype)| *dtype == Some(tensor.dtype())).expect("the table has each");
        let shape = tensor.shape().dims().iter().map(|&d| d as u64).collect();
        map.serialize_entry(name, &RawEntry { dtype: dtype.to_string(), shape, data_offsets: [start, end] })?;
        start = end;
    }
    map.end()?;
    Ok(text)
}

fn refused(argument: &'static str, expected: String) -> Error {
    Error::argument("safetensors::write", argument, expected)
}
