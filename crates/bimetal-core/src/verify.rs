//! Agreement with the reference: seeded inputs for a case, and the comparison of an output with the exact values.

use crate::cpu::parallel;
use crate::op::{Case, Expected, Fill, Op, Property, Tolerance, Values};
use crate::{DType, Device, Result, Scalar, Spec, Tensor};
use std::sync::Mutex;

/// Runs a block with `$t` standing for the Rust type of a dtype.
macro_rules! each_dtype {
    ($dtype:expr, $t:ident => $body:block) => {
        each_dtype!(@ $dtype, $t, $body, F32: f32, F16: half::f16, BF16: half::bf16, F64: f64, I8: i8, U8: u8, I32: i32,
            U32: u32, I64: i64, Bool: bool)
    };
    (@ $dtype:expr, $t:ident, $body:block, $($d:ident: $rust:ty),*) => {
        match $dtype {
            $(DType::$d => {
                type $t = $rust;
                $body
            })*
        }
    };
}

mod matrices;

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

/// Elements that one generator fills: chunks have generators of their own, so that threads can share the work.
const CHUNK: usize = 1 << 16;

/// Fills a host tensor of `spec` from a seed.
///
/// # Errors
/// None for a valid spec.
pub fn fill(spec: &Spec, fill: Fill, seed: u64) -> Result<Tensor> {
    if let Fill::Matrices(structure, spectrum) = fill {
        return matrices::fill(spec, structure, spectrum, seed);
    }
    if let Fill::Offsets { last, even } = fill {
        return Tensor::from_f64(&offsets(spec.numel(), last, even, seed), spec.shape.dims(), spec.dtype);
    }
    let mut tensor = Tensor::empty(spec.shape.dims(), spec.dtype)?;
    each_dtype!(spec.dtype, T => {
        parallel::units_mut(tensor.as_mut_slice::<T>()?, CHUNK, 1, |first, part| {
            for (i, chunk) in part.chunks_mut(CHUNK).enumerate() {
                fill_chunk(chunk, fill, seed, first + i);
            }
        });
    });
    Ok(tensor)
}

fn offsets(count: usize, last: usize, even: bool, seed: u64) -> Vec<f64> {
    let (steps, last) = (count.saturating_sub(1).max(1) as f64, last as f64);
    let mut random = Random::new(seed);
    let mut made: Vec<f64> = (0..count)
        .map(|i| {
            let (half, part) = (0.75 * (random.bits() & 1) as f64, random.uniform().powi(4));
            if even { (last * i as f64 / steps).floor() } else { (last * (half + 0.25 * part)).floor() }
        })
        .collect();
    made.sort_by(f64::total_cmp);
    if let [first, .., end] = &mut made[..] {
        (*first, *end) = (0.0, last);
    } else {
        made.fill(0.0);
    }
    made
}

fn fill_chunk<T: Scalar>(chunk: &mut [T], fill: Fill, seed: u64, index: usize) {
    let mut random = Random::new(seed);
    if index > 0 {
        random = Random::new(random.bits() ^ Random::new(index as u64).bits());
    }
    let dtype = T::DTYPE;
    let special = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        dtype.max(),
        -dtype.max(),
        dtype.min_positive(),
        dtype.min_positive() * -0.25,
        1.0,
        -1.0,
        88.7,
        -104.0,
    ];
    for (i, element) in chunk.iter_mut().enumerate() {
        *element = T::from_f64(match fill {
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
            Fill::Matrices(..) | Fill::Offsets { .. } => unreachable!("these are filled whole"),
        });
    }
}

/// The seed of a case's input of this index.
pub fn input_seed(seed: u64, index: u64) -> u64 {
    seed ^ (index + 1) << 40
}

