//! Traces and norms on the CPU: sums in f64 by lanes that do not wait for each other.

use super::Kind;
use crate::lanes::{Entry, Real, each_float, grain};
use bimetal_core::cpu::parallel;
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::{Result, Tensor};

const LANES: usize = 32;
/// Elements that one thread adds up; a large matrix has many such parts.
const PART: usize = 1 << 16;

pub(super) fn numbers(kind: Kind, extents: [usize; 3], a: &Tensor, out: &mut Tensor) -> Result<()> {
    each_float!(a.dtype(), T => {
        batch::<T>(kind, extents, a.as_slice()?, out.as_mut_slice()?);
    });
    Ok(())
}

fn batch<E: Entry>(kind: Kind, [count, m, n]: [usize; 3], a: &[E], out: &mut [E]) {
    let size = m * n;
    if kind == Kind::FrobeniusNorm && count == 1 && size >= 2 * PART {
        let mut parts = vec![[0.0; 2]; size.div_ceil(PART)];
        parallel::units_mut(&mut parts, 1, 1, |first, parts| {
            for (i, part) in parts.iter_mut().enumerate() {
                let start = (first + i) * PART;
                *part = squares(&a[start..(start + PART).min(size)]);
            }
        });
        let unit = parts.iter().fold(0.0, |unit: f64, part| unit.max(part[0]));
        let sum: f64 = parts.iter().map(|[own, sum]| sum * (own / unit) * (own / unit)).sum();
        out[0] = E::of(E::Real::of_f64(unit * sum.sqrt()));
        return;
    }
    let work = if kind == Kind::Trace { m.min(n) } else { size };
    parallel::units_mut(out, 1, grain(work, 1), |first, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let a = &a[(first + i) * size..][..size];
            let value = match kind {
                Kind::Trace => (0..m.min(n)).map(|j| a[j * n + j].real().to_f64()).sum(),
                Kind::FrobeniusNorm => {
                    let [unit, sum] = squares(a);
                    unit * sum.sqrt()
                }
            };
            *out = E::of(E::Real::of_f64(value));
        }
    });
}

/// A unit, and the sum of squares in it: 1 but for f64 whose squares could leave their range.
fn squares<E: Entry>(a: &[E]) -> [f64; 2] {
    dispatch(Squares(a))
}

struct Squares<'a, E>(&'a [E]);

impl<E: Entry> Kernel for Squares<'_, E> {
    type Out = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [f64; 2] {
        let a = self.0;
        if size_of::<E>() == 8 {
            let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.real().to_f64().abs()));
            if largest.is_finite() && largest > 0.0 && !(1e-100..1e100).contains(&largest) {
                return [largest, sum(a, |x| x / largest)];
            }
        }
        [1.0, sum(a, |x| x)]
    }
}

/// The sum of squares.
#[inline(always)]
fn sum<E: Entry>(a: &[E], change: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            let x = change(x.real().to_f64());
            *sum += x * x;
        }
    }
    let rest: f64 = rest.iter().map(|x| change(x.real().to_f64())).map(|x| x * x).sum();
    sums.iter().sum::<f64>() + rest
}
