//! Softmax and its logarithm along an axis, forward and backward.

crate::registry::domain!("softmax": softmax_axis, softmax_backward);
