//! Per-thread scratch memory that kernels reuse from call to call.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static SPARE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A buffer of f32 on loan from the thread; a second one at the same time is allocated.
pub struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `n` values of unspecified contents.
    pub fn take(n: usize) -> Self {
        let mut buffer = SPARE.take();
        if buffer.len() < n {
            buffer.resize(n, 0.0);
        }
        Self { buffer, len: n }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let spare = SPARE.take();
        SPARE.set(if spare.len() > buffer.len() { spare } else { buffer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_may_nest() {
        let first = Scratch::take(1000);
        let address = first.as_ptr();
        let second = Scratch::take(10);
        assert_ne!(second.as_ptr(), address);
        drop(second);
        drop(first);
        assert_eq!(Scratch::take(500).as_ptr(), address);
    }
}
