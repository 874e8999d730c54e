//! Batches of symmetric matrices in the lanes of vectors: `A = Q·T·Qᵀ` by reflectors, then implicit QL of the tridiagonal `T`
//! (LAPACK's `sytrd` and `steqr`), whose rotations are kept and applied to a few rows of `Q` at a time.

use crate::interleaved::{Vectors, Width, reflectors, scale_of};
use crate::lanes::{Entry, Part, Real, gather};
use crate::qr::real::{Place, reflect};
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// The largest order: of sixteen matrices beyond, vectors do not stay in the second-level cache.
const MOST: usize = 160;
/// Matrices from which filling the lanes of a vector pays.
const LEAST_MATRICES: usize = 4;
/// Sweeps whose rotations are applied together.
const TOGETHER: usize = 4;
/// Rows of the vectors that rotations are applied to together.
const ROWS: usize = 4;
/// Sweeps for each value at most, as LAPACK allows.
const SWEEPS: usize = 30;
/// What is beside the diagonal is zero below this part of the largest value's bound, whatever is on it.
const FLOOR: f32 = 1e-3;

/// A batch of symmetric matrices, and where their values and vectors go.
pub(super) struct Batch<'a, E> {
    pub(super) a: &'a [E],
    pub(super) n: usize,
    pub(super) count: usize,
    /// The triangle that is read.
    pub(super) part: Part,
    pub(super) values: Shared<E>,
    pub(super) vectors: Option<Shared<E>>,
    pub(super) status: Shared<i32>,
}

/// Whether a batch is better decomposed here than one matrix after the other.
pub(super) fn suits(count: usize, n: usize) -> bool {
    (1..=MOST).contains(&n) && count >= LEAST_MATRICES && Level::current() != Level::Scalar
}

impl<E: Entry<Real = f32>> Batch<'_, E> {
    /// Decomposes all matrices but those whose iteration did not end, for which it calls `other`.
    pub(super) fn run(&self, other: impl Fn(usize) + Sync) {
        let (level, n) = (Level::current(), self.n);
        let lanes = dispatch_at(level, Width);
        let vectors = n * n + n * (n + 1) / 2 + 5 * n + 2 * n * TOGETHER;
        parallel::ranges(self.count.div_ceil(lanes), 1, |groups| {
            // A closure would not be compiled with the level's instructions: the memory comes from outside.
            f32::scratch(vectors * lanes, |memory| {
                for group in groups {
                    let left_over = dispatch_at(level, Group { batch: self, first: group * lanes, memory });
                    (0..lanes).filter(|lane| left_over >> lane & 1 == 1).for_each(|lane| other(group * lanes + lane));
                }
            });
        });
    }
}

/// As many matrices as a vector has lanes.
struct Group<'a, E> {
    batch: &'a Batch<'a, E>,
    first: usize,
    memory: &'a mut [f32],
}

impl<E: Entry<Real = f32>> Kernel for Group<'_, E> {
    type Out = u32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u32 {
        let Self { batch, first, memory } = self;
        let (n, l) = (batch.n, S::LANES);
        let (full, rest) = memory.split_at_mut(n * n * l);
        let (lower, rest) = rest.split_at_mut(n * (n + 1) / 2 * l);
        let (d, rest) = rest.split_at_mut(n * l);
        let (e, rest) = rest.split_at_mut(n * l);
        let (taus, rest) = rest.split_at_mut(n * l);
        let (v, rest) = rest.split_at_mut(n * l);
        let (p, rotations) = rest.split_at_mut(n * l);
        let bad = gather::<S, E>(s, batch.a, first, [n, n], full, batch.part);
        let scales = pack(s, full, lower, n, batch.part, bad);
        let t = Tridiagonal { s, n, lower: Vectors(lower.as_mut_ptr()), d: Vectors(d.as_mut_ptr()), e: Vectors(e.as_mut_ptr()) };
        let taus = Vectors(taus.as_mut_ptr());
        t.reduce(taus, Vectors(v.as_mut_ptr()), Vectors(p.as_mut_ptr()));
        let q = batch.vectors.is_some().then_some(Vectors(full.as_mut_ptr()));
        if let Some(q) = q {
            t.form(q, taus, Vectors(v.as_mut_ptr()));
        }
        let unfinished = t.iterate(q, Vectors(rotations.as_mut_ptr()));
        write(batch, first, [d, full], scales, bad, unfinished, l)
    }
}

