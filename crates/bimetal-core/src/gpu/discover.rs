//! Which GPUs this machine has, which are missing and why, and how to connect to one.

use crate::device::Absent;
use crate::{Device, DeviceInfo, Error, Result};
use cubecl::client::Client;
use std::sync::OnceLock;

/// The GPUs that are here, best first, and the backends that are not.
pub(crate) fn discover() -> &'static (Vec<DeviceInfo>, Vec<Absent>) {
    static FOUND: OnceLock<(Vec<DeviceInfo>, Vec<Absent>)> = OnceLock::new();
    FOUND.get_or_init(|| {
        let (mut found, mut absent) = (Vec::new(), Vec::new());
        for (backend, probe) in [("metal", metal::probe as fn() -> _), ("cuda", cuda::probe), ("vulkan", vulkan::probe)]
        {
            let listed: std::result::Result<Vec<DeviceInfo>, String> = probe();
            match listed {
                Ok(infos) => found.extend(infos),
                Err(reason) => absent.push(Absent { backend, reason }),
            }
        }
        found.sort_by_key(|info: &DeviceInfo| info.software);
        (found, absent)
    })
}

/// A client for `device`.
pub(super) fn connect(device: Device) -> Result<Client> {
    let (found, absent) = discover();
    let unavailable = |reason: String| Error::Unavailable { device: device.to_string(), reason };
    let Some(info) = found.iter().find(|info| info.device == device) else {
        let reason = absent.iter().find(|a| a.backend == device.backend()).map_or_else(
            || {
                let count = found.iter().filter(|i| i.device.backend() == device.backend()).count();
                format!("this machine has {count} {} device(s)", device.backend())
            },
            |a| a.reason.clone(),
        );
        return Err(unavailable(reason));
    };
    let connected = std::panic::catch_unwind(|| match device {
        Device::Cpu => Err("it is not a GPU".to_string()),
        Device::Cuda(index) => cuda::connect(index),
        Device::Vulkan(index) => vulkan::connect(index, info.software),
        Device::Metal(index) => metal::connect(index),
    });
    match connected {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(reason)) => Err(unavailable(reason)),
        Err(_) => Err(unavailable("the driver failed while it was being initialised".into())),
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Client, Device, DeviceInfo};

    pub fn probe() -> Result<Vec<DeviceInfo>, String> {
        let describe = |(index, found): (u16, &bimetal_cuda::Found)| DeviceInfo {
            device: Device::Cuda(index),
            name: found.name.clone(),
            driver: format!("CUDA {}.{}, sm_{}", found.driver / 1000, found.driver % 1000 / 10, found.capability),
            memory: Some(found.memory),
            cores: Some(found.processors),
            levels: Vec::new(),
            software: false,
        };
        Ok((0u16..).zip(bimetal_cuda::found()?).map(describe).collect())
    }

    pub fn connect(index: u16) -> Result<Client, String> {
        bimetal_cuda::connect(index)
    }
}

#[cfg(any(feature = "vulkan", feature = "metal"))]
mod adapters {
    use super::{Client, Device, DeviceInfo};
    use cubecl_runtime::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
    use cubecl_runtime::runtime::Runtime;
    use cubecl_wgpu::wgpu;

