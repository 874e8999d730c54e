//! Eigenvalues of a tridiagonal matrix without vectors: the implicit QL iteration without square roots of Pal, Walker and Kahan (LAPACK's
//! `sterf`), in f64.

/// Sweeps for each value at most, as LAPACK allows.
const SWEEPS: usize = 30;
/// What is beside the diagonal is zero below this part of the largest element: far below the error of a matrix of f32.
const FLOOR: f64 = 1e-13;

/// Replaces the diagonal `d` by the eigenvalues, ascending; `e` is what is beside it, with one element more or none. Whether the
/// iteration ended.
pub(crate) fn eigenvalues(d: &mut [f64], e: &mut [f64]) -> bool {
    let n = d.len();
    let largest = d.iter().chain(&e[..n.saturating_sub(1)]).fold(0.0f64, |a, x| a.max(x.abs()));
    let floor = (FLOOR * largest).powi(2);
    e.iter_mut().for_each(|x| *x *= *x);
    let mut budget = SWEEPS * n;
    let mut start = 0;
    while start < n {
        let mut end = start;
        while end + 1 < n && !negligible(d, e, end, floor) {
            end += 1;
        }
        let (d, e) = (&mut d[start..=end], &mut e[start..]);
        // The end with the smaller element goes first.
        if d[d.len() - 1].abs() < d[0].abs() {
            d.reverse();
            let beside = d.len() - 1;
            e[..beside].reverse();
        }
        if !block(d, e, floor, &mut budget) {
            return false;
        }
        start = end + 1;
    }
    d.sort_unstable_by(f64::total_cmp);
    true
}

fn negligible(d: &[f64], e: &[f64], i: usize, floor: f64) -> bool {
    e[i] <= floor.max(f64::EPSILON * f64::EPSILON * (d[i] * d[i + 1]).abs())
}

/// Eigenvalues of a block, given the squares of what is beside the diagonal.
fn block(d: &mut [f64], e: &mut [f64], floor: f64, budget: &mut usize) -> bool {
    let n = d.len();
    let mut l = 0;
    while l < n {
        let mut m = l;
        while m + 1 < n && !negligible(d, e, m, floor) {
            m += 1;
        }
        if m + 1 < n {
            e[m] = 0.0;
        }
        if m == l {
            l += 1;
            continue;
        }
        if m == l + 1 {
            [d[l], d[m]] = pair(d[l], e[l], d[m]);
            e[l] = 0.0;
            l += 2;
            continue;
        }
        if *budget == 0 {
            return false;
        }
        *budget -= 1;
        sweep(d, e, l, m);
    }
    true
}

/// Both eigenvalues of `[[a, √b], [√b, c]]`.
fn pair(a: f64, b: f64, c: f64) -> [f64; 2] {
    let middle = 0.5 * (a + c);
    let root = (0.25 * (a - c) * (a - c) + b).sqrt();
    let far = if middle < 0.0 { middle - root } else { middle + root };
    if far == 0.0 { [0.0; 2] } else { [far, (a / far) * c - b / far] }
}

/// A sweep from row `m` up to row `l`.
fn sweep(d: &mut [f64], e: &mut [f64], l: usize, m: usize) {
    let (root, p) = (e[l].sqrt(), d[l]);
    let sigma = (d[l + 1] - p) / (2.0 * root);
    let sigma = p - root / (sigma + (sigma * sigma + 1.0).sqrt().copysign(sigma));
    let (mut c, mut s) = (1.0, 0.0);
    let mut gamma = d[m] - sigma;
    let mut p = gamma * gamma;
    for i in (l..m).rev() {
        let bb = e[i];
        let r = p + bb;
        if i + 1 != m {
            e[i + 1] = s * r;
        }
        let old_c = c;
        let inverse = 1.0 / r;
        (c, s) = (p * inverse, bb * inverse);
        let (old, alpha) = (gamma, d[i]);
        gamma = c * (alpha - sigma) - s * old;
        d[i + 1] = old + (alpha - gamma);
        p = if c == 0.0 { old_c * bb } else { gamma * gamma / c };
    }
    e[l] = s * p;
    d[l] = sigma + gamma;
}
