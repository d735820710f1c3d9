//! Assembles router events into sequences.

use std::collections::HashMap;

use crate::{
    DomainId, EMPTY_SLOT, Geometry, MemoryTrace, Result, RouterObserver, RoutingEvent, RoutingSource, SequenceBuf,
    ShardedWriter, TraceError,
};

/// Takes complete sequences from a [`Recorder`].
pub trait SequenceSink {
    /// The geometry of the sequences.
    fn geometry(&self) -> &Geometry;

    /// Takes a sequence.
    ///
    /// # Errors
    /// An invalid sequence, or a failure to write.
    fn accept(&mut self, sequence: SequenceBuf) -> Result<()>;
}

impl SequenceSink for MemoryTrace {
    fn geometry(&self) -> &Geometry {
        RoutingSource::geometry(self)
    }

    fn accept(&mut self, sequence: SequenceBuf) -> Result<()> {
        self.push(sequence)
    }
}

impl SequenceSink for ShardedWriter {
    fn geometry(&self) -> &Geometry {
        ShardedWriter::geometry(self)
    }

    fn accept(&mut self, sequence: SequenceBuf) -> Result<()> {
        self.push(&sequence)
    }
}

/// A [`RouterObserver`] that collects the events of each sequence until it ends and hands it to a sink.
///
/// Capture never fails a forward pass: the first error is kept (see [`error`](Recorder::error)), and events after it are
/// ignored. Sequences accepted before the error stay accepted.
#[derive(Debug)]
pub struct Recorder<S> {
    sink: S,
    open: HashMap<usize, OpenSequence>,
    logits: bool,
    error: Option<TraceError>,
}

/// A sequence whose end has not come yet.
#[derive(Debug, Default)]
struct OpenSequence {
    buf: SequenceBuf,
    /// First token of the running forward pass.
    chunk_start: usize,
    /// Layers of the running forward pass seen so far.
    layers_seen: usize,
}

impl<S: SequenceSink> Recorder<S> {
    /// Creates a recorder that hands its sequences to `sink`.
    pub fn new(sink: S) -> Recorder<S> {
        Recorder { sink, open: HashMap::new(), logits: false, error: None }
    }

    /// Asks models for the router logits of all experts too.
    #[must_use]
    pub fn with_logits(self) -> Recorder<S> {
        Recorder { logits: true, ..self }
    }

    /// Names the domain of a sequence of the running batch; call it before the sequence ends.
    pub fn label(&mut self, sequence: usize, domain: DomainId) {
        self.open.entry(sequence).or_default().buf.domain = Some(domain);
    }

    /// Says which token the model held most likely to come next after each of the next tokens of a sequence. By the end of
    /// the sequence there must be one for each of its tokens, or none at all.
    pub fn predicted(&mut self, sequence: usize, token_ids: &[u32]) {
        if self.error.is_none() {
            let buf = &mut self.open.entry(sequence).or_default().buf;
            buf.predictions.get_or_insert_default().extend_from_slice(token_ids);
        }
    }

    /// Says the text of the next tokens of a sequence. By the end of the sequence there must be one for each of its tokens,
    /// or none at all.
    pub fn spelled(&mut self, sequence: usize, tokens: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        if self.error.is_none() {
            self.open.entry(sequence).or_default().buf.text.get_or_insert_default().extend(tokens);
        }
    }

    /// The first error so far; after it nothing more is recorded.
    pub fn error(&self) -> Option<&TraceError> {
        self.error.as_ref()
    }

    /// Ends the capture and returns the sink. Sequences that have not ended are ended now.
    ///
    /// # Errors
    /// The first error of the capture; to keep what was accepted before it, use [`into_parts`](Self::into_parts).
    pub fn finish(self) -> Result<S> {
        match self.into_parts() {
            (sink, None) => Ok(sink),
            (_, Some(error)) => Err(error),
        }
    }

    /// Ends the capture and returns the sink with all sequences accepted, and the first error if there was one.
    pub fn into_parts(mut self) -> (S, Option<TraceError>) {
        let mut open: Vec<usize> = self.open.keys().copied().collect();
        open.sort_unstable();
        for sequence in open {
            self.sequence_end(sequence);
        }
        (self.sink, self.error)
    }

