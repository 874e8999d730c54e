//! Normalization: layer, root-mean-square, group and batch norm, forward, backward and fused with a residual addition.

bimetal_core::domain!("normalization": batch_norm, group_norm, row_norm, row_norm_backward);
