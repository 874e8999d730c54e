//! Launches: addresses and scalars into the driver's form.

use crate::compile::Kernel;
use crate::driver::{Failure, check};
use cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUstream,
};
use smallvec::SmallVec;
use std::ffi::c_void;

/// Launches `kernel` on `stream`: `addresses` are its buffers, `parameters` the block of scalars and lengths, if it has one.
///
/// # Errors
/// A launch that the driver refuses, or a lost device.
pub(crate) fn launch(
    kernel: &Kernel,
    count: (u32, u32, u32),
    stream: CUstream,
    addresses: &[u64],
    parameters: Option<&[u64]>,
) -> Result<(), Failure> {
    let mut pointers: SmallVec<[*mut c_void; 16]> =
        addresses.iter().map(|address| std::ptr::from_ref(address).cast_mut().cast()).collect();
    pointers.extend(parameters.map(|block| block.as_ptr().cast_mut().cast::<c_void>()));
    // All cubes run at once or, with an error, none.
    let mut attribute = if kernel.together {
        CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: CUlaunchAttributeValue { cooperative: 1 },
        }
    } else {
        CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }
    };
    let config = CUlaunchConfig {
        gridDimX: count.0,
        gridDimY: count.1,
        gridDimZ: count.2,
        blockDimX: kernel.cube_dim.0,
        blockDimY: kernel.cube_dim.1,
        blockDimZ: kernel.cube_dim.2,
        sharedMemBytes: kernel.shared_memory,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: u32::from(kernel.overlaps || kernel.together),
    };
    // SAFETY: the function is loaded in the current context; each pointer is to a parameter of the kernel's, which the
    // driver copies before it returns.
    let status =
        unsafe { sys::cuLaunchKernelEx(&config, kernel.function, pointers.as_mut_ptr(), std::ptr::null_mut()) };
    check("cuLaunchKernelEx", status)
}
