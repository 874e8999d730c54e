//! The activations of neural networks, forward and backward.

crate::registry::domain!("activation": activation, activation_backward);
