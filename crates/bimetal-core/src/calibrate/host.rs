//! The CPU's rates: copies with all threads, past and within the last-level cache, and chains of multiply-adds.

use super::{Rates, fastest, typical};
use crate::cpu::parallel;
use crate::cpu::simd::{Kernel, Simd, dispatch};
use crate::{DType, Result, Tensor};
use std::hint::black_box;

/// Elements of the large copy: 256 MiB on each side, eight times the caches of the machines here.
const LARGE: usize = 64 << 20;

/// Independent chains of multiply-adds: more than latency times issue width on every core that we know.
const CHAINS: usize = 12;

/// Steps of each chain.
const STEPS: usize = 100_000;

pub(super) fn rates() -> Result<Rates> {
    let launch_s = typical(200, || {
        parallel::ranges(parallel::threads(), 1, |range| {
            black_box(range);
        })
    });
    let cache_bytes = last_level_cache();
    let available = crate::cpu::info().memory.unwrap_or(4 << 30) as usize / 16;
    let cached = (cache_bytes as usize / 16).max(1 << 14);
    Ok(Rates {
        launch_s,
        sync_s: launch_s,
        memory_bytes_per_s: copy_rate(LARGE.min(available), 7)?,
        cache_bytes_per_s: copy_rate(cached, 200)?,
        cache_bytes,
        flops_per_s: multiply_add_rate(),
        upload_bytes_per_s: None,
        download_bytes_per_s: None,
    })
}

/// Bytes read and written per second by a copy of `elements` f32: the faster of the library's copy and of vector
/// stores past the caches.
fn copy_rate(elements: usize, times: usize) -> Result<f64> {
    let mut x = Tensor::zeros(&[elements], DType::F32)?;
    let mut y = Tensor::zeros(&[elements], DType::F32)?;
    x.as_mut_slice::<f32>()?.iter_mut().zip(0u32..).for_each(|(v, i)| *v = i as f32);
    let (x, y) = (x.as_slice::<f32>()?, y.as_mut_slice::<f32>()?);
    let mut best = f64::INFINITY;
    for stream in [false, true] {
        let copy = || {
            let grain = parallel::BYTES_PER_THREAD / 8;
            // Units of one aligned vector, so that every part starts on one.
            parallel::units_mut(y, 16, grain / 16, |first, part| {
                let from = &x[first * 16..first * 16 + part.len()];
                if stream {
                    dispatch(StreamCopy { from, to: part });
                } else {
                    part.copy_from_slice(from);
                }
            });
        };
        best = best.min(fastest(times, copy));
    }
    black_box(&y);
    Ok(2.0 * 4.0 * elements as f64 / best)
}

struct StreamCopy<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for StreamCopy<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.to.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: `i + LANES` is within both slices, which have one length, and `to` starts on a 64-byte boundary.
            unsafe { s.stream(self.to.as_mut_ptr().add(i), s.load(self.from.as_ptr().add(i))) };
        }
        self.to[whole..].copy_from_slice(&self.from[whole..]);
        s.stream_fence();
    }
}

/// f32 operations per second of all threads at the current vector level.
fn multiply_add_rate() -> f64 {
    let threads = parallel::threads();
    let run = || {
        parallel::ranges(threads, 1, |range| {
            for _ in range {
                black_box(dispatch(Chains));
            }
        })
    };
    let lanes = dispatch(Lanes) as f64;
    2.0 * lanes * (CHAINS * STEPS * threads) as f64 / fastest(20, run)
}

struct Lanes;

impl Kernel for Lanes {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

struct Chains;

impl Kernel for Chains {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut chains = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = s.fma(*chain, a, b);
            }
        }
        chains.into_iter().map(|chain| s.reduce_add(chain)).sum()
    }
}

/// Bytes of the last-level cache: what the system says of the first core, else 32 MiB.
fn last_level_cache() -> u64 {
    const GUESS: u64 = 32 << 20;
    #[cfg(target_os = "macos")]
    for name in ["hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"] {
        let asked = std::process::Command::new("sysctl").args(["-n", name]).output();
        let size = asked.ok().and_then(|o| String::from_utf8(o.stdout).ok()).and_then(|t| t.trim().parse().ok());
        if let Some(size @ 1..) = size {
            return size;
        }
    }
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten();
    let sizes = caches.filter_map(|entry| {
        let text = std::fs::read_to_string(entry.path().join("size")).ok()?;
        let text = text.trim();
        let (digits, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
        let scale = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        digits.parse::<u64>().ok().map(|n| n * scale)
    });
    sizes.max().unwrap_or(GUESS)
}
