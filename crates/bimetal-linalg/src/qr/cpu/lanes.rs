//! Batches of small matrices: a lane for each, so that element (i, j) of all of them is one vector.

use super::real::{Memory, Place, Real, Stored, reflect, reflector, scale, scan};
use super::{Form, Parts};
use crate::qr::Dims;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::simd::{Kernel, MAX_LANES, Simd};

/// Matrices that are factorised together; no more than there are lanes.
pub(super) struct Group<'a, E> {
    pub(super) form: Form,
    pub(super) dims: Dims,
    pub(super) a: &'a [E],
    pub(super) parts: Parts<'a, E>,
}

impl<E: Stored> Kernel for Group<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Dims { m, n, k, .. } = self.dims;
        let lanes = E::Work::lanes::<S>();
        let columns = self.form.columns(&self.dims);
        let mut memory = Memory::take((m * n + m * columns + k) * lanes);
        let (a, rest) = memory.slice().split_at_mut(m * n * lanes);
        let (q, taus) = rest.split_at_mut(m * columns * lanes);
        let (scales, statuses) = self.load(a, lanes);
        factor(s, a, taus, m, n);
        // R is scaled back, exactly; the reflectors know no scale.
        if scales[..lanes].iter().any(|&x| x != E::Work::ONE) {
            for i in 0..k {
                for element in a[(i * n + i) * lanes..(i + 1) * n * lanes].chunks_exact_mut(lanes) {
                    element.iter_mut().zip(&scales).for_each(|(x, scale)| *x = *x / *scale);
                }
            }
        }
        if self.form != Form::Packed {
            orthogonal(s, a, taus, q, [m, n, columns]);
            for i in 1..m.min(n) {
                a[i * n * lanes..(i * n + i) * lanes].fill(E::Work::default());
            }
            a[m.min(n) * n * lanes..].fill(E::Work::default());
        }
        let count = self.parts.status.len();
        let (first, second): (&[E::Work], &[E::Work]) = if self.form == Form::Packed { (a, taus) } else { (q, a) };
        store(first, self.parts.first, count, lanes, &statuses);
        store(second, self.parts.second, count, lanes, &statuses);
        self.parts.status.copy_from_slice(&statuses[..count]);
    }
}

impl<E: Stored> Group<'_, E> {
    /// Fills `to` with the scaled matrices; gives their scales and statuses.
    #[inline(always)]
    fn load(&mut self, to: &mut [E::Work], lanes: usize) -> ([E::Work; MAX_LANES], [i32; MAX_LANES]) {
        let size = self.dims.m * self.dims.n;
        let count = self.parts.status.len();
        let mut scales = [E::Work::ONE; MAX_LANES];
        let mut statuses = [0; MAX_LANES];
        for lane in 0..count {
            let (largest, finite) = scan(&self.a[lane * size..][..size]);
            if finite {
                scales[lane] = scale(largest);
            } else {
                statuses[lane] = NOT_FINITE;
            }
        }
        for start in (0..size).step_by(PIECE) {
            let piece = PIECE.min(size - start);
            let to = &mut to[start * lanes..][..piece * lanes];
            for lane in 0..lanes {
                if lane >= count || statuses[lane] != 0 {
                    to.iter_mut().skip(lane).step_by(lanes).for_each(|x| *x = E::Work::default());
                    continue;
                }
                let from = &self.a[lane * size + start..][..piece];
                for (i, x) in from.iter().enumerate() {
                    to[i * lanes + lane] = x.widen() * scales[lane];
                }
            }
        }
        (scales, statuses)
    }
}

/// Elements of each matrix that are moved between the layouts before the next one's: they stay in the nearest cache.
const PIECE: usize = 16;

