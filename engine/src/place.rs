//! Where models are to compute: a device that has been found and opened, and how much of its memory they may take.

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use statescope_kernels::cuda::Gpu;

use crate::protocol::Device;
use crate::room::Needed;
use crate::runner::DeviceError;

/// A device that is there.
#[derive(Clone)]
pub enum Place {
    Cpu,
    /// A GPU, and the bytes of its memory that may be taken; all that is free if none.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>, Option<usize>),
}

impl Place {
    /// `memory`: bytes of GPU memory that may be taken; all that is free if none.
    ///
    /// # Errors
    /// There is no such device here, or this build cannot use it.
    pub fn open(device: Device, memory: Option<usize>) -> Result<Self, DeviceError> {
        match device {
            Device::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda => Ok(Self::Gpu(Gpu::open(0)?, memory)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => {
                let _ = memory;
                Err(crate::runner::find_gpu().err().unwrap_or_else(|| DeviceError::new("no GPU")))
            }
        }
    }

    /// The same device with another bound.
    #[must_use]
    pub fn with_memory(self, memory: Option<usize>) -> Self {
        match self {
            Self::Cpu => {
                let _ = memory;
                Self::Cpu
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu, _) => Self::Gpu(gpu, memory),
        }
    }

    pub fn device(&self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Gpu(..) => Device::Cuda,
        }
    }

    /// That the model `name` fits, if what runs there now is gone by then.
    ///
    /// # Errors
    /// It does not; in numbers.
    pub fn check(&self, name: &str, needed: Needed) -> Result<(), DeviceError> {
        match self {
            Self::Cpu => {
                let _ = (name, needed);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu, allowed) => {
                let free = gpu.free()? + gpu.used();
                crate::room::Room { free, allowed: *allowed }.check(name, needed)
            }
        }
    }
}
