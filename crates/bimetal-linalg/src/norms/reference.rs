//! Traces and norms in f64.

use super::Kind;
use crate::ratio::extents;
use bimetal_core::op::{Expected, Values};

pub(super) fn numbers(kind: Kind, a: &Values) -> Expected {
    let [count, m, n] = extents(a);
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    for i in 0..count {
        let a = &a.data[i * m * n..][..m * n];
        if kind == Kind::Trace {
            let diagonal = (0..m.min(n)).map(|j| a[j * n + j]);
            data.push(diagonal.clone().sum());
            scale.push(diagonal.map(f64::abs).sum());
        } else {
            // By the largest, so that squares fit also for f64.
            let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let unit = if largest == 0.0 || largest.is_infinite() { 1.0 } else { largest };
            let norm = unit * a.iter().map(|x| (x / unit) * (x / unit)).sum::<f64>().sqrt();
            data.push(norm);
            scale.push(norm);
        }
    }
    Expected::sums(data, scale)
}
