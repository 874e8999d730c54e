//! A merge of two halves: eigenvalues of a diagonal plus ρ·z·zᵀ, after Cuppen, Gu and Eisenstat (LAPACK's `laed1`), or singular
//! values of a diagonal with a full row (`lasd1`), and the products that take the halves' vectors to those of the whole.

use super::deflate::{Deflated, Pole, Turn, deflate};
use super::mixture::{Columns, Exact, Found, Mixture, Product, Side};
use super::secular::{Roots, Secular};
use crate::matmul::update::{Store, Updates, View};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Level, MAX_LANES, dispatch_at};

/// Poles from which threads share what is done for each.
const THREADS_FROM: usize = 200;

/// Rows of a merge up to which its products are not worth packing.
const SMALL: usize = 32;

/// Two halves, whose vectors are rows that have nothing in the columns of the other half.
pub(super) struct Merge<'a> {
    pub(super) first: usize,
    pub(super) left: usize,
    pub(super) len: usize,
    pub(super) line: usize,
    /// What couples the halves: for eigenvalues the element beside the diagonal, twice; for singular values the row of both.
    pub(super) coupling: [f32; 2],
    /// The row of the right half whose right vector has no left one.
    pub(super) null: [Option<usize>; 2],
    /// The values of the rows, and rows in their order.
    pub(super) values: &'a mut [f32],
    pub(super) order: &'a mut [u32],
    pub(super) vectors: Vectors<'a>,
    pub(super) shared: bool,
}

/// Rows of matrices whose rows are one line apart.
pub(super) struct Vectors<'a> {
    pub(super) right: &'a mut [f32],
    /// Empty without left vectors.
    pub(super) left: &'a mut [f32],
    pub(super) spare: &'a mut [f32],
    pub(super) mix: &'a mut [f32],
}

impl<'a> Vectors<'a> {
    /// Those of the rows before `row`, and the others.
    pub(super) fn split(&mut self, at: usize) -> [Vectors<'_>; 2] {
        let (right, right_rest) = self.right.split_at_mut(at);
        let (left, left_rest) = self.left.split_at_mut(at.min(self.left.len()));
        let (spare, spare_rest) = self.spare.split_at_mut(at);
        let (mix, mix_rest) = self.mix.split_at_mut(at);
        [
            Vectors { right, left, spare, mix },
            Vectors { right: right_rest, left: left_rest, spare: spare_rest, mix: mix_rest },
        ]
    }
}

/// Which halves' columns a row has something in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Left,
    Both,
    Right,
}

