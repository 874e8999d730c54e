//! The steps on the CPU: plain loops, threads over rows.

use super::{Change, Source};
use crate::lanes::{Entry, Real, each_float};
use bimetal_core::cpu::parallel;
use bimetal_core::{Result, Scalar, Tensor};

/// Elements that a thread takes at least.
const GRAIN: usize = 1 << 15;

pub(super) fn copy(from: &Source, to: &mut Tensor, extents: [usize; 3]) -> Result<()> {
    // Operands are small: a row, a column or a number for each.
    let operand = from.operand.map(|(tensor, strides)| Ok((tensor.to_f64_vec()?, strides))).transpose()?;
    let status = from.status.map(|status| status.as_slice::<i32>()).transpose()?;
    each_float!(from.tensor.dtype(), I => {
        let source = from.tensor.as_slice::<I>()?;
        each_float!(to.dtype(), O => {
            let element = |x: f64, y: f64| match from.change {
                Change::None => x,
                Change::Times => x * y,
                Change::Minus => x - y,
            };
            let [_, rows, columns] = extents;
            parallel::units_mut(to.as_mut_slice::<O>()?, columns, GRAIN / columns + 1, |first, out| {
                for (i, out) in (first..).zip(out.chunks_exact_mut(columns)) {
                    let (b, r) = (i / rows, i % rows);
                    if status.is_some_and(|status| status[b] != 0) {
                        out.fill(<O as Scalar>::from_f64(f64::NAN));
                        continue;
                    }
                    let place = |strides: [usize; 3]| b * strides[0] + r * strides[1];
                    let (start, step) = (place(from.strides), from.strides[2]);
                    match &operand {
                        None => {
                            for (c, out) in out.iter_mut().enumerate() {
                                *out = <O as Scalar>::from_f64(Scalar::to_f64(source[start + c * step]));
                            }
                        }
                        Some((other, strides)) => {
                            let at = place(*strides);
                            for (c, out) in out.iter_mut().enumerate() {
                                let value = element(Scalar::to_f64(source[start + c * step]), other[at + c * strides[2]]);
                                *out = <O as Scalar>::from_f64(value);
                            }
                        }
                    }
                }
            });
        });
    });
    Ok(())
}

pub(super) fn inverted(
    s: &Tensor,
    status: &Tensor,
    inverse: &mut Tensor,
    rank: &mut Tensor,
    k: usize,
    rcond: f64,
) -> Result<()> {
    let (status, ranks) = (status.as_slice::<i32>()?, rank.as_mut_slice::<i32>()?);
    each_float!(s.dtype(), T => {
        let (s, inverse) = (s.as_slice::<T>()?, inverse.as_mut_slice::<T>()?);
        let rcond = <T as Scalar>::from_f64(rcond).real();
        for (b, rank) in ranks.iter_mut().enumerate() {
            let values = &s[b * k..][..k];
            let cut = values.first().map_or(<T as Entry>::Real::default(), |largest| rcond * largest.real());
            let failed = status[b] != 0;
            *rank = if failed { -1 } else { values.iter().filter(|x| x.real() > cut).count() as i32 };
            for (to, x) in inverse[b * k..][..k].iter_mut().zip(values) {
                let value = match x.real() > cut {
                    _ if failed => <T as Entry>::Real::NAN,
                    true => <T as Entry>::Real::ONE / x.real(),
                    false => <T as Entry>::Real::default(),
                };
                *to = T::of(value);
            }
        }
    });
    Ok(())
}

/// Philox 4×32-10.
pub(super) fn philox(mut x: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [first, second] = [0xd251_1f53 * u64::from(x[0]), 0xcd9e_8d57 * u64::from(x[2])];
        x = [(second >> 32) as u32 ^ x[1] ^ key[0], second as u32, (first >> 32) as u32 ^ x[3] ^ key[1], first as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    x
}

pub(super) fn random(out: &mut Tensor, columns: usize, seed: u64, stream: u32) -> Result<()> {
    let key = [seed as u32, (seed >> 32) as u32];
    each_float!(out.dtype(), T => {
        parallel::units_mut(out.as_mut_slice::<T>()?, 1, 2048, |first, part| {
            for (e, out) in (first..).zip(part) {
                let words = philox([(e / columns) as u32, (e % columns) as u32, stream, 0], key);
                let sum: u32 = words.iter().map(|w| (w & 0xffff) + (w >> 16)).sum();
                *out = <T as Scalar>::from_f64(f64::from(sum as i32 - 262_140) / 65536.0);
            }
        });
    });
    Ok(())
}
