//! Largest errors against `f64`: strided inputs at every level by default, all 2³² with `--ignored` at the best.

use super::*;
use crate::cpu::simd::{Kernel, Level, Scalar, dispatch_at};

/// What std has no name for.
mod c_math {
    // SAFETY: the signatures of C99's <math.h>, which std links.
    unsafe extern "C" {
        pub safe fn erf(x: f64) -> f64;
        pub safe fn erfc(x: f64) -> f64;
    }
}

/// A function of one variable under test.
trait Unary: Sync {
    const NAME: &'static str;
    /// Largest error accepted, in ulp.
    const ULP: f64;
    fn eval<S: Simd>(s: S, x: S::F) -> S::F;
    fn exact(x: f64) -> f64;
}

macro_rules! unary {
    ($($type:ident $f:ident $ulp:literal $exact:expr;)*) => {
        $(
            struct $type;
            impl Unary for $type {
                const NAME: &'static str = stringify!($f);
                const ULP: f64 = $ulp;
                #[inline(always)]
                fn eval<S: Simd>(s: S, x: S::F) -> S::F {
                    $f(s, x)
                }
                fn exact(x: f64) -> f64 {
                    let exact: fn(f64) -> f64 = $exact;
                    exact(x)
                }
            }
        )*

        $(mod $f {
            use super::*;

            #[test]
            fn strided_inputs_at_every_level() {
                Level::detected().iter().for_each(|&level| strided::<$type>(level));
            }

            #[test]
            #[ignore = "all 2^32 inputs: a minute in release, hours in debug"]
            fn every_input() {
                exhaustive::<$type>();
            }

            #[test]
            #[ignore = "prints throughput; run alone, in release"]
            fn throughput() {
                Level::detected().iter().for_each(|&level| time::<$type>(level));
            }
        })*
    };
}

unary! {
    Exp exp 1.0 f64::exp;
    Exp2 exp2 1.0 f64::exp2;
    Expm1 expm1 1.5 f64::exp_m1;
    Log log 1.0 f64::ln;
    Log2 log2 1.25 f64::log2;
    Log10 log10 1.25 f64::log10;
    Log1p log1p 1.25 f64::ln_1p;
    Tanh tanh 1.5 f64::tanh;
    Sigmoid sigmoid 2.5 |x| 1.0 / (1.0 + (-x).exp());
    Silu silu 3.5 |x| limit(x, x / (1.0 + (-x).exp()));
    Softplus softplus 2.0 |x| x.max(0.0) + (-x.abs()).exp().ln_1p();
    Mish mish 4.75 |x| limit(x, x * softplus_tanh(x));
    GeluTanh gelu_tanh 3.25 |x| limit(x, {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / (1.0 + (-2.0 * u).exp())
    });
    Gelu gelu 4.5 |x| limit(x, 0.5 * x * c_math::erfc(-x * std::f64::consts::FRAC_1_SQRT_2));
    Erf erf 1.25 |x| c_math::erf(x);
    Erfc erfc 4.5 |x| c_math::erfc(x);
    Sin sin 1.25 f64::sin;
    Cos cos 1.25 f64::cos;
    Rsqrt rsqrt 0.501 |x| 1.0 / x.sqrt();
}

/// The limit at −∞ of the activations whose formula is ∞ · 0 there.
fn limit(x: f64, y: f64) -> f64 {
    if x == f64::NEG_INFINITY { -0.0 } else { y }
}

fn softplus_tanh(x: f64) -> f64 {
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh()
}

