//! Tensors of other libraries, and ours for them, without a copy: the C structures of DLPack 0.8 (unversioned), which
//! PyTorch, JAX, CuPy and NumPy exchange.

use crate::tensor::Spec;
use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::ffi::c_void;

/// Kinds of devices, by DLPack's numbers.
const CPU: i32 = 1;
const CUDA: i32 = 2;

/// A device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLDevice {
    /// The kind.
    pub device_type: i32,
    /// The index among those of its kind.
    pub device_id: i32,
}

/// An element type.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DLDataType {
    /// 0 for signed integers, 1 for unsigned, 2 for floats, 4 for bfloat, 6 for bool.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// Elements in a vector.
    pub lanes: u16,
}

/// A strided array.
#[repr(C)]
#[derive(Debug)]
pub struct DLTensor {
    /// The start of the memory.
    pub data: *mut c_void,
    /// Where it lives.
    pub device: DLDevice,
    /// The number of axes.
    pub ndim: i32,
    /// The element type.
    pub dtype: DLDataType,
    /// The extents.
    pub shape: *mut i64,
    /// Steps of the axes in elements, or null for a row-major array.
    pub strides: *mut i64,
    /// From `data` to the first element, in bytes.
    pub byte_offset: u64,
}

/// An array with what frees it.
#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensor {
    /// The array.
    pub dl_tensor: DLTensor,
    /// The producer's own.
    pub manager_ctx: *mut c_void,
    /// Called by the consumer when it is done.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

impl DLDataType {
    fn of(dtype: DType) -> Self {
        let code = match dtype {
            DType::I8 | DType::I32 | DType::I64 => 0,
            DType::U8 | DType::U32 => 1,
            DType::F16 | DType::F32 | DType::F64 => 2,
            DType::BF16 => 4,
            DType::Bool => 6,
        };
        Self { code, bits: (dtype.size() * 8) as u8, lanes: 1 }
    }

    fn dtype(self) -> Option<DType> {
        use DType::*;
        [F32, F16, BF16, F64, I8, U8, I32, U32, I64, Bool].into_iter().find(|&dtype| Self::of(dtype) == self)
    }
}

/// A producer's array; dropping it tells the producer.
struct Owned(*mut DLManagedTensor);

// SAFETY: DLPack's deleters may be called from any thread.
unsafe impl Send for Owned {}
// SAFETY: nothing is read through a shared reference.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the array is the producer's until its deleter is called, which happens once, here.
        unsafe {
            if let Some(deleter) = (*self.0).deleter {
                deleter(self.0);
            }
        }
    }
}

/// What is kept alive for a consumer of ours.
struct Exported {
    managed: DLManagedTensor,
    shape: Vec<i64>,
    _tensor: Tensor,
}

unsafe extern "C" fn release(managed: *mut DLManagedTensor) {
    // SAFETY: `manager_ctx` is the box that `to_dlpack` leaked, and consumers call this once.
    drop(unsafe { Box::from_raw((*managed).manager_ctx.cast::<Exported>()) });
}

impl Tensor {
    /// The tensor over memory that another library made; CUDA memory is used as it is and goes back to its producer when
    /// the tensor and its clones are gone and the work on them has run, CPU memory is copied.
    ///
    /// The producer's work on the memory must come before ours: use `Gpu::wait_for` with the stream it runs on.
    ///
    /// # Errors
    /// A dtype, device or layout that bimetal does not have: the array must be row-major without gaps, on the CPU or a
    /// CUDA device, and CUDA memory must start on 16 bytes and be a multiple of 16 bytes long. The array is released then.
    ///
    /// # Safety
    /// `managed` is a valid array that nobody else frees, and its memory is not used by others while it is written here.
    ///
    /// ```
    /// use bimetal_core::Tensor;
    /// let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0], &[3])?;
    /// // SAFETY: the array is ours and is taken over at once.
    /// let y = unsafe { Tensor::from_dlpack(x.to_dlpack()?) }?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 2.0, 3.0]);
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub unsafe fn from_dlpack(managed: *mut DLManagedTensor) -> Result<Self> {
        let refused = |expected: String| Error::argument("from_dlpack", "managed", expected);
        if managed.is_null() {
            return Err(refused("an array, got a null pointer".into()));
        }
        let owned = Owned(managed);
        // SAFETY: the caller's; shape and strides have `ndim` entries.
        let (array, shape, strides) = unsafe {
            let array = &(*managed).dl_tensor;
            let axes = usize::try_from(array.ndim).unwrap_or(0);
            let entries = |start: *mut i64| {
                let given = axes > 0 && !start.is_null();
                if given { std::slice::from_raw_parts(start, axes) } else { &[] }
            };
            (array, entries(array.shape), (!array.strides.is_null()).then(|| entries(array.strides)))
        };
        let dtype =
            array.dtype.dtype().ok_or_else(|| refused(format!("a dtype of bimetal's, got {:?}", array.dtype)))?;
        let dims: Vec<usize> = shape
            .iter()
            .map(|&n| usize::try_from(n))
            .collect::<Result<_, _>>()
            .map_err(|_| refused(format!("extents from 0 on, got {shape:?}")))?;
        let spec = Spec::new(Shape::new(&dims)?, dtype);
        if let Some(strides) = strides
            && !is_row_major(&dims, strides)
        {
            return Err(refused(format!("a row-major array without gaps, got steps {strides:?} for {dims:?}")));
        }
        let start = array.data.wrapping_byte_add(array.byte_offset as usize);
        match array.device {
            DLDevice { device_type: CPU, .. } => {
                let mut tensor = Self::empty_spec(spec)?;
                if tensor.numel() > 0 {
                    let bytes = tensor.host_bytes_mut()?;
                    // SAFETY: the caller's: the array has as many bytes as its shape and dtype say.
                    bytes.copy_from_slice(unsafe { std::slice::from_raw_parts(start.cast(), bytes.len()) });
                }
                Ok(tensor)
            }
            DLDevice { device_type: CUDA, device_id } if u16::try_from(device_id).is_ok() => {
                let gpu = crate::Gpu::get(Device::Cuda(device_id as u16))?;
                let handle = gpu.import(start as u64, spec.bytes() as u64, Box::new(owned))?;
                Ok(Self::over_gpu(spec, gpu, handle))
            }
            other => Err(refused(format!("memory of the CPU or of a CUDA device, got {other:?}"))),
        }
    }

