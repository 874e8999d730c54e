//! How much memory a factorisation takes on a GPU beside its inputs and outputs.
//!
//! The numbers are those of the buffers that one call asks the device's pool for, all together, each with its padding and
//! without those of 256 bytes and less. The pool keeps them for the next call.

use crate::qr::{Dims, Form, QrParams};
use crate::svd::SvdParams;
use crate::{blocks, cholesky, condense, conquer, eigh, lu, qr, system};
use bimetal_core::gpu::counted;
use bimetal_core::op::Op;
use bimetal_core::{Device, Error, Gpu, Result, Shape, Spec};

/// The GPU behind `device`.
fn gpu(op: &'static str, device: Device) -> Result<&'static Gpu> {
    match device {
        Device::Cpu => Err(Error::argument(op, "device", "a GPU, whose memory is allocated by the call, got cpu")),
        _ => Gpu::get(device),
    }
}

/// Bytes that [`qr`](crate::qr()) of matrices `a` takes on a GPU beside `a`, Q and R; 0 where one launch does all. On CUDA it
/// is the most that is taken: the vendor's products, which take more, may refuse.
///
/// # Errors
/// A device that is no GPU or is not here, and as [`qr`](crate::qr()).
///
/// ```
/// # use bimetal_linalg::{QrParams, qr_scratch};
/// # use bimetal_core::{DType, Device, Shape, Spec};
/// let a = Spec::new(Shape::new(&[100, 64, 32])?, DType::F32);
/// assert!(qr_scratch(&a, QrParams::default(), Device::Cpu).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn qr_scratch(a: &Spec, params: QrParams, device: Device) -> Result<usize> {
    qr::reduced().outputs(&[a])?;
    let form = if params.complete { Form::Complete } else { Form::Reduced };
    qr::gpu::scratch(gpu("qr_scratch", device)?, form, &Dims::of("qr", "a", &a.shape)?, a.dtype)
}

/// Bytes that [`cholesky`](crate::cholesky()) of matrices `a` takes on a GPU beside `a` and its factor; 0 where one launch does
/// all.
///
/// # Errors
/// A device that is no GPU or is not here, and as [`cholesky`](crate::cholesky()).
///
/// ```
/// # use bimetal_linalg::cholesky_scratch;
/// # use bimetal_core::{DType, Device, Shape, Spec};
/// let a = Spec::new(Shape::new(&[2000, 2000])?, DType::F32);
/// if let Some(found) = bimetal_core::devices().0.iter().find(|found| found.device.is_gpu()) {
///     assert!(cholesky_scratch(&a, found.device)? >= 2000 * 2000 * 4);
/// }
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn cholesky_scratch(a: &Spec, device: Device) -> Result<usize> {
    system::check("cholesky", &[a], &["a"])?;
    let extents = system::square("cholesky", "a", &a.shape)?;
    Ok(cholesky::gpu::scratch(gpu("cholesky_scratch", device)?, extents, a.dtype))
}

/// Bytes that [`lu`](crate::lu()) of matrices `a` takes on a GPU beside `a`, the factors and the pivots; 0 where one launch does
/// all.
///
/// # Errors
/// A device that is no GPU or is not here, and as [`lu`](crate::lu()).
///
/// ```
/// # use bimetal_linalg::lu_scratch;
/// # use bimetal_core::{DType, Device, Shape, Spec};
/// let a = Spec::new(Shape::new(&[3])?, DType::F32);
/// assert!(lu_scratch(&a, Device::Cpu).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn lu_scratch(a: &Spec, device: Device) -> Result<usize> {
    system::check("lu", &[a], &["a"])?;
    let extents = system::matrices("lu", "a", &a.shape)?;
    Ok(lu::gpu::scratch(gpu("lu_scratch", device)?, extents, a.dtype))
}

/// Bytes that [`eigh`](crate::eigh()) of matrices `a` takes on a GPU beside `a`, values and vectors.
///
/// # Errors
/// A device that is no GPU or is not here, and as [`eigh`](crate::eigh()).
///
/// ```
/// # use bimetal_linalg::eigh_scratch;
/// # use bimetal_core::{DType, Device, Shape, Spec};
/// let a = Spec::new(Shape::new(&[3, 3])?, DType::F32);
/// assert!(eigh_scratch(&a, Device::Cpu).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn eigh_scratch(a: &Spec, device: Device) -> Result<usize> {
    eigh::lower().outputs(&[a])?;
    let ([batch, _, n], dtype) = (system::matrices("eigh", "a", &a.shape)?, blocks::working(a.dtype));
    let gpu = gpu("eigh_scratch", device)?;
    if batch * n == 0 {
        return Ok(0);
    }
    Ok(condense::tridiagonal_bytes(gpu, dtype, batch, n) + conquer::scratch(gpu, dtype, batch, n, false))
}

