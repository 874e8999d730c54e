//! Softmax along an axis in f64: maximum, exponentials, sum, quotient.

use super::Kind;
use bimetal_core::op::{Expected, Values};

pub(super) fn softmax_axis(x: &Values, axis: isize, kind: Kind) -> Expected {
    let axis = x.spec.shape.axis(kind.name(), axis).expect("the case was checked");
    let (outer, n, inner) = x.spec.shape.around(axis);
    let mut data = vec![0.0; x.data.len()];
    let mut scale = vec![0.0; x.data.len()];
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * n + k) * inner + i;
            let mut largest = f64::NEG_INFINITY;
            for k in 0..n {
                let v = x.data[at(k)];
                if v.is_nan() || v > largest {
                    largest = v;
                }
                if largest.is_nan() {
                    break;
                }
            }
            let mut sum = 0.0;
            for k in 0..n {
                sum += (x.data[at(k)] - largest).exp();
            }
            for k in 0..n {
                let shifted = x.data[at(k)] - largest;
                match kind {
                    Kind::Softmax => {
                        data[at(k)] = shifted.exp() / sum;
                        // An error of one ulp in x − max is a relative error of |x − max| in the exponential.
                        scale[at(k)] = data[at(k)] * (1.0 + shifted.abs());
                    }
                    Kind::LogSoftmax => {
                        data[at(k)] = shifted - sum.ln();
                        scale[at(k)] = shifted.abs() + sum.ln() + 1.0;
                    }
                }
            }
        }
    }
    Expected::sums(data, scale)
}
