//! The activations of neural networks, forward and backward.

bimetal_core::domain!("activation": activation, activation_backward);
