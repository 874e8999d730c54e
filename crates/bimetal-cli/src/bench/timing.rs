//! Samples of an operation's time: outputs preallocated, many calls to a sample, one wait for each sample on a GPU.

use crate::interrupt::stopped;
use arrayvec::ArrayVec;
use bimetal::{Device, Result, Tensor};
use bimetal_core::op::{self, Op};
use bimetal_core::{Gpu, check};
use std::time::Instant;

/// Shortest sample on the CPU, in seconds: a thousand times the clock's resolution.
pub const CPU_SAMPLE_S: f64 = 0.5e-3;

/// Shortest sample on a GPU, in seconds: the wait at its end, 20 to 90 µs, is a few percent of it at most.
pub const GPU_SAMPLE_S: f64 = 2e-3;

/// Time after which a turn ends with fewer samples than it should have, in seconds.
const PATIENCE_S: f64 = 0.5;

/// Most calls in a sample.
const MOST_CALLS: usize = 100_000;

struct Set {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

/// An operation with its buffers on a device.
pub struct Runner<'a> {
    op: &'a dyn Op,
    gpu: Option<&'static Gpu>,
    sets: Vec<Set>,
    next: usize,
    calls: usize,
}

impl<'a> Runner<'a> {
    /// Puts `inputs` on `device`, `sets` times in buffers of their own, each with outputs that hold a pattern.
    ///
    /// # Errors
    /// Inputs that the operation refuses, or a device that fails.
    pub fn new(op: &'a dyn Op, inputs: &[Tensor], device: Device, sets: usize) -> Result<Self> {
        let specs: Vec<_> = inputs.iter().map(|t| t.spec()).collect();
        let outputs = op.outputs(&specs)?;
        let make = || {
            Ok(Set {
                inputs: inputs.iter().map(|t| t.to_device(device)).collect::<Result<_>>()?,
                outputs: outputs.iter().map(|spec| check::poisoned(spec, device)).collect::<Result<_>>()?,
            })
        };
        let sets = (0..sets.max(1)).map(|_| make()).collect::<Result<_>>()?;
        let gpu = if device.is_gpu() { Some(Gpu::get(device)?) } else { None };
        Ok(Self { op, gpu, sets, next: 0, calls: 1 })
    }

    /// Runs every set once, and finds how many calls make a sample of at least the shortest length.
    ///
    /// # Errors
    /// A run that fails.
    pub fn warm_up(&mut self) -> Result<()> {
        for _ in 0..self.sets.len() {
            self.time(1)?;
        }
        let shortest = if self.gpu.is_some() { GPU_SAMPLE_S } else { CPU_SAMPLE_S };
        self.calls = 1;
        loop {
            let took = self.time(self.calls)? * self.calls as f64;
            if took >= shortest || self.calls >= MOST_CALLS || stopped() {
                return Ok(());
            }
            let wanted = (self.calls as f64 * 1.2 * shortest / took.max(1e-9)) as usize;
            self.calls = wanted.clamp(self.calls + 1, self.calls * 10).min(MOST_CALLS);
        }
    }

    /// Adds samples to `into` for about `seconds`, at least `least`; of calls that take seconds, one may be enough.
    ///
    /// # Errors
    /// A run that fails.
    pub fn sample(&mut self, seconds: f64, least: usize, into: &mut Vec<f64>) -> Result<()> {
        let start = Instant::now();
        let mut taken = 0;
        loop {
            let elapsed = start.elapsed().as_secs_f64();
            let enough = taken >= least || (taken > 0 && elapsed > PATIENCE_S);
            if stopped() || (enough && elapsed >= seconds) {
                break;
            }
            into.push(self.time(self.calls)?);
            taken += 1;
        }
        Ok(())
    }

    /// Calls in a sample.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Number of sets of buffers.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// The inputs and outputs of the latest call.
    pub fn latest(&self) -> (&[Tensor], &[Tensor]) {
        let set = &self.sets[(self.next + self.sets.len() - 1) % self.sets.len()];
        (&set.inputs, &set.outputs)
    }

    /// Mean time of `calls` calls, in seconds.
    fn time(&mut self, calls: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            let at = self.next;
            self.next = (at + 1) % self.sets.len();
            let set = &mut self.sets[at];
            let inputs: ArrayVec<&Tensor, 8> = set.inputs.iter().collect();
            let mut outputs: ArrayVec<&mut Tensor, { op::MOST_OUTPUTS }> = set.outputs.iter_mut().collect();
            op::run_here(self.op, &inputs, &mut outputs)?;
        }
        if let Some(gpu) = self.gpu {
            gpu.sync()?;
        }
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    }
}

/// Median, fastest, and half the distance between the quartiles relative to the median; `None` without samples.
pub fn statistics(samples: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let position = share * (sorted.len() - 1) as f64;
        let (low, part) = (position.floor() as usize, position.fract());
        sorted[low] + (sorted[(low + 1).min(sorted.len() - 1)] - sorted[low]) * part
    };
    if sorted.is_empty() {
        return None;
    }
    let median = at(0.5);
    Some((median, sorted[0], (at(0.75) - at(0.25)) / 2.0 / median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_middle() {
        assert_eq!(statistics(&[]), None);
        assert_eq!(statistics(&[2.0]), Some((2.0, 2.0, 0.0)));
        let (median, min, spread) = statistics(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((median, min), (3.0, 1.0));
        assert!((spread - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(statistics(&[1.0, 2.0, 3.0, 100.0]).unwrap().0, 2.5);
    }
}
