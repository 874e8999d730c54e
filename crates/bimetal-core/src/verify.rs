//! Agreement with the reference: seeded inputs for a case, and the comparison of an output with the exact values.

use crate::op::{Case, Expected, Fill, Tolerance, Values};
use crate::{DType, Result, Spec, Tensor};

/// SplitMix64: small, seedable, and good enough to fill tensors.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..1`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Standard normal: the sum of twelve uniforms is close enough in the middle, and Box–Muller gives the tails.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Fills a host tensor of `spec` from a seed.
///
/// # Errors
/// None for a valid spec.
pub fn fill(spec: &Spec, fill: Fill, seed: u64) -> Result<Tensor> {
    let mut random = Random::new(seed);
    let special = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        spec.dtype.max(),
        -spec.dtype.max(),
        spec.dtype.min_positive(),
        spec.dtype.min_positive() * -0.25,
        1.0,
        -1.0,
        88.7,
        -104.0,
    ];
    let mut next = |i: usize| match fill {
        Fill::Normal => random.normal(),
        Fill::Uniform(lo, hi) => lo + (hi - lo) * random.uniform(),
        Fill::Magnitudes(lo, hi, positive) => {
            let magnitude = (lo.ln() + (hi.ln() - lo.ln()) * random.uniform()).exp();
            if positive || random.bits() & 1 == 0 { magnitude } else { -magnitude }
        }
        Fill::Integers(lo, hi) => (lo + (random.bits() % (hi - lo + 1) as u64) as i64) as f64,
        Fill::Specials if i % 3 == 0 => special[(i / 3) % special.len()],
        Fill::Specials => 4.0 * random.normal(),
        Fill::Constant(value) => value,
    };
    let data: Vec<f64> = (0..spec.numel()).map(&mut next).collect();
    Tensor::from_f64(&data, spec.shape.dims(), spec.dtype)
}

/// The inputs of a case for a dtype and a seed.
///
/// # Errors
/// None for a valid case.
pub fn inputs(case: &Case, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
    (0u64..).zip(&case.inputs).map(|(i, input)| fill(&input.spec(dtype), input.fill, seed ^ (i + 1) << 40)).collect()
}

/// The tensors as the reference sees them.
///
/// # Errors
/// A device that fails.
pub fn values(tensors: &[Tensor]) -> Result<Vec<Values>> {
    tensors.iter().map(|t| Ok(Values { spec: t.spec().clone(), data: t.to_f64_vec()? })).collect()
}

/// How far an output is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Error of the worst element, relative to the larger of its value and its scale.
    pub error: f64,
    /// What was allowed for that element, in the same measure.
    pub tolerance: f64,
    /// Whether every element is within its tolerance.
    pub ok: bool,
    /// The worst element's index, its value and the reference; empty if all is exact.
    pub worst: String,
}

/// Compares an output with the exact values. NaN agrees with NaN only, infinity with the same infinity (or with a
/// reference that rounds to it), and results below the smallest normal number may be flushed to zero.
///
/// # Errors
/// A device that fails when the output is read.
pub fn compare(output: &Tensor, expected: &Expected, tolerance: &Tolerance) -> Result<Agreement> {
    let got = output.to_f64_vec()?;
    let dtype = output.dtype();
    if got.len() != expected.data.len() {
        return Ok(Agreement {
            error: f64::INFINITY,
            tolerance: 0.0,
            ok: false,
            worst: format!("{} elements, expected {}", got.len(), expected.data.len()),
        });
    }
    let mut agreement = Agreement { error: 0.0, tolerance: 0.0, ok: true, worst: String::new() };
    let mut worst_ratio = 0.0;
    for (i, (&out, &exact)) in got.iter().zip(&expected.data).enumerate() {
        let scale = expected.scale.get(i).copied().unwrap_or(0.0);
        let allowed = allowed(dtype, exact, scale, tolerance);
        let difference = difference(dtype, out, exact, allowed);
        if difference == 0.0 {
            continue;
        }
        let ratio =
            if difference <= allowed { difference / allowed } else { f64::max(difference / allowed, 1.0 + 1e-9) };
        if ratio > worst_ratio || !ratio.is_finite() {
            worst_ratio = ratio;
            let unit = exact.abs().max(scale).max(dtype.min_positive().max(f64::MIN_POSITIVE));
            agreement.error = difference / unit;
            agreement.tolerance = allowed / unit;
            agreement.worst = format!("[{i}] = {out:e}, exactly {exact:e}");
            if difference > allowed || !ratio.is_finite() {
                agreement.ok = false;
                if !difference.is_finite() {
                    break;
                }
            }
        }
    }
    Ok(agreement)
}

