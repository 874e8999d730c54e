//! Mutated files: every parser must answer (with a tensor or an error) and stay within memory that the file justifies.
//!
//! Deterministic: `BIMETAL_FUZZ_SEED` (default 1) and the iteration name each file. `BIMETAL_FUZZ_SECONDS` (default 5)
//! is how long it runs; `fuzz/` holds the coverage-guided targets of the same parsers.

use bimetal_core::io::{npy, npz, safetensors};
use bimetal_core::{Tensor, trim_host_pool};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Counts this thread's live bytes and their peak.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is shutting down has no counters any more, and runs no parser.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of address space that the process has ever held at once, where the system says.
fn address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Npy,
    Npz,
    Safetensors,
}

impl Format {
    const ALL: [Self; 3] = [Self::Npy, Self::Npz, Self::Safetensors];

    /// Memory that a parser may hold for a file of `len` bytes: the file's data once or twice; for npz what deflate
    /// can make of it, and zlib's window; for safetensors the header as JSON and as entries.
    fn allowed(self, len: usize) -> usize {
        match self {
            Self::Npy => 4 * len + (16 << 10),
            Self::Npz => 1032 * len + (256 << 10),
            Self::Safetensors => 32 * len + (16 << 10),
        }
    }

    /// Parses, and where that succeeds writes and parses again: what was read must come back.
    fn run(self, bytes: &[u8]) -> Result<(), bimetal_core::Error> {
        match self {
            Self::Npy => {
                let tensor = npy::from_bytes(bytes)?;
                same(&tensor, &npy::from_bytes(&npy::to_bytes(&tensor)?)?);
            }
            Self::Npz => {
                let tensors = npz::from_bytes(bytes)?;
                let named: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
                // An archive may hold an array without a name, which is not written.
                if named.iter().all(|(name, _)| !name.is_empty()) {
                    for ((a, x), (b, y)) in tensors.iter().zip(npz::from_bytes(&npz::to_bytes(&named)?)?) {
                        assert_eq!(*a, b);
                        same(x, &y);
                    }
                }
            }
            Self::Safetensors => {
                let archive = safetensors::Archive::from_bytes(bytes.to_vec())?;
                let loaded = archive.names().map(|n| Ok((n, archive.tensor(n)?)));
                let tensors = loaded.collect::<Result<Vec<_>, bimetal_core::Error>>()?;
                let texts: Vec<_> = archive.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                let named: Vec<_> = tensors.iter().map(|(n, t)| (*n, t)).collect();
                let again = safetensors::Archive::from_bytes(safetensors::to_bytes(&named, &texts)?)?;
                assert_eq!(archive.metadata(), again.metadata());
                for (name, tensor) in named {
                    same(tensor, &again.tensor(name)?);
                }
            }
        }
        Ok(())
    }
}

#[track_caller]
fn same(a: &Tensor, b: &Tensor) {
    assert_eq!(a.spec(), b.spec());
    assert_eq!(a.host_bytes(), b.host_bytes());
}

/// The valid files that mutations start from: the fixtures.
fn seeds() -> Vec<(Format, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let format = |path: &PathBuf| match path.extension()?.to_str()? {
        "npy" => Some(Format::Npy),
        "npz" => Some(Format::Npz),
        "safetensors" => Some(Format::Safetensors),
        _ => None,
    };
    paths.iter().filter_map(|p| Some((format(p)?, std::fs::read(p).unwrap()))).collect()
}

const NUMBERS: [u64; 16] = [
    0,
    1,
    7,
    8,
    127,
    255,
    65_535,
    65_536,
    99_999_999,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

const WORDS: [&[u8]; 32] = [
    b"F32",
    b"F4",
    b"BOOL",
    b"U8",
    b"F6_E2M3",
    b"'<f4'",
    b"'>f8'",
    b"'|b1'",
    b"'|u1'",
    b"True",
    b"False",
    b"(",
    b")",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"'",
    b"__metadata__",
    b"-1",
    b"1e999",
    b"\\u0000",
    b"\xff\xfe",
    b"\0",
    b"18446744073709551616",
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
];

/// A number in the bytes' own notation.
fn hostile(random: &mut Random, len: usize) -> u64 {
    match random.below(4) {
        0 => (len as u64).wrapping_add(random.below(5) as u64).wrapping_sub(2),
        1 => random.next() >> random.below(64),
        _ => NUMBERS[random.below(NUMBERS.len())],
    }
}

/// One change of a file.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[(Format, Vec<u8>)]) {
    let at = random.below(bytes.len() + 1);
    let span = random.below(24);
    match random.below(10) {
        0 => {
            for _ in 0..1 + random.below(8) {
                if let Some(byte) = bytes.len().checked_sub(1).map(|last| random.below(last + 1)) {
                    bytes[byte] ^= 1 << random.below(8);
                }
            }
        }
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(at..(at + span).min(bytes.len()))),
        3 => {
            let copy = bytes[at..(at + span).min(bytes.len())].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        4 => {
            let other = &seeds[random.below(seeds.len())].1;
            let from = random.below(other.len());
            let part = other[from..(from + 1 + random.below(80)).min(other.len())].to_vec();
            let end = (at + random.below(part.len() + 1)).min(bytes.len());
            bytes.splice(at..end, part);
        }
        5 => {
            let number = hostile(random, bytes.len()).to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4)];
            // Half of them in the first bytes, where lengths and versions stand.
            let at = if random.below(2) == 0 { random.below(16) } else { at };
            for (to, from) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                *to = *from;
            }
        }
        6 | 7 => {
            // A number in text: the digits around a random digit.
            let digits: Vec<_> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
            if let Some(&digit) = digits.get(random.below(digits.len())) {
                let start = (0..digit).rev().find(|&i| !bytes[i].is_ascii_digit()).map_or(0, |i| i + 1);
                let end = (digit..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
                let text = hostile(random, bytes.len()).to_string();
                bytes.splice(start..end, text.bytes());
            }
        }
        8 => {
            let word = random.pick(&WORDS);
            let end = if random.below(2) == 0 { at } else { (at + word.len()).min(bytes.len()) };
            bytes.splice(at..end, word.iter().copied());
        }
        _ => {
            // The header's own length follows the change, so that parsing goes on behind it.
            let length = if bytes.starts_with(b"\x93NUMPY\x01") { 10 } else { 8 };
            if let Some(end) = bytes.iter().rposition(|&b| b == b'}') {
                let size = (end + 1).saturating_sub(length) as u64;
                let (from, width) = if length == 10 { (8, 2) } else { (0, 8) };
                for (to, from) in bytes[from..].iter_mut().zip(&size.to_le_bytes()[..width]) {
                    *to = *from;
                }
            }
        }
    }
}

