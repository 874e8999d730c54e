//! Small steps between the operations that a composition is made of, on either metal: copies with a change of dtype, strides,
//! factor or offset, `s⁺ᵢ = 1/sᵢ` above a cutoff, and reproducible random numbers.

mod cpu;
mod gpu;

use crate::blocks::working;
use crate::matmul::{Kind, MatmulParams, Product};
use bimetal_core::op::{Op, run_here};
use bimetal_core::{DType, Error, Result, Shape, Spec, Tensor};

/// What becomes of each element of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    None,
    Times,
    Minus,
}

/// Where the elements of `[batch, rows, columns]` come from: a tensor and its strides, an operand with strides of its own, and
/// a status for each of the batch, whose elements are NaN where it is not 0.
pub(crate) struct Source<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) strides: [usize; 3],
    pub(crate) change: Change,
    /// In the dtype of the computation.
    pub(crate) operand: Option<(&'a Tensor, [usize; 3])>,
    pub(crate) status: Option<&'a Tensor>,
}

impl<'a> Source<'a> {
    /// A plain copy of matrices of these extents.
    pub(crate) fn all(tensor: &'a Tensor, [_, rows, columns]: [usize; 3]) -> Self {
        let strides = [rows * columns, columns, 1];
        Self { tensor, strides, change: Change::None, operand: None, status: None }
    }

    /// The same, NaN where a matrix failed.
    pub(crate) fn checked(self, status: &'a Tensor) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Elements times those of `operand`.
    pub(crate) fn times(self, operand: &'a Tensor, strides: [usize; 3]) -> Self {
        Self { change: Change::Times, operand: Some((operand, strides)), ..self }
    }

    /// Elements less those of `operand`.
    pub(crate) fn minus(self, operand: &'a Tensor, strides: [usize; 3]) -> Self {
        Self { change: Change::Minus, operand: Some((operand, strides)), ..self }
    }

    /// Other strides of the tensor.
    pub(crate) fn strided(self, strides: [usize; 3]) -> Self {
        Self { strides, ..self }
    }

    /// Writes `to`, whose extents are these in all.
    pub(crate) fn copy(&self, to: &mut Tensor, extents: [usize; 3]) -> Result<()> {
        debug_assert_eq!(to.numel(), extents.iter().product::<usize>());
        match to.gpu() {
            _ if to.numel() == 0 => Ok(()),
            Some(gpu) => gpu::copy(gpu, self, to, extents),
            None => cpu::copy(self, to, extents),
        }
    }

    /// A new tensor of these extents and dtype.
    pub(crate) fn made(&self, dims: &[usize], extents: [usize; 3], dtype: DType) -> Result<Tensor> {
        let mut to = make(self.tensor, dims, dtype)?;
        self.copy(&mut to, extents)?;
        Ok(to)
    }
}

/// Matrices `[…, m, n]`: what stands before the last two axes, and the extents with the batch as one.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) leading: Vec<usize>,
    pub(crate) count: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
}

impl Batch {
    pub(crate) fn of(op: &'static str, name: &'static str, shape: &Shape) -> Result<Self> {
        let [count, m, n] = crate::system::matrices(op, name, shape)?;
        Ok(Self { leading: shape.dims()[..shape.rank() - 2].to_vec(), count, m, n })
    }

    /// The smaller extent.
    pub(crate) fn k(&self) -> usize {
        self.m.min(self.n)
    }

    /// The leading extents with others behind them.
    pub(crate) fn with(&self, last: &[usize]) -> Vec<usize> {
        [&self.leading, last].concat()
    }

    /// A spec of the leading extents with others behind them; one that memory cannot hold is an error of `name`.
    pub(crate) fn spec(&self, op: &'static str, name: &'static str, last: &[usize], dtype: DType) -> Result<Spec> {
        let dims = self.with(last);
        let shape = Shape::new(&dims)
            .map_err(|_| Error::argument(op, name, format!("results that fit in memory, got {dims:?}")))?;
        Ok(Spec::new(shape, dtype))
    }
}

