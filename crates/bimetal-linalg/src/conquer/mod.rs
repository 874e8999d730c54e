//! Divide and conquer on a GPU: eigenvalues and eigenvectors of tridiagonal matrices, in merges of halves whose vectors meet
//! in one matrix product. The work before the products is a few launches for each doubling, none of which waits for the host.

mod kernels;
mod steps;

use bimetal_core::gpu::counted;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernels::{PAD, SIDE, TILE};
use steps::{INDICES, NUMBERS};

/// Tunables.
struct Params {
    /// Rows that one cube takes through all their merges, at most: powers of two.
    most: usize,
    least: usize,
    /// Units for each row of such a block.
    lanes: usize,
    /// Units of the other kernels.
    units: usize,
    /// Units of a cube that puts a merge in order.
    joining: usize,
}

const PARAMS: Params = Params { most: 128, least: 16, lanes: 4, units: 256, joining: 512 };

/// Eigenvalues of a batch of tridiagonal matrices, ascending, and their eigenvectors as rows.
pub(crate) struct Eigen {
    pub(crate) values: Tensor,
    pub(crate) vectors: Tensor,
}

/// How one batch is divided.
struct Plan {
    dtype: DType,
    most: usize,
}

impl Plan {
    fn new(gpu: &Gpu, dtype: DType, n: usize) -> Self {
        let fits = |most: usize| {
            let matrices = 3 * most * (most + PAD) + (NUMBERS + 1) * most;
            matrices * dtype.size() + INDICES * most * 4 <= gpu.shared_memory
                && PARAMS.lanes * most <= gpu.max_units as usize
        };
        let mut most = n.next_power_of_two().clamp(PARAMS.least, PARAMS.most);
        while most > PARAMS.least && !fits(most) {
            most /= 2;
        }
        Self { dtype, most }
    }

    fn bytes(&self, elements: usize) -> usize {
        elements * self.dtype.size()
    }

