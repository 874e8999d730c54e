//! A panel of columns: factorised a vector of columns at a time, whose reflectors meet the columns beside them together.

use super::real::{Memory, Place, Real, reflect, reflector};
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd};

/// The columns of a panel, which are copied together.
pub(super) struct Panel<'a, T> {
    pub(super) x: &'a mut [T],
    pub(super) n: usize,
    pub(super) rows: usize,
    /// The reflectors as lines of `rows`.
    pub(super) v: &'a mut [T],
    pub(super) tau: &'a mut [T],
}

impl<T: Real> Kernel for Panel<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, n, rows, v, tau } = self;
        let (count, lanes) = (tau.len(), T::lanes::<S>());
        let step = count.next_multiple_of(lanes);
        let mut memory = Memory::take(rows * step + 2 * MAX_LANES * MAX_LANES);
        let (panel, spare) = memory.slice().split_at_mut(rows * step);
        for (to, from) in panel.chunks_exact_mut(step).zip(x.chunks(n)) {
            to[..count].copy_from_slice(&from[..count]);
            to[count..].fill(T::default());
        }
        for start in (0..count).step_by(lanes) {
            let end = (start + lanes).min(count);
            for j in start..end {
                let line = &mut v[j * rows..][..rows];
                tau[j] = column(s, panel, step, line, j);
                line[..j].fill(T::default());
                line[j] = T::ONE;
            }
            let block = Block { v: v[start * rows..].as_ptr(), rows, start, taus: &tau[start..end] };
            // SAFETY: the block's reflectors and the columns after it are there.
            unsafe { block.apply(s, panel, step, spare) };
        }
        for (i, (from, to)) in panel.chunks_exact(step).zip(x.chunks_mut(n)).take(count).enumerate() {
            to[i..count].copy_from_slice(&from[i..count]);
        }
    }
}

/// Makes the reflector of column `j`, applies it to the other columns of its vector, and gives τ.
#[inline(always)]
fn column<S: Simd, T: Real>(s: S, x: &mut [T], step: usize, v: &mut [T], j: usize) -> T {
    let (lanes, rows) = (T::lanes::<S>(), v.len());
    let mut squares = [T::default(); 4];
    for i in j + 1..rows {
        v[i] = x[i * step + j];
        squares[i % 4] = v[i].fused(v[i], squares[i % 4]);
    }
    let tail = &v[j + 1..];
    let squares = squares[0] + squares[1] + (squares[2] + squares[3]);
    let made = reflector(x[j * step + j], squares, || tail.iter().copied());
    v[j + 1..].iter_mut().for_each(|x| *x = *x * made.factor);
    if made.tau != T::default() && !(j + 1).is_multiple_of(lanes) {
        let place = Place {
            v: v[j + 1..].as_ptr(),
            v_step: 1,
            x: x[j * step + j / lanes * lanes..].as_mut_ptr(),
            x_step: step,
            rows: rows - j,
            vectors: 1,
        };
        // SAFETY: the vector that column j is in has these rows.
        unsafe { reflect::<S, T, true>(s, T::splat(s, -made.tau), place) };
    }
    x[j * step + j] = made.beta;
    made.tau
}

/// Reflectors that are applied together: their products with a vector of columns stay in registers.
const TOGETHER: usize = 8;

/// A vector's number of reflectors, as lines from row `start` on.
struct Block<'a, T> {
    v: *const T,
    rows: usize,
    start: usize,
    taus: &'a [T],
}

