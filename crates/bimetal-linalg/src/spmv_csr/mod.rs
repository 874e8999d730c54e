//! A sparse matrix times a vector: `yᵢ = Σₑ valuesₑ·x[columnsₑ]` for `e` from `pointersᵢ` to `pointersᵢ₊₁` (CSR).

mod cpu;
mod gpu;
mod reference;

use crate::lanes::DTYPES;
use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Device, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&SpmvCsr];

/// The dtypes of row pointers and column indices.
const INDICES: [DType; 2] = [DType::I32, DType::U32];

/// Most rows, columns and elements: indices are of 32 bits.
const MOST: usize = i32::MAX as usize;

/// The result of [`spmv_csr_unchecked`].
#[derive(Clone, Debug)]
pub struct Spmv {
    /// `[m]`: the product. Rows whose pointers fall or pass the number of elements, and rows with a column that does not
    /// exist, are NaN.
    pub y: Tensor,
    /// i32, a scalar: 0, or 1 for a matrix that is not well-formed.
    pub status: Tensor,
}

struct SpmvCsr;

struct Multiply;

/// Extents: `m` rows, `n` columns and `count` elements.
#[derive(Clone, Copy, Debug)]
struct Dims {
    m: usize,
    n: usize,
    count: usize,
}

/// The product of a sparse matrix of compressed rows (CSR) with a vector (the Sparse BLAS's `csrmv`): element `e` of row `i`,
/// for `e` from `pointers[i]` to `pointers[i + 1]`, is `values[e]` in column `columns[e]`.
///
/// `pointers` is `[m + 1]` and `columns` `[count]`, both i32 or both u32; `values` `[count]` and `x` `[n]` have one dtype:
/// f32, f64, f16 or bf16 (summed in f32); the result is `[m]`. Columns of a row may come in any order, and several times:
/// then they are added up. On a GPU rows of more than 1024 or 4096 elements are shared by cubes, and shorter ones by 4 to 64
/// units as long as the mean row is; on a CPU threads take equal numbers of elements. The order of the sums depends on the
/// matrix alone.
///
/// # Errors
/// Extents or dtypes that do not go together; row pointers that do not begin at 0, fall, or do not end at `count`; a column
/// that does not exist. Nothing out of bounds is read.
///
/// ```
/// # use bimetal_linalg::spmv_csr;
/// # use bimetal_core::Tensor;
/// // [[1, 0, 2], [0, 0, 0], [0, 3, 0]]
/// let pointers = Tensor::from_slice(&[0i32, 2, 2, 3], &[4])?;
/// let columns = Tensor::from_slice(&[0i32, 2, 1], &[3])?;
/// let values = Tensor::from_slice(&[1.0f32, 2.0, 3.0], &[3])?;
/// let x = Tensor::from_slice(&[1.0f32, 10.0, 100.0], &[3])?;
/// assert_eq!(spmv_csr(&pointers, &columns, &values, &x)?.to_vec::<f32>()?, [201.0, 0.0, 30.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn spmv_csr(pointers: &Tensor, columns: &Tensor, values: &Tensor, x: &Tensor) -> Result<Tensor> {
    let made = spmv_csr_unchecked(pointers, columns, values, x)?;
    ensure(&made.status, pointers, columns, x.numel())?;
    Ok(made.y)
}

/// [`spmv_csr`] without waiting for the device: whether the matrix is well-formed is told by the status.
///
/// # Errors
/// Extents or dtypes that do not go together.
///
/// ```
/// # use bimetal_linalg::spmv_csr_unchecked;
/// # use bimetal_core::Tensor;
/// let pointers = Tensor::from_slice(&[0u32, 1, 2], &[3])?;
/// let columns = Tensor::from_slice(&[0u32, 7], &[2])?;
/// let ones = Tensor::from_slice(&[1.0f64, 1.0], &[2])?;
/// let made = spmv_csr_unchecked(&pointers, &columns, &ones, &ones)?;
/// assert_eq!(made.status.to_vec::<i32>()?, [1]);
/// assert!(made.y.to_vec::<f64>()?[1].is_nan());
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn spmv_csr_unchecked(pointers: &Tensor, columns: &Tensor, values: &Tensor, x: &Tensor) -> Result<Spmv> {
    let mut made = op::run(&Multiply, &[pointers, columns, values, x])?.into_iter();
    let mut next = || made.next().expect("there are two outputs");
    Ok(Spmv { y: next(), status: next() })
}

