//! Histogram: `countᵢ = #{x : eᵢ ≤ x < eᵢ₊₁}` with `bins + 1` evenly spaced edges `e` from `lo` to `hi`, the last bin closed.

mod cpu;
mod gpu;
mod reference;

use bimetal_core::op::{self, Case, Cost, Definition, Expected, Fill, Input, Op, Peer, Role, Specs, Tolerance, Values};
use bimetal_core::{DType, Error, Gpu, Result, Shape, Spec, Tensor};

/// The operations of this family.
pub(crate) static OPS: &[&dyn Definition] = &[&Counts];

/// Most bins: their numbers must be exact in f32.
const MOST_BINS: usize = 1 << 24;

/// What the registry holds of [`histogram`].
struct Counts;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Histogram {
    bins: usize,
    lo: f64,
    hi: f64,
}

/// How many elements of `x` lie in each of `bins` bins of equal width between `lo` and `hi`: i64, shape `[bins]`.
///
/// `x` is f32, f16 or bf16 of any shape. The edges are `lo + i·((hi − lo)/bins)` in f64, with `hi` as the last, each
/// rounded to f32: those of `np.histogram(x, bins, (lo, hi))` for f32. An element is counted in the last bin whose lower
/// edge is not above it; the upper edge of the last bin belongs to that bin. Elements outside of the edges and NaN are
/// not counted.
///
/// # Errors
/// No bins or more than 2²⁴, bounds that are not finite f32 with `lo < hi`, or another dtype.
///
/// ```
/// # use bimetal_ops::histogram;
/// # use bimetal_core::Tensor;
/// let x = Tensor::from_slice(&[0.0f32, 0.1, 0.5, 1.0, 1.5, f32::NAN], &[6])?;
/// assert_eq!(histogram(&x, 2, 0.0, 1.0)?.to_vec::<i64>()?, [2, 2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn histogram(x: &Tensor, bins: usize, lo: f64, hi: f64) -> Result<Tensor> {
    op::run_one(&Histogram { bins, lo, hi }, &[x])
}

/// [`histogram`] into an existing i64 tensor of shape `[bins]` on `x`'s device.
///
/// # Errors
/// As [`histogram`], or an output of another shape, dtype or device.
///
/// ```
/// # use bimetal_ops::histogram_into;
/// # use bimetal_core::{DType, Tensor};
/// let x = Tensor::from_slice(&[1.0f32, 2.0, 2.5], &[3])?;
/// let mut counts = Tensor::zeros(&[3], DType::I64)?;
/// histogram_into(&x, 3, 0.0, 3.0, &mut counts)?;
/// assert_eq!(counts.to_vec::<i64>()?, [0, 1, 2]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub fn histogram_into(x: &Tensor, bins: usize, lo: f64, hi: f64, out: &mut Tensor) -> Result<()> {
    op::run_into(&Histogram { bins, lo, hi }, &[x], &mut [out])
}

/// What the kernels need of the bins.
struct Bins {
    /// The edges, one more than there are bins.
    edges: Vec<f32>,
    /// Bins per unit of x.
    scale: f32,
    /// `(x − e₀)·scale` is no further than this from the exact position in bins, where it is a sixteenth or less: the
    /// bin of that position is then the right one or a neighbour of it. Infinite where the position tells nothing.
    error: f32,
}

impl Histogram {
    fn bins(&self) -> Bins {
        let Self { bins, lo, hi } = *self;
        let step = (hi - lo) / bins as f64;
        let edge = |i: usize| if i == bins { hi as f32 } else { (i as f64 * step + lo) as f32 };
        let scale = 1.0 / step;
        let epsilon = f64::from(f32::EPSILON);
        // Half a unit in the last place for each of the two edges and for each of the position's three roundings.
        let error = epsilon * (lo.abs().max(hi.abs()) * scale + bins as f64 * 2.0);
        let usable = error <= 0.0625 && hi - lo < 1e38 && (1e-38..1e38).contains(&scale);
        Bins {
            edges: (0..=bins).map(edge).collect(),
            scale: scale as f32,
            error: if usable { error as f32 } else { f32::INFINITY },
        }
    }
}

