//! The product on the CPU: lanes of sums along a row, and threads that take equal numbers of elements.

use super::Dims;
use crate::lanes::{Entry, Real, each_float};
use bimetal_core::cpu::parallel::{self, Shared};
use bimetal_core::cpu::simd::{Kernel, Simd, dispatch};
use bimetal_core::{DType, Result, Tensor};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sums beside each other.
const LANES: usize = 16;
/// Rows of fewer elements have fewer sums.
const SHORT: usize = 64;
/// Elements that are added up in the dtype of the computation before they go to a sum in f64.
const PART: usize = 1024;
/// Elements, and a few for each row, that a thread takes at least.
const GRAIN: usize = 1 << 13;

pub(super) fn spmv_csr(dims: Dims, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let [y, status] = outputs else { unreachable!("two outputs") };
    let (pointers, columns) = (indices(inputs[0])?, indices(inputs[1])?);
    let ends = [pointers[0] as usize, pointers[dims.m] as usize];
    let wrong = AtomicBool::new(ends != [0, dims.count]);
    each_float!(inputs[2].dtype(), T => {
        let (values, x) = (inputs[2].as_slice::<T>()?, inputs[3].as_slice::<T>()?);
        let y = Shared::new(y.as_mut_slice::<T>()?);
        // Rows between equal parts of all elements; of pointers that fall, parts as they come.
        let work = dims.count + 4 * dims.m;
        let pieces = (work / GRAIN).clamp(1, 4 * parallel::threads());
        let weight = |row: usize| pointers[row] as usize + 4 * row;
        let sorted = pointers.is_sorted();
        let border = |piece: usize| match piece {
            _ if piece == pieces => dims.m,
            _ if !sorted => dims.m * piece / pieces,
            _ => first_at(dims.m, |row| weight(row) >= work * piece / pieces),
        };
        parallel::ranges(pieces, 1, |range| {
            for piece in range {
                let rows = border(piece)..border(piece + 1);
                // SAFETY: borders do not fall, so that pieces have rows of their own.
                let y = unsafe { y.slice(rows.clone()) };
                if !dispatch(Rows { pointers, columns, values, x, rows, y }) {
                    wrong.store(true, Ordering::Relaxed);
                }
            }
        });
    });
    status.as_mut_slice::<i32>()?[0] = i32::from(wrong.into_inner());
    Ok(())
}

/// The first of `0..n` for which `reached` is true.
fn first_at(n: usize, reached: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = (low + high) / 2;
        if reached(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// Indices as u32: negative ones are larger than all that exist.
fn indices(tensor: &Tensor) -> Result<&[u32]> {
    if tensor.dtype() == DType::U32 {
        return tensor.as_slice::<u32>();
    }
    let signed = tensor.as_slice::<i32>()?;
    // SAFETY: u32 has the size and alignment of i32, and all bits are valid.
    Ok(unsafe { std::slice::from_raw_parts(signed.as_ptr().cast(), signed.len()) })
}

/// Rows of the matrix; gives whether they are well-formed.
struct Rows<'a, T> {
    pointers: &'a [u32],
    columns: &'a [u32],
    values: &'a [T],
    x: &'a [T],
    rows: Range<usize>,
    y: &'a mut [T],
}

impl<T: Entry> Kernel for Rows<'_, T> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let Self { pointers, columns, values, x, rows, y } = self;
        let mut right = true;
        for (row, y) in rows.zip(y) {
            let (start, end) = (pointers[row] as usize, pointers[row + 1] as usize);
            if start > end || end > columns.len() {
                right = false;
                *y = T::of(T::Real::NAN);
                continue;
            }
            let found = sum(&columns[start..end], &values[start..end], x);
            right &= found.is_some();
            *y = T::of(found.unwrap_or(T::Real::NAN));
        }
        right
    }
}

/// The sum of a short row, four elements at a time; none if a column does not exist.
#[inline(always)]
fn short_sum<T: Entry>(columns: &[u32], values: &[T], x: &[T]) -> Option<T::Real> {
    let mut sums = [T::Real::default(); 4];
    let (column_groups, value_groups) = (columns.chunks_exact(4), values.chunks_exact(4));
    let rest = column_groups.remainder().iter().zip(value_groups.remainder());
    for (columns, values) in column_groups.zip(value_groups) {
        for lane in 0..4 {
            sums[lane] = sums[lane] + values[lane].real() * x.get(columns[lane] as usize)?.real();
        }
    }
    for (lane, (column, value)) in rest.enumerate() {
        sums[lane] = sums[lane] + value.real() * x.get(*column as usize)?.real();
    }
    Some((sums[0] + sums[1]) + (sums[2] + sums[3]))
}

/// The sum of a row; none if a column does not exist.
#[inline(always)]
fn sum<T: Entry>(columns: &[u32], values: &[T], x: &[T]) -> Option<T::Real> {
    if columns.len() < SHORT {
        return short_sum(columns, values, x);
    }
    let mut total = 0.0;
    for (columns, values) in columns.chunks(PART).zip(values.chunks(PART)) {
        let largest = columns.iter().fold(0, |most: u32, column| most.max(*column));
        if largest as usize >= x.len() {
            return None;
        }
        let mut sums = [T::Real::default(); LANES];
        let (column_groups, value_groups) = (columns.chunks_exact(LANES), values.chunks_exact(LANES));
        let rest = column_groups.remainder().iter().zip(value_groups.remainder());
        for (columns, values) in column_groups.zip(value_groups) {
            for lane in 0..LANES {
                // SAFETY: the largest of the columns exists.
                let x = unsafe { x.get_unchecked(columns[lane] as usize) };
                sums[lane] = sums[lane] + values[lane].real() * x.real();
            }
        }
        for (lane, (column, value)) in rest.enumerate() {
            sums[lane] = sums[lane] + value.real() * x[*column as usize].real();
        }
        total += sums.iter().map(|sum| sum.to_f64()).sum::<f64>();
    }
    Some(T::Real::of_f64(total))
}
