//! Signs and variances on the CPU.

use super::Found;
use crate::lanes::each_float;
use bimetal_core::{Result, Scalar, Tensor};

pub(super) fn describe(found: &Found, signs: &mut Tensor, variance: &mut Tensor, ratio: &mut Tensor) -> Result<()> {
    let Found { columns, k, samples, features, .. } = *found;
    let status = found.status.as_slice::<i32>()?;
    each_float!(found.s.dtype(), T => {
        let (s, vh, total) = (found.s.as_slice::<T>()?, found.vh.as_slice::<T>()?, found.total.as_slice::<T>()?);
        for (e, sign) in signs.as_mut_slice::<T>()?.iter_mut().enumerate() {
            let row = &vh[(e / k * columns + e % k) * features..][..features];
            let largest = row.iter().fold(0.0, |most: f64, x| {
                if Scalar::to_f64(*x).abs() > most.abs() { Scalar::to_f64(*x) } else { most }
            });
            *sign = <T as Scalar>::from_f64(if largest < 0.0 { -1.0 } else { 1.0 });
        }
        each_float!(variance.dtype(), O => {
            let outputs = variance.as_mut_slice::<O>()?.iter_mut().zip(ratio.as_mut_slice::<O>()?);
            for (e, (variance, ratio)) in outputs.enumerate() {
                let (value, all) = (Scalar::to_f64(s[e / k * columns + e % k]), Scalar::to_f64(total[e / k]));
                let failed = status[e / k] != 0;
                let squared = |part: f64| if failed { f64::NAN } else { part * part };
                *variance = <O as Scalar>::from_f64(squared(value / (samples as f64 - 1.0).sqrt()));
                *ratio = <O as Scalar>::from_f64(squared(if all > 0.0 { value / all } else { 0.0 }));
            }
        });
    });
    Ok(())
}
