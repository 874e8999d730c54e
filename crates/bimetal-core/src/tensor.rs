//! Tensors: a shape, a dtype and shared row-major storage on the host or on a GPU.

use crate::host::HostBuffer;
use crate::{DType, Device, Error, Gpu, Result, Scalar, Shape};
use cubecl::prelude::BufferArg;
use cubecl::server::Handle;
use std::fmt;
use std::sync::Arc;

/// Shape and dtype of a tensor, without its data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The extents.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
}

impl Spec {
    /// A spec of this shape and dtype.
    pub fn new(shape: Shape, dtype: DType) -> Self {
        Self { shape, dtype }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }
}

/// Allocations on a GPU are asynchronous, and one that fails is reported when its contents are read; from this many bytes
/// on the answer is waited for.
const CHECKED: usize = 64 << 20;

#[derive(Clone)]
enum Storage {
    Host(Arc<HostBuffer>),
    Gpu { gpu: &'static Gpu, handle: Handle, owner: Arc<()> },
}

/// An n-dimensional row-major array. Cloning, reshaping and slicing the first axis share the storage; writing into a
/// tensor whose storage is shared replaces the storage, so no other tensor ever changes.
///
/// ```
/// use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
/// assert_eq!(x.slice(1..2)?.to_vec::<f32>()?, [4.0, 5.0, 6.0]);
/// assert_eq!(x.reshape(&[3, 2])?.shape().dims(), [3, 2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    spec: Spec,
    /// First element, counted in elements from the start of the storage.
    offset: usize,
    storage: Storage,
}

impl Tensor {
    /// A host tensor with unspecified (initialised) contents, meant to be written by an operation.
    ///
    /// # Errors
    /// A shape that [`Shape::new`] refuses, or one that the machine has no memory for.
    pub fn empty(dims: &[usize], dtype: DType) -> Result<Self> {
        Self::empty_spec(Spec::new(Shape::new(dims)?, dtype))
    }

    pub(crate) fn empty_spec(spec: Spec) -> Result<Self> {
        let mut buffer = HostBuffer::new(spec.bytes()).ok_or_else(|| Error::Runtime {
            op: "empty",
            device: Device::Cpu.to_string(),
            reason: format!("no memory for the {} bytes of {} {}", spec.bytes(), spec.dtype, spec.shape),
        })?;
        if spec.dtype == DType::Bool
            && let Some(bytes) = buffer.bytes_mut()
        {
            bytes.fill(0);
        }
        Ok(Self { offset: 0, storage: Storage::Host(Arc::new(buffer)), spec })
    }