/// Copies the triangle given into rows of the lower one, scaled by powers of two; gives these. Failed lanes are zero.
#[inline(always)]
fn pack<S: Simd>(s: S, full: &[f32], lower: &mut [f32], n: usize, part: Part, bad: u32) -> [f32; MAX_LANES] {
    let l = S::LANES;
    let flags: [f32; MAX_LANES] = std::array::from_fn(|lane| (bad >> lane & 1) as f32);
    let (from, to) = (Vectors(full.as_ptr().cast_mut()), Vectors(lower.as_mut_ptr()));
    let zero = s.splat(0.0);
    // SAFETY (this function): elements of the triangles, and arrays that hold a vector of any level.
    unsafe {
        let good = s.eq(s.load(flags.as_ptr()), zero);
        let mut largest = zero;
        for i in 0..n {
            for j in 0..=i {
                let x = from.get(s, if part == Part::Upper { j * n + i } else { i * n + j });
                let x = s.select(good, x, zero);
                largest = s.max(s.abs(x), largest);
                to.set(s, i * (i + 1) / 2 + j, x);
            }
        }
        let mut scales = [1.0; MAX_LANES];
        s.store(scales.as_mut_ptr(), largest);
        scales.iter_mut().take(l).for_each(|x| *x = scale_of(*x));
        let scale = s.load(scales.as_ptr());
        for i in 0..n * (n + 1) / 2 {
            to.set(s, i, s.mul(to.get(s, i), scale));
        }
        scales
    }
}

/// Matrices that become tridiagonal: rows of their lower triangles, the diagonals and what is beside them.
struct Tridiagonal<S> {
    s: S,
    n: usize,
    lower: Vectors,
    d: Vectors,
    e: Vectors,
}

impl<S: Simd> Tridiagonal<S> {
    /// Reduces by reflectors from the first column on. Their tails stay below the diagonals, in the place of what they removed.
    #[inline(always)]
    fn reduce(&self, taus: Vectors, v: Vectors, p: Vectors) {
        let Self { s, n, lower, d, e } = *self;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let at = |i: usize, j: usize| i * (i + 1) / 2 + j;
        // SAFETY (this function): rows and columns below n.
        unsafe {
            for k in 0..n {
                d.set(s, k, lower.get(s, at(k, k)));
                e.set(s, k, if k + 1 < n { lower.get(s, at(k + 1, k)) } else { zero });
                if k + 2 >= n {
                    continue;
                }
                let head = lower.get(s, at(k + 1, k));
                let mut squares = zero;
                for i in k + 2..n {
                    let x = lower.get(s, at(i, k));
                    squares = s.fma(x, x, squares);
                }
                let [beta, tau, factor] = reflectors(s, head, squares);
                e.set(s, k, beta);
                taus.set(s, k, tau);
                v.set(s, k + 1, one);
                for i in k + 2..n {
                    let x = s.mul(lower.get(s, at(i, k)), factor);
                    lower.set(s, at(i, k), x);
                    v.set(s, i, x);
                }
                self.rank_two(k + 1, tau, v, p);
            }
        }
    }

