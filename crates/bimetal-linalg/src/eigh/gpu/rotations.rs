//! Eigenvalues and eigenvectors of small symmetric matrices on a GPU in one launch, by rotations (Jacobi): a cube for each matrix,
//! which lies in shared memory. In round `m` of a sweep rows `p` and `p ^ m` are turned together, all pairs at once.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use crate::condense::factors;
use crate::qr::gpu::columns::{is_finite, magnitude_bits, not_a_number};
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Orders that are compiled for; smaller matrices are filled up with zeros.
const SIDES: [usize; 3] = [8, 16, 32];
/// Units for each row.
const TEAM: usize = 8;
/// Sweeps at most; noise around eigenvalues that are the same may be turned for ever.
const SWEEPS: [u32; 2] = [12, 16];

/// What the kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    pub side: usize,
    pub units: usize,
    pub planes: usize,
    /// The upper triangle is given, not the lower one.
    pub upper: bool,
    pub vectors: bool,
    pub double: bool,
}

/// Whether a device takes matrices of order `n` this way.
pub(crate) fn fit(gpu: &Gpu, n: usize) -> bool {
    (1..=SIDES[SIDES.len() - 1]).contains(&n) && gpu.max_units as usize >= TEAM * SIDES[SIDES.len() - 1]
}

pub(super) fn eigh(gpu: &Gpu, upper: bool, a: &Tensor, outputs: &[&mut Tensor], n: usize) -> Result<()> {
    let (status, batch) = (&*outputs[outputs.len() - 1], outputs[outputs.len() - 1].numel());
    let side = SIDES.into_iter().find(|side| n <= *side).unwrap_or(SIDES[SIDES.len() - 1]);
    let units = TEAM * side;
    let double = a.dtype() == DType::F64;
    let planes = units.div_ceil(gpu.plane.0 as usize);
    let code = Code { side, units, planes, upper, vectors: outputs.len() == 3, double };
    let computed = gpu.elem(if double { DType::F64 } else { DType::F32 })?;
    let nothing = gpu.alloc(8);
    // SAFETY: there are `batch` matrices of order `n`, past which the kernel touches nothing; the place of vectors that are not
    // wanted is not touched.
    unsafe {
        rotations::launch_unchecked(
            gpu.client(),
            gpu.cubes(batch),
            CubeDim::new_1d(units as u32),
            address_type(a.numel()),
            a.gpu_arg()?,
            outputs[0].gpu_arg()?,
            if code.vectors { outputs[1].gpu_arg()? } else { BufferArg::from_raw_parts(nothing, 1) },
            status.gpu_arg()?,
            batch,
            n as u32,
            code,
            [gpu.elem(a.dtype())?, computed],
        );
    }
    Ok(())
}

/// What is nothing beside 1, and the tangent after whose square nothing is left.
#[cube]
fn limits<A: Float>(#[comptime] double: bool) -> (A, A) {
    if comptime!(double) {
        // 2^-55, 2^-29
        (A::reinterpret(968u64 << 52u64), A::reinterpret(994u64 << 52u64))
    } else {
        (A::new(1.4901161e-8f32), A::new(6.1035156e-5f32))
    }
}

