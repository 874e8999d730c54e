//! A block of reflectors `Q = 1 − V·T·Vᵀ` meets a matrix, `X ← X − V·T·(Vᵀ·X)`: strips of columns pass through the cache
//! once, and no operand is packed, as V by rows is what both products read one number of at a time.

use super::real::Real;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// Columns of a unit: extents of panels and rows of matrices are whole ones, filled up with zeros.
pub(crate) const UNIT: usize = MAX_LANES;
/// Most reflectors of a block.
pub(crate) const MOST: usize = 64;
/// Vectors of a strip's rows.
const VECTORS: usize = 3;
/// Rows of a strip that stay in the first cache.
const DEPTH: usize = 128;
/// Multiply-adds of a block and its columns from which threads share it.
const SHARED_WORK: usize = 1 << 20;

/// Whole units.
pub(crate) fn padded(n: usize) -> usize {
    n.next_multiple_of(UNIT)
}

/// Elements from row to row for `n` of them in whole units: an odd number of cache lines, so that neighbouring rows lie in
/// different sets of the cache.
pub(crate) fn stride<T>(n: usize) -> usize {
    let line = 64 / size_of::<T>();
    ((padded(n) / line) | 1) * line
}

/// Reflectors: columns of V, one below the other from row to row, and −T, upper triangular.
pub(crate) struct Block<T> {
    pub(crate) v: *const T,
    pub(crate) v_step: usize,
    /// Rows, in whole units, and at least as many as reflectors.
    pub(crate) rows: usize,
    /// Reflectors, in whole units: up to [`MOST`].
    pub(crate) count: usize,
    pub(crate) t: *const T,
    pub(crate) t_step: usize,
}

impl<T> Clone for Block<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Block<T> {}

/// What is known of the columns that reflectors meet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Nothing.
    Any,
    /// As many rows as there are reflectors count as zero, whatever is there.
    BelowZeros,
    /// All count as those of the identity, from this one on.
    Identity(usize),
}

/// Columns of a matrix in whole units.
pub(crate) struct Target<T> {
    pub(crate) x: *mut T,
    pub(crate) x_step: usize,
    pub(crate) columns: usize,
    pub(crate) known: Columns,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

/// Applies the block, transposed if `forward`, to columns, on all threads if `shared` and it is work enough.
///
/// # Safety
/// The block and its columns exist and do not overlap; nothing else uses them.
pub(crate) unsafe fn apply<T: Real>(block: Block<T>, target: Target<T>, forward: bool, shared: bool) {
    struct Pointers<T>(Block<T>, Target<T>);
    // SAFETY: the block is only read, and every task has its own columns.
    unsafe impl<T> Sync for Pointers<T> {}
    let level = Level::current();
    let units = target.columns / UNIT;
    if !shared || 2 * block.rows * block.count * target.columns < SHARED_WORK {
        return dispatch_at(level, Strips { block, target, forward });
    }
    // As many parts as make them equal and strips whole where that is possible.
    let tasks = units.div_ceil(VECTORS).min(4 * parallel::threads());
    let tasks = if units < 2 * VECTORS * tasks {
        units.min(parallel::threads() * units.div_ceil(VECTORS * parallel::threads()))
    } else {
        tasks
    };
    let pointers = Pointers(block, target);
    let pointers = &pointers;
    parallel::ranges(tasks, 1, |range| {
        let Pointers(block, target) = pointers;
        let [from, to] = [range.start, range.end].map(|task| task * units / tasks * UNIT);
        let known = match target.known {
            Columns::Identity(first) => Columns::Identity(first + from),
            known => known,
        };
        let target = Target { x: target.x.wrapping_add(from), columns: to - from, known, ..*target };
        dispatch_at(level, Strips { block: *block, target, forward });
    });
}

/// The columns of one task.
struct Strips<T> {
    block: Block<T>,
    target: Target<T>,
    forward: bool,
}

/// Memory for the products of a strip.
#[repr(align(64))]
struct Weights<T>([T; MOST * VECTORS * MAX_LANES]);

impl<T: Real> Kernel for Strips<T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lanes, mut at) = (T::lanes::<S>(), 0);
        let vectors = self.target.columns / lanes;
        // SAFETY: whoever made this promises the block and the columns.
        unsafe {
            while at + VECTORS <= vectors {
                self.strip::<S, VECTORS>(s, at * lanes);
                at += VECTORS;
            }
            if at + 2 <= vectors {
                self.strip::<S, 2>(s, at * lanes);
                at += 2;
            }
            if at < vectors {
                self.strip::<S, 1>(s, at * lanes);
            }
        }
    }
}

