//! Tiles with the dot-product instructions of AVX-512: pairs of bf16 (`vdpbf16ps`) and quadruples of i8 (`vpdpbusd`).

#![cfg(target_arch = "x86_64")]

use super::blocked::{Lines, Panels, Path, TILE_VECTORS};
use super::plain::Finish;
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use std::arch::x86_64::*;

/// Rows and columns of a tile.
const TILE: (usize, usize) = (8, TILE_VECTORS * 16);

/// Sums of pairs of bf16 in f32. The instruction takes subnormal elements for zero.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    alpha: f64,
}

impl Pairs {
    /// The path, where the machine has it and the AVX-512 level is used.
    pub fn new(level: Level, alpha: f64) -> Option<Self> {
        (level == Level::Avx512 && is_x86_feature_detected!("avx512bf16")).then_some(Self { alpha })
    }
}

impl Path for Pairs {
    type Source = bf16;
    type Unit = u32;
    type Sum = f32;
    type Out = bf16;
    const GROUP: usize = 2;

    fn tile(&self) -> (usize, usize) {
        TILE
    }

    unsafe fn pack(&self, left: bool, from: Lines<bf16>, lines: usize, k: usize, panel: *mut u32) {
        let pair = |[x, y]: [bf16; 2]| u32::from(x.to_bits()) | u32::from(y.to_bits()) << 16;
        dispatch_at(Level::Avx512, Pack { from, lines, width: width(left), k, panel, pair });
    }

    unsafe fn multiply(&self, panels: Panels<u32>, sums: *mut f32, stride: usize, first: bool) {
        // SAFETY: `new` found the instructions; the caller promises the rest.
        unsafe { pairs(panels, sums, stride, first) }
    }

    unsafe fn finish(&self, sums: *mut f32, out: *mut bf16, n: usize) {
        dispatch_at(Level::Avx512, Finish::<bf16> { sums, out, n, alpha: self.alpha });
    }
}

/// Sums of quadruples of i8 in i32. The instruction wants an unsigned operand: A's elements are taken 128 higher, and
/// 128 times the sums of B's columns are subtracted.
#[derive(Clone, Copy)]
pub(super) struct Quads(());

impl Quads {
    /// The path, where the machine has it and the AVX-512 level is used.
    pub fn new(level: Level) -> Option<Self> {
        (level == Level::Avx512 && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
    }
}

impl Path for Quads {
    type Source = i8;
    type Unit = u32;
    type Sum = i32;
    type Out = i32;
    const GROUP: usize = 4;

    fn tile(&self) -> (usize, usize) {
        TILE
    }

    unsafe fn pack(&self, left: bool, from: Lines<i8>, lines: usize, k: usize, panel: *mut u32) {
        let higher = if left { 0x8080_8080 } else { 0 };
        let pair = |x: [i8; 4]| u32::from_le_bytes(x.map(|x| x as u8)) ^ higher;
        dispatch_at(Level::Avx512, Pack { from, lines, width: width(left), k, panel, pair });
    }

    unsafe fn multiply(&self, panels: Panels<u32>, sums: *mut i32, stride: usize, first: bool) {
        // SAFETY: `new` found the instructions; the caller promises the rest.
        unsafe { quads(panels, sums, stride, first) }
    }

    unsafe fn finish(&self, sums: *mut i32, out: *mut i32, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(sums, out, n) }
    }
}

fn width(left: bool) -> usize {
    if left { TILE.0 } else { TILE.1 }
}

/// Packs groups of `G` elements of each line.
struct Pack<T, F, const G: usize> {
    from: Lines<T>,
    lines: usize,
    width: usize,
    k: usize,
    panel: *mut u32,
    pair: F,
}

