//! Batches of matrices in the lanes of vectors: `A = U·B·Vᵀ` by reflectors, then implicit QR of the bidiagonal `B` (LAPACK's
//! `gebrd` and `bdsqr`), whose rotations are kept and applied to a few rows of `U` and `V` at a time.

mod iterate;

use crate::interleaved::{Vectors, Width, reflectors, scale_of};
use crate::lanes::{Entry, Part, Real, gather};
use crate::qr::real::{Place, reflect};
use crate::status::NOT_FINITE;
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};
use iterate::{Bidiagonal, TOGETHER};

/// The largest smaller extent, and the most elements: of sixteen matrices beyond, vectors do not stay in a cache.
const MOST: usize = 160;
const MOST_ELEMENTS: usize = 160 * 160;
/// Matrices from which filling the lanes of a vector pays.
const LEAST_MATRICES: usize = 4;
/// A batch of matrices, and where their values and vectors go.
pub(super) struct Batch<'a, E> {
    pub(super) a: &'a [E],
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) count: usize,
    pub(super) values: Shared<E>,
    /// Left vectors, and right ones as rows.
    pub(super) vectors: [Shared<E>; 2],
    pub(super) status: Shared<i32>,
}

/// Whether a batch is better decomposed here than one matrix after the other.
pub(super) fn suits(count: usize, m: usize, n: usize) -> bool {
    let size = (1..=MOST).contains(&m.min(n)) && m * n <= MOST_ELEMENTS;
    size && count >= LEAST_MATRICES && Level::current() != Level::Scalar
}

impl<E: Entry<Real = f32>> Batch<'_, E> {
    /// Decomposes all matrices but those whose iteration did not end, for which it calls `other`.
    pub(super) fn run(&self, other: impl Fn(usize) + Sync) {
        let (level, rows, cols) = (Level::current(), self.m.max(self.n), self.m.min(self.n));
        let lanes = dispatch_at(level, Width);
        let vectors = 2 * rows * cols + cols * cols + 4 * cols + 4 * cols * TOGETHER;
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
        let (rows, cols, l) = (batch.m.max(batch.n), batch.m.min(batch.n), S::LANES);
        let (a, rest) = memory.split_at_mut(rows * cols * l);
        let (u, rest) = rest.split_at_mut(rows * cols * l);
        let (v, rest) = rest.split_at_mut(cols * cols * l);
        let (d, rest) = rest.split_at_mut(cols * l);
        let (e, rest) = rest.split_at_mut(cols * l);
        let (taus, rotations) = rest.split_at_mut(2 * cols * l);
        // The matrices come to where left vectors go: they are needed once, to be turned if they are wide.
        let bad = gather::<S, E>(s, batch.a, first, [batch.m, batch.n], u, Part::All);
        let scales = arrange(s, u, a, [rows, cols], batch.m < batch.n, bad);
        let [a, u, v, d, e, taus, rotations] = [a, u, v, d, e, taus, rotations].map(|x| Vectors(x.as_mut_ptr()));
        let reduced = Reduction { s, rows, cols, a, d, e, taus };
        reduced.run();
        reduced.form(u, v);
        let b = Bidiagonal { s, n: cols, rows, d, e, vectors: [u, v] };
        let unfinished = b.iterate(rotations);
        // SAFETY: the memory is split in these sizes, and is not used otherwise any more.
        let [d, u, v] = unsafe {
            [(d, cols), (u, rows * cols), (v, cols * cols)].map(|(x, n)| std::slice::from_raw_parts_mut(x.0, n * l))
        };
        write(batch, first, [d, u, v], scales, bad, unfinished, l)
    }
}

