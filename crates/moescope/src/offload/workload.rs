//! What is run again and again: a model that continues prompts, or the routing of a trace.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use expert_cache::{ModelSize, PolicyKind};
use moe_model::{Checkpoint, GenerateOptions, Olmoe, OlmoeConfig, Sampling, generate};
use moe_offload::{ExpertBank, ExpertStore, FileReads, HostCache, MappedStore, Replay, ResidentExperts, free_bytes};
use moe_trace::{ExpertId, Geometry, LayerId, MemoryTrace, Recorder, RoutingSource};
use moescope_cli::Provenance;
use moescope_cli::built_in_prompts;
use serde::Serialize;

use super::excerpt::Excerpted;
use super::steps::Steps;

/// Bytes of experts that stand in for all, at most: several times what the processors' caches hold.
const MOST_STAND_INS_BYTES: u64 = 1 << 30;

/// A workload and the experts that it wants.
pub(crate) struct Workload {
    /// The experts as they are stored.
    pub(crate) store: Arc<dyn ExpertStore>,
    /// Not all of them fit in memory.
    pub(crate) too_large: bool,
    /// Loads read them past the page cache.
    pub(crate) uncached: bool,
    /// Layers that are run, and that there are.
    pub(crate) layers: Layers,
    /// The facts about a trace; none about text.
    pub(crate) provenance: Provenance,
    kind: Kind,
}

/// Layers of experts, of the weights and of what is run with them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Layers {
    /// Layers that are run: all of the weights.
    pub(crate) run: usize,
    /// Layers of the model or of the whole trace.
    pub(crate) of: usize,
    /// Blocks of the weights that only predict the token after the next, and are not run.
    pub(crate) skipped_blocks: usize,
}

enum Kind {
    /// Continues prompts greedily.
    Text { config: OlmoeConfig, vb: VarBuilder<'static>, prompts: Vec<Vec<u32>>, new_tokens: usize },
    /// Replays a trace.
    Trace(MemoryTrace),
}

/// What a run gave: equal for banks that compute alike.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The routing of the text.
    Routing(MemoryTrace),
    /// CRC-32 of all outputs.
    Checksum(u32),
}

/// Encodes the built-in prompts for a model, each cut to `room` tokens.
pub(crate) fn prompts(checkpoint: &Checkpoint, room: usize) -> Result<Vec<Vec<u32>>> {
    let prompts = built_in_prompts(&checkpoint.tokenizer()?, room)?;
    Ok(prompts.into_iter().map(|prompt| prompt.tokens).collect())
}

impl Workload {
    /// Continues the prompts of the default model with a checkpoint and these experts.
    pub(crate) fn text(checkpoint: &Checkpoint, store: MappedStore, new_tokens: usize) -> Result<Workload> {
        let config = checkpoint.config().clone();
        let (found, expected) = (store.shape(), config.expert_shape());
        ensure!(
            found == expected,
            "the weights are {found:?}, the model's {expected:?}; give the --model that they are of, or a --trace to replay"
        );
        let room = config.params().max_position_embeddings.saturating_sub(new_tokens);
        ensure!(room > 0, "--new-tokens is {new_tokens}, the model has not so many positions");
        let prompts = prompts(checkpoint, room)?;
        let vb = checkpoint.var_builder(DType::F32, &Device::Cpu)?;
        let of_layers = expected.layers;
        Ok(Workload::new(store, of_layers, Kind::Text { config, vb, prompts, new_tokens }))
    }

    /// Replays a trace on experts of its geometry.
    pub(crate) fn trace(Excerpted { trace, of_layers, provenance }: Excerpted, store: MappedStore) -> Result<Workload> {
        let (geometry, shape) = (trace.geometry(), store.shape());
        let (found, expected) = ((geometry.layers(), geometry.experts()), (shape.layers, shape.experts));
        ensure!(
            found == expected,
            "the trace has {} layers of {} experts, the weights have {} of {}; `moescope generate-experts` has --layers",
            found.0,
            found.1,
            expected.0,
            expected.1
        );
        Ok(Workload { provenance, ..Workload::new(store, of_layers, Kind::Trace(trace)) })
    }

    /// Layers, experts and top-k of what is run.
    pub(crate) fn geometry(&self) -> Geometry {
        match &self.kind {
            Kind::Text { config, .. } => config.geometry(),
            Kind::Trace(trace) => trace.geometry().clone(),
        }
    }

