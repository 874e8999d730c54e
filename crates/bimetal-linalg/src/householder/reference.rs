//! Reflectors applied one by one in f64, and what makes one right: `‖x − β·H·e₁‖` and `‖1 − H²‖` of the order of rounding.

use super::{Dims, OrmqrParams};
use crate::ratio::worst;
use crate::status::NOT_FINITE;
use bimetal_core::op::{Expected, Property, Values};

/// LAPACK's bound.
const ALLOWED: f64 = 30.0;

/// Multiply-adds from which only some lines of a product are computed.
const LARGE: usize = 1 << 28;

/// Lines of a large product that are computed, spread evenly.
const SAMPLED: usize = 32;

pub(super) fn product(dims: &Dims, single: bool, params: OrmqrParams, inputs: &[Values]) -> Expected {
    let Dims { batch, m, n, k, rows, columns } = *dims;
    // The lines along which reflectors act, and the elements of each.
    let (lines, line_step, step) = if params.right { (rows, columns, 1) } else { (columns, 1, columns) };
    let large = batch * lines * k * m >= LARGE && lines > SAMPLED;
    let lines: Vec<usize> = if large { (0..SAMPLED).map(|i| i * lines / SAMPLED).collect() } else { (0..lines).collect() };
    let (mut sample, mut data, mut scale) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..batch {
        let element = |row: usize, j: usize| match (single, row.cmp(&j)) {
            (true, _) => inputs[0].data[i * m + row],
            (false, std::cmp::Ordering::Less) => 0.0,
            (false, std::cmp::Ordering::Equal) => 1.0,
            (false, std::cmp::Ordering::Greater) => inputs[0].data[(i * m + row) * n + j],
        };
        let reflectors: Vec<Vec<f64>> = (0..k).map(|j| (0..m).map(|row| element(row, j)).collect()).collect();
        for line in &lines {
            let places: Vec<usize> = (0..m).map(|row| i * rows * columns + line * line_step + row * step).collect();
            let mut x: Vec<f64> = places.iter().map(|&at| inputs[2].data[at]).collect();
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            for step in 0..k {
                let j = if params.right == params.transpose { k - 1 - step } else { step };
                let v = &reflectors[j];
                let sum = v.iter().zip(&x).map(|(v, x)| v * x).sum::<f64>() * inputs[1].data[i * k + j];
                x.iter_mut().zip(v).for_each(|(x, v)| *x -= sum * v);
            }
            sample.extend(places);
            data.extend(x);
            scale.extend(std::iter::repeat_n(norm, m));
        }
    }
    Expected { sample: Some(sample), ..Expected::sums(data, scale) }
}

pub(super) fn vector_properties(inputs: &[Values], outputs: &[Values]) -> Vec<Property> {
    let m = *inputs[0].dims().last().expect("vectors have an axis");
    let dtype = inputs[0].spec.dtype;
    let [v, tau, beta, status] = outputs else { unreachable!("there are four outputs") };
    let (mut statuses, mut reconstructions, mut orthogonalities) = (Vec::new(), Vec::new(), Vec::new());
    for (i, x) in inputs[0].data.chunks_exact(m).enumerate() {
        let v = &v.data[i * m..][..m];
        let (tau, beta, found) = (tau.data[i], beta.data[i], status.data[i]);
        let right = if x.iter().all(|x| x.is_finite()) {
            found == 0.0 && v[0] == 1.0
        } else {
            found == f64::from(NOT_FINITE) && tau.is_nan() && beta.is_nan() && v.iter().all(|x| x.is_nan())
        };
        statuses.push((i, if right { 0.0 } else { f64::INFINITY }));
        let largest = x.iter().fold(dtype.min_positive() / dtype.epsilon(), |a, x| a.max(x.abs()));
        // Relative to the largest element, so that nothing overflows here.
        let norm = x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt();
        // A norm beyond the dtype's largest number has no β.
        if found != 0.0 || norm > dtype.max() / largest {
            continue;
        }
        let beta = beta / largest;
        let unit = m as f64 * norm.max(dtype.min_positive() / dtype.epsilon() / largest) * dtype.epsilon();
        let distance = x.iter().zip(v).enumerate().map(|(row, (x, v))| {
            let first = if row == 0 { beta } else { 0.0 };
            (x / largest - (first - tau * v * beta)).abs()
        });
        reconstructions.push((i, distance.fold(0.0, f64::max) / unit));
        let squares = tau * v.iter().map(|x| x * x).sum::<f64>();
        orthogonalities.push((i, (squares * (squares - 2.0)).abs() / (m as f64 * dtype.epsilon())));
    }
    vec![
        worst(Property::STATUS, 0.0, statuses.into_iter()),
        worst("reconstruction", ALLOWED, reconstructions.into_iter()),
        worst("orthogonality", ALLOWED, orthogonalities.into_iter()),
    ]
}
