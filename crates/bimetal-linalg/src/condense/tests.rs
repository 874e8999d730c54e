//! The reductions and the way back against the matrix itself, in LAPACK's units, on every GPU.

use super::{Memory, Reflectors, bidiagonal, tridiagonal};
use crate::qr::gpu::wy::Groups;
use bimetal_core::op::{Fill, Spectrum, Structure};
use bimetal_core::verify::fill;
use bimetal_core::{DType, Gpu, Shape, Spec, Tensor};
use cubecl::server::Handle;

/// The spectra of the design's list; in f64, whose kernels are the same, those whose elements are far apart.
fn spectra(dtype: DType) -> Vec<Spectrum> {
    if dtype == DType::F64 {
        return vec![Spectrum::Random, Spectrum::Graded, Spectrum::Scaled(-30), Spectrum::OneNan];
    }
    let mut all = vec![Spectrum::Random, Spectrum::Zero, Spectrum::Identity, Spectrum::RankDeficient];
    all.extend([Spectrum::NearSingular, Spectrum::Repeated, Spectrum::Clustered, Spectrum::Graded]);
    all.extend([Spectrum::Banded, Spectrum::Scaled(30), Spectrum::Scaled(-30), Spectrum::OneNan]);
    all
}

fn gpus() -> Vec<&'static Gpu> {
    let found = bimetal_core::devices().0;
    found.iter().filter(|found| found.device.is_gpu()).map(|found| Gpu::get(found.device).unwrap()).collect()
}

/// What a buffer of the computation's dtype holds.
fn host(memory: &Memory, handle: &Handle, each: usize) -> Vec<f64> {
    let mut bytes = vec![0u8; memory.batch * each * memory.dtype.size()];
    memory.gpu.read(handle.clone(), &mut bytes).unwrap();
    match memory.dtype {
        DType::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
    }
}

/// Identities of `lines` rows of `m` elements.
fn identities(memory: &Memory, lines: usize, m: usize) -> Handle {
    let element = |i: usize| if i / m % lines == i % m { 1.0 } else { 0.0 };
    let all = (0..memory.batch * lines * m).map(element);
    let bytes: Vec<u8> = match memory.dtype {
        DType::F64 => all.flat_map(|x: f64| x.to_le_bytes()).collect(),
        _ => all.flat_map(|x: f64| (x as f32).to_le_bytes()).collect(),
    };
    memory.gpu.upload(&bytes)
}

/// The largest column sum of magnitudes.
fn norm(a: &[f64], n: usize) -> f64 {
    (0..n).map(|j| a.iter().skip(j).step_by(n).map(|x| x.abs()).sum()).fold(0.0, f64::max)
}

/// `‖I − Q·Qᵀ‖₁` of `k` rows of `m`.
fn orthogonality(q: &[f64], k: usize, m: usize) -> f64 {
    let mut gram = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..k {
            let sum: f64 = (0..m).map(|l| q[i * m + l] * q[j * m + l]).sum();
            gram[i * k + j] = sum - f64::from(i == j);
        }
    }
    norm(&gram, k)
}

