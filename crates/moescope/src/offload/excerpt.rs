//! A part of a trace that is quick to replay.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use expert_cache::has_decoded;
use moe_trace::{LayerId, MemoryTrace, Phase, RoutingSource, Selection, TraceView};
use moescope_cli::{Foreign, NO_COST, Provenance, layers_without_access};

/// How much of a trace is replayed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Excerpt {
    /// Layers, evenly chosen.
    pub(crate) layers: usize,
    /// Sequences, evenly chosen.
    pub(crate) sequences: usize,
    /// Tokens of each sequence, from the first on.
    pub(crate) tokens: usize,
    /// Tokens of each sequence that are prefilled, whatever the trace says.
    pub(crate) prefill: Option<usize>,
}

/// A part of a trace.
#[derive(Debug)]
pub(crate) struct Excerpted {
    pub(crate) trace: MemoryTrace,
    /// MoE layers of the whole trace.
    pub(crate) of_layers: usize,
    pub(crate) provenance: Provenance,
}

impl Excerpt {
    pub(crate) fn of(self, path: &Path, foreign: &Foreign) -> Result<Excerpted> {
        self.read(path, foreign).with_context(|| format!("cannot replay {}", path.display()))
    }

    fn read(self, path: &Path, foreign: &Foreign) -> Result<Excerpted> {
        let trace = foreign.open(path)?;
        let (of_layers, provenance) = (trace.geometry().layers(), Provenance::of(trace.as_ref()));
        let layers = evenly(of_layers, self.layers);
        let layers = layers.map(|layer| u16::try_from(layer).map(LayerId)).collect::<Result<_, _>>()?;
        let selection = Selection {
            sequences: Some(evenly(trace.len(), self.sequences).collect()),
            layers: Some(layers),
            ..Selection::default()
        };
        let view = TraceView::new(trace, &selection)?;
        let mut memory = MemoryTrace::new(view.geometry().clone()).with_domains(view.domains().to_vec());
        for index in 0..view.len() {
            let sequence = view.sequence(index)?;
            let mut sequence = sequence.tokens(0..self.tokens.min(sequence.len())).to_buf();
            if let Some(prefill) = self.prefill {
                let prefilled = prefill.min(sequence.phases.len());
                sequence.phases[..prefilled].fill(Phase::Prefill.code());
                sequence.phases[prefilled..].fill(Phase::Decode.code());
            }
            memory.push(sequence)?;
        }
        let advice = match self.prefill {
            Some(_) => "give a smaller --prefill",
            None => {
                "give more --tokens; if all tokens were decoded, import them with `moescope trace import --token-phase decode`"
            }
        };
        ensure!(
            has_decoded(&memory)?,
            "none of the first {} tokens of {} sequences is decoded, and decoding is what is measured; {advice}",
            self.tokens,
            memory.len()
        );
        let provenance = provenance.with_unused_layers(layers_without_access(&memory)?, NO_COST);
        Ok(Excerpted { trace: memory, of_layers, provenance })
    }
}

/// Up to `wanted` of `0..count`, evenly spread.
fn evenly(count: usize, wanted: usize) -> impl Iterator<Item = usize> {
    let wanted = wanted.min(count);
    (0..wanted).map(move |number| number * count / wanted)
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions, write_trace};

    use super::*;

    #[test]
    fn an_even_choice_begins_at_the_first() {
        assert_eq!(evenly(24, 4).collect::<Vec<_>>(), [0, 6, 12, 18]);
        assert_eq!(evenly(3, 8).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(0, 8).count(), 0);
    }

    #[test]
    fn an_excerpt_without_a_decoded_token_says_what_helps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.safetensors");
        let dials = SyntheticOptions { sequences: 2, tokens: 6, prefill: 4, ..SyntheticOptions::default() };
        let trace = Synthetic::new(Geometry::decoder(3, 8, 2).unwrap(), dials).collect().unwrap();
        write_trace(&path, &trace).unwrap();
        let excerpt =
            |tokens, prefill| Excerpt { layers: 1, sequences: 2, tokens, prefill }.of(&path, &Foreign::default());
        let message = |tokens, prefill| format!("{:#}", excerpt(tokens, prefill).unwrap_err());
        assert!(message(4, None).ends_with(
            "give more --tokens; if all tokens were decoded, import them with `moescope trace import --token-phase decode`"
        ));
        assert!(message(5, Some(5)).ends_with("give a smaller --prefill"));
        let Excerpted { trace, of_layers, .. } = excerpt(5, None).unwrap();
        assert_eq!((trace.len(), trace.geometry().layers(), of_layers), (2, 1, 3));
    }
}
