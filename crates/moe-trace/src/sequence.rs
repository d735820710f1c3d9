//! One sequence of a trace, borrowed or owned.

use crate::columns::{Columns, Phases};
use crate::layer_copy::copy_rows;
use crate::row_check::rows_are_valid;
use crate::{DomainId, ExpertId, Geometry, LayerId, Phase, Result, SequenceBuf, TraceError};

/// Marks a slot without an expert: a dropped token, a router with adaptive k, a dense layer.
pub const EMPTY_SLOT: u16 = u16::MAX;

/// A checked view of one sequence: for every token and layer the chosen experts in rank order.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    geometry: &'a Geometry,
    number: usize,
    tokens: usize,
    columns: Columns<'a>,
    stored: Stored<'a>,
}

/// Which layers the columns hold.
#[derive(Clone, Copy, Debug)]
enum Stored<'a> {
    /// Those of the geometry.
    All,
    /// `layers` layers; layer `i` of the geometry is layer `of[i]` of them.
    Subset { layers: usize, of: &'a [LayerId] },
}

impl<'a> Sequence<'a> {
    /// Checks every id, weight and phase; `index` is the sequence's number for messages.
    pub(crate) fn checked(geometry: &'a Geometry, index: usize, columns: Columns<'a>) -> Result<Sequence<'a>> {
        let row = geometry.layers() * geometry.top_k();
        let tokens = columns.experts.len() / row;
        let check = |column, len: Option<usize>, expected| match len {
            Some(len) if len != expected => Err(TraceError::ColumnLength { column, len, expected }),
            _ => Ok(()),
        };
        check("experts", Some(columns.experts.len()), tokens * row)?;
        check("weights", columns.weights.map(|weights| weights.len()), tokens * row)?;
        let logits = tokens * geometry.layers() * geometry.experts();
        check("logits", columns.logits.map(|logits| logits.len()), logits)?;
        check("token_ids", columns.token_ids.map(<[u32]>::len), tokens)?;
        check("predictions", columns.predictions.map(<[u32]>::len), tokens)?;
        check("text_offsets", columns.text.map(|text| text.offsets.len()), tokens + 1)?;
        if let Phases::Codes(codes) = columns.phases {
            check("phase", Some(codes.len()), tokens)?;
            let wrong = |code: &u8| Phase::from_code(*code).is_none();
            // The fold has no early exit, so that it becomes vector instructions.
            if codes.iter().fold(false, |any, code| any | wrong(code))
                && let Some(token) = codes.iter().position(wrong)
            {
                return Err(TraceError::PhaseCode { sequence: index, token, code: codes[token] });
            }
        }
        let sequence = Sequence::trusted(geometry, index, columns);
        if !rows_are_valid(columns.experts, geometry.top_k(), geometry.experts()) {
            sequence.check_ids(index)?;
        }
        sequence.check_weights(index)?;
        Ok(sequence)
    }

    /// Views columns that were checked before.
    pub(crate) fn trusted(geometry: &'a Geometry, number: usize, columns: Columns<'a>) -> Sequence<'a> {
        let tokens = columns.experts.len() / (geometry.layers() * geometry.top_k());
        Sequence { geometry, number, tokens, columns, stored: Stored::All }
    }

    /// Finds the first id that is wrong.
    fn check_ids(&self, sequence: usize) -> Result<()> {
        let (k, experts) = (self.geometry.top_k(), self.geometry.experts());
        let mut last_seen = vec![0usize; experts];
        for row in 0..self.tokens * self.geometry.layers() {
            let (token, layer) = (row / self.geometry.layers(), row % self.geometry.layers());
            for slot in row * k..(row + 1) * k {
                let expert = self.columns.experts.get(slot);
                if expert == EMPTY_SLOT {
                    continue;
                }
                let expert = usize::from(expert);
                let Some(seen) = last_seen.get_mut(expert) else {
                    return Err(TraceError::ExpertOutOfRange { sequence, token, layer, expert, experts });
                };
                if *seen == row + 1 {
                    return Err(TraceError::DuplicateExpert { sequence, token, layer, expert });
                }
                *seen = row + 1;
            }
        }
        Ok(())
    }

    fn check_weights(&self, sequence: usize) -> Result<()> {
        let Some(weights) = self.columns.weights.filter(|weights| !weights.all_finite()) else { return Ok(()) };
        let k = self.geometry.top_k();
        for slot in 0..weights.len() {
            let value = weights.get(slot);
            if !value.is_finite() && self.columns.experts.get(slot) != EMPTY_SLOT {
                let row = slot / k;
                let (token, layer) = (row / self.geometry.layers(), row % self.geometry.layers());
                return Err(TraceError::WeightNotFinite { sequence, token, layer, value });
            }
        }
        Ok(())
    }

    /// The tokens of a range as a sequence.
    ///
    /// # Panics
    /// If a token of the range does not exist.
    pub fn tokens(self, range: std::ops::Range<usize>) -> Sequence<'a> {
        assert!(range.start <= range.end && range.end <= self.tokens, "tokens {range:?} of {}", self.tokens);
        let layers = self.stored_layers();
        let (slots, logits) = (layers * self.geometry.top_k(), layers * self.geometry.experts());
        Sequence { tokens: range.len(), columns: self.columns.slice(range, slots, logits), ..self }
    }

    /// The layers `of` as a sequence of the geometry that has just these.
    ///
    /// # Errors
    /// [`TraceError::LayersSelectedTwice`] if layers were selected before: the map of the map would have no owner.
    pub(crate) fn layers(self, geometry: &'a Geometry, of: &'a [LayerId]) -> Result<Sequence<'a>> {
        match self.stored {
            Stored::All => {
                Ok(Sequence { geometry, stored: Stored::Subset { layers: self.geometry.layers(), of }, ..self })
            }
            Stored::Subset { .. } => Err(TraceError::LayersSelectedTwice),
        }
    }

    /// The sequence with another domain.
    pub(crate) fn with_domain(mut self, domain: Option<DomainId>) -> Sequence<'a> {
        self.columns.domain = domain;
        self
    }

    /// The geometry of the trace that the sequence belongs to.
    pub fn geometry(&self) -> &'a Geometry {
        self.geometry
    }

    /// The number that the source gave to the sequence; equal numbers of different shards are different sequences.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Experts of a token in a layer, in rank order; empty slots are left out.
    ///
    /// # Panics
    /// If the token or the layer does not exist.
    pub fn experts(&self, token: usize, layer: LayerId) -> impl Iterator<Item = ExpertId> + use<'a> {
        let ids = self.columns.experts;
        self.slots(token, layer).map(move |slot| ids.get(slot)).filter(|&id| id != EMPTY_SLOT).map(ExpertId)
    }

    /// Experts of a token in a layer with their router weights, in rank order; `None` if the trace has no weights.
    ///
    /// # Panics
    /// If the token or the layer does not exist.
    pub fn weighted_experts(
        &self,
        token: usize,
        layer: LayerId,
    ) -> Option<impl Iterator<Item = (ExpertId, f32)> + use<'a>> {
        let (ids, weights) = (self.columns.experts, self.columns.weights?);
        let slots = self.slots(token, layer).map(move |slot| (ids.get(slot), weights.get(slot)));
        Some(slots.filter(|&(id, _)| id != EMPTY_SLOT).map(|(id, weight)| (ExpertId(id), weight)))
    }

    /// Router logits of a token in a layer, one an expert; `None` if the trace has no logits. They are as the model made
    /// them: a router may mask experts by `-inf`.
    ///
    /// # Panics
    /// If the token or the layer does not exist.
    pub fn logits(&self, token: usize, layer: LayerId) -> Option<impl ExactSizeIterator<Item = f32> + use<'a>> {
        let (logits, experts) = (self.columns.logits?, self.geometry.experts());
        let start = self.row(token, layer) * experts;
        Some((start..start + experts).map(move |index| logits.get(index)))
    }

    /// All slots of a token in a layer, empty ones too.
    #[cfg(feature = "import")]
    pub(crate) fn slot_ids(&self, token: usize, layer: LayerId) -> impl Iterator<Item = u16> + use<'a> {
        let ids = self.columns.experts;
        self.slots(token, layer).map(move |slot| ids.get(slot))
    }

    /// Replaces `out` by the ids of one layer, `[tokens x top_k]`, [`EMPTY_SLOT`] where a token used fewer experts.
    ///
    /// # Panics
    /// If the layer does not exist.
    pub fn copy_layer(&self, layer: LayerId, out: &mut Vec<u16>) {
        if self.tokens == 0 {
            return out.clear();
        }
        let (stride, k) = (self.stored_layers() * self.geometry.top_k(), self.geometry.top_k());
        let ids = self.columns.experts.slice(self.slots(0, layer).start..self.columns.experts.len());
        copy_rows(ids, stride, k, out);
    }

    /// Token ids, `[tokens]`, if the trace has them.
    pub fn token_ids(&self) -> Option<&'a [u32]> {
        self.columns.token_ids
    }

    /// The token that the model held most likely to come next after each token, `[tokens]`, if the trace has them.
    pub fn predictions(&self) -> Option<&'a [u32]> {
        self.columns.predictions
    }

    /// The bytes of a token's text, if the trace has them.
    ///
    /// # Panics
    /// If the token does not exist.
    pub fn text(&self, token: usize) -> Option<&'a [u8]> {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        self.columns.text.map(|text| text.get(token))
    }

    /// The phase in which a token was served.
    ///
    /// # Panics
    /// If the token does not exist.
    pub fn phase(&self, token: usize) -> Phase {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        match self.columns.phases {
            Phases::All(phase) => phase,
            Phases::Codes(codes) => Phase::from_code(codes[token]).expect("checked in Sequence::checked"),
        }
    }

    /// The domain of the text, if the trace has domains.
    pub fn domain(&self) -> Option<DomainId> {
        self.columns.domain
    }

    /// Whether the trace has router weights.
    pub fn has_weights(&self) -> bool {
        self.columns.weights.is_some()
    }

    /// Whether the trace has router logits.
    pub fn has_logits(&self) -> bool {
        self.columns.logits.is_some()
    }

    /// Whether the trace has the text of its tokens.
    pub fn has_text(&self) -> bool {
        self.columns.text.is_some()
    }

    /// Copies the view into an owned sequence.
    pub fn to_buf(&self) -> SequenceBuf {
        let mut experts = Vec::with_capacity(self.tokens * self.geometry.layers() * self.geometry.top_k());
        match self.stored {
            Stored::All => self.columns.experts.append(0..self.columns.experts.len(), &mut experts),
            Stored::Subset { .. } => {
                self.rows().for_each(|(token, layer)| {
                    self.columns.experts.append(self.slots(token, layer), &mut experts);
                });
            }
        }
        let weights = self.columns.weights.map(|weights| {
            self.rows().flat_map(|(token, layer)| self.slots(token, layer)).map(|slot| weights.get(slot)).collect()
        });
        let logits = self
            .columns
            .logits
            .map(|_| self.rows().filter_map(|(token, layer)| self.logits(token, layer)).flatten().collect());
        SequenceBuf {
            experts,
            weights,
            logits,
            token_ids: self.columns.token_ids.map(<[u32]>::to_vec),
            predictions: self.columns.predictions.map(<[u32]>::to_vec),
            text: self.columns.text.map(|text| (0..self.tokens).map(|token| text.get(token)).collect()),
            phases: (0..self.tokens).map(|token| self.phase(token).code()).collect(),
            domain: self.columns.domain,
        }
    }

    /// Every token with every layer, as the columns are ordered.
    fn rows(&self) -> impl Iterator<Item = (usize, LayerId)> + use<'a> {
        let geometry = self.geometry;
        (0..self.tokens).flat_map(move |token| geometry.layer_ids().map(move |layer| (token, layer)))
    }

    fn stored_layers(&self) -> usize {
        match self.stored {
            Stored::All => self.geometry.layers(),
            Stored::Subset { layers, .. } => layers,
        }
    }

    /// The row of a token and layer in the columns.
    fn row(&self, token: usize, layer: LayerId) -> usize {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        assert!(layer.index() < self.geometry.layers(), "{layer} of {}", self.geometry.layers());
        match self.stored {
            Stored::All => token * self.geometry.layers() + layer.index(),
            Stored::Subset { layers, of } => token * layers + of[layer.index()].index(),
        }
    }

    fn slots(&self, token: usize, layer: LayerId) -> std::ops::Range<usize> {
        let k = self.geometry.top_k();
        let start = self.row(token, layer) * k;
        start..start + k
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buf(experts: Vec<u16>) -> (Geometry, SequenceBuf) {
        let geometry = Geometry::decoder(2, 4, 2).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Decode).unwrap();
        (geometry, sequence)
    }

    #[test]
    fn experts_come_in_rank_order_without_empty_slots() {
        let (geometry, sequence) = buf(vec![3, 0, 1, EMPTY_SLOT, 2, 1, EMPTY_SLOT, EMPTY_SLOT]);
        let view = sequence.view(&geometry, 0).unwrap();
        let experts = |token, layer| view.experts(token, LayerId(layer)).map(|e| e.0).collect::<Vec<_>>();
        assert_eq!((experts(0, 0), experts(0, 1)), (vec![3, 0], vec![1]));
        assert_eq!((experts(1, 0), experts(1, 1)), (vec![2, 1], vec![]));
        let mut layer = Vec::new();
        view.copy_layer(LayerId(1), &mut layer);
        assert_eq!(layer, [1, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT]);
        assert_eq!(view.to_buf(), sequence);
    }

    #[test]
    fn bad_ids_and_weights_say_where() {
        let (geometry, mut sequence) = buf(vec![3, 0, 1, 2, 2, 1, 0, 4]);
        let message = |sequence: &SequenceBuf| sequence.view(&geometry, 7).unwrap_err().to_string();
        assert_eq!(message(&sequence), "sequence 7, token 1, layer 1: expert 4 is out of range, the layer has 4");
        sequence.experts[7] = 0;
        assert_eq!(message(&sequence), "sequence 7, token 1, layer 1: expert 0 appears twice");
        sequence.experts[7] = 3;
        let mut weights = vec![0.5; 8];
        weights[5] = f32::NAN;
        sequence.weights = Some(weights);
        assert_eq!(message(&sequence), "sequence 7, token 1, layer 0: router weight NaN is not finite");
        sequence.weights = Some(vec![0.5; 7]);
        assert_eq!(message(&sequence), "sequence column weights has 7 entries, expected 8");
    }
}
