//! Ctrl-C: the first asks for a stop after the sample in hand, the second ends the program at once.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// The same number in every C library.
const SIGINT: c_int = 2;

/// What a shell gives for a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

// Both are in the C library that every Rust program links, on Windows too.
unsafe extern "C" {
    fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(code: c_int) -> !;
}

/// Calls nothing but what a signal handler may call.
extern "C" fn on_interrupt(number: c_int) {
    if STOP.swap(true, Ordering::Relaxed) {
        // SAFETY: `_exit` may be called from a signal handler.
        unsafe { _exit(c_int::from(EXIT_CODE)) };
    }
    // SAFETY: as in `watch`; Windows forgets the handler at each signal.
    unsafe { signal(number, on_interrupt) };
}

/// From now on Ctrl-C asks for a stop.
pub fn watch() {
    // SAFETY: the handler has C's calling convention and touches an atomic only.
    unsafe { signal(SIGINT, on_interrupt) };
}

/// Whether a stop has been asked for.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
