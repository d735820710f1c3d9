//! The model: ragged inference, dense training.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use moe_offload::{ExpertBank, ExpertWeights, ResidentExperts};
use moe_trace::{DomainId, EMPTY_SLOT, LayerId, Phase, RouterObserver, RoutingEvent};

use crate::attention::Span;
use crate::block::{Block, Pass};
use crate::kernels::{CausalMask, Kernels};
use crate::kv_cache::KvCache;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::routed::{Routed, Rows};
use crate::router::{RouterOutput, TokenView};
use crate::{ModelError, OlmoeConfig, Result, RouterKind};

/// OLMoE (Muennighoff et al. 2024, arXiv 2409.02060; `OlmoeForCausalLM` of Hugging Face) or a variant of it, without its
/// routed experts, which belong to an [`ExpertBank`].
#[derive(Clone)]
pub struct Olmoe {
    config: OlmoeConfig,
    embedding: Tensor,
    rope: Rope,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    bank: Arc<dyn ExpertBank>,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The sequence's number, for the observer.
    pub sequence: usize,
    /// The new tokens, at least one.
    pub tokens: &'a [u32],
    /// What the sequence has behind it; the new tokens are added.
    pub cache: &'a mut KvCache,
    /// Whether the tokens are prefilled or decoded.
    pub phase: Phase,
}

/// The tokens whose logits a forward pass returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsAt {
    /// Every token of a chunk.
    All,
    /// The last token of a chunk.
    Last,
}

/// What a [dense forward pass](Olmoe::forward_dense_with) needs besides tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DenseOptions<'a> {
    /// Domain of each sequence, `[batch]`; for the reference router.
    pub domains: Option<&'a [DomainId]>,
    /// How many times an even load an expert serves, rounded up; its other tokens are dropped. None drops nothing.
    pub capacity_factor: Option<f64>,
}

/// Result of [`Olmoe::forward_dense`].
#[derive(Clone, Debug)]
pub struct DenseOutput {
    /// Logits of the next token, `[batch, length, vocab]`.
    pub logits: Tensor,
    /// What the routers did, MoE layer by MoE layer.
    pub routers: Vec<RouterOutput>,
}

impl DenseOutput {
    /// Reports the experts that served `tokens`, u32 `[batch, length]`, as a forward pass for inference does: an event for
    /// each MoE layer and sequence, phase prefill. A dropped slot is an [`EMPTY_SLOT`].
    ///
    /// Where experts chose the tokens, events may have more slots a token than the `top_k` of the geometry, which a
    /// recorder does not take.
    ///
    /// # Errors
    /// A tensor operation that failed.
    pub fn report(&self, tokens: &Tensor, observer: &mut dyn RouterObserver) -> Result<()> {
        let rows = tokens.to_vec2::<u32>()?;
        for (layer, router) in (0u16..).map(LayerId).zip(&self.routers) {
            let mut weights = router.weights.flatten_all()?.to_vec1::<f32>()?;
            let dropped = router.served.iter().zip(&mut weights).filter(|&(&expert, _)| expert == EMPTY_SLOT);
            dropped.for_each(|(_, weight)| *weight = 0.0);
            let logits = match &router.logits {
                Some(logits) if observer.wants_logits() => logits.flatten_all()?.to_vec1::<f32>()?,
                _ => Vec::new(),
            };
            let slots = (router.served.len() / rows.len().max(1)).max(1);
            let events = rows.iter().zip(router.served.chunks_exact(slots).zip(weights.chunks_exact(slots)));
            for (sequence, (token_ids, (experts, weights))) in events.enumerate() {
                let width = logits.len() / rows.len();
                observer.routed(&RoutingEvent {
                    sequence,
                    layer,
                    phase: Phase::Prefill,
                    token_ids,
                    experts,
                    weights,
                    logits: (width > 0).then(|| &logits[sequence * width..(sequence + 1) * width]),
                });
            }
        }
        Ok(())
    }
}

