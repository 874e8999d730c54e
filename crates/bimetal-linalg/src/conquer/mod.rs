//! Divide and conquer on a GPU: eigenvalues and eigenvectors of tridiagonal matrices, in merges of halves whose vectors meet
//! in one matrix product. The work before the products is a few launches for each doubling, none of which waits for the host.

mod base;
mod deflate;
mod kernels;
mod results;
mod secular;
mod steps;

use base::PAD;
use bimetal_core::gpu::counted;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{DType, Gpu, Result, Shape, Spec, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernels::{SIDE, TILE};
pub(crate) use results::{Kept, lengthen, store_values, store_vectors};
use steps::{INDICES, NUMBERS, Side};

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

/// Values of a batch of matrices, ascending, and their vectors as rows.
pub(crate) struct Found {
    pub(crate) values: Tensor,
    /// Eigenvectors or right singular vectors.
    pub(crate) vectors: Tensor,
    /// Left singular vectors.
    pub(crate) lefts: Option<Tensor>,
}

/// What is decomposed: `batch` matrices of order `n`, both at least 1, whose largest element is about 1 or 0, by their diagonal
/// and what is beside it: `off[i]` is between columns `i` and `i + 1`, and the last of each matrix is not read.
#[derive(Clone, Copy)]
pub(crate) struct Bands<'a> {
    pub(crate) gpu: &'a Gpu,
    /// f32 or f64.
    pub(crate) dtype: DType,
    pub(crate) batch: usize,
    pub(crate) n: usize,
    pub(crate) diagonal: &'a Handle,
    pub(crate) off: &'a Handle,
}

/// How a batch is divided.
struct Plan {
    size: usize,
    most: usize,
    sides: usize,
}

impl Plan {
    fn new(gpu: &Gpu, dtype: DType, n: usize, squared: bool) -> Self {
        let fits = |most: usize| {
            let matrices = (if squared { 5 } else { 3 }) * most * (most + PAD) + (NUMBERS + 2) * most + 1;
            matrices * dtype.size() + INDICES * most * 4 <= gpu.shared_memory
                && PARAMS.lanes * most <= gpu.max_units as usize
        };
        let mut most = n.next_power_of_two().clamp(PARAMS.least, PARAMS.most);
        while most > PARAMS.least && !fits(most) {
            most /= 2;
        }
        Self { size: dtype.size(), most, sides: if squared { 2 } else { 1 } }
    }

    fn bytes(&self, batch: usize, n: usize) -> usize {
        let (rows, elements) = (batch * n * self.size, batch * n * n * self.size);
        let results = counted(rows) + self.sides * counted(elements);
        if n <= self.most {
            return results;
        }
        results + 2 * counted(elements) + counted(NUMBERS * rows) + counted(INDICES * batch * n * 4)
    }
}

impl Bands<'_> {
    /// Eigenvalues and eigenvectors of symmetric matrices.
    ///
    /// # Errors
    /// A dtype that the device lacks.
    pub(crate) fn eigen(self) -> Result<Found> {
        self.decompose(Side::Eigen)
    }

    /// Singular values and vectors of upper bidiagonal matrices.
    ///
    /// # Errors
    /// As [`Bands::eigen`].
    pub(crate) fn singular(self) -> Result<Found> {
        self.decompose(Side::Right)
    }

    fn arg(&self, handle: &Handle, len: usize) -> BufferArg {
        // SAFETY: callers give the length with which the buffer was allocated.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    }

    fn tensor(&self, extents: &[usize]) -> Result<Tensor> {
        Tensor::empty_on(Spec::new(Shape::new(extents)?, self.dtype), self.gpu.device())
    }

    fn decompose(self, side: Side) -> Result<Found> {
        let Self { gpu, dtype, batch, n, diagonal, off } = self;
        let plan = Plan::new(gpu, dtype, n, side.squared());
        let rows = batch * n;
        let matrix = || self.tensor(&[batch, n, n]);
        let (values, mut vectors) = (self.tensor(&[batch, n])?, matrix()?);
        let mut lefts = if side.squared() { Some(matrix()?) } else { None };
        let lanes = PARAMS.lanes.min(gpu.plane.0 as usize);
        let blocks = n.div_ceil(plan.most);
        let most = if blocks > 1 { INDICES * rows } else { 1 };
        let indices = gpu.alloc(most * 4);
        let address = address_type((batch * n * n).max(NUMBERS * rows));
        // SAFETY: the buffers have the lengths given, and the kernel stays within `batch` matrices of order `n`.
        unsafe {
            base::base::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * blocks),
                CubeDim::new_1d((PARAMS.lanes * plan.most) as u32),
                address,
                self.arg(diagonal, rows),
                self.arg(off, rows),
                values.gpu_arg()?,
                vectors.gpu_arg()?,
                self.left(lefts.as_ref())?,
                self.arg(&indices, most),
                batch,
                n,
                plan.most,
                lanes as u32,
                side,
                dtype == DType::F64,
                gpu.elem(dtype)?,
            );
        }
        if blocks == 1 {
            return Ok(Found { values, vectors, lefts });
        }
        let mut merges = Merges {
            bands: self,
            side,
            lanes: gpu.plane.0.min(32),
            address,
            values,
            spare: matrix()?,
            mix: matrix()?,
            numbers: gpu.alloc(NUMBERS * rows * plan.size),
            indices,
        };
        let mut span = plan.most;
        while span < n {
            merges.roots(span, &vectors, lefts.as_ref())?;
            merges.combine(span, &mut vectors, side)?;
            if let Some(lefts) = &mut lefts {
                merges.combine(span, lefts, Side::Left)?;
            }
            span *= 2;
        }
        Ok(Found { values: merges.values, vectors, lefts })
    }

    /// Left vectors as an argument, where there are any.
    fn left(&self, lefts: Option<&Tensor>) -> Result<BufferArg> {
        match lefts {
            Some(lefts) => lefts.gpu_arg(),
            None => Ok(self.arg(&self.gpu.alloc(8), 1)),
        }
    }
}