/// [`spmv_csr_unchecked`] into existing tensors on the operands' device.
///
/// # Errors
/// As [`spmv_csr_unchecked`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_linalg::{spmv_csr_into, spmv_csr_unchecked};
/// # use bimetal_core::Tensor;
/// let (pointers, columns) = (Tensor::from_slice(&[0u32, 1], &[2])?, Tensor::from_slice(&[0u32], &[1])?);
/// let two = Tensor::from_slice(&[2.0f32], &[1])?;
/// let mut out = spmv_csr_unchecked(&pointers, &columns, &two, &two)?;
/// spmv_csr_into(&pointers, &columns, &two, &two, &mut out)?;
/// assert_eq!(out.y.to_vec::<f32>()?, [4.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn spmv_csr_into(
    pointers: &Tensor,
    columns: &Tensor,
    values: &Tensor,
    x: &Tensor,
    out: &mut Spmv,
) -> Result<()> {
    op::run_into(&Multiply, &[pointers, columns, values, x], &mut [&mut out.y, &mut out.status])
}

/// Names what is wrong with a matrix that has a status.
fn ensure(status: &Tensor, pointers: &Tensor, columns: &Tensor, n: usize) -> Result<()> {
    if status.to_vec::<i32>()? == [0] {
        return Ok(());
    }
    let count = columns.numel();
    let read = |t: &Tensor| t.to_device(Device::Cpu)?.to_f64_vec();
    let (pointers, columns) = (read(pointers)?, read(columns)?);
    let wrong = |argument, expected: String| Err(Error::argument("spmv_csr", argument, expected));
    if pointers[0] != 0.0 {
        return wrong("pointers", format!("0 for the first, got {}", pointers[0]));
    }
    if let Some(i) = pointers.windows(2).position(|pair| pair[0] > pair[1]) {
        return wrong("pointers", format!("numbers that do not fall, got {} and {} at {i}", pointers[i], pointers[i + 1]));
    }
    match columns.iter().position(|&c| c < 0.0 || c >= n as f64) {
        Some(e) => wrong("columns", format!("indices below {n}, got {} at {e}", columns[e])),
        None => wrong("pointers", format!("the number of elements, {count}, for the last, got {}", pointers[pointers.len() - 1])),
    }
}

impl Dims {
    fn of(inputs: &[&Spec]) -> Result<Self> {
        let op = "spmv_csr";
        let [pointers, columns, values, x] = inputs else {
            return Err(Error::argument(op, "inputs", format!("4 tensors, got {}", inputs.len())));
        };
        let names = ["pointers", "columns", "values", "x"];
        for (input, name) in inputs.iter().zip(names) {
            if input.shape.rank() != 1 {
                return Err(Error::argument(op, name, format!("a vector, got {}", input.shape)));
            }
        }
        for (input, accepted, name) in [
            (pointers, &INDICES[..], names[0]),
            (columns, &[pointers.dtype][..], names[1]),
            (values, &DTYPES[..], names[2]),
            (x, &[values.dtype][..], names[3]),
        ] {
            if !accepted.contains(&input.dtype) {
                return Err(Error::dtype(op, name, input.dtype, accepted));
            }
        }
        let (count, n) = (columns.numel(), x.numel());
        if pointers.numel() == 0 {
            return Err(Error::argument(op, names[0], "a pointer more than there are rows, got none"));
        }
        if values.numel() != count {
            return Err(Error::argument(op, names[2], format!("{count} as columns has, got {}", values.numel())));
        }
        let m = pointers.numel() - 1;
        if [m, n, count].iter().any(|extent| *extent > MOST) {
            let expected = format!("at most {MOST} rows, columns and elements, got {m}, {n} and {count}");
            return Err(Error::argument(op, names[0], expected));
        }
        Ok(Self { m, n, count })
    }
}

