//! Functions of vectors applied to GPU tensors. Every unit takes vectors of 16 bytes; which function, how many vectors
//! and how each operand is reached are compile-time parameters, so that the common shapes pay for no index arithmetic.

use super::Layout;
use bimetal_core::gpu::kernel::ELEMENTWISE_UNITS;
use bimetal_core::gpu::math::Arithmetic;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use std::fmt::Debug;
use std::hash::Hash;

/// How much a unit takes.
struct Params {
    /// Vectors of a large call that a unit loads before it computes. On an H200 one is as fast for a copy, 5% slower for
    /// gelu; four are 5% slower for both.
    vectors: usize,
    /// Units per multiprocessor from which a call is large: twice those that run at once.
    large: usize,
}

const PARAMS: Params = Params { vectors: 2, large: 4096 };

/// The functions of a family, chosen at compile time.
#[cube]
pub(crate) trait Formula: Copy + Clone + Debug + Hash + PartialEq + Eq + Send + Sync + 'static {
    /// The function of up to three operands; a family of fewer gets one of them again. `p` and `q` are its attributes.
    fn eval<N: Size>(
        a: Vector<f32, N>,
        b: Vector<f32, N>,
        c: Vector<f32, N>,
        p: f32,
        q: f32,
        #[comptime] function: Self,
        #[comptime] arithmetic: Arithmetic,
    ) -> Vector<f32, N>;
}

/// The predicates of a family, chosen at compile time.
#[cube]
pub(crate) trait Relation: Copy + Clone + Debug + Hash + PartialEq + Eq + Send + Sync + 'static {
    /// 1 where the predicate holds, 0 elsewhere.
    fn eval<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] function: Self) -> Vector<u32, N>;
}

/// How an operand's elements are reached from a vector of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// It has the output's elements in the output's order.
    Follow,
    /// A whole vector at an offset: rows are whole vectors and the operand runs along them.
    Row,
    /// One element for the whole vector: rows are whole vectors and the operand repeats along them.
    Repeat,
    /// Each lane by its own offset.
    Gather,
}

/// How the operands of a launch are reached.
struct Plan<const K: usize> {
    access: [Access; K],
    /// Lanes of each operand's vectors.
    widths: [usize; K],
    dims: Vec<usize>,
    strides: [Vec<usize>; K],
    /// Vectors of the output.
    vectors: usize,
    address: AddressType,
}

impl<const K: usize> Plan<K> {
    fn new(x: [&Tensor; K], y: &Tensor, width: usize) -> Self {
        let layout = Layout::new(y.shape(), x.map(Tensor::shape));
        // A single element is the same for every lane, whatever the length.
        let whole = layout.row().is_multiple_of(width) || layout.dims().len() == 1;
        let access: [Access; K] = std::array::from_fn(|k| match (layout.follows(k), whole, layout.repeats(k)) {
            (true, _, _) => Access::Follow,
            (false, true, true) => Access::Repeat,
            (false, true, false) => Access::Row,
            (false, false, _) => Access::Gather,
        });
        let indexed = access.iter().any(|&a| a != Access::Follow);
        let most = x.iter().map(|x| x.numel()).fold(y.numel(), usize::max);
        Self {
            access,
            widths: access.map(|a| if matches!(a, Access::Follow | Access::Row) { width } else { 1 }),
            dims: if indexed { layout.dims().to_vec() } else { Vec::new() },
            strides: std::array::from_fn(|k| if indexed { layout.strides(k).to_vec() } else { Vec::new() }),
            vectors: y.numel().div_ceil(width),
            address: if most > i32::MAX as usize { AddressType::U64 } else { AddressType::U32 },
        }
    }

    fn dims(&self) -> SequenceArg<usize> {
        sequence(&self.dims)
    }

    fn strides(&self, k: usize) -> SequenceArg<usize> {
        sequence(&self.strides[k])
    }
}

fn sequence(values: &[usize]) -> SequenceArg<usize> {
    let mut sequence = SequenceArg::new();
    for &value in values {
        sequence.push(value);
    }
    sequence
}