    /// The tensor for another library; its storage is shared and lives until the consumer calls the array's deleter.
    /// Writing into the tensor afterwards gives it storage of its own.
    ///
    /// On a GPU, our work on it must come before the consumer's: use `Gpu::let_wait` with the stream that it runs on.
    ///
    /// # Errors
    /// A tensor on a GPU that is not a CUDA device, or whose data was never written because of a failure.
    ///
    /// ```
    /// use bimetal_core::Tensor;
    /// let x = Tensor::from_slice(&[1.0f32, 2.0], &[2])?;
    /// let array = x.to_dlpack()?;
    /// // SAFETY: the array is valid until its deleter is called, once.
    /// unsafe {
    ///     assert_eq!((*array).dl_tensor.ndim, 1);
    ///     (*array).deleter.unwrap()(array);
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn to_dlpack(&self) -> Result<*mut DLManagedTensor> {
        let (data, device) = match self.gpu() {
            None => (self.host_bytes()?.as_ptr() as u64, DLDevice { device_type: CPU, device_id: 0 }),
            Some(gpu) => {
                let Device::Cuda(index) = gpu.device() else {
                    let got = gpu.device().to_string();
                    let expected = "the cpu or a cuda device".into();
                    return Err(Error::Device { op: "to_dlpack", argument: "self", got, expected });
                };
                (gpu.address(&self.gpu_handle()?)?, DLDevice { device_type: CUDA, device_id: index.into() })
            }
        };
        let dl_tensor = DLTensor {
            data: data as *mut c_void,
            device,
            ndim: self.shape().dims().len() as i32,
            dtype: DLDataType::of(self.dtype()),
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        };
        let managed = DLManagedTensor { dl_tensor, manager_ctx: std::ptr::null_mut(), deleter: Some(release) };
        let shape = self.shape().dims().iter().map(|&n| n as i64).collect();
        let exported = Box::into_raw(Box::new(Exported { managed, shape, _tensor: self.clone() }));
        // SAFETY: the box is alive until `release`; its parts do not move.
        unsafe {
            (*exported).managed.dl_tensor.shape = (*exported).shape.as_mut_ptr();
            (*exported).managed.manager_ctx = exported.cast();
            Ok(&raw mut (*exported).managed)
        }
    }
}

/// Whether steps are those of a row-major array; the steps of axes of one element do not matter.
fn is_row_major(dims: &[usize], strides: &[i64]) -> bool {
    if dims.contains(&0) {
        return true;
    }
    let mut step = 1;
    dims.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == step as i64;
        step *= n;
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_makes_the_round_trip() {
        use DType::*;
        for dtype in [F32, F16, BF16, F64, I8, U8, I32, U32, I64, Bool] {
            let x = Tensor::from_f64(&[0.0, 1.0, 1.0, 0.0, 1.0, 0.0], &[2, 3], dtype).unwrap();
            // SAFETY: the array is ours and is taken over at once.
            let y = unsafe { Tensor::from_dlpack(x.to_dlpack().unwrap()) }.unwrap();
            assert_eq!((y.spec(), y.to_f64_vec().unwrap()), (x.spec(), x.to_f64_vec().unwrap()));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_released() {
        static RELEASED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        unsafe extern "C" fn count(_: *mut DLManagedTensor) {
            RELEASED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let mut data = [0f32; 6];
        let (mut shape, mut strides) = ([2i64, 3], [1i64, 2]);
        let dl_tensor = DLTensor {
            data: data.as_mut_ptr().cast(),
            device: DLDevice { device_type: CPU, device_id: 0 },
            ndim: 2,
            dtype: DLDataType { code: 2, bits: 32, lanes: 1 },
            shape: shape.as_mut_ptr(),
            strides: strides.as_mut_ptr(),
            byte_offset: 0,
        };
        let mut managed = DLManagedTensor { dl_tensor, manager_ctx: std::ptr::null_mut(), deleter: Some(count) };
        let mut refused = |change: &dyn Fn(&mut DLTensor)| {
            change(&mut managed.dl_tensor);
            // SAFETY: the array lives on this stack frame and its deleter frees nothing.
            unsafe { Tensor::from_dlpack(&raw mut managed) }.unwrap_err().to_string()
        };
        assert!(refused(&|_| {}).contains("row-major"));
        assert!(refused(&|t| t.dtype.lanes = 2).contains("dtype"));
        assert!(refused(&|t| (t.dtype.lanes, t.device.device_type) = (1, 8)).contains("row-major"));
        assert!(refused(&|t| t.strides = std::ptr::null_mut()).contains("CUDA device"));
        assert_eq!(RELEASED.load(std::sync::atomic::Ordering::Relaxed), 4);
        // SAFETY: null is refused before it is read.
        assert!(unsafe { Tensor::from_dlpack(std::ptr::null_mut()) }.is_err());
    }
}
