//! A sequence of operations recorded once and replayed with new data in the same tensors.

use super::Gpu;
use crate::{Device, Error, Result, Tensor};
use cubecl::client;

/// The work of a graph: from its inputs to its outputs.
type Work<'a> = Box<dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>> + 'a>;

/// A recorded sequence of operations.
///
/// On CUDA the launches are recorded, and a replay is one call to the driver on the same memory. Where a device has no such
/// recording, and on the CPU, a replay runs the closure again: the results are the same, the time is not.
///
/// ```
/// use bimetal_core::{Device, Graph, Tensor};
/// let x = Tensor::from_slice(&[1.0f32, 2.0], &[2])?;
/// let double = |x: &Tensor| -> bimetal_core::Result<Tensor> {
///     Tensor::from_slice(&x.to_vec::<f32>()?.iter().map(|v| 2.0 * v).collect::<Vec<_>>(), &[2])
/// };
/// let mut graph = Graph::capture(Device::Cpu, vec![x], |inputs| Ok(vec![double(&inputs[0])?]))?;
/// assert_eq!(graph.outputs()[0].to_vec::<f32>()?, [2.0, 4.0]);
/// graph.write(0, &Tensor::from_slice(&[5.0f32, 6.0], &[2])?)?;
/// graph.replay()?;
/// assert_eq!(graph.outputs()[0].to_vec::<f32>()?, [10.0, 12.0]);
/// # Ok::<(), bimetal_core::Error>(())
/// ```
pub struct Graph<'a> {
    work: Work<'a>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    recorded: Option<(client::Graph, &'static Gpu)>,
}

impl std::fmt::Debug for Graph<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("recorded", &self.recorded.is_some()).finish_non_exhaustive()
    }
}

impl<'a> Graph<'a> {
    /// Runs `work` on `inputs` and records it where `device` can. It launches on that device from this thread and reads
    /// nothing back. Where launches are recorded the closure runs twice: first to compile and allocate, then to be recorded,
    /// which has no effect on any tensor.
    ///
    /// # Errors
    /// What `work` returns, inputs on another device, a device that is not available, or work that cannot be recorded, such
    /// as a read.
    pub fn capture(
        device: Device,
        inputs: Vec<Tensor>,
        work: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>> + 'a,
    ) -> Result<Self> {
        if let Some(stray) = inputs.iter().find(|input| input.device() != device) {
            let (got, expected) = (stray.device().to_string(), device.to_string());
            return Err(Error::Device { op: "capture", argument: "inputs", got, expected });
        }
        // The graph's inputs are written in place, so they are its own.
        let inputs = inputs.iter().map(own).collect::<Result<Vec<_>>>()?;
        let mut graph = Self { work: Box::new(work), inputs, outputs: Vec::new(), recorded: None };
        graph.outputs = (graph.work)(&graph.inputs)?;
        if matches!(device, Device::Cuda(_)) {
            graph.record(Gpu::get(device)?)?;
        }
        Ok(graph)
    }

    fn record(&mut self, gpu: &'static Gpu) -> Result<()> {
        let failed = |e: cubecl::server::ServerError| gpu.failed("capture", &e);
        gpu.sync()?;
        gpu.client().graph_prepare().map_err(failed)?;
        gpu.client().start_capture().map_err(failed)?;
        let outputs = (self.work)(&self.inputs);
        let recorded = gpu.client().stop_capture().map_err(failed);
        let outputs = outputs?;
        self.recorded = Some((recorded?, gpu));
        // What was recorded has not run yet: until a replay its outputs hold what the first run gave.
        for (first, output) in self.outputs.iter().zip(&outputs) {
            super::kernel::copy_to(gpu, &first.gpu_handle()?, &output.gpu_handle()?, output.spec().bytes());
        }
        self.outputs = outputs;
        Ok(())
    }

    /// Whether the device replays the sequence by itself.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// The inputs that a replay works on.
    pub fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// What the last run wrote. Where the device replays by itself, every replay overwrites these tensors: copy what must
    /// outlast the next.
    pub fn outputs(&self) -> &[Tensor] {
        &self.outputs
    }

    /// Copies `data`, on the host or on the graph's device, into input `index`.
    ///
    /// # Errors
    /// No such input, or data of another shape, dtype or device.
    pub fn write(&mut self, index: usize, data: &Tensor) -> Result<()> {
        let count = self.inputs.len();
        let Some(input) = self.inputs.get_mut(index) else {
            return Err(Error::argument("write", "index", format!("an input below {count}, got {index}")));
        };
        if data.spec() != input.spec() {
            let (wanted, got) = (input.spec(), data.spec());
            let expected = format!("{} {}, got {} {}", wanted.dtype, wanted.shape, got.dtype, got.shape);
            return Err(Error::argument("write", "data", expected));
        }
        match (input.gpu(), data.gpu()) {
            (None, None) => input.host_bytes_mut()?.copy_from_slice(data.host_bytes()?),
            (Some(gpu), None) => gpu.overwrite(&input.gpu_handle()?, data.host_bytes()?),
            (Some(gpu), Some(source)) if std::ptr::eq(gpu, source) => {
                super::kernel::copy_to(gpu, &data.gpu_handle()?, &input.gpu_handle()?, data.spec().bytes());
            }
            _ => {
                let (got, expected) = (data.device().to_string(), input.device().to_string());
                return Err(Error::Device { op: "write", argument: "data", got, expected });
            }
        }
        Ok(())
    }

    /// Runs the sequence once more, with what the inputs hold now. On a GPU the host does not wait for it.
    ///
    /// # Errors
    /// What the work returns where it is run again, or a lost device.
    pub fn replay(&mut self) -> Result<()> {
        let Some((graph, gpu)) = &self.recorded else {
            self.outputs = (self.work)(&self.inputs)?;
            return Ok(());
        };
        // SAFETY: the graph keeps the memory of its launches allocated; replays and this thread's other work share a stream,
        // so they run in the order of the calls.
        unsafe { graph.replay() }.map_err(|e| gpu.failed("replay", &e))
    }
}

/// A tensor of the same data that shares its storage with no other.
fn own(tensor: &Tensor) -> Result<Tensor> {
    let Some(gpu) = tensor.gpu() else {
        let mut copy = Tensor::empty_on(tensor.spec().clone(), Device::Cpu)?;
        copy.host_bytes_mut()?.copy_from_slice(tensor.host_bytes()?);
        return Ok(copy);
    };
    let copy = Tensor::empty_on(tensor.spec().clone(), gpu.device())?;
    super::kernel::copy_to(gpu, &tensor.gpu_handle()?, &copy.gpu_handle()?, tensor.spec().bytes());
    Ok(copy)
}
