//! Batches of small matrices on the CPU: one-sided Jacobi with a matrix in each lane of a vector.

use super::tolerance;
use crate::interleaved::scale_of;
use crate::lanes::{Entry, Part, gather};
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// Columns up to which a batch is interleaved: beyond, its matrices do not stay in the second-level cache.
const MOST_COLUMNS: usize = 32;
/// Elements likewise.
const MOST_ELEMENTS: usize = 2048;
/// Matrices from which filling the lanes of a vector pays.
const LEAST_MATRICES: usize = 4;
/// Sweeps at most.
const SWEEPS: usize = 40;
/// Squared lengths, of columns of scaled matrices, below which a column counts as zero.
const NEGLIGIBLE: f32 = 1e-29;

/// A batch of matrices that are decomposed, and how.
pub(crate) struct Batch<'a, E> {
    pub a: &'a [E],
    pub m: usize,
    pub n: usize,
    pub count: usize,
    /// The triangle of symmetric matrices that is read; all of others.
    pub part: Part,
    pub symmetric: bool,
    pub values: Shared<E>,
    /// Left vectors (eigenvectors), `m × min(m, n)`.
    pub left: Option<Shared<E>>,
    /// Right vectors as rows.
    pub right: Option<Shared<E>>,
    pub status: Shared<i32>,
}

/// Whether a batch is better decomposed here than one matrix after the other.
pub(crate) fn suits(count: usize, m: usize, n: usize) -> bool {
    let size = m.min(n) <= MOST_COLUMNS && m * n <= MOST_ELEMENTS && m.min(n) > 0;
    size && count >= LEAST_MATRICES && Level::current() != Level::Scalar
}

impl<E: Entry<Real = f32>> Batch<'_, E> {
    /// Decomposes all matrices but those with columns of no length, for which it calls `other`: their vectors want completing.
    pub(crate) fn run(&self, other: impl Fn(usize) + Sync) {
        let level = Level::current();
        let lanes = dispatch_at(level, Width);
        parallel::ranges(self.count.div_ceil(lanes), 1, |groups| {
            for group in groups {
                let left_over = dispatch_at(level, Group { batch: self, first: group * lanes });
                (0..lanes).filter(|lane| left_over >> lane & 1 == 1).for_each(|lane| other(group * lanes + lane));
            }
        });
    }
}

/// Lanes of a vector.
struct Width;

impl Kernel for Width {
    type Out = usize;

    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// As many matrices as a vector has lanes.
struct Group<'a, E> {
    batch: &'a Batch<'a, E>,
    first: usize,
}

impl<E: Entry<Real = f32>> Kernel for Group<'_, E> {
    type Out = u32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u32 {
        let Batch { m, n, symmetric, .. } = *self.batch;
        let (rows, cols) = (m.max(n), m.min(n));
        let carries = !symmetric && self.batch.left.is_some();
        let height = if carries { rows + cols } else { rows };
        let mut memory = Scratch::take((cols * height + m * n) * S::LANES);
        let (w, given) = memory.split_at_mut(cols * height * S::LANES);
        let failed = gather::<S, E>(s, self.batch.a, self.first, [m, n], given, self.batch.part);
        let mut columns = Tile { s, w, rows, cols, height };
        let [scales, shifts] = columns.fill(given, n, m < n, self.batch.part);
        let unfinished = columns.orthogonalise();
        self.write(&columns, [scales, shifts], failed, unfinished)
    }
}

/// The columns of a group of matrices: element `i` of column `j` of all of them is vector `j·height + i`.
struct Tile<'a, S> {
    s: S,
    w: &'a mut [f32],
    rows: usize,
    cols: usize,
    height: usize,
}