impl<T: Copy + Default, F: Fn([T; G]) -> u32, const G: usize> Kernel for Pack<T, F, G> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { from, lines, width, k, panel, pair } = self;
        let (whole, units) = (k / G, k.div_ceil(G));
        // SAFETY (this function): `Path::pack` promises the lines and the panel's room.
        unsafe {
            for unit in 0..units {
                for i in lines..width {
                    panel.add(unit * width + i).write(0);
                }
            }
            if from.line == 1 {
                for unit in 0..whole {
                    let rows: [*const T; G] = std::array::from_fn(|g| from.ptr.add((unit * G + g) * from.step));
                    let to = panel.add(unit * width);
                    for i in 0..lines {
                        to.add(i).write(pair(rows.map(|row| row.add(i).read())));
                    }
                }
            } else {
                // Pieces of lines, so that what is written stays in the first cache until it is whole.
                for start in (0..whole).step_by(16) {
                    for i in 0..lines {
                        let line = from.ptr.add(i * from.line);
                        for unit in start..(start + 16).min(whole) {
                            let x = if from.step == 1 {
                                line.add(unit * G).cast::<[T; G]>().read_unaligned()
                            } else {
                                std::array::from_fn(|g| line.add((unit * G + g) * from.step).read())
                            };
                            panel.add(unit * width + i).write(pair(x));
                        }
                    }
                }
            }
            for i in 0..if whole < units { lines } else { 0 } {
                let at = |l: usize| from.ptr.add(i * from.line + l * from.step).read();
                let x = std::array::from_fn(|g| if whole * G + g < k { at(whole * G + g) } else { T::default() });
                panel.add(whole * width + i).write(pair(x));
            }
        }
    }
}

/// # Safety
/// As [`Path::multiply`], on a machine with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs(panels: Panels<u32>, sums: *mut f32, stride: usize, first: bool) {
    for panel in 0..panels.count {
        let mut tile = [[_mm512_setzero_ps(); TILE_VECTORS]; TILE.0];
        // SAFETY (this block): the caller's promise.
        unsafe {
            let mut a = panels.a.add(panel * TILE.0 * panels.units);
            let mut b = panels.b;
            for _ in 0..panels.units {
                let b_row = b.cast::<__m512i>();
                let row: [__m512bh; TILE_VECTORS] = std::mem::transmute([
                    b_row.read_unaligned(),
                    b_row.add(1).read_unaligned(),
                    b_row.add(2).read_unaligned(),
                ]);
                for (i, sums) in tile.iter_mut().enumerate() {
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(i).read() as i32));
                    for (sum, y) in sums.iter_mut().zip(row) {
                        *sum = _mm512_dpbf16_ps(*sum, x, y);
                    }
                }
                a = a.add(TILE.0);
                b = b.add(TILE.1);
            }
            for (i, row) in tile.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    let to = sums.add((panel * TILE.0 + i) * stride + 16 * j);
                    let sum = if first { sum } else { _mm512_add_ps(_mm512_loadu_ps(to), sum) };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

/// # Safety
/// As [`Path::multiply`], on a machine with AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn quads(panels: Panels<u32>, sums: *mut i32, stride: usize, first: bool) {
    let mut excess = [_mm512_setzero_si512(); TILE_VECTORS];
    let offset = _mm512_set1_epi8(i8::MIN);
    for unit in 0..panels.units {
        for (j, sum) in excess.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let y = unsafe { _mm512_loadu_si512(panels.b.add(unit * TILE.1 + 16 * j).cast()) };
            *sum = _mm512_dpbusd_epi32(*sum, offset, y);
        }
    }
    for panel in 0..panels.count {
        let mut tile = [[_mm512_setzero_si512(); TILE_VECTORS]; TILE.0];
        // SAFETY (this block): the caller's promise.
        unsafe {
            let mut a = panels.a.add(panel * TILE.0 * panels.units);
            let mut b = panels.b;
            for _ in 0..panels.units {
                let b_row = b.cast::<__m512i>();
                let row: [__m512i; TILE_VECTORS] =
                    [b_row.read_unaligned(), b_row.add(1).read_unaligned(), b_row.add(2).read_unaligned()];
                for (i, sums) in tile.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(a.add(i).read() as i32);
                    for (sum, y) in sums.iter_mut().zip(row) {
                        *sum = _mm512_dpbusd_epi32(*sum, x, y);
                    }
                }
                a = a.add(TILE.0);
                b = b.add(TILE.1);
            }
            for (i, row) in tile.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    let to = sums.add((panel * TILE.0 + i) * stride + 16 * j);
                    let sum = _mm512_sub_epi32(sum, excess[j]);
                    let sum = if first { sum } else { _mm512_add_epi32(_mm512_loadu_si512(to.cast()), sum) };
                    _mm512_storeu_si512(to.cast(), sum);
                }
            }
        }
    }
}
