//! The device that a program computes on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail};
use candle_core::Device;
use moe_offload::HostStore;

/// A device as the user names it: `cpu`, `cuda`, `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

impl DeviceName {
    /// Opens the device.
    ///
    /// # Errors
    /// A GPU in a program that was built without the feature `cuda`, or that the driver does not have.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceName::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(ordinal) => Ok(moe_offload::cuda_device(ordinal)?),
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => {
                bail!("--device is {self}, but this program was built without --features cuda; see docs/cuda.md")
            }
        }
    }
}

/// Page-locks a store for loads into the slots of a GPU, which are there already, and prints how far that went. On the
/// CPU there is nothing to lock.
///
/// # Errors
/// An expert that the store does not give.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is no GPU to lock for"))]
pub fn page_lock(device: &Device, store: &Arc<HostStore>) -> Result<()> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        crate::outln!("{}", moe_offload::CudaLoader::of(device)?.pin(store, u64::MAX)?);
    }
    Ok(())
}

impl FromStr for DeviceName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<DeviceName> {
        let number = match name.split_once(':') {
            None if name == "cpu" => return Ok(DeviceName::Cpu),
            None if name == "cuda" => Some(0),
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        match number {
            Some(ordinal) => Ok(DeviceName::Cuda(ordinal)),
            None => bail!("{name} is no device, known are cpu, cuda and cuda:N"),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_devices_and_back() {
        let parse = |name: &str| name.parse::<DeviceName>();
        assert_eq!(["cpu", "cuda", "cuda:3"].map(|name| parse(name).unwrap().to_string()), ["cpu", "cuda:0", "cuda:3"]);
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"] {
            let expected = format!("{name} is no device, known are cpu, cuda and cuda:N");
            assert_eq!(parse(name).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_why() {
        assert!(DeviceName::Cpu.open().unwrap().is_cpu());
        // No machine has that many.
        let error = DeviceName::Cuda(4096).open().unwrap_err().to_string();
        let expected = match cfg!(feature = "cuda") {
            true => "GPU 4096 cannot be used: ",
            false => "--device is cuda:4096, but this program was built without --features cuda; see docs/cuda.md",
        };
        assert!(error.starts_with(expected), "{error}");
    }
}
