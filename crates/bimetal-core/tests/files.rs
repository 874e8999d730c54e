//! Files written by NumPy and the Python `safetensors` package (tests/data/make.py), and round trips through ours.

use bimetal_core::io::safetensors::Archive;
use bimetal_core::io::{npy, npz, safetensors};
use bimetal_core::{DType, Error, Tensor};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A path that no other test uses, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("bimetal-files-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What every fixture of one dtype holds.
fn grid(dtype: DType) -> Vec<f64> {
    if dtype == DType::Bool { vec![0.0, 1.0, 1.0, 1.0, 0.0, 1.0] } else { vec![0.0, 1.0, 2.0, 3.0, 100.0, 7.0] }
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    a.spec() == b.spec() && a.host_bytes() == b.host_bytes()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, format: &str, phrase: &str) {
    match result {
        Err(Error::Format { format: f, reason }) if f == format && reason.contains(phrase) => {}
        other => panic!("expected a {format} error with `{phrase}`, got {other:?}"),
    }
}

const NPY: [(&str, DType); 9] = [
    ("f2", DType::F16),
    ("f4", DType::F32),
    ("f8", DType::F64),
    ("i1", DType::I8),
    ("u1", DType::U8),
    ("i4", DType::I32),
    ("u4", DType::U32),
    ("i8", DType::I64),
    ("b1", DType::Bool),
];

#[test]
fn numpys_files_are_read_in_both_byte_orders() {
    for (name, dtype) in NPY {
        let x = npy::read(data(&format!("{name}.npy"))).unwrap();
        assert_eq!((x.dtype(), x.shape().dims()), (dtype, &[2, 3][..]), "{name}");
        assert_eq!(x.to_f64_vec().unwrap(), grid(dtype), "{name}");
        if dtype.size() > 1 {
            assert!(same(&npy::read(data(&format!("{name}_big.npy"))).unwrap(), &x), "{name}");
        }
    }
    for version in ["version2.npy", "version3.npy"] {
        assert_eq!(npy::read(data(version)).unwrap().to_f64_vec().unwrap(), grid(DType::F32));
    }
    assert_eq!(npy::read(data("scalar.npy")).unwrap().to_vec::<f32>().unwrap(), [2.5]);
    assert_eq!(npy::read(data("empty.npy")).unwrap().shape().dims(), [0, 3]);
    let special = npy::read(data("vector.npy")).unwrap().to_vec::<f64>().unwrap();
    assert!(special[0] == -1.5 && special[1] == f64::INFINITY && special[2].is_nan() && special[3].is_sign_negative());
}

#[test]
fn numpys_fortran_order_is_transposed() {
    let x = npy::read(data("fortran.npy")).unwrap();
    assert_eq!(x.shape().dims(), [2, 3, 4]);
    assert_eq!(x.to_vec::<i32>().unwrap(), (0..24).collect::<Vec<_>>());
    let y = npy::read(data("fortran_big.npy")).unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn npy_files_are_written_byte_for_byte_as_numpy_does() {
    for name in NPY.map(|(name, _)| name).into_iter().chain(["scalar", "empty", "vector"]) {
        let path = data(&format!("{name}.npy"));
        assert_eq!(npy::to_bytes(&npy::read(&path).unwrap()).unwrap(), std::fs::read(&path).unwrap(), "{name}");
    }
}

#[test]
fn dtypes_that_tensors_do_not_have_are_refused() {
    for (name, phrase) in [("bf16", "V2"), ("complex", "'<c16'"), ("object", "'|O'"), ("structured", "structured")] {
        refused(npy::read(data(&format!("{name}.npy"))), "npy", phrase);
        refused(npy::read(data(&format!("{name}.npy"))), "npy", &format!("{name}.npy"));
    }
    let archive = Archive::open(data("foreign.safetensors")).unwrap();
    assert_eq!(archive.tensor("loadable").unwrap().to_vec::<f32>().unwrap(), [1.0]);
    refused(archive.tensor("wide"), "safetensors", "U64");
    refused(archive.spec("fp8"), "safetensors", "F8_E4M3");
    let fp8 = archive.entries().iter().find(|e| e.name == "fp8").unwrap();
    assert_eq!((fp8.dtype, &fp8.shape[..], fp8.bytes()), ("F8_E4M3", &[1][..], 1));
}

#[test]
fn numpys_archives_are_read_stored_and_compressed() {
    let stored = npz::read(data("stored.npz")).unwrap();
    let names: Vec<_> = stored.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["weight", "bias", "scalar"]);
    assert_eq!(stored[0].1.to_f64_vec().unwrap(), grid(DType::F32));
    assert_eq!(stored[1].1.to_vec::<i64>().unwrap(), [0, 1, 2]);
    assert_eq!(stored[2].1.to_vec::<bool>().unwrap(), [true]);
    let compressed = npz::read(data("compressed.npz")).unwrap();
    for ((a, x), (b, y)) in stored.iter().zip(&compressed) {
        assert!(a == b && same(x, y));
    }
    assert_eq!(compressed[3].1.to_vec::<f32>().unwrap(), [0.0; 4000]);
    assert_eq!(npz::read(data("positional.npz")).unwrap()[0].0, "arr_0");
}

#[test]
fn npz_round_trips_every_dtype() {
    let tensors: Vec<_> = NPY.map(|(n, d)| (n, Tensor::from_f64(&grid(d), &[3, 2], d).unwrap())).into();
    let borrowed: Vec<_> = tensors.iter().map(|(n, t)| (*n, t)).collect();
    let scratch = Scratch::new("all.npz");
    npz::write(&scratch.0, &borrowed).unwrap();
    let back = npz::read(&scratch.0).unwrap();
    assert_eq!(back.len(), tensors.len());
    for ((n, x), (m, y)) in tensors.iter().zip(&back) {
        assert!(n == m && same(x, y));
    }
}

#[test]
fn damaged_archives_are_errors() {
    let stored = std::fs::read(data("stored.npz")).unwrap();
    for len in 0..stored.len() {
        refused(npz::from_bytes(&stored[..len]), "npz", "");
    }
    // An element of the first member: only its checksum knows.
    let at = stored.windows(4).position(|w| w == 100f32.to_le_bytes()).unwrap();
    let mut flipped = stored.clone();
    flipped[at] ^= 1;
    refused(npz::from_bytes(&flipped), "npz", "member `weight.npy`");
    refused(npz::from_bytes(b"PK\x05\x06"), "npz", "");
    refused(npz::from_bytes(&[]), "npz", "");
}

/// The archive's directory with every 32-bit size `from` replaced by `to`.
fn resized(mut archive: Vec<u8>, from: u32, to: u32) -> Vec<u8> {
    let directory = archive.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for i in directory..archive.len() - 4 {
        if archive[i..i + 4] == from.to_le_bytes() {
            archive[i..i + 4].copy_from_slice(&to.to_le_bytes());
        }
    }
    archive
}

#[test]
fn zip_bombs_are_refused_before_they_unfold() {
    let bytes = std::fs::read(data("compressed.npz")).unwrap();
    refused(npz::read_within(data("compressed.npz"), 16_000), "npz", "limit is 16000");
    assert_eq!(npz::read_within(data("compressed.npz"), 17_000).unwrap().len(), 4);
    // More than deflate can make of its input, then one byte less than it does make.
    refused(npz::from_bytes(&resized(bytes.clone(), 16_128, 3_000_000_000)), "npz", "cannot make");
    refused(npz::from_bytes(&resized(bytes, 16_128, 16_127)), "npz", "member `zeros.npy`");
}

#[test]
fn safetensors_from_python_are_read_from_every_source() {
    let path = data("all.safetensors");
    // SAFETY: nobody changes the fixtures.
    let mapped = unsafe { Archive::map(&path) }.unwrap();
    let memory = Archive::from_bytes(std::fs::read(&path).unwrap()).unwrap();
    for archive in [&Archive::open(&path).unwrap(), &mapped, &memory] {
        assert_eq!(archive.metadata()["name"], "Müller\n");
        assert_eq!(archive.entries().len(), 10);
        for dtype in DType::ALL {
            let name = dtype.name().to_uppercase();
            assert_eq!(archive.spec(&name).unwrap().dtype, dtype);
            let x = archive.tensor(&name).unwrap();
            assert_eq!((x.dtype(), x.shape().dims()), (dtype, &[2, 3][..]));
            assert_eq!(x.to_f64_vec().unwrap(), grid(dtype), "{dtype}");
        }
        assert!(matches!(archive.tensor("absent"), Err(Error::Argument { argument: "name", .. })));
    }
    let small = Archive::open(data("small.safetensors")).unwrap();
    assert_eq!(small.tensor("scalar").unwrap().to_vec::<f32>().unwrap(), [4.0]);
    assert_eq!(small.tensor("empty").unwrap().shape().dims(), [2, 0]);
}

#[test]
fn writing_into_a_mapped_tensor_changes_neither_file_nor_sibling() {
    let scratch = Scratch::new("mapped.safetensors");
    let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0], &[3]).unwrap();
    safetensors::write(&scratch.0, &[("x", &x)], &[]).unwrap();
    // SAFETY: only this test knows the file, and leaves it alone.
    let archive = unsafe { Archive::map(&scratch.0) }.unwrap();
    let mut mine = archive.tensor("x").unwrap();
    mine.as_mut_slice::<f32>().unwrap()[1] = 9.0;
    let slice = archive.tensor("x").unwrap().slice(1..3).unwrap();
    drop(archive);
    assert_eq!(mine.to_vec::<f32>().unwrap(), [1.0, 9.0, 3.0]);
    assert_eq!(slice.to_vec::<f32>().unwrap(), [2.0, 3.0]);
    assert!(same(&Archive::open(&scratch.0).unwrap().tensor("x").unwrap(), &x));
}

