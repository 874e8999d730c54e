//! The product row by row in f64; NaN for rows that are not well-formed.

use bimetal_core::op::{Expected, Values};

pub(super) fn spmv_csr(inputs: &[Values]) -> Vec<Expected> {
    let [pointers, columns, values, x] = inputs else { unreachable!("four inputs") };
    let count = values.data.len() as f64;
    let ends = [pointers.data[0], pointers.data[pointers.data.len() - 1]];
    let mut well_formed = ends == [0.0, count];
    let (mut y, mut scale) = (Vec::new(), Vec::new());
    for pair in pointers.data.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        if start < 0.0 || start > end || end > count {
            well_formed = false;
            y.push(f64::NAN);
            scale.push(0.0);
            continue;
        }
        let (mut sum, mut size) = (0.0, 0.0);
        for e in start as usize..end as usize {
            let column = columns.data[e];
            let exists = column >= 0.0 && column < x.data.len() as f64;
            well_formed &= exists;
            let term = if exists { values.data[e] * x.data[column as usize] } else { f64::NAN };
            sum += term;
            size += term.abs();
        }
        y.push(sum);
        scale.push(size);
    }
    vec![Expected::sums(y, scale), Expected::exact(vec![if well_formed { 0.0 } else { 1.0 }])]
}
