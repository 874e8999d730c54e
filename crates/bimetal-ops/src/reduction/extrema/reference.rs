//! Extrema by one comparison after the other; the first NaN ends the search.

use super::Kind;
use bimetal_core::op::Expected;

pub(super) fn extrema(x: &[f64], (outer, n, inner): (usize, usize, usize), kind: Kind) -> Expected {
    let mut data = Vec::new();
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| x[(o * n + k) * inner + i];
            let mut best = 0;
            for k in 0..n {
                if at(best).is_nan() {
                    break;
                }
                let better = if kind.largest() { at(k) > at(best) } else { at(k) < at(best) };
                if better || at(k).is_nan() {
                    best = k;
                }
            }
            data.push(if kind.indexed() { best as f64 } else { at(best) });
        }
    }
    Expected::exact(data)
}