impl Op for Multiply {
    fn name(&self) -> &'static str {
        "spmv_csr"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let Dims { m, .. } = Dims::of(inputs)?;
        let y = Spec::new(Shape::new(&[m])?, inputs[2].dtype);
        Ok([y, Spec::new(Shape::new(&[])?, DType::I32)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        Cost::streaming(inputs, &outputs, (2 * inputs[2].numel() as u64).max(1))
    }

    fn tolerance(&self, inputs: &[&Spec]) -> Tolerance {
        Tolerance {
            ulps: 0.6,
            scaled: 4.0 + (inputs[2].numel().max(2) as f64).log2(),
            why: "sums in f32 (f64 for f64) by parts of a row, and the rounding of the result",
        }
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        reference::spmv_csr(inputs)
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let specs: Vec<&Spec> = inputs.iter().map(|t| t.spec()).collect();
        cpu::spmv_csr(Dims::of(&specs)?, inputs, outputs)
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        let specs: Vec<&Spec> = inputs.iter().map(|t| t.spec()).collect();
        gpu::spmv_csr(gpu, Dims::of(&specs)?, inputs, outputs)
    }

    fn peer(&self, inputs: &[&Spec]) -> Peer {
        let Ok(Dims { m, n, .. }) = Dims::of(inputs) else { return Peer::default() };
        if inputs[0].dtype != DType::I32 || !matches!(inputs[2].dtype, DType::F32 | DType::F64) {
            return Peer::default();
        }
        let setup = format!("torch.sparse_csr_tensor(x0, x1, x2, ({m}, {n}))");
        Peer { torch: Some("torch.mv(s, x3, out=y0)".into()), torch_setup: Some(setup.into()), numpy: None }
    }
}

impl Definition for SpmvCsr {
    fn name(&self) -> &'static str {
        "spmv_csr"
    }

    fn doc(&self) -> &'static str {
        "a sparse matrix of compressed rows times a vector"
    }

    fn dtypes(&self) -> &'static [DType] {
        &DTYPES
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    /// Row pointers of these extents, sixteen elements for each row, as many columns as rows.
    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        match shape.dims() {
            [pointers] if (2..MOST / 16).contains(pointers) => {
                let m = pointers - 1;
                let count = 16 * m;
                Ok(case([m, m, count], Fill::Offsets { last: count, even: true }, DType::I32, Role::Bench))
            }
            _ => Err(Error::argument("spmv_csr", "pointers", format!("a vector of 2 to {} elements, got {shape}", MOST / 16))),
        }
    }
}

fn case([m, n, count]: [usize; 3], pointers: Fill, index: DType, role: Role) -> Case {
    let inputs = vec![
        Input::new(&[m + 1], pointers).of(index),
        Input::new(&[count], Fill::Integers(0, (n as i64 - 1).max(0))).of(index),
        Input::new(&[count], Fill::Normal),
        Input::new(&[n], Fill::Normal),
    ];
    crate::system::labelled(Multiply, inputs, role, &format!("{m}x{n} of {count}"))
}