    fn arg(&self, handle: &Handle, len: usize) -> BufferArg {
        // SAFETY: callers give the length with which the buffer was allocated.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    }
}

/// Eigenvalues and eigenvectors of `batch` tridiagonal matrices of order `n`, both at least 1, whose largest element is about 1 or 0:
/// `off[i]` couples rows `i` and `i + 1`, the last of each matrix is not read.
///
/// # Errors
/// A dtype that the device lacks.
pub(crate) fn eigen(gpu: &Gpu, dtype: DType, batch: usize, n: usize, diagonal: &Handle, off: &Handle) -> Result<Eigen> {
    let plan = Plan::new(gpu, dtype, n);
    let (rows, elements) = (batch * n, batch * n * n);
    let elem = gpu.elem(dtype)?;
    let double = dtype == DType::F64;
    let address = address_type(elements.max(NUMBERS * rows));
    let make = |extents: &[usize]| Tensor::empty_on(Spec::new(Shape::new(extents)?, dtype), gpu.device());
    let values = make(&[batch, n])?;
    let mut vectors = make(&[batch, n, n])?;
    let lanes = PARAMS.lanes.min(gpu.plane.0 as usize).next_power_of_two();
    let blocks = n.div_ceil(plan.most);
    // SAFETY: the buffers have the lengths given, and kernels stay within `batch` matrices of order `n`.
    unsafe {
        kernels::base::launch_unchecked(
            gpu.client(),
            gpu.cubes(batch * blocks),
            CubeDim::new_1d((PARAMS.lanes * plan.most) as u32),
            address,
            plan.arg(diagonal, rows),
            plan.arg(off, rows),
            values.gpu_arg()?,
            vectors.gpu_arg()?,
            batch,
            n,
            plan.most,
            lanes as u32,
            double,
            elem,
        );
    }
    if blocks == 1 {
        return Ok(Eigen { values, vectors });
    }
    let mut spare = make(&[batch, n, n])?;
    let mix = make(&[batch, n, n])?;
    let numbers = gpu.alloc(plan.bytes(NUMBERS * rows));
    let indices = gpu.alloc(INDICES * rows * 4);
    let lanes = gpu.plane.0.min(32);
    let groups = PARAMS.units / lanes as usize;
    let per_row = || (gpu.cubes(rows.div_ceil(groups)), CubeDim::new_1d(PARAMS.units as u32));
    let mut span = plan.most;
    while span < n {
        let merges = n.div_ceil(2 * span);
        let tiles = (2 * span).div_ceil(TILE);
        let (numbers, indices) = (|| plan.arg(&numbers, NUMBERS * rows), || plan.arg(&indices, INDICES * rows));
        let (joining, (cubes, units)) = (PARAMS.joining.min(gpu.max_units as usize), per_row());
        // SAFETY: as above.
        unsafe {
            kernels::join::launch_unchecked(
                gpu.client(), gpu.cubes(batch * merges), CubeDim::new_1d(joining as u32), address, plan.arg(off, rows),
                values.gpu_arg()?, vectors.gpu_arg()?, numbers(), indices(), batch, n, span, double, elem,
            );
            kernels::roots::launch_unchecked(
                gpu.client(), cubes.clone(), units, address, plan.arg(off, rows), numbers(), indices(), batch, n, span,
                lanes, double, elem,
            );
            kernels::weights::launch_unchecked(
                gpu.client(), cubes.clone(), units, address, numbers(), indices(), batch, n, span, lanes, elem,
            );
            kernels::mixtures::launch_unchecked(
                gpu.client(), cubes, units, address, numbers(), indices(), mix.gpu_arg()?,
                values.gpu_arg()?, batch, n, span, lanes, elem,
            );
            kernels::combine::launch_unchecked(
                gpu.client(), gpu.cubes(batch * merges * tiles * tiles), CubeDim::new_1d((SIDE * SIDE) as u32), address,
                mix.gpu_arg()?, vectors.gpu_arg()?, spare.gpu_arg()?, batch, n, span, elem,
            );
        }
        std::mem::swap(&mut vectors, &mut spare);
        span *= 2;
    }
    Ok(Eigen { values, vectors })
}

/// Bytes that [`eigen`] allocates, its results included.
pub(crate) fn scratch(gpu: &Gpu, dtype: DType, batch: usize, n: usize) -> usize {
    let plan = Plan::new(gpu, dtype, n);
    let (rows, elements) = (batch * n, batch * n * n);
    let results = counted(plan.bytes(rows)) + counted(plan.bytes(elements));
    if n <= plan.most {
        return results;
    }
    results + 2 * counted(plan.bytes(elements)) + counted(plan.bytes(NUMBERS * rows)) + counted(INDICES * rows * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bimetal_core::check::{Plan as Checks, Target};

    /// A tridiagonal matrix of each kind that divide and conquer could stumble over.
    fn matrices(n: usize) -> Vec<(&'static str, Vec<f64>, Vec<f64>)> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        let mut made = |name, f: &mut dyn FnMut(usize, &mut dyn FnMut() -> f64) -> (f64, f64)| {
            let (diagonal, off) = (0..n).map(|i| f(i, &mut random)).unzip();
            (name, diagonal, off)
        };
        vec![
            made("random", &mut |_, r| (r(), r())),
            made("zero", &mut |_, _| (0.0, 0.0)),
            made("identity", &mut |_, _| (1.0, 0.0)),
            made("constant", &mut |_, _| (2.0, -1.0)),
            made("wilkinson", &mut |i, _| ((i as f64 - n as f64 / 2.0).abs().floor() / n as f64, 1.0 / n as f64)),
            made("graded", &mut |i, r| (r() * 0.5f64.powi(i as i32), r() * 0.5f64.powi(i as i32))),
            made("rising", &mut |i, r| (r() * 0.5f64.powi((n - i) as i32), r() * 0.5f64.powi((n - i) as i32))),
            made("weak", &mut |_, r| (r(), 1e-6 * r())),
            made("clustered", &mut |_, r| (1.0 + 1e-6 * r(), 1e-6 * r())),
            made("split", &mut |i, r| (r(), if i % 5 == 0 { 0.0 } else { r() })),
            made("glued", &mut |i, _| ((i % 7) as f64 / 7.0, if i % 7 == 6 { 1e-7 } else { 0.5 })),
            made("strong", &mut |_, r| (1e-4 * r(), r())),
        ]
    }

    /// Residual and departure from orthogonality of one matrix's results, in units of n·‖T‖·ε and n·ε.
    fn judged(diagonal: &[f64], off: &[f64], values: &[f64], q: &[f64], epsilon: f64) -> (f64, f64) {
        let n = diagonal.len();
        let row = |i: usize, x: &[f64]| {
            let before = if i > 0 { off[i - 1] * x[i - 1] } else { 0.0 };
            before + diagonal[i] * x[i] + if i + 1 < n { off[i] * x[i + 1] } else { 0.0 }
        };
        let size = |i: usize| {
            diagonal[i].abs() + if i > 0 { off[i - 1].abs() } else { 0.0 } + if i + 1 < n { off[i].abs() } else { 0.0 }
        };
        let norm = (0..n).map(size).fold(1e-300, f64::max);
        let (mut residual, mut angle) = (0.0f64, 0.0f64);
        for r in 0..n {
            let x = &q[r * n..][..n];
            residual = (0..n).map(|i| (row(i, x) - values[r] * x[i]).abs()).fold(residual, f64::max);
            for s in 0..=r {
                let y = &q[s * n..][..n];
                let product: f64 = x.iter().zip(y).map(|(a, b)| a * b).sum();
                angle = angle.max((product - if r == s { 1.0 } else { 0.0 }).abs());
            }
        }
        (residual / (n as f64 * norm * epsilon), angle / (n as f64 * epsilon))
    }

    #[test]
    fn tridiagonal_matrices() -> Result<()> {
        let plan = Checks::from_env();
        for target in &plan.targets {
            let Target::Gpu(device) = target else { continue };
            let gpu = Gpu::get(*device)?;
            for n in [1, 2, 3, 5, 16, 17, 33, 64, 65, 100, 129, 200, 300] {
                let kinds = matrices(n);
                let batch = kinds.len();
                let pack = |part: usize| -> Vec<f32> {
                    kinds.iter().flat_map(|k| if part == 0 { &k.1 } else { &k.2 }).map(|&x| x as f32).collect()
                };
                let packed = [pack(0), pack(1)];
                let upload = |x: &[f32]| Tensor::from_slice(x, &[batch, n])?.to_device(*device);
                let (d, e) = (upload(&packed[0])?, upload(&packed[1])?);
                let found = eigen(&gpu, DType::F32, batch, n, &d.gpu_handle()?, &e.gpu_handle()?)?;
                let (values, q) = (found.values.to_vec::<f32>()?, found.vectors.to_vec::<f32>()?);
                let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                for (i, kind) in kinds.iter().enumerate() {
                    let rows = i * n..(i + 1) * n;
                    let [d, e] = [0, 1].map(|part| wide(&packed[part][rows.clone()]));
                    let (w, v) = (wide(&values[rows.clone()]), wide(&q[i * n * n..][..n * n]));
                    assert!(w.windows(2).all(|pair| pair[0] <= pair[1]), "{device}: {} of {n} out of order", kind.0);
                    let (residual, angle) = judged(&d, &e, &w, &v, f64::from(f32::EPSILON));
                    let allowed = 2.0 + 16.0 / n as f64;
                    assert!(residual < allowed && angle < allowed, "{device}: {} of {n}: {residual} {angle}", kind.0);
                    if std::env::var_os("BIMETAL_VERBOSE").is_some() {
                        println!("{device} {} of {n}: {residual:.3} {angle:.3}", kind.0);
                    }
                }
            }
        }
        Ok(())
    }
}