#[test]
fn safetensors_round_trip_every_dtype_and_align_it() {
    let dims: [&[usize]; 4] = [&[], &[5], &[3, 7], &[0, 2]];
    let mut tensors = Vec::new();
    for (i, dtype) in DType::ALL.into_iter().rev().enumerate() {
        let dims = dims[i % 4];
        let values: Vec<f64> = (0..dims.iter().product::<usize>()).map(|i| i as f64).collect();
        tensors.push((format!("layer.\"{i}\"\u{0}.é"), Tensor::from_f64(&values, dims, dtype).unwrap()));
    }
    let borrowed: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let scratch = Scratch::new("all.safetensors");
    safetensors::write(&scratch.0, &borrowed, &[("b", "2"), ("a", "\u{1f4a9}")]).unwrap();
    assert_eq!(
        std::fs::read(&scratch.0).unwrap(),
        safetensors::to_bytes(&borrowed, &[("a", "\u{1f4a9}"), ("b", "2")]).unwrap()
    );
    // SAFETY: only this test knows the file, and leaves it alone.
    let archive = unsafe { Archive::map(&scratch.0) }.unwrap();
    assert_eq!(archive.metadata()["a"], "\u{1f4a9}");
    for (name, tensor) in &tensors {
        let back = archive.tensor(name).unwrap();
        assert!(same(tensor, &back), "{tensor:?}");
        assert!((back.host_bytes().unwrap().as_ptr() as usize).is_multiple_of(tensor.dtype().size()));
    }
}

