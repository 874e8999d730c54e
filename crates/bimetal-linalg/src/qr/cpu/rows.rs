//! One matrix at a time, row-major: a reflector meets whole rows as vectors.

use super::real::{Memory, Place, Real, Stored, reflect, reflector, scale, scan};
use super::{Form, Parts};
use crate::qr::Dims;
use crate::status::NOT_FINITE;
use bimetal_core::cpu::simd::{Kernel, Simd};

/// A matrix to factorise.
pub(super) struct Single<'a, E> {
    pub(super) form: Form,
    pub(super) dims: Dims,
    pub(super) a: &'a [E],
    pub(super) parts: Parts<'a, E>,
}

impl<E: Stored> Kernel for Single<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dims { m, n, k, .. } = self.dims;
        let Parts { first, second, status } = self.parts;
        let (largest, finite) = scan(self.a);
        status[0] = if finite { 0 } else { NOT_FINITE };
        if !finite {
            first.fill(E::NAN);
            second.fill(E::NAN);
            return;
        }
        let lanes = E::Work::lanes::<S>();
        let columns = self.form.columns(&self.dims);
        // Rows are whole vectors: what is past their end is zero, and stays so.
        let [x_step, q_step] = [n, columns].map(|n| n.next_multiple_of(lanes));
        let mut memory = Memory::take(m * (x_step + q_step) + m * k + k);
        let (x, rest) = memory.slice().split_at_mut(m * x_step);
        let (q, rest) = rest.split_at_mut(m * q_step);
        let (v, taus) = rest.split_at_mut(m * k);
        let scale = scale(largest);
        for (to, from) in x.chunks_exact_mut(x_step.max(1)).zip(self.a.chunks_exact(n.max(1))) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen() * scale);
            to[n..].fill(E::Work::default());
        }
        factor(s, x, x_step, v, taus, m);
        let unscaled = |i: usize, j: usize| E::narrow(x[i * x_step + j] / scale);
        if self.form == Form::Packed {
            for (i, row) in first.chunks_exact_mut(n.max(1)).enumerate() {
                for (j, out) in row.iter_mut().enumerate() {
                    *out = if j < i { E::narrow(v[j * m + i]) } else { unscaled(i, j) };
                }
            }
            second.iter_mut().zip(taus.iter()).for_each(|(out, tau)| *out = E::narrow(*tau));
            return;
        }
        orthogonal(s, q, q_step, v, taus, [m, columns]);
        for (to, from) in first.chunks_exact_mut(columns.max(1)).zip(q.chunks_exact(q_step.max(1))) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(*from));
        }
        for (i, row) in second.chunks_exact_mut(n.max(1)).enumerate() {
            row[..i.min(n)].fill(E::narrow(E::Work::default()));
            for (j, out) in row.iter_mut().enumerate().skip(i) {
                *out = unscaled(i, j);
            }
        }
    }
}

/// Householder's factorisation in place: R on and above the diagonal of `x`, the reflectors as rows of `v`. What is left
/// of the diagonal in `x` has no meaning: vectors begin there.
#[inline(always)]
pub(super) fn factor<S: Simd, T: Real>(s: S, x: &mut [T], x_step: usize, v: &mut [T], taus: &mut [T], m: usize) {
    let lanes = T::lanes::<S>();
    for (j, tau) in taus.iter_mut().enumerate() {
        let v = &mut v[j * m..][..m];
        let mut squares = T::default();
        for i in j + 1..m {
            v[i] = x[i * x_step + j];
            squares = v[i].fused(v[i], squares);
        }
        let tail = &v[j + 1..];
        let made = reflector(x[j * x_step + j], squares, || tail.iter().copied());
        v[j + 1..].iter_mut().for_each(|x| *x = *x * made.factor);
        *tau = made.tau;
        let first = (j + 1) / lanes * lanes;
        if made.tau != T::default() && first < x_step {
            let place = Place {
                v: v[j + 1..].as_ptr(),
                v_step: 1,
                x: x[j * x_step + first..].as_mut_ptr(),
                x_step,
                rows: m - j,
                vectors: (x_step - first) / lanes,
            };
            // SAFETY: rows j.. of whole vectors from column `first` on are within `x`.
            unsafe { reflect::<S, T, true>(s, T::splat(s, -made.tau), place) };
        }
        x[j * x_step + j] = made.beta;
    }
}

/// The first `columns` columns of the product of the reflectors, from the last one back.
#[inline(always)]
fn orthogonal<S: Simd, T: Real>(s: S, q: &mut [T], q_step: usize, v: &[T], taus: &[T], [m, columns]: [usize; 2]) {
    let lanes = T::lanes::<S>();
    q.fill(T::default());
    for c in 0..columns.min(m) {
        q[c * q_step + c] = T::ONE;
    }
    for (j, tau) in taus.iter().enumerate().rev() {
        let first = j / lanes * lanes;
        if *tau != T::default() {
            let place = Place {
                v: v[j * m..][j + 1..m].as_ptr(),
                v_step: 1,
                x: q[j * q_step + first..].as_mut_ptr(),
                x_step: q_step,
                rows: m - j,
                vectors: (q_step - first) / lanes,
            };
            // SAFETY: as in `factor`.
            unsafe { reflect::<S, T, true>(s, T::splat(s, -*tau), place) };
        }
    }
}
