//! Deflation: which values of a merge's halves stay what they are.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::steps::{
    COSINES, COUNTS, EXACT, FIRSTS, KEPT, Merge, NEAREST, NONE, NULLS, PIVOTS, POLES, RHOS, ROWS, SCALES, SECONDS,
    SHIFTS, SINES, TURNS, epsilon,
};
use cubecl::prelude::*;

/// The power of two that takes `largest` to between ½ and 1, as far as it and its inverse are normal numbers of f32; 1 for zero.
#[cube]
fn scale_of<F: Float>(largest: F) -> F {
    let bits = u32::reinterpret(f32::cast_from(largest)) >> 23u32;
    let bits = min(max(bits, 26u32), 226u32);
    let scale = F::cast_from(f32::reinterpret((253u32 - bits) << 23u32));
    select(largest > F::new(0.0), scale, F::new(1.0))
}

/// Notes a rotation that leaves the weight of two rows with the second.
#[cube]
fn note<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    turns: usize,
    cosine: F,
    sine: F,
    first: u32,
    second: u32,
) {
    let turn = merge.first + turns;
    numbers[comptime!(COSINES) * merge.size + turn] = cosine;
    numbers[comptime!(SINES) * merge.size + turn] = sine;
    indices[comptime!(FIRSTS) * merge.size + turn] = first;
    indices[comptime!(SECONDS) * merge.size + turn] = second;
}

/// Puts a pole at a place of the merge.
#[cube]
fn put<F: Float>(numbers: &mut [F], indices: &mut [u32], merge: &Merge, place: usize, value: F, weight: F, row: u32) {
    numbers[comptime!(POLES) * merge.size + merge.first + place] = value;
    numbers[comptime!(KEPT) * merge.size + merge.first + place] = weight;
    indices[comptime!(ROWS) * merge.size + merge.first + place] = row;
}

/// What the weights of a merge are measured by.
#[derive(CubeType, Clone, Copy)]
struct Measures<F: Float> {
    /// The factor of values, and what the length of the weights becomes by it.
    scale: F,
    reach: F,
    /// The factors, one after the other, that bring the weights to length 1.
    bring: F,
    unit: F,
    /// What counts as nothing.
    tolerance: F,
}

/// Measures a merge, and notes the null values of its halves.
#[cube]
fn measure<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    rho: F,
    #[comptime] squared: bool,
    #[comptime] double: bool,
) -> Measures<F> {
    let (first, len, size) = (merge.first, merge.len, merge.size);
    let zero = F::new(0.0);
    let values = comptime!(SHIFTS) * size + first;
    let weights = comptime!(EXACT) * size + first;
    let whole = merge.left < merge.len;
    // The length of the weights, which singular values need; the first value of a merge is 0 then.
    let mut length = F::new(1.0);
    let mut bring = F::new(1.0);
    let mut unit = F::new(1.0);
    let mut extreme = max(numbers[values].abs(), numbers[values + len - 1].abs());
    if comptime!(squared) {
        let mut largest = zero;
        for j in 0..len {
            largest = max(largest, numbers[weights + j].abs());
        }
        bring = scale_of::<F>(largest);
        let mut squares = zero;
        for j in 0..len {
            let weight = numbers[weights + j] * bring;
            squares += weight * weight;
        }
        let root = squares.sqrt();
        length = root / bring;
        unit = F::new(1.0) / select(root > zero, root, F::new(1.0));
        extreme = max(extreme, length);
        indices[comptime!(PIVOTS) * size + first] = indices[comptime!(NULLS) * size + first];
        // What becomes of the null value of the right half is seen when ranks are known.
        let right = indices[comptime!(NULLS) * size + first + select(whole, merge.left, 0usize)];
        indices[comptime!(NULLS) * size + first] =
            select(right == comptime!(NONE), right, right + select(whole, merge.left as u32, 0u32));
    }
    let extreme = select(comptime!(squared), extreme, max(extreme, rho));
    let scale = scale_of::<F>(extreme);
    // A part of the matrix that no scale brings to 1 is nothing beside the rest, and its squares would underflow.
    let tolerance = select(extreme * scale < F::new(0.25), F::new(1.0), F::new(4.0) * epsilon::<F>(double));
    let reach = select(comptime!(squared), length * scale, rho * scale);
    numbers[comptime!(SCALES) * size + first] = scale;
    numbers[comptime!(RHOS) * size + first] = select(comptime!(squared), reach * reach, reach);
    Measures::<F> { scale, reach, bring, unit, tolerance }
}

