//! Every lane-wise method gives the scalar level's bits at every level; memory, reductions and 16-bit conversion.

use half::{bf16, f16};

use super::*;

const VALUES: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    2.5,
    -3.5,
    0.49999997,
    1e-40,
    -1e-45,
    3.0e7,
    -7.75,
    65519.0,
    1e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Results of every method on the pairs (VALUES\[i\], VALUES\[i + shift\]), one list per method.
struct Methods {
    shift: usize,
}

impl Kernel for Methods {
    type Out = Vec<(&'static str, Vec<u32>)>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let second: [f32; 16] = std::array::from_fn(|i| VALUES[(i + self.shift) % 16]);
        let third: [f32; 16] = std::array::from_fn(|i| VALUES[(i + 2 * self.shift + 1) % 16]);
        let mut out: Self::Out = vec![];
        for i in (0..16).step_by(S::LANES) {
            let mut at = 0;
            let mut push = |name, bits: S::I| {
                let mut lanes = [0; 16];
                // SAFETY: `lanes` holds a vector of any level.
                unsafe { s.store_i(lanes.as_mut_ptr(), bits) };
                if out.len() == at {
                    out.push((name, vec![]));
                }
                out[at].1.extend(lanes[..S::LANES].iter().map(|&l| l as u32));
                at += 1;
            };
            // SAFETY: `i + LANES` is at most 16, the length of all three.
            let [a, b, c] = [&VALUES, &second, &third].map(|v| unsafe { s.load(v.as_ptr().add(i)) });
            let canonical = |v| s.bits(s.select(s.is_nan(v), s.splat(f32::NAN), v));
            let flag = |m| s.select_i(m, s.splat_i(1), s.splat_i(0));
            for (name, v) in [
                ("add", s.add(a, b)),
                ("sub", s.sub(a, b)),
                ("mul", s.mul(a, b)),
                ("div", s.div(a, b)),
                ("fma", s.fma(a, b, c)),
                ("neg_fma", s.neg_fma(a, b, c)),
                ("fma_sub", s.fma_sub(a, b, c)),
                ("sqrt", s.sqrt(a)),
                ("neg", s.neg(a)),
                ("abs", s.abs(a)),
                ("xor_sign", s.xor_sign(a, b)),
                ("min", s.min(a, b)),
                ("max", s.max(a, b)),
                ("round", s.round(a)),
                ("floor", s.floor(a)),
                ("trunc", s.trunc(a)),
                ("scale_pow2", s.scale_pow2(s.min(a, s.splat(9.0)), s.splat(-140.0))),
                ("scale_pow2_normal", s.scale_pow2_normal(s.splat(1.5), s.splat(-7.0))),
                ("to_f", s.to_f(s.bits(a))),
                ("select", s.select(s.lt(a, b), a, b)),
            ] {
                push(name, canonical(v));
            }
            // The sign of a zero is free in these two.
            push("min_nan", canonical(s.add(s.min_nan(a, b), s.splat(0.0))));
            push("max_nan", canonical(s.add(s.max_nan(a, b), s.splat(0.0))));
            let (x, y) = (s.bits(a), s.bits(b));
            for (name, v) in [
                ("eq", flag(s.eq(a, b))),
                ("ne", flag(s.ne(a, b))),
                ("lt", flag(s.lt(a, b))),
                ("le", flag(s.le(a, b))),
                ("gt", flag(s.gt(a, b))),
                ("ge", flag(s.ge(a, b))),
                ("is_nan", flag(s.is_nan(a))),
                ("and_m", flag(s.and_m(s.lt(a, b), s.lt(b, c)))),
                ("or_m", flag(s.or_m(s.lt(a, b), s.lt(b, c)))),
                ("not_m", flag(s.not_m(s.lt(a, b)))),
                ("add_i", s.add_i(x, y)),
                ("sub_i", s.sub_i(x, y)),
                ("mul_i", s.mul_i(x, y)),
                ("and_i", s.and_i(x, y)),
                ("or_i", s.or_i(x, y)),
                ("xor_i", s.xor_i(x, y)),
                ("shl_i", s.shl_i::<5>(x)),
                ("shr_i", s.shr_i::<5>(x)),
                ("sra_i", s.sra_i::<5>(x)),
                ("eq_i", flag(s.eq_i(x, y))),
                ("gt_i", flag(s.gt_i(x, y))),
                ("lt_u", flag(s.lt_u(x, y))),
                ("to_i", s.to_i(s.min(s.splat(1e6), s.max(a, s.splat(-1e6))))),
                ("iota_i", s.add_i(s.iota_i(), s.splat_i(i as i32))),
            ] {
                push(name, v);
            }
        }
        out
    }
}

#[test]
fn every_method_gives_the_scalar_bits() {
    for shift in 0..16 {
        let expected = dispatch_at(Level::Scalar, Methods { shift });
        for &level in Level::detected() {
            for (expected, got) in expected.iter().zip(dispatch_at(level, Methods { shift })) {
                assert_eq!(*expected, got, "{level}, shift {shift}");
            }
        }
    }
}

/// Masks, partial and streaming memory access, and reductions against loops over the lanes.
struct Whole;