/// A tensor on the device of `like`.
pub(crate) fn make(like: &Tensor, dims: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::empty_on(Spec::new(Shape::new(dims)?, dtype), like.device())
}

/// A matrix in the dtype that is computed in; itself if that is its own.
pub(crate) fn widened(a: &Tensor) -> Result<Tensor> {
    let dtype = working(a.dtype());
    if dtype == a.dtype() {
        return Ok(a.clone());
    }
    let extents = [1, 1, a.numel()];
    Source::all(a, extents).made(a.shape().dims(), extents, dtype)
}

/// The product of matrices, with operands transposed as asked.
pub(crate) fn product(a: &Tensor, b: &Tensor, transposed: [bool; 2]) -> Result<Tensor> {
    scaled_product(a, b, transposed, 1.0)
}

/// The product of matrices times a number.
pub(crate) fn scaled_product(
    a: &Tensor,
    b: &Tensor,
    [transpose_a, transpose_b]: [bool; 2],
    alpha: f64,
) -> Result<Tensor> {
    let params = MatmulParams { transpose_a, transpose_b, alpha, tf32: false };
    let [out] = applied(&Product { kind: Kind::Matmul, params }, &[a, b])?;
    Ok(out)
}

/// The product of matrices into a tensor that is there.
pub(crate) fn product_into(
    a: &Tensor,
    b: &Tensor,
    [transpose_a, transpose_b]: [bool; 2],
    out: &mut Tensor,
) -> Result<()> {
    let params = MatmulParams { transpose_a, transpose_b, ..MatmulParams::default() };
    run_here(&Product { kind: Kind::Matmul, params }, &[a, b], &mut [out])
}

/// New tensors for the outputs of an operation, on the device of its inputs.
pub(crate) fn outputs_of<const N: usize>(op: &dyn Op, inputs: &[&Tensor]) -> Result<[Tensor; N]> {
    let specs: Vec<&Spec> = inputs.iter().map(|input| input.spec()).collect();
    let made = op.outputs(&specs)?.into_iter().take(N).map(|spec| Tensor::empty_on(spec, inputs[0].device()));
    let made = made.collect::<Result<Vec<_>>>()?;
    Ok(made.try_into().unwrap_or_else(|_| unreachable!("the operation has as many outputs")))
}

/// All outputs of an operation, on the device of its inputs.
pub(crate) fn applied<const N: usize>(op: &dyn Op, inputs: &[&Tensor]) -> Result<[Tensor; N]> {
    let mut made = outputs_of(op, inputs)?;
    run_here(op, inputs, &mut made.each_mut())?;
    Ok(made)
}

/// All outputs but the last, the status, which goes to a tensor that is there.
pub(crate) fn applied_with<const N: usize>(
    op: &dyn Op,
    inputs: &[&Tensor],
    status: &mut Tensor,
) -> Result<[Tensor; N]> {
    let mut made = outputs_of(op, inputs)?;
    run_here(op, inputs, &mut made.iter_mut().chain([status]).collect::<Vec<_>>())?;
    Ok(made)
}

/// The singular value decomposition of `a` by `svd`, thin, in the dtype of `a`.
pub(crate) fn svd(a: &Tensor, status: &mut Tensor) -> Result<[Tensor; 3]> {
    applied_with(&crate::svd::thin(), &[a], status)
}

/// A matrix by its singular values, and by QR before where it is at least twice as long as wide: `A = Q·U·Σ·Vᵀ`, or
/// `Aᵀ = Q·U·Σ·Vᵀ`.
pub(crate) struct Decomposed {
    q: Option<Tensor>,
    u: Tensor,
    pub(crate) s: Tensor,
    vh: Tensor,
    /// It is the transpose that was decomposed.
    swapped: bool,
}

