//! Peer libraries: one Python child for the whole run that times the same work on the same inputs.

mod child;

use crate::bench::timing;
use crate::bench::work::{Ready, Unit};
use anyhow::{Result, bail};
use bimetal::{DType, Device, DeviceInfo, Spec, Tensor};
use bimetal_core::op::{Case, Expected, Property};
use bimetal_core::verify;
use child::Child;
use serde_json::{Value, json};
use std::time::Duration;

/// The peers that the child knows.
const KNOWN: [&str; 2] = ["torch", "numpy"];

/// Longest that a request may take beyond the sampling that it asks for.
const PATIENCE: Duration = Duration::from_secs(120);

/// The child with the peers that it could import.
pub struct Peers {
    child: Option<Child>,
    /// Name, version, and whether it has CUDA.
    found: Vec<(String, String, bool)>,
    /// Names and reasons of those that are not there.
    missing: Vec<(String, String)>,
    /// The inputs whose files are in the child's folder, by the addresses of their bytes.
    shared: Vec<usize>,
}

impl Peers {
    /// Starts the child for `names`; without names there is none. What cannot be had is kept for the report.
    ///
    /// # Errors
    /// A name that is not a peer's.
    pub fn start(names: &[String], threads: usize) -> Result<Self> {
        let mut peers = Self { child: None, found: Vec::new(), missing: Vec::new(), shared: Vec::new() };
        if let Some(unknown) = names.iter().find(|n| !KNOWN.contains(&n.as_str())) {
            bail!("unknown peer `{unknown}`: the peers are {}", KNOWN.join(", "));
        }
        if names.is_empty() {
            return Ok(peers);
        }
        let started = Child::start(threads).and_then(|mut child| {
            let hello = child.ask(&json!({"do": "start", "peers": names, "threads": threads}), PATIENCE)?;
            Ok((child, hello))
        });
        match started {
            Err(why) => peers.missing.extend(names.iter().map(|n| (n.clone(), why.clone()))),
            Ok((child, hello)) => {
                peers.child = Some(child);
                for name in names {
                    let entry = &hello["peers"][name];
                    match entry["version"].as_str() {
                        Some(version) => {
                            let cuda = entry["cuda"].as_bool().unwrap_or(false);
                            peers.found.push((name.clone(), version.into(), cuda));
                        }
                        None => peers.missing.push((name.clone(), said(entry, "error"))),
                    }
                }
                let python = said(&hello, "python");
                peers.found.iter_mut().for_each(|(_, version, _)| *version = format!("{version}, Python {python}"));
            }
        }
        for (name, why) in &peers.missing {
            eprintln!("no comparison with {name}: {why}");
        }
        Ok(peers)
    }

    /// Name and version of each peer, for the report's head.
    pub fn versions(&self) -> impl Iterator<Item = (String, String)> {
        self.found.iter().map(|(name, version, _)| (name.clone(), version.clone()))
    }

    /// What is not compared in this run, and why.
    pub fn notes(&self, devices: &[DeviceInfo]) -> Vec<String> {
        let absent = self.missing.iter().map(|(name, why)| format!("no comparison with {name}: {why}"));
        let unpaired = devices.iter().filter(|info| info.device.is_gpu()).flat_map(|info| {
            self.found.iter().filter_map(move |(name, _, cuda)| {
                let why = no_partner(name, *cuda, info.device)?;
                Some(format!("no comparison with {name} on {}: {why}", info.device))
            })
        });
        absent.chain(unpaired).collect()
    }

