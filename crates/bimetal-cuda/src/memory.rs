//! Device memory: a table of allocations, and for each stream pools that hand freed blocks out again in stream order.
//!
//! CubeCL counts references to an allocation and tells nobody when the last goes, so the table is searched for such
//! allocations, and only when a pool has no block that fits: first those made since the last search, which are the likely
//! ones, then all.

use crate::context::Context;
use crate::device::ALIGNMENT;
use crate::driver::{Failure, check};
use cubecl_runtime::memory_management::{ManagedMemoryBinding, ManagedMemoryHandle, MemoryLocation};
use cudarc::driver::sys;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

/// Requests up to this size share segments of [`SMALL_SEGMENT`].
const SMALL: u64 = 1 << 20;
const SMALL_SEGMENT: u64 = 8 << 20;
/// Requests above [`SMALL`] and up to this size share segments of [`LARGE_SEGMENT`]; larger ones have their own.
const LARGE: u64 = 16 << 20;
const LARGE_SEGMENT: u64 = 64 << 20;
/// Segments of their own are multiples of this.
const GRANULE: u64 = 2 << 20;

/// What a device's memory holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// In tensors that are alive, or were when the pools last looked.
    pub in_use: u64,
    /// The most that `in_use` has been since the start or the last reset.
    pub peak: u64,
    /// Taken from the driver.
    pub reserved: u64,
    /// The most that `reserved` has been since the start or the last reset.
    pub peak_reserved: u64,
}

/// What keeps memory alive that someone else allocated.
pub(crate) type Owner = Box<dyn Any + Send>;

/// One allocation.
struct Slot {
    /// Ours among the references to it; none for a free slot.
    handle: Option<ManagedMemoryHandle>,
    address: u64,
    size: u64,
    stream: u16,
    /// Of memory that someone else allocated.
    owner: Option<Owner>,
}

/// Every allocation of a device.
#[derive(Default)]
pub(crate) struct Memory {
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// Slots filled since the last search.
    young: Vec<u32>,
    /// Slots filled since the last search of all.
    since_full: usize,
    pools: Vec<Pool>,
    /// Scratch memory of libraries, one piece for each stream that has used it.
    workspaces: Vec<Option<ManagedMemoryHandle>>,
    /// Allocations that were freed since [`Memory::take_freed`].
    freed: Vec<usize>,
    /// Slots of memory that someone else allocated.
    foreign: Vec<u32>,
    /// Owners of such memory that nobody refers to any more, with the stream that worked on it.
    leaving: Vec<(usize, Owner)>,
    report: MemoryReport,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Memory {
    /// Gives `handle` memory of at least `size` bytes from the pools of `stream`.
    ///
    /// # Errors
    /// A device whose memory does not suffice after every pool was trimmed.
    pub fn reserve(&mut self, handle: ManagedMemoryHandle, size: u64, stream: usize) -> Result<(), Failure> {
        let wanted = size.max(1).next_multiple_of(ALIGNMENT);
        while self.pools.len() <= stream {
            self.pools.push(Pool::default());
        }
        let (address, size) = self.find(wanted, stream)?;
        self.report.in_use += size;
        self.report.peak = self.report.peak.max(self.report.in_use);
        let slot = Slot { handle: Some(handle), address, size, stream: stream as u16, owner: None };
        self.fill(slot);
        Ok(())
    }

    /// Gives `handle` memory that `owner` keeps alive; [`Memory::take_leaving`] has it after the last reference has gone.
    pub fn adopt(&mut self, handle: ManagedMemoryHandle, address: u64, size: u64, stream: usize, owner: Owner) {
        self.search_foreign();
        let index = self.fill(Slot { handle: Some(handle), address, size, stream: stream as u16, owner: Some(owner) });
        self.foreign.push(index);
    }

    /// The owners whose memory is no longer referred to, with the stream whose work on it must run first.
    pub fn take_leaving(&mut self) -> Vec<(usize, Owner)> {
        if !self.foreign.is_empty() {
            self.search_foreign();
        }
        std::mem::take(&mut self.leaving)
    }

    fn search_foreign(&mut self) {
        for index in std::mem::take(&mut self.foreign) {
            self.release_if_unused(index);
            if self.slots[index as usize].owner.is_some() {
                self.foreign.push(index);
            }
        }
    }

    /// The address of at least `size` bytes of scratch memory for libraries on `stream`; work in stream order shares it.
    ///
    /// # Errors
    /// A device whose memory does not suffice.
    pub fn workspace(&mut self, stream: usize, size: u64) -> Result<u64, Failure> {
        if self.workspaces.len() <= stream {
            self.workspaces.resize(stream + 1, None);
        }
        let held = self.workspaces[stream].clone().and_then(|handle| self.resolve(&handle.binding()));
        if let Some((address, ..)) = held.filter(|held| held.1 >= size) {
            return Ok(address);
        }
        let handle = ManagedMemoryHandle::new();
        self.reserve(handle.clone(), size, stream)?;
        self.workspaces[stream] = Some(handle.clone());
        let reserved = self.resolve(&handle.binding());
        reserved.map(|found| found.0).ok_or_else(|| Failure::new("workspace", "the memory was not reserved"))
    }

    fn fill(&mut self, slot: Slot) -> u32 {
        let index = self.free_slots.pop().unwrap_or(self.slots.len() as u32);
        if let Some(handle) = &slot.handle {
            handle.descriptor().update_location(MemoryLocation::new(0, slot.stream, index));
        }
        if index as usize == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[index as usize] = slot;
        }
        self.young.push(index);
        self.since_full += 1;
        index
    }

