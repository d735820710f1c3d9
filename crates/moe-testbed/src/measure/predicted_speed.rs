//! Tokens a second that a model would decode with an expert cache.

use expert_cache::{
    CostModel, Counts, ExpertCache, HardwareProfile, Lru, ModelSize, Oversize, Partition, Simulation, Timeline,
};
use moe_model::OlmoeConfig;
use moe_trace::{MemoryTrace, Phase, RoutingSource, SequenceBuf};
use serde::{Deserialize, Serialize};

use super::options::SpeedOptions;
use crate::error::{Result, check};

/// Bytes of a weight: bf16.
const WEIGHT_BYTES: f64 = 2.0;

/// A grown model on a machine, as [`SpeedOptions`] describe them.
#[derive(Clone, Debug)]
pub struct SpeedPlan {
    profile: HardwareProfile,
    size: ModelSize,
    experts: usize,
    slots: usize,
}

/// Predicted speed of a trace, decoded one token at a time with an LRU cache in every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedSpeed {
    /// Name of the machine's profile.
    pub machine: String,
    /// Expert slots a layer.
    pub slots: usize,
    /// Bytes of one expert of the grown model.
    pub expert_bytes: u64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Hit rate of the caches.
    pub hit_rate: f64,
    /// Tokens a second when every expert is in a slot.
    pub resident_tokens_per_second: f64,
}

impl SpeedPlan {
    /// Grows a model, and sees how many experts fit.
    ///
    /// # Errors
    /// [`TestbedError::Option`](crate::TestbedError::Option) if not one expert a layer fits beside what every token
    /// computes; as [`Machine::profile`](crate::Machine::profile).
    pub fn new(config: &OlmoeConfig, options: &SpeedOptions) -> Result<SpeedPlan> {
        let (params, shape) = (config.params(), config.expert_shape());
        let expert = 3 * shape.hidden * shape.intermediate;
        let embedding = params.vocab_size * params.hidden_size;
        let embeddings = if params.tie_word_embeddings { embedding } else { 2 * embedding };
        let experts = shape.layers * shape.experts * expert;
        // Attention, norms, routers, shared experts and dense layers, spread over the layers with a cache.
        let dense = (config.parameters() - embeddings - experts) / shape.layers;
        let grown = options.model_gigabytes * 1e9 / WEIGHT_BYTES / (experts + dense * shape.layers) as f64;
        let weights = |count: usize| whole(grown * count as f64);
        let bytes = |count: usize| whole(grown * count as f64 * WEIGHT_BYTES);
        let size = ModelSize {
            expert_bytes: vec![bytes(expert); shape.layers],
            expert_weights: weights(expert),
            dense_bytes: bytes(dense),
            dense_weights: weights(dense),
            head_bytes: 0,
            head_weights: 0,
        };
        let always = bytes(dense).saturating_mul(shape.layers as u64);
        let left = whole(options.memory_gigabytes * 1e9).saturating_sub(always);
        let slots = left / bytes(expert).max(1).saturating_mul(shape.layers as u64);
        let needed = always.saturating_add(bytes(expert).saturating_mul(shape.layers as u64)) as f64 * 1e-9;
        let allowed = format!("{needed:.3} and more, for one expert a layer and what every token computes");
        check("measure.speed.memory_gigabytes", options.memory_gigabytes, slots > 0, allowed)?;
        let slots = usize::try_from(slots).unwrap_or(usize::MAX).min(shape.experts);
        Ok(SpeedPlan { profile: options.machine.profile()?, size, experts: shape.experts, slots })
    }

    /// Predicts the speed of a trace, of which every token counts as decoded.
    ///
    /// # Errors
    /// [`TestbedError::Cache`](crate::TestbedError::Cache) if the trace is of another model.
    pub fn predict(&self, trace: &MemoryTrace) -> Result<PredictedSpeed> {
        let decoded = decoded(trace)?;
        let (tokens_per_second, hit_rate) = self.simulate(&decoded, Some(self.slots))?;
        Ok(PredictedSpeed {
            machine: self.profile.name.clone(),
            slots: self.slots,
            expert_bytes: self.size.expert_bytes[0],
            tokens_per_second,
            hit_rate,
            resident_tokens_per_second: self.simulate(&decoded, None)?.0,
        })
    }