    /// A tensor of `spec` on `device` with unspecified contents.
    ///
    /// # Errors
    /// A device that is not available, or no memory.
    pub fn empty_on(spec: Spec, device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Self::empty_spec(spec),
            _ => {
                let bytes = spec.bytes();
                let tensor = Self::empty_gpu(spec, Gpu::get(device)?);
                if bytes >= CHECKED {
                    tensor.ensure_allocated("empty_on")?;
                }
                Ok(tensor)
            }
        }
    }

    /// Waits until the device has answered the allocation.
    fn ensure_allocated(&self, op: &'static str) -> Result<()> {
        let Storage::Gpu { gpu, handle, .. } = &self.storage else { return Ok(()) };
        let reason = match gpu.client().check([handle]) {
            Ok(()) => return Ok(()),
            Err(e) => e.to_string(),
        };
        let reason = reason.lines().next().unwrap_or_default();
        let reason =
            format!("no memory for the {} bytes of {} {}: {reason}", self.spec.bytes(), self.dtype(), self.shape());
        Err(Error::Runtime { op, device: gpu.device().to_string(), reason })
    }

    /// A tensor over the start of a GPU's buffer, as [`Gpu::alloc`] gives it.
    ///
    /// # Errors
    /// A buffer that is too short.
    ///
    /// ```
    /// use bimetal_core::{DType, Device, Gpu, Shape, Spec, Tensor};
    /// if let Ok(gpu) = Gpu::get(Device::Vulkan(0)) {
    ///     let spec = |n| Ok::<_, bimetal_core::Error>(Spec::new(Shape::new(&[n, n])?, DType::F32));
    ///     let tensor = Tensor::over_handle(spec(4)?, gpu, gpu.alloc(64))?;
    ///     assert_eq!(tensor.device(), gpu.device());
    ///     assert!(Tensor::over_handle(spec(400)?, gpu, gpu.alloc(64)).is_err());
    /// }
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn over_handle(spec: Spec, gpu: &Gpu, handle: Handle) -> Result<Self> {
        if handle.size() < spec.bytes() as u64 {
            let expected = format!("a buffer of at least {} bytes, got {}", spec.bytes(), handle.size());
            return Err(Error::argument("over_handle", "handle", expected));
        }
        Ok(Self::over_gpu(spec, Gpu::get(gpu.device())?, handle))
    }

    /// A tensor over the whole of a GPU's buffer.
    pub(crate) fn over_gpu(spec: Spec, gpu: &'static Gpu, handle: Handle) -> Self {
        Self { spec, offset: 0, storage: Storage::Gpu { gpu, handle, owner: Arc::new(()) } }
    }

    fn empty_gpu(spec: Spec, gpu: &'static Gpu) -> Self {
        let handle = gpu.alloc(spec.bytes());
        Self::over_gpu(spec, gpu, handle)
    }

    /// A tensor over `buffer`, which holds exactly `spec`, is aligned for its dtype and has only 0 and 1 for a bool.
    pub(crate) fn over(spec: Spec, buffer: HostBuffer) -> Self {
        debug_assert_eq!(spec.bytes(), buffer.bytes().len());
        Self { spec, offset: 0, storage: Storage::Host(Arc::new(buffer)) }
    }

    /// A host tensor of zeros.
    ///
    /// # Errors
    /// A shape that [`Shape::new`] refuses, or one that the machine has no memory for.
    pub fn zeros(dims: &[usize], dtype: DType) -> Result<Self> {
        let mut tensor = Self::empty(dims, dtype)?;
        tensor.host_bytes_mut()?.fill(0);
        Ok(tensor)
    }

    /// A host tensor with a copy of `data`.
    ///
    /// # Errors
    /// A length that is not the product of `dims`.
    pub fn from_slice<T: Scalar>(data: &[T], dims: &[usize]) -> Result<Self> {
        let mut tensor = Self::empty(dims, T::DTYPE)?;
        if tensor.numel() != data.len() {
            return Err(Error::argument(
                "from_slice",
                "data",
                format!("{} elements for shape {}, got {}", tensor.numel(), tensor.shape(), data.len()),
            ));
        }
        tensor.host_bytes_mut()?.copy_from_slice(bytemuck::cast_slice(data));
        Ok(tensor)
    }

    /// A host tensor of `dtype` with each value rounded from f64.
    ///
    /// # Errors
    /// A length that is not the product of `dims`.
    pub fn from_f64(data: &[f64], dims: &[usize], dtype: DType) -> Result<Self> {
        macro_rules! rounded {
            ($($d:ident: $t:ty),*) => { match dtype {
                $(DType::$d => Self::from_slice(&data.iter().map(|&x| <$t>::from_f64(x)).collect::<Vec<_>>(), dims),)*
            } };
        }
        rounded!(F32: f32, F16: half::f16, BF16: half::bf16, F64: f64, I8: i8, U8: u8, I32: i32, U32: u32, I64: i64, Bool: bool)
    }

    /// Shape and dtype.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.spec.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.spec.numel()
    }

    /// Where the data lives.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Host(_) => Device::Cpu,
            Storage::Gpu { gpu, .. } => gpu.device(),
        }
    }

    /// The GPU that holds the data, if one does.
    pub fn gpu(&self) -> Option<&'static Gpu> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Gpu { gpu, .. } => Some(gpu),
        }
    }

    /// The same data with another shape of as many elements; shares the storage.
    ///
    /// # Errors
    /// A shape with another number of elements.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let shape = Shape::new(dims)?;
        if shape.numel() != self.numel() {
            return Err(Error::argument(
                "reshape",
                "dims",
                format!("{} elements as in {}, got {shape}", self.numel(), self.shape()),
            ));
        }
        Ok(Self { spec: Spec::new(shape, self.dtype()), ..self.clone() })
    }

    /// Rows `range` of the first axis; shares the storage.
    ///
    /// # Errors
    /// A scalar, or a range outside the first axis.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Result<Self> {
        let dims = self.shape().dims();
        let Some(&rows) = dims.first() else {
            return Err(Error::argument("slice", "self", "a tensor with at least one axis, got a scalar"));
        };
        if range.start > range.end || range.end > rows {
            return Err(Error::argument("slice", "range", format!("a range within 0..{rows}, got {range:?}")));
        }
        let mut sliced = dims.to_vec();
        sliced[0] = range.len();
        let row: usize = dims[1..].iter().product();
        let spec = Spec::new(Shape::new(&sliced)?, self.dtype());
        Ok(Self { spec, offset: self.offset + range.start * row, storage: self.storage.clone() })
    }

    /// The data as a slice of `T`, without a copy.
    ///
    /// # Errors
    /// Another dtype, or a tensor on a GPU (use [`Tensor::to_device`] first).
    pub fn as_slice<T: Scalar>(&self) -> Result<&[T]> {
        if T::DTYPE != self.dtype() {
            return Err(Error::dtype("as_slice", "self", self.dtype(), &[T::DTYPE]));
        }
        let bytes = self.host_bytes()?;
        // SAFETY: the storage is aligned for the dtype and `offset` counts whole elements, the length is a whole number
        // of elements, and every bit pattern written to a tensor is one of its dtype (bool tensors hold only 0 and 1).
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.numel()) })
    }

    /// The data as a mutable slice; copies first if the storage is shared or a mapped file.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`].
    pub fn as_mut_slice<T: Scalar>(&mut self) -> Result<&mut [T]> {
        if T::DTYPE != self.dtype() {
            return Err(Error::dtype("as_mut_slice", "self", self.dtype(), &[T::DTYPE]));
        }
        let n = self.numel();
        let kept = match &mut self.storage {
            Storage::Host(buffer) => HostBuffer::exclusive(buffer).is_none(),
            Storage::Gpu { .. } => false,
        };
        let old = kept.then(|| self.clone());
        let bytes = self.host_bytes_mut()?;
        if let Some(old) = old {
            bytes.copy_from_slice(old.host_bytes()?);
        }
        // SAFETY: as in `as_slice`; the borrow of `bytes` is unique.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), n) })
    }

    /// A copy of the data, from wherever it lives.
    ///
    /// # Errors
    /// Another dtype, or a device that fails.
    pub fn to_vec<T: Scalar>(&self) -> Result<Vec<T>> {
        Ok(self.to_device(Device::Cpu)?.as_slice::<T>()?.to_vec())
    }

    /// The values as f64, whatever the dtype and the device.
    ///
    /// # Errors
    /// A device that fails.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        let host = self.to_device(Device::Cpu)?;
        macro_rules! widened {
            ($($d:ident: $t:ty),*) => { match host.dtype() {
                $(DType::$d => Ok(host.as_slice::<$t>()?.iter().map(|x| x.to_f64()).collect()),)*
            } };
        }
        widened!(F32: f32, F16: half::f16, BF16: half::bf16, F64: f64, I8: i8, U8: u8, I32: i32, U32: u32, I64: i64, Bool: bool)
    }

    /// The tensor on `device`; itself (sharing storage) if it is there already. Between CUDA devices the data does not
    /// pass through the host's memory where they reach each other's.
    ///
    /// # Errors
    /// A device that is not available or fails.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self.clone());
        }
        match (&self.storage, device) {
            (Storage::Gpu { gpu, .. }, Device::Cpu) => {
                let mut out = Self::empty_spec(self.spec.clone())?;
                gpu.read(self.gpu_handle()?, out.host_bytes_mut()?)?;
                Ok(out)
            }
            (Storage::Host(_), _) => {
                let gpu = Gpu::get(device)?;
                let handle = gpu.upload(self.host_bytes()?);
                let storage = Storage::Gpu { gpu, handle, owner: Arc::new(()) };
                Ok(Self { spec: self.spec.clone(), offset: 0, storage })
            }
            (Storage::Gpu { gpu: from, .. }, Device::Cuda(_)) if matches!(from.device(), Device::Cuda(_)) => {
                let gpu = Gpu::get(device)?;
                let handle = gpu.copy_of(from, &self.gpu_handle()?, self.spec.bytes())?;
                let storage = Storage::Gpu { gpu, handle, owner: Arc::new(()) };
                Ok(Self { spec: self.spec.clone(), offset: 0, storage })
            }
            (Storage::Gpu { .. }, _) => self.to_device(Device::Cpu)?.to_device(device),
        }
    }

    /// The raw bytes of a host tensor.
    ///
    /// # Errors
    /// A tensor on a GPU.
    pub fn host_bytes(&self) -> Result<&[u8]> {
        match &self.storage {
            Storage::Host(buffer) => {
                let start = self.offset * self.dtype().size();
                Ok(&buffer.bytes()[start..start + self.spec.bytes()])
            }
            Storage::Gpu { gpu, .. } => Err(self.misplaced("host_bytes", gpu.device(), "cpu")),
        }
    }

    /// The raw bytes of a host tensor for overwriting; unspecified contents if the storage was shared. Whoever
    /// writes a bool tensor writes only 0 and 1.
    ///
    /// # Errors
    /// A tensor on a GPU.
    #[doc(hidden)]
    pub fn host_bytes_mut(&mut self) -> Result<&mut [u8]> {
        if let Storage::Gpu { gpu, .. } = &self.storage {
            return Err(self.misplaced("host_bytes_mut", gpu.device(), "cpu"));
        }
        self.make_unique()?;
        let (start, len) = (self.offset * self.dtype().size(), self.spec.bytes());
        match &mut self.storage {
            Storage::Host(buffer) => {
                let bytes = HostBuffer::exclusive(buffer).expect("make_unique left memory with one owner");
                Ok(&mut bytes[start..start + len])
            }
            Storage::Gpu { .. } => unreachable!("checked above"),
        }
    }

    /// Replaces shared storage by fresh storage, so that writing changes no other tensor.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn make_unique(&mut self) -> Result<()> {
        match &mut self.storage {
            Storage::Host(buffer) => {
                if HostBuffer::exclusive(buffer).is_none() {
                    *self = Self::empty_spec(self.spec.clone())?;
                }
            }
            Storage::Gpu { gpu, owner, .. } => {
                if Arc::get_mut(owner).is_none() || self.offset != 0 {
                    *self = Self::empty_gpu(self.spec.clone(), gpu);
                }
            }
        }
        Ok(())
    }

    /// The CubeCL handle of a GPU tensor, positioned at its first element.
    ///
    /// # Errors
    /// A host tensor.
    pub fn gpu_handle(&self) -> Result<Handle> {
        match &self.storage {
            Storage::Gpu { gpu, handle, .. } => {
                Ok(gpu.view(handle, self.offset * self.dtype().size(), self.spec.bytes()))
            }
            Storage::Host(_) => Err(self.misplaced("gpu_handle", Device::Cpu, "a GPU")),
        }
    }

    /// The tensor as a kernel argument. Buffers are padded to 16 bytes, so a kernel may read and write the whole of
    /// the last vector.
    ///
    /// # Errors
    /// A host tensor.
    pub fn gpu_arg(&self) -> Result<BufferArg> {
        let handle = self.gpu_handle()?;
        // SAFETY: the handle covers `numel` elements of this tensor's dtype.
        Ok(unsafe { BufferArg::from_raw_parts(handle, self.numel()) })
    }

    fn misplaced(&self, op: &'static str, got: Device, expected: &str) -> Error {
        Error::Device { op, argument: "self", got: got.to_string(), expected: expected.to_string() }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} on {})", self.dtype(), self.shape(), self.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_never_changes_another_tensor() {
        let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        let mut b = a.clone();
        b.as_mut_slice::<f32>().unwrap()[0] = 9.0;
        assert_eq!(a.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(b.to_vec::<f32>().unwrap(), [9.0, 2.0, 3.0, 4.0]);
        let mut row = a.slice(1..2).unwrap();
        row.as_mut_slice::<f32>().unwrap()[1] = 7.0;
        assert_eq!(row.to_vec::<f32>().unwrap(), [3.0, 7.0]);
        assert_eq!(a.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn wrong_lengths_dtypes_and_ranges_are_errors() {
        assert!(Tensor::from_slice(&[1.0f32], &[2]).is_err());
        let a = Tensor::zeros(&[3], DType::F32).unwrap();
        assert!(a.as_slice::<f64>().is_err());
        assert!(a.slice(2..4).is_err());
        assert!(a.reshape(&[4]).is_err());
        assert!(Tensor::zeros(&[], DType::F32).unwrap().slice(0..0).is_err());
        assert_eq!(a.slice(3..3).unwrap().numel(), 0);
        assert!(a.gpu_arg().is_err());
    }
}