/// Copies matrices, turned if they are wide, and scales them by powers of two; gives these. Failed lanes are zero.
#[inline(always)]
fn arrange<S: Simd>(
    s: S,
    from: &[f32],
    to: &mut [f32],
    [rows, cols]: [usize; 2],
    wide: bool,
    bad: u32,
) -> [f32; MAX_LANES] {
    let flags: [f32; MAX_LANES] = std::array::from_fn(|lane| (bad >> lane & 1) as f32);
    let (from, to) = (Vectors(from.as_ptr().cast_mut()), Vectors(to.as_mut_ptr()));
    let zero = s.splat(0.0);
    // SAFETY (this function): elements of the matrices, and arrays that hold a vector of any level.
    unsafe {
        let good = s.eq(s.load(flags.as_ptr()), zero);
        let mut largest = zero;
        for i in 0..rows {
            for j in 0..cols {
                let x = from.get(s, if wide { j * rows + i } else { i * cols + j });
                let x = s.select(good, x, zero);
                largest = s.max(s.abs(x), largest);
                to.set(s, i * cols + j, x);
            }
        }
        let mut scales = [1.0; MAX_LANES];
        s.store(scales.as_mut_ptr(), largest);
        scales.iter_mut().take(S::LANES).for_each(|x| *x = scale_of(*x));
        let scale = s.load(scales.as_ptr());
        for i in 0..rows * cols {
            to.set(s, i, s.mul(to.get(s, i), scale));
        }
        scales
    }
}

/// Matrices of no more columns than rows that become bidiagonal.
struct Reduction<S> {
    s: S,
    rows: usize,
    cols: usize,
    a: Vectors,
    d: Vectors,
    e: Vectors,
    /// Those of left reflectors, then those of right ones.
    taus: Vectors,
}

impl<S: Simd> Reduction<S> {
    /// Reduces column by column and row by row. The tails of the reflectors stay in the place of what they removed.
    #[inline(always)]
    fn run(&self) {
        let Self { s, rows, cols, a, d, e, taus } = *self;
        // SAFETY (this function): rows and columns of the matrices.
        unsafe {
            for k in 0..cols {
                let (beta, tau) = self.reflector(k * cols + k, cols, rows - k);
                d.set(s, k, beta);
                taus.set(s, k, tau);
                let v = a.at::<S>((k + 1) * cols + k).cast_const();
                let x = a.at::<S>(k * cols + k + 1);
                let (v_step, x_step) = (cols * S::LANES, cols * S::LANES);
                let place = Place { v, v_step, x, x_step, rows: rows - k, vectors: cols - k - 1 };
                reflect::<S, f32, false>(s, s.neg(tau), place);
                e.set(s, k, s.splat(0.0));
                if k + 1 == cols {
                    continue;
                }
                let (beta, tau) = self.reflector(k * cols + k + 1, 1, cols - k - 1);
                e.set(s, k, beta);
                taus.set(s, cols + k, tau);
                let tail = k * cols + k + 2;
                for i in k + 1..rows {
                    let row = i * cols + k + 1;
                    let mut sums = [a.get(s, row), s.splat(0.0), s.splat(0.0), s.splat(0.0)];
                    for j in 0..cols - k - 2 {
                        sums[j & 3] = s.fma(a.get(s, tail + j), a.get(s, row + 1 + j), sums[j & 3]);
                    }
                    let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
                    let factor = s.mul(tau, sum);
                    a.set(s, row, s.sub(a.get(s, row), factor));
                    for j in 0..cols - k - 2 {
                        a.set(s, row + 1 + j, s.neg_fma(factor, a.get(s, tail + j), a.get(s, row + 1 + j)));
                    }
                }
            }
        }
    }

    /// Makes the reflector of `n` vectors from `start` on, `step` apart, in place; gives β and τ.
    ///
    /// # Safety
    /// They are elements of the matrices.
    #[inline(always)]
    unsafe fn reflector(&self, start: usize, step: usize, n: usize) -> (S::F, S::F) {
        let Self { s, a, .. } = *self;
        let zero = s.splat(0.0);
        // SAFETY (this function): the caller's promise.
        unsafe {
            let head = a.get(s, start);
            let mut sums = [zero; 2];
            for i in 1..n {
                let x = a.get(s, start + i * step);
                sums[i & 1] = s.fma(x, x, sums[i & 1]);
            }
            let squares = s.add(sums[0], sums[1]);
            let [beta, tau, factor] = reflectors(s, head, squares);
            for i in 1..n {
                a.set(s, start + i * step, s.mul(a.get(s, start + i * step), factor));
            }
            (beta, tau)
        }
    }

