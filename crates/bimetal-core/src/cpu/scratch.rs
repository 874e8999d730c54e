//! Per-thread scratch memory that kernels reuse from call to call.

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` a buffer of `n` values of unspecified contents; calls must not nest on a thread (a nested one allocates).
#[inline(always)]
pub fn with<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with(|cell| cell.try_borrow_mut().map(|mut b| std::mem::take(&mut *b)).unwrap_or_default());
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    let out = f(&mut buffer[..n]);
    SCRATCH.with(|cell| {
        if let Ok(mut slot) = cell.try_borrow_mut() {
            *slot = buffer;
        }
    });
    out
}
