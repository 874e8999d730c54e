//! Matrix products by the vendor's library, where the device has one.

use super::Gpu;
#[cfg(feature = "cuda")]
use crate::DType;
use crate::{Result, Tensor};

/// A batch of row-major products, `m`×`k` by `k`×`n`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Product {
    /// Products in the batch.
    pub batch: usize,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether the left operand is stored as `k`×`m`.
    pub a_transposed: bool,
    /// Whether the right operand is stored as `n`×`k`.
    pub b_transposed: bool,
    /// Elements between products of the batch in the left operand, the right one and the result; 0 shares a matrix.
    pub strides: [usize; 3],
    /// First elements of the left operand, the right one and the result.
    pub starts: [usize; 3],
    /// Elements from one row to the next in the left operand, the right one and the result, as they are stored; 0 where rows
    /// follow each other.
    pub rows: [usize; 3],
    /// Whether f32 operands may be rounded to TF32.
    pub tf32: bool,
}

/// The vendor's algorithms may load vectors of this many bytes from where a matrix starts.
#[cfg(feature = "cuda")]
const ALIGNED: usize = 256;

impl Gpu {
    /// Whether the device has a library of products of floats, which [`Gpu::gemm`] calls.
    ///
    /// ```
    /// use bimetal_core::{Device, Gpu};
    /// if let Ok(gpu) = Gpu::get(Device::Vulkan(0)) {
    ///     assert!(!gpu.has_gemm());
    /// }
    /// ```
    pub fn has_gemm(&self) -> bool {
        #[cfg(feature = "cuda")]
        let has = matches!(self.device(), crate::Device::Cuda(_)) && bimetal_cuda::gemm::available();
        #[cfg(not(feature = "cuda"))]
        let has = false;
        has
    }

    /// `d = alpha·a·b + beta·d` in `d`'s storage by the vendor's library, without waiting for the device. False, and nothing done, where the
    /// device has no such library or it does not take these types.
    ///
    /// # Errors
    /// A lost device, or tensors that live elsewhere. What the library itself refuses is reported where `d` is read.
    ///
    /// ```
    /// use bimetal_core::gpu::Product;
    /// use bimetal_core::{Device, Gpu, Tensor};
    /// if let Ok(gpu) = Gpu::get(Device::Cuda(0)) {
    ///     let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?.to_device(gpu.device())?;
    ///     let d = Tensor::empty_on(a.spec().clone(), gpu.device())?;
    ///     let product = Product {
    ///         batch: 1, m: 2, n: 2, k: 2, a_transposed: false, b_transposed: true, strides: [0; 3],
    ///         ..Product::default()
    ///     };
    ///     if gpu.gemm(&product, 1.0, 0.0, &a, &a, &d)? {
    ///         assert_eq!(d.to_vec::<f32>()?, [5.0, 11.0, 11.0, 25.0]);
    ///     }
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn gemm(&self, product: &Product, alpha: f64, beta: f64, a: &Tensor, b: &Tensor, d: &Tensor) -> Result<bool> {
        self.vendor_gemm(product, alpha, beta, a, b, d)
    }

    #[cfg(not(feature = "cuda"))]
    fn vendor_gemm(&self, _: &Product, _: f64, _: f64, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<bool> {
        Ok(false)
    }

    #[cfg(feature = "cuda")]
    fn vendor_gemm(
        &self,
        product: &Product,
        alpha: f64,
        beta: f64,
        a: &Tensor,
        b: &Tensor,
        d: &Tensor,
    ) -> Result<bool> {
        use bimetal_cuda::gemm::{Buffers, Element, Epilogue, Shape, gemm};
        let element = |dtype| match dtype {
            DType::F64 => Some(Element::F64),
            DType::F32 => Some(Element::F32),
            DType::F16 => Some(Element::F16),
            DType::BF16 => Some(Element::BF16),
            DType::I8 => Some(Element::I8),
            DType::I32 => Some(Element::I32),
            _ => None,
        };
        let (Some(input), Some(output)) = (element(a.dtype()), element(d.dtype())) else { return Ok(false) };
        // The integer kernels want the left operand row-major, the right one transposed, and everything in fours.
        let integers = input == Element::I8;
        let fits =
            !product.a_transposed && product.b_transposed && (product.m | product.n | product.k).is_multiple_of(4);
        if !self.has_gemm() || a.dtype() != b.dtype() || integers && !fits {
            return Ok(false);
        }
        let Product { batch, m, n, k, a_transposed, b_transposed, strides, starts, rows, tf32 } = *product;
        let offsets = [a, b, d].map(Tensor::dtype).map(DType::size);
        let offsets = [0, 1, 2].map(|i| starts[i] * offsets[i]);
        let steps_aligned = batch == 1 || (0..3).all(|i| (strides[i] * [a, b, d][i].dtype().size()).is_multiple_of(16));
        let rows_aligned = (0..3).all(|i| (rows[i] * [a, b, d][i].dtype().size()).is_multiple_of(16));
        if !steps_aligned || !rows_aligned || offsets.iter().any(|offset| !offset.is_multiple_of(ALIGNED)) {
            return Ok(false);
        }
        let epilogue = Epilogue::None;
        let shape = Shape { batch, m, n, k, a_transposed, b_transposed, strides, rows, input, output, tf32, epilogue };
        let at = |tensor: &Tensor, i: usize| Ok(tensor.gpu_handle()?.offset_start(offsets[i] as u64));
        let buffers = Buffers { a: at(a, 0)?, b: at(b, 1)?, d: at(d, 2)?, bias: None, auxiliary: None };
        let enqueued = gemm(self.client(), shape, alpha, beta, buffers);
        enqueued.map_err(|failure| self.failed("matmul", &failure))?;
        Ok(true)
    }
}