impl Op for Histogram {
    fn name(&self) -> &'static str {
        "histogram"
    }

    fn outputs(&self, inputs: &[&Spec]) -> Result<Specs> {
        let [x] = inputs else {
            return Err(Error::argument(self.name(), "inputs", format!("1 tensor, got {}", inputs.len())));
        };
        if !DType::FLOATS.contains(&x.dtype) {
            return Err(Error::dtype(self.name(), "x", x.dtype, &DType::FLOATS));
        }
        if !(1..=MOST_BINS).contains(&self.bins) {
            return Err(Error::argument(self.name(), "bins", format!("1 to {MOST_BINS}, got {}", self.bins)));
        }
        let representable = (self.lo as f32).is_finite() && (self.hi as f32).is_finite();
        if !(representable && self.lo < self.hi) {
            let expected = format!("finite f32 bounds with lo < hi, got {} and {}", self.lo, self.hi);
            return Err(Error::argument(self.name(), "lo, hi", expected));
        }
        Ok([Spec::new(Shape::new(&[self.bins])?, DType::I64)].into_iter().collect())
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        Cost::streaming(inputs, &self.outputs(inputs).unwrap_or_default(), 4 * inputs[0].numel() as u64)
    }

    fn tolerance(&self, _inputs: &[&Spec]) -> Tolerance {
        Tolerance::EXACT
    }

    fn reference(&self, inputs: &[Values]) -> Vec<Expected> {
        vec![reference::histogram(&inputs[0].data, self.bins, self.lo, self.hi)]
    }

    fn cpu(&self, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        cpu::histogram(&self.bins(), inputs[0], outputs[0])
    }

    fn gpu(&self, gpu: &Gpu, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
        gpu::histogram(gpu, self, inputs[0], outputs[0])
    }

    fn peer(&self, _inputs: &[&Spec]) -> Peer {
        let Self { bins, lo, hi } = self;
        Peer {
            torch: Some(format!("y0.copy_(torch.histc(x0, {bins}, {lo:?}, {hi:?}))").into()),
            numpy: Some(format!("np.copyto(y0, np.histogram(x0, {bins}, ({lo:?}, {hi:?}))[0])").into()),
            ..Peer::default()
        }
    }
}

impl Definition for Counts {
    fn name(&self) -> &'static str {
        "histogram"
    }

    fn doc(&self) -> &'static str {
        "counts of the elements in bins of equal width"
    }

    fn cases(&self) -> Vec<Case> {
        let case = |n: usize, bins, lo, hi, fill, role| {
            let tag = format!("{bins} bins {lo}..{hi}");
            Case::new(Histogram { bins, lo, hi }, vec![Input::new(&[n], fill)], role).tagged(&tag)
        };
        let agree = Role::Agree;
        let mut cases = vec![
            case(10_000_000, 256, -4.0, 4.0, Fill::Normal, Role::Bench),
            case(10_000_000, 10_000, -4.0, 4.0, Fill::Normal, Role::Bench),
            case(1000, 256, -4.0, 4.0, Fill::Normal, Role::Bench),
        ];
        for n in [0, 1, 2, 7, 15, 17, 33, 1023, 4099, 300_007] {
            cases.push(case(n, 100, -2.0, 2.0, Fill::Normal, agree));
        }
        for bins in [1, 2, 7, 255, 4096, 4097, 70_000] {
            cases.push(case(5003, bins, -1.5, 2.0, Fill::Normal, agree));
        }
        // Every element on an edge, or next to one that is not representable.
        for (bins, lo, hi) in [(10, 0.0, 10.0), (100, 0.0, 10.0), (30, -3.0, 7.0), (7, -1.0, 8.3), (1000, -5.0, 15.0)] {
            cases.push(case(2001, bins, lo, hi, Fill::Integers(-6, 16), agree).tagged("on edges"));
        }
        // Bins narrower than the spacing of f32.
        cases.push(case(4001, 1000, 1e6, 1e6 + 1.0, Fill::Uniform(999_999.0, 1_000_002.0), agree).tagged("too narrow"));
        cases.push(case(4001, 64, 1000.0, 1001.0, Fill::Uniform(999.5, 1001.5), agree).tagged("far from zero"));
        cases.push(case(3001, 50, -3e38, 3e38, Fill::Specials, agree).tagged("specials"));
        cases.push(case(3001, 50, -100.0, 100.0, Fill::Specials, agree).tagged("specials"));
        cases.push(case(3001, 20, 0.0, 1e-37, Fill::Magnitudes(1e-40, 1e-36, true), agree).tagged("tiny"));
        cases.push(case(9001, 5, 0.0, 1.0, Fill::Constant(0.6), agree).tagged("one bin"));
        cases
    }

    fn at_shape(&self, shape: &Shape) -> Result<Case> {
        let op = Histogram { bins: 256, lo: -4.0, hi: 4.0 };
        Ok(Case::new(op, vec![Input::new(shape.dims(), Fill::Normal)], Role::Bench))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_opens_its_bin() {
        for (bins, lo, hi) in [(10, 0.0, 1.0), (256, -4.0, 4.0), (77, -0.3, 123.456)] {
            let edges = Histogram { bins, lo, hi }.bins().edges;
            let below: Vec<f32> = edges[1..bins].iter().map(|e| e.next_down()).collect();
            let x = [&edges[..bins], &below].concat();
            let counts = histogram(&Tensor::from_slice(&x, &[x.len()]).unwrap(), bins, lo, hi).unwrap();
            let counts = counts.to_vec::<i64>().unwrap();
            assert!(counts[..bins - 1].iter().all(|&c| c == 2) && counts[bins - 1] == 1, "{counts:?}");
        }
    }

    #[test]
    fn bad_bins_are_refused() {
        let x = Tensor::zeros(&[3], DType::F32).unwrap();
        assert!(histogram(&x, 0, 0.0, 1.0).is_err());
        assert!(histogram(&x, 4, 1.0, 1.0).is_err());
        assert!(histogram(&x, 4, 0.0, f64::INFINITY).is_err());
        assert!(histogram(&x, 4, f64::NAN, 1.0).is_err());
    }
}