/// Vectors for each unit, and cubes for all of them.
fn geometry(gpu: &Gpu, vectors: usize) -> (usize, CubeCount, CubeDim) {
    let per_unit = if vectors >= gpu.processors as usize * PARAMS.large { PARAMS.vectors } else { 1 };
    let units = ELEMENTWISE_UNITS.min(gpu.max_units);
    (per_unit, gpu.cubes(vectors.div_ceil(units as usize * per_unit)), CubeDim::new_1d(units))
}

/// Applies a function of one tensor.
pub(crate) fn map1<M: Formula>(gpu: &Gpu, function: M, p: [f32; 2], x: &Tensor, y: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let width = gpu.vector(y.dtype());
    let plan = Plan::new([x], y, width);
    let (per_unit, cubes, units) = geometry(gpu, plan.vectors);
    // SAFETY: both buffers have `vectors` vectors (allocations are padded), and the kernel drops positions past them.
    unsafe {
        map_one::launch_unchecked::<M>(
            gpu.client(),
            cubes,
            units,
            plan.address,
            width,
            x.gpu_arg()?,
            y.gpu_arg()?,
            plan.vectors,
            p[0],
            p[1],
            function,
            per_unit,
            gpu.arithmetic(),
            gpu.elem(y.dtype())?,
        );
    }
    Ok(())
}

/// Applies a function of two tensors that broadcast to the shape of `y`.
pub(crate) fn map2<M: Formula>(gpu: &Gpu, function: M, p: [f32; 2], x: [&Tensor; 2], y: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let width = gpu.vector(y.dtype());
    let plan = Plan::new(x, y, width);
    let (per_unit, cubes, units) = geometry(gpu, plan.vectors);
    // SAFETY: the output has `vectors` vectors (allocations are padded) and the kernel drops positions past them; the
    // plan's offsets stay within the operands, whose last vector is padded too.
    unsafe {
        map_two::launch_unchecked::<M>(
            gpu.client(),
            cubes,
            units,
            plan.address,
            width,
            plan.widths[0],
            plan.widths[1],
            x[0].gpu_arg()?,
            x[1].gpu_arg()?,
            y.gpu_arg()?,
            plan.vectors,
            y.numel(),
            plan.dims(),
            plan.strides(0),
            plan.strides(1),
            p[0],
            p[1],
            function,
            plan.access[0],
            plan.access[1],
            plan.dims.len(),
            per_unit,
            gpu.arithmetic(),
            gpu.elem(y.dtype())?,
        );
    }
    Ok(())
}

/// Applies a function of three tensors that broadcast to the shape of `y`.
pub(crate) fn map3<M: Formula>(gpu: &Gpu, function: M, p: [f32; 2], x: [&Tensor; 3], y: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let width = gpu.vector(y.dtype());
    let plan = Plan::new(x, y, width);
    let (per_unit, cubes, units) = geometry(gpu, plan.vectors);
    // SAFETY: as in `map2`.
    unsafe {
        map_three::launch_unchecked::<M>(
            gpu.client(),
            cubes,
            units,
            plan.address,
            width,
            plan.widths[0],
            plan.widths[1],
            plan.widths[2],
            x[0].gpu_arg()?,
            x[1].gpu_arg()?,
            x[2].gpu_arg()?,
            y.gpu_arg()?,
            plan.vectors,
            y.numel(),
            plan.dims(),
            plan.strides(0),
            plan.strides(1),
            plan.strides(2),
            p[0],
            p[1],
            function,
            plan.access[0],
            plan.access[1],
            plan.access[2],
            plan.dims.len(),
            per_unit,
            gpu.arithmetic(),
            gpu.elem(y.dtype())?,
        );
    }
    Ok(())
}