    fn new(store: MappedStore, of: usize, kind: Kind) -> Workload {
        let layers = Layers { run: store.shape().layers, of, skipped_blocks: store.skipped_blocks() };
        let too_large = free_bytes(&Device::Cpu).is_ok_and(|free| ExpertStore::bytes(&store) > free);
        let uncached = store.reads() == FileReads::Direct;
        Workload { too_large, uncached, layers, provenance: Provenance::default(), store: Arc::new(store), kind }
    }

    /// A bank that computes as one does that holds all experts: those of a store, or if they do not fit in memory, a few of
    /// each layer that stand in for the others.
    pub(crate) fn all_resident(&self, store: &Arc<dyn ExpertStore>) -> Result<ResidentExperts> {
        if !self.too_large {
            return Ok(ResidentExperts::from_store(&**store)?);
        }
        let shape = store.shape();
        let bytes = (free_bytes(&Device::Cpu)? / 2).min(MOST_STAND_INS_BYTES);
        let each = (bytes / (store.bytes() / shape.experts as u64).max(1)).clamp(1, shape.experts as u64);
        let memory = HostCache::new(Arc::clone(store), u64::MAX, PolicyKind::Lru)?;
        let layer = |layer: u16| {
            let stand_ins =
                (0..).take(usize::try_from(each)?).map(|expert| memory.fetch(LayerId(layer), ExpertId(expert)));
            let stand_ins = stand_ins.collect::<Result<Vec<_>, _>>()?;
            Ok(stand_ins.iter().cloned().cycle().take(shape.experts).collect())
        };
        let layers = (0..).take(shape.layers).map(layer).collect::<Result<_>>()?;
        Ok(ResidentExperts::new(layers))
    }

    /// Sizes of the experts; what else a model has, is calibrated.
    pub(crate) fn size(&self) -> ModelSize {
        let shape = self.store.shape();
        ModelSize {
            expert_bytes: self.store.weight_types().iter().map(|&types| shape.expert_bytes(types) as u64).collect(),
            expert_weights: 3 * (shape.hidden * shape.intermediate) as u64,
            dense_bytes: 0,
            dense_weights: 0,
            head_bytes: 0,
            head_weights: 0,
        }
    }

    /// Runs once; `between` is called after every step, and takes time that does not count.
    pub(crate) fn run(&self, bank: Arc<dyn ExpertBank>, between: &mut dyn FnMut()) -> Result<(Steps, Outcome)> {
        let mut steps = Steps::default();
        match &self.kind {
            Kind::Text { config, vb, prompts, new_tokens } => {
                let model = Olmoe::new(config, vb, bank)?;
                let mut recorder = Recorder::new(MemoryTrace::new(config.geometry()));
                let options = GenerateOptions {
                    max_new_tokens: *new_tokens,
                    sampler: Sampling::Greedy,
                    seeds: Vec::new(),
                    stop_tokens: Vec::new(),
                };
                for prompt in prompts {
                    let (mut seconds, mut started) = (Vec::new(), Instant::now());
                    generate(&model, std::slice::from_ref(prompt), &options, &mut recorder, |_, _| {
                        seconds.push(started.elapsed().as_secs_f64());
                        between();
                        started = Instant::now();
                    })?;
                    let mut seconds = seconds.into_iter();
                    steps.prefill.extend(seconds.next());
                    steps.decode.extend(seconds);
                    steps.prefill_tokens += prompt.len();
                }
                Ok((steps, Outcome::Routing(recorder.finish()?)))
            }
            Kind::Trace(trace) => {
                let store = &self.store;
                let replay = Replay::new(trace, store.shape().hidden, store.activations(), &Device::Cpu)?;
                let report = replay.run(&*bank, |pass| {
                    steps.add(pass);
                    between();
                })?;
                Ok((steps, Outcome::Checksum(report.checksum)))
            }
        }
    }

    /// The routing that every run has, given what one gave.
    pub(crate) fn routing<'a>(&'a self, outcome: &'a Outcome) -> &'a dyn RoutingSource {
        match (&self.kind, outcome) {
            (Kind::Trace(trace), _) | (_, Outcome::Routing(trace)) => trace,
            (Kind::Text { .. }, Outcome::Checksum(_)) => unreachable!("runs of text record their routing"),
        }
    }
}