fn cases() -> Vec<Case> {
    let new = |dims: [usize; 3], even, index, role| {
        let tag = if even { "even" } else { "uneven" };
        case(dims, Fill::Offsets { last: dims[2], even }, index, role).tagged(&format!("{tag} {index}"))
    };
    let mut cases = vec![
        new([100_000, 100_000, 1_000_000], true, DType::I32, Role::Bench),
        new([100_000, 100_000, 1_000_000], false, DType::I32, Role::Bench),
        new([1_000_000, 1_000_000, 5_000_000], true, DType::I32, Role::Bench),
        new([10_000, 10_000, 4_000_000], true, DType::I32, Role::Bench),
        new([1000, 10_000, 20_000], true, DType::I32, Role::Bench),
    ];
    let agree = |dims, even, index| new(dims, even, index, Role::Agree);
    for [m, n, count] in [
        [0, 0, 0], [0, 5, 0], [3, 0, 0], [1, 1, 0], [1, 1, 1], [1, 7, 5], [7, 1, 3], [5, 5, 16], [16, 17, 31], [33, 9, 100],
        [100, 65, 129], [129, 129, 1000], [1000, 50, 300],
    ] {
        cases.push(agree([m, n, count], true, DType::I32));
        cases.push(agree([m, n, count], false, DType::U32));
    }
    // Rows of means around the borders between numbers of units, and rows that cubes share.
    for [m, count] in [[300, 2400], [300, 2500], [100, 3100], [100, 3300], [2, 4097], [9, 30_000], [1000, 20_000]] {
        cases.push(agree([m, 200, count], true, DType::U32));
        cases.push(agree([m, 200, count], false, DType::I32));
    }
    let odd = |pointers, columns: Fill, values, tag: &str| {
        let mut made = case([20, 30, 200], pointers, DType::I32, Role::Agree).tagged(tag);
        (made.inputs[1].fill, made.inputs[2].fill) = (columns, values);
        made
    };
    let (pointers, columns) = (Fill::Offsets { last: 200, even: true }, Fill::Integers(0, 29));
    cases.push(odd(pointers, columns, Fill::Specials, "specials"));
    cases.push(odd(pointers, Fill::Constant(29.0), Fill::Normal, "one column"));
    cases.push(odd(pointers, Fill::Integers(-1, 30), Fill::Normal, "wrong columns"));
    cases.push(odd(Fill::Integers(-20, 220), columns, Fill::Normal, "wrong pointers"));
    cases.push(odd(Fill::Offsets { last: 199, even: false }, columns, Fill::Normal, "short of the end"));
    // Rows that fall, and between them rows of all elements: more than cubes have places for.
    let mut wrong = case([60, 30, 5000], Fill::Integers(0, 5000), DType::I32, Role::Agree).tagged("falling, long");
    wrong.inputs[1].fill = columns;
    cases.push(wrong);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multiply(pointers: &[i32], columns: &[i32], n: usize) -> Result<Tensor> {
        let values = vec![1.0f32; columns.len()];
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        spmv_csr(
            &Tensor::from_slice(pointers, &[pointers.len()])?,
            &Tensor::from_slice(columns, &[columns.len()])?,
            &Tensor::from_slice(&values, &[values.len()])?,
            &Tensor::from_slice(&x, &[n])?,
        )
    }

    #[test]
    fn malformed_matrices_are_named() {
        assert_eq!(multiply(&[0, 1, 3], &[2, 0, 2], 3).unwrap().to_vec::<f32>().unwrap(), [2.0, 2.0]);
        let argument = |found: Result<Tensor>| match found {
            Err(Error::Argument { argument, expected, .. }) => (argument, expected),
            other => panic!("{other:?}"),
        };
        assert_eq!(argument(multiply(&[1, 1, 3], &[2, 0, 2], 3)).0, "pointers");
        assert!(argument(multiply(&[0, 2, 1], &[2, 0, 2], 3)).1.contains("2 and 1 at 1"));
        assert_eq!(argument(multiply(&[0, 1, 4], &[2, 0, 2], 3)).0, "pointers");
        assert_eq!(argument(multiply(&[0, -1, 3], &[2, 0, 2], 3)).0, "pointers");
        assert!(argument(multiply(&[0, 1, 3], &[2, 0, 3], 3)).1.contains("got 3 at 2"));
        assert_eq!(argument(multiply(&[0, 1, 3], &[2, -1, 2], 3)).0, "columns");
        assert_eq!(argument(multiply(&[0, 1], &[0], 0)).0, "columns");
        assert_eq!(argument(multiply(&[], &[], 0)).0, "pointers");
        assert_eq!(argument(multiply(&[0], &[0], 1)).0, "pointers");
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let case = new_case();
        let inputs = bimetal_core::verify::inputs(&case, DType::F32, 3).unwrap();
        let bits = || spmv_csr(&inputs[0], &inputs[1], &inputs[2], &inputs[3]).unwrap().to_vec::<f32>().unwrap();
        let pool = |n| bimetal_core::cpu::parallel::with_threads(n, bits).unwrap();
        assert_eq!(pool(1), pool(3));
    }

    fn new_case() -> Case {
        case([500, 300, 90_000], Fill::Offsets { last: 90_000, even: false }, DType::I32, Role::Agree)
    }
}