impl Merge<'_> {
    /// Merges the halves; gives the new null row.
    pub(super) fn run<const SQUARED: bool>(mut self) -> Option<usize> {
        let mut poles = self.poles::<SQUARED>();
        let mut turns = Vec::new();
        let rho = 2.0 * self.coupling[0].abs();
        let Deflated { scale, rho, kept } = deflate::<SQUARED>(&mut poles, rho, &mut turns);
        let reach = self.turn(&turns);
        // Rows that are left, those of the left half first; then the others.
        let mut rows: Vec<u32> = Vec::with_capacity(self.len);
        let mut places = vec![0u32; kept];
        let mut ends = [0; 3];
        for (end, kind) in ends.iter_mut().zip([Reach::Left, Reach::Both, Reach::Right]) {
            for (place, pole) in places.iter_mut().zip(&poles[..kept]) {
                if reach[pole.row as usize] == kind {
                    *place = rows.len() as u32;
                    rows.push(pole.row);
                }
            }
            *end = rows.len();
        }
        rows.extend(poles[kept..].iter().map(|pole| pole.row));
        let solved = self.solve::<SQUARED>(&poles[..kept], rho);
        for i in 0..kept {
            self.values[i] = (solved.origins[i] + solved.shifts[i]) / scale;
        }
        for (value, pole) in self.values[kept..].iter_mut().zip(&poles[kept..]) {
            *value = pole.value / scale;
        }
        self.combine::<SQUARED>(&solved, &places, Side::Right, &rows, ends);
        if SQUARED {
            self.combine::<SQUARED>(&solved, &places, Side::Left, &rows, ends);
        }
        let values = &*self.values;
        self.order.iter_mut().enumerate().for_each(|(i, row)| *row = i as u32);
        self.order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
        let null = self.null[1].map(|row| (row + self.left) as u32);
        rows[kept..].iter().position(|row| Some(*row) == null).map(|at| kept + at)
    }

    /// The halves' values in order with their weights; of singular values the left half's null one is the first.
    fn poles<const SQUARED: bool>(&mut self) -> Vec<Pole> {
        let Self { first, left, len, line, .. } = *self;
        let null = self.null[0].filter(|_| SQUARED);
        if let Some(row) = null {
            self.vectors.left[row * line + first + left - 1] = 1.0;
        }
        let [low, high] = self.coupling;
        let root = 0.5f32.sqrt();
        let shares = if SQUARED { [low, high] } else { [root, root.copysign(low)] };
        let q = &*self.vectors.right;
        let pole = |row: usize| {
            let (column, share) = if row < left { (first + left - 1, shares[0]) } else { (first + left, shares[1]) };
            Pole { value: self.values[row], weight: q[row * line + column] * share, row: row as u32 }
        };
        let mut lows = self.order[..left].iter().map(|&row| row as usize).filter(|row| Some(*row) != null).peekable();
        let mut highs = self.order[left..].iter().map(|&row| row as usize + left).peekable();
        let mut poles = Vec::with_capacity(len);
        poles.extend(null.map(pole));
        loop {
            let take_low = match (lows.peek(), highs.peek()) {
                (Some(&low), Some(&high)) => self.values[low] <= self.values[high],
                (low, _) => low.is_some(),
            };
            match if take_low { lows.next() } else { highs.next() } {
                Some(row) => poles.push(pole(row)),
                None => return poles,
            }
        }
    }

    /// Turns the rows of vectors that were deflated together; gives what all rows reach.
    fn turn(&mut self, turns: &[Turn]) -> Vec<Reach> {
        let Self { first, left, len, line, .. } = *self;
        let mut reach: Vec<Reach> = (0..len).map(|row| if row < left { Reach::Left } else { Reach::Right }).collect();
        for turn in turns {
            let [one, two] = [turn.first as usize, turn.second as usize];
            if reach[one] != reach[two] {
                (reach[one], reach[two]) = (Reach::Both, Reach::Both);
            }
            let both = |x: &mut [f32]| {
                let (low, high) = (one.min(two), one.max(two));
                let (before, after) = x.split_at_mut(high * line);
                let (low, high) = (&mut before[low * line + first..][..len], &mut after[first..][..len]);
                let (one, two) = if one < two { (low, high) } else { (high, low) };
                for (x, y) in one.iter_mut().zip(two) {
                    (*x, *y) = (turn.cosine * *x + turn.sine * *y, turn.cosine * *y - turn.sine * *x);
                }
            };
            both(self.vectors.right);
            if !turn.null && !self.vectors.left.is_empty() {
                both(self.vectors.left);
            }
        }
        reach
    }

    /// Whether threads share what is done for each of so many poles.
    fn spread(&self, count: usize, f: impl Fn(usize) + Sync) {
        let vectors = count.div_ceil(MAX_LANES);
        if self.shared && count >= THREADS_FROM {
            parallel::ranges(vectors, 1, |range| range.for_each(|k| f(k * MAX_LANES)));
        } else {
            (0..vectors).for_each(|k| f(k * MAX_LANES));
        }
    }

    /// The roots, and the weights for which they are exact.
    fn solve<const SQUARED: bool>(&self, kept: &[Pole], rho: f32) -> Solved {
        let count = kept.len();
        let padded = count.next_multiple_of(MAX_LANES) + MAX_LANES;
        let [mut poles, mut weights, mut origins, mut shifts, mut exact] =
            std::array::from_fn(|_| vec![0.0f32; padded]);
        for (i, pole) in kept.iter().enumerate() {
            (poles[i], weights[i]) = (pole.value, pole.weight);
        }
        if count == 0 {
            return Solved { poles, weights, count, rho, origins, shifts, exact };
        }
        let (level, step) = (Level::current(), dispatch_at(Level::current(), crate::interleaved::Width));
        let of = Secular { poles: &poles, weights: &weights, count, rho };
        {
            let (to, by) = (Shared::new(&mut origins), Shared::new(&mut shifts));
            self.spread(count, |first| {
                for first in (first..count.min(first + MAX_LANES)).step_by(step) {
                    // SAFETY: every vector of roots is written once.
                    let (origins, shifts) = unsafe { (to.slice(first..first + step), by.slice(first..first + step)) };
                    dispatch_at(level, Roots::<SQUARED> { of, first, origins, shifts });
                }
            });
        }
        let found = Found { of, origins: &origins, shifts: &shifts };
        {
            let to = Shared::new(&mut exact);
            self.spread(count, |first| {
                for first in (first..count.min(first + MAX_LANES)).step_by(step) {
                    // SAFETY: as above.
                    let weights = unsafe { to.slice(first..first + step) };
                    dispatch_at(level, Exact::<SQUARED> { found, first, weights });
                }
            });
        }
        Solved { poles, weights, count, rho, origins, shifts, exact }
    }

    /// The new vectors of a side from the old ones: those of the roots first, then the rows that stay.
    fn combine<const SQUARED: bool>(
        &mut self,
        solved: &Solved,
        places: &[u32],
        side: Side,
        rows: &[u32],
        ends: [usize; 3],
    ) {
        let Self { first, left, len, line, shared, .. } = *self;
        let count = solved.count;
        let (level, step) = (Level::current(), dispatch_at(Level::current(), crate::interleaved::Width));
        let mix = Columns(self.vectors.mix.as_mut_ptr());
        self.spread(count, |from| {
            for from in (from..count.min(from + MAX_LANES)).step_by(step) {
                let (found, weights) = (solved.found(), &solved.exact);
                dispatch_at(level, Mixture::<SQUARED> { found, first: from, side, weights, places, mix, line });
            }
        });
        let Vectors { right, left: lefts, spare, mix } = &mut self.vectors;
        let vectors = if side == Side::Right { &mut **right } else { &mut **lefts };
        for (to, &row) in spare.chunks_mut(line).zip(rows) {
            to[..len].copy_from_slice(&vectors[row as usize * line + first..][..len]);
        }
        for (to, from) in vectors.chunks_mut(line).zip(spare.chunks(line)).take(len).skip(count) {
            to[first..first + len].copy_from_slice(&from[..len]);
        }
        let parts = [(0, ends[1], 0, left), (ends[0], ends[2], left, len)];
        for (begin, end, column, last) in parts {
            let to = &mut vectors[first + column..];
            let (mix, old) =
                (&mix[(begin * line).min(mix.len())..], &spare[(begin * line + column).min(spare.len())..]);
            let extents = [count, end - begin, last - column];
            if len <= SMALL {
                dispatch_at(level, Product { extents, mix, old, to, line });
                continue;
            }
            let weights = View { p: mix.as_ptr(), row: 1, column: line };
            let old = View { p: old.as_ptr(), row: line, column: 1 };
            // SAFETY: rows and columns of the slices.
            unsafe { f32::multiply(Store::Replace, extents, [weights, old], to.as_mut_ptr(), line, shared) };
        }
    }
}

/// What [`Merge::solve`] found.
struct Solved {
    poles: Vec<f32>,
    weights: Vec<f32>,
    count: usize,
    rho: f32,
    origins: Vec<f32>,
    shifts: Vec<f32>,
    exact: Vec<f32>,
}

impl Solved {
    fn found(&self) -> Found<'_> {
        let of = Secular { poles: &self.poles, weights: &self.weights, count: self.count, rho: self.rho };
        Found { of, origins: &self.origins, shifts: &self.shifts }
    }
}
