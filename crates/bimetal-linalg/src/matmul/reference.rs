//! The product in f64: for each row of the result, each row of the right operand times its factor; of a large product only
//! some elements.

use super::plan::Plan;
use bimetal_core::op::Expected;

/// Multiplications up to which every element is computed.
const WHOLE: usize = 1 << 28;

/// Elements of a larger product that are computed.
const SAMPLES: usize = 4096;

pub(super) fn matmul(a: &[f64], b: &[f64], plan: &Plan, alpha: f64) -> Expected {
    let work = plan.numel().saturating_mul(plan.k);
    if work <= WHOLE { whole(a, b, plan, alpha) } else { sampled(a, b, plan, alpha) }
}

/// Elements spread over all rows and columns by the golden section, so that no tile's corner is left out.
fn sampled(a: &[f64], b: &[f64], plan: &Plan, alpha: f64) -> Expected {
    let golden = (plan.numel() as f64 * 0.618_033_988_749_895) as usize | 1;
    let sample: Vec<usize> = (0..SAMPLES).map(|i| (i * golden + i / 7) % plan.numel()).collect();
    let element = |&at: &usize| {
        let [a_start, b_start] = plan.starts(at / (plan.m * plan.n));
        let (i, j) = (at / plan.n % plan.m, at % plan.n);
        let term = |l| alpha * a[a_start + i * plan.a[0] + l * plan.a[1]] * b[b_start + l * plan.b[0] + j * plan.b[1]];
        (0..plan.k).map(term).fold((0.0, 0.0), |(sum, scale), term| (sum + term, scale + f64::abs(term)))
    };
    let (data, scale) = sample.iter().map(element).unzip();
    Expected { data, scale, sample: Some(sample) }
}

fn whole(a: &[f64], b: &[f64], plan: &Plan, alpha: f64) -> Expected {
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

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::Shape;

    #[test]
    fn samples_are_elements_of_the_whole() {
        let plan = super::super::Product::new(super::super::Kind::Matmul);
        let plan = plan.plan(&Shape::new(&[2, 7, 5]).unwrap(), &Shape::new(&[5, 11]).unwrap()).unwrap();
        let a: Vec<f64> = (0..70).map(|i| (i * 7 % 13) as f64).collect();
        let b: Vec<f64> = (0..55).map(|i| (i * 5 % 11) as f64 - 4.0).collect();
        let (all, some) = (whole(&a, &b, &plan, 2.0), sampled(&a, &b, &plan, 2.0));
        let sample = some.sample.unwrap();
        assert!((0..plan.numel()).all(|i| sample.contains(&i)));
        for (k, &i) in sample.iter().enumerate() {
            assert_eq!((some.data[k], some.scale[k]), (all.data[i], all.scale[i]));
        }
    }
}