/// The first row of pair `i` of those whose numbers differ in bit `bit`, the highest one in which they do.
#[cube]
fn first_of(i: u32, bit: u32) -> u32 {
    ((i >> bit) << (bit + 1u32)) | (i & ((1u32 << bit) - 1u32))
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub fn rotations<I: Float, A: Float>(
    a: &[I],
    values: &mut [I],
    vectors: &mut [I],
    status: &mut [i32],
    batch: usize,
    n: u32,
    #[comptime] code: Code,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let side = comptime!(code.side as u32);
    let line = comptime!(code.side as u32 + 1);
    let mut w = Shared::<[A]>::new_slice(comptime!(code.side * (code.side + 1)));
    let mut z = Shared::<[A]>::new_slice(comptime!(if code.vectors { code.side * (code.side + 1) } else { 1 }));
    let mut turns = Shared::<[A]>::new_slice(comptime!(3 * code.side / 2));
    let mut order = Shared::<[u32]>::new_slice(code.side);
    let mut moved = Shared::<[u32]>::new_slice(3usize);
    let mut slots = Shared::<[u32]>::new_slice(code.planes);
    let inside = CUBE_POS < batch;
    let matrix = select(inside, CUBE_POS, 0usize);
    let from = matrix * (n * n) as usize;
    let zero = A::from_int(0);
    let mut largest = 0u32;
    let mut e = UNIT_POS;
    while e < comptime!((code.side * code.side) as u32) {
        let (i, j) = (e / side, e % side);
        let (low, high) = (min(i, j), max(i, j));
        let mut x = zero;
        if high < n {
            let at = if comptime!(code.upper) { low * n + high } else { high * n + low };
            x = A::cast_from(a[from + at as usize]);
        }
        largest = max(largest, magnitude_bits::<A>(x, code.double));
        w[(i * line + j) as usize] = x;
        if comptime!(code.vectors) {
            z[(i * line + j) as usize] = A::cast_from(i == j);
        }
        e += CUBE_DIM;
    }
    let partial = plane_max(largest);
    if UNIT_POS_PLANE == 0 {
        slots[(UNIT_POS / PLANE_DIM) as usize] = partial;
    }
    if UNIT_POS < 3 {
        moved[UNIT_POS as usize] = 0u32;
    }
    sync_cube();
    let mut all = 0u32;
    for plane in 0..CUBE_DIM.div_ceil(PLANE_DIM) {
        all = max(all, slots[plane as usize]);
    }
    let (factor, inverse) = factors::<A>(all, code.double);
    let finite = is_finite(all, code.double);
    let mut e = UNIT_POS;
    while e < comptime!((code.side * code.side) as u32) {
        let at = (e / side * line + e % side) as usize;
        let x = w[at];
        w[at] = select(finite, x * factor, zero);
        e += CUBE_DIM;
    }
    sync_cube();
    let mut going = true;
    let mut sweep = 0u32;
    while going && sweep < comptime!(SWEEPS[code.double as usize]) {
        // The place of the sweep after this one: it was read two sweeps ago.
        if UNIT_POS == 0 {
            moved[((sweep + 1) % 3) as usize] = 0u32;
        }
        for bit in 0..comptime!((code.side as u32).trailing_zeros()) {
            for low in 0..(1u32 << bit) {
                let m = (1u32 << bit) | low;
                if UNIT_POS < side / 2 {
                    let large = find_turn::<A>(&w, &mut turns, UNIT_POS, bit, m, code);
                    if large {
                        moved[(sweep % 3) as usize] = 1u32;
                    }
                }
                sync_cube();
                turn::<A>(&mut w, &mut z, &turns, bit, m, code);
                sync_cube();
            }
        }
        going = moved[(sweep % 3) as usize] != 0u32;
        sweep += 1;
    }
    if UNIT_POS < n {
        let own = w[(UNIT_POS * (line + 1)) as usize];
        let mut rank = 0u32;
        for j in 0..n {
            let other = w[(j * (line + 1)) as usize];
            if other < own || (other == own && j < UNIT_POS) {
                rank += 1;
            }
        }
        order[rank as usize] = UNIT_POS;
        if inside {
            let value = select(finite, own * inverse, not_a_number::<A>());
            values[matrix * n as usize + rank as usize] = I::cast_from(value);
        }
    }
    sync_cube();
    if inside {
        if comptime!(code.vectors) {
            let mut e = UNIT_POS;
            while e < n * n {
                let value = z[(e / n * line + order[(e % n) as usize]) as usize];
                vectors[from + e as usize] = I::cast_from(select(finite, value, not_a_number::<A>()));
                e += CUBE_DIM;
            }
        }
        if UNIT_POS == 0 {
            status[matrix] = select(finite, 0i32, -1i32);
        }
    }
}

/// The cosine and the sine that take pair `i` to zero, and what moves from one diagonal element to the other; whether the
/// angle is so large that another sweep is needed.
#[cube]
fn find_turn<A: Float>(
    w: &Shared<[A]>,
    turns: &mut Shared<[A]>,
    i: u32,
    bit: u32,
    m: u32,
    #[comptime] code: Code,
) -> bool {
    let line = comptime!(code.side as u32 + 1);
    let (zero, one) = (A::from_int(0), A::from_int(1));
    let (nothing, large) = limits::<A>(code.double);
    let p = first_of(i, bit);
    let q = p ^ m;
    let (first, second) = (w[(p * (line + 1)) as usize], w[(q * (line + 1)) as usize]);
    let beside = w[(p * line + q) as usize];
    let size = max(first.abs(), second.abs());
    let skipped = beside.abs() <= nothing * max(size, nothing);
    let safe = select(skipped, one, beside);
    let theta = (second - first) / (safe + safe);
    let steep = one / (theta.abs() + (theta * theta + one).sqrt());
    let tangent = select(skipped, zero, select(theta < zero, zero - steep, steep));
    let cosine = one / (tangent * tangent + one).sqrt();
    turns[i as usize] = cosine;
    turns[(i + comptime!(code.side as u32 / 2)) as usize] = tangent * cosine;
    turns[(i + comptime!(code.side as u32)) as usize] = tangent * beside;
    tangent.abs() > large
}

/// Turns all pairs of rows and of columns, and of the vectors' columns.
#[cube]
fn turn<A: Float>(
    w: &mut Shared<[A]>,
    z: &mut Shared<[A]>,
    turns: &Shared<[A]>,
    bit: u32,
    m: u32,
    #[comptime] code: Code,
) {
    let half = comptime!(code.side as u32 / 2);
    let line = comptime!(code.side as u32 + 1);
    let zero = A::from_int(0);
    let mut e = UNIT_POS;
    while e < comptime!((code.side * code.side / 4) as u32) {
        let (i, j) = (e / half, e % half);
        if i <= j {
            let (p, r) = (first_of(i, bit), first_of(j, bit));
            let (q, s) = (p ^ m, r ^ m);
            let (down, across) = (turns[i as usize], turns[j as usize]);
            let (down_sine, across_sine) = (turns[(i + half) as usize], turns[(j + half) as usize]);
            let (x, y) = (w[(p * line + r) as usize], w[(p * line + s) as usize]);
            let (u, v) = (w[(q * line + r) as usize], w[(q * line + s) as usize]);
            let (left, right) = (across * x - across_sine * y, across_sine * x + across * y);
            let (below, beyond) = (across * u - across_sine * v, across_sine * u + across * v);
            let moved = turns[(i + 2 * half) as usize];
            let own = i == j;
            // The pair's own element becomes zero, if it was turned.
            let rest = select(down_sine == zero, y, zero);
            let x = select(own, x - moved, down * left - down_sine * below);
            let u = select(own, rest, down_sine * left + down * below);
            let y = select(own, rest, down * right - down_sine * beyond);
            let v = select(own, v + moved, down_sine * right + down * beyond);
            w[(p * line + r) as usize] = x;
            w[(p * line + s) as usize] = y;
            w[(q * line + r) as usize] = u;
            w[(q * line + s) as usize] = v;
            if !own {
                w[(r * line + p) as usize] = x;
                w[(s * line + p) as usize] = y;
                w[(r * line + q) as usize] = u;
                w[(s * line + q) as usize] = v;
            }
        }
        e += CUBE_DIM;
    }
    if comptime!(code.vectors) {
        let mut e = UNIT_POS;
        while e < comptime!((code.side * code.side / 2) as u32) {
            let (i, j) = (e / half, e % half);
            let r = first_of(j, bit);
            let s = r ^ m;
            let (cosine, sine) = (turns[j as usize], turns[(j + half) as usize]);
            let (x, y) = (z[(i * line + r) as usize], z[(i * line + s) as usize]);
            z[(i * line + r) as usize] = cosine * x - sine * y;
            z[(i * line + s) as usize] = sine * x + cosine * y;
            e += CUBE_DIM;
        }
    }
}
