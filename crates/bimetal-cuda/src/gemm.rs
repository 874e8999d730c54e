//! Matrix products on cuBLASLt, on the client's stream: `d = alpha·op(a)·op(b) + beta·d`, with an epilogue.
//!
//! Matrices are row-major here. cuBLASLt's are column-major, so it is asked for the transpose of the product: the operands
//! change places, and what it calls rows of the result are our columns.

use crate::call::call;
use crate::driver::Failure;
pub use crate::element::Element;
use crate::library;
use cubecl::client::Client;
use cubecl::server::Handle;
use cubecl_runtime::kernel::BufferIOAttr;
use libloading::Library;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What is done to the product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// Adds a bias to each row.
    Bias,
    /// GELU, in its tanh form.
    Gelu,
    /// Adds a bias to each row, then GELU.
    BiasGelu,
    /// GELU; what goes into it is kept in the auxiliary matrix.
    GeluKeep,
    /// Adds a bias to each row, then GELU; what goes into GELU is kept in the auxiliary matrix.
    BiasGeluKeep,
    /// Multiplies with GELU's derivative at the auxiliary matrix.
    GeluBackward,
    /// As [`Epilogue::GeluBackward`], and stores the sums of the result's columns in the bias.
    GeluBiasBackward,
}

impl Epilogue {
    fn code(self) -> u32 {
        match self {
            Self::None => 1,
            Self::Bias => 4,
            Self::Gelu => 32,
            Self::BiasGelu => 36,
            Self::GeluKeep => 160,
            Self::BiasGeluKeep => 164,
            Self::GeluBackward => 192,
            Self::GeluBiasBackward => 208,
        }
    }

    fn has_bias(self) -> bool {
        matches!(self, Self::Bias | Self::BiasGelu | Self::BiasGeluKeep | Self::GeluBiasBackward)
    }

    fn has_auxiliary(self) -> bool {
        matches!(self, Self::GeluKeep | Self::BiasGeluKeep | Self::GeluBackward | Self::GeluBiasBackward)
    }
}

/// A product's shape and types: `batch` times `m`×`k` by `k`×`n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Products in the batch.
    pub batch: usize,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether the left operand is stored as `k`×`m`.
    pub a_transposed: bool,
    /// Whether the right operand is stored as `n`×`k`.
    pub b_transposed: bool,
    /// Elements between products of the batch in the left operand, the right one and the result; 0 shares a matrix.
    pub strides: [usize; 3],
    /// Elements from one row to the next in the left operand, the right one and the result, as they are stored; 0 where rows
    /// follow each other.
    pub rows: [usize; 3],
    /// Type of the operands.
    pub input: Element,
    /// Type of the result.
    pub output: Element,
    /// Whether f32 operands may be rounded to TF32.
    pub tf32: bool,
    /// What is done to the product.
    pub epilogue: Epilogue,
}

/// The buffers of a product.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// Left operand.
    pub a: Handle,
    /// Right operand.
    pub b: Handle,
    /// Result, and what `beta` multiplies.
    pub d: Handle,
    /// Bias of `n` elements, for the epilogues that have one.
    pub bias: Option<Handle>,
    /// Auxiliary matrix of the result's shape, for the epilogues that have one.
    pub auxiliary: Option<Handle>,
}

/// Bytes that an algorithm may use beside the matrices.
const WORKSPACE: u64 = 32 << 20;

/// Whether cuBLASLt is on this machine.
pub fn available() -> bool {
    Lt::get().is_ok()
}

