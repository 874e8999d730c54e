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

/// The power of two that takes `largest` to between ½ and 1, as far as it and its inverse are normal numbers of f32; 1 for zero.
#[cube]
fn scale_of<F: Float>(largest: F) -> F {
    let bits = u32::reinterpret(f32::cast_from(largest)) >> 23u32;
    let bits = min(max(bits, 26u32), 226u32);
    let scale = F::cast_from(f32::reinterpret((252u32 - bits) << 23u32));
    select(largest > F::new(0.0), scale, F::new(1.0))
}

/// The sum over `lanes` neighbouring units.
#[cube]
fn team_sum<F: Float>(value: F, #[comptime] lanes: u32) -> F {
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!(lanes.trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    sum
}

/// The product over `lanes` neighbouring units.
#[cube]
fn team_product<F: Float>(value: F, #[comptime] lanes: u32) -> F {
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
    let tolerance = select(extreme * scale < F::new(0.25), F::new(1.0), F::new(8.0) * epsilon::<F>(double));
    let reach = select(comptime!(squared), length * scale, rho * scale);
    let rho = select(comptime!(squared), reach * reach, reach);
    let mut kept = 0usize;
    let mut turns = 0usize;
    let mut end = len;
    let mut waiting = false;
    let mut pivot = false;
    let mut value = zero;
    let mut weight = zero;
    let mut row = 0u32;
    let mut start = 0usize;
    if comptime!(squared) {
        if whole {
            // The null value of the left half stays, with a weight that is not 0.
            weight = numbers[weights] * bring * unit;
            let least = tolerance / select(reach > zero, reach, F::new(1.0));
            weight = select(weight.abs() > least, weight, min(least, F::new(1.0)));
            row = indices[rows];
            waiting = true;
            pivot = true;
            start = 1usize;
        }
    }
    for j in start..len {
        let mut next = numbers[values + j] * scale;
        let mut next_weight = numbers[weights + j] * bring * unit;
        let next_row = indices[rows + j];
        if reach * next_weight.abs() <= tolerance {
            end -= 1;
            put::<F>(numbers, indices, merge, end, next, zero, next_row);
        } else {
            let mut replaces = true;
            if waiting {
                let squares = weight * weight + next_weight * next_weight;
                let apart = next - value;
                let close = select(
                    comptime!(squared),
                    apart <= tolerance,
                    (apart * weight * next_weight).abs() <= tolerance * squares,
                );
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
    numbers[comptime!(SCALES) * size + first] = scale;
    numbers[comptime!(RHOS) * size + first] = rho;
}

/// A pole less what is at `shift` from `origin`, or the squares of both.
#[cube]
fn distance<F: Float>(pole: F, origin: F, shift: F, #[comptime] squared: bool) -> F {
    let difference = (pole - origin) - shift;
    if comptime!(squared) { difference * (pole + (origin + shift)) } else { difference }
}

/// The step from `at` that changes its square by `step`.
#[cube]
fn unsquared<F: Float>(at: F, step: F, #[comptime] squared: bool) -> F {
    if comptime!(squared) {
        let root = max(at * at + step, F::new(0.0)).sqrt();
        let sum = at + root;
        step / select(sum > F::new(0.0), sum, F::new(1e-30))
    } else {
        step
    }
}

/// The sums of the secular function over the poles up to `split` and past it, and their derivatives, at `shift` from the
/// pole `origin`.
#[cube]
fn sums<F: Float>(
    numbers: &mut [F],
    merge: &Merge,
    count: usize,
    split: usize,
    origin: F,
    shift: F,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
) -> (F, F, F, F) {
    let poles = comptime!(POLES) * merge.size + merge.first;
    let weights = comptime!(KEPT) * merge.size + merge.first;
    let mut below = F::new(0.0);
    let mut below_slope = F::new(0.0);
    let mut above = F::new(0.0);
    let mut above_slope = F::new(0.0);
    let mut j = lane as usize;
    while j < count {
        let weight = numbers[weights + j];
        let ratio = weight / distance::<F>(numbers[poles + j], origin, shift, squared);
        let term = weight * ratio;
        let slope = ratio * ratio;
        let lower = j <= split;
        below += select(lower, term, F::new(0.0));
        below_slope += select(lower, slope, F::new(0.0));
        above += select(lower, F::new(0.0), term);
        above_slope += select(lower, F::new(0.0), slope);
        j += comptime!(lanes as usize);
    }
    let below = team_sum::<F>(below, lanes);
    let below_slope = team_sum::<F>(below_slope, lanes);
    let above = team_sum::<F>(above, lanes);
    let above_slope = team_sum::<F>(above_slope, lanes);
    (below, below_slope, above, above_slope)
}

/// A root of c·x² − a·x + b, which is chosen so that nothing cancels: the one that is `(a − √d) / 2c` or `(a + √d) / 2c`.
#[cube]
fn quadratic<F: Float>(a: F, b: F, c: F, plus: bool) -> F {
    let zero = F::new(0.0);
    let two = F::new(2.0);
    let discriminant = (a * a - F::new(4.0) * b * c).abs().sqrt();
    let signed = select(plus, discriminant, zero - discriminant);
    // With the sign of `a` the numerator is a sum.
    let direct = (a > zero && plus) || (a <= zero && !plus);
    let sum = a + signed;
    let difference = a - signed;
    let numerator = select(direct, sum, two * b);
    let denominator = select(direct, two * c, difference);
    numerator / select(denominator == zero, F::new(1e-37), denominator)
}

/// The root of the secular function 1/ρ + Σ w² / (pole − x) past pole `index` of the merge, as its distance from the nearest
/// pole; for singular values both are squared. All units call it; the `lanes` units of a root give the same `index`, and
/// those without a root are not `active`.
#[cube]
pub fn root<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    index: usize,
    active: bool,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
    #[comptime] double: bool,
) {
    let zero = F::new(0.0);
    let half = F::new(0.5);
    let eps = epsilon::<F>(double);
    let poles = comptime!(POLES) * merge.size + merge.first;
    let weights = comptime!(KEPT) * merge.size + merge.first;
    let found = select(active, indices[comptime!(COUNTS) * merge.size + merge.first] as usize, 0usize);
    let rho = numbers[comptime!(RHOS) * merge.size + merge.first];
    let active = active && index < found;
    let index = select(active, index, 0usize);
    let last = index + 1 >= found;
    // The two poles that the interpolation has: those around the root, or the last two.
    let split = select(last, max(index, 1usize) - 1, index);
    let other = min(split + 1, max(found, 1usize) - 1);
    let low_pole = numbers[poles + split];
    let high_pole = numbers[poles + other];
    let low_weight = numbers[weights + split] * numbers[weights + split];
    let high_weight = numbers[weights + other] * numbers[weights + other];
    let apart = distance::<F>(high_pole, low_pole, zero, squared);
    let gap = select(last, unsquared::<F>(high_pole, rho, squared), high_pole - low_pole);
    let inverse = F::new(1.0) / select(rho > zero, rho, F::new(1.0));
    // The middle tells which pole is nearer.
    let start = select(last, high_pole, low_pole);
    let (below, _, above, _) = sums::<F>(numbers, merge, found, split, start, gap * half, lane, lanes, squared);
    let middle = inverse + below + above;
    let from_low = !last && middle > zero;
    let origin = select(from_low, low_pole, high_pole);
    let rest = middle
        - low_weight / distance::<F>(low_pole, start, gap * half, squared)
        - high_weight / distance::<F>(high_pole, start, gap * half, squared);
    let up = select(last, middle <= zero, from_low);
    let mut low = select(last, select(up, gap * half, zero), select(from_low, zero, zero - gap * half));
    let mut high = select(last, select(up, gap * F::new(1.00001), gap * half), select(from_low, gap * half, zero));
    let a = select(from_low, rest * apart, zero - rest * apart) + low_weight + high_weight;
    let b = select(from_low, low_weight * apart, zero - high_weight * apart);
    let guess = unsquared::<F>(origin, quadratic::<F>(a, b, rest, last), squared);
    let mut shift = select(guess > low && guess < high, guess, low + (high - low) * half);
    let single = found == 1;
    shift = select(single, unsquared::<F>(low_pole, rho * low_weight, squared), shift);
    let mut done = !active || single;
    let mut both = last;
    let mut before = F::new(1e30);
    let mut rounds = 0u32;
    while rounds < 60u32 && plane_any(!done) {
        let (below, below_slope, above, above_slope) =
            sums::<F>(numbers, merge, found, split, origin, shift, lane, lanes, squared);
        let value = inverse + below + above;
        let slope = below_slope + above_slope;
        let moved = zero - distance::<F>(origin, origin, shift, squared);
        let size = F::new(8.0) * (above.abs() + below.abs()) + inverse + moved.abs() * slope;
        let small = value.abs() <= eps * size;
        low = select(value < zero, max(low, shift), low);
        high = select(value < zero, high, min(high, shift));
        let low_delta = distance::<F>(low_pole, origin, shift, squared);
        let high_delta = distance::<F>(high_pole, origin, shift, squared);
        let slow = value.abs() > before * F::new(0.1);
        both = last || (both && !slow) || (!both && slow);
        before = value.abs();
        let low_ratio = low_weight / (low_delta * low_delta);
        let high_ratio = high_weight / (high_delta * high_delta);
        let c = select(
            both,
            value - low_delta * below_slope - high_delta * above_slope,
            select(
                from_low,
                value - high_delta * slope + apart * low_ratio,
                value - low_delta * slope - apart * high_ratio,
            ),
        );
        let a = (low_delta + high_delta) * value - low_delta * high_delta * slope;
        let b = low_delta * high_delta * value;
        let step = quadratic::<F>(a, b, select(last, c.abs(), c), last);
        let newton = zero - value / slope;
        let step = select(value * step < zero, step, newton);
        let tried = shift + unsquared::<F>(origin + shift, step, squared);
        let next = select(tried > low && tried < high, tried, low + (high - low) * half);
        let narrow = high - low <= eps * max(low.abs(), high.abs());
        let stays = done || small;
        done = stays || narrow || next == shift;
        shift = select(stays, shift, next);
        rounds += 1;
    }
    if active && lane == 0 {
        numbers[comptime!(SHIFTS) * merge.size + merge.first + index] = shift;
        indices[comptime!(NEAREST) * merge.size + merge.first + index] = select(from_low || last, index, other) as u32;
    }
}

/// The weight with which the roots that were found are exact, for pole `index`.
#[cube]
pub fn exact_weight<F: Float>(
    numbers: &mut [F],
    indices: &mut [u32],
    merge: &Merge,
    index: usize,
    active: bool,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] squared: bool,
) {
    let poles = comptime!(POLES) * merge.size + merge.first;
    let shifts = comptime!(SHIFTS) * merge.size + merge.first;
    let nearest = comptime!(NEAREST) * merge.size + merge.first;
    let found = indices[comptime!(COUNTS) * merge.size + merge.first] as usize;
    let active = active && index < found;
    let pole = numbers[poles + select(active, index, 0usize)];
    let mut product = F::new(1.0);
    let mut i = select(active, lane as usize, found);
    while i < found {
        let origin = numbers[poles + indices[nearest + i] as usize];
        let reach = distance::<F>(pole, origin, numbers[shifts + i], squared);
        let apart = distance::<F>(pole, numbers[poles + i], F::new(0.0), squared);
        product *= select(i == index, reach, reach / select(i == index, F::new(1.0), apart));
        i += comptime!(lanes as usize);
    }
    let product = team_product::<F>(product, lanes);
    if active && lane == 0 {
        let size = product.abs().sqrt();
        let weight = numbers[comptime!(KEPT) * merge.size + merge.first + index];
        numbers[comptime!(EXACT) * merge.size + merge.first + index] =
            select(weight < F::new(0.0), F::new(0.0) - size, size);
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
    if comptime!(side != Side::Left) {
        if active && lane == 0 {
            let scale = numbers[comptime!(SCALES) * size + first];
            numbers[comptime!(VALUES) * size + first + rank] = value / scale;
        }
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