/// A valid archive around members that need not be valid.
fn archive(random: &mut Random, members: &[Vec<u8>]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (i, member) in members.iter().enumerate() {
        let method = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated][random.below(2)];
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{i}.npy"), options).unwrap();
        zip.write_all(member).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The file of one iteration.
fn make(format: Format, random: &mut Random, seeds: &[(Format, Vec<u8>)]) -> Vec<u8> {
    let own = |format, random: &mut Random| {
        let own: Vec<_> = seeds.iter().filter(|(f, _)| *f == format).collect();
        own[random.below(own.len())].1.clone()
    };
    let changed = |format, random: &mut Random| {
        let mut bytes = own(format, random);
        for _ in 0..1 + random.below(4) {
            mutate(random, &mut bytes, seeds);
        }
        bytes
    };
    if format == Format::Npz && random.below(2) == 0 {
        let members: Vec<_> = (0..random.below(4)).map(|_| changed(Format::Npy, random)).collect();
        let mut bytes = archive(random, &members);
        if random.below(2) == 0 {
            mutate(random, &mut bytes, seeds);
        }
        return bytes;
    }
    changed(format, random)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

#[test]
fn every_parser_answers_whatever_the_file() {
    let (seconds, seed) = (setting("BIMETAL_FUZZ_SECONDS", 5), setting("BIMETAL_FUZZ_SEED", 1));
    let seeds = seeds();
    for (format, bytes) in &seeds {
        trim_host_pool();
        let _ = format.run(bytes);
    }
    let held = address_space();
    let start = Instant::now();
    let (mut runs, mut accepted, mut slowest, mut most) = ([0u64; 3], [0u64; 3], Duration::ZERO, [0.0f64; 3]);
    let mut iteration = 0u64;
    while start.elapsed() < Duration::from_secs(seconds) || iteration < 1000 {
        let which = (iteration % 3) as usize;
        let format = Format::ALL[which];
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ iteration);
        let bytes = make(format, &mut random, &seeds);
        // Pooled buffers were counted when they were made.
        trim_host_pool();
        PEAK.set(LIVE.get());
        let (before, begun) = (LIVE.get(), Instant::now());
        let outcome = catch_unwind(AssertUnwindSafe(|| format.run(&bytes)));
        slowest = slowest.max(begun.elapsed());
        let used = (PEAK.get() - before) as usize;
        let told = || {
            let path = std::env::temp_dir().join(format!("bimetal-fuzz-{seed}-{iteration}"));
            std::fs::write(&path, &bytes).unwrap();
            format!("{format:?}, seed {seed}, iteration {iteration}, saved as {}", path.display())
        };
        match outcome {
            Err(_) => panic!("a parser panicked: {}", told()),
            Ok(result) => accepted[which] += u64::from(result.is_ok()),
        }
        let allowed = format.allowed(bytes.len());
        assert!(used <= allowed, "{used} bytes of memory for a file of {}, allowed {allowed}: {}", bytes.len(), told());
        most[which] = most[which].max(used as f64 / allowed as f64);
        runs[which] += 1;
        iteration += 1;
    }
    // Large blocks are mapped past the allocator; nothing here justifies one.
    if let (Some(before), Some(after)) = (held, address_space()) {
        assert!(after < before + (64 << 20), "the address space grew by {} bytes", after - before);
    }
    println!("{iteration} executions in {:.1} s, slowest {slowest:?}", start.elapsed().as_secs_f64());
    for (i, format) in Format::ALL.iter().enumerate() {
        println!(
            "{format:?}: {}, of which {} accepted; {:.0}% of the memory bound",
            runs[i],
            accepted[i],
            most[i] * 100.0
        );
    }
    assert!(accepted.iter().all(|&n| n > 0), "no mutated file was accepted: the mutations are too coarse");
}