impl<S: Simd> Tile<'_, S> {
    #[inline(always)]
    fn at(&self, j: usize, i: usize) -> S::F {
        debug_assert!(j < self.cols && i < self.height);
        // SAFETY: the tile has `cols·height` vectors.
        unsafe { self.s.load(self.w.as_ptr().add((j * self.height + i) * S::LANES)) }
    }

    #[inline(always)]
    fn set(&mut self, j: usize, i: usize, v: S::F) {
        debug_assert!(j < self.cols && i < self.height);
        // SAFETY: as above.
        unsafe { self.s.store(self.w.as_mut_ptr().add((j * self.height + i) * S::LANES), v) }
    }

    /// Copies the columns of the matrices given by rows of `n`, or their rows if `swapped`, scaled by powers of two and
    /// shifted if symmetric; gives scales and shifts.
    #[inline(always)]
    fn fill(&mut self, given: &[f32], n: usize, swapped: bool, part: Part) -> [[f32; MAX_LANES]; 2] {
        let s = self.s;
        let mut largest = s.splat(0.0);
        for j in 0..self.cols {
            for i in 0..self.rows {
                let (row, column) = match part {
                    Part::All if swapped => (j, i),
                    Part::All => (i, j),
                    Part::Lower => (i.max(j), i.min(j)),
                    Part::Upper => (i.min(j), i.max(j)),
                };
                // SAFETY: the element is one of the matrices.
                let x = unsafe { s.load(given.as_ptr().add((row * n + column) * S::LANES)) };
                largest = s.max(s.abs(x), largest);
                self.set(j, i, x);
            }
            for i in self.rows..self.height {
                self.set(j, i, s.splat(if i == j + self.rows { 1.0 } else { 0.0 }));
            }
        }
        let scales = s.to_array(largest).map(scale_of);
        // SAFETY: the array holds a vector of any level.
        let scale = unsafe { s.load(scales.as_ptr()) };
        let mut norm = s.splat(0.0);
        for j in 0..self.cols {
            let mut sum = s.splat(0.0);
            for i in 0..self.rows {
                let x = s.mul(self.at(j, i), scale);
                sum = s.add(sum, s.abs(x));
                self.set(j, i, x);
            }
            norm = s.max(sum, norm);
        }
        let mut shifts = [0.0; MAX_LANES];
        if part != Part::All {
            let shift = s.select(s.gt(norm, s.splat(0.0)), s.mul(norm, s.splat(1.25)), s.splat(1.0));
            (0..self.cols).for_each(|j| self.set(j, j, s.add(self.at(j, j), shift)));
            shifts = s.to_array(shift);
        }
        [scales, shifts]
    }

    /// Rotates until no pair needs it; says in which lanes some still did in the last sweep allowed.
    #[inline(always)]
    fn orthogonalise(&mut self) -> u32 {
        let limit = self.s.splat(tolerance(self.rows, f64::from(f32::EPSILON)) as f32);
        let mut rotated = 0;
        for _ in 0..SWEEPS {
            rotated = 0;
            for p in 0..self.cols {
                for q in p + 1..self.cols {
                    rotated |= self.rotate(p, q, limit);
                }
            }
            if rotated == 0 {
                break;
            }
        }
        rotated
    }

    /// Makes two columns orthogonal, as on GPUs, in the lanes where their cosine is above `limit`; gives those.
    #[inline(always)]
    fn rotate(&mut self, p: usize, q: usize, limit: S::F) -> u32 {
        let s = self.s;
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let (mut aa, mut bb, mut ab) = ([zero; 2], [zero; 2], [zero; 2]);
        let mut i = 0;
        while i < self.rows {
            let half = i & 1;
            let (x, y) = (self.at(p, i), self.at(q, i));
            aa[half] = s.fma(x, x, aa[half]);
            bb[half] = s.fma(y, y, bb[half]);
            ab[half] = s.fma(x, y, ab[half]);
            i += 1;
        }
        let [aa, bb, ab] = [aa, bb, ab].map(|sums| s.add(sums[0], sums[1]));
        let product = s.mul(s.sqrt(aa), s.sqrt(bb));
        let seen = s.gt(s.abs(ab), s.mul(limit, product));
        let needed = s.and_m(seen, s.gt(s.min(aa, bb), s.splat(NEGLIGIBLE)));
        let lanes = s.mask_bits(needed);
        if lanes == 0 {
            return 0;
        }
        let unit = s.div(one, s.select(needed, product, one));
        let twice = s.mul(s.add(ab, ab), unit);
        let gap = s.mul(s.sub(bb, aa), unit);
        let root = s.sqrt(s.fma(gap, gap, s.mul(twice, twice)));
        let t = s.div(s.xor_sign(twice, gap), s.add(s.abs(gap), root));
        let tau = s.select(needed, s.div(t, s.add(one, s.sqrt(s.fma(t, t, one)))), zero);
        let sine = s.div(s.add(tau, tau), s.fma(tau, tau, one));
        for i in 0..self.height {
            let (x, y) = (self.at(p, i), self.at(q, i));
            self.set(p, i, s.neg_fma(sine, s.fma(tau, x, y), x));
            self.set(q, i, s.fma(sine, s.neg_fma(tau, y, x), y));
        }
        lanes
    }
}