    /// Gives a unit to every peer that has it; what a peer refuses is noted.
    pub fn load(
        &mut self,
        unit: &Unit,
        ready: &Ready,
        device: Device,
        sets: usize,
        notes: &mut Vec<String>,
    ) -> Vec<Job> {
        let specs: Vec<Spec> = ready.inputs.iter().map(|t| t.spec().clone()).collect();
        let specs: Vec<&Spec> = specs.iter().collect();
        let Ok(outputs) = unit.case.op.outputs(&specs) else { return Vec::new() };
        let peer = unit.case.op.peer(&specs);
        let mut jobs = Vec::new();
        for (name, _, cuda) in self.found.clone() {
            let (expression, setup) =
                if name == "torch" { (&peer.torch, peer.torch_setup.as_deref()) } else { (&peer.numpy, None) };
            let Some(expression) = expression else { continue };
            if no_partner(&name, cuda, device).is_some() {
                continue;
            }
            if name == "numpy" && specs.iter().any(|s| s.dtype == DType::BF16) {
                notes.push("numpy: it has no bf16".into());
                continue;
            }
            let place = match device {
                Device::Cuda(index) => format!("cuda:{index}"),
                _ => "cpu".into(),
            };
            let shortest = if device.is_gpu() { timing::GPU_SAMPLE_S } else { timing::CPU_SAMPLE_S };
            let request = json!({
                "do": "load", "peer": name, "expression": expression, "setup": setup, "device": place,
                "sets": sets, "shortest_s": shortest, "inputs": described(specs.iter().copied()), "outputs": described(&outputs),
            });
            let loaded = self.share(&ready.inputs).and_then(|()| self.ask(&request, PATIENCE));
            match loaded {
                Ok(_) => jobs.push(Job { name, samples: Vec::new(), failed: None, outputs: outputs.to_vec() }),
                Err(why) => notes.push(format!("{name}: {why}")),
            }
        }
        jobs
    }

    /// Writes the inputs where the child reads them.
    fn share(&mut self, inputs: &[Tensor]) -> Result<(), String> {
        let child = self.child.as_ref().ok_or("the child has ended")?;
        let bytes = inputs.iter().map(|t| t.host_bytes().map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
        let identity: Vec<usize> = bytes.iter().map(|b| b.as_ptr() as usize).collect();
        if identity == self.shared {
            return Ok(());
        }
        for (i, bytes) in bytes.iter().enumerate() {
            let path = child.folder().join(format!("x{i}"));
            std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        self.shared = identity;
        Ok(())
    }

    fn ask(&mut self, request: &Value, patience: Duration) -> Result<Value, String> {
        let child = self.child.as_mut().ok_or("the child has ended")?;
        let answer = child.ask(request, patience);
        if child.has_ended() {
            self.child = None;
            self.found.clear();
        }
        answer
    }
}

/// A unit that a peer has loaded.
pub struct Job {
    name: String,
    samples: Vec<f64>,
    failed: Option<String>,
    outputs: Vec<Spec>,
}

impl Job {
    /// The peer's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the peer take samples for about `seconds`.
    pub fn sample(&mut self, peers: &mut Peers, seconds: f64, least: usize) {
        if self.failed.is_some() {
            return;
        }
        let request = json!({"do": "sample", "peer": self.name, "seconds": seconds, "least": least});
        match peers.ask(&request, PATIENCE) {
            Ok(answer) => {
                let times = answer["samples"].as_array().into_iter().flatten().filter_map(Value::as_f64);
                self.samples.extend(times);
            }
            Err(why) => self.failed = Some(why),
        }
    }

    /// The samples, if the peer's outputs are the reference's as far as 16-bit habits and other orders of adding allow.
    ///
    /// # Errors
    /// A peer that failed or computed something else, in words.
    pub fn finish(&mut self, peers: &mut Peers, case: &Case, ready: &Ready) -> Result<Vec<f64>, String> {
        if let Some(why) = self.failed.take() {
            return Err(why);
        }
        peers.ask(&json!({"do": "finish", "peer": self.name}), PATIENCE)?;
        let folder = peers.child.as_ref().ok_or("the child has ended")?.folder().to_path_buf();
        let read = |(i, spec)| {
            let path = folder.join(format!("{}-y{i}", self.name));
            let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            from_bytes(spec, &bytes)
        };
        let outputs = (0..).zip(&self.outputs).map(read).collect::<Result<Vec<_>, String>>()?;
        same_work(case, ready, &outputs).map_err(|why| format!("computes something else: {why}"))?;
        Ok(std::mem::take(&mut self.samples))
    }
}

/// Why a peer has nothing to compare with on a device.
fn no_partner(name: &str, cuda: bool, device: Device) -> Option<String> {
    match device {
        Device::Cpu => None,
        Device::Cuda(_) if name == "torch" && cuda => None,
        Device::Cuda(_) if name == "torch" => Some("its build or driver has no CUDA device".into()),
        _ => Some(format!("it does not run on {}", device.backend())),
    }
}

fn described<'a>(specs: impl IntoIterator<Item = &'a Spec>) -> Value {
    specs.into_iter().map(|s| json!({"shape": s.shape.dims(), "dtype": s.dtype.name()})).collect()
}

fn from_bytes(spec: &Spec, bytes: &[u8]) -> Result<Tensor, String> {
    let mut tensor = Tensor::empty(spec.shape.dims(), spec.dtype).map_err(|e| e.to_string())?;
    if bytes.len() != spec.bytes() {
        return Err(format!("{} bytes instead of {}", bytes.len(), spec.bytes()));
    }
    if spec.dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return Err("truth values other than 0 and 1".into());
    }
    tensor.host_bytes_mut().map_err(|e| e.to_string())?.copy_from_slice(bytes);
    Ok(tensor)
}