    /// `A ← (1 − τ·v·vᵀ)·A·(1 − τ·v·vᵀ)` of rows and columns from `start` on.
    #[inline(always)]
    fn rank_two(&self, start: usize, tau: S::F, v: Vectors, p: Vectors) {
        let Self { s, n, lower, .. } = *self;
        let zero = s.splat(0.0);
        // SAFETY (this function): rows and columns below n.
        unsafe {
            let mut product = zero;
            for i in start..n {
                let (row, vi) = (i * (i + 1) / 2, v.get(s, i));
                let mut sums = [zero; 2];
                for j in start..i {
                    let x = lower.get(s, row + j);
                    sums[j & 1] = s.fma(x, v.get(s, j), sums[j & 1]);
                    p.set(s, j, s.fma(x, vi, p.get(s, j)));
                }
                p.set(s, i, s.fma(lower.get(s, row + i), vi, s.add(sums[0], sums[1])));
            }
            for i in start..n {
                let x = s.mul(tau, p.get(s, i));
                p.set(s, i, x);
                product = s.fma(x, v.get(s, i), product);
            }
            let half = s.mul(s.mul(s.splat(0.5), tau), product);
            for i in start..n {
                p.set(s, i, s.neg_fma(half, v.get(s, i), p.get(s, i)));
            }
            for i in start..n {
                let (row, vi, wi) = (i * (i + 1) / 2, v.get(s, i), p.get(s, i));
                for j in start..=i {
                    let x = s.neg_fma(vi, p.get(s, j), lower.get(s, row + j));
                    lower.set(s, row + j, s.neg_fma(wi, v.get(s, j), x));
                }
            }
        }
    }

    /// The product of the reflectors.
    #[inline(always)]
    fn form(&self, q: Vectors, taus: Vectors, v: Vectors) {
        let Self { s, n, lower, .. } = *self;
        // SAFETY (this function): rows and columns below n.
        unsafe {
            for i in 0..n {
                for j in 0..n {
                    q.set(s, i * n + j, s.splat(if i == j { 1.0 } else { 0.0 }));
                }
            }
            for k in (0..n.saturating_sub(2)).rev() {
                for i in k + 2..n {
                    v.set(s, i, lower.get(s, i * (i + 1) / 2 + k));
                }
                let (x, size) = ((k + 1) * (n + 1), n - k - 1);
                let (v, v_step, x_step) = (v.at::<S>(k + 2).cast_const(), S::LANES, n * S::LANES);
                let place = Place { v, v_step, x: q.at::<S>(x), x_step, rows: size, vectors: size };
                reflect::<S, f32, false>(s, s.neg(taus.get(s, k)), place);
            }
        }
    }