    fn keep_first_error(&mut self, result: Result<()>) {
        if let (Err(error), None) = (result, &self.error) {
            self.error = Some(error);
        }
    }

    fn end(&mut self, sequence: usize) -> Result<()> {
        let Some(open) = self.open.remove(&sequence) else { return Ok(()) };
        let layers = self.sink.geometry().layers();
        if open.layers_seen != layers && !open.buf.phases.is_empty() {
            return Err(TraceError::Capture { sequence, layer: open.layers_seen, problem: "the layer is missing" });
        }
        if open.buf.phases.is_empty() { Ok(()) } else { self.sink.accept(open.buf) }
    }
}

impl OpenSequence {
    fn add(&mut self, geometry: &Geometry, event: &RoutingEvent<'_>) -> Result<()> {
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

impl<S: SequenceSink> RouterObserver for Recorder<S> {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if self.error.is_none() {
            let open = self.open.entry(event.sequence).or_default();
            let result = open.add(self.sink.geometry(), event);
            self.keep_first_error(result);
        }
    }

    fn wants_logits(&self) -> bool {
        self.logits
    }

    fn sequence_end(&mut self, sequence: usize) {
        if self.error.is_none() {
            let result = self.end(sequence);
            self.keep_first_error(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerId, Phase};

    fn event<'a>(sequence: usize, layer: u16, experts: &'a [u16], weights: &'a [f32]) -> RoutingEvent<'a> {
        let phase = if experts.len() > 2 { Phase::Prefill } else { Phase::Decode };
        RoutingEvent { sequence, layer: LayerId(layer), phase, token_ids: &[], experts, weights, logits: None }
    }

    fn recorder() -> Recorder<MemoryTrace> {
        Recorder::new(MemoryTrace::new(Geometry::decoder(2, 8, 2).unwrap()).with_domains(["prose"]))
    }

    #[test]
    fn interleaved_sequences_keep_prefill_and_decode_apart() {
        let mut recorder = recorder();
        for sequence in [0, 1] {
            recorder.routed(&event(sequence, 0, &[0, 1, 2, 3], &[]));
            recorder.routed(&event(sequence, 1, &[4, 5, 6, 7], &[]));
        }
        recorder.label(1, DomainId(0));
        for layer in [0, 1] {
            recorder.routed(&event(0, layer, &[7, 6], &[]));
        }
        recorder.sequence_end(1);
        let trace = recorder.finish().unwrap();
        let (first, second) = (trace.sequence(0).unwrap(), trace.sequence(1).unwrap());
        assert_eq!((first.len(), first.domain()), (2, Some(DomainId(0))));
        assert_eq!((second.len(), second.phase(1), second.phase(2)), (3, Phase::Prefill, Phase::Decode));
        assert_eq!(second.experts(1, LayerId(1)).map(|e| e.0).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(second.experts(2, LayerId(0)).map(|e| e.0).collect::<Vec<_>>(), [7, 6]);
    }

    #[test]
    fn predictions_and_text_must_be_of_every_token() {
        let mut recorder = recorder();
        for layer in [0, 1] {
            recorder.routed(&event(0, layer, &[0, 1, 2, 3], &[]));
        }
        recorder.predicted(0, &[5]);
        recorder.predicted(0, &[6]);
        recorder.spelled(0, ["a", "bc"]);
        recorder.sequence_end(0);
        for layer in [0, 1] {
            recorder.routed(&event(0, layer, &[0, 1], &[]));
        }
        recorder.spelled(0, ["a", "b"]);
        let (trace, error) = recorder.into_parts();
        let sequence = trace.sequence(0).unwrap();
        assert_eq!((sequence.predictions(), sequence.text(1)), (Some(&[5, 6][..]), Some(&b"bc"[..])));
        let message = "sequence column text_offsets has 3 entries, expected 2";
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(message));
    }

    #[test]
    fn logits_are_recorded_where_they_come() {
        let logits: Vec<f32> = (0u8..16).map(f32::from).collect();
        let mut recorder = recorder().with_logits();
        assert!(recorder.wants_logits());
        recorder.routed(&RoutingEvent { logits: Some(&logits), ..event(0, 0, &[0, 1, 2, 3], &[]) });
        recorder.routed(&RoutingEvent { logits: Some(&[0.5; 16]), ..event(0, 1, &[0, 1, 2, 3], &[]) });
        for layer in [0, 1] {
            recorder.routed(&RoutingEvent { logits: Some(&logits[8..]), ..event(0, layer, &[4, 5], &[]) });
        }
        recorder.sequence_end(0);
        for layer in [0, 1] {
            recorder.routed(&event(0, layer, &[4, 5], &[]));
        }
        let trace = recorder.finish().unwrap();
        let sequence = trace.sequence(0).unwrap();
        let of = |token, layer| sequence.logits(token, LayerId(layer)).unwrap().collect::<Vec<_>>();
        assert_eq!((of(0, 0), of(1, 0)), (logits[..8].to_vec(), logits[8..].to_vec()));
        assert_eq!((of(1, 1), of(2, 1)), (vec![0.5; 8], logits[8..].to_vec()));
        assert!(trace.sequence(1).unwrap().logits(0, LayerId(0)).is_none());
    }

    #[test]
    fn the_first_error_is_kept_and_earlier_sequences_stay() {
        let mut recorder = recorder();
        for layer in [0, 1] {
            recorder.routed(&event(0, layer, &[0, 1], &[]));
        }
        recorder.sequence_end(0);
        assert!(recorder.error().is_none());
        recorder.routed(&event(1, 1, &[0, 1], &[]));
        recorder.routed(&event(1, 9, &[0, 1], &[]));
        let message = "capture of sequence 1, layer 1: the layer came out of order";
        assert_eq!(recorder.error().map(ToString::to_string).as_deref(), Some(message));
        let (trace, error) = recorder.into_parts();
        assert_eq!((trace.len(), error.map(|error| error.to_string()).as_deref()), (1, Some(message)));
    }

    #[test]
    fn broken_event_streams_are_told() {
        let message = |events: &[RoutingEvent<'_>]| {
            let mut recorder = recorder();
            events.iter().for_each(|event| recorder.routed(event));
            recorder.finish().unwrap_err().to_string()
        };
        let problem = |text: &str, layer| format!("capture of sequence 0, layer {layer}: {text}");
        assert_eq!(message(&[event(0, 0, &[0, 1], &[])]), problem("the layer is missing", 1));
        assert_eq!(message(&[event(0, 5, &[0, 1], &[])]), problem("the geometry has no such layer", 5));
        assert_eq!(message(&[event(0, 0, &[0], &[])]), problem("the experts are no whole number of tokens", 0));
        assert_eq!(message(&[event(0, 0, &[0, 1], &[0.5])]), problem("there are not as many weights as experts", 0));
        assert_eq!(
            message(&[event(0, 0, &[0, 1], &[]), event(0, 1, &[0, 1, 2, 3], &[])]),
            problem("the layers of one pass differ in their number of tokens", 1)
        );
        assert_eq!(
            message(&[event(0, 0, &[0, 1], &[]), event(0, 1, &[0, 1], &[0.5, 0.5])]),
            problem("weights must come with all events of a sequence or with none", 1)
        );
        assert_eq!(
            message(&[RoutingEvent { logits: Some(&[0.5; 7]), ..event(0, 0, &[0, 1], &[]) }]),
            problem("there is not one logit for every token and expert", 0)
        );
        assert_eq!(
            message(&[
                event(0, 0, &[0, 1], &[]),
                RoutingEvent { logits: Some(&[0.5; 8]), ..event(0, 1, &[0, 1], &[]) }
            ]),
            problem("logits must come with all events of a sequence or with none", 1)
        );
        assert_eq!(
            message(&[event(0, 0, &[0, 1], &[]), RoutingEvent { token_ids: &[7], ..event(0, 1, &[0, 1], &[]) }]),
            problem("token ids must come with all events of a sequence or with none", 1)
        );
        assert_eq!(
            message(&[RoutingEvent { token_ids: &[7, 8], ..event(0, 0, &[0, 1], &[]) }]),
            problem("there are not as many token ids as tokens", 0)
        );
        assert_eq!(
            message(&[event(0, 0, &[0, 8], &[]), event(0, 1, &[0, 1], &[])]),
            "sequence 0, token 0, layer 0: expert 8 is out of range, the layer has 8"
        );
    }
}
