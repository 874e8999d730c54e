//! Eigenvalues of a tridiagonal matrix by bisection, one in each lane: Sturm's sequence `qᵢ = (dᵢ − x) − eᵢ₋₁² / qᵢ₋₁` has as
//! many negative elements as there are eigenvalues below `x` (LAPACK's `stebz`).

use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};

/// Vectors of values that are found together: their divisions overlap.
const VECTORS: usize = 4;
/// Elements of the sequence are kept this far from 0.
const LEAST: f32 = 1e-30;
/// An interval this small beside all eigenvalues is not halved, whatever is in it.
const FLOOR: f32 = 1.0 / (1u64 << 34) as f32;
/// Halvings at most.
const ROUNDS: usize = 60;

/// A tridiagonal matrix whose largest element is about 1 or 0.
pub(super) struct Sturm<'a> {
    pub(super) d: &'a [f32],
    /// A zero, and the squares of what is beside the diagonal.
    pub(super) squares: &'a [f32],
    /// What all wanted eigenvalues lie between.
    pub(super) bounds: [f32; 2],
    /// The first eigenvalue that is wanted, of all in ascending order.
    pub(super) first: usize,
}

/// The squares of what is beside the diagonal, after a zero, and bounds of all eigenvalues.
pub(super) fn prepare(d: &[f32], e: &[f32]) -> (Vec<f32>, [f32; 2]) {
    let n = d.len();
    let squares = std::iter::once(0.0).chain(e[..n - 1].iter().map(|e| e * e)).collect();
    let (mut low, mut high) = (f32::MAX, f32::MIN);
    for (i, d) in d.iter().enumerate() {
        let reach = if i > 0 { e[i - 1].abs() } else { 0.0 } + if i + 1 < n { e[i].abs() } else { 0.0 };
        (low, high) = (low.min(d - reach), high.max(d + reach));
    }
    let margin = 4.0 * f32::EPSILON * low.abs().max(high.abs()) + LEAST;
    (squares, [low - margin, high + margin])
}

impl Sturm<'_> {
    /// Finds eigenvalues from the first one that is wanted on; if `shared`, on all threads.
    pub(super) fn find(&self, values: &mut [f32], shared: bool) {
        let level = Level::current();
        let group = VECTORS * dispatch_at(level, crate::interleaved::Width);
        let padded = values.len().next_multiple_of(group);
        let [low, high] = self.bounds;
        let step = (high - low) / padded as f32;
        let points: Vec<f32> = (0..padded).map(|g| low + step * (g as f32 + 0.5)).collect();
        let mut counts = vec![0.0f32; padded];
        let spread = |out: &mut [f32], f: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let out = Shared::new(out);
            let all = |range: std::ops::Range<usize>| {
                for g in range {
                    // SAFETY: groups are disjoint.
                    f(g * group, unsafe { out.slice(g * group..(g + 1) * group) });
                }
            };
            let groups = padded / group;
            if shared { parallel::ranges(groups, 1, all) } else { all(0..groups) }
        };
        spread(&mut counts, &|at, out| dispatch_at(level, Count { of: self, points: &points[at..at + group], out }));
        // Where the points leave each value.
        let mut below = vec![low; padded];
        let mut above = vec![high; padded];
        let mut g = 0;
        for i in 0..padded {
            let wanted = (self.first + i.min(values.len() - 1)) as f32;
            while g < padded && counts[g] <= wanted {
                g += 1;
            }
            below[i] = if g > 0 { points[g - 1] } else { low };
            above[i] = if g < padded { points[g] } else { high };
        }
        let floor = FLOOR * low.abs().max(high.abs());
        let last = self.first + values.len() - 1;
        spread(&mut counts, &|at, out| {
            let between = [&below[at..at + group], &above[at..at + group]];
            dispatch_at(level, Halve { of: self, between, first: self.first + at, last, floor, out });
        });
        values.copy_from_slice(&counts[..values.len()]);
        // Counts may disagree by a rounding.
        values.sort_unstable_by(f32::total_cmp);
    }

    #[inline(always)]
    fn count<S: Simd>(&self, s: S, x: [S::F; VECTORS]) -> [S::F; VECTORS] {
        let (zero, one, least) = (s.splat(0.0), s.splat(1.0), s.splat(LEAST));
        let mut counts = [zero; VECTORS];
        let mut q = [one; VECTORS];
        for (d, square) in self.d.iter().zip(self.squares) {
            let (d, square) = (s.splat(*d), s.splat(*square));
            for v in 0..VECTORS {
                let next = s.sub(s.sub(d, x[v]), s.div(square, q[v]));
                q[v] = s.select(s.lt(s.abs(next), least), s.neg(least), next);
                counts[v] = s.add(counts[v], s.select(s.lt(q[v], zero), one, zero));
            }
        }
        counts
    }
}