/// The merges that are too large for one cube.
struct Merges<'a> {
    bands: Bands<'a>,
    side: Side,
    /// Units for each row.
    lanes: u32,
    address: AddressType,
    values: Tensor,
    /// Where vectors go, which then become what is spare.
    spare: Tensor,
    mix: Tensor,
    numbers: Handle,
    indices: Handle,
}

impl Merges<'_> {
    fn numbers(&self) -> BufferArg {
        self.bands.arg(&self.numbers, NUMBERS * self.bands.batch * self.bands.n)
    }

    fn indices(&self) -> BufferArg {
        self.bands.arg(&self.indices, INDICES * self.bands.batch * self.bands.n)
    }

    /// Cubes of [`PARAMS`]' units that have so many for each row.
    fn per_row(&self) -> (CubeCount, CubeDim) {
        let rows = self.bands.batch * self.bands.n;
        let cubes = self.bands.gpu.cubes(rows.div_ceil(PARAMS.units / self.lanes as usize));
        (cubes, CubeDim::new_1d(PARAMS.units as u32))
    }

    /// What the halves of `span` rows become: order, deflation, roots and the weights for which they are exact.
    fn roots(&self, span: usize, vectors: &Tensor, lefts: Option<&Tensor>) -> Result<()> {
        let Bands { gpu, dtype, batch, n, diagonal, off } = self.bands;
        let (rows, squared, double, elem) = (batch * n, self.side.squared(), dtype == DType::F64, gpu.elem(dtype)?);
        let joining = CubeDim::new_1d(PARAMS.joining.min(gpu.max_units as usize) as u32);
        // SAFETY: the buffers have these lengths, and the kernels stay within `batch` matrices of order `n`.
        unsafe {
            kernels::join::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * n.div_ceil(2 * span)),
                joining,
                self.address,
                self.bands.arg(diagonal, rows),
                self.bands.arg(off, rows),
                self.values.gpu_arg()?,
                vectors.gpu_arg()?,
                self.bands.left(lefts)?,
                self.numbers(),
                self.indices(),
                batch,
                n,
                span,
                self.side,
                double,
                elem,
            );
            let (cubes, units) = self.per_row();
            kernels::roots::launch_unchecked(
                gpu.client(),
                cubes,
                units,
                self.address,
                self.numbers(),
                self.indices(),
                batch,
                n,
                span,
                self.lanes,
                squared,
                double,
                elem,
            );
            let (cubes, units) = self.per_row();
            kernels::weights::launch_unchecked(
                gpu.client(),
                cubes,
                units,
                self.address,
                self.numbers(),
                self.indices(),
                batch,
                n,
                span,
                self.lanes,
                squared,
                elem,
            );
        }
        Ok(())
    }

    /// The vectors of merges of `span` rows.
    fn combine(&mut self, span: usize, vectors: &mut Tensor, side: Side) -> Result<()> {
        let Bands { gpu, dtype, batch, n, .. } = self.bands;
        let elem = gpu.elem(dtype)?;
        let (cubes, units) = self.per_row();
        let tiles = (2 * span).div_ceil(TILE);
        // SAFETY: as for the roots.
        unsafe {
            kernels::mixtures::launch_unchecked(
                gpu.client(),
                cubes,
                units,
                self.address,
                self.numbers(),
                self.indices(),
                self.mix.gpu_arg()?,
                self.values.gpu_arg()?,
                batch,
                n,
                span,
                self.lanes,
                side,
                elem,
            );
            kernels::combine::launch_unchecked(
                gpu.client(),
                gpu.cubes(batch * n.div_ceil(2 * span) * tiles * tiles),
                CubeDim::new_1d((SIDE * SIDE) as u32),
                self.address,
                self.mix.gpu_arg()?,
                vectors.gpu_arg()?,
                self.spare.gpu_arg()?,
                batch,
                n,
                span,
                elem,
            );
        }
        std::mem::swap(vectors, &mut self.spare);
        Ok(())
    }
}