/// |got − exact| in units in the last place of `exact` as a subnormal-aware `f32`; infinite where the kind of value
/// (NaN, infinity, sign of zero) is wrong.
fn ulps(got: f32, exact: f64) -> f64 {
    const TOP: f64 = (1u128 << 127) as f64 * 2.0;
    if exact == 0.0 || !exact.is_finite() || !got.is_finite() {
        let rounded = exact as f32;
        let same = got.to_bits() == rounded.to_bits() || got.is_nan() && rounded.is_nan();
        let overflowed =
            got.is_finite() && rounded.is_infinite() && f64::from(got).abs() >= TOP * (1.0 - 2f64.powi(-24));
        return if same {
            0.0
        } else if overflowed {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let exponent = (exact.to_bits() >> 52 & 0x7ff).clamp(1023 - 126, 1023 + 127);
    let per_ulp = f64::from_bits((2046 + 23 - exponent) << 52);
    (f64::from(got) - exact.clamp(-TOP, TOP)).abs() * per_ulp
}

struct Map<'a, U: Unary> {
    x: &'a [f32],
    y: &'a mut [f32],
    function: std::marker::PhantomData<U>,
}

impl<U: Unary> Kernel for Map<'_, U> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.x.len();
        assert!(n == self.y.len());
        let (x, y) = (self.x.as_ptr(), self.y.as_mut_ptr());
        let whole = n - n % S::LANES;
        // SAFETY: every access is below `n`, the length of both slices.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                s.store(y.add(i), U::eval(s, s.load(x.add(i))));
            }
            if whole < n {
                let v = U::eval(s, s.load_partial(x.add(whole), n - whole, 0.0));
                s.store_partial(y.add(whole), n - whole, v);
            }
        }
    }
}

fn map<U: Unary>(level: Level, x: &[f32], y: &mut [f32]) {
    dispatch_at(level, Map::<U> { x, y, function: std::marker::PhantomData });
}

#[derive(Clone, Copy)]
struct Worst {
    ulp: f64,
    at: f32,
    got: f32,
}

/// The worst of the inputs whose bits are `first`, `first + step`, … (`count` of them).
fn worst<U: Unary>(level: Level, first: u32, step: u32, count: u64) -> Worst {
    const BLOCK: usize = 4096;
    let mut worst = Worst { ulp: 0.0, at: 0.0, got: 0.0 };
    let (mut x, mut y) = (vec![0f32; BLOCK], vec![0f32; BLOCK]);
    let mut bits = first;
    let mut left = count;
    while left > 0 {
        let n = left.min(BLOCK as u64) as usize;
        for v in &mut x[..n] {
            *v = f32::from_bits(bits);
            bits = bits.wrapping_add(step);
        }
        map::<U>(level, &x[..n], &mut y[..n]);
        for (&at, &got) in x[..n].iter().zip(&y[..n]) {
            let ulp = ulps(got, U::exact(f64::from(at)));
            if ulp > worst.ulp {
                worst = Worst { ulp, at, got };
            }
        }
        left -= n as u64;
    }
    worst
}

fn report<U: Unary>(level: Level, inputs: &str, worst: Worst) {
    let Worst { ulp, at, got } = worst;
    let text =
        format!("{:>10} {level:>7} {inputs}: {ulp:.3} ulp at {at:e} (0x{:08x}), gave {got:e}", U::NAME, at.to_bits());
    println!("{text}, exact {:e}", U::exact(f64::from(at)));
    assert!(ulp <= U::ULP, "{text}; accepted {}", U::ULP);
}

fn strided<U: Unary>(level: Level) {
    const STEP: u32 = 3251;
    let (step, count) = if cfg!(debug_assertions) {
        (STEP * 61, (1u64 << 32) / u64::from(STEP * 61))
    } else {
        (STEP, (1u64 << 32) / u64::from(STEP))
    };
    report::<U>(level, "strided", worst::<U>(level, 0, step, count));
    let tiny = f32::from_bits(1);
    let specials = [
        0.0,
        tiny,
        f32::MIN_POSITIVE,
        1e-20,
        0.5,
        0.625,
        0.85,
        1.0,
        2.0,
        10.0,
        88.72,
        89.0,
        104.0,
        1e5,
        1e30,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ];
    for at in specials.into_iter().flat_map(|x| [x, -x]) {
        report::<U>(level, "special", worst::<U>(level, at.to_bits(), 1, 1));
    }
}

fn exhaustive<U: Unary>() {
    let level = Level::detected()[Level::detected().len() - 1];
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let parts: Vec<Worst> = std::thread::scope(|scope| {
        let span = (1u64 << 32).div_ceil(threads);
        let run = |i: u64| {
            let first = i * span;
            scope.spawn(move || worst::<U>(level, first as u32, 1, span.min((1 << 32) - first)))
        };
        (0..threads).map(run).collect::<Vec<_>>().into_iter().map(|h| h.join().unwrap()).collect()
    });
    report::<U>(level, "all inputs", parts.into_iter().max_by(|a, b| a.ulp.total_cmp(&b.ulp)).unwrap());
}

