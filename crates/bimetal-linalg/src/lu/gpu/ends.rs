//! What comes before and after LU of large matrices: columns come in as lines, factors, solutions and determinants go out.

use super::super::Kind;
use super::determinant::{logarithm, scaled, signum, unscaled};
use super::large::{Columns, UNITS, flags_of};
use super::lines::{self, Lines};
use crate::blocks::elems;
use crate::qr::gpu::moves::{TILE, TILE_UNITS};
use bimetal_core::{Result, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

impl Columns<'_> {
    /// Fills the lines from `first` on with the columns of matrices of `n`; flags of what is not finite, and how many for each.
    pub(super) fn load(&self, a: &Tensor, n: usize, first: usize) -> Result<(Handle, usize)> {
        let Self { work, lines, m, .. } = self;
        let flags = flags_of(*m, n);
        let handle = work.gpu.alloc(lines.batch * flags * 4);
        // SAFETY: the matrices have these extents, and there is a flag for each part of each.
        unsafe {
            lines::load::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(lines.batch * flags),
                CubeDim::new_1d(TILE_UNITS as u32),
                work.address(),
                a.gpu_arg()?,
                work.arg(),
                BufferArg::from_raw_parts(handle.clone(), lines.batch * flags),
                self.lines(),
                *m,
                n,
                first,
                work.double(),
                elems(work.gpu, a.dtype())?,
            );
        }
        Ok((handle, flags))
    }

    pub(super) fn identities(&self, n: usize) -> Result<()> {
        let work = &self.work;
        // SAFETY: there are `n` lines from line `n` on.
        unsafe {
            lines::identities::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes((self.lines.batch * n * n).div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS),
                work.address(),
                work.arg(),
                self.lines(),
                n,
                n,
                work.gpu.elem(work.dtype)?,
            );
        }
        Ok(())
    }

    pub(super) fn store(
        &self,
        out: &Tensor,
        status: &Tensor,
        [m, n]: [usize; 2],
        first: usize,
        positive_fails: bool,
    ) -> Result<()> {
        let work = &self.work;
        let elems = elems(work.gpu, out.dtype())?;
        // SAFETY: the lines from `first` on hold matrices of these extents.
        unsafe {
            lines::store::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(self.lines.batch * m.div_ceil(TILE) * n.div_ceil(TILE)),
                CubeDim::new_1d(TILE_UNITS as u32),
                work.address(),
                work.arg(),
                out.gpu_arg()?,
                status.gpu_arg()?,
                self.lines(),
                m,
                n,
                first,
                InputScalar::new(f64::NAN, elems[1]),
                positive_fails,
                elems,
            );
        }
        Ok(())
    }

    pub(super) fn determinants(&self, kind: Kind, n: usize, outputs: &[&mut Tensor], status: &Tensor) -> Result<()> {
        let work = &self.work;
        let elems = [work.gpu.elem(outputs[0].dtype())?, work.gpu.elem(work.dtype)?];
        // SAFETY: a value for each of the matrices.
        unsafe {
            from_diagonals::launch_unchecked(
                work.gpu.client(),
                work.gpu.cubes(work.count.div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS),
                work.address(),
                work.arg(),
                self.pivots(),
                outputs[0].gpu_arg()?,
                match outputs.get(1) {
                    Some(second) => second.gpu_arg()?,
                    None => work.dummy(),
                },
                status.gpu_arg()?,
                work.count as u32,
                self.lines(),
                n as u32,
                InputScalar::new(f64::NAN, elems[1]),
                InputScalar::new(f64::NEG_INFINITY, elems[1]),
                kind == Kind::Slogdet,
                work.double(),
                elems,
            );
        }
        Ok(())
    }
}

/// A unit for each matrix.
#[cube(launch_unchecked, address_type = "dynamic")]
fn from_diagonals<I: Float, A: Float>(
    w: &[A],
    pivots: &[i32],
    out: &mut [I],
    second: &mut [I],
    status: &mut [i32],
    count: u32,
    lines: Lines,
    n: u32,
    nan: InputScalar,
    below: InputScalar,
    #[comptime] signed: bool,
    #[comptime] double: bool,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let matrix = ABSOLUTE_POS;
    let n = n as usize;
    if matrix < count as usize {
        let mut product = A::new(1.0);
        for k in 0..n {
            let exchanged = pivots[matrix * n + k] != k as i32 + 1i32;
            product = select(exchanged, -product, product);
        }
        let found = status[matrix];
        if comptime!(signed) {
            let mut state = Array::<A>::new(2usize);
            state[0] = product;
            state[1] = A::new(0.0);
            for k in 0..n {
                scaled::<A>(&mut state, w[(matrix * lines.count + k) * lines.stride + k]);
            }
            product = signum::<A>(state[0]);
            let value = select(product == A::new(0.0), below.get::<A>(), logarithm::<A>(&state, double));
            second[matrix] = I::cast_from(select(found < 0i32, nan.get::<A>(), value));
        } else {
            let mut state = Array::<A>::new(2usize);
            state[0] = product;
            state[1] = A::new(0.0);
            for k in 0..n {
                scaled::<A>(&mut state, w[(matrix * lines.count + k) * lines.stride + k]);
            }
            product = unscaled::<A>(&state);
        }
        out[matrix] = I::cast_from(select(found < 0i32, nan.get::<A>(), product));
        status[matrix] = min(found, 0i32);
    }
}