impl<T: Real> Strips<T> {
    /// `B` vectors of columns from `column` on.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn strip<S: Simd, const B: usize>(&self, s: S, column: usize) {
        match S::LEVEL {
            // SAFETY: the caller's promise.
            Level::Avx512 | Level::Neon => unsafe { self.tall::<S, 8, B>(s, column) },
            // SAFETY: as above.
            _ => unsafe { self.tall::<S, 4, B>(s, column) },
        }
    }

    /// [`Strips::strip`] by tiles of `R` rows.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn tall<S: Simd, const R: usize, const B: usize>(&self, s: S, column: usize) {
        let Self { block, target, forward } = self;
        let Block { v, v_step, rows, count, .. } = *block;
        let step = B * T::lanes::<S>();
        let x = target.x.wrapping_add(column);
        let zeros = match target.known {
            Columns::Any => 0,
            Columns::BelowZeros => count,
            Columns::Identity(_) => rows,
        };
        let mut first = Weights([T::default(); MOST * VECTORS * MAX_LANES]);
        let mut second = Weights([T::default(); MOST * VECTORS * MAX_LANES]);
        let (w, weights) = (first.0.as_mut_ptr(), second.0.as_mut_ptr());
        // SAFETY (this block): rows, reflectors and columns are those of the block and the target.
        unsafe {
            if let Columns::Identity(first) = target.known {
                for j in 0..step {
                    let row = v.add((first + column + j) * v_step);
                    (0..count).for_each(|l| *w.add(l * step + j) = *row.add(l));
                }
            } else {
                products::<S, T, R, B>(s, *block, zeros, x, target.x_step, w);
            }
            through::<S, T, R, B>(s, *block, *forward, w, weights);
            for row in (0..rows).step_by(R) {
                let to = x.add(row * target.x_step);
                for next in row + R..rows.min(row + 2 * R) {
                    prefetch::<S, T, B>(s, x.add(next * target.x_step));
                }
                let terms = count.min(row + R);
                tile::<S, T, R, B, false>(
                    s,
                    [v.add(row * v_step), weights],
                    [v_step, step],
                    terms,
                    [to, to],
                    target.x_step,
                    row >= zeros,
                );
            }
            if let Columns::Identity(first) = target.known {
                for j in 0..step {
                    let diagonal = x.add((first + column + j) * target.x_step + j);
                    *diagonal = *diagonal + T::ONE;
                }
            }
        }
    }
}

/// `w ← w + Vᵀ·X` for `B` vectors of columns, rows from `zeros` on.
///
/// # Safety
/// The rows of `x` exist, and `w` has one for each reflector.
#[inline(always)]
unsafe fn products<S: Simd, T: Real, const R: usize, const B: usize>(
    s: S,
    block: Block<T>,
    zeros: usize,
    x: *const T,
    x_step: usize,
    w: *mut T,
) {
    let Block { v, v_step, rows, count, .. } = block;
    let step = B * T::lanes::<S>();
    for chunk in (zeros..rows).step_by(DEPTH) {
        let end = rows.min(chunk + DEPTH);
        for c in (0..count).step_by(R) {
            // Reflectors begin with their own row.
            let from = chunk.max(c);
            if from < end {
                // SAFETY: the caller's promise.
                unsafe {
                    // A share of the next rows for each tile.
                    for row in end + c * DEPTH / count..rows.min(end + (c + R) * DEPTH / count) {
                        prefetch::<S, T, B>(s, x.add(row * x_step));
                    }
                    let (a, b, to) = (v.add(from * v_step + c), x.add(from * x_step), w.add(c * step));
                    tile::<S, T, R, B, true>(s, [a, b], [v_step, x_step], end - from, [to, to], step, true);
                }
            }
        }
    }
}

/// Brings a row of a strip nearer.
#[inline(always)]
fn prefetch<S: Simd, T: Real, const B: usize>(s: S, row: *const T) {
    for line in (0..B * T::lanes::<S>()).step_by(64 / size_of::<T>()) {
        s.prefetch(row.wrapping_add(line));
    }
}

/// `weights ← −T·w`, or `−Tᵀ·w` if `forward`.
///
/// # Safety
/// Both have a row for each reflector.
#[inline(always)]
unsafe fn through<S: Simd, T: Real, const R: usize, const B: usize>(
    s: S,
    block: Block<T>,
    forward: bool,
    w: *const T,
    weights: *mut T,
) {
    let Block { count, t, t_step, .. } = block;
    let step = B * T::lanes::<S>();
    for c in (0..count).step_by(R) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = weights.add(c * step);
            if forward {
                tile::<S, T, R, B, true>(s, [t.add(c), w], [t_step, step], c + R, [to, to], step, false);
            } else {
                let (a, b) = (t.add(c * t_step + c), w.add(c * step));
                tile::<S, T, R, B, false>(s, [a, b], [t_step, step], count - c, [to, to], step, false);
            }
        }
    }
}