    /// A free block: from the pool, from tensors that have gone, or from the driver.
    fn find(&mut self, wanted: u64, stream: usize) -> Result<(u64, u64), Failure> {
        if let Some(block) = self.pools[stream].take(wanted) {
            return Ok(block);
        }
        self.search_young();
        if let Some(block) = self.pools[stream].take(wanted) {
            return Ok(block);
        }
        // A search of all pays when enough has happened since the last, or when a driver call would be dear.
        if wanted > SMALL || self.since_full * 4 >= self.slots.len() {
            self.search();
            if let Some(block) = self.pools[stream].take(wanted) {
                return Ok(block);
            }
        }
        match self.grow(wanted, stream) {
            Err(failure) if failure.out_of_memory => {
                self.search();
                self.trim()?;
                if let Some(block) = self.pools[stream].take(wanted) {
                    return Ok(block);
                }
                self.grow(wanted, stream)?;
            }
            grown => grown?,
        }
        self.pools[stream]
            .take(wanted)
            .ok_or_else(|| Failure::new("cuMemAlloc", "the new segment has no block that fits"))
    }

    /// Takes a segment from the driver.
    fn grow(&mut self, wanted: u64, stream: usize) -> Result<(), Failure> {
        let size = if wanted <= SMALL {
            SMALL_SEGMENT
        } else if wanted <= LARGE {
            LARGE_SEGMENT
        } else {
            wanted.next_multiple_of(GRANULE)
        };
        let mut address = 0;
        let mut allocate = |size| {
            // SAFETY: the driver writes the address into a local.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, size as usize) })
        };
        let size = match allocate(size) {
            // A nearly full device may still have what is wanted, without room to share.
            Err(failure) if failure.out_of_memory && size > wanted => allocate(wanted).map(|()| wanted)?,
            allocated => allocated.map(|()| size)?,
        };
        self.report.reserved += size;
        self.report.peak_reserved = self.report.peak_reserved.max(self.report.reserved);
        self.pools[stream].add_segment(address, size);
        Ok(())
    }

    /// Frees the young allocations that nobody refers to; the others are no longer young.
    fn search_young(&mut self) {
        for index in std::mem::take(&mut self.young) {
            self.release_if_unused(index);
        }
    }

    /// Frees every allocation that nobody refers to.
    pub fn search(&mut self) {
        self.young.clear();
        self.since_full = 0;
        for index in 0..self.slots.len() as u32 {
            self.release_if_unused(index);
        }
    }