/// Enqueues a product. Nothing waits for the device.
///
/// # Errors
/// No cuBLASLt on this machine, a client of another runtime, or an epilogue whose buffers are missing. What cuBLASLt itself
/// refuses is reported where the result is read.
pub fn gemm(client: &Client, shape: Shape, alpha: f64, beta: f64, buffers: Buffers) -> Result<(), Failure> {
    let lt = Lt::get()?;
    if shape.epilogue.has_bias() != buffers.bias.is_some()
        || shape.epilogue.has_auxiliary() != buffers.auxiliary.is_some()
    {
        return Err(Failure::new(
            "gemm",
            format!("the epilogue {:?} and its buffers do not go together", shape.epilogue),
        ));
    }
    let backward = matches!(shape.epilogue, Epilogue::GeluBackward | Epilogue::GeluBiasBackward);
    let result = if beta == 0.0 { BufferIOAttr::WriteOnly } else { BufferIOAttr::ReadWrite };
    let bias = if backward { BufferIOAttr::WriteOnly } else { BufferIOAttr::ReadOnly };
    let auxiliary = if backward { BufferIOAttr::ReadOnly } else { BufferIOAttr::WriteOnly };
    let mut uses = vec![
        (buffers.a.binding(), BufferIOAttr::ReadOnly),
        (buffers.b.binding(), BufferIOAttr::ReadOnly),
        (buffers.d.binding(), result),
    ];
    uses.extend(buffers.bias.map(|b| (b.binding(), bias)));
    uses.extend(buffers.auxiliary.map(|b| (b.binding(), auxiliary)));
    call(client, uses, move |arguments| {
        let mut addresses = arguments.addresses.iter().copied();
        let mut next = || addresses.next().unwrap_or(0);
        let (a, b, d) = (next(), next(), next());
        let bias = if shape.epilogue.has_bias() { next() } else { 0 };
        let auxiliary = if shape.epilogue.has_auxiliary() { next() } else { 0 };
        let (stream, server) = (arguments.server.stream, &mut arguments.server);
        let workspace = server.memory.workspace(stream, WORKSPACE)?;
        let device = server.context.device;
        lt.run(device, &shape, [alpha, beta], [a, b, d, bias, auxiliary], workspace, arguments.stream.cast())
    })
}

/// One of cuBLASLt's opaque objects.
type Object = *mut c_void;

/// cuBLASLt's answer to a request for algorithms.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// A prepared product.
struct Plan {
    operation: Object,
    /// Layouts of the left operand as cuBLASLt has it (our right one), its right one and the result.
    layouts: [Object; 3],
    algorithm: [u64; 8],
}

/// Plans by device and shape, with a handle for each device.
#[derive(Default)]
struct State {
    handles: HashMap<c_int, Object>,
    plans: HashMap<(c_int, Shape), Plan>,
}