fn allowed(dtype: DType, exact: f64, scale: f64, tolerance: &Tolerance) -> f64 {
    if !dtype.is_float() {
        return tolerance.ulps;
    }
    let unit = DType::F32.epsilon().min(dtype.epsilon());
    let sums = if scale.is_finite() { tolerance.scaled * unit * scale } else { 0.0 };
    if exact.is_finite() { tolerance.ulps * dtype.ulp(exact) + sums + dtype.min_positive() } else { 0.0 }
}

/// Zero where the two agree beyond measuring (both NaN, the same infinity), infinity where they cannot.
fn difference(dtype: DType, out: f64, exact: f64, allowed: f64) -> f64 {
    if exact.is_nan() || out.is_nan() {
        return if exact.is_nan() && out.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if out == exact {
        return 0.0;
    }
    if out.is_infinite() || exact.is_infinite() {
        // A value that the allowed error can push past the largest number may overflow, and the reverse.
        let edge = dtype.max() - allowed - dtype.ulp(dtype.max());
        let near = out.signum() == exact.signum() && out.abs() >= edge && exact.abs() >= edge;
        return if near { 0.0 } else { f64::INFINITY };
    }
    (out - exact).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(out: &[f64], exact: &[f64], ulps: f64) -> Agreement {
        let tensor = Tensor::from_f64(out, &[out.len()], DType::F32).unwrap();
        let tolerance = Tolerance { ulps, scaled: 0.0, why: "test" };
        compare(&tensor, &Expected::exact(exact.to_vec()), &tolerance).unwrap()
    }

    #[test]
    fn wrong_results_fail() {
        assert!(agreement(&[1.0, 2.0], &[1.0, 2.0], 0.0).ok);
        assert!(!agreement(&[1.0, 2.0], &[1.0, 2.001], 4.0).ok);
        assert!(!agreement(&[f64::NAN], &[1.0], 1e9).ok);
        assert!(!agreement(&[1.0], &[f64::NAN], 1e9).ok);
        assert!(!agreement(&[f64::INFINITY], &[1.0], 1e9).ok);
        assert!(!agreement(&[f64::INFINITY], &[f64::NEG_INFINITY], 1e9).ok);
        assert!(!agreement(&[0.0, 0.0], &[0.0], 1e9).ok);
        assert!(agreement(&[f64::NAN, f64::INFINITY], &[f64::NAN, f64::INFINITY], 0.0).ok);
    }

    #[test]
    fn one_ulp_is_one_ulp() {
        let next = f32::from_bits(1.0f32.to_bits() + 1) as f64;
        assert!(agreement(&[next], &[1.0], 1.0).ok);
        let two = f32::from_bits(1.0f32.to_bits() + 2) as f64;
        assert!(!agreement(&[two], &[1.0], 1.0).ok);
    }

    #[test]
    fn fills_are_reproducible_and_spread() {
        let spec = Spec::new(crate::Shape::new(&[1000]).unwrap(), DType::F32);
        let a = fill(&spec, Fill::Normal, 7).unwrap().to_f64_vec().unwrap();
        assert_eq!(a, fill(&spec, Fill::Normal, 7).unwrap().to_f64_vec().unwrap());
        let mean = a.iter().sum::<f64>() / 1000.0;
        let variance = a.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1000.0;
        assert!(mean.abs() < 0.15 && (variance - 1.0).abs() < 0.2, "{mean} {variance}");
    }
}