/// The worst of `‖A − Q·T·Qᵀ‖ / (n·‖A‖·ε)` and `‖I − Q·Qᵀ‖ / (n·ε)` of a batch; nothing where the device lacks the dtype.
fn ratios(gpu: &'static Gpu, dtype: DType, dims: &[usize], spectrum: Spectrum, upper: bool) -> Option<f64> {
    let n = dims[dims.len() - 1];
    let spec = Spec::new(Shape::new(dims).unwrap(), dtype);
    let a = fill(&spec, Fill::Matrices(Structure::Symmetric, spectrum), 7).unwrap();
    let mut values = a.to_f64_vec().unwrap();
    // The other triangle must not be read.
    let spoilt = |i: usize| if upper { i / n % n > i % n } else { i / n % n < i % n };
    let given: Vec<f64> = values.iter().enumerate().map(|(i, x)| if spoilt(i) { f64::NAN } else { *x }).collect();
    let given = Tensor::from_f64(&given, dims, dtype).unwrap().to_device(gpu.device()).unwrap();
    for i in 0..values.len() {
        if spoilt(i) {
            values[i] = values[i / (n * n) * n * n + i % n * n + i / n % n];
        }
    }
    let batch: usize = dims[..dims.len() - 2].iter().product();
    let status = Tensor::empty_on(Spec::new(Shape::new(&[batch]).unwrap(), DType::I32), gpu.device()).unwrap();
    let made = tridiagonal(gpu, upper, &given, &status, true).ok()?;
    let z = identities(&made.memory, n, n);
    made.back(&z).unwrap();
    let [diagonal, off] = [&made.diagonal, &made.off].map(|x| host(&made.memory, x, n));
    let (scale, q, status) =
        (host(&made.memory, &made.scale, 1), host(&made.memory, &z, n * n), status.to_vec::<i32>().unwrap());
    let mut worst = 0.0f64;
    for matrix in 0..batch {
        let a = &values[matrix * n * n..][..n * n];
        let bad = a.iter().any(|x| !x.is_finite());
        if n == 0 {
            continue;
        }
        assert_eq!(status[matrix], if bad { -1 } else { 0 });
        let [d, e] =
            [&diagonal, &off].map(|x| x[matrix * n..][..n].iter().map(|x| x * scale[matrix]).collect::<Vec<_>>());
        let q = &q[matrix * n * n..][..n * n];
        assert!(e.last().is_none_or(|last| *last == 0.0));
        if bad {
            assert!(d.iter().chain(&e).all(|x| *x == 0.0));
            continue;
        }
        // Row r of q is column r of Q.
        let mut error = vec![0.0; n * n];
        let element = |r: usize, j: usize| if r < n { q[r * n + j] } else { 0.0 };
        for r in 0..n {
            let product: Vec<f64> = (0..n)
                .map(|j| {
                    let before = if r > 0 { e[r - 1] * element(r - 1, j) } else { 0.0 };
                    before + d[r] * element(r, j) + e[r] * element(r + 1, j)
                })
                .collect();
            for i in 0..n {
                let factor = q[r * n + i];
                (0..n).for_each(|j| error[i * n + j] += factor * product[j]);
            }
        }
        error.iter_mut().zip(a).for_each(|(error, a)| *error -= a);
        let floor = dtype.min_positive() / dtype.epsilon();
        let eps = made.memory.dtype.epsilon() * n as f64;
        let ratio = norm(&error, n) / (norm(a, n).max(floor) * eps);
        let own = orthogonality(q, n, n) / eps;
        worst = worst.max(if ratio.is_nan() || own.is_nan() { f64::INFINITY } else { ratio.max(own) });
    }
    Some(worst)
}

#[test]
fn tridiagonal_form_of_every_kind_of_matrix() {
    for gpu in gpus() {
        for dtype in [DType::F32, DType::F64] {
            for spectrum in spectra(dtype) {
                for (dims, upper) in [([3, 17, 17], false), ([2, 70, 70], true), ([1, 130, 130], false)] {
                    let Some(ratio) = ratios(gpu, dtype, &dims, spectrum, upper) else { continue };
                    assert!(ratio < 10.0, "{} {dtype} {dims:?} {spectrum:?}: {ratio}", gpu.device());
                }
            }
        }
    }
}

#[test]
fn tridiagonal_form_of_every_size() {
    for gpu in gpus() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for n in [0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 48, 49, 63, 64, 65, 66, 100, 129, 257] {
                if dtype == DType::BF16 && n > 66 {
                    continue;
                }
                for batch in [0, 1, 3] {
                    let Some(ratio) = ratios(gpu, dtype, &[batch, n, n], Spectrum::Random, n % 2 == 0) else {
                        continue;
                    };
                    assert!(ratio < 10.0, "{} {dtype} {batch}x{n}: {ratio}", gpu.device());
                }
            }
        }
    }
}

