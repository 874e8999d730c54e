//! Implicit QR of bidiagonal matrices, one in each lane (LAPACK's `bdsqr`).

use crate::interleaved::Vectors;
use bimetal_core::cpu::simd::{MAX_LANES, Simd};

/// Sweeps whose rotations are applied together.
pub(super) const TOGETHER: usize = 4;
/// Rows of the vectors that rotations are applied to together.
const ROWS: usize = 4;
/// Sweeps for each value at most.
const SWEEPS: usize = 12;
/// What is beside the diagonal is zero below this part of the largest value's bound, whatever is on it.
const FLOOR: f32 = 1e-3;

/// Upper bidiagonal matrices, and the vectors of their `rows` and of `n`.
pub(super) struct Bidiagonal<S> {
    pub(super) s: S,
    pub(super) n: usize,
    pub(super) rows: usize,
    pub(super) d: Vectors,
    pub(super) e: Vectors,
    pub(super) vectors: [Vectors; 2],
}

/// What each lane works on: rows from the first to the last, between the lowest and the highest of all.
struct Block<S: Simd> {
    first: S::F,
    last: S::F,
    lasts: [f32; MAX_LANES],
    /// The last element beside the diagonal, to be found by a sweep.
    f: S::F,
    lanes: u32,
    low: usize,
    high: usize,
}

impl<S: Simd> Bidiagonal<S> {
    /// Iterates until nothing is left beside the diagonals; the lanes where something was after all sweeps allowed.
    #[inline(always)]
    pub(super) fn iterate(&self, rotations: Vectors) -> u32 {
        let n = self.n;
        let mut kept = [(0, 0); TOGETHER];
        let (mut count, mut unfinished, mut end) = (0, 0, n - 1);
        let floor = self.floor();
        for _ in 0..SWEEPS * n {
            let Some(block) = self.block(end, floor) else {
                unfinished = 0;
                break;
            };
            (end, unfinished) = (block.high, block.lanes);
            self.sweep(&block, Vectors(rotations.at::<S>(4 * n * count)));
            kept[count] = (block.low, block.high);
            count += 1;
            if count == TOGETHER {
                self.rotate(rotations, &kept);
                count = 0;
            }
        }
        self.rotate(rotations, &kept[..count]);
        unfinished
    }

    /// What counts as zero beside the diagonal.
    #[inline(always)]
    fn floor(&self) -> S::F {
        let Self { s, n, d, e, .. } = *self;
        let mut largest = s.splat(0.0);
        for i in 0..n {
            // SAFETY: vectors below n.
            unsafe { largest = s.max(s.max(s.abs(d.get(s, i)), s.abs(e.get(s, i))), largest) };
        }
        s.mul(largest, s.splat(FLOOR))
    }

    /// In each lane the last block that is not diagonal yet, up to row `end`, and how its sweep begins; none if no lane has one.
    #[inline(always)]
    fn block(&self, end: usize, floor: S::F) -> Option<Block<S>> {
        let Self { s, n, d, e, .. } = *self;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let no = s.lt(zero, zero);
        let (mut begun, mut ended) = (no, no);
        let (mut first, mut last) = (zero, s.splat(-1.0));
        let [mut d_last, mut d_before, mut e_last] = [zero; 3];
        // SAFETY (this function): vectors below n.
        unsafe {
            let mut d_first = d.get(s, 0);
            let mut next = d.get(s, end);
            for i in (0..end).rev() {
                let (beside, here) = (e.get(s, i), d.get(s, i));
                let size = s.max(s.add(s.abs(here), s.abs(next)), floor);
                let small = s.le(s.abs(beside), s.mul(s.splat(0.5 * f32::EPSILON), size));
                let begins = s.and_m(s.not_m(begun), s.not_m(small));
                last = s.select(begins, s.splat((i + 1) as f32), last);
                d_last = s.select(begins, next, d_last);
                d_before = s.select(begins, here, d_before);
                e_last = s.select(begins, beside, e_last);
                let ends = s.and_m(s.and_m(begun, small), s.not_m(ended));
                first = s.select(ends, s.splat((i + 1) as f32), first);
                d_first = s.select(ends, next, d_first);
                begun = s.or_m(begun, begins);
                ended = s.or_m(ended, ends);
                next = here;
            }
            let lanes = s.mask_bits(begun);
            if lanes == 0 {
                return None;
            }
            // The smaller singular value of the last two rows and columns.
            let (x, y) = (s.abs(d_before), s.abs(d_last));
            let (least, most) = (s.min(x, y), s.max(x, y));
            let some = s.gt(least, zero);
            let whole = s.select(some, most, one);
            let (sum, gap) = (s.add(one, s.div(least, whole)), s.div(s.sub(most, least), whole));
            let beside = s.div(e_last, whole);
            let square = s.mul(beside, beside);
            let roots = s.add(s.sqrt(s.fma(sum, sum, square)), s.sqrt(s.fma(gap, gap, square)));
            let shift = s.select(some, s.div(s.add(least, least), s.select(some, roots, one)), zero);
            let size = s.abs(d_first);
            let possible = s.gt(size, zero);
            let ratio = s.div(shift, s.select(possible, d_first, one));
            let f = s.mul(s.sub(size, shift), s.add(s.xor_sign(one, d_first), ratio));
            let f = s.select(possible, f, zero);
            let (firsts, lasts) = (s.to_array(first), s.to_array(last));
            let (mut low, mut high) = (n, 0);
            for lane in (0..S::LANES).filter(|lane| lanes >> lane & 1 == 1) {
                low = low.min(firsts[lane] as usize);
                high = high.max(lasts[lane] as usize);
            }
            Some(Block { first, last, lasts, f, lanes, low, high })
        }
    }

