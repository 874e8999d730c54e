//! The product in f64: for each row of the result, each row of the right operand times its factor.

use super::plan::Plan;
use bimetal_core::op::Expected;

pub(super) fn matmul(a: &[f64], b: &[f64], plan: &Plan, alpha: f64) -> Expected {
    let (m, n, k) = (plan.m, plan.n, plan.k);
    let mut data = vec![0.0; plan.numel()];
    let mut scale = vec![0.0; plan.numel()];
    for p in 0..plan.products() {
        let [a_start, b_start] = plan.starts(p);
        for i in 0..m {
            let row = (p * m + i) * n;
            for l in 0..k {
                let factor = alpha * a[a_start + i * plan.a[0] + l * plan.a[1]];
                let magnitude = factor.abs();
                for j in 0..n {
                    let x = b[b_start + l * plan.b[0] + j * plan.b[1]];
                    data[row + j] += factor * x;
                    scale[row + j] += magnitude * x.abs();
                }
            }
        }
    }
    Expected::sums(data, scale)
}