/// Counts at points.
struct Count<'a> {
    of: &'a Sturm<'a>,
    points: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Count<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, points, out } = self;
        assert!(points.len().min(out.len()) >= VECTORS * S::LANES);
        let x = vectors(s, points);
        let counts = of.count(s, x);
        for (v, count) in counts.into_iter().enumerate() {
            // SAFETY: as many vectors as there are.
            unsafe { s.store(out.as_mut_ptr().add(v * S::LANES), count) };
        }
    }
}

/// Vectors one after the other.
#[inline(always)]
fn vectors<S: Simd>(s: S, x: &[f32]) -> [S::F; VECTORS] {
    assert!(x.len() >= VECTORS * S::LANES);
    // SAFETY: as many elements as were asserted.
    std::array::from_fn(|v| unsafe { s.load(x.as_ptr().add(v * S::LANES)) })
}

/// Halves intervals.
struct Halve<'a> {
    of: &'a Sturm<'a>,
    between: [&'a [f32]; 2],
    /// The first value's rank, and the greatest.
    first: usize,
    last: usize,
    floor: f32,
    out: &'a mut [f32],
}

impl Kernel for Halve<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, between, first, last, floor, out } = self;
        let [mut low, mut high] = [vectors(s, between[0]), vectors(s, between[1])];
        let (half, eps, floor) = (s.splat(0.5), s.splat(f32::EPSILON), s.splat(floor));
        let mut ranks = [0.0f32; VECTORS * bimetal_core::cpu::simd::MAX_LANES];
        ranks.iter_mut().enumerate().for_each(|(i, rank)| *rank = (first + i).min(last) as f32);
        let ranks = vectors(s, &ranks);
        let mut middle = low;
        for _ in 0..ROUNDS {
            let mut wide = false;
            for v in 0..VECTORS {
                let width = s.sub(high[v], low[v]);
                middle[v] = s.fma(width, half, low[v]);
                let least = s.max(s.mul(eps, s.max(s.abs(low[v]), s.abs(high[v]))), floor);
                wide |= s.any(s.gt(width, least));
            }
            if !wide {
                break;
            }
            let counts = of.count(s, middle);
            for v in 0..VECTORS {
                let past = s.gt(counts[v], ranks[v]);
                high[v] = s.select(past, middle[v], high[v]);
                low[v] = s.select(past, low[v], middle[v]);
            }
        }
        for (v, middle) in middle.into_iter().enumerate() {
            // SAFETY: the caller gives room for as many vectors.
            unsafe { s.store(out.as_mut_ptr().add(v * S::LANES), middle) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone::values::eigenvalues;
    use crate::conquer::tests::matrices;

    #[test]
    fn counts_and_the_iteration_agree() {
        for n in [1, 2, 7, 48, 64, 65, 150] {
            for (name, d, e) in matrices(n) {
                let [d, e] = [d, e].map(|x| x.iter().map(|x| *x as f32).collect::<Vec<_>>());
                let [mut exact, mut beside] = [&d, &e].map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                assert!(eigenvalues(&mut exact, &mut beside), "{name} {n}");
                let (squares, bounds) = prepare(&d, &e);
                let mut found = vec![0.0; n];
                Sturm { d: &d, squares: &squares, bounds, first: 0 }.find(&mut found, true);
                let allowed = 4.0 * f32::EPSILON * bounds[0].abs().max(bounds[1].abs()) + 2.0 * LEAST;
                for (found, exact) in found.iter().zip(exact) {
                    assert!((f64::from(*found) - exact).abs() <= f64::from(allowed), "{name} {n}: {found} for {exact}");
                }
            }
        }
    }
}
