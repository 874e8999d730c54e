//! A product with at most [`MOST_VECTORS`] rows or columns, bound by reading the large operand once: the small operand's
//! vectors are widened and stay in the caches.

use super::blocked::Target;
use super::number::Number;
use super::plain::Finish;
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::scratch::Scratch;
use bimetal_core::cpu::simd::{Kernel, Level, MAX_LANES, Simd, dispatch_at};

/// Most rows or columns of a product that is computed this way.
pub(super) const MOST_VECTORS: usize = 8;

/// Columns whose sums stay in the first cache while the rows of the large operand go by: 8 vectors take 32 KiB.
const COLUMNS: usize = 1024;

/// Rows of the large operand that are added at once, so that sums are loaded and stored a quarter as often.
const ROWS: usize = 4;

/// The two operands and the result: `d[i·step[0] + j·step[1]] = Σₗ vectors[i, l]·large[j, l]`.
#[derive(Clone, Copy)]
pub(super) struct Skinny<'a, E: Number> {
    pub level: Level,
    pub alpha: f64,
    /// The vectors, one after the other.
    pub vectors: &'a [E::Sum],
    pub count: usize,
    pub k: usize,
    pub large: &'a [E],
    /// Strides of the large operand: from line to line, along the sum. One of them is 1.
    pub strides: [usize; 2],
    pub lines: usize,
    pub d: Target<E::Out>,
    pub step: [usize; 2],
}

impl<E: Number> Skinny<'_, E> {
    /// Computes the product, on several threads if `shared`. They take lines, so no sum depends on their number.
    pub fn run(self, shared: bool) {
        let unit = if self.strides[1] == 1 { 1 } else { 64 };
        let bytes = self.k * unit * size_of::<E>();
        let work = |units: std::ops::Range<usize>| {
            let lines = units.start * unit..(units.end * unit).min(self.lines);
            dispatch_at(self.level, Lines { product: self, lines });
        };
        let units = self.lines.div_ceil(unit);
        if shared { parallel::ranges(units, parallel::BYTES_PER_THREAD / bytes.max(1), work) } else { work(0..units) }
    }

    /// Stores results for lines from `line` on.
    ///
    /// # Safety
    /// They exist, and no other thread writes them.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, vector: usize, line: usize, sums: &mut [E::Sum]) {
        let at = vector * self.step[0] + line * self.step[1];
        // SAFETY: the caller's promise.
        unsafe {
            if self.step[1] == 1 {
                let (sums, out, n) = (sums.as_mut_ptr(), self.d.at(at), sums.len());
                Finish::<E> { sums, out, n, alpha: self.alpha }.run(s);
            } else {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let out = self.d.at(at + i * self.step[1]);
                    Finish::<E> { sums: sum, out, n: 1, alpha: self.alpha }.run(s);
                }
            }
        }
    }
}

struct Lines<'a, E: Number> {
    product: Skinny<'a, E>,
    lines: std::ops::Range<usize>,
}

impl<E: Number> Kernel for Lines<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.product.strides[1] == 1 {
            for line in self.lines.clone() {
                let mut vector = 0;
                while vector < self.product.count {
                    vector += match self.product.count - vector {
                        1 => self.dot::<S, 1, 8>(s, line, vector),
                        2 | 3 => self.dot::<S, 2, 4>(s, line, vector),
                        _ => self.dot::<S, 4, 2>(s, line, vector),
                    };
                }
            }
        } else {
            let mut sums = Scratch::take(MOST_VECTORS * COLUMNS * size_of::<E::Sum>() / 4 + 2);
            let start = sums.as_mut_ptr().cast::<u8>();
            let start = start.wrapping_add(start.align_offset(8)).cast::<E::Sum>();
            // SAFETY: the scratch memory is as long, aligned for any sum, and initialised.
            let sums = unsafe { std::slice::from_raw_parts_mut(start, MOST_VECTORS * COLUMNS) };
            for line in self.lines.clone().step_by(COLUMNS) {
                self.columns(s, line, COLUMNS.min(self.lines.end - line), sums);
            }
        }
    }
}

