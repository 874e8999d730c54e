//! From CubeCL kernels to machine code: CUDA C++ through NVRTC, kept on disk.

use crate::cache::Cache;
use crate::device::{Found, options};
use crate::driver::check;
use crate::library;
use cubecl::prelude::CubeKernel;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler};
use cubecl_cpp::target::Cuda;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{BufferIOAttr, define_kernel};
use cudarc::driver::sys::{self, CUfunction};
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

/// A kernel on the device.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub function: CUfunction,
    pub cube_dim: (u32, u32, u32),
    pub shared_memory: u32,
    /// What it does with each buffer, if the compiler knows.
    pub io: Option<Vec<BufferIOAttr>>,
    /// Whether it waits for the work before it by itself, so that it may be started early.
    pub overlaps: bool,
    /// Its cubes wait for each other, so that all must run at the same time.
    pub together: bool,
}

/// The kernels of a device, compiled at their first launch.
pub(crate) struct Kernels {
    found: Found,
    options: CompilationOptions,
    shared_memory: usize,
    cache: Cache,
    by_id: HashMap<KernelId, u32, BuildHasherDefault<Fold>>,
    loaded: Vec<Kernel>,
}

// SAFETY: functions belong to a context, which the server makes current on its thread.
unsafe impl Send for Kernels {}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("loaded", &self.loaded.len()).finish_non_exhaustive()
    }
}

/// A kernel as source, before NVRTC.
struct Source {
    text: String,
    entry: String,
    cube_dim: (u32, u32, u32),
    shared_memory: usize,
    io: Option<Vec<BufferIOAttr>>,
    overlaps: bool,
    together: bool,
}

/// Kernels whose names hold this word have cubes that wait for each other; they are launched cooperatively, all of it or none.
const TOGETHER: &str = "together";

impl Kernels {
    /// No kernels yet; `shared_memory` is what a cube may have at most.
    pub fn new(found: Found, shared_memory: usize) -> Self {
        let options = options(&found);
        Self { found, options, shared_memory, cache: Cache::of_user(), by_id: HashMap::default(), loaded: Vec::new() }
    }

    /// Whether scalars and lengths travel in the kernel's parameters.
    pub fn grid_constants(&self) -> bool {
        self.options.supports_features.grid_constants
    }

    /// The index of a loaded kernel.
    pub fn find(&self, id: &KernelId) -> Option<usize> {
        self.by_id.get(id).map(|&index| index as usize)
    }

    pub fn get(&self, index: usize) -> &Kernel {
        &self.loaded[index]
    }

    /// Compiles and loads a kernel. The device's context is current.
    ///
    /// # Errors
    /// A kernel that CubeCL, NVRTC or the driver refuses, or a missing NVRTC.
    pub fn load(&mut self, id: &KernelId, kernel: &dyn CubeKernel) -> Result<usize, CompilationError> {
        let source = self.source(id, kernel)?;
        if source.shared_memory > self.shared_memory {
            let (got, most) = (source.shared_memory, self.shared_memory);
            return Err(refused(format!("{got} bytes of shared memory, {most} is the limit")));
        }
        let code = self.machine_code(&source.text)?;
        let function = load_function(&code, &source.entry, source.shared_memory)?;
        self.loaded.push(Kernel {
            function,
            cube_dim: source.cube_dim,
            shared_memory: source.shared_memory as u32,
            io: source.io,
            overlaps: source.overlaps,
            together: source.together,
        });
        let index = self.loaded.len() - 1;
        self.by_id.insert(id.clone(), index as u32);
        Ok(index)
    }