    /// Implicit QL until nothing is left beside the diagonals; the lanes where something was after all sweeps allowed.
    #[inline(always)]
    fn iterate(&self, q: Option<Vectors>, rotations: Vectors) -> u32 {
        let n = self.n;
        let mut kept = [(0, 0); TOGETHER];
        let (mut count, mut unfinished, mut start) = (0, 0, 0);
        let floor = self.floor();
        for _ in 0..SWEEPS * n {
            let Some(block) = self.block(start, floor) else {
                unfinished = 0;
                break;
            };
            (start, unfinished) = (block.low, block.lanes);
            self.sweep(&block, Vectors(rotations.at::<S>(2 * n * count)));
            kept[count] = (block.low, block.high);
            count += 1;
            if count == TOGETHER {
                self.rotate(q, rotations, &kept);
                count = 0;
            }
        }
        self.rotate(q, rotations, &kept[..count]);
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

    /// In each lane the first block that is not diagonal yet, from row `start` on; none if no lane has one.
    #[inline(always)]
    fn block(&self, start: usize, floor: S::F) -> Option<Block<S>> {
        let Self { s, n, d, e, .. } = *self;
        let (zero, none) = (s.splat(0.0), s.splat(n as f32));
        let no = s.lt(zero, zero);
        let (mut begun, mut ended) = (no, no);
        let (mut first, mut last) = (none, s.splat(n as f32 - 1.0));
        let [mut d_first, mut d_next, mut e_first] = [zero, zero, s.splat(1.0)];
        // SAFETY (this function): vectors below n.
        unsafe {
            let mut d_last = d.get(s, n - 1);
            let mut here = d.get(s, start.min(n - 1));
            for i in start..n - 1 {
                let (beside, next, index) = (e.get(s, i), d.get(s, i + 1), s.splat(i as f32));
                let size = s.max(s.add(s.abs(here), s.abs(next)), floor);
                let small = s.le(s.abs(beside), s.mul(s.splat(0.5 * f32::EPSILON), size));
                let begins = s.and_m(s.not_m(begun), s.not_m(small));
                first = s.select(begins, index, first);
                d_first = s.select(begins, here, d_first);
                d_next = s.select(begins, next, d_next);
                e_first = s.select(begins, beside, e_first);
                let ends = s.and_m(s.and_m(begun, small), s.not_m(ended));
                last = s.select(ends, index, last);
                d_last = s.select(ends, here, d_last);
                begun = s.or_m(begun, begins);
                ended = s.or_m(ended, ends);
                here = next;
            }
            let lanes = s.mask_bits(begun);
            if lanes == 0 {
                return None;
            }
            let one = s.splat(1.0);
            let g = s.div(s.sub(d_next, d_first), s.add(e_first, e_first));
            let r = s.sqrt(s.fma(g, g, one));
            let shifted = s.add(s.sub(d_last, d_first), s.div(e_first, s.add(g, s.xor_sign(r, g))));
            let (firsts, lasts) = (s.to_array(first), s.to_array(last));
            let (mut low, mut high) = (n, 0);
            for lane in (0..S::LANES).filter(|lane| lanes >> lane & 1 == 1) {
                low = low.min(firsts[lane] as usize);
                high = high.max(lasts[lane] as usize);
            }
            Some(Block { first, last, firsts, lasts, shifted, lanes, low, high })
        }
    }

    /// A sweep of each lane's block, upwards; its rotations are the identity elsewhere.
    #[inline(always)]
    fn sweep(&self, block: &Block<S>, rotations: Vectors) {
        let Self { s, d, e, .. } = *self;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let (mut g, mut sine, mut cosine, mut p) = (block.shifted, one, one, zero);
        // SAFETY (this function): vectors below n, and lanes of them.
        unsafe {
            let mut above = d.get(s, block.high);
            for i in (block.low..block.high).rev() {
                let index = s.splat(i as f32);
                let active = s.and_m(s.le(block.first, index), s.lt(index, block.last));
                let (beside, here) = (e.get(s, i), d.get(s, i));
                let (f, b) = (s.mul(sine, beside), s.mul(cosine, beside));
                let r = s.sqrt(s.fma(f, f, s.mul(g, g)));
                let some = s.gt(r, zero);
                let inverse = s.div(one, s.select(some, r, one));
                let new_sine = s.select(some, s.mul(f, inverse), zero);
                let new_cosine = s.select(some, s.mul(g, inverse), one);
                e.set(s, i + 1, s.select(active, r, e.get(s, i + 1)));
                let moved = s.sub(above, p);
                let twice = s.mul(s.add(new_cosine, new_cosine), b);
                let r = s.fma(s.sub(here, moved), new_sine, twice);
                let new_p = s.mul(new_sine, r);
                d.set(s, i + 1, s.select(active, s.add(moved, new_p), above));
                g = s.select(active, s.fma_sub(new_cosine, r, b), g);
                p = s.select(active, new_p, p);
                sine = s.select(active, new_sine, sine);
                cosine = s.select(active, new_cosine, cosine);
                rotations.set(s, 2 * i, s.select(active, new_cosine, one));
                rotations.set(s, 2 * i + 1, s.select(active, new_sine, zero));
                above = here;
            }
            let (p, g) = (s.to_array(p), s.to_array(g));
            for lane in (0..S::LANES).filter(|lane| block.lanes >> lane & 1 == 1) {
                let (first, last) = (block.firsts[lane] as usize, block.lasts[lane] as usize);
                *d.at::<S>(first).add(lane) -= p[lane];
                *e.at::<S>(first).add(lane) = g[lane];
                *e.at::<S>(last).add(lane) = 0.0;
            }
        }
    }

    /// Applies the rotations of sweeps over some rows each to the vectors.
    #[inline(always)]
    fn rotate(&self, q: Option<Vectors>, rotations: Vectors, sweeps: &[(usize, usize)]) {
        let (Some(q), n) = (q, self.n) else { return };
        let whole = n / ROWS * ROWS;
        for row in (0..whole).step_by(ROWS) {
            self.rotate_rows::<ROWS>(q, row, rotations, sweeps);
        }
        for row in whole..n {
            self.rotate_rows::<1>(q, row, rotations, sweeps);
        }
    }

    /// [`Self::rotate`] for `R` rows.
    #[inline(always)]
    fn rotate_rows<const R: usize>(&self, q: Vectors, row: usize, rotations: Vectors, sweeps: &[(usize, usize)]) {
        let Self { s, n, .. } = *self;
        // SAFETY (this function): rows and columns below n, and rotations of as many sweeps.
        unsafe {
            for (k, &(low, high)) in sweeps.iter().enumerate() {
                let mut carried = [s.splat(0.0); R];
                for (r, carried) in carried.iter_mut().enumerate() {
                    *carried = q.get(s, (row + r) * n + high);
                }
                for i in (low..high).rev() {
                    let cosine = rotations.get(s, 2 * (n * k + i));
                    let sine = rotations.get(s, 2 * (n * k + i) + 1);
                    for (r, carried) in carried.iter_mut().enumerate() {
                        let at = (row + r) * n + i;
                        let x = q.get(s, at);
                        q.set(s, at + 1, s.fma(sine, x, s.mul(cosine, *carried)));
                        *carried = s.neg_fma(sine, *carried, s.mul(cosine, x));
                    }
                }
                for (r, carried) in carried.iter().enumerate() {
                    q.set(s, (row + r) * n + low, *carried);
                }
            }
        }
    }
}

/// What each lane works on: rows from the first to the last, between the lowest and the highest of all.
struct Block<S: Simd> {
    first: S::F,
    last: S::F,
    firsts: [f32; MAX_LANES],
    lasts: [f32; MAX_LANES],
    shifted: S::F,
    lanes: u32,
    low: usize,
    high: usize,
}

/// Writes the outputs of each lane in the order of its values; gives the lanes whose iteration did not end.
#[inline(always)]
fn write<E: Entry<Real = f32>>(
    batch: &Batch<E>,
    first: usize,
    [d, q]: [&[f32]; 2],
    scales: [f32; MAX_LANES],
    bad: u32,
    unfinished: u32,
    l: usize,
) -> u32 {
    let n = batch.n;
    let mut order = [[0u8; MOST]; MAX_LANES];
    let lanes = l.min(batch.count - first);
    for lane in 0..lanes {
        let matrix = first + lane;
        let order = &mut order[lane][..n];
        order.iter_mut().enumerate().for_each(|(j, at)| *at = j as u8);
        order.sort_by(|&a, &b| d[usize::from(a) * l + lane].total_cmp(&d[usize::from(b) * l + lane]));
        let poison = if bad >> lane & 1 == 1 { f32::NAN } else { 0.0 };
        // SAFETY: each matrix has outputs of its own.
        let (values, status) =
            unsafe { (batch.values.slice(matrix * n..(matrix + 1) * n), batch.status.slice(matrix..matrix + 1)) };
        status[0] = if bad >> lane & 1 == 1 { NOT_FINITE } else { 0 };
        for (out, &j) in values.iter_mut().zip(order.iter()) {
            *out = E::of(d[usize::from(j) * l + lane] / scales[lane] + poison);
        }
    }
    let Some(vectors) = &batch.vectors else { return unfinished & !bad };
    for (i, row) in q.chunks_exact(n * l).enumerate() {
        for lane in 0..lanes {
            let poison = if bad >> lane & 1 == 1 { f32::NAN } else { 0.0 };
            let at = ((first + lane) * n + i) * n;
            // SAFETY: as above.
            let out = unsafe { vectors.slice(at..at + n) };
            for (out, &j) in out.iter_mut().zip(&order[lane][..n]) {
                *out = E::of(row[usize::from(j) * l + lane] + poison);
            }
        }
    }
    let exist = (1u64 << lanes) as u32;
    unfinished & !bad & exist.wrapping_sub(1)
}