    fn release_if_unused(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.handle.as_ref().is_some_and(ManagedMemoryHandle::is_free) {
            return;
        }
        let Some(handle) = slot.handle.take() else { return };
        self.freed.push(handle.binding().id().value);
        match slot.owner.take() {
            Some(owner) => self.leaving.push((slot.stream as usize, owner)),
            None => {
                self.report.in_use -= slot.size;
                self.pools[slot.stream as usize].put(slot.address);
            }
        }
        self.free_slots.push(index);
    }

    /// The ids of allocations freed since the last call.
    pub fn take_freed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.freed)
    }

    /// Returns segments that hold nothing to the driver, which waits for the work on them.
    ///
    /// # Errors
    /// A fault of that work.
    pub fn trim(&mut self) -> Result<(), Failure> {
        for pool in &mut self.pools {
            for (address, size) in pool.empty_segments() {
                // SAFETY: the segment came from cuMemAlloc and no block of it is in use; the driver waits for pending work.
                check("cuMemFree", unsafe { sys::cuMemFree_v2(address) })?;
                self.report.reserved -= size;
            }
        }
        Ok(())
    }

    /// The address, size and stream of an allocation, or none for memory that was never reserved.
    pub fn resolve(&self, memory: &ManagedMemoryBinding) -> Option<(u64, u64, usize)> {
        let location = memory.descriptor().location();
        let slot = self.slots.get(location.slice as usize).filter(|_| location.init != 0)?;
        Some((slot.address, slot.size, slot.stream as usize))
    }

    pub fn report(&self) -> MemoryReport {
        self.report
    }

    /// Starts new peaks at what is held now.
    pub fn reset_peak(&mut self) {
        self.report.peak = self.report.in_use;
        self.report.peak_reserved = self.report.reserved;
    }
}

/// The blocks of one stream, each in a segment from the driver.
#[derive(Default)]
struct Pool {
    /// Every block by address.
    blocks: BTreeMap<u64, Block>,
    /// Free blocks by kind of segment, size and address.
    free: BTreeSet<(Kind, u64, u64)>,
}

#[derive(Clone, Copy)]
struct Block {
    size: u64,
    /// Where its segment starts, and the segment's size.
    segment: (u64, u64),
    used: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Small,
    Large,
    Own,
}

fn kind_of_segment(size: u64) -> Kind {
    if size <= SMALL_SEGMENT {
        Kind::Small
    } else if size <= LARGE_SEGMENT {
        Kind::Large
    } else {
        Kind::Own
    }
}

impl Pool {
    fn add_segment(&mut self, address: u64, size: u64) {
        self.blocks.insert(address, Block { size, segment: (address, size), used: false });
        self.free.insert((kind_of_segment(size), size, address));
    }

    /// The smallest free block that fits, split where the rest is worth keeping.
    fn take(&mut self, wanted: u64) -> Option<(u64, u64)> {
        let kinds: &[Kind] = if wanted <= SMALL {
            &[Kind::Small, Kind::Large]
        } else if wanted <= LARGE {
            &[Kind::Large, Kind::Small]
        } else {
            &[Kind::Own, Kind::Large, Kind::Small]
        };
        let (kind, size, address) = kinds.iter().find_map(|&kind| {
            let from = self.free.range((kind, wanted, 0)..).next().filter(|found| found.0 == kind)?;
            // A segment of its own serves requests of about its size, so that it is not split to pieces by small ones.
            let fits = kind != Kind::Own || from.1 - wanted <= wanted / 4;
            fits.then_some(*from)
        })?;
        self.free.remove(&(kind, size, address));
        let block = self.blocks.get_mut(&address)?;
        block.used = true;
        let rest = size - wanted;
        if kind == Kind::Own || rest < ALIGNMENT {
            return Some((address, size));
        }
        block.size = wanted;
        let segment = block.segment;
        self.blocks.insert(address + wanted, Block { size: rest, segment, used: false });
        self.free.insert((kind, rest, address + wanted));
        Some((address, wanted))
    }

