//! Deflation: which values of a merge's halves stay what they are (LAPACK's `laed2` and `lasd2`).

/// Half the distance from 1 to the next number.
pub(super) const EPSILON: f32 = 0.5 * f32::EPSILON;

/// The power of two that takes `largest` to between ½ and 1, as far as it and its inverse are normal numbers; 1 for zero.
pub(super) fn scale_of(largest: f32) -> f32 {
    if !(largest > 0.0) {
        return 1.0;
    }
    let bits = (largest.to_bits() >> 23).clamp(26, 226);
    f32::from_bits((253 - bits) << 23)
}

/// A value of a half with the weight that couples it to the other half, and the row of its vector.
#[derive(Clone, Copy, Default)]
pub(super) struct Pole {
    pub(super) value: f32,
    pub(super) weight: f32,
    pub(super) row: u32,
}

/// Rows whose vectors turn: `first ← c·first + s·second`, `second ← c·second − s·first`.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) first: u32,
    pub(super) second: u32,
    pub(super) cosine: f32,
    pub(super) sine: f32,
    /// Of right vectors of the value 0 alone.
    pub(super) null: bool,
}

/// What is left of a merge.
pub(super) struct Deflated {
    /// What values were multiplied with.
    pub(super) scale: f32,
    /// ρ of weights of length 1, of the scaled values or their squares.
    pub(super) rho: f32,
    /// Poles that are left: the first of all those that were given. The others stay values.
    pub(super) kept: usize,
}

/// Takes out the values that the other half does not move: those with a negligible weight, and one of two that are so
/// close that a rotation of their vectors leaves the weight with one. `poles` are in order; those that are left come first
/// then. `rho` is that of weights of length 1 for eigenvalues; for singular values (`SQUARED`), the first is the left half's null
/// one, weights have any length, and `rho` is not read.
pub(super) fn deflate<const SQUARED: bool>(poles: &mut [Pole], rho: f32, turns: &mut Vec<Turn>) -> Deflated {
    let len = poles.len();
    let (mut length, mut bring, mut unit) = (1.0f32, 1.0f32, 1.0f32);
    let mut extreme = poles[0].value.abs().max(poles[len - 1].value.abs());
    if SQUARED {
        bring = scale_of(poles.iter().fold(0.0, |a, p| a.max(p.weight.abs())));
        let root = poles.iter().map(|p| (p.weight * bring).powi(2)).sum::<f32>().sqrt();
        length = root / bring;
        unit = if root > 0.0 { 1.0 / root } else { 1.0 };
        extreme = extreme.max(length);
    } else {
        extreme = extreme.max(rho);
    }
    let scale = scale_of(extreme);
    // A part of the matrix that no scale brings to 1 is nothing beside the rest, and its squares would underflow.
    let tolerance = if extreme * scale < 0.25 { 1.0 } else { 4.0 * EPSILON };
    let reach = if SQUARED { length * scale } else { rho * scale };
    for pole in poles.iter_mut() {
        pole.value *= scale;
        pole.weight = pole.weight * bring * unit;
    }
    if SQUARED {
        // The left half's null value stays, and not with 0.
        let least = (tolerance / if reach > 0.0 { reach } else { 1.0 }).min(1.0);
        let own = poles[0].weight;
        poles[0].weight = if own.abs() > least { own } else { least };
    }
    let kept = sift::<SQUARED>(poles, reach, tolerance, turns);
    Deflated { scale, rho: if SQUARED { reach * reach } else { reach }, kept }
}

/// [`deflate`] of scaled poles; gives how many are left.
fn sift<const SQUARED: bool>(poles: &mut [Pole], reach: f32, tolerance: f32, turns: &mut Vec<Turn>) -> usize {
    let len = poles.len();
    let mut out: Vec<Pole> = Vec::with_capacity(len);
    let mut kept = 0;
    let mut waiting: Option<Pole> = SQUARED.then(|| poles[0]);
    let mut pivot = SQUARED;
    for j in usize::from(SQUARED)..len {
        let mut next = poles[j];
        if reach * next.weight.abs() <= tolerance {
            out.push(Pole { weight: 0.0, ..next });
            continue;
        }
        if let Some(mut held) = waiting {
            let squares = held.weight * held.weight + next.weight * next.weight;
            let apart = next.value - held.value;
            // What the rotation leaves beside the diagonal.
            let left = (apart * held.weight * next.weight).abs() <= tolerance * squares;
            if if SQUARED { apart <= tolerance } else { left } {
                let length = squares.sqrt();
                let (cosine, sine) = (next.weight / length, -held.weight / length);
                if pivot {
                    // A value that is 0 but for rounding gives its weight to the null one.
                    turns.push(Turn { first: next.row, second: held.row, cosine: -sine, sine: -cosine, null: true });
                    held.weight = length;
                    waiting = Some(held);
                    out.push(Pole { weight: 0.0, ..next });
                    continue;
                }
                turns.push(Turn { first: held.row, second: next.row, cosine, sine, null: false });
                let low = held.value * cosine * cosine + next.value * sine * sine;
                next.value = held.value * sine * sine + next.value * cosine * cosine;
                next.weight = length;
                out.push(Pole { value: low, weight: 0.0, row: held.row });
            } else {
                poles[kept] = held;
                kept += 1;
            }
        }
        pivot = false;
        waiting = Some(next);
    }
    if let Some(held) = waiting {
        poles[kept] = held;
        kept += 1;
    }
    poles[kept..].copy_from_slice(&out);
    kept
}