    /// The rotation that takes (f, g) to (r, 0): cosine, sine and r.
    #[inline(always)]
    fn rotation(s: S, f: S::F, g: S::F) -> [S::F; 3] {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let r = s.sqrt(s.fma(f, f, s.mul(g, g)));
        let some = s.gt(r, zero);
        let inverse = s.div(one, s.select(some, r, one));
        [s.select(some, s.mul(f, inverse), one), s.select(some, s.mul(g, inverse), zero), r]
    }

    /// A sweep of each lane's block, downwards; its rotations are the identity elsewhere.
    #[inline(always)]
    fn sweep(&self, block: &Block<S>, rotations: Vectors) {
        let Self { s, d, e, .. } = *self;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let mut f = block.f;
        let mut g = zero;
        // SAFETY (this function): vectors below n, and lanes of them.
        unsafe {
            let mut here = d.get(s, block.low);
            let mut beside = e.get(s, block.low);
            for i in block.low..block.high {
                let index = s.splat(i as f32);
                let begins = s.eq(index, block.first);
                let active = s.and_m(s.le(block.first, index), s.lt(index, block.last));
                let (next, next_beside) = (d.get(s, i + 1), e.get(s, i + 1));
                let g_right = s.select(begins, beside, g);
                let [cosine, sine, r] = Self::rotation(s, f, g_right);
                if i > block.low {
                    let before = e.get(s, i - 1);
                    e.set(s, i - 1, s.select(s.and_m(active, s.not_m(begins)), r, before));
                }
                let new_f = s.fma(cosine, here, s.mul(sine, beside));
                let new_beside = s.neg_fma(sine, here, s.mul(cosine, beside));
                let (new_g, new_next) = (s.mul(sine, next), s.mul(cosine, next));
                let [left_cosine, left_sine, r] = Self::rotation(s, new_f, new_g);
                d.set(s, i, s.select(active, r, here));
                let last_f = s.fma(left_cosine, new_beside, s.mul(left_sine, new_next));
                let last_next = s.neg_fma(left_sine, new_beside, s.mul(left_cosine, new_next));
                // Past the last row there is nothing to chase.
                let goes_on = s.and_m(active, s.lt(s.add(index, one), block.last));
                g = s.select(goes_on, s.mul(left_sine, next_beside), g);
                f = s.select(active, last_f, f);
                e.set(s, i, s.select(active, new_beside, beside));
                beside = s.select(goes_on, s.mul(left_cosine, next_beside), next_beside);
                here = s.select(active, last_next, next);
                rotations.set(s, 4 * i, s.select(active, left_cosine, one));
                rotations.set(s, 4 * i + 1, s.select(active, left_sine, zero));
                rotations.set(s, 4 * i + 2, s.select(active, cosine, one));
                rotations.set(s, 4 * i + 3, s.select(active, sine, zero));
            }
            d.set(s, block.high, here);
            e.set(s, block.high, beside);
            let f = s.to_array(f);
            for lane in (0..S::LANES).filter(|lane| block.lanes >> lane & 1 == 1) {
                *e.at::<S>(block.lasts[lane] as usize - 1).add(lane) = f[lane];
            }
        }
    }

    /// Applies the rotations of sweeps over some rows each to the vectors.
    #[inline(always)]
    fn rotate(&self, rotations: Vectors, sweeps: &[(usize, usize)]) {
        let [u, v] = self.vectors;
        for (q, rows, part) in [(u, self.rows, 0), (v, self.n, 2)] {
            let whole = rows / ROWS * ROWS;
            for row in (0..whole).step_by(ROWS) {
                self.rotate_rows::<ROWS>(q, row, rotations, part, sweeps);
            }
            for row in whole..rows {
                self.rotate_rows::<1>(q, row, rotations, part, sweeps);
            }
        }
    }

    /// [`Self::rotate`] for `R` rows of one side's vectors.
    #[inline(always)]
    fn rotate_rows<const R: usize>(
        &self,
        q: Vectors,
        row: usize,
        rotations: Vectors,
        part: usize,
        sweeps: &[(usize, usize)],
    ) {
        let Self { s, n, .. } = *self;
        // SAFETY (this function): rows and columns of the vectors, and rotations of as many sweeps.
        unsafe {
            for (k, &(low, high)) in sweeps.iter().enumerate() {
                let mut carried = [s.splat(0.0); R];
                for (r, carried) in carried.iter_mut().enumerate() {
                    *carried = q.get(s, (row + r) * n + low);
                }
                for i in low..high {
                    let at = 4 * (n * k + i) + part;
                    let (cosine, sine) = (rotations.get(s, at), rotations.get(s, at + 1));
                    for (r, carried) in carried.iter_mut().enumerate() {
                        let at = (row + r) * n + i;
                        let x = q.get(s, at + 1);
                        q.set(s, at, s.fma(sine, x, s.mul(cosine, *carried)));
                        *carried = s.neg_fma(sine, *carried, s.mul(cosine, x));
                    }
                }
                for (r, carried) in carried.iter().enumerate() {
                    q.set(s, (row + r) * n + high, *carried);
                }
            }
        }
    }
}