/// Bytes that [`svd`](crate::svd()) of matrices `a` takes on a GPU beside `a`, values and vectors; on CUDA it may be less.
///
/// # Errors
/// A device that is no GPU or is not here, and as [`svd`](crate::svd()).
///
/// ```
/// # use bimetal_linalg::{SvdParams, svd_scratch};
/// # use bimetal_core::{DType, Device, Shape, Spec};
/// let a = Spec::new(Shape::new(&[3, 4])?, DType::F32);
/// assert!(svd_scratch(&a, SvdParams::auto(), Device::Cpu).is_err());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn svd_scratch(a: &Spec, params: SvdParams, device: Device) -> Result<usize> {
    crate::svd::thin().outputs(&[a])?;
    let [batch, rows, columns] = system::matrices("svd", "a", &a.shape)?;
    let (gpu, dtype) = (gpu("svd_scratch", device)?, blocks::working(a.dtype));
    let (m, n) = (rows.max(columns), rows.min(columns));
    if batch * n == 0 {
        return Ok(0);
    }
    let direct = |m: usize, lines: usize| {
        let longer = if m == n { 0 } else { counted(batch * lines * m * dtype.size()) };
        let reduced = condense::bidiagonal_bytes(gpu, dtype, batch, [m, n], lines);
        reduced + conquer::scratch(gpu, dtype, batch, n, true) + longer
    };
    if params.full_matrices || !crate::svd::gpu::goes_by_qr(batch, rows, columns) {
        return Ok(direct(m, if params.full_matrices { m } else { n }));
    }
    let bytes = |elements: usize| counted(batch * elements * dtype.size());
    let upright = Spec::new(Shape::new(&[batch, m, n])?, dtype);
    let factors = qr_scratch(&upright, QrParams::default(), device)? + bytes(m * n) + bytes(n * n) + counted(batch * 4);
    let copies = bytes(m * n) * (usize::from(rows < columns) + usize::from(a.dtype != dtype));
    Ok(factors + copies + direct(n, n) + 2 * bytes(n * n) + bytes(n) + bytes(m * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CholeskyParams, EighParams, LuParams};
    use crate::{cholesky_with, eigh_with, lu_with, qr_with, svd_with};
    use bimetal_core::op::{Fill, Spectrum, Structure};
    use bimetal_core::{DType, Tensor, devices, gpu::allocated, verify};

    /// Bytes that `run` takes for a matrix on every GPU, less those of its outputs, beside those that are foretold.
    fn compare(
        dims: &[usize],
        foretold: impl Fn(&Spec, Device) -> Result<usize>,
        run: impl Fn(&Tensor) -> Result<usize>,
    ) {
        let spec = Spec::new(Shape::new(dims).unwrap(), DType::F32);
        let square = dims[dims.len() - 1] == dims[dims.len() - 2];
        let structure = if square { Structure::Positive } else { Structure::General };
        let a = verify::fill(&spec, Fill::Matrices(structure, Spectrum::Random), 1).unwrap();
        for found in devices().0.iter().filter(|found| found.device.is_gpu()) {
            let a = a.to_device(found.device).unwrap();
            let before = allocated();
            let outputs = run(&a).unwrap();
            let taken = allocated() - before - outputs;
            let said = foretold(&spec, found.device).unwrap();
            let at_most = matches!(found.device, Device::Cuda(_));
            assert!(said == taken || at_most && said > taken, "{dims:?} on {}: {said} for {taken}", found.device);
        }
    }

    fn bytes(outputs: &[&Tensor]) -> usize {
        outputs.iter().map(|t| bimetal_core::gpu::counted(t.spec().bytes())).sum()
    }

    #[test]
    fn what_is_foretold_is_taken() {
        for dims in [&[3, 20, 20][..], &[2, 40, 40], &[150, 150], &[2, 300, 300], &[0, 4, 4]] {
            let params = CholeskyParams { check_errors: false, ..CholeskyParams::default() };
            compare(dims, cholesky_scratch, |a| cholesky_with(a, params).map(|x| bytes(&[&x.factor, &x.status])));
            let params = LuParams { check_errors: false };
            compare(dims, lu_scratch, |a| lu_with(a, params).map(|x| bytes(&[&x.factors, &x.pivots, &x.status])));
            let params = EighParams { check_errors: false, ..EighParams::auto() };
            if dims[0] < 150 || dims.len() == 3 && dims[1] < 150 {
                compare(dims, eigh_scratch, |a| {
                    eigh_with(a, params).map(|x| bytes(&[&x.values, &x.vectors, &x.status]))
                });
            }
        }
        for dims in [&[3, 20, 10][..], &[100, 70], &[2, 70, 130], &[310, 300]] {
            for complete in [false, true] {
                let params = QrParams { complete, check_errors: false };
                compare(
                    dims,
                    |a, device| qr_scratch(a, params, device),
                    |a| qr_with(a, params).map(|x| bytes(&[&x.q, &x.r, &x.status])),
                );
                let params = SvdParams { full_matrices: complete, check_errors: false };
                if dims[0] < 300 {
                    compare(
                        dims,
                        |a, device| svd_scratch(a, params, device),
                        |a| svd_with(a, params).map(|x| bytes(&[&x.u, &x.s, &x.vh, &x.status])),
                    );
                }
            }
        }
    }
}