/// Writes elements of `count` matrices; NaN for those that failed.
#[inline(always)]
fn store<E: Stored>(from: &[E::Work], to: &mut [E], count: usize, lanes: usize, statuses: &[i32]) {
    let size = to.len().checked_div(count).unwrap_or(0);
    for start in (0..size).step_by(PIECE) {
        let piece = PIECE.min(size - start);
        let from = &from[start * lanes..][..piece * lanes];
        for lane in 0..count {
            let to = &mut to[lane * size + start..][..piece];
            if statuses[lane] != 0 {
                to.fill(E::NAN);
                continue;
            }
            for (i, x) in to.iter_mut().enumerate() {
                *x = E::narrow(from[i * lanes + lane]);
            }
        }
    }
}

/// Householder's factorisation of `m`×`n` matrices in place: R on and above the diagonal, reflectors below it.
#[inline(always)]
fn factor<S: Simd, T: Real>(s: S, a: &mut [T], taus: &mut [T], m: usize, n: usize) {
    let lanes = T::lanes::<S>();
    let zero = T::splat(s, T::default());
    let base = a.as_mut_ptr();
    let at = |i: usize, j: usize| base.wrapping_add((i * n + j) * lanes);
    for j in 0..m.min(n) {
        // SAFETY (this block): rows j.. and columns j.. are within the matrices, a vector for each element.
        unsafe {
            let mut squares = [zero; 2];
            for i in j + 1..m {
                let x = T::load(s, at(i, j));
                squares[i % 2] = T::fma(s, x, x, squares[i % 2]);
            }
            let mut sums = [T::default(); MAX_LANES];
            T::store(s, sums.as_mut_ptr(), T::fma(s, T::splat(s, T::ONE), squares[0], squares[1]));
            let mut factors = [T::default(); MAX_LANES];
            let mut minus = [T::default(); MAX_LANES];
            for lane in 0..lanes {
                let element = |i: usize| *at(i, j).add(lane);
                let made = reflector(element(j), sums[lane], || (j + 1..m).map(element));
                factors[lane] = made.factor;
                minus[lane] = -made.tau;
                *at(j, j).add(lane) = made.beta;
                taus[j * lanes + lane] = made.tau;
            }
            let factors = T::load(s, factors.as_ptr());
            for i in j + 1..m {
                T::store(s, at(i, j), T::fma(s, factors, T::load(s, at(i, j)), zero));
            }
            let place = Place {
                v: at(j + 1, j),
                v_step: n * lanes,
                x: at(j, j + 1),
                x_step: n * lanes,
                rows: m - j,
                vectors: n - j - 1,
            };
            reflect::<S, T, false>(s, T::load(s, minus.as_ptr()), place);
        }
    }
}

/// The first `columns` columns of the product of the reflectors, from the last one back.
#[inline(always)]
fn orthogonal<S: Simd, T: Real>(s: S, a: &[T], taus: &[T], q: &mut [T], [m, n, columns]: [usize; 3]) {
    let lanes = T::lanes::<S>();
    let k = m.min(n);
    q.fill(T::default());
    for c in k..columns {
        q[(c * columns + c) * lanes..][..lanes].fill(T::ONE);
    }
    let zero = T::splat(s, T::default());
    let (a, base) = (a.as_ptr(), q.as_mut_ptr());
    let at = |i: usize, j: usize| base.wrapping_add((i * columns + j) * lanes);
    for j in (0..k).rev() {
        let mut minus = [T::default(); MAX_LANES];
        for lane in 0..lanes {
            minus[lane] = -taus[j * lanes + lane];
        }
        // SAFETY (this block): as in `factor`.
        unsafe {
            let minus = T::load(s, minus.as_ptr());
            let v = a.wrapping_add(((j + 1) * n + j) * lanes);
            let (v_step, x_step) = (n * lanes, columns * lanes);
            let place = Place { v, v_step, x: at(j, j + 1), x_step, rows: m - j, vectors: columns - j - 1 };
            reflect::<S, T, false>(s, minus, place);
            let one = T::splat(s, T::ONE);
            T::store(s, at(j, j), T::fma(s, one, minus, one));
            for i in j + 1..m {
                let v = T::load(s, a.add((i * n + j) * lanes));
                T::store(s, at(i, j), T::fma(s, minus, v, zero));
            }
        }
    }
}
