//! What a model does with held-out text, and how its routers behave.

use candle_core::{D, DType};
use lrc_metrics::{LayerAgreement, ReferenceRouting, accumulate};
use moe_model::{Chunk, KvCache, LogitsAt, Olmoe, reference_experts};
use moe_trace::{DomainId, MemoryTrace, Phase, Recorder, RouterObserver, RoutingSource};

use super::evaluate::losses;
use crate::{
    error::{Result, TestbedError, check},
    text::TokenizedCorpus,
};

/// Sequences that go through the model at once.
const TOGETHER: usize = 8;

/// Held-out sequences of one length, as many of every domain.
///
/// The documents of a domain are packed one after the other, each behind an end-of-text token, and cut into sequences.
#[derive(Clone, Debug)]
pub struct HeldOut {
    domains: Vec<String>,
    sequences: Vec<HeldOutSequence>,
    length: usize,
}

#[derive(Clone, Debug)]
struct HeldOutSequence {
    domain: DomainId,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

/// How a model read held-out sequences.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The routing of every sequence, labelled with its domain; the domains take turns.
    pub trace: MemoryTrace,
    /// Cross entropy in nats a token, by domain.
    pub losses: Vec<f64>,
}

impl HeldOut {
    /// Packs `sequences` sequences of `length` tokens of each domain.
    ///
    /// # Errors
    /// [`TestbedError::Option`] if one of the numbers is 0 or there are more than 65535 domains;
    /// [`TestbedError::TooFewHeldOut`] for a domain with too little held-out text.
    pub fn new(corpus: &TokenizedCorpus, sequences: usize, length: usize) -> Result<HeldOut> {
        check("measure.sequences", sequences, sequences > 0, "1 and more")?;
        check("length", length, length > 0, "1 and more")?;
        let count = corpus.domains.len();
        let limit = u16::try_from(count).ok().filter(|&count| count > 0);
        let limit = limit.ok_or(TestbedError::Option {
            option: "number of domains",
            value: count.to_string(),
            allowed: "1..=65535".to_owned(),
        })?;
        let streams: Vec<Vec<u32>> = corpus
            .domains
            .iter()
            .map(|domain| {
                let documents = domain.held_out.iter();
                documents
                    .flat_map(|text| std::iter::once(corpus.end_of_text).chain(text.tokens.iter().copied()))
                    .collect()
            })
            .collect();
        // The last target is one token behind.
        let min = sequences.saturating_mul(length).saturating_add(1);
        for (domain, stream) in corpus.domains.iter().zip(&streams) {
            if stream.len() < min {
                let (domain, tokens) = (domain.name.clone(), stream.len());
                return Err(TestbedError::TooFewHeldOut { domain, tokens, sequences, min });
            }
        }
        let mut packed = Vec::with_capacity(sequences * count);
        for start in (0..sequences).map(|number| number * length) {
            for (domain, stream) in (0..limit).zip(&streams) {
                packed.push(HeldOutSequence {
                    domain: DomainId(domain),
                    inputs: stream[start..start + length].to_vec(),
                    targets: stream[start + 1..start + 1 + length].to_vec(),
                });
            }
        }
        let domains = corpus.domains.iter().map(|domain| domain.name.clone()).collect();
        Ok(HeldOut { domains, sequences: packed, length })
    }

    /// Tokens a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Reads every sequence in one pass, and records the routers; `progress` gets the number of sequences done.
    ///
    /// # Errors
    /// A tensor operation that failed; [`TestbedError::BitsNotFinite`] for a model whose weights are broken.
    pub fn read(&self, model: &Olmoe, mut progress: impl FnMut(usize)) -> Result<Reading> {
        let trace = MemoryTrace::new(model.config().geometry()).with_domains(&self.domains);
        let mut recorder = Recorder::new(trace);
        let mut sums = vec![0.0; self.domains.len()];
        for (group, sequences) in self.sequences.chunks(TOGETHER).enumerate() {
            let first = group * TOGETHER;
            let cache = |held_out: &HeldOutSequence| KvCache::new(model.config()).in_domain(held_out.domain);
            let mut caches: Vec<KvCache> = sequences.iter().map(cache).collect();
            let chunks = sequences.iter().zip(&mut caches).zip(first..);
            let mut chunks: Vec<_> = chunks
                .map(|((held_out, cache), sequence)| Chunk {
                    sequence,
                    tokens: &held_out.inputs,
                    cache,
                    phase: Phase::Prefill,
                })
                .collect();
            let logits = model.forward(&mut chunks, LogitsAt::All, &mut recorder)?;
            for ((held_out, logits), sequence) in sequences.iter().zip(logits).zip(first..) {
                let loss: f64 = losses(&logits, &held_out.targets)?.into_iter().map(f64::from).sum();
                sums[held_out.domain.index()] += loss;
                let likeliest: Vec<u32> = logits.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1()?;
                recorder.predicted(sequence, &likeliest);
                recorder.label(sequence, held_out.domain);
                recorder.sequence_end(sequence);
            }
            progress(first + sequences.len());
        }
        let of_domain = (self.sequences.len() / self.domains.len() * self.length) as f64;
        let losses: Vec<f64> = sums.into_iter().map(|sum| sum / of_domain).collect();
        if let Some((domain, loss)) = self.domains.iter().zip(&losses).find(|(_, loss)| !loss.is_finite()) {
            return Err(TestbedError::BitsNotFinite { domain: domain.clone(), bits: *loss });
        }
        Ok(Reading { trace: recorder.finish()?, losses })
    }
}

impl Reading {
    /// Agreement of every layer with the domains, of which purity and mutual information do not depend on which expert is
    /// whose.
    pub(crate) fn agreement(&self) -> Result<Vec<LayerAgreement>> {
        let geometry = self.trace.geometry();
        let layers: Vec<_> = geometry.layer_ids().collect();
        let experts = u16::try_from(geometry.experts()).expect("a geometry has at most 65535 experts");
        let reference = reference_experts(self.trace.domains().len(), experts);
        let routing = ReferenceRouting::new(geometry, &layers, &reference, 0)?;
        Ok(accumulate(&self.trace, &routing, &|_done| {})?.finish())
    }
}