/// A file with this header text and `data` zeros.
fn archive(text: &str, data: usize) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn safetensors_headers_that_lie_are_errors() {
    let f4 = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    let one = |offsets: &str| format!(r#"{{"x":{}}}"#, f4(offsets));
    let two = |a: &str, x: &str, b: &str, y: &str| format!(r#"{{"{a}":{},"{b}":{}}}"#, f4(x), f4(y));
    let of = |dtype: &str, shape: &str, end: u64| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    assert!(Archive::from_bytes(archive(&one("[0,8]"), 8)).is_ok());
    // The order of the names is free.
    assert!(Archive::from_bytes(archive(&two("a", "[8,16]", "b", "[0,8]"), 16)).is_ok());
    for (text, data, phrase) in [
        (one("[0,8]"), 7, "take 8 bytes, 7 follow"),
        (one("[0,8]"), 9, "take 8 bytes, 9 follow"),
        (one("[0,12]"), 12, "takes 64 bits"),
        (one("[8,0]"), 8, "takes 64 bits"),
        (one("[8,16]"), 16, "hole"),
        (one("[0]"), 8, "header"),
        (one("[-8,0]"), 8, "header"),
        (one("[0,8.5]"), 8, "header"),
        (two("a", "[0,8]", "b", "[4,12]"), 12, "overlaps"),
        (two("a", "[0,8]", "b", "[0,8]"), 8, "overlaps"),
        (two("a", "[0,8]", "b", "[16,24]"), 24, "hole"),
        (two("a", "[0,8]", "a", "[8,16]"), 16, "stands twice"),
        (of("F33", "[2]", 8), 8, "unknown dtype"),
        (of("F4", "[3]", 1), 1, "12 bits"),
        (of("F32", "[4294967296,4294967296,4294967296]", 8), 8, "overflows"),
        (of("F32", "[0,4294967296,4294967296,4294967296]", 0), 0, "overflows"),
        (of("U8", "[1099511627776]", 1 << 40), 8, "8 follow"),
        (of("F32", "[18446744073709551616]", 8), 8, "header"),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0, "header"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, "stands twice"),
        (r#"{"x":{"dtype":"F32","shape":[2]}}"#.into(), 8, "data_offsets"),
        (" {}".into(), 0, "begin"),
        ("[]".into(), 0, "begin"),
        ("{} x".into(), 0, "header"),
        (String::new(), 0, "begin"),
        ("{\"x\":".repeat(10_000), 0, "header"),
    ] {
        let short = &text[..text.len().min(120)];
        match Archive::from_bytes(archive(&text, data)) {
            Err(Error::Format { format: "safetensors", reason }) => {
                assert!(reason.contains(phrase), "{short}: {reason}")
            }
            other => panic!("{short}: {other:?}"),
        }
    }
    let mut latin = archive(&one("[0,8]"), 8);
    latin[10] = 0xe9;
    refused(Archive::from_bytes(latin), "safetensors", "header");
    refused(Archive::from_bytes(u64::MAX.to_le_bytes().to_vec()), "safetensors", "at most");
    refused(Archive::from_bytes(99_000_000u64.to_le_bytes().to_vec()), "safetensors", "truncated");
    // A rank or a dtype that only the format has does not keep the other tensors from loading.
    let deep = Archive::from_bytes(archive(&of("U8", "[1,1,1,1,1,1,1,1,1]", 1), 1)).unwrap();
    refused(deep.tensor("x"), "safetensors", "dimensions");
    let mut truth = archive(&of("BOOL", "[3]", 3), 3);
    *truth.last_mut().unwrap() = 2;
    refused(Archive::from_bytes(truth).unwrap().tensor("x"), "safetensors", "truth value 2");
}

#[test]
fn every_truncated_safetensors_file_is_an_error() {
    let whole = std::fs::read(data("all.safetensors")).unwrap();
    for len in 0..whole.len() {
        refused(Archive::from_bytes(whole[..len].to_vec()), "safetensors", "");
    }
}

#[test]
fn a_file_shortened_after_opening_is_an_error() {
    let scratch = Scratch::new("shortened.safetensors");
    let x = Tensor::zeros(&[1000], DType::F32).unwrap();
    safetensors::write(&scratch.0, &[("x", &x)], &[]).unwrap();
    let archive = Archive::open(&scratch.0).unwrap();
    std::fs::OpenOptions::new().write(true).open(&scratch.0).unwrap().set_len(500).unwrap();
    refused(archive.tensor("x"), "safetensors", "truncated");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_no_other() {
    let folder = Scratch::new("folder");
    std::fs::create_dir(&folder.0).unwrap();
    let path = folder.0.join("x.npz");
    let good = Tensor::from_slice(&[1u8, 2], &[2]).unwrap();
    npz::write(&path, &[("good", &good)]).unwrap();
    let bf16 = Tensor::zeros(&[2], DType::BF16).unwrap();
    let error = npz::write(&path, &[("good", &good), ("bad", &bf16)]).unwrap_err();
    assert!(matches!(error, Error::DType { got: DType::BF16, .. }), "{error}");
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["x.npz"]);
    assert!(same(&npz::read(&path).unwrap()[0].1, &good));
    assert!(matches!(npy::write(&folder.0, &good), Err(Error::Io { .. })));
    assert!(matches!(npy::read(&folder.0), Err(Error::Io { .. })));
    std::fs::remove_dir_all(&folder.0).unwrap();
}
