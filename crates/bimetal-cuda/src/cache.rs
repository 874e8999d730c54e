//! Compiled kernels on disk.
//!
//! An entry is a file named by the hash of everything that the machine code depends on. It carries its own length and
//! checksum: what does not match is compiled again. Files are written under another name and renamed, so that processes
//! may share the folder. The oldest go when the folder has outgrown its bound.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

const MAGIC: &[u8; 8] = b"bimetal1";

/// Bytes that the folder may hold.
const BOUND: u64 = 512 << 20;

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's cache folder, unless `BIMETAL_KERNEL_CACHE` names another or is empty for none.
    pub fn of_user() -> Self {
        let folder = match std::env::var_os("BIMETAL_KERNEL_CACHE") {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => user_folder().map(|p| p.join("bimetal").join("kernels")),
        };
        Self { folder }
    }

    #[cfg(test)]
    fn at(folder: &Path) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// The machine code of `key`, if a whole entry is there.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let bytes = fs::read(&path).ok()?;
        let code = decode(&bytes, key);
        if code.is_none() {
            // Never trusted, and not worth reading again.
            let _ = fs::remove_file(path);
        }
        code
    }

    /// Keeps the machine code of `key`. A folder that cannot be written costs the next process its time, nothing else.
    pub fn put(&self, key: &[u8], code: &[u8]) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(path) = self.path(key) else { return };
        let Some(folder) = path.parent() else { return };
        if fs::create_dir_all(folder).is_err() {
            return;
        }
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let partial = path.with_extension(format!("{}-{unique}.partial", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&partial)?;
            file.write_all(&encode(code, key))?;
            drop(file);
            fs::rename(&partial, &path)
        };
        if write().is_err() {
            let _ = fs::remove_file(&partial);
        }
        if unique.is_multiple_of(64) {
            shrink(folder, BOUND);
        }
    }

    fn path(&self, key: &[u8]) -> Option<PathBuf> {
        let (a, b) = (hash(key, 0), hash(key, 0x9e37_79b9_7f4a_7c15));
        Some(self.folder.as_ref()?.join(format!("{a:016x}{b:016x}.kernel")))
    }
}

/// The folder for what a user's programs may lose.
fn user_folder() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME").or_else(|| named("LOCALAPPDATA")).or_else(|| Some(named("HOME")?.join(".cache")))
}

/// An entry: magic, hash of the key, length and checksum of the code, code.
fn encode(code: &[u8], key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(code.len() + 32);
    bytes.extend_from_slice(MAGIC);
    for word in [hash(key, 1), code.len() as u64, hash(code, 2)] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(code);
    bytes
}

fn decode(bytes: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let (head, code) = bytes.split_at_checked(32)?;
    let word = |i: usize| head.get(8 * i..8 * i + 8)?.try_into().ok().map(u64::from_le_bytes);
    let whole = head.starts_with(MAGIC)
        && word(1)? == hash(key, 1)
        && word(2)? == code.len() as u64
        && word(3)? == hash(code, 2);
    whole.then(|| code.to_vec())
}

/// Removes the least recently written entries until the folder holds at most three quarters of `bound`.
fn shrink(folder: &Path, bound: u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter_map(|entry| {
            let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    let mut total: u64 = files.iter().map(|f| f.1).sum();
    if total <= bound {
        return;
    }
    files.sort();
    for (_, size, path) in files {
        if total <= bound / 4 * 3 {
            break;
        }
        // Another process may have been first.
        let _ = fs::remove_file(path);
        total -= size;
    }
}

/// A 64-bit hash that stays the same between builds: multiply and fold over eight bytes at a time.
pub(crate) fn hash(bytes: &[u8], seed: u64) -> u64 {
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        (wide as u64) ^ (wide >> 64) as u64
    };
    let mut state = seed ^ 0xa076_1d64_78bd_642f;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = fold(state ^ u64::from_le_bytes(word), 0xe703_7ed1_a0b4_28db);
    }
    fold(state ^ bytes.len() as u64, 0x8ebc_6af0_9c88_c6e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("bimetal-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn gives_back_what_was_put_and_nothing_else() {
        let folder = folder("roundtrip");
        let cache = Cache::at(&folder);
        assert_eq!(cache.get(b"one"), None);
        cache.put(b"one", b"code of one");
        assert_eq!(cache.get(b"one").as_deref(), Some(&b"code of one"[..]));
        assert_eq!(cache.get(b"two"), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let folder = folder("corrupt");
        let cache = Cache::at(&folder);
        cache.put(b"key", b"some machine code");
        let path = cache.path(b"key").unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(cache.get(b"key"), None, "cut at {cut}");
            assert!(!path.exists());
        }
        for i in 0..whole.len() {
            let mut changed = whole.clone();
            changed[i] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert_eq!(cache.get(b"key"), None, "byte {i}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_oldest_go_first() {
        let folder = folder("bound");
        let cache = Cache::at(&folder);
        for i in 0..8u8 {
            cache.put(&[i], &[i; 100]);
            let when = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + u64::from(i));
            fs::File::options().write(true).open(cache.path(&[i]).unwrap()).unwrap().set_modified(when).unwrap();
        }
        shrink(&folder, 800);
        assert!(cache.get(&[0]).is_none() && cache.get(&[7]).is_some());
        let total: u64 = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 600, "{total}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn threads_that_write_one_entry_leave_a_whole_one() {
        let folder = folder("threads");
        let cache = Cache::at(&folder);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        cache.put(b"shared", &[7; 10_000]);
                        if let Some(code) = cache.get(b"shared") {
                            assert_eq!(code, [7; 10_000]);
                        }
                    }
                });
            }
        });
        assert_eq!(cache.get(b"shared").as_deref(), Some(&[7; 10_000][..]));
        fs::remove_dir_all(folder).unwrap();
    }
}