    fn source(&self, id: &KernelId, kernel: &dyn CubeKernel) -> Result<Source, CompilationError> {
        let dim = id.cube_dim;
        let cube_dim = (dim.x, dim.y, dim.z);
        if let Some(own) = kernel.source() {
            if own.lang != "cuda" {
                return Err(refused(format!("kernel `{}` is {} source, not CUDA C++", kernel.name(), own.lang)));
            }
            return Ok(Source {
                text: own.source,
                entry: own.entrypoint_name,
                cube_dim,
                shared_memory: 0,
                io: None,
                overlaps: false,
                together: false,
            });
        }
        let definition = define_kernel(kernel)?;
        let entry = definition.settings.kernel_name.clone();
        let compiled = CppCompiler::<Cuda>::default().compile(definition, &self.options)?;
        let together = entry.to_lowercase().contains(TOGETHER);
        let (text, overlaps) = match overlapping(&compiled.source).filter(|_| self.found.capability >= 90) {
            Some(text) => (text, true),
            None => (compiled.source, false),
        };
        Ok(Source {
            text,
            entry,
            cube_dim,
            shared_memory: compiled.shared_memory_size,
            io: Some(compiled.io),
            overlaps,
            together,
        })
    }

    /// Machine code from the cache or NVRTC.
    fn machine_code(&self, text: &str) -> Result<Vec<u8>, CompilationError> {
        let suffix = if self.found.capability >= 90 { "a" } else { "" };
        let architecture = format!("sm_{}{suffix}", self.found.capability);
        let versions = format!("{architecture} {} {}", self.found.driver, env!("CARGO_PKG_VERSION"));
        let key = [text.as_bytes(), versions.as_bytes()].join(&0);
        if let Some(code) = self.cache.get(&key) {
            return Ok(code);
        }
        let code = compile(text, &architecture).map_err(|reason| refused(format!("{reason}\n{text}")))?;
        self.cache.put(&key, &code);
        Ok(code)
    }
}

fn refused(reason: String) -> CompilationError {
    CompilationError::Generic { reason, backtrace: BackTrace::capture() }
}

/// The kernel's source with the two instructions that let it start while the work before it ends (programmatic dependent
/// launch): first it lets the next kernel be started likewise, then it waits until what came before has run and its writes
/// are visible. Nothing but the set-up of a kernel lies before the wait.
fn overlapping(source: &str) -> Option<String> {
    const PROLOGUE: &str = "asm volatile(\"griddepcontrol.launch_dependents;\" ::: \"memory\");\n\
                            asm volatile(\"griddepcontrol.wait;\" ::: \"memory\");\n";
    let kernel = source.find("__global__")?;
    let body = kernel + source[kernel..].find("{\n")? + 2;
    Some([&source[..body], PROLOGUE, &source[body..]].concat())
}

fn load_function(code: &[u8], entry: &str, shared_memory: usize) -> Result<CUfunction, CompilationError> {
    let entry = CString::new(entry).map_err(|e| refused(e.to_string()))?;
    let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the image is whole (NVRTC's answer, or an entry with its checksum); the driver copies it, and writes handles
    // into locals. Modules stay loaded, so functions stay valid.
    unsafe {
        check("cuModuleLoadData", sys::cuModuleLoadData(&mut module, code.as_ptr().cast()))?;
        check("cuModuleGetFunction", sys::cuModuleGetFunction(&mut function, module, entry.as_ptr()))?;
        if shared_memory > 0 {
            check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, attribute, shared_memory as c_int))?;
        }
    }
    Ok(function)
}

/// NVRTC's entry points.
struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut *mut c_void,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int,
    code_size: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int,
    code: unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int,
    log: unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

impl Nvrtc {
    fn get() -> Result<&'static Self, String> {
        static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC.get_or_init(Self::load).as_ref().map_err(String::clone)
    }

    fn load() -> Result<Self, String> {
        let library = library::load("nvrtc", &["13", "12", "11.2"])?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the types are those of NVRTC's header, the same in every version from 11.1 on.
                *unsafe { library.get($name) }.map_err(|e| e.to_string())?
            };
        }
        Ok(Self {
            create: symbol!(b"nvrtcCreateProgram"),
            compile: symbol!(b"nvrtcCompileProgram"),
            code_size: symbol!(b"nvrtcGetCUBINSize"),
            code: symbol!(b"nvrtcGetCUBIN"),
            log_size: symbol!(b"nvrtcGetProgramLogSize"),
            log: symbol!(b"nvrtcGetProgramLog"),
            destroy: symbol!(b"nvrtcDestroyProgram"),
            error: symbol!(b"nvrtcGetErrorString"),
            _library: library,
        })
    }

    fn ok(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: NVRTC gives a static string for every status.
        let text = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(format!("{call}: {}", text.to_string_lossy()))
    }
}

