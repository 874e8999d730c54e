//! Tiles of any dtype at any level: elements are widened to the type of the sums as they are packed.

use super::blocked::{Lines, Panels, Path, TILE_VECTORS};
use super::number::Number;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};
use std::marker::PhantomData;

/// Sums of `E`'s own kind, multiplied by `alpha`.
#[derive(Clone, Copy)]
pub(super) struct Plain<E: Number> {
    pub level: Level,
    pub alpha: f64,
    pub element: PhantomData<E>,
}

/// Rows of a tile: with three vectors a row, as many as leave registers for a row of B and an element of A.
const fn tile_rows(level: Level) -> usize {
    match level {
        Level::Avx512 | Level::Neon => 8,
        Level::Avx2 | Level::Scalar => 4,
    }
}

impl<E: Number> Path for Plain<E> {
    type Source = E;
    type Unit = E::Sum;
    type Sum = E::Sum;
    type Out = E::Out;
    const GROUP: usize = 1;

    fn tile(&self) -> (usize, usize) {
        (tile_rows(self.level), TILE_VECTORS * dispatch_at(self.level, Lanes::<E>(PhantomData)))
    }

    unsafe fn pack(&self, left: bool, from: Lines<E>, lines: usize, k: usize, panel: *mut E::Sum) {
        let (mr, nr) = self.tile();
        let width = if left { mr } else { nr };
        dispatch_at(self.level, Pack { from, lines, width, k, panel });
    }

    unsafe fn multiply(&self, panels: Panels<E::Sum>, sums: *mut E::Sum, stride: usize, first: bool) {
        let tiles = Tiles::<E> { panels, sums, stride, first };
        dispatch_at(self.level, tiles);
    }

    unsafe fn finish(&self, sums: *mut E::Sum, out: *mut E::Out, n: usize) {
        dispatch_at(self.level, Finish::<E> { sums, out, n, alpha: self.alpha });
    }
}

struct Lanes<E>(PhantomData<E>);

impl<E: Number> Kernel for Lanes<E> {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        E::lanes::<S>()
    }
}

struct Pack<E: Number> {
    from: Lines<E>,
    lines: usize,
    width: usize,
    k: usize,
    panel: *mut E::Sum,
}

impl<E: Number> Kernel for Pack<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, lines, width, k, panel } = self;
        let lanes = E::lanes::<S>();
        // SAFETY (this function): `Path::pack` promises the lines and the panel's room.
        unsafe {
            if lines < width {
                for l in 0..k {
                    for i in lines..width {
                        panel.add(l * width + i).write(E::Sum::default());
                    }
                }
            }
            if from.line == 1 {
                let whole = lines / lanes * lanes;
                for l in 0..k {
                    let (source, to) = (from.ptr.add(l * from.step), panel.add(l * width));
                    for i in (0..whole).step_by(lanes) {
                        E::store_sums(s, to.add(i), E::load(s, source.add(i)));
                    }
                    for i in whole..lines {
                        to.add(i).write(source.add(i).read().widened());
                    }
                }
                return;
            }
            // Pieces of lines, so that what is written stays in the first cache until it is whole.
            let mut piece = [E::Sum::default(); MAX_LANES];
            let whole = if from.step == 1 { k / lanes * lanes } else { 0 };
            for l in (0..whole).step_by(lanes) {
                for i in 0..lines {
                    E::store_sums(s, piece.as_mut_ptr(), E::load(s, from.ptr.add(i * from.line + l)));
                    for (j, x) in piece.iter().enumerate().take(lanes) {
                        panel.add((l + j) * width + i).write(*x);
                    }
                }
            }
            for l in whole..k {
                for i in 0..lines {
                    let x = from.ptr.add(i * from.line + l * from.step).read();
                    panel.add(l * width + i).write(x.widened());
                }
            }
        }
    }
}

struct Tiles<E: Number> {
    panels: Panels<E::Sum>,
    sums: *mut E::Sum,
    stride: usize,
    first: bool,
}

impl<E: Number> Kernel for Tiles<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Path::multiply` promises the panels and the tiles.
        unsafe {
            match tile_rows(S::LEVEL) {
                8 => self.all::<S, 8>(s),
                _ => self.all::<S, 4>(s),
            }
        }
    }
}

impl<E: Number> Tiles<E> {
    /// # Safety
    /// The panels and the tiles exist, with `R` rows.
    #[inline(always)]
    unsafe fn all<S: Simd, const R: usize>(&self, s: S) {
        let units = self.panels.units;
        for panel in 0..self.panels.count {
            // SAFETY: the caller's promise.
            unsafe {
                let (a, sums) = (self.panels.a.add(panel * R * units), self.sums.add(panel * R * self.stride));
                self.tile::<S, R>(s, a, sums);
            }
        }
    }

    /// # Safety
    /// As [`Tiles::all`].
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&self, s: S, mut a: *const E::Sum, sums: *mut E::Sum) {
        let lanes = E::lanes::<S>();
        let zero = E::splat(s, E::Sum::default());
        let mut tile = [[zero; TILE_VECTORS]; R];
        let mut b = self.panels.b;
        // SAFETY (this function): the caller's promise.
        unsafe {
            for _ in 0..self.panels.units {
                let row: [E::V<S>; TILE_VECTORS] =
                    [E::load_sums(s, b), E::load_sums(s, b.add(lanes)), E::load_sums(s, b.add(2 * lanes))];
                for (i, sums) in tile.iter_mut().enumerate() {
                    let x = E::splat(s, a.add(i).read());
                    for (sum, y) in sums.iter_mut().zip(row) {
                        *sum = E::fma(s, x, y, *sum);
                    }
                }
                a = a.add(R);
                b = b.add(TILE_VECTORS * lanes);
            }
            let one = E::splat(s, E::factor(1.0));
            for (i, row) in tile.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    let to = sums.add(i * self.stride + j * lanes);
                    let sum = if self.first { sum } else { E::fma(s, one, E::load_sums(s, to), sum) };
                    E::store_sums(s, to, sum);
                }
            }
        }
    }
}

/// Multiplies sums by a factor and stores them.
pub(super) struct Finish<E: Number> {
    pub sums: *mut E::Sum,
    pub out: *mut E::Out,
    pub n: usize,
    pub alpha: f64,
}

impl<E: Number> Kernel for Finish<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made this promises `n` elements of both.
        unsafe {
            if self.alpha != 1.0 {
                let (factor, zero) = (E::factor(self.alpha), E::Sum::default());
                for i in 0..self.n {
                    let sum = self.sums.add(i);
                    sum.write(E::mul_add(sum.read(), factor, zero));
                }
            }
            E::finish(s, self.sums, self.out, self.n);
        }
    }
}
