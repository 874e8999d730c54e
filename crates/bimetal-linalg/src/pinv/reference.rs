//! Penrose's four conditions in f64, for the matrix whose small singular values are taken as zero: `A·X·A = A`,
//! `X·A·X = X`, and `A·X` and `X·A` symmetric; and the rank.

use crate::blocks::working;
use crate::compose::cutoff;
use crate::ratio::{extents, norm1, product, transposed, worst};
use crate::status::NOT_FINITE;
use crate::svd::reference::{JUDGED, singular_values};
use bimetal_core::DType;
use bimetal_core::op::{Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 30.0;

/// The least and the most that a rank may be: values whose rounding carries them over the cutoff may count or not.
pub(crate) fn ranks(values: &[f64], cutoff: f64, [m, n]: [usize; 2], dtype: DType) -> [usize; 2] {
    let largest = values.first().copied().unwrap_or(0.0);
    let noise = 0.5 * m.max(n) as f64 * working(dtype).epsilon();
    [cutoff + noise, cutoff - noise].map(|limit| values.iter().filter(|x| **x > limit * largest).count())
}

pub(super) fn properties(rcond: Option<f64>, inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let [batch, m, n] = extents(&inputs[0]);
    let dtype = inputs[0].spec.dtype;
    let cutoff = cutoff(rcond, m, n, dtype);
    let mut statuses = Vec::new();
    let mut found: [Vec<(usize, f64)>; 4] = Default::default();
    for i in 0..batch {
        let a = &inputs[0].data[i * m * n..][..m * n];
        let x = &outputs[0].data[i * m * n..][..m * n];
        let (rank, status) = (outputs[1].data[i], outputs[2].data[i]);
        if a.iter().any(|x| !x.is_finite()) {
            let marked = status == f64::from(NOT_FINITE) && rank == -1.0 && x.iter().all(|x| x.is_nan());
            statuses.push((i, if marked { 0.0 } else { f64::INFINITY }));
            continue;
        }
        // Of large matrices only Penrose's conditions are looked at.
        let values = if m.min(n) <= JUDGED { singular_values(a, m, n) } else { Vec::new() };
        let [least, most] = if m.min(n) <= JUDGED { ranks(&values, cutoff, [m, n], dtype) } else { [0, m.min(n)] };
        // No value below the cutoff was inverted.
        let largest = values.first().map_or(0.0, |largest| norm1(x, m) * largest * cutoff);
        let right = status == 0.0 && (least as f64..=most as f64).contains(&rank) && largest <= 1.2 * (n as f64).sqrt();
        statuses.push((i, if right { 0.0 } else { f64::INFINITY }));
        if m * n == 0 {
            continue;
        }
        let (norm_a, norm_x) = (norm1(a, n), norm1(x, m));
        let (first, second): (Vec<usize>, Vec<usize>) = ((0..m).collect(), (0..n).collect());
        let ax = product(a, x, [m, n, m], &first);
        let xa = product(x, a, [n, m, n], &second);
        let distance = |a: &[f64], b: &[f64], n: usize| {
            norm1(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>(), n)
        };
        let unit = m.max(n) as f64 * dtype.epsilon() * norm_a * norm_x;
        let ratio = |error: f64, unit: f64| if error == 0.0 { 0.0 } else { error / unit };
        // What was taken as zero is missing from A·X·A.
        let missing = values.get(rank as usize).copied().unwrap_or(0.0) * (m.max(n) as f64).sqrt();
        let axa = distance(&product(&ax, a, [m, m, n], &second), a, n);
        found[0].push((i, ratio((axa - missing).max(0.0), unit * norm_a)));
        let xax = distance(&product(&xa, x, [n, n, m], &first), x, m);
        found[1].push((i, ratio(xax, unit * norm_x)));
        found[2].push((i, ratio(distance(&ax, &transposed(&ax, m, m), m), unit)));
        found[3].push((i, ratio(distance(&xa, &transposed(&xa, n, n), n), unit)));
    }
    let [first, second, third, fourth] = found;
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("A·X·A = A", ALLOWED, first.into_iter()),
        worst("X·A·X = X", ALLOWED, second.into_iter()),
        worst("A·X symmetric", ALLOWED, third.into_iter()),
        worst("X·A symmetric", ALLOWED, fourth.into_iter()),
    ]
}
