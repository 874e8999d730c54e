//! Splitting work over threads, only where it pays: a call that one thread finishes in a few microseconds stays there.

use super::team;
use std::ops::Range;

/// Bytes of memory traffic per thread below which a second thread costs more than it saves.
pub const BYTES_PER_THREAD: usize = 64 << 10;

/// Memory traffic of a call from which its output is written past the caches: the last-level cache would not hold it
/// until it is read again, and an ordinary store first reads the line that it overwrites. A little more than the 32 MiB of
/// the machines here: a batch norm of 33.5 MB in all, inference, then runs at twice the rate of copies past the caches.
const STREAM_BYTES: usize = 40 << 20;

/// Whether a call that moves this many bytes should write past the caches.
pub fn streams(bytes: usize) -> bool {
    bytes >= STREAM_BYTES
}

/// Threads that operations use: `BIMETAL_THREADS`, or one for each core.
pub fn threads() -> usize {
    team::threads()
}

/// Runs `f` with `n` threads for its operations: results must not depend on their number.
///
/// # Errors
/// Threads that the system refuses, in words.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> Result<R, String> {
    team::with_threads(n, f).map_err(|e| e.to_string())
}

/// Runs `f` over `0..units` in contiguous ranges of at least `grain` units; on one thread if that is all the work.
/// Ranges differ with the number of threads, so `f` must compute each unit independently of its range.
pub fn ranges(units: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let grain = grain.max(1);
    if units < 2 * grain || threads() == 1 {
        if units > 0 {
            f(0..units);
        }
        return;
    }
    // Four pieces a thread even out a core that is busy with something else.
    let pieces = (units / grain).min(threads() * 4).max(1);
    let piece = units.div_ceil(pieces);
    team::each(units.div_ceil(piece), &|k| f(k * piece..((k + 1) * piece).min(units)));
}

/// Splits `out` into ranges of whole units of `unit` elements and runs `f(first unit, its part of out)` on each.
pub fn units_mut<T: Send>(out: &mut [T], unit: usize, grain: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let unit = unit.max(1);
    let base = Shared::new(out);
    ranges(out.len().div_ceil(unit), grain, |units| {
        // SAFETY: the ranges are disjoint, and so are the elements of their units.
        let part = unsafe { base.slice(units.start * unit..(units.end * unit).min(base.len)) };
        f(units.start, part);
    });
}

/// A slice that several threads write, each its own part.
pub struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: parts are only reached through `slice`, whose callers keep them disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Wraps a slice for the time of a parallel region.
    pub fn new(slice: &mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// The original slice is still borrowed, and no other live part overlaps `range`.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_visited_once() {
        for n in [0, 1, 7, 64, 1000, 1001] {
            let mut out = vec![0u32; n];
            units_mut(&mut out, 3, 2, |first, part| {
                for (i, x) in part.iter_mut().enumerate() {
                    *x += (first * 3 + i) as u32 + 1;
                }
            });
            assert!(out.iter().enumerate().all(|(i, &x)| x == i as u32 + 1), "{n}");
        }
    }
}