/// The inputs of a case for a dtype and a seed.
///
/// # Errors
/// None for a valid case.
pub fn inputs(case: &Case, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
    (0u64..).zip(&case.inputs).map(|(i, input)| fill(&input.spec(dtype), input.fill, input_seed(seed, i))).collect()
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

impl Agreement {
    /// NaN in a property means that an output holds NaN where it must not.
    fn of(property: Property) -> Self {
        let Property { name, error, allowed, index } = property;
        let error = if error.is_nan() { f64::INFINITY } else { error };
        Self { error, tolerance: allowed, ok: error <= allowed, worst: format!("{name} of matrix {index}") }
    }

    /// The error as a part of what is allowed.
    pub fn ratio(&self) -> f64 {
        match self.ok {
            _ if self.error == 0.0 => 0.0,
            true => self.error / self.tolerance,
            false => f64::INFINITY,
        }
    }
}

/// Compares an output with the exact values. NaN agrees with NaN only, infinity with the same infinity (or with a
/// reference that rounds to it), and results below the smallest normal number may be flushed to zero.
///
/// # Errors
/// A device that fails when the output is read.
pub fn compare(output: &Tensor, expected: &Expected, tolerance: &Tolerance) -> Result<Agreement> {
    let host = output.to_device(Device::Cpu)?;
    if let Some(sample) = &expected.sample {
        let all = Expected::sums(expected.data.clone(), expected.scale.clone());
        return compare(&sampled(&host, sample)?, &all, tolerance);
    }
    if host.numel() != expected.data.len() {
        return Ok(Agreement {
            error: f64::INFINITY,
            tolerance: 0.0,
            ok: false,
            worst: format!("{} elements, expected {}", host.numel(), expected.data.len()),
        });
    }
    let found = Mutex::new(Vec::new());
    each_dtype!(host.dtype(), T => {
        let out = host.as_slice::<T>()?;
        parallel::ranges(out.len(), CHUNK, |range| {
            let worst = worst_in(range.start, &out[range], expected, tolerance);
            found.lock().unwrap_or_else(|e| e.into_inner()).extend(worst);
        });
    });
    // The order of arrival differs from run to run; the worst element does not.
    let found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    let worst = found.into_iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio).then(b.index.cmp(&a.index)));
    Ok(worst.map_or(Agreement { error: 0.0, tolerance: 0.0, ok: true, worst: String::new() }, |worst| Agreement {
        error: if worst.difference.is_finite() { worst.difference / worst.unit } else { f64::INFINITY },
        tolerance: worst.allowed / worst.unit,
        ok: worst.difference <= worst.allowed,
        worst: format!("[{}] = {:e}, exactly {:e}", worst.index, worst.out, expected.data[worst.index]),
    }))
}

/// The elements of these indices.
fn sampled(host: &Tensor, sample: &[usize]) -> Result<Tensor> {
    each_dtype!(host.dtype(), T => {
        let out = host.as_slice::<T>()?;
        // An index past the end is left out, and `compare` refuses the shorter tensor.
        let picked: Vec<T> = sample.iter().filter_map(|&i| out.get(i).copied()).collect();
        Tensor::from_slice(&picked, &[picked.len()])
    })
}

/// Judges outputs by the operation's properties, or else by the elements of its reference; one finding for each property
/// or output.
///
/// # Errors
/// A device that fails when an output is read.
pub fn judge(op: &dyn Op, inputs: &[&Tensor], outputs: &[Tensor], expected: &[Expected]) -> Result<Vec<Agreement>> {
    if let Some(properties) = op.properties() {
        let read = |t: &Tensor| Ok(Values { spec: t.spec().clone(), data: t.to_f64_vec()? });
        let inputs = inputs.iter().map(|t| read(t)).collect::<Result<Vec<_>>>()?;
        let outputs = outputs.iter().map(read).collect::<Result<Vec<_>>>()?;
        return Ok(properties.properties(&inputs, &outputs).into_iter().map(Agreement::of).collect());
    }
    let specs: Vec<_> = inputs.iter().map(|t| t.spec()).collect();
    let tolerance = op.tolerance(&specs);
    if outputs.len() != expected.len() {
        let worst = format!(": {} outputs, the reference has {}", outputs.len(), expected.len());
        return Ok(vec![Agreement { error: f64::INFINITY, tolerance: 0.0, ok: false, worst }]);
    }
    let pairs = (0..).zip(outputs).zip(expected);
    pairs
        .map(|((i, output), expected)| {
            let found = compare(output, expected, &tolerance)?;
            Ok(Agreement { worst: format!("output {i}{}", found.worst), ..found })
        })
        .collect()
}

/// The element with the largest ratio of error to allowed error; a ratio above 1 is a failure.
struct Worst {
    index: usize,
    out: f64,
    difference: f64,
    allowed: f64,
    unit: f64,
    ratio: f64,
}

fn worst_in<T: Scalar>(start: usize, out: &[T], expected: &Expected, tolerance: &Tolerance) -> Option<Worst> {
    let dtype = T::DTYPE;
    let mut worst: Option<Worst> = None;
    for (index, out) in (start..).zip(out) {
        let (out, exact) = (out.to_f64(), expected.data[index]);
        if out == exact {
            continue;
        }
        let scale = expected.scale.get(index).copied().unwrap_or(0.0);
        let allowed = allowed(dtype, exact, scale, tolerance);
        let difference = difference(dtype, out, exact, allowed);
        if difference == 0.0 {
            continue;
        }
        let ratio =
            if difference <= allowed { difference / allowed } else { f64::max(difference / allowed, 1.0 + 1e-9) };
        if worst.as_ref().is_none_or(|w| ratio > w.ratio) {
            let unit = exact.abs().max(scale).max(dtype.min_positive().max(f64::MIN_POSITIVE));
            worst = Some(Worst { index, out, difference, allowed, unit, ratio });
        }
    }
    worst
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