/// `R` rows and `B` vectors of `to ← from + A·B`, or `A·B` unless `add`: element (i, l) of A is at `i + l·stride` if
/// `COLUMN`, at `i·stride + l` if not; rows of B are as many elements apart as the second stride says, those of `from` and
/// `to` `step`.
///
/// # Safety
/// All elements exist.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn tile<S: Simd, T: Real, const R: usize, const B: usize, const COLUMN: bool>(
    s: S,
    [a, b]: [*const T; 2],
    [a_step, b_step]: [usize; 2],
    terms: usize,
    [from, to]: [*mut T; 2],
    step: usize,
    add: bool,
) {
    let lanes = T::lanes::<S>();
    let zero = T::splat(s, T::default());
    let mut sums = [[zero; B]; R];
    // SAFETY (this function): the caller's promise.
    unsafe {
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = T::load(s, from.add(i * step + j * lanes));
                }
            }
        }
        for l in 0..terms {
            let mut row = [zero; B];
            for (j, y) in row.iter_mut().enumerate() {
                *y = T::load(s, b.add(l * b_step + j * lanes));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = T::splat(s, *if COLUMN { a.add(l * a_step + i) } else { a.add(i * a_step + l) });
                for (sum, y) in sums.iter_mut().zip(row) {
                    *sum = T::fma(s, x, y, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                T::store(s, to.add(i * step + j * lanes), *sum);
            }
        }
    }
}

/// Joins two neighbouring blocks: `T₁₂ = −T₁·(V₁ᵀ·V₂)·T₂` goes beside the triangle of the first.
pub(super) struct Join<T> {
    /// The first block.
    pub(super) first: Block<T>,
    /// Reflectors of the second, in whole units; those of both are in the same rows of V and of T.
    pub(super) count: usize,
    /// Where the triangle is written.
    pub(super) t: *mut T,
}

impl<T: Real> Kernel for Join<T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match S::LEVEL {
            // SAFETY: whoever made this promises both blocks.
            Level::Avx512 | Level::Neon => unsafe { self.tall::<S, 8>(s) },
            // SAFETY: as above.
            _ => unsafe { self.tall::<S, 4>(s) },
        }
    }
}

impl<T: Real> Join<T> {
    /// The join by tiles of `R` rows.
    ///
    /// # Safety
    /// Both blocks exist.
    #[inline(always)]
    unsafe fn tall<S: Simd, const R: usize>(&self, s: S) {
        let Self { first, count, t } = *self;
        let lanes = T::lanes::<S>();
        let mut gram = [T::default(); MOST * MAX_LANES];
        let mut half = [T::default(); MOST * MOST / 4];
        // SAFETY (this function): the caller's promise.
        unsafe {
            for column in (0..count).step_by(lanes) {
                gram[..first.count * lanes].fill(T::default());
                let x = first.v.add(first.count + column);
                products::<S, T, R, 1>(s, first, first.count, x, first.v_step, gram.as_mut_ptr());
                let mut part = [T::default(); MOST * MAX_LANES];
                through::<S, T, R, 1>(s, first, false, gram.as_ptr(), part.as_mut_ptr());
                for i in 0..first.count {
                    half[i * count + column..][..lanes].copy_from_slice(&part[i * lanes..][..lanes]);
                }
            }
            let second = t.add(first.count * first.t_step + first.count);
            for column in (0..count).step_by(lanes) {
                for row in (0..first.count).step_by(R) {
                    let to = t.add(row * first.t_step + first.count + column);
                    let (a, b) = (half.as_ptr().add(row * count), second.add(column).cast_const());
                    tile::<S, T, R, 1, false>(s, [a, b], [count, first.t_step], count, [to, to], first.t_step, false);
                }
            }
        }
    }
}

/// The products of a unit of reflectors with each other, `Vᵀ·V`.
///
/// # Safety
/// The block exists, and `to` has room for a unit of rows of a unit each.
#[inline(always)]
pub(super) unsafe fn gram<S: Simd, T: Real>(s: S, block: Block<T>, to: *mut T) {
    let lanes = T::lanes::<S>();
    let mut part = [T::default(); UNIT * MAX_LANES];
    for column in (0..UNIT).step_by(lanes) {
        part.fill(T::default());
        // SAFETY: the caller's promise.
        unsafe {
            let x = block.v.add(column);
            match S::LEVEL {
                Level::Avx512 | Level::Neon => products::<S, T, 8, 1>(s, block, 0, x, block.v_step, part.as_mut_ptr()),
                _ => products::<S, T, 4, 1>(s, block, 0, x, block.v_step, part.as_mut_ptr()),
            }
            for i in 0..UNIT {
                std::ptr::copy_nonoverlapping(part.as_ptr().add(i * lanes), to.add(i * UNIT + column), lanes);
            }
        }
    }
}
