//! Products within factorisations, `D ← A·B` and `D ← D − A·B`, of matrices at any strides.

use super::blocked::{Extents, Lines, Panels, Path, Target, product};
use super::number::Number;
use super::plain;
use bimetal_core::cpu::simd::{Kernel, Level, Simd, dispatch_at};

/// A matrix to read, from its first element on.
#[derive(Clone, Copy)]
pub(crate) struct View<T> {
    pub(crate) p: *const T,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<T> View<T> {
    pub(crate) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// What happens to the product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Subtract,
}

/// A type whose products update matrices.
pub(crate) trait Updates: Copy {
    /// The product of an `m`×`k` and a `k`×`n` matrix, into rows of `d` that are `line` apart; on all threads if `shared`
    /// and large enough.
    ///
    /// # Safety
    /// The elements of the operands and of `d` exist, and `d` is not otherwise used.
    unsafe fn multiply(store: Store, extents: [usize; 3], operands: [View<Self>; 2], d: *mut Self, line: usize, shared: bool);
}

macro_rules! updates {
    ($($t:ty),*) => {$(
        impl Updates for $t {
            unsafe fn multiply(
                store: Store,
                extents: [usize; 3],
                operands: [View<Self>; 2],
                d: *mut Self,
                line: usize,
                shared: bool,
            ) {
                // SAFETY: the caller's promise.
                unsafe { multiply(store, extents, operands, d, line, shared) }
            }
        }
    )*};
}

updates!(f32, f64);

/// [`Updates::multiply`] of any type.
///
/// # Safety
/// As there.
unsafe fn multiply<T: Number<Sum = T, Out = T>>(
    store: Store,
    [m, k, n]: [usize; 3],
    [a, b]: [View<T>; 2],
    d: *mut T,
    line: usize,
    shared: bool,
) {
    if m * n == 0 || k == 0 {
        if store == Store::Replace {
            // SAFETY: the caller's promise.
            (0..m).for_each(|i| unsafe { d.add(i * line).write_bytes(0, n) });
        }
        return;
    }
    let a = Lines { ptr: a.p, line: a.row, step: a.column };
    let b = Lines { ptr: b.p, line: b.column, step: b.row };
    let (extents, level) = (Extents { m, n, k }, Level::current());
    let shared = shared && extents.is_shared_work();
    let path = plain::<T>(level, 1.0);
    // SAFETY: the caller's promise.
    unsafe {
        match store {
            Store::Replace => product(path, extents, a, b, Target(d), line, shared),
            Store::Subtract => product(Minus(path), extents, a, b, Target(d), line, shared),
        }
    }
}

/// A path whose sums are subtracted from what is there.
#[derive(Clone, Copy)]
struct Minus<E: Number<Sum = E, Out = E>>(super::Plain<E>);

impl<E: Number<Sum = E, Out = E>> Path for Minus<E> {
    type Source = E;
    type Unit = E;
    type Sum = E;
    type Out = E;
    const GROUP: usize = 1;

    fn tile(&self) -> (usize, usize) {
        self.0.tile()
    }

    unsafe fn pack(&self, left: bool, from: Lines<E>, lines: usize, k: usize, panel: *mut E) {
        // SAFETY: the caller's promise.
        unsafe { self.0.pack(left, from, lines, k, panel) }
    }

    unsafe fn multiply(&self, panels: Panels<E>, sums: *mut E, stride: usize, first: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.0.multiply(panels, sums, stride, first) }
    }

    unsafe fn finish(&self, sums: *mut E, out: *mut E, n: usize) {
        dispatch_at(self.0.level, Difference { sums, out, n });
    }
}

/// `out ← out − sums`.
struct Difference<E> {
    sums: *const E,
    out: *mut E,
    n: usize,
}

impl<E: Number<Sum = E, Out = E>> Kernel for Difference<E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lanes, minus) = (E::lanes::<S>(), E::splat(s, E::factor(-1.0)));
        let whole = self.n / lanes * lanes;
        // SAFETY: whoever made this promises `n` elements of both.
        unsafe {
            for i in (0..whole).step_by(lanes) {
                let (sums, out) = (E::load_sums(s, self.sums.add(i)), E::load_sums(s, self.out.add(i)));
                E::store_sums(s, self.out.add(i), E::fma(s, sums, minus, out));
            }
            for i in whole..self.n {
                let out = self.out.add(i);
                out.write(E::mul_add(self.sums.add(i).read(), E::factor(-1.0), out.read()));
            }
        }
    }
}