    /// The products of the left and of the right reflectors.
    #[inline(always)]
    fn form(&self, u: Vectors, v: Vectors) {
        let Self { s, rows, cols, a, taus, .. } = *self;
        // SAFETY (this function): rows and columns of the matrices.
        unsafe {
            for (q, height) in [(u, rows), (v, cols)] {
                for i in 0..height {
                    for j in 0..cols {
                        q.set(s, i * cols + j, s.splat(if i == j { 1.0 } else { 0.0 }));
                    }
                }
            }
            let (line, along) = (cols * S::LANES, S::LANES);
            for k in (0..cols).rev() {
                let (tail, x) = (a.at::<S>((k + 1) * cols + k).cast_const(), u.at::<S>(k * cols + k));
                let place = Place { v: tail, v_step: line, x, x_step: line, rows: rows - k, vectors: cols - k };
                reflect::<S, f32, false>(s, s.neg(taus.get(s, k)), place);
            }
            for k in (0..cols - 1).rev() {
                let (tail, x) = (a.at::<S>(k * cols + k + 2).cast_const(), v.at::<S>((k + 1) * (cols + 1)));
                let size = cols - k - 1;
                let place = Place { v: tail, v_step: along, x, x_step: line, rows: size, vectors: size };
                reflect::<S, f32, false>(s, s.neg(taus.get(s, cols + k)), place);
            }
        }
    }
}

/// Writes the outputs of each lane in the order of its values; gives the lanes whose iteration did not end.
#[inline(always)]
fn write<E: Entry<Real = f32>>(
    batch: &Batch<E>,
    first: usize,
    [d, u, v]: [&[f32]; 3],
    scales: [f32; MAX_LANES],
    bad: u32,
    unfinished: u32,
    l: usize,
) -> u32 {
    let (rows, cols) = (batch.m.max(batch.n), batch.m.min(batch.n));
    let mut order = [[0u8; MOST]; MAX_LANES];
    let lanes = l.min(batch.count - first);
    for lane in 0..lanes {
        let matrix = first + lane;
        let order = &mut order[lane][..cols];
        order.iter_mut().enumerate().for_each(|(j, at)| *at = j as u8);
        let size = |j: u8| d[usize::from(j) * l + lane].abs();
        order.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
        let failed = bad >> lane & 1 == 1;
        // SAFETY: each matrix has outputs of its own.
        let (values, status) =
            unsafe { (batch.values.slice(matrix * cols..(matrix + 1) * cols), batch.status.slice(matrix..matrix + 1)) };
        status[0] = if failed { NOT_FINITE } else { 0 };
        for (out, &j) in values.iter_mut().zip(order.iter()) {
            *out = E::of(if failed { f32::NAN } else { size(j) / scales[lane] });
        }
    }
    let exist = ((1u64 << lanes) - 1) as u32;
    let [left, right] = &batch.vectors;
    let wide = batch.m < batch.n;
    // Negative values change the sign of the vectors of the smaller side.
    for (q, height, signed, is_left) in [(u, rows, false, !wide), (v, cols, true, wide)] {
        let target = if is_left { left } else { right };
        for (i, row) in q.chunks_exact(cols * l).enumerate().take(height) {
            for lane in 0..lanes {
                let poison = if bad >> lane & 1 == 1 { f32::NAN } else { 0.0 };
                // SAFETY: as above.
                let out = unsafe { target.slice((first + lane) * height * cols..(first + lane + 1) * height * cols) };
                for (c, &j) in order[lane][..cols].iter().enumerate() {
                    let at = usize::from(j) * l + lane;
                    let x = if signed && d[at] < 0.0 { -row[at] } else { row[at] };
                    out[if is_left { i * cols + c } else { c * height + i }] = E::of(x + poison);
                }
            }
        }
    }
    unfinished & !bad & exist
}
