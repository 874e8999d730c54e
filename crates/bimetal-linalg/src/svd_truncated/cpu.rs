//! The error of an approximation from its probes, on the CPU.

use super::Probes;
use crate::lanes::each_float;
use bimetal_core::{Result, Scalar, Tensor};

pub(super) fn errors(job: &Probes, error: &mut Tensor) -> Result<()> {
    let status = job.status.as_slice::<i32>()?;
    let Probes { rows, probes, rank, factor, rounding, .. } = *job;
    each_float!(job.exact.dtype(), T => {
        let (exact, found) = (job.exact.as_slice::<T>()?, job.found.as_slice::<T>()?);
        let values = job.values.as_slice::<T>()?;
        for (i, out) in error.as_mut_slice::<T>()?.iter_mut().enumerate() {
            let (exact, found) = (&exact[i * rows * probes..], &found[i * rows * probes..]);
            let mut squares = vec![0.0; probes];
            // Differences in f32 are exact in f64, whose squares neither overflow nor vanish; f64's own are divided.
            let difference = |e: usize| Scalar::to_f64(exact[e]) - Scalar::to_f64(found[e]);
            let scale = (0..rows * probes).fold(0.0, |scale: f64, e| scale.max(difference(e).abs()));
            let scale = if scale > 0.0 { scale } else { 1.0 };
            for e in 0..rows * probes {
                let part = difference(e) / scale;
                squares[e % probes] += part * part;
            }
            let longest = scale * squares.iter().fold(0.0, |a: f64, b| a.max(*b)).sqrt();
            let largest = if rank > 0 { Scalar::to_f64(values[i * rank]) } else { 0.0 };
            let bound = if status[i] == 0 { factor * longest + rounding * largest } else { f64::NAN };
            *out = <T as Scalar>::from_f64(bound);
        }
    });
    Ok(())
}
