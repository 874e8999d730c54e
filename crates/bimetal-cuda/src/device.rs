//! Which CUDA devices there are, and what kernels may rely on there.

use crate::context::{Context, initialise};
use crate::driver::{Failure, check};
use cubecl::cmma::MatrixLayout;
use cubecl::ir::features::{AtomicUsage, Plane, TypeUsage};
use cubecl::ir::{
    AddressType, ContiguousElements, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    IntKind, MemoryDeviceProperties, MmaProperties, TargetProperties, Type, UIntKind, VectorSize,
};
use cubecl_common::profile::TimingMethod;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::manual::contiguous_elements_cuda;
use cubecl_cpp::shared::{CompilationOptions, CppSupportedFeatures};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// Allocations start at multiples of this many bytes.
pub(crate) const ALIGNMENT: u64 = 512;

/// Most buffers of one kernel: parameters may take 4 KiB on every architecture.
const MAX_BINDINGS: u32 = 256;

/// Buffers of a launch that need no allocation on the host.
pub(crate) const MAX_BINDINGS_INLINE: usize = 16;

/// A CUDA device as the driver describes it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The device's name.
    pub name: String,
    /// Compute capability, as major × 10 + minor.
    pub capability: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// The CUDA version that the driver serves, as major × 1000 + minor × 10.
    pub driver: u32,
}

/// The devices of this machine, without making a context on any.
///
/// # Errors
/// No driver, or none that starts.
pub fn found() -> Result<&'static [Found], String> {
    static FOUND: OnceLock<Result<Vec<Found>, Failure>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        initialise()?;
        let mut count = 0;
        // SAFETY: the driver writes one integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        (0..count).map(describe).collect()
    });
    match found {
        Ok(found) if found.is_empty() => Err("the NVIDIA driver reports no device".into()),
        Ok(found) => Ok(found),
        Err(failure) => Err(failure.to_string()),
    }
}

fn describe(index: i32) -> Result<Found, Failure> {
    let (mut device, mut memory, mut driver) = (0, 0, 0);
    let mut name = [0 as c_char; 128];
    // SAFETY: every call writes through pointers to locals; the name's length goes with it.
    let name = unsafe {
        check("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut memory, device))?;
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut driver))?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the driver writes one integer.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
        Ok::<_, Failure>(value as u32)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Found {
        name,
        capability: major * 10 + minor,
        memory: memory as u64,
        processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        driver: driver as u32,
    })
}

/// How CubeCL's compiler writes kernels for the device.
pub(crate) fn options(found: &Found) -> CompilationOptions {
    let hopper = found.capability >= 90;
    CompilationOptions {
        warp_size: 32,
        supports_features: CppSupportedFeatures {
            grid_constants: found.capability >= 70,
            clusters: hopper,
            fast_math: true,
            fast_tanh: found.capability >= 75 && found.driver >= 12_080,
            elect_sync: hopper,
            dp4a: found.capability >= 61,
        },
        ..CompilationOptions::default()
    }
}

/// The limits, types and features of the device.
pub(crate) fn properties(context: &Context, found: &Found) -> DeviceProperties {
    let memory = MemoryDeviceProperties::new(found.memory, crate::VECTOR).with_max_memory(found.memory);
    let identity =
        DeviceIdentity { name: found.name.clone(), fingerprint: format!("sm_{}", found.capability), physical: None };
    let mut props =
        DeviceProperties::new(Default::default(), memory, hardware(context, found), TimingMethod::System, identity);
    register_types(&mut props, found.capability);
    let features = &mut props.features;
    features.memory_reinterpret = true;
    features.alignment = true;
    features.device_memory_scope = true;
    features.plane.insert(Plane::Ops);
    features.plane.insert(Plane::NonUniformControlFlow);
    if found.capability >= 70 {
        features.plane.insert(Plane::Sync);
    }
    props
}

/// What kernels of ours may use. CubeCL copies these sets at every launch: those of the matrix instructions, which
/// products by cuBLASLt do without, are long.
fn register_types(props: &mut DeviceProperties, capability: u32) {
    props.register_address_type(AddressType::U32);
    props.register_address_type(AddressType::U64);
    let unsigned = [UIntKind::U8, UIntKind::U16, UIntKind::U32, UIntKind::U64].map(ElemType::UInt);
    let signed = [IntKind::I8, IntKind::I16, IntKind::I32, IntKind::I64].map(ElemType::Int);
    let floats = [FloatKind::F16, FloatKind::BF16, FloatKind::F32, FloatKind::F64].map(ElemType::Float);
    for ty in [ElemType::Index, ElemType::Bool].into_iter().chain(unsigned).chain(signed).chain(floats) {
        props.register_type_usage(ty, TypeUsage::all());
    }
    for ty in [ElemType::Int(IntKind::I32), ElemType::UInt(UIntKind::U32)] {
        props.register_atomic_type_usage(Type::atomic(ty), AtomicUsage::all());
    }
    let sums = AtomicUsage::Add | AtomicUsage::LoadStore | AtomicUsage::Exchange;
    let mut wide = vec![ElemType::UInt(UIntKind::U64), ElemType::Float(FloatKind::F32)];
    wide.extend((capability >= 60).then_some(ElemType::Float(FloatKind::F64)));
    for ty in wide {
        props.register_atomic_type_usage(Type::atomic(ty), sums);
    }
}

fn architecture(found: &Found) -> CudaArchitecture {
    CudaArchitecture {
        version: found.capability,
        tensor_cores: CudaArchitecture::has_tensor_cores(found.capability, &found.name),
    }
}

fn hardware(context: &Context, found: &Found) -> HardwareProperties {
    let value = |attribute| context.attribute(attribute) as u32;
    let tensor_cores = architecture(found).tensor_cores;
    HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: MAX_BINDINGS,
        max_shared_memory_size: value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) as usize,
        max_cube_count: (
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X),
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y),
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z),
        ),
        max_units_per_cube: value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        max_cube_dim: (
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X),
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y),
            value(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z),
        ),
        num_streaming_multiprocessors: Some(found.processors),
        num_tensor_cores: tensor_cores.then_some(if found.capability < 80 { 8 } else { 4 }),
        min_tensor_cores_dim: tensor_cores.then_some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    }
}

/// How matrix instructions hold their operands.
pub(crate) fn target_properties() -> TargetProperties {
    TargetProperties {
        mma: MmaProperties {
            register_size_bits: 32,
            const_plane_size: 32,
            register_layout_a: MatrixLayout::RowMajor,
            register_layout_b: MatrixLayout::ColMajor,
            register_layout_acc: MatrixLayout::RowMajor,
            register_duplication_a: 1,
            register_duplication_b: 1,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
        },
    }
}
