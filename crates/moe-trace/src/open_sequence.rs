//! A sequence as its router events come in.

use crate::{EMPTY_SLOT, Geometry, Result, RoutingEvent, SequenceBuf, TraceError};

/// A sequence whose end has not come yet.
#[derive(Debug, Default)]
pub(crate) struct OpenSequence {
    pub(crate) buf: SequenceBuf,
    /// First token of the running forward pass.
    chunk_start: usize,
    /// Layers of the running forward pass seen so far.
    layers_seen: usize,
}

impl OpenSequence {
    /// The sequence, if it has a token; `sequence` is its number for messages.
    pub(crate) fn finish(self, geometry: &Geometry, sequence: usize) -> Result<Option<SequenceBuf>> {
        if self.buf.phases.is_empty() {
            return Ok(None);
        }
        if self.layers_seen != geometry.layers() {
            return Err(TraceError::Capture { sequence, layer: self.layers_seen, problem: "the layer is missing" });
        }
        Ok(Some(self.buf))
    }

    /// Adds the choices of one router.
    pub(crate) fn add(&mut self, geometry: &Geometry, event: &RoutingEvent<'_>) -> Result<()> {
        let (layers, k) = (geometry.layers(), geometry.top_k());
        let fail = |problem| Err(TraceError::Capture { sequence: event.sequence, layer: event.layer.index(), problem });
        if event.layer.index() >= layers {
            return fail("the geometry has no such layer");
        }
        if !event.experts.len().is_multiple_of(k) {
            return fail("the experts are no whole number of tokens");
        }
        if !event.weights.is_empty() && event.weights.len() != event.experts.len() {
            return fail("there are not as many weights as experts");
        }
        let tokens = event.experts.len() / k;
        let experts = geometry.experts();
        if event.logits.is_some_and(|logits| logits.len() != tokens * experts) {
            return fail("there is not one logit for every token and expert");
        }
        if event.layer.index() == 0 {
            if self.layers_seen != layers && !self.buf.phases.is_empty() {
                return fail("the pass before it did not reach the last layer");
            }
            self.start_chunk(event, tokens, geometry);
        }
        if event.layer.index() != self.layers_seen {
            return fail("the layer came out of order");
        }
        if self.chunk_start + tokens != self.buf.phases.len() {
            return fail("the layers of one pass differ in their number of tokens");
        }
        if event.weights.is_empty() == self.buf.weights.is_some() && tokens > 0 {
            return fail("weights must come with all events of a sequence or with none");
        }
        if event.logits.is_some() != self.buf.logits.is_some() && tokens > 0 {
            return fail("logits must come with all events of a sequence or with none");
        }
        if event.token_ids.is_empty() == self.buf.token_ids.is_some() && tokens > 0 {
            return fail("token ids must come with all events of a sequence or with none");
        }
        if self.buf.token_ids.as_ref().is_some_and(|ids| ids.len() != self.buf.phases.len()) {
            return fail("there are not as many token ids as tokens");
        }
        for token in 0..tokens {
            let to = ((self.chunk_start + token) * layers + event.layer.index()) * k;
            self.buf.experts[to..to + k].copy_from_slice(&event.experts[token * k..(token + 1) * k]);
            if let Some(weights) = &mut self.buf.weights {
                weights[to..to + k].copy_from_slice(&event.weights[token * k..(token + 1) * k]);
            }
            if let (Some(logits), Some(seen)) = (&mut self.buf.logits, event.logits) {
                let to = ((self.chunk_start + token) * layers + event.layer.index()) * experts;
                logits[to..to + experts].copy_from_slice(&seen[token * experts..(token + 1) * experts]);
            }
        }
        self.layers_seen += 1;
        Ok(())
    }

    fn start_chunk(&mut self, event: &RoutingEvent<'_>, tokens: usize, geometry: &Geometry) {
        let row = geometry.layers() * geometry.top_k();
        self.chunk_start = self.buf.phases.len();
        self.layers_seen = 0;
        let total = self.chunk_start + tokens;
        if self.chunk_start == 0 {
            self.buf.weights = (!event.weights.is_empty()).then(Vec::new);
            self.buf.logits = event.logits.map(|_| Vec::new());
            self.buf.token_ids = (!event.token_ids.is_empty()).then(Vec::new);
        }
        self.buf.experts.resize(total * row, EMPTY_SLOT);
        self.buf.phases.resize(total, event.phase.code());
        if let Some(weights) = &mut self.buf.weights {
            weights.resize(total * row, 0.0);
        }
        if let Some(logits) = &mut self.buf.logits {
            logits.resize(total * geometry.layers() * geometry.experts(), 0.0);
        }
        if let Some(ids) = &mut self.buf.token_ids {
            ids.extend_from_slice(event.token_ids);
        }
    }
}
