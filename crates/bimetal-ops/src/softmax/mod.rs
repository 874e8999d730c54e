//! Softmax and its logarithm along an axis, forward and backward.

bimetal_core::domain!("softmax": softmax_axis, softmax_backward);
