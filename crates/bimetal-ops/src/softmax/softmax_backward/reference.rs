//! Gradients of softmax and log_softmax in f64: a sum along the axis, then each element.

use super::Kind;
use bimetal_core::op::{Expected, Values};

pub(super) fn softmax_backward(grad: &Values, y: &Values, axis: isize, kind: Kind) -> Expected {
    let axis = y.spec.shape.axis(kind.name(), axis).expect("the case was checked");
    let (outer, n, inner) = y.spec.shape.around(axis);
    let mut data = vec![0.0; y.data.len()];
    let mut scale = vec![0.0; y.data.len()];
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * n + k) * inner + i;
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for k in 0..n {
                let term = match kind {
                    Kind::Softmax => grad.data[at(k)] * y.data[at(k)],
                    Kind::LogSoftmax => grad.data[at(k)],
                };
                sum += term;
                magnitude += term.abs();
            }
            let sum = in_f32_range(sum);
            for k in 0..n {
                let (g, y) = (grad.data[at(k)], y.data[at(k)]);
                (data[at(k)], scale[at(k)]) = match kind {
                    Kind::Softmax => (y * in_f32_range(g - sum), y.abs() * (g.abs() + magnitude)),
                    // An error of one ulp in y is a relative error of |y| in the exponential.
                    Kind::LogSoftmax => (g - y.exp() * sum, g.abs() + y.exp() * magnitude * (1.0 + y.abs())),
                };
            }
        }
    }
    Expected::sums(data, scale)
}

/// The formula is defined in f32, as in PyTorch: a sum or difference beyond its range is infinite.
fn in_f32_range(value: f64) -> f64 {
    if value.abs() > f64::from(f32::MAX) { f64::INFINITY.copysign(value) } else { value }
}