impl Kernel for Whole {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        #[repr(align(64))]
        struct Aligned([f32; MAX_LANES]);
        let x: [f32; 16] = std::array::from_fn(|i| (i * i) as f32 * 0.37 - 9.0);
        // SAFETY: arrays hold a vector of any level, and `Aligned` has the alignment of the widest.
        unsafe {
            let v = s.load(x.as_ptr());
            let mut to = Aligned([0.0; MAX_LANES]);
            s.stream(to.0.as_mut_ptr(), v);
            s.stream_fence();
            assert_eq!(to.0[..S::LANES], x[..S::LANES]);
            for n in 0..S::LANES {
                let part = s.to_array(s.load_partial(x.as_ptr(), n, 5.0));
                let mut stored = [-1.0; 16];
                s.store_partial(stored.as_mut_ptr(), n, v);
                for i in 0..S::LANES {
                    assert_eq!((part[i], stored[i]), if i < n { (x[i], x[i]) } else { (5.0, -1.0) });
                }
                let below = s.lt(s.to_f(s.iota_i()), s.splat(n as f32));
                assert_eq!(s.mask_bits(below), (1 << n) - 1);
                assert_eq!((s.any(below), s.all(below)), (n > 0, false));
            }
            assert!(s.all(s.eq(v, v)));
            let mut tree = x.map(f64::from);
            let mut half = S::LANES / 2;
            while half > 0 {
                (0..half).for_each(|i| tree[i] = f64::from((tree[i] + tree[i + half]) as f32));
                half /= 2;
            }
            assert_eq!(f64::from(s.reduce_add(v)), tree[0]);
            assert!((s.sum_f64(v) - x[..S::LANES].iter().map(|&x| f64::from(x)).sum::<f64>()).abs() < 1e-12);
            assert_eq!((s.reduce_min(v), s.reduce_max(v)), (x[0], x[S::LANES - 1]));
            for bad in 0..S::LANES {
                let mut x = x;
                x[bad] = f32::NAN;
                let v = s.load(x.as_ptr());
                assert!(s.reduce_max(v).is_nan() && s.reduce_min(v).is_nan());
            }
        }
    }
}

#[test]
fn memory_masks_and_reductions() {
    Level::detected().iter().for_each(|&level| dispatch_at(level, Whole));
}

/// A square whose values tell where they were.
struct Square;

impl Kernel for Square {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let from: Vec<f32> = (0..400).map(|x| x as f32).collect();
        let mut to = vec![-1.0f32; 400];
        let (a, b) = (from.as_ptr(), to.as_mut_ptr());
        let rows = std::array::from_fn(|i| a.wrapping_add(20 * i));
        // SAFETY: rows of 20 values each hold a vector.
        unsafe { s.transpose(rows, std::array::from_fn(|j| b.wrapping_add(20 * j))) };
        for (at, &x) in to.iter().enumerate() {
            let (j, i) = (at / 20, at % 20);
            assert_eq!(x, if i.max(j) < S::LANES { (20 * i + j) as f32 } else { -1.0 });
        }
    }
}

#[test]
fn squares_are_transposed() {
    Level::detected().iter().for_each(|&level| dispatch_at(level, Square));
}

/// Both 16-bit formats, widened (`bits` below 2¹⁶) and narrowed (all of `bits`).
struct Halves<'a> {
    bits: &'a [u32],
}

impl Kernel for Halves<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.bits.chunks_exact(16) {
            let half: [u16; 16] = std::array::from_fn(|i| chunk[i] as u16);
            let full: [f32; 16] = std::array::from_fn(|i| f32::from_bits(chunk[i]));
            let (mut f, mut b, mut nf, mut nb) = ([0f32; 16], [0f32; 16], [0u16; 16], [0u16; 16]);
            for i in (0..16).step_by(S::LANES) {
                // SAFETY: `i + LANES` is at most 16, the length of every array.
                unsafe {
                    s.store(f.as_mut_ptr().add(i), s.load_f16(half.as_ptr().add(i)));
                    s.store(b.as_mut_ptr().add(i), s.load_bf16(half.as_ptr().add(i)));
                    let v = s.load(full.as_ptr().add(i));
                    s.store_f16(nf.as_mut_ptr().add(i), v);
                    s.store_bf16(nb.as_mut_ptr().add(i), v);
                }
            }
            for i in 0..16 {
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(same(f[i], f16::from_bits(half[i]).to_f32()), "{}: f16 {:04x}", S::LEVEL, half[i]);
                assert!(same(b[i], bf16::from_bits(half[i]).to_f32()), "{}: bf16 {:04x}", S::LEVEL, half[i]);
                assert_eq!(nf[i], f16::from_f32_const(full[i]).to_bits(), "{}: {:e}", S::LEVEL, full[i]);
                assert_eq!(nb[i], bf16::from_f32(full[i]).to_bits(), "{}: {:e}", S::LEVEL, full[i]);
            }
        }
    }
}

#[test]
fn half_precision_rounds_like_the_half_crate() {
    let step = if cfg!(debug_assertions) { 92821 } else { 251 };
    let mut bits: Vec<u32> = (0..1 << 16).collect();
    // Midpoints of f16 and bf16, and their neighbours.
    bits.extend((0..1 << 16).flat_map(|i: u32| [i << 16 | 0x7fff, i << 16 | 0x8000, i << 16 | 0x8001]));
    bits.extend((0x3300_0000u32..0x4790_0000).step_by(0x1000).flat_map(|i| [i.wrapping_sub(1), i, i + 1]));
    bits.extend((0..u32::MAX).step_by(step));
    bits.resize(bits.len().next_multiple_of(16), 0);
    for &level in Level::detected() {
        dispatch_at(level, Halves { bits: &bits });
    }
}
