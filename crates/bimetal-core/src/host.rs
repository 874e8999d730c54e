//! Host memory: 64-byte aligned buffers that return to a pool when the last tensor lets go of them.
//!
//! At ten million elements most of the time of an allocating call is page faults; a pooled buffer has its pages.

use memmap2::{Mmap, MmapMut};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Alignment of every host buffer but parts of mapped files, in bytes: a cache line, and an AVX-512 vector.
pub const ALIGNMENT: usize = 64;

/// Bytes that the pool keeps at most; beyond it a freed buffer goes back to the system.
const POOL_LIMIT: usize = 1 << 30;

/// Blocks from this size on are mapped straight from the system, with huge pages where it grants them.
const MAPPED: usize = 4 << 20;

/// Memory from one of the two sources, or a part of a file that is only read.
enum Block {
    Heap { ptr: NonNull<u8>, layout: Layout },
    Mapped(MmapMut),
    File { map: Arc<Mmap>, range: Range<usize> },
}

// SAFETY: a heap block is owned by whoever owns the value, as for a Box.
unsafe impl Send for Block {}
// SAFETY: shared references only read.
unsafe impl Sync for Block {}

impl Block {
    /// A zeroed block; `None` where the system has no memory for it.
    fn new(capacity: usize) -> Option<Self> {
        if capacity >= MAPPED
            && let Ok(map) = MmapMut::map_anon(capacity)
        {
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Some(Self::Mapped(map));
        }
        let layout = Layout::from_size_align(capacity, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self::Heap { ptr, layout })
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            // SAFETY: `alloc_zeroed` gave this many initialised bytes.
            Self::Heap { ptr, layout } => unsafe { std::slice::from_raw_parts(ptr.as_ptr(), layout.size()) },
            Self::Mapped(map) => map,
            Self::File { map, range } => &map[range.clone()],
        }
    }

    /// The bytes for writing; a file has none.
    fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match self {
            // SAFETY: as in `as_slice`, and the borrow is unique.
            Self::Heap { ptr, layout } => Some(unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), layout.size()) }),
            Self::Mapped(map) => Some(map),
            Self::File { .. } => None,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Self::Heap { ptr, layout } = self {
            // SAFETY: the pointer came from `alloc_zeroed` with this layout.
            unsafe { dealloc(ptr.as_ptr(), *layout) };
        }
    }
}

struct Pool {
    free: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), bytes: 0 });

/// An aligned block of initialised bytes.
pub(crate) struct HostBuffer {
    /// `None` only while dropping.
    block: Option<Block>,
    len: usize,
}

impl HostBuffer {
    /// A buffer of `len` bytes with unspecified but initialised contents; `None` where the system has no memory for it.
    pub fn new(len: usize) -> Option<Self> {
        let capacity = len.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let pooled = {
            let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
            let fit = pool.free.range(capacity..=capacity + capacity / 4).find(|(_, v)| !v.is_empty()).map(|(&c, _)| c);
            fit.and_then(|c| {
                let block = pool.free.get_mut(&c).and_then(Vec::pop)?;
                pool.bytes -= c;
                Some(block)
            })
        };
        Some(Self { block: Some(pooled.or_else(|| Block::new(capacity))?), len })
    }

    /// A part of a mapped file, which is never written through.
    pub fn file(map: Arc<Mmap>, range: Range<usize>) -> Self {
        Self { len: range.len(), block: Some(Block::File { map, range }) }
    }

    pub fn bytes(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |b| &b.as_slice()[..self.len])
    }

    /// The bytes for writing; `None` for a part of a file.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let len = self.len;
        self.block.as_mut().and_then(Block::as_mut_slice).map(|bytes| &mut bytes[..len])
    }

    /// The bytes for writing, unless they are shared or a part of a file.
    pub fn exclusive(buffer: &mut Arc<Self>) -> Option<&mut [u8]> {
        Arc::get_mut(buffer).and_then(Self::bytes_mut)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let Some(block) = self.block.take().filter(|block| !matches!(block, Block::File { .. })) else { return };
        let capacity = block.as_slice().len();
        let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
        if pool.bytes + capacity <= POOL_LIMIT {
            pool.bytes += capacity;
            pool.free.entry(capacity).or_default().push(block);
        }
    }
}

/// Gives every pooled host buffer back to the system; returns the bytes released.
pub fn trim_host_pool() -> usize {
    let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
    pool.free.clear();
    std::mem::take(&mut pool.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        for len in [100_003, MAPPED + 5] {
            let buffer = HostBuffer::new(len).unwrap();
            let address = buffer.bytes().as_ptr() as usize;
            assert_eq!(address % ALIGNMENT, 0);
            assert_eq!(buffer.bytes().len(), len);
            drop(buffer);
            let again: Vec<_> = (0..8).map(|_| HostBuffer::new(len).unwrap()).collect();
            assert!(again.iter().any(|b| b.bytes().as_ptr() as usize == address));
        }
        assert_eq!(HostBuffer::new(0).unwrap().bytes().len(), 0);
        assert!(HostBuffer::new(1 << 50).is_none() && HostBuffer::new(isize::MAX as usize).is_none());
    }
}