/// Tests two tensors that broadcast to the shape of `y`, a bool tensor: one byte each, written as words of four.
pub(crate) fn test<M: Relation>(gpu: &Gpu, function: M, x: [&Tensor; 2], y: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let width = gpu.vector(x[0].dtype());
    let plan = Plan::new(x, y, width);
    let (per_unit, cubes, units) = geometry(gpu, plan.vectors);
    let words = plan.vectors * width / 4;
    // SAFETY: as in `map2`; the output's allocation is padded to whole words of the last vector.
    unsafe {
        test_two::launch_unchecked::<M>(
            gpu.client(),
            cubes,
            units,
            plan.address,
            width,
            plan.widths[0],
            plan.widths[1],
            x[0].gpu_arg()?,
            x[1].gpu_arg()?,
            BufferArg::from_raw_parts(y.gpu_handle()?, words),
            plan.vectors,
            y.numel(),
            plan.dims(),
            plan.strides(0),
            plan.strides(1),
            function,
            plan.access[0],
            plan.access[1],
            plan.dims.len(),
            per_unit,
            gpu.elem(x[0].dtype())?,
        );
    }
    Ok(())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn map_one<F: Float, N: Size, M: Formula>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    vectors: usize,
    p: f32,
    q: f32,
    #[comptime] function: M,
    #[comptime] per_unit: usize,
    #[comptime] arithmetic: Arithmetic,
    #[define(F)] _dtype: ElemType,
) {
    let first = CUBE_POS * (CUBE_DIM as usize * per_unit) + UNIT_POS as usize;
    let mut values = Array::<Vector<f32, N>>::new(per_unit);
    #[unroll]
    for k in 0..per_unit {
        let i = first + k * CUBE_DIM as usize;
        values[k] = Vector::cast_from(x[min(i, vectors - 1)]);
    }
    #[unroll]
    for k in 0..per_unit {
        let i = first + k * CUBE_DIM as usize;
        if i < vectors {
            let v = values[k];
            y[i] = Vector::cast_from(M::eval::<N>(v, v, v, p, q, function, arithmetic));
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn map_two<F: Float, N: Size, A: Size, B: Size, M: Formula>(
    a: &[Vector<F, A>],
    b: &[Vector<F, B>],
    y: &mut [Vector<F, N>],
    vectors: usize,
    n: usize,
    dims: Sequence<usize>,
    a_strides: Sequence<usize>,
    b_strides: Sequence<usize>,
    p: f32,
    q: f32,
    #[comptime] function: M,
    #[comptime] a_access: Access,
    #[comptime] b_access: Access,
    #[comptime] rank: usize,
    #[comptime] per_unit: usize,
    #[comptime] arithmetic: Arithmetic,
    #[define(F)] _dtype: ElemType,
) {
    let first = CUBE_POS * (CUBE_DIM as usize * per_unit) + UNIT_POS as usize;
    let mut left = Array::<Vector<f32, N>>::new(per_unit);
    let mut right = Array::<Vector<f32, N>>::new(per_unit);
    #[unroll]
    for k in 0..per_unit {
        let i = min(first + k * CUBE_DIM as usize, vectors - 1);
        left[k] = fetch::<F, N, A>(a, i, n, &dims, &a_strides, a_access, rank);
        right[k] = fetch::<F, N, B>(b, i, n, &dims, &b_strides, b_access, rank);
    }
    #[unroll]
    for k in 0..per_unit {
        let i = first + k * CUBE_DIM as usize;
        if i < vectors {
            y[i] = Vector::cast_from(M::eval::<N>(left[k], right[k], right[k], p, q, function, arithmetic));
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn map_three<F: Float, N: Size, A: Size, B: Size, C: Size, M: Formula>(
    a: &[Vector<F, A>],
    b: &[Vector<F, B>],
    c: &[Vector<F, C>],
    y: &mut [Vector<F, N>],
    vectors: usize,
    n: usize,
    dims: Sequence<usize>,
    a_strides: Sequence<usize>,
    b_strides: Sequence<usize>,
    c_strides: Sequence<usize>,
    p: f32,
    q: f32,
    #[comptime] function: M,
    #[comptime] a_access: Access,
    #[comptime] b_access: Access,
    #[comptime] c_access: Access,
    #[comptime] rank: usize,
    #[comptime] per_unit: usize,
    #[comptime] arithmetic: Arithmetic,
    #[define(F)] _dtype: ElemType,
) {
    let first = CUBE_POS * (CUBE_DIM as usize * per_unit) + UNIT_POS as usize;
    #[unroll]
    for k in 0..per_unit {
        let i = first + k * CUBE_DIM as usize;
        if i < vectors {
            let u = fetch::<F, N, A>(a, i, n, &dims, &a_strides, a_access, rank);
            let v = fetch::<F, N, B>(b, i, n, &dims, &b_strides, b_access, rank);
            let w = fetch::<F, N, C>(c, i, n, &dims, &c_strides, c_access, rank);
            y[i] = Vector::cast_from(M::eval::<N>(u, v, w, p, q, function, arithmetic));
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn test_two<F: Float, N: Size, A: Size, B: Size, M: Relation>(
    a: &[Vector<F, A>],
    b: &[Vector<F, B>],
    y: &mut [u32],
    vectors: usize,
    n: usize,
    dims: Sequence<usize>,
    a_strides: Sequence<usize>,
    b_strides: Sequence<usize>,
    #[comptime] function: M,
    #[comptime] a_access: Access,
    #[comptime] b_access: Access,
    #[comptime] rank: usize,
    #[comptime] per_unit: usize,
    #[define(F)] _dtype: ElemType,
) {
    let first = CUBE_POS * (CUBE_DIM as usize * per_unit) + UNIT_POS as usize;
    let mut left = Array::<Vector<f32, N>>::new(per_unit);
    let mut right = Array::<Vector<f32, N>>::new(per_unit);
    #[unroll]
    for k in 0..per_unit {
        let i = min(first + k * CUBE_DIM as usize, vectors - 1);
        left[k] = fetch::<F, N, A>(a, i, n, &dims, &a_strides, a_access, rank);
        right[k] = fetch::<F, N, B>(b, i, n, &dims, &b_strides, b_access, rank);
    }
    #[unroll]
    for k in 0..per_unit {
        let i = first + k * CUBE_DIM as usize;
        if i < vectors {
            let truth = M::eval::<N>(left[k], right[k], function);
            let lanes = N::value();
            let words = comptime!(lanes / 4);
            #[unroll]
            for w in 0..words {
                let low = truth.extract(comptime!(4 * w)) | truth.extract(comptime!(4 * w + 1)) << 8u32;
                let high = truth.extract(comptime!(4 * w + 2)) | truth.extract(comptime!(4 * w + 3)) << 8u32;
                y[i * words + w] = low | high << 16u32;
            }
        }
    }
}

/// The elements of an operand for vector `i` of the output, which has `n` elements.
#[cube]
fn fetch<F: Float, N: Size, A: Size>(
    x: &[Vector<F, A>],
    i: usize,
    n: usize,
    dims: &Sequence<usize>,
    strides: &Sequence<usize>,
    #[comptime] access: Access,
    #[comptime] rank: usize,
) -> Vector<f32, N> {
    let lanes = N::value();
    match comptime!(access) {
        Access::Follow => Vector::cast_from(x[i]),
        Access::Row => Vector::cast_from(x[offset(i * lanes, dims, strides, rank) / lanes]),
        Access::Repeat => {
            let value = x[offset(i * lanes, dims, strides, rank)].extract(0usize);
            Vector::new(f32::cast_from(value))
        }
        Access::Gather => {
            let mut values = Vector::<f32, N>::empty();
            #[unroll]
            for lane in 0..lanes {
                let at = min(i * lanes + lane, n - 1);
                values.insert(lane, f32::cast_from(x[offset(at, dims, strides, rank)].extract(0usize)));
            }
            values
        }
    }
}

/// Where an operand has element `index` of the output.
#[cube]
fn offset(index: usize, dims: &Sequence<usize>, strides: &Sequence<usize>, #[comptime] rank: usize) -> usize {
    let mut rest = index;
    let mut offset = 0usize;
    #[unroll]
    for d in 0..rank {
        let axis = comptime!(rank - 1 - d);
        if comptime!(axis == 0) {
            offset += rest * strides[axis];
        } else {
            offset += rest % dims[axis] * strides[axis];
            rest /= dims[axis];
        }
    }
    offset
}
