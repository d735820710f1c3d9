//! Generation: prefill prompt by prompt, decode of all sequences together.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use moe_trace::{Phase, RouterObserver};

use crate::sampler::{Sampler, Sampling};
use crate::{Chunk, KvCache, LogitsAt, ModelError, Olmoe, Result};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Largest number of new tokens a sequence, at least 1.
    pub max_new_tokens: usize,
    /// How a token is chosen.
    pub sampler: Sampling,
    /// Seeds of the prompts' random numbers, in order; if empty, every prompt has the seed of [`Sampling::TopP`].
    ///
    /// Equal prompts with equal seeds get equal texts, so give equal prompts seeds of their own.
    pub seeds: Vec<u64>,
    /// Tokens that end a sequence.
    pub stop_tokens: Vec<u32>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Its last token is a stop token.
    StopToken,
    /// It has `max_new_tokens` new tokens.
    MaxNewTokens,
    /// The model has no position for another token.
    ContextFull,
}

/// New tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens; a stop token is included.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// Result of [`generate`].
#[derive(Clone, Debug)]
pub struct Generated {
    /// New tokens, prompt by prompt.
    pub sequences: Vec<Generation>,
    /// Time spent.
    pub timings: GenerateTimings,
}

/// Time and tokens of a generation, by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerateTimings {
    /// Time of all prefills, up to the choice of each first new token.
    pub prefill: Duration,
    /// Tokens that were prefilled.
    pub prefill_tokens: usize,
    /// Time of all decode steps.
    pub decode: Duration,
    /// Tokens that were decoded: all new tokens but the last of each sequence, which nothing follows.
    pub decode_tokens: usize,
}

struct Running {
    cache: KvCache,
    sampler: Sampler,
    tokens: Vec<u32>,
    finish: Option<Finish>,
}

/// Continues prompts.
///
/// Each prompt is prefilled in a forward pass of its own; then each decode step is one ragged forward pass over the
/// unfinished sequences. A sequence's number for the observer and for `on_token` is its prompt's index;
/// `on_token(sequence, token)` is called for each new token as it is chosen. The last token is not run through the
/// model.
///
/// Every sequence that begins also ends, for the [bank](moe_offload::ExpertBank::sequence_end) and for the observer, even
/// if generation fails. After a failure the observer has seen whole passes only: a prompt whose prefill failed has not
/// begun for it, and a sequence that was being decoded ends early.
///
/// # Errors
/// [`ModelError::NoTokens`] for an empty prompt, [`ModelError::Option`], [`ModelError::Seeds`], [`ModelError::Logit`],
/// and the errors of [`Olmoe::forward`].
pub fn generate(
    model: &Olmoe,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    observer: &mut dyn RouterObserver,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Generated> {
    if options.max_new_tokens == 0 {
        return Err(ModelError::Option { field: "max_new_tokens", value: 0.0, limit: "must be at least 1" });
    }
    if !options.seeds.is_empty() && options.seeds.len() != prompts.len() {
        return Err(ModelError::Seeds { seeds: options.seeds.len(), prompts: prompts.len() });
    }
    let max_len = model.config().params().max_position_embeddings;
    let mut timings = GenerateTimings::default();
    let mut sequences = Vec::with_capacity(prompts.len());
    for sequence in 0..prompts.len() {
        let sampler = Sampler::new(options.sampler, sequence, options.seeds.get(sequence).copied())?;
        sequences.push(Running { cache: KvCache::new(model.config()), sampler, tokens: Vec::new(), finish: None });
    }

    let mut session = Session { model, observer, in_bank: 0, observed: Vec::new() };
    let start = Instant::now();
    for (sequence, (running, prompt)) in sequences.iter_mut().zip(prompts).enumerate() {
        let logits = session.prefill(sequence, prompt, &mut running.cache)?;
        on_token(sequence, running.next(&logits, options, max_len)?);
        if running.finish.is_some() {
            session.end(sequence)?;
        }
        timings.prefill_tokens += prompt.len();
    }
    timings.prefill = start.elapsed();

    let start = Instant::now();
    loop {
        let mut unfinished: Vec<_> =
            sequences.iter_mut().enumerate().filter(|(_, running)| running.finish.is_none()).collect();
        if unfinished.is_empty() {
            break;
        }
        let mut chunks: Vec<_> =
            unfinished.iter_mut().map(|(sequence, running)| running.last_token(*sequence)).collect();
        let logits = model.forward(&mut chunks, LogitsAt::Last, session.observer)?;
        timings.decode_tokens += unfinished.len();
        for ((sequence, running), logits) in unfinished.iter_mut().zip(&logits) {
            on_token(*sequence, running.next(logits, options, max_len)?);
            if running.finish.is_some() {
                session.end(*sequence)?;
            }
        }
    }
    timings.decode = start.elapsed();

    let finished = sequences
        .into_iter()
        .filter_map(|Running { tokens, finish, .. }| finish.map(|finish| Generation { tokens, finish }));
    Ok(Generated { sequences: finished.collect(), timings })
}

/// The sequences that have begun and not ended; dropping the session ends them.
struct Session<'a> {
    model: &'a Olmoe,
    observer: &'a mut dyn RouterObserver,
    /// Number of sequences that the bank has seen a part of.
    in_bank: usize,
    /// Sequences that the observer has seen a pass of.
    observed: Vec<usize>,
}

impl Session<'_> {
    /// Begins a sequence; returns the logits of its first new token, `[1, vocab]`.
    fn prefill(&mut self, sequence: usize, tokens: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        // A pass that fails may have reached the bank in some layers.
        self.in_bank += 1;
        let chunk = Chunk { sequence, tokens, cache, phase: Phase::Prefill };
        let logits = self.model.forward(&mut [chunk], LogitsAt::Last, self.observer)?.remove(0);
        self.observed.push(sequence);
        Ok(logits)
    }

    fn end(&mut self, sequence: usize) -> Result<()> {
        self.observed.retain(|&observed| observed != sequence);
        self.observer.sequence_end(sequence);
        self.in_bank -= 1;
        Ok(self.model.bank().sequence_end()?)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        for &sequence in &self.observed {
            self.observer.sequence_end(sequence);
        }
        for _ in 0..self.in_bank {
            // Generation has failed already, and its error is the one to report.
            let _ = self.model.bank().sequence_end();
        }
    }
}

impl Running {
    /// The chosen token that the model has not seen.
    fn last_token(&mut self, sequence: usize) -> Chunk<'_> {
        let tokens = &self.tokens[self.tokens.len() - 1..];
        Chunk { sequence, tokens, cache: &mut self.cache, phase: Phase::Decode }
    }

    /// Chooses the next token by its logits, `[1, vocab]`, and decides whether it is the last.
    fn next(&mut self, logits: &Tensor, options: &GenerateOptions, max_len: usize) -> Result<u32> {
        let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let token = self.sampler.choose(&logits)?;
        self.tokens.push(token);
        self.finish = if options.stop_tokens.contains(&token) {
            Some(Finish::StopToken)
        } else if self.tokens.len() == options.max_new_tokens {
            Some(Finish::MaxNewTokens)
        } else if self.cache.len() == max_len {
            Some(Finish::ContextFull)
        } else {
            None
        };
        Ok(token)
    }
}
