//! The steps of a merge of divide and conquer, after Cuppen, Gu and Eisenstat, and LAPACK's `laed2`, `laed3` and `laed4`:
//! eigenvalues of a diagonal plus ρ·z·zᵀ, and the matrix that takes the halves' eigenvectors to those of the whole.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use cubecl::prelude::*;

/// Sections of the table of numbers, each with a place for every row of every matrix.
pub const VALUES: usize = 0;
pub const WEIGHTS: usize = 1;
/// What is left after deflation, ascending, and from the end of the merge down what was deflated, times the scale.
pub const POLES: usize = 2;
pub const KEPT: usize = 3;
/// A root less the pole that it is nearest to; before that, the values in order.
pub const SHIFTS: usize = 4;
/// The weights for which the roots are exact; before that, the weights in order.
pub const EXACT: usize = 5;
pub const COSINES: usize = 6;
pub const SINES: usize = 7;
/// The power of two that the poles of a merge were multiplied by, and ρ after that, at its first row.
pub const SCALES: usize = 8;
pub const RHOS: usize = 9;
pub const NUMBERS: usize = 10;

/// Sections of the table of indices.
pub const ROWS: usize = 0;
/// The pole that a root is nearest to; before that, the rows in order.
pub const NEAREST: usize = 1;
pub const FIRSTS: usize = 2;
pub const SECONDS: usize = 3;
/// How many poles and rotations a merge has, at its first row.
pub const COUNTS: usize = 4;
pub const TURNS: usize = 5;
/// The row of a block, at its first row, whose right vector has no left one; [`NONE`] for a square block.
pub const NULLS: usize = 6;
/// The row of a merge that takes the middle row of the matrix for its left vector.
pub const PIVOTS: usize = 7;
pub const INDICES: usize = 8;
pub const NONE: u32 = u32::MAX;

/// Whose vectors a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Of symmetric matrices.
    Eigen,
    /// Right singular vectors.
    Right,
    /// Left singular vectors.
    Left,
}

impl Side {
    /// The unknown of the secular function is the square of a value.
    pub const fn squared(self) -> bool {
        !matches!(self, Self::Eigen)
    }
}

/// A merge: its first row in the tables and in the matrix, how many rows its left half and the whole have, and the
/// distance between sections.
#[derive(CubeType, Clone, Copy)]
pub struct Merge {
    pub first: usize,
    pub left: usize,
    pub len: usize,
    pub size: usize,
}

/// Half the distance from 1 to the next number.
#[cube]
pub fn epsilon<F: Float>(#[comptime] double: bool) -> F {
    if comptime!(double) { F::new(1.1102230246251565e-16) } else { F::new(5.9604644775390625e-8) }
}

/// The sum over `lanes` neighbouring units.
#[cube]
pub fn team_sum<F: Float>(value: F, #[comptime] lanes: u32) -> F {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}

/// The product over `lanes` neighbouring units.
#[cube]
pub fn team_product<F: Float>(value: F, #[comptime] lanes: u32) -> F {
    let mut product = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        product *= plane_shuffle_xor(product, comptime!(1u32 << step));
    }
    product
}

/// Copies the value and the weight of row `at` of the merge to where they stand among both halves' values in order; of
/// singular values the left half's null one is the first.
#[cube]
pub fn arrange<F: Float>(numbers: &mut [F], indices: &mut [u32], merge: &Merge, at: usize, #[comptime] squared: bool) {
    let values = comptime!(VALUES) * merge.size + merge.first;
    let own = numbers[values + at];
    let right = at >= merge.left;
    let start = select(right, 0usize, merge.left);
    let mut low = start;
    let mut high = select(right, merge.left, merge.len);
    while low < high {
        let middle = (low + high) / 2;
        let other = numbers[values + middle];
        let before = other < own || (right && other == own);
        low = select(before, middle + 1, low);
        high = select(before, high, middle);
    }
    let mut place = at - select(right, merge.left, 0usize) + low - start;
    if comptime!(squared) {
        let null = indices[comptime!(NULLS) * merge.size + merge.first] as usize;
        if merge.left < merge.len && !right {
            place = select(at == null, 0usize, place + select(at < null, 1usize, 0usize));
        }
    }
    let place = merge.first + place;
    numbers[comptime!(SHIFTS) * merge.size + place] = own;
    numbers[comptime!(EXACT) * merge.size + place] = numbers[comptime!(WEIGHTS) * merge.size + merge.first + at];
    indices[comptime!(NEAREST) * merge.size + place] = at as u32;
}

/// A pole less what is at `shift` from `origin`, or the squares of both.
#[cube]
pub fn distance<F: Float>(pole: F, origin: F, shift: F, #[comptime] squared: bool) -> F {
    let difference = (pole - origin) - shift;
    if comptime!(squared) { difference * (pole + (origin + shift)) } else { difference }
}

/// The step from `at` that changes its square by `step`.
#[cube]
pub fn unsquared<F: Float>(at: F, step: F, #[comptime] squared: bool) -> F {
    if comptime!(squared) {
        let root = max(at * at + step, F::new(0.0)).sqrt();
        let sum = at + root;
        step / select(sum > F::new(0.0), sum, F::new(1e-30))
    } else {
        step
    }
}

