//! Held-out bits per byte.

use std::thread;

use candle_core::Tensor;
use moe_model::{Chunk, KvCache, LogitsAt, Olmoe};
use moe_trace::{DomainId, IgnoreRouting, Phase};

use super::ngram::ByteNgram;
use crate::{
    error::{Result, TestbedError, check},
    text::{Corpus, TokenizedCorpus, TokenizedDocument},
    training::cross_entropy,
};

/// Windows that go through the model at once.
const WINDOWS: usize = 8;

/// How well a model predicts the held-out text of a domain.
///
/// Bytes, not tokens, are the unit, so models with different vocabularies compare.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainBits {
    /// Name of the domain.
    pub domain: String,
    /// Bits that the model needs for the text.
    pub bits: f64,
    /// Bytes of the text.
    pub bytes: usize,
}

impl DomainBits {
    /// Bits a byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.bytes as f64
    }
}

/// Bits of the held-out documents under a language model.
///
/// Every token of a document is predicted once, from at most `length` tokens before it, the end-of-text token in front of
/// the document included: windows of `length` tokens advance by half of it, and the first half of a window is only read,
/// except at the start of a document. `workers` threads share the windows; the result does not depend on how many.
///
/// # Errors
/// [`TestbedError::Option`](crate::TestbedError::Option) if `length` is below 2 or above the model's positions; a
/// tensor operation that failed; [`TestbedError::BitsNotFinite`] for a model whose weights are broken.
pub fn held_out_bits(
    model: &Olmoe,
    corpus: &TokenizedCorpus,
    length: usize,
    workers: usize,
) -> Result<Vec<DomainBits>> {
    let max = model.config().params().max_position_embeddings;
    check("length", length, (2..=max).contains(&length), format!("2..={max}, the model's positions"))?;
    let domains = (0u16..).map(DomainId).zip(&corpus.domains).map(|(id, domain)| {
        let windows: Vec<_> =
            domain.held_out.iter().flat_map(|document| windows(document, corpus.end_of_text, length)).collect();
        let groups: Vec<_> = windows.chunks(WINDOWS).collect();
        let share = groups.len().div_ceil(workers.max(1)).max(1);
        let bits: Result<Vec<f64>> = thread::scope(|scope| {
            let work = |groups: &[&[Window]]| groups.iter().map(|group| bits(model, id, group)).collect::<Vec<_>>();
            let handles: Vec<_> = groups.chunks(share).map(|groups| scope.spawn(move || work(groups))).collect();
            let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
            joined.flat_map(|bits| bits.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let bytes = domain.held_out.iter().map(|document| document.bytes).sum();
        let (name, bits) = (domain.name.clone(), bits?.iter().sum::<f64>());
        if bits.is_finite() {
            Ok(DomainBits { domain: name, bits, bytes })
        } else {
            Err(TestbedError::BitsNotFinite { domain: name, bits })
        }
    });
    domains.collect()
}

/// Bits of the held-out documents under the baseline.
pub fn ngram_bits(model: &ByteNgram, corpus: &Corpus) -> Vec<DomainBits> {
    let domains = corpus.domains.iter().map(|domain| DomainBits {
        domain: domain.name.clone(),
        bits: domain.held_out.iter().map(|document| model.bits(document)).sum(),
        bytes: domain.held_out.iter().map(String::len).sum(),
    });
    domains.collect()
}

/// A run of tokens, of which the targets behind `read` are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    read: usize,
}

fn windows(document: &TokenizedDocument, end_of_text: u32, length: usize) -> Vec<Window> {
    let tokens: Vec<u32> = std::iter::once(end_of_text).chain(document.tokens.iter().copied()).collect();
    let (mut windows, mut start, mut scored) = (Vec::new(), 0, 0);
    while scored < document.tokens.len() {
        let end = document.tokens.len().min(start + length);
        windows.push(Window {
            inputs: tokens[start..end].to_vec(),
            targets: tokens[start + 1..end + 1].to_vec(),
            read: scored - start,
        });
        scored = end;
        start += length / 2;
    }
    windows
}

fn bits(model: &Olmoe, domain: DomainId, windows: &[Window]) -> Result<f64> {
    let mut caches: Vec<_> = windows.iter().map(|_| KvCache::new(model.config()).in_domain(domain)).collect();
    let chunks = windows.iter().zip(&mut caches).enumerate();
    let mut chunks: Vec<_> = chunks
        .map(|(sequence, (window, cache))| Chunk { sequence, tokens: &window.inputs, cache, phase: Phase::Prefill })
        .collect();
    let logits = model.forward(&mut chunks, LogitsAt::All, &mut IgnoreRouting)?;
    let mut nats = 0.0;
    for (window, logits) in windows.iter().zip(logits) {
        let losses: Vec<f32> = losses(&logits, &window.targets)?;
        nats += losses[window.read..].iter().copied().map(f64::from).sum::<f64>();
    }
    Ok(nats / std::f64::consts::LN_2)
}

pub(super) fn losses(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let logits = logits.to_dtype(candle_core::DType::F32)?;
    Ok(cross_entropy(&logits, targets)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_once() {
        for (tokens, length) in [(1, 4), (3, 4), (4, 4), (5, 4), (23, 4), (24, 5), (9, 2)] {
            let document = TokenizedDocument { tokens: (1..=tokens).collect(), bytes: 1 };
            let windows = windows(&document, 0, length);
            let scored = windows.iter().flat_map(|window| window.targets[window.read..].to_vec());
            assert_eq!(scored.collect::<Vec<_>>(), document.tokens);
            assert!(windows.iter().all(|window| window.inputs.len() <= length && window.read < length));
            assert!(
                windows.iter().all(|window| window.inputs.iter().map(|token| token + 1).eq(window.targets.clone()))
            );
        }
    }
}
