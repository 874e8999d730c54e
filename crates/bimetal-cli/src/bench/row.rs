//! One row of the report: one case of one operation on one device.

use serde::Serialize;
use std::collections::BTreeMap;

/// Times are in seconds. A row that is wrong or skipped has no time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The operation.
    pub op: &'static str,
    /// Its domain.
    pub domain: &'static str,
    /// The case: shapes and attributes.
    pub case: String,
    /// The dtype under test.
    pub dtype: &'static str,
    /// The device.
    pub device: String,
    /// Median of the samples; a sample is the mean of `calls` calls.
    pub median_s: Option<f64>,
    /// The fastest sample.
    pub min_s: Option<f64>,
    /// Half the distance between the quartiles, relative to the median.
    pub spread: Option<f64>,
    /// Number of samples.
    pub samples: usize,
    /// Calls in a sample.
    pub calls: usize,
    /// Elements of the first input.
    pub elements: usize,
    /// Fewest bytes that must move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// The most device memory that tensors held during the run, its inputs and outputs included, where the runtime keeps
    /// an account.
    pub peak_bytes: Option<u64>,
    /// `bytes / median_s`, in 10⁹ per second.
    pub gbs: Option<f64>,
    /// `flops / median_s`, in 10⁹ per second.
    pub gflops: Option<f64>,
    /// Share of the limit: `max(bytes / copy bandwidth, flops / f32 rate) / median_s`. Above 1 where the data stays in
    /// a cache, which the copy bandwidth is not measured in.
    pub roofline: Option<f64>,
    /// Whether everything that the timed calls touch fits in the device's last-level cache.
    pub cached: bool,
    /// Relative error of the worst element of the timed run's outputs.
    pub error: Option<f64>,
    /// What was allowed for that element.
    pub tolerance: Option<f64>,
    /// Whether every element is within its tolerance.
    pub ok: bool,
    /// Each peer's `median_s` on the same inputs and the same metal.
    pub peers: BTreeMap<String, f64>,
    /// Why there is no row, where the device cannot run it.
    pub skipped: Option<String>,
    /// What was wrong, or why a peer has no time.
    pub notes: Vec<String>,
}

impl Row {
    /// Whether the two rows are of the same case.
    pub fn same_case(&self, other: &Self) -> bool {
        self.op == other.op && self.case == other.case && self.dtype == other.dtype
    }
}
