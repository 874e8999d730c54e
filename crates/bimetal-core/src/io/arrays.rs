//! Tensors from and to `ndarray` arrays (feature `ndarray`).

use crate::{Error, Result, Scalar, Tensor};
use ndarray::{ArrayBase, ArrayD, ArrayRef, ArrayViewD, Data, Dimension, IxDyn};

impl Tensor {
    /// A host tensor with a copy of an array or view, of any memory layout: its elements in logical (row-major) order.
    ///
    /// # Errors
    /// More than [`MAX_RANK`](crate::MAX_RANK) dimensions.
    ///
    /// ```
    /// use bimetal_core::Tensor;
    /// let a = ndarray::arr2(&[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    /// let x = Tensor::from_ndarray(&a.t())?;
    /// assert_eq!(x.shape().dims(), [3, 2]);
    /// assert_eq!(x.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn from_ndarray<T: Scalar, D: Dimension>(array: &ArrayRef<T, D>) -> Result<Self> {
        match array.as_slice() {
            Some(data) => Self::from_slice(data, array.shape()),
            None => {
                let mut tensor = Self::empty(array.shape(), T::DTYPE)?;
                tensor.as_mut_slice::<T>()?.iter_mut().zip(array).for_each(|(to, from)| *to = *from);
                Ok(tensor)
            }
        }
    }

    /// The data of a host tensor as an array view, without a copy.
    ///
    /// # Errors
    /// Another dtype, or a tensor on a GPU.
    ///
    /// ```
    /// use bimetal_core::Tensor;
    /// let x = Tensor::from_slice(&[1i64, 2, 3, 4], &[2, 2])?;
    /// assert_eq!(x.as_ndarray::<i64>()?[[1, 0]], 3);
    /// assert!(x.as_ndarray::<f32>().is_err());
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn as_ndarray<T: Scalar>(&self) -> Result<ArrayViewD<'_, T>> {
        let view = ArrayViewD::from_shape(IxDyn(self.shape().dims()), self.as_slice::<T>()?);
        view.map_err(|e| Error::argument("as_ndarray", "self", format!("a shape that ndarray takes: {e}")))
    }

    /// A copy of the data as an array, from wherever it lives.
    ///
    /// # Errors
    /// Another dtype, or a device that fails.
    ///
    /// ```
    /// use bimetal_core::{DType, Tensor};
    /// let x = Tensor::zeros(&[2, 3, 4], DType::F64)?;
    /// assert_eq!(x.to_ndarray::<f64>()?, ndarray::ArrayD::<f64>::zeros(vec![2, 3, 4]));
    /// # Ok::<(), bimetal_core::Error>(())
    /// ```
    pub fn to_ndarray<T: Scalar>(&self) -> Result<ArrayD<T>> {
        Ok(self.to_device(crate::Device::Cpu)?.as_ndarray::<T>()?.to_owned())
    }
}

/// As [`Tensor::from_ndarray`].
impl<T: Scalar, S: Data<Elem = T>, D: Dimension> TryFrom<&ArrayBase<S, D>> for Tensor {
    type Error = Error;

    fn try_from(array: &ArrayBase<S, D>) -> Result<Self> {
        Self::from_ndarray(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, ShapeBuilder, s};

    #[test]
    fn every_layout_gives_the_logical_order() {
        let a = Array::from_shape_fn((3, 4, 5), |(i, j, k)| (i * 100 + j * 10 + k) as i32).into_dyn();
        let mut fortran = Array::zeros((3, 4, 5).f()).into_dyn();
        fortran.assign(&a);
        for view in [
            a.view(),
            fortran.view(),
            a.slice(s![..;-1, 1..;2, ..]).into_dyn(),
            a.t(),
            a.slice(s![0..0, .., ..]).into_dyn(),
        ] {
            let x = Tensor::try_from(&view).unwrap();
            assert_eq!(x.shape().dims(), view.shape());
            assert_eq!(x.to_vec::<i32>().unwrap(), view.iter().copied().collect::<Vec<_>>());
            assert_eq!(x.to_ndarray::<i32>().unwrap(), view);
        }
        let scalar = ndarray::arr0(true);
        assert_eq!(Tensor::try_from(&scalar).unwrap().to_ndarray::<bool>().unwrap(), scalar.into_dyn());
        assert!(Tensor::try_from(&Array::<f32, _>::zeros(vec![1; 9])).is_err());
    }
}