/// Whether outputs fulfil the operation's properties a hundred times less exactly than ours must (its status, which
/// peers do not give, aside), or else resemble those of the reference.
fn same_work(case: &Case, ready: &Ready, outputs: &[Tensor]) -> Result<(), String> {
    let Some(properties) = case.op.properties() else {
        let mut pairs = (0..).zip(outputs.iter().zip(&ready.expected));
        return pairs.try_for_each(|(i, (output, expected))| {
            resembles(output, expected).map_err(|why: String| format!("output {i}, {why}"))
        });
    };
    let values = |tensors| verify::values(tensors).map_err(|e| e.to_string());
    let found = properties.properties(&values(&ready.inputs)?, &values(outputs)?);
    match found.iter().find(|p| p.name != Property::STATUS && !(p.error <= 100.0 * p.allowed)) {
        Some(p) => Err(format!("{} {:.2e}, of ours {:.2e} is accepted", p.name, p.error, p.allowed)),
        None => Ok(()),
    }
}

/// Whether every element is within a hundredth (f32; a twentieth for 16 bits) of the largest of its own magnitude, its
/// terms' and the output's typical one.
fn resembles(tensor: &Tensor, expected: &Expected) -> Result<(), String> {
    let mut got = tensor.to_f64_vec().map_err(|e| e.to_string())?;
    if let Some(sample) = &expected.sample {
        got = sample.iter().filter_map(|&i| got.get(i).copied()).collect();
    }
    if got.len() != expected.data.len() {
        return Err(format!("{} elements instead of {}", got.len(), expected.data.len()));
    }
    let finite = || expected.data.iter().filter(|x| x.is_finite());
    let typical = (finite().map(|x| x * x).sum::<f64>() / finite().count().max(1) as f64).sqrt();
    let share = if tensor.dtype().size() == 2 { 0.05 } else { 0.01 };
    for (i, (&got, &exact)) in got.iter().zip(&expected.data).enumerate() {
        let scale = expected.scale.get(i).copied().unwrap_or(0.0).abs();
        let allowed = share * exact.abs().max(scale).max(typical) + tensor.dtype().min_positive();
        let apart = (got - exact).abs();
        let both = !got.is_finite() && !exact.is_finite();
        if !both && (apart > allowed || apart.is_nan()) {
            return Err(format!("[{i}] = {got:e}, exactly {exact:e}"));
        }
    }
    Ok(())
}

fn said(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("it gave no reason").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_function_does_not_resemble_the_reference() {
        let exact = Expected::exact(vec![1.0, -2.0, 3.0, 0.0]);
        let tensor = |data: &[f64]| Tensor::from_f64(data, &[data.len()], DType::F32).unwrap();
        assert!(resembles(&tensor(&[1.001, -2.0, 3.0, 1e-3]), &exact).is_ok());
        assert!(resembles(&tensor(&[1.0, 2.0, 3.0, 0.0]), &exact).is_err());
        assert!(resembles(&tensor(&[f64::NAN, -2.0, 3.0, 0.0]), &exact).is_err());
        assert!(resembles(&tensor(&[1.0]), &exact).is_err());
    }

    #[test]
    fn unknown_peers_are_refused_and_devices_without_a_partner_are_named() {
        assert!(Peers::start(&["jax2".into()], 1).is_err());
        assert!(no_partner("torch", true, Device::Cuda(0)).is_none());
        assert!(no_partner("torch", false, Device::Cuda(0)).is_some());
        assert!(no_partner("numpy", false, Device::Vulkan(0)).is_some());
        assert!(no_partner("numpy", false, Device::Cpu).is_none());
    }
}