/// The weight of the left half's null value, which stays, and not with 0.
#[cube]
fn pivot_weight<F: Float>(weight: F, measures: &Measures<F>) -> F {
    let one = F::new(1.0);
    let own = weight * measures.bring * measures.unit;
    let least = measures.tolerance / select(measures.reach > F::new(0.0), measures.reach, one);
    select(own.abs() > least, own, min(least, one))
}

/// Takes out the values that the other half does not move: those with a negligible weight, and one of two that are so
/// close that a rotation of their vectors leaves the weight with one. One unit does it; values are in order. `rho` is that of
/// weights of length 1 for eigenvalues; for singular values, weights have any length and it is not read.
#[cube]
pub fn deflate<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    rho: F,
    #[comptime] squared: bool,
    #[comptime] double: bool,
) {
    let (first, len, size) = (merge.first, merge.len, merge.size);
    let zero = F::new(0.0);
    let values = comptime!(SHIFTS) * size + first;
    let weights = comptime!(EXACT) * size + first;
    let rows = comptime!(NEAREST) * size + first;
    let measures = measure::<F>(numbers, indices, merge, rho, squared, double);
    let (scale, reach, tolerance) = (measures.scale, measures.reach, measures.tolerance);
    let mut kept = 0usize;
    let mut turns = 0usize;
    let mut end = len;
    let mut waiting = false;
    let mut pivot = false;
    let mut value = zero;
    let mut weight = zero;
    let mut row = 0u32;
    let mut start = 0usize;
    if comptime!(squared) && merge.left < merge.len {
        weight = pivot_weight::<F>(numbers[weights], &measures);
        row = indices[rows];
        waiting = true;
        pivot = true;
        start = 1usize;
    }
    for j in start..len {
        let mut next = numbers[values + j] * scale;
        let mut next_weight = numbers[weights + j] * measures.bring * measures.unit;
        let next_row = indices[rows + j];
        if reach * next_weight.abs() <= tolerance {
            end -= 1;
            put::<F>(numbers, indices, merge, end, next, zero, next_row);
        } else {
            let mut replaces = true;
            if waiting {
                let squares = weight * weight + next_weight * next_weight;
                let apart = next - value;
                // What the rotation leaves beside the diagonal.
                let left = (apart * weight * next_weight).abs() <= tolerance * squares;
                let close = select(comptime!(squared), apart <= tolerance, left);
                if close {
                    let length = squares.sqrt();
                    let cosine = next_weight / length;
                    let sine = zero - weight / length;
                    end -= 1;
                    if pivot {
                        // A value that is 0 but for rounding gives its weight to the null one.
                        note::<F>(numbers, indices, merge, turns, zero - sine, zero - cosine, next_row, row);
                        weight = length;
                        put::<F>(numbers, indices, merge, end, next, zero, next_row);
                        replaces = false;
                    } else {
                        note::<F>(numbers, indices, merge, turns, cosine, sine, row, next_row);
                        let low = value * cosine * cosine + next * sine * sine;
                        next = value * sine * sine + next * cosine * cosine;
                        next_weight = length;
                        put::<F>(numbers, indices, merge, end, low, zero, row);
                    }
                    turns += 1;
                } else {
                    put::<F>(numbers, indices, merge, kept, value, weight, row);
                    kept += 1;
                }
            }
            if replaces {
                waiting = true;
                pivot = false;
                value = next;
                weight = next_weight;
                row = next_row;
            }
        }
    }
    if waiting {
        put::<F>(numbers, indices, merge, kept, value, weight, row);
        kept += 1;
    }
    indices[comptime!(COUNTS) * size + first] = kept as u32;
    indices[comptime!(TURNS) * size + first] = turns as u32;
}
