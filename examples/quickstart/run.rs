//! Generation with either bank, and the simulation of the offloaded one.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use candle_nn::VarBuilder;
use expert_cache::{EvictionPolicy, ExpertCache, Oversize, PhaseCounts, PolicyKind, Pool, Requests, Simulation};
use moe_model::{GenerateOptions, GenerateTimings, Olmoe, OlmoeConfig, Sampling, generate};
use moe_offload::{ExpertBank, ExpertStore, OffloadOptions, OffloadedExperts};
use moe_trace::{DomainId, LayerId, MemoryTrace, Recorder, RoutingSource};
use moescope_cli::progress_bar;

use moescope_cli::Prompt;

/// What one run of all prompts gave.
pub(crate) struct Run {
    /// New tokens of each prompt.
    pub(crate) texts: Vec<Vec<u32>>,
    /// The routing of prompts and new tokens.
    pub(crate) trace: MemoryTrace,
    /// Time spent.
    pub(crate) timings: GenerateTimings,
}

/// Continues the prompts one after the other, and records the router.
pub(crate) fn generate_all(
    name: &str,
    config: &OlmoeConfig,
    vb: &VarBuilder<'_>,
    bank: Arc<dyn ExpertBank>,
    prompts: &[Prompt],
    sampler: Sampling,
    max_new_tokens: usize,
) -> Result<Run> {
    let model = Olmoe::new(config, vb, bank)?;
    let mut domains: Vec<&str> = Vec::new();
    for prompt in prompts {
        if !domains.contains(&prompt.domain.as_str()) {
            domains.push(&prompt.domain);
        }
    }
    let trace = MemoryTrace::new(config.geometry()).with_model(name).with_domains(domains.iter().copied());
    let mut recorder = Recorder::new(trace);
    let stop_tokens = config.params().eos_token_ids.clone();
    let bar = progress_bar(prompts.len() * max_new_tokens, "tokens");
    let (mut texts, mut timings) = (Vec::new(), GenerateTimings::default());
    for (number, prompt) in (0..).zip(prompts) {
        let domain = domains.iter().position(|&domain| domain == prompt.domain).unwrap_or_default();
        recorder.label(0, DomainId(u16::try_from(domain)?));
        let one = std::slice::from_ref(&prompt.tokens);
        // A random stream a prompt, so that equal prompts go on differently.
        let sampler = match sampler {
            Sampling::TopP { temperature, top_p, seed } => {
                Sampling::TopP { temperature, top_p, seed: seed.wrapping_add(number) }
            }
            Sampling::Greedy => Sampling::Greedy,
        };
        let options = GenerateOptions { max_new_tokens, sampler, seeds: Vec::new(), stop_tokens: stop_tokens.clone() };
        let generated = generate(&model, one, &options, &mut recorder, |_, _| bar.inc(1))?;
        texts.extend(generated.sequences.into_iter().map(|sequence| sequence.tokens));
        timings.prefill += generated.timings.prefill;
        timings.prefill_tokens += generated.timings.prefill_tokens;
        timings.decode += generated.timings.decode;
        timings.decode_tokens += generated.timings.decode_tokens;
    }
    bar.finish_and_clear();
    Ok(Run { texts, trace: recorder.finish()?, timings })
}

/// A request larger than the cache is served in waves, so that every expert is computed from a slot.
const OVERSIZE: Oversize = Oversize::Waves;

/// A bank of `capacity` slots a layer; policies that look ahead are given the recorded routing.
pub(crate) fn offloaded_bank(
    store: Arc<dyn ExpertStore>,
    device: &Device,
    capacity: usize,
    kind: PolicyKind,
    recorded: &MemoryTrace,
) -> Result<OffloadedExperts> {
    let policy = |pool: &Pool, slots| policy(kind, slots, recorded, pool.layers()[0]);
    let options = OffloadOptions::slots(capacity).oversize(OVERSIZE).policy_with(policy);
    Ok(OffloadedExperts::new(store, device, options)?)
}

fn policy(
    kind: PolicyKind,
    capacity: usize,
    recorded: &MemoryTrace,
    layer: LayerId,
) -> expert_cache::Result<Box<dyn EvictionPolicy>> {
    let pool = Pool::layer(recorded.geometry(), layer)?;
    let future = kind.needs_future().then(|| Requests::from_source(recorded, &pool)).transpose()?;
    kind.build(pool.shape(), capacity, future.map(Arc::new).as_ref())
}

/// What the same caches do on the recorded routing, layer by layer.
pub(crate) fn simulate(recorded: &MemoryTrace, capacity: usize, kind: PolicyKind) -> Result<Vec<PhaseCounts>> {
    let geometry = recorded.geometry();
    let layer = |layer| -> Result<PhaseCounts> {
        let cache = ExpertCache::new(policy(kind, capacity, recorded, layer)?, geometry.experts(), capacity, OVERSIZE)?;
        let mut simulation = Simulation::new(Pool::layer(geometry, layer)?, cache)?;
        simulation.run(recorded)?;
        Ok(simulation.counts()[0])
    };
    geometry.layer_ids().map(layer).collect()
}