impl Olmoe {
    /// Creates a model from all tensors but those of the experts, which `bank` has.
    ///
    /// A `VarBuilder` over a variable map creates the variables that it lacks: matrices from a normal distribution of
    /// standard deviation `initializer_range`, norms as ones, router biases as zeros.
    ///
    /// # Errors
    /// [`ModelError::Dtype`] for a type other than f32, f16, bf16; [`ModelError::Tensor`] for a tensor that is missing
    /// or has another shape.
    pub fn new(config: &OlmoeConfig, vb: &VarBuilder<'_>, bank: Arc<dyn ExpertBank>) -> Result<Olmoe> {
        check_dtype(vb.dtype())?;
        let params = config.params();
        let init = Init::Randn { mean: 0.0, stdev: params.initializer_range };
        let matrix =
            |name: &str| vb.get_with_hints((params.vocab_size, params.hidden_size), &format!("{name}.weight"), init);
        let embedding = matrix("model.embed_tokens")?;
        let head = if params.tie_word_embeddings { embedding.clone() } else { matrix("lm_head")? };
        let mut moe_layers = config.geometry().layer_ids();
        let blocks = (0..params.num_hidden_layers).map(|layer| {
            let moe_layer = if config.is_moe(layer) { moe_layers.next() } else { None };
            Block::new(config, layer, moe_layer, &vb.pp(format!("model.layers.{layer}")))
        });
        Ok(Olmoe {
            blocks: blocks.collect::<Result<_>>()?,
            norm: RmsNorm::new(params.hidden_size, params.rms_norm_eps, &vb.pp("model.norm"))?,
            rope: Rope::new(config, vb.dtype(), vb.device())?,
            config: config.clone(),
            embedding,
            head: Linear::new(head),
            bank,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &OlmoeConfig {
        &self.config
    }

    /// The bank that runs the experts.
    pub(crate) fn bank(&self) -> &dyn ExpertBank {
        &*self.bank
    }

    /// The device that the model computes on.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The type that the model computes in.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Runs new tokens of several sequences; returns logits of the next token for each chunk in order, in the model's
    /// type: `[tokens, vocab]` of the chunk's tokens, or `[1, vocab]`.
    ///
    /// The tokens of all chunks are rows of one matrix; attention alone keeps sequences apart. There is no padding.
    /// When the pass has succeeded, the observer gets one event for each layer and chunk, layer by layer, chunks in order.
    /// If the pass fails, the caches are as before and the observer gets nothing, so that the pass can be run again.
    ///
    /// # Errors
    /// [`ModelError::NoTokens`], [`ModelError::TokenOutOfRange`], [`ModelError::ContextLength`],
    /// [`ModelError::MixedPhases`], [`ModelError::CacheLayers`] for chunks that cannot be run;
    /// [`ModelError::NoDomain`], [`ModelError::DomainOutOfRange`] if the router asks for the domain of the cache;
    /// [`ModelError::RouterLogit`]; [`ModelError::Experts`]; [`ModelError::Tensor`].
    pub fn forward(
        &self,
        chunks: &mut [Chunk<'_>],
        at: LogitsAt,
        observer: &mut dyn RouterObserver,
    ) -> Result<Vec<Tensor>> {
        let Some(phase) = chunks.first().map(|chunk| chunk.phase) else { return Ok(Vec::new()) };
        let (mut ids, mut positions, mut domains) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = Vec::with_capacity(chunks.len());
        for chunk in chunks.iter() {
            self.check(chunk, phase)?;
            let (past, new) = (chunk.cache.len(), chunk.tokens.len());
            spans.push(Span::new(ids.len()..ids.len() + new, chunk.cache, &self.rope, self.device())?);
            ids.extend_from_slice(chunk.tokens);
            positions.extend((0u32..).skip(past).take(new));
            if let Some(domain) = self.check_domain(chunk.sequence, chunk.cache.domain())? {
                domains.extend(std::iter::repeat_n(domain, new));
            }
        }

        let mut x = self.embed(&Tensor::from_slice(&ids, ids.len(), self.device())?)?;
        let tokens = TokenView { ids: &ids, positions: &positions, domains: &domains };
        let pass = Pass { tokens, bank: &*self.bank };
        // Reported when the pass has succeeded, so that a failed pass can be run again under the same observer.
        let mut events = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let caches = chunks.iter_mut().map(|chunk| &mut *chunk.cache);
            let (out, routed) = block.forward_ragged(&x, spans.iter().zip(caches), phase, &pass)?;
            events.extend(routed.map(|routed| match observer.wants_logits() {
                true => routed,
                false => Routed { logits: Vec::new(), ..routed },
            }));
            x = out.detach();
        }

        if at == LogitsAt::Last {
            let last: Result<Vec<Tensor>> = spans.iter().map(|span| Ok(x.narrow(0, span.rows.end - 1, 1)?)).collect();
            x = Tensor::cat(&last?, 0)?;
        }
        let logits = self.predict(&x, Kernels::Fused)?;
        let of_chunk = spans.iter().enumerate().map(|(index, span)| match at {
            LogitsAt::All => Ok(logits.narrow(0, span.rows.start, span.rows.len())?),
            LogitsAt::Last => Ok(logits.narrow(0, index, 1)?),
        });
        let of_chunk = of_chunk.collect::<Result<_>>()?;
        for chunk in chunks.iter_mut() {
            chunk.cache.advance(chunk.tokens.len());
        }
        for routed in &events {
            for (span, chunk) in spans.iter().zip(chunks.iter()) {
                let rows = Rows { sequence: chunk.sequence, token_ids: chunk.tokens, range: span.rows.clone() };
                routed.report(&rows, phase, observer);
            }
        }
        Ok(of_chunk)
    }

    /// Runs whole sequences of one length, `tokens` u32 `[batch, length]`, with every operation differentiable, for
    /// training.
    ///
    /// # Errors
    /// As [`forward_dense_with`](Self::forward_dense_with).
    pub fn forward_dense(&self, tokens: &Tensor) -> Result<DenseOutput> {
        self.forward_dense_with(tokens, &DenseOptions::default())
    }

    /// As [`forward_dense`](Self::forward_dense), for routers that ask for domains or experts of limited capacity. All
    /// tokens together are the micro-batch that capacity and the choice of experts are about.
    ///
    /// # Errors
    /// [`ModelError::NoTokens`], [`ModelError::TokenOutOfRange`], [`ModelError::ContextLength`];
    /// [`ModelError::NoDomain`], [`ModelError::DomainOutOfRange`] if the router asks for domains; [`ModelError::Option`]
    /// for a capacity factor that is not positive; [`ModelError::RouterLogit`]; [`ModelError::Experts`];
    /// [`ModelError::Tensor`].
    pub fn forward_dense_with(&self, tokens: &Tensor, options: &DenseOptions<'_>) -> Result<DenseOutput> {
        let (batch, length) = tokens.dims2()?;
        if let Some(value) = options.capacity_factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(ModelError::Option { field: "capacity factor", value, limit: "must be positive and finite" });
        }
        let (mut ids, mut domains) = (Vec::with_capacity(batch * length), Vec::new());
        for (sequence, row) in tokens.to_vec2::<u32>()?.iter().enumerate() {
            self.check_tokens(sequence, row, 0)?;
            ids.extend_from_slice(row);
            let domain = options.domains.and_then(|domains| domains.get(sequence).copied());
            if let Some(domain) = self.check_domain(sequence, domain)? {
                domains.extend(std::iter::repeat_n(domain, length));
            }
        }
        let positions: Vec<u32> = (0..batch).flat_map(|_| (0u32..).take(length)).collect();
        let view = TokenView { ids: &ids, positions: &positions, domains: &domains };
        let pass = Pass { tokens: view, bank: &*self.bank };
        let mask = CausalMask::new(0..length, 0..length, self.device())?;
        let rotation = self.rope.at(0..length)?;
        let mut x = self.embed(&tokens.flatten_all()?)?;
        let mut routers = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (out, router) = block.forward_dense(&x, batch, (&mask, &rotation), options.capacity_factor, &pass)?;
            routers.extend(router);
            x = out;
        }
        let logits = self.predict(&x, Kernels::Differentiable)?.reshape((batch, length, ()))?;
        Ok(DenseOutput { logits, routers })
    }

    fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.embedding.index_select(tokens, 0)?)
    }

    fn predict(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        self.head.forward(&self.norm.forward(x, kernels)?)
    }

    fn check(&self, chunk: &Chunk<'_>, phase: Phase) -> Result<()> {
        let (params, sequence) = (self.config.params(), chunk.sequence);
        if chunk.phase != phase {
            let (found, expected) = (chunk.phase.name(), phase.name());
            return Err(ModelError::MixedPhases { sequence, found, expected });
        }
        if chunk.cache.layers() != params.num_hidden_layers {
            let (found, expected) = (chunk.cache.layers(), params.num_hidden_layers);
            return Err(ModelError::CacheLayers { sequence, found, expected });
        }
        self.check_tokens(sequence, chunk.tokens, chunk.cache.len())
    }

    /// The domain of a sequence, if the router asks for it.
    fn check_domain(&self, sequence: usize, domain: Option<DomainId>) -> Result<Option<DomainId>> {
        let params = self.config.params();
        if params.router != RouterKind::Reference {
            return Ok(None);
        }
        let (domain, domains) = (domain.ok_or(ModelError::NoDomain { sequence })?, params.num_domains);
        match domain.index() < domains {
            true => Ok(Some(domain)),
            false => Err(ModelError::DomainOutOfRange { sequence, domain, domains }),
        }
    }

    /// Checks new tokens of a sequence that has `past` tokens behind it.
    fn check_tokens(&self, sequence: usize, tokens: &[u32], past: usize) -> Result<()> {
        let params = self.config.params();
        let (len, max, vocab) = (past + tokens.len(), params.max_position_embeddings, params.vocab_size);
        if tokens.is_empty() {
            return Err(ModelError::NoTokens { sequence });
        }
        if len > max {
            return Err(ModelError::ContextLength { sequence, len, max });
        }
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(ModelError::TokenOutOfRange { sequence, position, token: tokens[position], vocab }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Olmoe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Olmoe").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Takes the experts of every layer from a `VarBuilder`, for the bank of a model that fits the device or is trained.
///
/// # Errors
/// As [`Olmoe::new`].
pub fn resident_experts(config: &OlmoeConfig, vb: &VarBuilder<'_>) -> Result<ResidentExperts> {
    check_dtype(vb.dtype())?;
    let init = Init::Randn { mean: 0.0, stdev: config.params().initializer_range };
    let (geometry, shapes) = (config.geometry(), config.expert_shape().projections());
    let mut layers = Vec::with_capacity(geometry.layers());
    for layer in geometry.layer_ids() {
        let mut experts = Vec::with_capacity(geometry.experts());
        for expert in geometry.expert_ids() {
            let names = config.expert_names(layer, expert);
            let get = |index: usize| vb.get_with_hints(shapes[index], &names[index], init);
            experts.push(ExpertWeights::new(get(0)?, get(1)?, get(2)?)?);
        }
        layers.push(experts);
    }
    Ok(ResidentExperts::new(layers))
}

fn check_dtype(dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        dtype => Err(ModelError::Dtype { dtype }),
    }
}