    /// The adapters of one graphics API with the kind by which CubeCL names each, hardware first.
    fn list(api: wgpu::Backend) -> Vec<(wgpu::AdapterInfo, WgpuDeviceKind)> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: api.into(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let (mut discrete, mut integrated, mut virtuals, mut other) = (0, 0, 0, 0);
        let mut next = |counter: fn(&mut [usize; 4]) -> &mut usize| {
            let mut counts = [discrete, integrated, virtuals, other];
            let index = *counter(&mut counts);
            *counter(&mut counts) += 1;
            [discrete, integrated, virtuals, other] = counts;
            index
        };
        let mut found: Vec<_> = cubecl::future::block_on(instance.enumerate_adapters(api.into()))
            .iter()
            .map(|adapter| {
                let info = adapter.get_info();
                let kind = match info.device_type {
                    wgpu::DeviceType::DiscreteGpu => WgpuDeviceKind::DiscreteGpu(next(|c| &mut c[0])),
                    wgpu::DeviceType::IntegratedGpu => WgpuDeviceKind::IntegratedGpu(next(|c| &mut c[1])),
                    wgpu::DeviceType::VirtualGpu => WgpuDeviceKind::VirtualGpu(next(|c| &mut c[2])),
                    wgpu::DeviceType::Cpu => WgpuDeviceKind::Cpu,
                    wgpu::DeviceType::Other => WgpuDeviceKind::Other(next(|c| &mut c[3])),
                };
                (info, kind)
            })
            .collect();
        found.sort_by_key(|(info, _)| info.device_type == wgpu::DeviceType::Cpu);
        found
    }

    pub fn probe(api: wgpu::Backend, name: fn(u16) -> Device, missing: &str) -> Result<Vec<DeviceInfo>, String> {
        let found = list(api);
        if found.is_empty() {
            return Err(missing.into());
        }
        Ok((0u16..)
            .zip(found)
            .map(|(index, (info, _))| DeviceInfo {
                device: name(index),
                name: info.name.clone(),
                driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
                memory: None,
                cores: None,
                levels: Vec::new(),
                software: info.device_type == wgpu::DeviceType::Cpu,
            })
            .collect())
    }

    pub fn connect(api: wgpu::Backend, on: WgpuBackend, index: u16, software: bool) -> Result<Client, String> {
        let found = list(api);
        let (_, kind) = found.get(index as usize).ok_or("the adapter has gone")?;
        let device = WgpuDevice::new(kind.clone()).on(on);
        if software {
            // Mesa's CPU driver crashes on some SPIR-V kernels and runs all of them as WGSL.
            return Ok(<cubecl_wgpu::WgpuRuntime<cubecl_wgpu::WgslCompiler>>::client(&device));
        }
        Ok(<cubecl_wgpu::WgpuRuntime>::client(&device))
    }
}

#[cfg(feature = "vulkan")]
mod vulkan {
    use super::{Client, Device, DeviceInfo, adapters};
    use cubecl_runtime::device::WgpuBackend;
    use cubecl_wgpu::wgpu::Backend;

    pub fn probe() -> Result<Vec<DeviceInfo>, String> {
        adapters::probe(Backend::Vulkan, Device::Vulkan, "no Vulkan loader (libvulkan) with a driver")
    }

    pub fn connect(index: u16, software: bool) -> Result<Client, String> {
        adapters::connect(Backend::Vulkan, WgpuBackend::Vulkan, index, software)
    }
}

#[cfg(feature = "metal")]
mod metal {
    use super::{Client, Device, DeviceInfo, adapters};
    use cubecl_runtime::device::WgpuBackend;
    use cubecl_wgpu::wgpu::Backend;

    pub fn probe() -> Result<Vec<DeviceInfo>, String> {
        adapters::probe(Backend::Metal, Device::Metal, "Metal has no device")
    }

    pub fn connect(index: u16) -> Result<Client, String> {
        adapters::connect(Backend::Metal, WgpuBackend::Metal, index, false)
    }
}

macro_rules! not_built {
    ($($feature:literal => $module:ident($($arg:ident: $t:ty),*);)*) => {$(
        #[cfg(not(feature = $feature))]
        mod $module {
            use super::{Client, DeviceInfo};

            pub fn probe() -> Result<Vec<DeviceInfo>, String> {
                Err(concat!("built without the feature `", $feature, "`").into())
            }

            pub fn connect($($arg: $t),*) -> Result<Client, String> {
                $(let _ = $arg;)*
                Err(concat!("built without the feature `", $feature, "`").into())
            }
        }
    )*};
}

not_built! {
    "cuda" => cuda(index: u16);
    "vulkan" => vulkan(index: u16, software: bool);
    "metal" => metal(index: u16);
}
