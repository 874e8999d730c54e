//! What CubeCL's Metal path says of an Apple GPU: the limits and types that kernels are chosen by.

use cubecl::ir::features::{AtomicUsage, Plane, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties, IntKind,
    MemoryDeviceProperties, Type, UIntKind,
};
use cubecl_common::profile::TimingMethod;
use cubecl_cpp::metal::{arch::MetalArchitecture, supported_cmma_combinations_metal};
use cubecl_cpp::shared::register_wmma_features;

/// The buffers that one kernel can bind: Metal has 31, of which wgpu keeps one for buffer sizes.
pub const MAX_BINDINGS: u32 = 30;

/// The properties of an M-series GPU behind wgpu: 32-wide planes, 32 KiB of shared memory, no f64.
pub fn properties() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: MAX_BINDINGS,
        max_shared_memory_size: 32 * 1024,
        max_cube_count: (65_535, 65_535, 65_535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 1024),
        num_streaming_multiprocessors: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        max_vector_size: 4,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity { name: "Apple GPU".into(), fingerprint: "msl_recorder".into(), physical: None };
    let mut props = DeviceProperties::new(
        Default::default(),
        MemoryDeviceProperties::new(u64::MAX, 256),
        hardware,
        TimingMethod::System,
        identity,
    );
    props.features.alignment = true;
    props.features.device_memory_scope = true;
    props.features.plane.insert(Plane::Ops);
    props.features.plane.insert(Plane::Sync);
    register_types(&mut props);
    register_wmma_features(supported_cmma_combinations_metal(&MetalArchitecture::Metal3), &mut props);
    props
}

fn register_types(props: &mut DeviceProperties) {
    props.register_address_type(AddressType::U32);
    props.register_address_type(AddressType::U64);
    let mut types = vec![ElemType::Index, ElemType::Bool];
    types.extend([UIntKind::U8, UIntKind::U16, UIntKind::U32, UIntKind::U64].map(ElemType::UInt));
    types.extend([IntKind::I8, IntKind::I16, IntKind::I32, IntKind::I64].map(ElemType::Int));
    types.extend([FloatKind::F16, FloatKind::BF16, FloatKind::F32].map(ElemType::Float));
    for elem in types {
        props.register_type_usage(elem, TypeUsage::all());
    }
    for elem in [ElemType::Int(IntKind::I32), ElemType::UInt(UIntKind::U32)] {
        props.register_atomic_type_usage(Type::atomic(elem), AtomicUsage::all());
    }
    let float = Type::atomic(ElemType::Float(FloatKind::F32));
    props.register_atomic_type_usage(float, AtomicUsage::Add | AtomicUsage::LoadStore);
}