/// Machine code for `architecture` (`sm_90a`) from CUDA C++.
///
/// # Errors
/// A missing compiler or headers, or the compiler's log.
pub(crate) fn compile(text: &str, architecture: &str) -> Result<Vec<u8>, String> {
    let nvrtc = Nvrtc::get()?;
    let mut flags = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "-default-device".into()];
    flags.extend(library::include_folders()?.iter().map(|p| format!("--include-path={}", p.display())));
    let flags: Vec<CString> =
        flags.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let flags: Vec<*const c_char> = flags.iter().map(|f| f.as_ptr()).collect();
    let text = CString::new(text).map_err(|e| e.to_string())?;
    let mut program = std::ptr::null_mut();
    // SAFETY: strings end in NUL and outlive the calls; every size was asked for before its buffer was filled; the program
    // is destroyed once.
    unsafe {
        let none = std::ptr::null();
        let status = (nvrtc.create)(&mut program, text.as_ptr(), c"kernel.cu".as_ptr(), 0, none, none);
        nvrtc.ok("nvrtcCreateProgram", status)?;
        let compiled = nvrtc.ok("nvrtcCompileProgram", (nvrtc.compile)(program, flags.len() as c_int, flags.as_ptr()));
        let code = match compiled {
            Err(reason) => Err(format!("{reason}\n{}", log(nvrtc, program))),
            Ok(()) => {
                let mut size = 0;
                let mut code = Vec::new();
                nvrtc
                    .ok("nvrtcGetCUBINSize", (nvrtc.code_size)(program, &mut size))
                    .and_then(|()| {
                        code.resize(size, 0u8);
                        nvrtc.ok("nvrtcGetCUBIN", (nvrtc.code)(program, code.as_mut_ptr().cast()))
                    })
                    .map(|()| code)
            }
        };
        (nvrtc.destroy)(&mut program);
        code
    }
}

/// What the compiler wrote about a program.
///
/// # Safety
/// `program` is alive.
unsafe fn log(nvrtc: &Nvrtc, program: *mut c_void) -> String {
    let mut size = 0;
    // SAFETY: the caller's; the buffer has the size that was asked for.
    unsafe {
        if (nvrtc.log_size)(program, &mut size) != 0 {
            return String::new();
        }
        let mut text = vec![0u8; size];
        if (nvrtc.log)(program, text.as_mut_ptr().cast()) != 0 {
            return String::new();
        }
        String::from_utf8_lossy(&text).trim_end_matches('\0').into()
    }
}

/// A hash for kernel ids, which are looked up at every launch: multiply and rotate.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_comes_first_in_the_kernel() {
        let source = "struct info { int a; };\nextern \"C\" __global__ void k(int* p) {\n*p = 1;\n}\n";
        let text = overlapping(source).unwrap();
        let wait = text.find("griddepcontrol.wait").unwrap();
        assert!(text.find("void k").unwrap() < wait && wait < text.find("*p = 1").unwrap());
        assert!(overlapping("void f() {\n}\n").is_none());
    }

    #[test]
    fn nvrtc_compiles_or_says_what_is_missing() {
        match compile("extern \"C\" __global__ void k(float* p) { p[threadIdx.x] += 1.0f; }", "sm_90a") {
            Ok(code) => assert!(code.starts_with(b"\x7fELF")),
            Err(reason) => assert!(reason.contains("not found"), "{reason}"),
        }
        if let Err(reason) = compile("this is not C++", "sm_90a") {
            assert!(reason.contains("error") || reason.contains("not found"), "{reason}");
        } else {
            panic!("nonsense was compiled");
        }
    }
}