/// The worst of `‖A − U·B·Vᵀ‖ / (m·‖A‖·ε)` and of the orthogonality of `U` and `V` of a batch.
fn ratios_of_bidiagonal(gpu: &'static Gpu, dtype: DType, dims: &[usize], spectrum: Spectrum) -> Option<f64> {
    let spec = Spec::new(Shape::new(dims).unwrap(), dtype);
    let a = fill(&spec, Fill::Matrices(Structure::General, spectrum), 7).unwrap();
    let values = a.to_f64_vec().unwrap();
    let [rows, columns] = [dims[dims.len() - 2], dims[dims.len() - 1]];
    let swapped = rows < columns;
    let (m, n) = (rows.max(columns), rows.min(columns));
    let batch: usize = dims[..dims.len() - 2].iter().product();
    let status = Tensor::empty_on(Spec::new(Shape::new(&[batch]).unwrap(), DType::I32), gpu.device()).unwrap();
    let made = bidiagonal(gpu, &a.to_device(gpu.device()).unwrap(), swapped, &status, true).ok()?;
    let (left, right) = (identities(&made.memory, m, m), identities(&made.memory, n, n));
    made.back_left(&left, m).unwrap();
    made.back_right(&right).unwrap();
    let [diagonal, off] = [&made.diagonal, &made.off].map(|x| host(&made.memory, x, n));
    let (u, v) = (host(&made.memory, &left, m * m), host(&made.memory, &right, n * n));
    let (scale, status) = (host(&made.memory, &made.scale, 1), status.to_vec::<i32>().unwrap());
    let mut worst = 0.0f64;
    for matrix in 0..batch {
        let given = &values[matrix * m * n..][..m * n];
        let bad = given.iter().any(|x| !x.is_finite());
        assert_eq!(status[matrix], if bad { -1 } else { 0 });
        let [d, e] =
            [&diagonal, &off].map(|x| x[matrix * n..][..n].iter().map(|x| x * scale[matrix]).collect::<Vec<_>>());
        assert!(e.last().is_none_or(|last| *last == 0.0));
        if bad {
            assert!(d.iter().chain(&e).all(|x| *x == 0.0));
            continue;
        }
        if n == 0 {
            continue;
        }
        // Rows of u and v are columns of U and V.
        let (u, v) = (&u[matrix * m * m..][..m * m], &v[matrix * n * n..][..n * n]);
        let mut error: Vec<f64> =
            (0..m * n).map(|i| if swapped { -given[i % n * m + i / n] } else { -given[i] }).collect();
        for r in 0..n {
            let next = |j: usize| if r + 1 < n { v[(r + 1) * n + j] } else { 0.0 };
            let product: Vec<f64> = (0..n).map(|j| d[r] * v[r * n + j] + e[r] * next(j)).collect();
            for i in 0..m {
                (0..n).for_each(|j| error[i * n + j] += u[r * m + i] * product[j]);
            }
        }
        let size = norm(given, columns).max(norm(given, columns)).max(dtype.min_positive() / dtype.epsilon());
        let eps = made.memory.dtype.epsilon() * m as f64;
        let mut all = [norm(&error, n) / (size * eps), orthogonality(u, m, m) / eps, orthogonality(v, n, n) / eps];
        all.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f64::INFINITY);
        worst = all.into_iter().fold(worst, f64::max);
    }
    Some(worst)
}

#[test]
fn bidiagonal_form_of_every_kind_of_matrix() {
    for gpu in gpus() {
        for dtype in [DType::F32, DType::F64] {
            for spectrum in spectra(dtype) {
                for dims in [[3, 17, 17], [2, 20, 33], [2, 70, 50], [1, 110, 100]] {
                    let Some(ratio) = ratios_of_bidiagonal(gpu, dtype, &dims, spectrum) else { continue };
                    assert!(ratio < 10.0, "{} {dtype} {dims:?} {spectrum:?}: {ratio}", gpu.device());
                }
            }
        }
    }
}

#[test]
fn bidiagonal_form_of_every_size() {
    let sizes = [[0, 0], [0, 3], [4, 0], [1, 1], [5, 1], [1, 7], [2, 2], [3, 2], [5, 5], [8, 8], [16, 17], [33, 31]];
    let more =
        [[48, 48], [63, 65], [64, 64], [100, 7], [100, 100], [129, 65], [300, 40], [1100, 3], [3, 1100], [130, 257]];
    for gpu in gpus() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for [m, n] in sizes.iter().chain(&more).copied() {
                // A large U takes long to judge.
                if m.max(n) > 1000 && dtype != DType::F32 || m.max(n) > 66 && dtype == DType::BF16 {
                    continue;
                }
                for batch in [0, 1, 3] {
                    let Some(ratio) = ratios_of_bidiagonal(gpu, dtype, &[batch, m, n], Spectrum::Random) else {
                        continue;
                    };
                    assert!(ratio < 10.0, "{} {dtype} {batch}x{m}x{n}: {ratio}", gpu.device());
                }
            }
        }
    }
}