impl Decomposed {
    /// Decomposes matrices in the dtype of the computation.
    pub(crate) fn of(w: &Tensor, batch: &Batch, status: &mut Tensor) -> Result<Self> {
        let Batch { count, m, n, .. } = *batch;
        let swapped = n >= 2 * m;
        if m * n == 0 || (m < 2 * n && !swapped) {
            let [u, s, vh] = svd(w, status)?;
            return Ok(Self { q: None, u, s, vh, swapped: false });
        }
        let turned = if swapped {
            let extents = [count, n, m];
            Source::all(w, extents).strided([m * n, 1, n]).made(&batch.with(&[n, m]), extents, w.dtype())?
        } else {
            w.clone()
        };
        let [q, r, _] = applied(&crate::qr::reduced(), &[&turned])?;
        let [u, s, vh] = svd(&r, status)?;
        Ok(Self { q: Some(q), u, s, vh, swapped })
    }

    /// The right singular vectors as rows.
    pub(crate) fn right_vectors(self) -> Result<Tensor> {
        match (self.q, self.swapped) {
            (Some(q), true) => product(&self.u, &q, [true, true]),
            _ => Ok(self.vh),
        }
    }

    /// `V·diag(w)·Uᵀ·B` for `w` of `[batch, k]`, with `V` and `U` of the matrix itself.
    pub(crate) fn solve(&self, w: &Tensor, right: &Tensor, batch: &Batch, p: usize) -> Result<Tensor> {
        let k = batch.k();
        let scaled = |x: &Tensor| {
            Source::all(x, [batch.count, k, p]).times(w, [k, 1, 0]).made(
                &batch.with(&[k, p]),
                [batch.count, k, p],
                w.dtype(),
            )
        };
        match (&self.q, self.swapped) {
            (Some(q), true) => {
                let inner = scaled(&product(&self.vh, right, [false, false])?)?;
                product(q, &product(&self.u, &inner, [false, false])?, [false, false])
            }
            (Some(q), false) => {
                let inner = product(q, right, [true, false])?;
                product(&self.vh, &scaled(&product(&self.u, &inner, [true, false])?)?, [true, false])
            }
            (None, _) => product(&self.vh, &scaled(&product(&self.u, right, [true, false])?)?, [true, false]),
        }
    }

    /// `V·diag(w)·Uᵀ` for `w` of `[batch, k]`, into a tensor of the dtype of the computation.
    pub(crate) fn inverse(&self, w: &Tensor, batch: &Batch, out: &mut Tensor) -> Result<()> {
        let Batch { count, m, n, .. } = *batch;
        let (k, dtype) = (batch.k(), w.dtype());
        // The right vectors of what was decomposed, and the left ones: one of them is scaled, the smaller.
        let [rows, columns] = if self.q.is_some() { [k, k] } else { [m, n] };
        let (left, right);
        let [u, vh] = if rows < columns {
            let extents = [count, rows, k];
            left = Source::all(&self.u, extents).times(w, [k, 0, 1]).made(&batch.with(&[rows, k]), extents, dtype)?;
            [&left, &self.vh]
        } else {
            let extents = [count, k, columns];
            right =
                Source::all(&self.vh, extents).times(w, [k, 1, 0]).made(&batch.with(&[k, columns]), extents, dtype)?;
            [&self.u, &right]
        };
        match (&self.q, self.swapped) {
            (Some(q), true) => product_into(q, &product(u, vh, [false, false])?, [false, false], out),
            (Some(q), false) => product_into(&product(vh, u, [true, true])?, q, [false, true], out),
            (None, _) => product_into(vh, u, [true, true], out),
        }
    }
}

/// Singular values up to this part of the largest one count as zero.
pub(crate) fn cutoff(rcond: Option<f64>, m: usize, n: usize, dtype: DType) -> f64 {
    rcond.unwrap_or_else(|| m.max(n) as f64 * working(dtype).epsilon())
}