/// Bytes that [`Bands::eigen`] or, if `squared`, [`Bands::singular`] allocates, its results included.
pub(crate) fn scratch(gpu: &Gpu, dtype: DType, batch: usize, n: usize, squared: bool) -> usize {
    Plan::new(gpu, dtype, n, squared).bytes(batch, n)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bimetal_core::check::{Plan as Checks, Target};

    /// A tridiagonal matrix of each kind that divide and conquer could stumble over.
    pub(crate) fn matrices(n: usize) -> Vec<(&'static str, Vec<f64>, Vec<f64>)> {
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

    /// The largest of `‖B·v − σ·u‖`, `‖Bᵀ·u − σ·v‖` and departures from orthogonality, in units of n·‖B‖·ε and n·ε; the same for
    /// a symmetric matrix, whose `lefts` are its eigenvectors.
    pub(crate) fn judged(
        diagonal: &[f64],
        off: &[f64],
        values: &[f64],
        [q, lefts]: [&[f64]; 2],
        symmetric: bool,
    ) -> [f64; 2] {
        let n = diagonal.len();
        let epsilon = f64::from(f32::EPSILON);
        let beside = |i: usize| if i + 1 < n { off[i] } else { 0.0 };
        let row = |i: usize, x: &[f64], below: bool, above: bool| {
            let before = if i > 0 && below { off[i - 1] * x[i - 1] } else { 0.0 };
            before + diagonal[i] * x[i] + if i + 1 < n && above { off[i] * x[i + 1] } else { 0.0 }
        };
        let size = |i: usize| diagonal[i].abs() + beside(i).abs() + if i > 0 { off[i - 1].abs() } else { 0.0 };
        let norm = (0..n).map(size).fold(1e-300, f64::max);
        let (mut residual, mut angle) = (0.0f64, 0.0f64);
        for r in 0..n {
            let (x, u) = (&q[r * n..][..n], &lefts[r * n..][..n]);
            for i in 0..n {
                let forward = (row(i, x, symmetric, true) - values[r] * u[i]).abs();
                let back = (row(i, u, true, symmetric) - values[r] * x[i]).abs();
                residual = residual.max(forward).max(back);
            }
            for s in 0..=r {
                let product = |x: &[f64]| x[r * n..][..n].iter().zip(&x[s * n..][..n]).map(|(a, b)| a * b).sum::<f64>();
                let one = if r == s { 1.0 } else { 0.0 };
                angle = angle.max((product(q) - one).abs()).max((product(lefts) - one).abs());
            }
        }
        [residual / (n as f64 * norm * epsilon), angle / (n as f64 * epsilon)]
    }

    /// Every kind of matrix, of several orders on every GPU.
    fn check(symmetric: bool) -> Result<()> {
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
                let (d, e) = (upload(&packed[0])?.gpu_handle()?, upload(&packed[1])?.gpu_handle()?);
                let bands = Bands { gpu, dtype: DType::F32, batch, n, diagonal: &d, off: &e };
                let found = if symmetric { bands.eigen()? } else { bands.singular()? };
                let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                let values = wide(&found.values.to_vec::<f32>()?);
                let q = wide(&found.vectors.to_vec::<f32>()?);
                let lefts = wide(&found.lefts.as_ref().unwrap_or(&found.vectors).to_vec::<f32>()?);
                assert!(values.iter().chain(&q).chain(&lefts).all(|x| x.is_finite()), "{device}: {n}");
                for (i, kind) in kinds.iter().enumerate() {
                    let rows = i * n..(i + 1) * n;
                    let all = i * n * n..(i + 1) * n * n;
                    let [d, e] = [0, 1].map(|part| wide(&packed[part][rows.clone()]));
                    let w = &values[rows];
                    let wrong = w.windows(2).find(|pair| !(pair[0] <= pair[1]));
                    assert!(wrong.is_none(), "{device}: {} of {n}: {wrong:?} out of order", kind.0);
                    assert!(symmetric || w[0] >= 0.0, "{device}: {} of {n}: {}", kind.0, w[0]);
                    let found = judged(&d, &e, w, [&q[all.clone()], &lefts[all]], symmetric);
                    let allowed = 2.0 + 16.0 / n as f64;
                    assert!(found.iter().all(|&x| x < allowed), "{device}: {} of {n}: {found:?}", kind.0);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn tridiagonal_matrices() -> Result<()> {
        check(true)
    }

    #[test]
    fn bidiagonal_matrices() -> Result<()> {
        check(false)
    }
}