/// `1 − Vᵀ·T·V` is what applying the reflectors one by one gives, and products by the vendor's library give the same.
#[test]
fn groups_of_reflectors() {
    for gpu in gpus() {
        let n = 66;
        let spec = Spec::new(Shape::new(&[1, n, n]).unwrap(), DType::F32);
        let a = fill(&spec, Fill::Matrices(Structure::Symmetric, Spectrum::Random), 3).unwrap();
        let status = Tensor::empty_on(Spec::new(Shape::new(&[1]).unwrap(), DType::I32), gpu.device()).unwrap();
        let made = tridiagonal(gpu, false, &a.to_device(gpu.device()).unwrap(), &status, true).unwrap();
        let (memory, reflectors) = (&made.memory, &made.reflectors);
        let z = identities(memory, n, n);
        made.back(&z).unwrap();
        let expected = host(memory, &z, n * n);
        let (size, stride) = (64, reflectors.stride);
        let stored = reflectors.v.to_f64_vec().unwrap();
        let v = |r: usize, i: usize| if i > r { stored[r * stride + i] } else { 0.0 };
        let dot = |r: usize, s: usize| (0..n).map(|i| v(r, i) * v(s, i)).sum::<f64>();
        let gram: Vec<f64> = (0..size * size).map(|e| dot(e / size, e % size)).collect();
        let gram = Tensor::from_f64(&gram, &[1, size, size], DType::F32).unwrap().to_device(gpu.device()).unwrap();
        let elem = memory.elem().unwrap();
        let mut groups = Groups::new(gpu, [&reflectors.v, &reflectors.tau], [size, size, 1], elem).unwrap();
        groups.gram = gram;
        groups.triangle(0..size).unwrap();
        let t = groups.t.to_f64_vec().unwrap();
        for row in 0..n {
            let weights: Vec<f64> = (0..size).map(|r| (0..size).map(|s| t[r * size + s] * v(s, row)).sum()).collect();
            for i in 0..n {
                let own = f64::from(row == i) - (0..size).map(|r| weights[r] * v(r, i)).sum::<f64>();
                assert!((own - expected[row * n + i]).abs() < 1e-5, "{}: {row} {i}", gpu.device());
            }
        }
    }
}

/// Large matrices, whose way back is by products where the device has them, against products with a vector.
#[test]
fn products_with_long_rows() {
    for gpu in gpus() {
        let probe = Memory { gpu, dtype: DType::F32, batch: 1 };
        let (lines, m) = (5, 2100usize);
        for (dtype, count) in [(DType::F32, 70), (DType::F32, 300), (DType::F64, 70)] {
            if !gpu.supports(dtype) {
                continue;
            }
            let memory = Memory { dtype, ..probe };
            let given = [count, m].map(|x| x.next_multiple_of(64));
            let reflectors = Reflectors::new(&memory, [count, count, given[1], 1], true).unwrap();
            let spec = Spec::new(Shape::new(&[1, count, m]).unwrap(), dtype);
            let rows = fill(&spec, Fill::Normal, 3).unwrap().to_f64_vec().unwrap();
            let mut v = vec![0.0; reflectors.v.numel()];
            let mut tau = vec![0.0; reflectors.tau.numel()];
            for r in 0..count {
                (r + 1..m).for_each(|i| v[r * given[1] + i] = if i == r + 1 { 1.0 } else { rows[r * m + i] });
                tau[r] = 2.0 / v[r * given[1]..][..given[1]].iter().map(|x| x * x).sum::<f64>();
            }
            let put = |x: &[f64], like: &Tensor| {
                Tensor::from_f64(x, like.shape().dims(), dtype).unwrap().to_device(gpu.device()).unwrap()
            };
            let reflectors = Reflectors { v: put(&v, &reflectors.v), tau: put(&tau, &reflectors.tau), ..reflectors };
            let z = identities(&memory, lines, m);
            reflectors.apply(&memory, &z, [lines, m]).unwrap();
            let found = host(&memory, &z, lines * m);
            for line in 0..lines {
                let mut row: Vec<f64> = (0..m).map(|i| f64::from(i == line)).collect();
                for r in (0..count).rev() {
                    let v = &v[r * given[1]..];
                    let weight = tau[r] * row.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
                    row.iter_mut().zip(v).for_each(|(a, b)| *a -= weight * b);
                }
                let error = row.iter().zip(&found[line * m..]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(error < 1e3 * dtype.epsilon(), "{} {dtype} {count}: {error}", gpu.device());
            }
        }
    }
}