    /// Frees a block and joins it with free neighbours of its segment.
    fn put(&mut self, address: u64) {
        let Some(&Block { mut size, segment, .. }) = self.blocks.get(&address) else { return };
        let kind = kind_of_segment(segment.1);
        let mut start = address;
        let mergeable = |block: &Block| !block.used && block.segment == segment;
        if let Some((&next, &block)) = self.blocks.range(address + 1..).next().filter(|(_, b)| mergeable(b)) {
            self.blocks.remove(&next);
            self.free.remove(&(kind, block.size, next));
            size += block.size;
        }
        if let Some((&before, &block)) = self.blocks.range(..address).next_back().filter(|(_, b)| mergeable(b)) {
            self.blocks.remove(&address);
            self.free.remove(&(kind, block.size, before));
            start = before;
            size += block.size;
        }
        self.blocks.insert(start, Block { size, segment, used: false });
        self.free.insert((kind, size, start));
    }

    /// Takes out the segments that are free as a whole.
    fn empty_segments(&mut self) -> Vec<(u64, u64)> {
        let empty: Vec<_> =
            self.blocks.iter().filter(|(_, b)| !b.used && b.size == b.segment.1).map(|(_, b)| b.segment).collect();
        for &(address, size) in &empty {
            self.blocks.remove(&address);
            self.free.remove(&(kind_of_segment(size), size, address));
        }
        empty
    }
}

/// Memory of the host that the device copies to and from at full speed.
pub(crate) fn pinned(context: Context, bytes: usize) -> Result<Pinned, Failure> {
    context.enter()?;
    let mut address = std::ptr::null_mut();
    // SAFETY: the driver writes the address into a local.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut address, bytes, 0) })?;
    Ok(Pinned { address: address.cast() })
}

/// A pinned buffer, kept by its owner for the life of the process or until dropped with the context current.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub address: *mut u8,
}

// SAFETY: the buffer is plain memory that one owner uses at a time.
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the address came from cuMemHostAlloc and is freed once; a failure leaves it to the process's end.
        let _ = unsafe { sys::cuMemFreeHost(self.address.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator with the usual constants: tests must not depend on a seed from outside.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn blocks_never_overlap_and_join_again() {
        let mut pool = Pool::default();
        pool.add_segment(1 << 30, SMALL_SEGMENT);
        pool.add_segment(1 << 40, LARGE_SEGMENT);
        let mut state = 7;
        let mut used: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..20_000 {
            if next(&mut state).is_multiple_of(2) {
                let wanted = (next(&mut state) % (3 * SMALL) + 1).next_multiple_of(ALIGNMENT);
                if let Some((address, size)) = pool.take(wanted) {
                    assert!(size >= wanted && address % ALIGNMENT == 0);
                    let before = used.range(..=address).next_back();
                    assert!(before.is_none_or(|(a, s)| a + s <= address), "overlaps the block before");
                    let after = used.range(address + 1..).next();
                    assert!(after.is_none_or(|(a, _)| address + size <= *a), "overlaps the block after");
                    used.insert(address, size);
                }
            } else if let Some(&address) = used.keys().nth(next(&mut state) as usize % used.len().max(1)) {
                used.remove(&address);
                pool.put(address);
            }
        }
        for address in used.into_keys() {
            pool.put(address);
        }
        let segments = pool.empty_segments();
        assert_eq!(segments, [(1 << 30, SMALL_SEGMENT), (1 << 40, LARGE_SEGMENT)]);
        assert!(pool.blocks.is_empty() && pool.free.is_empty());
    }

    #[test]
    fn a_segment_of_its_own_is_not_given_to_small_requests() {
        let mut pool = Pool::default();
        pool.add_segment(1 << 40, 1 << 30);
        assert!(pool.take(ALIGNMENT).is_none());
        assert!(pool.take(1 << 29).is_none());
        assert_eq!(pool.take((1 << 30) - ALIGNMENT), Some((1 << 40, 1 << 30)));
    }
}