    /// Tokens a second and hit rate; without a number of slots, every expert is there from the start.
    fn simulate(&self, trace: &MemoryTrace, slots: Option<usize>) -> Result<(f64, f64)> {
        let geometry = trace.geometry();
        let mut costs = CostModel::new(&self.profile, &self.size, false)?;
        if slots.is_none() {
            costs.load_seconds.fill(0.0);
        }
        let slots = slots.unwrap_or(self.experts);
        let cache = |_| ExpertCache::new(Lru::new(self.experts), self.experts, slots, Oversize::Waves);
        let caches = geometry.layer_ids().map(cache).collect::<expert_cache::Result<_>>()?;
        let mut simulation = Simulation::of_pools(Partition::per_layer(geometry).into_pools(), caches)?;
        let mut timeline = Timeline::new(costs, simulation.pools())?;
        simulation.observe(trace, |served| {
            timeline.serve(served);
        })?;
        let mut counts = Counts::default();
        simulation.counts().iter().for_each(|layer| counts.merge(&layer.decode));
        Ok((timeline.speed().decode.tokens_per_second(), counts.hit_rate()))
    }
}

/// The same routing, decoded token by token.
fn decoded(trace: &MemoryTrace) -> Result<MemoryTrace> {
    let mut decoded = MemoryTrace::new(trace.geometry().clone());
    for sequence in trace.sequences() {
        let phases = vec![Phase::Decode.code(); sequence.phases.len()];
        decoded.push(SequenceBuf { experts: sequence.experts.clone(), phases, ..SequenceBuf::default() })?;
    }
    Ok(decoded)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; casts saturate")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use expert_cache::{Linear, Overlap, Processor, Transfer};
    use moe_model::OlmoeParams;
    use moe_trace::Geometry;

    use super::*;
    use crate::measure::options::Machine;

    /// A machine that only loads take time on: 1 GB/s.
    fn options(memory_gigabytes: f64) -> SpeedOptions {
        let fast = Processor { call_seconds: 0.0, bytes_per_second: 1e24, operations_per_second: 1e24 };
        let link = Transfer { latency_seconds: 0.0, bytes_per_second: 1e9 };
        let profile = HardwareProfile {
            name: "by hand".to_owned(),
            link,
            disk: link,
            device: fast,
            host: fast,
            plan: Linear::default(),
            overlap: Overlap::None,
        };
        SpeedOptions { machine: Machine::Profile(Box::new(profile)), model_gigabytes: 10.0, memory_gigabytes }
    }

    fn config() -> OlmoeConfig {
        OlmoeConfig::new(OlmoeParams {
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 100,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            num_experts: 4,
            num_experts_per_tok: 1,
            max_position_embeddings: 8,
            tie_word_embeddings: true,
            eos_token_ids: vec![],
            ..OlmoeParams::default()
        })
        .unwrap()
    }

    #[test]
    fn loads_alone_take_time() {
        // 4 experts of 2400 weights beside 4 * 64 of attention, 4 * 8 of norms, 4 * 8 of the router and 8 of the last norm:
        // the experts are nearly all of the 10 GB.
        let config = config();
        let plan = SpeedPlan::new(&config, &options(5.5)).unwrap();
        let total = (4 * 2400 + 4 * 64 + 4 * 8 + 4 * 8 + 8) as f64;
        let expert = 10.0 * 2400.0 / total;
        assert_eq!(plan.slots, 2);
        let geometry = Geometry::decoder(1, 4, 1).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        // Misses: 0, 1, 2, 0.
        let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 1, 2, 0], Phase::Prefill).unwrap();
        trace.push(sequence).unwrap();
        let speed = plan.predict(&trace).unwrap();
        assert!((speed.tokens_per_second * 4.0 * expert / 5.0 - 1.0).abs() < 1e-6, "{speed:?}");
        assert_eq!((speed.slots, speed.hit_rate), (2, 0.2));
        assert!(speed.resident_tokens_per_second > 1e6);
    }

    #[test]
    fn a_memory_without_room_for_an_expert_is_an_error() {
        let message = SpeedPlan::new(&config(), &options(1.0)).unwrap_err().to_string();
        assert!(message.starts_with("measure.speed.memory_gigabytes is 1, allowed are 2."), "{message}");
    }
}
