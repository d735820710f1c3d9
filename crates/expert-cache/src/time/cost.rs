//! What the parts of a model cost on a machine.

use moe_trace::Geometry;
use serde::{Deserialize, Serialize};

use super::{HardwareProfile, Overlap, Processor};
use crate::{CacheError, Result};

/// Seconds of `count` things done in one call: `call_seconds + count * seconds_each`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Seconds of the call.
    pub call_seconds: f64,
    /// Seconds of each thing.
    pub seconds_each: f64,
}

impl Linear {
    /// Seconds of `calls` calls that do `count` things together.
    pub fn seconds(&self, calls: usize, count: u64) -> f64 {
        self.call_seconds * calls as f64 + self.seconds_each * count as f64
    }
}

/// How large the parts of a model are, in bytes as they are computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSize {
    /// Bytes of one expert of each layer.
    pub expert_bytes: Vec<u64>,
    /// Weights of one expert.
    pub expert_weights: u64,
    /// Bytes of what else a layer computes: attention, router, shared experts.
    pub dense_bytes: u64,
    /// Weights of what else a layer computes.
    pub dense_weights: u64,
    /// Bytes of what is computed once a token: the language-model head.
    pub head_bytes: u64,
    /// Weights of what is computed once a token.
    pub head_weights: u64,
}

/// Who computes a wanted expert that must be loaded first.
///
/// Where nothing overlaps it is the device, whatever is chosen: the copy that fills the slot takes its time all the same.
/// (A [`MissPolicy`](crate::MissPolicy) decides whether it is loaded at all.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhileLoading {
    /// The device, when it has arrived.
    #[default]
    Device,
    /// The host, at once; the copy follows when the link is idle.
    Host,
    /// Whichever of the two would be done first, expert by expert in the order of the plan.
    Sooner,
}

/// What each step of serving a token costs, in seconds.
///
/// # Formula
/// A call that multiplies `tokens` activations with `weights` weights of `bytes` bytes costs
/// `call_seconds + bytes / bytes_per_second + tokens * 2 * weights / operations_per_second`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Seconds of loading one expert of each layer into a slot.
    pub load_seconds: Vec<f64>,
    /// An expert in a slot, by tokens.
    pub device_expert: Linear,
    /// An expert in host memory, by tokens.
    pub host_expert: Linear,
    /// Deciding a plan and keeping the books of a layer's cache, by wanted experts.
    pub plan: Linear,
    /// What else a layer computes, by tokens.
    pub dense: Linear,
    /// What is computed once a pass through the model, by tokens.
    pub head: Linear,
    /// Whether copies run beside compute.
    pub overlap: Overlap,
}

impl Processor {
    /// Cost of a call on some weights, by tokens.
    fn cost(&self, bytes: u64, weights: u64) -> Linear {
        Linear {
            call_seconds: self.call_seconds + bytes as f64 / self.bytes_per_second,
            seconds_each: 2.0 * weights as f64 / self.operations_per_second,
        }
    }
}

impl CostModel {
    /// Costs of loads alone: one expert of each layer into a slot; all else takes no time.
    pub fn loads(load_seconds: Vec<f64>, overlap: Overlap) -> CostModel {
        let nothing = Linear::default();
        CostModel {
            load_seconds,
            device_expert: nothing,
            host_expert: nothing,
            plan: nothing,
            dense: nothing,
            head: nothing,
            overlap,
        }
    }

    /// Costs of a model whose experts come from host memory, or from disk through host memory.
    ///
    /// # Errors
    /// [`CacheError::Profile`]; [`CacheError::NoLayers`].
    ///
    /// ```
    /// use expert_cache::{CostModel, HardwareProfile, ModelSize};
    /// let size = ModelSize {
    ///     expert_bytes: vec![12_000_000; 24],
    ///     expert_weights: 24_000_000,
    ///     dense_bytes: 30_000_000,
    ///     dense_weights: 15_000_000,
    ///     head_bytes: 500_000_000,
    ///     head_weights: 250_000_000,
    /// };
    /// let laptop = CostModel::new(&HardwareProfile::preset("laptop-gpu")?, &size, false)?;
    /// assert!((laptop.load_seconds[0] - 1.01e-3).abs() < 1e-6);
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    pub fn new(profile: &HardwareProfile, size: &ModelSize, from_disk: bool) -> Result<CostModel> {
        profile.check()?;
        let (Some(&first), layers) = (size.expert_bytes.first(), size.expert_bytes.len()) else {
            return Err(CacheError::NoLayers);
        };
        // The mean layer stands for all in compute; loads are told apart.
        let mean = size.expert_bytes.iter().fold(0u64, |sum, &bytes| sum.saturating_add(bytes)) / layers as u64;
        let expert_bytes = if size.expert_bytes.iter().all(|&bytes| bytes == first) { first } else { mean };
        let load = |&bytes: &u64| {
            let read = if from_disk { profile.disk.seconds(bytes) } else { 0.0 };
            profile.link.seconds(bytes) + read
        };
        Ok(CostModel {
            load_seconds: size.expert_bytes.iter().map(load).collect(),
            device_expert: profile.device.cost(expert_bytes, size.expert_weights),
            host_expert: profile.host.cost(expert_bytes, size.expert_weights),
            plan: profile.plan,
            dense: profile.device.cost(size.dense_bytes, size.dense_weights),
            head: profile.device.cost(size.head_bytes, size.head_weights),
            overlap: profile.overlap,
        })
    }

    /// Checks the costs, and that they are those of a geometry's layers.
    pub(crate) fn check_layers(&self, geometry: &Geometry) -> Result<()> {
        self.check()?;
        let (found, expected) = (self.load_seconds.len(), geometry.layers());
        if found == expected { Ok(()) } else { Err(CacheError::CostLayers { found, expected }) }
    }

    /// Checks that every cost is 0 to 10^12 seconds, so that no sum of them overflows.
    fn check(&self) -> Result<()> {
        if self.load_seconds.is_empty() {
            return Err(CacheError::NoLayers);
        }
        let linear = [
            ["device_expert.call_seconds", "device_expert.seconds_each"],
            ["host_expert.call_seconds", "host_expert.seconds_each"],
            ["plan.call_seconds", "plan.seconds_each"],
            ["dense.call_seconds", "dense.seconds_each"],
            ["head.call_seconds", "head.seconds_each"],
        ];
        let values = [self.device_expert, self.host_expert, self.plan, self.dense, self.head];
        let linear = linear
            .into_iter()
            .zip(values)
            .flat_map(|(names, cost)| names.into_iter().zip([cost.call_seconds, cost.seconds_each]));
        let mut all = self.load_seconds.iter().map(|&seconds| ("load_seconds", seconds)).chain(linear);
        match all.find(|(_, seconds)| !(0.0..=1e12).contains(seconds)) {
            Some((field, value)) => Err(CacheError::Profile { field, value, limit: "0 to 1e12 seconds" }),
            None => Ok(()),
        }
    }
}