fn time<U: Unary>(level: Level) {
    const N: usize = 4096;
    let x: Vec<f32> =
        (0..N).map(|i| i as f32 * (8.0 / N as f32) - if U::NAME.starts_with("log") { 0.0 } else { 4.0 }).collect();
    let mut y = vec![0f32; N];
    let mut best = f64::INFINITY;
    for _ in 0..40 {
        let start = std::time::Instant::now();
        for _ in 0..10 {
            map::<U>(level, std::hint::black_box(&x), std::hint::black_box(&mut y));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / 10.0);
    }
    println!("{:>10} {level:>7} {:.3} elements/ns", U::NAME, N as f64 / best);
}

struct Pow<'a> {
    x: &'a [f32],
    y: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Pow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.x.len();
        assert!(n == self.y.len() && n == self.out.len() && n.is_multiple_of(S::LANES));
        for i in (0..n).step_by(S::LANES) {
            // SAFETY: `i + LANES` is at most the length of all three.
            unsafe {
                let z = pow(s, s.load(self.x.as_ptr().add(i)), s.load(self.y.as_ptr().add(i)));
                s.store(self.out.as_mut_ptr().add(i), z);
            }
        }
    }
}

fn check_pow(level: Level, x: &[f32], y: &[f32]) -> f64 {
    let mut out = vec![0f32; x.len()];
    dispatch_at(level, Pow { x, y, out: &mut out });
    let mut largest = 0f64;
    for ((&x, &y), &got) in x.iter().zip(y).zip(&out) {
        let exact = f64::from(x).powf(f64::from(y));
        let ulp = ulps(got, exact);
        assert!(ulp <= 1.5, "{level}: {x:e}^{y:e} gave {got:e}, exact {exact:e}: {ulp:.3} ulp");
        largest = largest.max(ulp);
    }
    largest
}

#[test]
fn pow_of_special_values_and_random_pairs() {
    let mut grid = vec![];
    for v in [
        0.0,
        1e-45,
        f32::MIN_POSITIVE,
        1e-3,
        0.5,
        1.0 - f32::EPSILON / 2.0,
        1.0,
        1.0 + f32::EPSILON,
        1.5,
        2.0,
        3.0,
        4.0,
        127.0,
        149.0,
        1e6,
        16777215.0,
        16777216.0,
        1e30,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ] {
        grid.extend([v, -v]);
    }
    let pairs: Vec<(f32, f32)> = grid.iter().flat_map(|&x| grid.iter().map(move |&y| (x, y))).collect();
    let padded = pairs.len().div_ceil(16) * 16;
    let (mut xs, mut ys): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
    xs.resize(padded, 1.0);
    ys.resize(padded, 1.0);
    let count = if cfg!(debug_assertions) { 1 << 14 } else { 1 << 24 };
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // Half of the pairs have results spread evenly over the exponents, half are arbitrary bits.
    let (rx, ry): (Vec<f32>, Vec<f32>) = (0..count)
        .map(|i| {
            let (a, b) = (random(), random());
            let x = f32::from_bits((a >> 32) as u32);
            if i % 2 == 0 {
                return (x, f32::from_bits((b >> 32) as u32));
            }
            let log2 = (b >> 11) as f64 / (1u64 << 53) as f64 * 300.0 - 160.0;
            (x.abs(), (log2 / f64::from(x.abs()).log2()) as f32)
        })
        .unzip();
    for &level in Level::detected() {
        check_pow(level, &xs, &ys);
        let n = if level == Level::Scalar { rx.len().min(1 << 20) } else { rx.len() };
        println!("pow {level} {n} pairs: {:.3} ulp", check_pow(level, &rx[..n], &ry[..n]));
    }
}

#[test]
fn sin_cos_is_sin_and_cos() {
    for i in 0..2000 {
        let x = (i as f32 - 1000.0) * 137.31;
        assert_eq!(sin_cos(Scalar, x), (sin(Scalar, x), cos(Scalar, x)));
    }
}