/// Refuses a cutoff that is negative or NaN.
pub(crate) fn check_cutoff(op: &'static str, rcond: Option<f64>) -> Result<()> {
    match rcond {
        Some(r) if r.is_nan() || r < 0.0 => {
            Err(Error::argument(op, "rcond", format!("a part of the largest singular value, at least 0, got {r}")))
        }
        _ => Ok(()),
    }
}

/// `1/sᵢ` where `sᵢ > rcond·s₁`, else 0, for descending values of `[batch, k]`; and how many there are. NaN and −1 where
/// the status is not 0.
pub(crate) fn inverted(s: &Tensor, status: &Tensor, rank: &mut Tensor, k: usize, rcond: f64) -> Result<Tensor> {
    let mut inverse = make(s, s.shape().dims(), s.dtype())?;
    match s.gpu() {
        _ if status.numel() == 0 => {}
        Some(gpu) => gpu::inverted(gpu, s, status, &inverse, rank, k, rcond)?,
        None => cpu::inverted(s, status, &mut inverse, rank, k, rcond)?,
    }
    Ok(inverse)
}

/// A tensor of one value on the device of `like`.
pub(crate) fn filled(like: &Tensor, dims: &[usize], dtype: DType, value: f64) -> Result<Tensor> {
    let mut out = make(like, dims, dtype)?;
    match out.gpu() {
        _ if out.numel() == 0 => {}
        Some(gpu) => gpu::fill(gpu, &out, value)?,
        None => out = Tensor::from_f64(&vec![value; out.numel()], dims, dtype)?,
    }
    Ok(out)
}

/// A matrix of random numbers on the device of `like`: element `(i, j)` is the sum of eight uniform numbers from −½ to ½
/// that Philox 4×32-10 (Salmon et al., 2011) gives for the counter `(i, j, stream)` under the key `seed`. Sums of integers
/// scaled by a power of two, they are the same bits on every device; their variance is ⅔.
pub(crate) fn random(like: &Tensor, [m, n]: [usize; 2], dtype: DType, seed: u64, stream: u32) -> Result<Tensor> {
    let mut out = make(like, &[m, n], dtype)?;
    match out.gpu() {
        _ if out.numel() == 0 => {}
        Some(gpu) => gpu::random(gpu, &out, n, seed, stream)?,
        None => cpu::random(&mut out, n, seed, stream)?,
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123 for the counters 0 and all ones, by way of the sums that are made of them.
    #[test]
    fn the_generator_is_philox() {
        let sum =
            |words: [u32; 4]| words.iter().map(|w| i64::from(w & 0xffff) + i64::from(w >> 16)).sum::<i64>() - 262_140;
        let zero = cpu::philox([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = cpu::philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let like = Tensor::zeros(&[1], DType::F32).unwrap();
        let first = random(&like, [1, 1], DType::F32, 0, 0).unwrap().to_vec::<f32>().unwrap()[0];
        assert_eq!(f64::from(first), sum(zero) as f64 / 65536.0);
    }

    #[test]
    fn every_device_has_the_same_numbers() {
        let like = Tensor::zeros(&[1], DType::F32).unwrap();
        let host = random(&like, [130, 70], DType::F32, 1 << 40 | 5, 1).unwrap().to_vec::<f32>().unwrap();
        for found in bimetal_core::devices().0.iter().filter(|found| found.device.is_gpu()) {
            let like = like.to_device(found.device).unwrap();
            let there = random(&like, [130, 70], DType::F32, 1 << 40 | 5, 1).unwrap();
            assert_eq!(there.to_vec::<f32>().unwrap(), host, "{}", found.device);
        }
    }

    #[test]
    fn moments_are_those_of_eight_uniforms() {
        let like = Tensor::zeros(&[1], DType::F64).unwrap();
        let x = random(&like, [300, 200], DType::F64, 7, 1).unwrap().to_vec::<f64>().unwrap();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.015 && (variance - 2.0 / 3.0).abs() < 0.02, "{mean} {variance}");
    }
}