/// cuBLASLt's entry points.
struct Lt {
    create: unsafe extern "C" fn(*mut Object) -> c_int,
    operation_create: unsafe extern "C" fn(*mut Object, c_int, c_int) -> c_int,
    operation_set: unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> c_int,
    layout_create: unsafe extern "C" fn(*mut Object, c_int, u64, u64, i64) -> c_int,
    layout_set: unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> c_int,
    preference_create: unsafe extern "C" fn(*mut Object) -> c_int,
    preference_set: unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> c_int,
    preference_destroy: unsafe extern "C" fn(Object) -> c_int,
    #[allow(clippy::type_complexity)]
    heuristic: unsafe extern "C" fn(
        Object,
        Object,
        Object,
        Object,
        Object,
        Object,
        Object,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> c_int,
    #[allow(clippy::type_complexity)]
    matmul: unsafe extern "C" fn(
        Object,
        Object,
        *const c_void,
        *const c_void,
        Object,
        *const c_void,
        Object,
        *const c_void,
        *const c_void,
        Object,
        *mut c_void,
        Object,
        *const u64,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> c_int,
    state: Mutex<State>,
    _library: Library,
}

// SAFETY: handles and plans are used under the lock of `state`; the functions are cuBLASLt's, which are thread-safe.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

/// Attributes of a product, a layout and a preference, by cuBLASLt's numbers.
mod attribute {
    pub const TRANSPOSE_A: i32 = 3;
    pub const TRANSPOSE_B: i32 = 4;
    pub const EPILOGUE: i32 = 7;
    pub const BIAS: i32 = 8;
    pub const AUXILIARY: i32 = 11;
    pub const AUXILIARY_STEP: i32 = 12;
    pub const AUXILIARY_STRIDE: i32 = 13;
    pub const BATCH: i32 = 5;
    pub const BATCH_STRIDE: i32 = 6;
    pub const WORKSPACE: i32 = 1;
    pub const REDUCTIONS: i32 = 3;
    /// Split sums are added up by a second pass in the type of the computation: never in the output's 16 bits, where they
    /// overflow and lose digits, and never in place, where their order is left to chance.
    pub const IN_COMPUTE_TYPE: u32 = 2;
}

fn ok(call: &'static str, status: c_int) -> Result<(), Failure> {
    let reason = match status {
        0 => return Ok(()),
        1 => "CUBLAS_STATUS_NOT_INITIALIZED",
        3 => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        15 => "CUBLAS_STATUS_NOT_SUPPORTED",
        _ => return Err(Failure::new(call, format!("status {status}"))),
    };
    Err(Failure::new(call, reason))
}

/// A value as the address and size that attributes are set by.
fn raw<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

impl Lt {
    fn get() -> Result<&'static Self, Failure> {
        static LT: OnceLock<Result<Lt, String>> = OnceLock::new();
        LT.get_or_init(Self::load).as_ref().map_err(|reason| Failure::new("loading cuBLASLt", reason.clone()))
    }

    fn load() -> Result<Self, String> {
        let library = library::load("cublasLt", &["13", "12", "11"])?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the types are those of cuBLASLt's header, the same in versions 11 to 13.
                *unsafe { library.get($name) }.map_err(|e| e.to_string())?
            };
        }
        Ok(Self {
            create: symbol!(b"cublasLtCreate"),
            operation_create: symbol!(b"cublasLtMatmulDescCreate"),
            operation_set: symbol!(b"cublasLtMatmulDescSetAttribute"),
            layout_create: symbol!(b"cublasLtMatrixLayoutCreate"),
            layout_set: symbol!(b"cublasLtMatrixLayoutSetAttribute"),
            preference_create: symbol!(b"cublasLtMatmulPreferenceCreate"),
            preference_set: symbol!(b"cublasLtMatmulPreferenceSetAttribute"),
            preference_destroy: symbol!(b"cublasLtMatmulPreferenceDestroy"),
            heuristic: symbol!(b"cublasLtMatmulAlgoGetHeuristic"),
            matmul: symbol!(b"cublasLtMatmul"),
            state: Mutex::default(),
            _library: library,
        })
    }

    /// Runs the product on `stream`; `addresses` are of a, b, d, bias and auxiliary matrix.
    fn run(
        &self,
        device: c_int,
        shape: &Shape,
        scalars: [f64; 2],
        addresses: [u64; 5],
        workspace: u64,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let handle = match state.handles.get(&device) {
            Some(&handle) => handle,
            None => {
                let mut handle = std::ptr::null_mut();
                // SAFETY: the handle is written into a local; the device's context is current.
                ok("cublasLtCreate", unsafe { (self.create)(&mut handle) })?;
                state.handles.insert(device, handle);
                handle
            }
        };
        let [a, b, d, bias, auxiliary] = addresses;
        let plan = match state.plans.entry((device, *shape)) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(slot) => slot.insert(self.plan(handle, shape, bias, auxiliary)?),
        };
        self.set_pointers(plan, shape, bias, auxiliary)?;
        let scale = scalars_of(shape, scalars);
        let [left, right, result] = plan.layouts;
        let to = |address: u64| address as *mut c_void;
        // SAFETY: layouts describe matrices that the caller's buffers hold; the workspace has the size that is given; the
        // scalars are of the operation's scale type and read before the call returns.
        let status = unsafe {
            let (alpha, beta) = (scale[0].as_ptr().cast(), scale[1].as_ptr().cast());
            let algorithm = plan.algorithm.as_ptr();
            (self.matmul)(
                handle,
                plan.operation,
                alpha,
                to(b),
                left,
                to(a),
                right,
                beta,
                to(d),
                result,
                to(d),
                result,
                algorithm,
                to(workspace),
                WORKSPACE as usize,
                stream,
            )
        };
        ok("cublasLtMatmul", status)
    }

    fn set_pointers(&self, plan: &Plan, shape: &Shape, bias: u64, auxiliary: u64) -> Result<(), Failure> {
        if shape.epilogue.has_bias() {
            self.set(plan.operation, attribute::BIAS, &bias)?;
        }
        if shape.epilogue.has_auxiliary() {
            self.set(plan.operation, attribute::AUXILIARY, &auxiliary)?;
        }
        Ok(())
    }

    fn set<T>(&self, operation: Object, attribute: c_int, value: &T) -> Result<(), Failure> {
        let (value, size) = raw(value);
        // SAFETY: the operation is alive and the value has the size that is given.
        ok("cublasLtMatmulDescSetAttribute", unsafe { (self.operation_set)(operation, attribute, value, size) })
    }

    /// Describes a product and takes the algorithm that cuBLASLt holds for the fastest.
    fn plan(&self, handle: Object, shape: &Shape, bias: u64, auxiliary: u64) -> Result<Plan, Failure> {
        let (compute, scale) = match (shape.input, shape.tf32) {
            (Element::F64, _) => (70, Element::F64),
            (Element::F32, true) => (77, Element::F32),
            (Element::I8 | Element::I32, _) => (72, Element::I32),
            (Element::F32 | Element::F16 | Element::BF16, _) => (68, Element::F32),
        };
        let mut operation = std::ptr::null_mut();
        // SAFETY: the new object is written into a local.
        let created = unsafe { (self.operation_create)(&mut operation, compute, scale.data_type()) };
        ok("cublasLtMatmulDescCreate", created)?;
        self.set(operation, attribute::TRANSPOSE_A, &i32::from(shape.b_transposed))?;
        self.set(operation, attribute::TRANSPOSE_B, &i32::from(shape.a_transposed))?;
        self.set(operation, attribute::EPILOGUE, &shape.epilogue.code())?;
        if shape.epilogue.has_auxiliary() {
            self.set(operation, attribute::AUXILIARY_STEP, &(shape.n as i64))?;
            if shape.batch > 1 {
                self.set(operation, attribute::AUXILIARY_STRIDE, &(shape.strides[2] as i64))?;
            }
        }
        let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
        let stored = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let (b_rows, b_columns) = stored(k, n, shape.b_transposed);
        let (a_rows, a_columns) = stored(m, k, shape.a_transposed);
        let layouts = [
            self.layout(shape, shape.input, [b_columns, b_rows], 1)?,
            self.layout(shape, shape.input, [a_columns, a_rows], 0)?,
            self.layout(shape, shape.output, [n, m], 2)?,
        ];
        let mut plan = Plan { operation, layouts, algorithm: [0; 8] };
        self.set_pointers(&plan, shape, bias, auxiliary)?;
        plan.algorithm = self.algorithm(handle, &plan)?;
        Ok(plan)
    }

    /// A column-major matrix of `rows`×`columns`, of the operand with this number.
    fn layout(
        &self,
        shape: &Shape,
        element: Element,
        [rows, columns]: [u64; 2],
        operand: usize,
    ) -> Result<Object, Failure> {
        let step = if shape.rows[operand] > 0 { shape.rows[operand] as i64 } else { rows.max(1) as i64 };
        let mut layout = std::ptr::null_mut();
        // SAFETY: the new object is written into a local.
        let created = unsafe { (self.layout_create)(&mut layout, element.data_type(), rows, columns, step) };
        ok("cublasLtMatrixLayoutCreate", created)?;
        if shape.batch > 1 {
            let (batch, stride) = (shape.batch as i32, shape.strides[operand] as i64);
            let ((batch, batch_size), (stride, stride_size)) = (raw(&batch), raw(&stride));
            // SAFETY: the layout is alive and the values have the sizes that are given.
            unsafe {
                let set = (self.layout_set)(layout, attribute::BATCH, batch, batch_size);
                ok("cublasLtMatrixLayoutSetAttribute", set)?;
                let set = (self.layout_set)(layout, attribute::BATCH_STRIDE, stride, stride_size);
                ok("cublasLtMatrixLayoutSetAttribute", set)?;
            }
        }
        Ok(layout)
    }

    fn algorithm(&self, handle: Object, plan: &Plan) -> Result<[u64; 8], Failure> {
        let mut preference = std::ptr::null_mut();
        let mut found = Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        let (workspace, reductions) = (WORKSPACE as usize, attribute::IN_COMPUTE_TYPE);
        let settings = [(attribute::WORKSPACE, raw(&workspace)), (attribute::REDUCTIONS, raw(&reductions))];
        let [left, right, result] = plan.layouts;
        // SAFETY: all objects are alive; answers are written into locals, of which one is asked for.
        let answer = unsafe {
            ok("cublasLtMatmulPreferenceCreate", (self.preference_create)(&mut preference))?;
            let set = settings.iter().try_for_each(|&(setting, (value, size))| {
                ok("cublasLtMatmulPreferenceSetAttribute", (self.preference_set)(preference, setting, value, size))
            });
            let answer = set.and_then(|()| {
                let operation = plan.operation;
                let status = (self.heuristic)(
                    handle, operation, left, right, result, result, preference, 1, &mut found, &mut count,
                );
                ok("cublasLtMatmulAlgoGetHeuristic", status)
            });
            (self.preference_destroy)(preference);
            answer
        };
        answer?;
        if count == 0 {
            return Err(Failure::new("cublasLtMatmulAlgoGetHeuristic", "no algorithm for this shape and these types"));
        }
        Ok(found.algorithm)
    }
}

/// The factors in the scale type of the product, each in eight bytes.
fn scalars_of(shape: &Shape, scalars: [f64; 2]) -> [[u8; 8]; 2] {
    scalars.map(|value| {
        let mut bytes = [0; 8];
        match shape.input {
            Element::F64 => bytes = value.to_ne_bytes(),
            Element::I8 | Element::I32 => bytes[..4].copy_from_slice(&(value as i32).to_ne_bytes()),
            Element::F32 | Element::F16 | Element::BF16 => bytes[..4].copy_from_slice(&(value as f32).to_ne_bytes()),
        }
        bytes
    })
}
