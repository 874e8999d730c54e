//! Walks the registry: every case of every operation, under every dtype, is launched on the recording GPU.

use crate::recorder::{self, Kernel, Recorded};
use crate::{DEVICE, connect};
use bimetal_core::op::{Case, run_into};
use bimetal_core::{DType, Error, Gpu, Tensor};
use bimetal_ops::registry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

/// What the walk gave.
#[derive(Debug, Default)]
pub struct Emission {
    /// Distinct sources by file name, `<operation>-<hash>.metal` after the first operation that launched each.
    pub kernels: BTreeMap<String, Arc<Kernel>>,
    /// Operations that launched at least one kernel.
    pub operations: BTreeSet<&'static str>,
    /// Launches in all.
    pub launches: usize,
    /// Dtypes that Metal lacks, as the operations reported them.
    pub unsupported: BTreeSet<String>,
    /// Cases that gave no kernel, or a kernel that Metal's limits or compiler refuse.
    pub failures: Vec<String>,
    seen: HashSet<usize>,
    hashes: HashSet<u64>,
}

/// Launches every case of every operation under every dtype.
pub fn all() -> Emission {
    let gpu = connect();
    let mut emission = Emission::default();
    for (_, definition) in registry::ops() {
        for case in definition.cases() {
            for &dtype in definition.dtypes() {
                if let Err(reason) = emission.add(gpu, definition.name(), &case, dtype) {
                    emission.failures.push(format!("{} {} {dtype}: {reason}", definition.name(), case.label));
                }
            }
        }
    }
    emission
}

impl Emission {
    fn add(&mut self, gpu: &Gpu, op: &'static str, case: &Case, dtype: DType) -> Result<(), String> {
        let run = catch_unwind(AssertUnwindSafe(|| launch(case, dtype)));
        let launches = recorder::take(gpu.client())?;
        let elements = match run {
            Ok(Ok(elements)) => elements,
            Ok(Err(Error::Unavailable { reason, .. })) if reason.contains(&format!("no {dtype} storage")) => {
                self.unsupported.insert(format!("{op} {dtype}"));
                return Ok(());
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the host side of the launch panicked".into()),
        };
        if launches.is_empty() && elements > 0 {
            return Err("nothing was launched".into());
        }
        self.keep(op, launches)
    }

    fn keep(&mut self, op: &'static str, launches: Vec<Recorded>) -> Result<(), String> {
        for launch in launches {
            let kernel = launch?;
            self.launches += 1;
            self.operations.insert(op);
            // The recorder keeps every kernel, so that an address stands for one of them.
            if !self.seen.insert(Arc::as_ptr(&kernel) as usize) {
                continue;
            }
            let hash = fnv1a(kernel.source.as_bytes());
            if self.hashes.insert(hash) {
                self.kernels.insert(format!("{op}-{hash:016x}.metal"), kernel);
            }
        }
        Ok(())
    }

    /// Writes the sources into `folder`, which holds nothing else afterwards.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
        let write = |(name, kernel): (&String, &Arc<Kernel>)| {
            let path = folder.join(name);
            fs::write(&path, &kernel.source)?;
            Ok(path)
        };
        self.kernels.iter().map(write).collect()
    }
}

/// Launches a case and gives the number of elements that it must write from inputs that are not empty.
fn launch(case: &Case, dtype: DType) -> Result<usize, Error> {
    let specs = case.specs(dtype);
    let expected = case.op.outputs(&specs.iter().collect::<Vec<_>>())?;
    let on_gpu = |spec| Tensor::empty_on(spec, DEVICE);
    let elements = if specs.iter().all(|s| s.numel() > 0) { expected.iter().map(|s| s.numel()).sum() } else { 0 };
    let inputs = specs.into_iter().map(on_gpu).collect::<Result<Vec<_>, _>>()?;
    let mut outputs = expected.into_iter().map(on_gpu).collect::<Result<Vec<_>, _>>()?;
    run_into(&*case.op, &inputs.iter().collect::<Vec<_>>(), &mut outputs.iter_mut().collect::<Vec<_>>())?;
    Ok(elements)
}

/// The 64-bit FNV-1a hash: file names stay the same between runs and toolchains.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