impl<E: Entry<Real = f32>> Group<'_, E> {
    /// Writes the outputs of each lane in the order of its values; gives the lanes that have a column of no length.
    #[inline(always)]
    fn write<S: Simd>(&self, tile: &Tile<S>, [scales, shifts]: [[f32; MAX_LANES]; 2], failed: u32, late: u32) -> u32 {
        let Batch { m, n, count, symmetric, .. } = *self.batch;
        let (rows, cols, s) = (tile.rows, tile.cols, tile.s);
        let mut lengths = [[0.0; MAX_LANES]; MOST_COLUMNS];
        for (j, length) in lengths.iter_mut().enumerate().take(cols) {
            let sum = (0..rows).fold(s.splat(0.0), |sum, i| s.fma(tile.at(j, i), tile.at(j, i), sum));
            *length = s.to_array(s.sqrt(sum));
        }
        let mut left_over = 0;
        for lane in 0..S::LANES.min(count - self.first) {
            let matrix = self.first + lane;
            let bad = failed >> lane & 1 == 1;
            let mut order: [usize; MOST_COLUMNS] = std::array::from_fn(|j| j);
            let length = |j: usize| lengths[j][lane];
            order[..cols].sort_by(|&a, &b| {
                if symmetric { length(a).total_cmp(&length(b)) } else { length(b).total_cmp(&length(a)) }
            });
            if !bad && self.batch.left.is_some() && order[..cols].iter().any(|&j| length(j) <= NEGLIGIBLE.sqrt()) {
                left_over |= 1 << lane;
                continue;
            }
            let poison = if bad { f32::NAN } else { 0.0 };
            // SAFETY: each matrix has outputs of its own.
            let (values, status) = unsafe {
                let values = self.batch.values.slice(matrix * cols..(matrix + 1) * cols);
                (values, self.batch.status.slice(matrix..matrix + 1))
            };
            status[0] = if bad { NOT_FINITE } else { i32::from(late >> lane & 1 == 1) };
            for (out, &j) in values.iter_mut().zip(&order) {
                *out = E::of((length(j) - shifts[lane]) / scales[lane] + poison);
            }
            let at = |j: usize, i: usize| tile.w[(j * tile.height + i) * S::LANES + lane] + poison;
            let long = |c: usize, i: usize| E::of(at(order[c], i) / length(order[c]));
            let carried = |c: usize, i: usize| E::of(at(order[c], rows + i));
            if let Some(left) = &self.batch.left {
                // SAFETY: as above.
                let left = unsafe { left.slice(matrix * m * cols..(matrix + 1) * m * cols) };
                for (e, out) in left.iter_mut().enumerate() {
                    *out = if m >= n { long(e % cols, e / cols) } else { carried(e % cols, e / cols) };
                }
            }
            if let Some(right) = &self.batch.right {
                // SAFETY: as above.
                let right = unsafe { right.slice(matrix * n * cols..(matrix + 1) * n * cols) };
                for (e, out) in right.iter_mut().enumerate() {
                    *out = if m >= n { carried(e / n, e % n) } else { long(e / n, e % n) };
                }
            }
        }
        left_over
    }
}
