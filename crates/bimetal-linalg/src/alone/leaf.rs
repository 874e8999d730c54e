//! The leaves of divide and conquer: eigenvalues and vectors of a small tridiagonal matrix by implicit QL (LAPACK's `steqr`).

use crate::interleaved::scale_of;
use bimetal_core::cpu::simd::{Kernel, Simd};

/// The largest order.
pub(super) const MOST: usize = 32;
/// Sweeps for each value at most, as LAPACK allows.
const SWEEPS: usize = 30;
/// What is beside the diagonal is zero below this part of the largest value's bound, whatever is on it.
const FLOOR: f32 = 1e-3;

/// The length of a pair below which its squares are not exact.
const LEAST: f32 = 1e-16;

/// A tridiagonal matrix of order at most [`MOST`].
pub(super) struct Leaf<'a> {
    /// The diagonal, which becomes the eigenvalues, in no order.
    pub(super) d: &'a mut [f32],
    /// What is beside it.
    pub(super) e: &'a [f32],
    /// Rows of vectors, `line` apart.
    pub(super) q: &'a mut [f32],
    pub(super) line: usize,
}

impl Kernel for Leaf<'_> {
    /// Whether the iteration ended.
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Self { d, e, q, line } = self;
        let n = d.len();
        let step = n.next_multiple_of(S::LANES);
        let mut z = [0.0f32; MOST * MOST];
        (0..n).for_each(|i| z[i * step + i] = 1.0);
        let mut beside = [0.0f32; MOST];
        beside[..n - 1].copy_from_slice(&e[..n - 1]);
        // A leaf may be far smaller than the matrix: squares must not underflow.
        let scale = scale_of(d.iter().chain(&beside).fold(0.0, |a, x| a.max(x.abs())));
        d.iter_mut().chain(&mut beside).for_each(|x| *x *= scale);
        let done = iterate(s, d, &mut beside, &mut z, step);
        d.iter_mut().for_each(|x| *x /= scale);
        for (row, from) in q.chunks_mut(line).zip(z.chunks_exact(step)).take(n) {
            row[..n].copy_from_slice(&from[..n]);
        }
        done
    }
}

#[inline(always)]
fn iterate<S: Simd>(s: S, d: &mut [f32], e: &mut [f32; MOST], z: &mut [f32], step: usize) -> bool {
    let n = d.len();
    let largest = d.iter().chain(e.iter()).fold(0.0f32, |a, x| a.max(x.abs()));
    let floor = FLOOR * largest;
    let small = |d: &[f32], e: f32, i: usize| e.abs() <= 0.5 * f32::EPSILON * (d[i].abs() + d[i + 1].abs()).max(floor);
    let mut budget = SWEEPS * n;
    for l in 0..n {
        loop {
            let mut m = l;
            while m + 1 < n && !small(d, e[m], m) {
                m += 1;
            }
            if m == l {
                break;
            }
            if budget == 0 {
                return false;
            }
            budget -= 1;
            let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let r = (g * g + 1.0).sqrt();
            let mut g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut sine, mut cosine, mut p) = (1.0f32, 1.0f32, 0.0f32);
            for i in (l..m).rev() {
                let (f, b) = (sine * e[i], cosine * e[i]);
                let r;
                [sine, cosine, r] = rotation(f, g);
                e[i + 1] = r;
                let moved = d[i + 1] - p;
                let r = (d[i] - moved) * sine + 2.0 * cosine * b;
                p = sine * r;
                d[i + 1] = moved + p;
                g = cosine * r - b;
                rotate(s, &mut z[i * step..], step, cosine, sine);
            }
            d[l] -= p;
            e[l] = g;
            e[m] = 0.0;
        }
    }
    true
}

/// Sine and cosine that take `(g, f)` to `(r, 0)`, and `r`.
#[inline(always)]
fn rotation(f: f32, g: f32) -> [f32; 3] {
    let r = (f * f + g * g).sqrt();
    if r > LEAST {
        let inverse = 1.0 / r;
        return [f * inverse, g * inverse, r];
    }
    // Squares that lost something to underflow.
    let (f, g) = (f64::from(f), f64::from(g));
    let r = f.hypot(g);
    if r > 0.0 { [(f / r) as f32, (g / r) as f32, r as f32] } else { [0.0, 1.0, 0.0] }
}

/// Turns two rows.
#[inline(always)]
fn rotate<S: Simd>(s: S, z: &mut [f32], step: usize, cosine: f32, sine: f32) {
    let (cosine, sine) = (s.splat(cosine), s.splat(sine));
    let (x, y) = z[..2 * step].split_at_mut(step);
    for at in (0..step).step_by(S::LANES) {
        // SAFETY: a row is whole vectors.
        unsafe {
            let (to, next) = (x.as_mut_ptr().add(at), y.as_mut_ptr().add(at));
            let (a, b) = (s.load(to), s.load(next));
            s.store(next, s.fma(sine, a, s.mul(cosine, b)));
            s.store(to, s.neg_fma(sine, b, s.mul(cosine, a)));
        }
    }
}