/// The new value that belongs to place `at` of the merge, a root or what was deflated, goes to `values` by its rank, and
/// the parts that the old vectors have in the new one go to column `rank` of `parts`, rows `stride` apart from `start` on.
#[cube]
pub fn parts<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    parts: &mut [F],
    merge: &Merge,
    start: usize,
    stride: usize,
    at: usize,
    active: bool,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] side: Side,
) -> usize {
    let zero = F::new(0.0);
    let one = F::new(1.0);
    let squared = comptime!(side.squared());
    let (first, len, size) = (merge.first, merge.len, merge.size);
    let poles = comptime!(POLES) * size + first;
    let shifts = comptime!(SHIFTS) * size + first;
    let exact = comptime!(EXACT) * size + first;
    let nearest = comptime!(NEAREST) * size + first;
    let rows = comptime!(ROWS) * size + first;
    let found = indices[comptime!(COUNTS) * size + first] as usize;
    // Alone, a pole keeps its vector, also when its weight is 0.
    let alone = select(numbers[comptime!(KEPT) * size + first] < zero, one, zero - one);
    let at = select(active, at, 0usize);
    let is_root = at < found;
    let origin = numbers[poles + select(is_root, indices[nearest + at] as usize, at)];
    let shift = select(is_root, numbers[shifts + at], zero);
    let value = origin + shift;
    let mut squares = zero;
    let mut smaller = zero;
    let mut j = select(active, lane as usize, len);
    while j < len {
        let pole_is_root = j < found;
        let pole = numbers[poles + j];
        if is_root {
            if pole_is_root {
                let quotient = numbers[exact + j] / distance::<F>(pole, origin, shift, squared);
                let mut part = select(found == 1, alone, quotient);
                if comptime!(side == Side::Left) {
                    part = select(j == 0, zero - one, part * pole);
                }
                squares += part * part;
            } else {
                smaller += select(pole < value, one, zero);
            }
        } else if pole_is_root {
            let other = numbers[poles + indices[nearest + j] as usize] + numbers[shifts + j];
            smaller += select(other <= value, one, zero);
        } else {
            smaller += select(pole < value || (pole == value && j < at), one, zero);
        }
        j += comptime!(lanes as usize);
    }
    let squares = team_sum::<F>(squares, lanes);
    let smaller = team_sum::<F>(smaller, lanes);
    let rank = min(u32::cast_from(smaller) as usize + select(is_root, at, 0usize), len - 1);
    let norm = one / select(is_root, squares.sqrt(), one);
    let mut j = select(active, lane as usize, len);
    while j < len {
        let row = indices[rows + j] as usize;
        let mut part = select(j == at, one, zero);
        if is_root {
            part = zero;
            if j < found {
                let pole = numbers[poles + j];
                let quotient = numbers[exact + j] / distance::<F>(pole, origin, shift, squared);
                part = select(found == 1, alone, quotient);
                if comptime!(side == Side::Left) {
                    part = select(j == 0, zero - one, part * pole);
                }
                part *= norm;
            }
        }
        parts[start + row * stride + rank] = part;
        j += comptime!(lanes as usize);
    }
    if comptime!(side != Side::Left) && active && lane == 0 {
        let scale = numbers[comptime!(SCALES) * size + first];
        numbers[comptime!(VALUES) * size + first + rank] = value / scale;
    }
    rank
}

/// Where the null value of a merge has gone, when it is place `at` of rank `rank`. One unit finds it.
#[cube]
pub fn find_null(indices: &mut [u32], merge: &Merge, at: usize, rank: usize) {
    let null = comptime!(NULLS) * merge.size + merge.first;
    let found = indices[comptime!(COUNTS) * merge.size + merge.first] as usize;
    if at >= found && indices[comptime!(ROWS) * merge.size + merge.first + at] == indices[null] {
        indices[comptime!(PIVOTS) * merge.size + merge.first + 1] = rank as u32;
    }
}

/// Undoes in column `rank` of `parts` the rotations of vectors that were deflated together. Right vectors that belong to the
/// value 0 were rotated without left ones.
#[cube]
pub fn turn<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    parts: &mut [F],
    merge: &Merge,
    start: usize,
    stride: usize,
    rank: usize,
    #[comptime] side: Side,
) {
    let (first, size) = (merge.first, merge.size);
    let turns = indices[comptime!(TURNS) * size + first] as usize;
    let pivot = indices[comptime!(PIVOTS) * size + first];
    for back in 0..turns {
        let t = first + turns - 1 - back;
        let second = indices[comptime!(SECONDS) * size + t];
        if comptime!(side != Side::Left) || second != pivot {
            let cosine = numbers[comptime!(COSINES) * size + t];
            let sine = numbers[comptime!(SINES) * size + t];
            let one = start + indices[comptime!(FIRSTS) * size + t] as usize * stride + rank;
            let two = start + second as usize * stride + rank;
            let (x, y) = (parts[one], parts[two]);
            parts[one] = x * cosine - y * sine;
            parts[two] = x * sine + y * cosine;
        }
    }
}
