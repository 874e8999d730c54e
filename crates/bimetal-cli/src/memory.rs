//! The allocator's settings: references hold f64 vectors of ten million elements, and pages that went back to the system
//! between two of them would be cleared anew each time.

/// Lets freed memory stay with the process where the C library can.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    const TRIM_THRESHOLD: i32 = -1;
    const MMAP_MAX: i32 = -4;
    const ARENA_MAX: i32 = -8;
    for (parameter, value) in [(MMAP_MAX, 0), (TRIM_THRESHOLD, i32::MAX), (ARENA_MAX, 1)] {
        // SAFETY: glibc takes any parameter and value, and ignores those that it does not know.
        unsafe { mallopt(parameter, value) };
    }
}

/// Other C libraries have no such settings.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep() {}
