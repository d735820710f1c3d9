//! What a machine can do.

use serde::{Deserialize, Serialize};

use super::Linear;
use crate::{CacheError, Result};

/// A path over which weights travel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Seconds before the first byte.
    pub latency_seconds: f64,
    /// Bytes a second after that.
    pub bytes_per_second: f64,
}

/// Something that multiplies weights with activations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Seconds that a call costs whatever it computes: kernel launches, allocation, bookkeeping.
    pub call_seconds: f64,
    /// Bytes of weights read a second.
    pub bytes_per_second: f64,
    /// Multiplications and additions a second.
    pub operations_per_second: f64,
}

/// Whether copies run while the device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// Loads of a wave come first, then its compute.
    None,
    /// Resident experts are computed while others are loaded, each of those when it has arrived.
    Copies,
}

/// The speeds of a machine that serves a model with an expert cache.
///
/// The presets are nominal: round figures of the kind of machine that their name says, from data sheets, to start from
/// and to compare. What a machine really does `moe-offload` measures.
///
/// ```
/// use expert_cache::HardwareProfile;
/// let profile = HardwareProfile::preset("laptop-gpu")?;
/// // An expert of 10 MB at 12 GB/s.
/// assert!((profile.link.seconds(10_000_000) - 0.85e-3).abs() < 0.05e-3);
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardwareProfile {
    /// What it is the profile of.
    pub name: String,
    /// From host memory into a slot.
    pub link: Transfer,
    /// From disk into host memory.
    pub disk: Transfer,
    /// The processor beside the slots.
    pub device: Processor,
    /// The processor beside host memory.
    pub host: Processor,
    /// Deciding a plan and keeping the books of a layer's cache, by wanted experts.
    pub plan: Linear,
    /// Whether copies run beside compute.
    pub overlap: Overlap,
}

impl Transfer {
    /// Seconds of one transfer.
    pub fn seconds(&self, bytes: u64) -> f64 {
        self.latency_seconds + bytes as f64 / self.bytes_per_second
    }
}

/// Name, link, disk, device and host in gigabytes and tera-operations a second, calls in microseconds.
type Preset = (&'static str, f64, f64, (f64, f64, f64), (f64, f64, f64));

/// Data-sheet figures, copies at about 80 % of the bus.
const PRESETS: [Preset; 4] = [
    // PCIe 5.0 x16, HBM3.
    ("datacenter-gpu", 50.0, 6.0, (8.0, 3000.0, 700.0), (20.0, 200.0, 4.0)),
    // PCIe 4.0 x16, GDDR6X.
    ("desktop-gpu", 25.0, 5.0, (8.0, 900.0, 130.0), (10.0, 60.0, 1.5)),
    // PCIe 4.0 x8, GDDR6.
    ("laptop-gpu", 12.0, 3.5, (10.0, 250.0, 40.0), (10.0, 50.0, 0.8)),
    // Shared memory: a load is a read from flash.
    ("phone", 2.5, 2.5, (10.0, 50.0, 1.0), (10.0, 50.0, 1.0)),
];

impl HardwareProfile {
    /// Names of the presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.0)
    }

    /// A nominal profile.
    ///
    /// # Errors
    /// [`CacheError::UnknownPreset`].
    pub fn preset(name: &str) -> Result<HardwareProfile> {
        let preset = PRESETS.iter().find(|preset| preset.0 == name);
        let &(name, link, disk, device, host) =
            preset.ok_or_else(|| CacheError::UnknownPreset { name: name.to_owned() })?;
        let processor = |(call, bytes, operations): (f64, f64, f64)| Processor {
            call_seconds: call * 1e-6,
            bytes_per_second: bytes * 1e9,
            operations_per_second: operations * 1e12,
        };
        Ok(HardwareProfile {
            name: name.to_owned(),
            link: Transfer { latency_seconds: 10e-6, bytes_per_second: link * 1e9 },
            disk: Transfer { latency_seconds: 100e-6, bytes_per_second: disk * 1e9 },
            device: processor(device),
            host: processor(host),
            plan: Linear::default(),
            overlap: Overlap::Copies,
        })
    }

    /// Checks every figure: times must be 0 to 10^6 seconds, speeds 1 to 10^24 bytes or operations per second. So no cost
    /// overflows.
    ///
    /// # Errors
    /// [`CacheError::Profile`].
    pub fn check(&self) -> Result<()> {
        let times = [
            ("link.latency_seconds", self.link.latency_seconds),
            ("disk.latency_seconds", self.disk.latency_seconds),
            ("device.call_seconds", self.device.call_seconds),
            ("host.call_seconds", self.host.call_seconds),
            ("plan.call_seconds", self.plan.call_seconds),
            ("plan.seconds_each", self.plan.seconds_each),
        ];
        let speeds = [
            ("link.bytes_per_second", self.link.bytes_per_second),
            ("disk.bytes_per_second", self.disk.bytes_per_second),
            ("device.bytes_per_second", self.device.bytes_per_second),
            ("device.operations_per_second", self.device.operations_per_second),
            ("host.bytes_per_second", self.host.bytes_per_second),
            ("host.operations_per_second", self.host.operations_per_second),
        ];
        let bad_time = times.into_iter().find(|(_, value)| !(0.0..=1e6).contains(value));
        let bad_speed = speeds.into_iter().find(|(_, value)| !(1.0..=1e24).contains(value));
        match (bad_time, bad_speed) {
            (Some((field, value)), _) => Err(CacheError::Profile { field, value, limit: "0 to 1e6" }),
            (None, Some((field, value))) => Err(CacheError::Profile { field, value, limit: "1 to 1e24" }),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound_and_others_are_refused() {
        for name in HardwareProfile::presets() {
            HardwareProfile::preset(name).unwrap().check().unwrap();
        }
        let message = HardwareProfile::preset("abacus").unwrap_err().to_string();
        assert_eq!(message, "there is no preset \"abacus\", known are datacenter-gpu, desktop-gpu, laptop-gpu, phone");
    }

    #[test]
    fn impossible_figures_are_refused() {
        let mut profile = HardwareProfile::preset("phone").unwrap();
        profile.link.bytes_per_second = 0.0;
        assert_eq!(profile.check().unwrap_err().to_string(), "link.bytes_per_second is 0, it must be 1 to 1e24");
        profile.link.bytes_per_second = 1e308;
        assert!(profile.check().unwrap_err().to_string().ends_with("it must be 1 to 1e24"));
        profile.device.call_seconds = f64::NAN;
        assert_eq!(profile.check().unwrap_err().to_string(), "device.call_seconds is NaN, it must be 0 to 1e6");
        profile.device.call_seconds = 1e308;
        assert!(profile.check().unwrap_err().to_string().ends_with("it must be 0 to 1e6"));
    }
}
