//! Memory that the reductions take.

use super::bidiagonal::{self, Bidiagonal};
use super::tridiagonal::{self, Tridiagonal};
use super::{Memory, PRODUCTS, Reflectors, STRIDE};
use crate::qr::gpu::blocked::group;
use crate::qr::gpu::wy::Groups;
use bimetal_core::gpu::counted;
use bimetal_core::{DType, Gpu};

impl Memory<'_> {
    fn bytes(&self, elements: usize) -> usize {
        counted(self.batch * elements * self.dtype.size())
    }

    fn marks(&self, elements: usize) -> usize {
        counted(self.batch * elements.div_ceil(super::MEASURED).clamp(1, super::load::PARTS) * 4)
    }
}

impl Reflectors {
    /// Bytes of [`Reflectors::new`], and at most of [`Reflectors::apply`] to so many lines of `m` elements.
    fn bytes(memory: &Memory, [most, stride]: [usize; 2], zeros: bool, [lines, m]: [usize; 2]) -> usize {
        let most = if zeros && memory.batch == 1 { most.next_multiple_of(group(most)) } else { most };
        let made = memory.bytes(most * stride) + memory.bytes(most);
        if m < PRODUCTS || !memory.gpu.has_gemm() || !stride.is_multiple_of(STRIDE) {
            return made;
        }
        let made = made + memory.bytes(lines * stride);
        made + Groups::bytes(memory.batch, [most, group(most), lines], memory.dtype.size())
    }
}

/// Bytes that the tridiagonal form of `batch` matrices of order `n` and the way back of all vectors take; on CUDA at most.
pub(crate) fn tridiagonal_bytes(gpu: &Gpu, dtype: DType, batch: usize, n: usize) -> usize {
    let memory = Memory { gpu, dtype, batch };
    let stride = n.next_multiple_of(if n > 256 { 64 } else { 4 }).max(1);
    let held = Tridiagonal::held(&memory, n, tridiagonal::PARAMS);
    let mut bytes = Reflectors::bytes(&memory, [n.max(1), stride], !held, [n, n]);
    bytes += 2 * memory.bytes(n) + memory.bytes(1);
    if !held {
        bytes += memory.bytes(2 * n) + memory.bytes(n * stride) + memory.marks(n * n) + memory.bytes(32);
    }
    bytes
}

/// Bytes that the bidiagonal form of `batch` matrices of `m`×`n`, `m` ≥ `n`, and the way back of `lines` left vectors and all right
/// ones take; on CUDA at most.
pub(crate) fn bidiagonal_bytes(gpu: &Gpu, dtype: DType, batch: usize, [m, n]: [usize; 2], lines: usize) -> usize {
    let memory = Memory { gpu, dtype, batch };
    let stride = |x: usize| x.next_multiple_of(if x > 256 { 64 } else { 4 }).max(4);
    let held = Bidiagonal::held(&memory, [m, n], bidiagonal::PARAMS);
    let mut bytes = Reflectors::bytes(&memory, [n.max(1), stride(m)], !held || m >= PRODUCTS, [lines, m]);
    bytes += Reflectors::bytes(&memory, [n.max(1), stride(n)], !held, [n, n]);
    bytes += 2 * memory.bytes(n) + memory.bytes(1);
    if !held {
        bytes += memory.bytes(m + n) + memory.bytes(m * stride(n)) + memory.bytes(m) + memory.marks(m * n);
    }
    bytes
}
