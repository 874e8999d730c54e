//! Normalization: layer, root-mean-square, group and batch norm, forward, backward and fused with a residual addition.

crate::registry::domain!("normalization": batch_norm, group_norm, row_norm, row_norm_backward);
