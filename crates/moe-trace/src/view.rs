//! A part of a trace, without copying it.

use std::ops::Range;

use crate::{DomainId, Geometry, ImportReport, LayerId, Notice, Phase, Result, RoutingSource, Sequence, TraceError};

/// What of a trace is wanted; what is `None` is not restricted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Sequences by number, in the order wanted.
    pub sequences: Option<Vec<usize>>,
    /// Sequences of these domains.
    pub domains: Option<Vec<DomainId>>,
    /// Tokens of this phase. Every run of them becomes a sequence of its own, because what was not adjacent when it was
    /// served is not adjacent in the slice.
    pub phase: Option<Phase>,
    /// Layers, in the order wanted.
    pub layers: Option<Vec<LayerId>>,
}

/// A part of a source, seen as a source: sequences, domains, a phase, layers.
///
/// ```
/// use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, RoutingSource, Selection, SequenceBuf, TraceView};
/// let geometry = Geometry::decoder(2, 4, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 3], Phase::Decode)?)?;
/// let last = TraceView::new(&trace, &Selection { layers: Some(vec![LayerId(1)]), ..Selection::default() })?;
/// assert_eq!(last.sequence(0)?.to_buf().experts, [1, 3]);
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Debug)]
pub struct TraceView<S> {
    source: S,
    geometry: Geometry,
    layers: Option<Vec<LayerId>>,
    /// Sequence of the source and its tokens, for each sequence.
    parts: Vec<(usize, Range<usize>)>,
}

impl<S: RoutingSource> TraceView<S> {
    /// Selects a part of a source. To select by domain or phase the sequences are read once.
    ///
    /// # Errors
    /// [`TraceError::NoSuchSequence`], [`TraceError::NoSuchLayer`], [`TraceError::UnknownDomain`]; what reading the source
    /// finds; [`TraceError::Geometry`] if no layer is selected.
    pub fn new(source: S, selection: &Selection) -> Result<TraceView<S>> {
        let geometry = match &selection.layers {
            None => source.geometry().clone(),
            Some(layers) => source.geometry().select(layers)?,
        };
        let names = source.domains().len();
        for domain in selection.domains.iter().flatten() {
            if domain.index() >= names {
                return Err(TraceError::UnknownDomain { domain: domain.index(), names });
            }
        }
        let mut parts = Vec::new();
        let mut add = |index: usize| -> Result<()> {
            if selection.domains.is_none() && selection.phase.is_none() {
                parts.push((index, 0..source.sequence_len(index)?));
                return Ok(());
            }
            let sequence = source.sequence(index)?;
            let wanted = |domains: &Vec<DomainId>| sequence.domain().is_some_and(|domain| domains.contains(&domain));
            if selection.domains.as_ref().is_none_or(wanted) {
                parts.extend(runs(&sequence, selection.phase).map(|tokens| (index, tokens)));
            }
            Ok(())
        };
        match &selection.sequences {
            Some(sequences) => sequences.iter().try_for_each(|&index| add(index))?,
            None => (0..source.len()).try_for_each(add)?,
        }
        Ok(TraceView { source, geometry, layers: selection.layers.clone(), parts })
    }

    fn part(&self, index: usize) -> Result<&(usize, Range<usize>)> {
        self.parts.get(index).ok_or(TraceError::NoSuchSequence { index, len: self.parts.len() })
    }
}

/// The runs of tokens of a phase; without a phase all tokens are one run.
fn runs(sequence: &Sequence<'_>, phase: Option<Phase>) -> impl Iterator<Item = Range<usize>> {
    let len = sequence.len();
    let mut runs: Vec<Range<usize>> = Vec::new();
    match phase {
        None => runs.push(0..len),
        Some(phase) => {
            for token in (0..len).filter(|&token| sequence.phase(token) == phase) {
                match runs.last_mut() {
                    Some(run) if run.end == token => run.end += 1,
                    _ => runs.push(token..token + 1),
                }
            }
        }
    }
    runs.into_iter()
}

impl<S: RoutingSource> RoutingSource for TraceView<S> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn len(&self) -> usize {
        self.parts.len()
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let (index, tokens) = self.part(index)?;
        let sequence = self.source.sequence(*index)?.tokens(tokens.clone());
        match &self.layers {
            None => Ok(sequence),
            Some(layers) => sequence.layers(&self.geometry, layers),
        }
    }

    fn sequence_len(&self, index: usize) -> Result<usize> {
        self.part(index).map(|(_, tokens)| tokens.len())
    }

    fn domains(&self) -> &[String] {
        self.source.domains()
    }

    fn model(&self) -> Option<&str> {
        self.source.model()
    }

    fn import_report(&self) -> &ImportReport {
        self.source.import_report()
    }

    fn notices(&self) -> &[Notice] {
        self.source.notices()
    }
}