impl<T: Real> Block<'_, T> {
    /// Applies the block, transposed, to the vectors of columns after it: `X − V·Tᵀ·Vᵀ·X`.
    ///
    /// # Safety
    /// There is a line for each of `taus`, a vector of them if columns are left, and `x` has as many rows as a line.
    #[inline(always)]
    unsafe fn apply<S: Simd>(&self, s: S, x: &mut [T], step: usize, t: &mut [T]) {
        let (lanes, count, zero) = (T::lanes::<S>(), self.taus.len(), T::splat(s, T::default()));
        if self.start + lanes >= step {
            return;
        }
        // SAFETY (this function): the caller's promise.
        unsafe {
            self.triangle(s, t);
            for first in (self.start + lanes..step).step_by(lanes) {
                let x = x.as_mut_ptr().add(first);
                let mut products = [zero; MAX_LANES];
                if lanes >= TOGETHER {
                    for r in (0..count).step_by(TOGETHER) {
                        self.products::<S, TOGETHER>(s, x, step, r, &mut products);
                    }
                } else {
                    for r in 0..count {
                        self.products::<S, 1>(s, x, step, r, &mut products);
                    }
                }
                // From the last one, which needs all before it.
                for r in (0..count).rev() {
                    let mut sum = zero;
                    for (l, product) in products.iter().enumerate().take(r + 1) {
                        sum = T::fma(s, T::splat(s, -t[l * count + r]), *product, sum);
                    }
                    products[r] = sum;
                }
                if lanes >= TOGETHER {
                    for r in (0..count).step_by(TOGETHER) {
                        self.add::<S, TOGETHER>(s, x, step, r, &products);
                    }
                } else {
                    for r in 0..count {
                        self.add::<S, 1>(s, x, step, r, &products);
                    }
                }
            }
        }
    }

    /// The products of `R` reflectors from `first` on with a vector of columns.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn products<S: Simd, const R: usize>(
        &self,
        s: S,
        x: *const T,
        step: usize,
        first: usize,
        products: &mut [T::V<S>; MAX_LANES],
    ) {
        let v = self.v.wrapping_add(first * self.rows);
        let mut sums = [T::splat(s, T::default()); R];
        for i in self.start..self.rows {
            // SAFETY: the caller's promise.
            unsafe {
                let row = T::load(s, x.add(i * step));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = T::fma(s, T::splat(s, *v.add(r * self.rows + i)), row, *sum);
                }
            }
        }
        products[first..first + R].copy_from_slice(&sums);
    }

    /// Adds `R` reflectors times their vectors to a vector of columns.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(
        &self,
        s: S,
        x: *mut T,
        step: usize,
        first: usize,
        factors: &[T::V<S>; MAX_LANES],
    ) {
        let v = self.v.wrapping_add(first * self.rows);
        let mut own = [T::splat(s, T::default()); R];
        own.copy_from_slice(&factors[first..first + R]);
        for i in self.start..self.rows {
            // SAFETY: the caller's promise.
            unsafe {
                let mut row = T::load(s, x.add(i * step));
                for (r, factor) in own.iter().enumerate() {
                    row = T::fma(s, T::splat(s, *v.add(r * self.rows + i)), *factor, row);
                }
                T::store(s, x.add(i * step), row);
            }
        }
    }

    /// The factor T, row-major, and after it the products of the reflectors.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn triangle<S: Simd>(&self, s: S, t: &mut [T]) {
        let count = self.taus.len();
        let (t, gram) = t.split_at_mut(count * count);
        for j in 0..count {
            for i in 0..j {
                // SAFETY: the caller's promise.
                gram[i * count + j] = unsafe { self.dot(s, i, j) };
            }
        }
        for j in 0..count {
            for i in 0..j {
                let sum = (i..j).fold(T::default(), |sum, l| t[i * count + l].fused(gram[l * count + j], sum));
                t[i * count + j] = -(self.taus[j] * sum);
            }
            t[j * count + j] = self.taus[j];
        }
    }

    /// The product of two reflectors.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn dot<S: Simd>(&self, s: S, i: usize, j: usize) -> T {
        let (lanes, rows) = (T::lanes::<S>(), self.rows);
        let [a, b] = [i, j].map(|line| self.v.wrapping_add(line * rows));
        let (mut sum, mut at) = (T::splat(s, T::default()), self.start);
        let mut lane = [T::default(); MAX_LANES];
        let mut total = T::default();
        // SAFETY (this block): vectors and elements up to `rows` of both lines; the array holds a vector of any level.
        unsafe {
            while at + lanes <= rows {
                sum = T::fma(s, T::load(s, a.add(at)), T::load(s, b.add(at)), sum);
                at += lanes;
            }
            while at < rows {
                total = (*a.add(at)).fused(*b.add(at), total);
                at += 1;
            }
            T::store(s, lane.as_mut_ptr(), sum);
        }
        for x in lane {
            total = total + x;
        }
        total
    }
}
