//! Vector levels of this process: which ones the CPU has, which one is used, and how a kernel is compiled for it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Simd;

/// A set of vector instructions; later ones are wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// One lane, no vector instructions.
    Scalar,
    /// AArch64 Advanced SIMD: 4 lanes.
    Neon,
    /// AVX2 with FMA and F16C: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
}

impl Level {
    /// Every level, narrowest first.
    pub const ALL: [Level; 4] = [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512];

    /// The name that [`FromStr`] reads back.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// What this machine has, best last.
    pub fn detected() -> &'static [Level] {
        static DETECTED: OnceLock<Vec<Level>> = OnceLock::new();
        DETECTED.get_or_init(|| Level::ALL.into_iter().filter(|l| l.probe()).collect())
    }

    /// The level that [`dispatch`] uses: the forced one, else `BIMETAL_LEVEL` if this machine has it, else the best.
    pub fn current() -> Level {
        match CURRENT.load(Ordering::Relaxed) {
            UNSET => {
                let wanted = std::env::var("BIMETAL_LEVEL").ok().and_then(|name| name.parse::<Level>().ok());
                let level = wanted.filter(|l| l.is_available()).unwrap_or_else(Level::best);
                // A level forced meanwhile by another thread wins.
                let _ = CURRENT.compare_exchange(UNSET, level as u8, Ordering::Relaxed, Ordering::Relaxed);
                Level::current()
            }
            stored => Level::ALL[stored as usize],
        }
    }

    /// Whether this machine has the level.
    pub fn is_available(self) -> bool {
        Level::detected().contains(&self)
    }

    fn best() -> Level {
        *Level::detected().last().expect("scalar is always detected")
    }

    fn probe(self) -> bool {
        match self {
            Level::Scalar => true,
            Level::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::avx2::detected(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => super::avx512::detected(),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Level::ALL.into_iter().find(|l| l.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("unknown vector level `{name}`: expected scalar, neon, avx2 or avx512"))
    }
}

const UNSET: u8 = u8::MAX;
static CURRENT: AtomicU8 = AtomicU8::new(UNSET);

/// Makes every later [`dispatch`] of the process use `level` (`None`: the default choice again). Gives the level
/// back as the error if this machine lacks it.
pub fn force(level: Option<Level>) -> Result<(), Level> {
    match level {
        Some(missing) if !missing.is_available() => Err(missing),
        _ => {
            CURRENT.store(level.map_or(UNSET, |l| l as u8), Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Code written once over [`Simd`] and compiled for every level.
pub trait Kernel {
    /// What the kernel returns.
    type Out;

    /// The code. Mark it, and every generic function that it calls, `#[inline(always)]`: only what is inlined into
    /// the level's entry is compiled with the level's instructions.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs `kernel` at [`Level::current`].
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    dispatch_at(Level::current(), kernel)
}

/// Runs `kernel` at `level`, or at [`Level::Scalar`] if this machine lacks it.
#[inline]
pub fn dispatch_at<K: Kernel>(level: Level, kernel: K) -> K::Out {
    if !level.is_available() {
        return super::Scalar.vectorize(kernel);
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_available` detected the level.
        Level::Avx512 => unsafe { super::Avx512::new_unchecked() }.vectorize(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_available` detected the level.
        Level::Avx2 => unsafe { super::Avx2::new_unchecked() }.vectorize(kernel),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => super::Neon::new().vectorize(kernel),
        _ => super::Scalar.vectorize(kernel),
    }
}

/// Orders earlier streaming stores of this thread before later stores; see [`Simd::stream_fence`].
pub fn stream_fence() {
    dispatch(Fence);
}

struct Fence;

impl Kernel for Fence {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.stream_fence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Which;
    impl Kernel for Which {
        type Out = Level;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Level {
            S::LEVEL
        }
    }

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("mmx".parse::<Level>().is_err());
    }

    #[test]
    fn dispatch_follows_the_level_and_falls_back_to_scalar() {
        for level in Level::ALL {
            let expected = if level.is_available() { level } else { Level::Scalar };
            assert_eq!(dispatch_at(level, Which), expected);
            if !level.is_available() {
                assert_eq!(force(Some(level)), Err(level));
            }
        }
    }
}
