//! Assembles router events into sequences.

use std::collections::HashMap;

use crate::open_sequence::OpenSequence;
use crate::{
    DomainId, Geometry, MemoryTrace, Result, RouterObserver, RoutingEvent, RoutingSource, SequenceBuf, ShardedWriter,
    TraceError,
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
        match open.finish(self.sink.geometry(), sequence)? {
            Some(buf) => self.sink.accept(buf),
            None => Ok(()),
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