impl<E: Number> Lines<'_, E> {
    /// The sums of one line with `V` vectors, each in `U` registers; gives `V`.
    #[inline(always)]
    fn dot<S: Simd, const V: usize, const U: usize>(&self, s: S, line: usize, vector: usize) -> usize {
        let Skinny { k, vectors, large, strides, .. } = self.product;
        let lanes = E::lanes::<S>();
        let y = &large[line * strides[0]..line * strides[0] + k];
        let x = &vectors[vector * k..(vector + V) * k];
        let mut sums = [[E::splat(s, E::Sum::default()); U]; V];
        let whole = k / (U * lanes) * (U * lanes);
        let mut totals = [E::Sum::default(); V];
        // SAFETY (this block): every vector read ends within the line and the vectors, which hold `k` elements each.
        unsafe {
            for l in (0..whole).step_by(U * lanes) {
                for u in 0..U {
                    let y = E::load(s, y.as_ptr().add(l + u * lanes));
                    for (v, sums) in sums.iter_mut().enumerate() {
                        let x = E::load_sums(s, x.as_ptr().add(v * k + l + u * lanes));
                        sums[u] = E::fma(s, x, y, sums[u]);
                    }
                }
            }
            let rest = k / lanes * lanes;
            for l in (whole..rest).step_by(lanes) {
                let y = E::load(s, y.as_ptr().add(l));
                for (v, sums) in sums.iter_mut().enumerate() {
                    sums[0] = E::fma(s, E::load_sums(s, x.as_ptr().add(v * k + l)), y, sums[0]);
                }
            }
            for (v, sums) in sums.iter().enumerate() {
                totals[v] = total::<S, E>(s, sums);
                for l in rest..k {
                    totals[v] = E::mul_add(x[v * k + l], y[l].widened(), totals[v]);
                }
            }
            for (v, sum) in totals.iter_mut().enumerate() {
                self.product.store(s, vector + v, line, std::slice::from_mut(sum));
            }
        }
        V
    }

    /// The sums of `width` neighbouring lines that are columns of the large operand: its rows go by once.
    #[inline(always)]
    fn columns<S: Simd>(&self, s: S, line: usize, width: usize, sums: &mut [E::Sum]) {
        let Skinny { k, vectors, count, large, strides, .. } = self.product;
        sums[..count * COLUMNS].fill(E::Sum::default());
        let whole = k / ROWS * ROWS;
        // SAFETY (this block): the rows have `width` elements from `line` on, and the sums `COLUMNS` for each vector.
        unsafe {
            let start = large.as_ptr().add(line);
            for l in (0..whole).step_by(ROWS) {
                let rows: [*const E; ROWS] = std::array::from_fn(|r| start.add((l + r) * strides[1]));
                add_rows::<S, E, ROWS>(s, rows, width, vectors.as_ptr().add(l), k, count, sums.as_mut_ptr());
            }
            for l in whole..k {
                let rows = [start.add(l * strides[1])];
                add_rows::<S, E, 1>(s, rows, width, vectors.as_ptr().add(l), k, count, sums.as_mut_ptr());
            }
            for vector in 0..count {
                self.product.store(s, vector, line, &mut sums[vector * COLUMNS..vector * COLUMNS + width]);
            }
        }
    }
}

/// Adds `R` rows, each times its element of a vector, to the sums of each vector.
///
/// # Safety
/// The rows have `width` elements, each of `count` vectors `R` from `x` on, `k` apart, and `sums` `COLUMNS` for each.
#[inline(always)]
unsafe fn add_rows<S: Simd, E: Number, const R: usize>(
    s: S,
    rows: [*const E; R],
    width: usize,
    x: *const E::Sum,
    k: usize,
    count: usize,
    sums: *mut E::Sum,
) {
    let lanes = E::lanes::<S>();
    let whole = width / lanes * lanes;
    let zero = E::splat(s, E::Sum::default());
    // SAFETY (this function): the caller's promise.
    unsafe {
        for i in (0..whole).step_by(lanes) {
            let mut y = [zero; R];
            for (y, row) in y.iter_mut().zip(rows) {
                *y = E::load(s, row.add(i));
            }
            for v in 0..count {
                let to = sums.add(v * COLUMNS + i);
                let mut sum = E::load_sums(s, to);
                for (r, y) in y.into_iter().enumerate() {
                    sum = E::fma(s, E::splat(s, x.add(v * k + r).read()), y, sum);
                }
                E::store_sums(s, to, sum);
            }
        }
        for i in whole..width {
            for v in 0..count {
                let to = sums.add(v * COLUMNS + i);
                for (r, row) in rows.iter().enumerate() {
                    to.write(E::mul_add(x.add(v * k + r).read(), row.add(i).read().widened(), to.read()));
                }
            }
        }
    }
}

/// The sum of all lanes, in pairs.
#[inline(always)]
fn total<S: Simd, E: Number>(s: S, sums: &[E::V<S>]) -> E::Sum {
    let lanes = E::lanes::<S>();
    let one = E::factor(1.0);
    let mut all = [E::Sum::default(); 8 * MAX_LANES];
    for (i, &v) in sums.iter().enumerate() {
        // SAFETY: there are at most eight vectors.
        unsafe { E::store_sums(s, all.as_mut_ptr().add(i * lanes), v) };
    }
    let mut n = sums.len() * lanes;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            all[i] = E::mul_add(one, all[i], all[i + n]);
        }
    }
    all[0]
}
