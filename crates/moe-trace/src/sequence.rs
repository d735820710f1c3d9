//! One sequence of a trace, borrowed or owned.

use half::f16;

use crate::{DomainId, ExpertId, Geometry, LayerId, Phase, Result, TraceError};

/// Marks a slot without an expert: a dropped token, a router with adaptive k, a dense layer.
pub const EMPTY_SLOT: u16 = u16::MAX;

/// Expert ids as the source stores them, `[tokens x layers x top_k]`; the largest value of the type is an empty slot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ids<'a> {
    U8(&'a [u8]),
    U16(&'a [u16]),
}

/// Router weights as the source stores them, `[tokens x layers x top_k]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl Ids<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Ids::U8(ids) => ids.len(),
            Ids::U16(ids) => ids.len(),
        }
    }

    fn get(&self, index: usize) -> u16 {
        match self {
            Ids::U8(ids) if ids[index] == u8::MAX => EMPTY_SLOT,
            Ids::U8(ids) => u16::from(ids[index]),
            Ids::U16(ids) => ids[index],
        }
    }
}

impl Weights<'_> {
    fn len(&self) -> usize {
        match self {
            Weights::F16(weights) => weights.len(),
            Weights::F32(weights) => weights.len(),
        }
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Weights::F16(weights) => weights[index].to_f32(),
            Weights::F32(weights) => weights[index],
        }
    }
}

/// The columns of a sequence before they are checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) experts: Ids<'a>,
    pub(crate) weights: Option<Weights<'a>>,
    pub(crate) token_ids: Option<&'a [u32]>,
    pub(crate) phases: PhaseColumn<'a>,
    pub(crate) domain: Option<DomainId>,
}

/// Phases of the tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PhaseColumn<'a> {
    /// Every token has this phase.
    All(Phase),
    /// Codes, `[tokens]`.
    Codes(&'a [u8]),
}

/// A checked view of one sequence: for every token and layer the chosen experts in rank order.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    geometry: &'a Geometry,
    number: usize,
    tokens: usize,
    columns: Columns<'a>,
}

impl<'a> Sequence<'a> {
    /// Checks every id, weight and phase; `index` is the sequence's number for messages.
    pub(crate) fn checked(geometry: &'a Geometry, index: usize, columns: Columns<'a>) -> Result<Sequence<'a>> {
        let row = geometry.layers() * geometry.top_k();
        let tokens = columns.experts.len() / row;
        let check = |column, len, expected| {
            if len == expected { Ok(()) } else { Err(TraceError::ColumnLength { column, len, expected }) }
        };
        check("experts", columns.experts.len(), tokens * row)?;
        if let Some(weights) = columns.weights {
            check("weights", weights.len(), tokens * row)?;
        }
        if let Some(ids) = columns.token_ids {
            check("token_ids", ids.len(), tokens)?;
        }
        if let PhaseColumn::Codes(codes) = columns.phases {
            check("phase", codes.len(), tokens)?;
            if let Some(token) = codes.iter().position(|&code| Phase::from_code(code).is_none()) {
                return Err(TraceError::PhaseCode { sequence: index, token, code: codes[token] });
            }
        }
        let sequence = Sequence::trusted(geometry, index, columns);
        sequence.check_ids(index)?;
        sequence.check_weights(index)?;
        Ok(sequence)
    }

    /// Views columns that were checked before.
    pub(crate) fn trusted(geometry: &'a Geometry, number: usize, columns: Columns<'a>) -> Sequence<'a> {
        let tokens = columns.experts.len() / (geometry.layers() * geometry.top_k());
        Sequence { geometry, number, tokens, columns }
    }

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
        let Some(weights) = self.columns.weights else { return Ok(()) };
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

    /// Replaces `out` by the ids of one layer, `[tokens x top_k]`, [`EMPTY_SLOT`] where a token used fewer experts.
    ///
    /// # Panics
    /// If the layer does not exist.
    pub fn copy_layer(&self, layer: LayerId, out: &mut Vec<u16>) {
        out.clear();
        out.reserve(self.tokens * self.geometry.top_k());
        for token in 0..self.tokens {
            out.extend(self.slots(token, layer).map(|slot| self.columns.experts.get(slot)));
        }
    }

    /// Token ids, `[tokens]`, if the trace has them.
    pub fn token_ids(&self) -> Option<&'a [u32]> {
        self.columns.token_ids
    }

    /// The phase in which a token was served.
    ///
    /// # Panics
    /// If the token does not exist.
    pub fn phase(&self, token: usize) -> Phase {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        match self.columns.phases {
            PhaseColumn::All(phase) => phase,
            PhaseColumn::Codes(codes) => Phase::from_code(codes[token]).expect("checked in Sequence::checked"),
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

    /// Copies the view into an owned sequence.
    pub fn to_buf(&self) -> SequenceBuf {
        let slots = 0..self.columns.experts.len();
        SequenceBuf {
            experts: slots.clone().map(|slot| self.columns.experts.get(slot)).collect(),
            weights: self.columns.weights.map(|weights| slots.map(|slot| weights.get(slot)).collect()),
            token_ids: self.columns.token_ids.map(<[u32]>::to_vec),
            phases: (0..self.tokens).map(|token| self.phase(token).code()).collect(),
            domain: self.columns.domain,
        }
    }

    fn slots(&self, token: usize, layer: LayerId) -> std::ops::Range<usize> {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        assert!(layer.index() < self.geometry.layers(), "{layer} of {}", self.geometry.layers());
        let k = self.geometry.top_k();
        let start = (token * self.geometry.layers() + layer.index()) * k;
        start..start + k
    }
}

/// An owned sequence, as a recorder or a generator makes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceBuf {
    /// Expert ids, `[tokens x layers x top_k]` in rank order, [`EMPTY_SLOT`] where a token used fewer.
    pub experts: Vec<u16>,
    /// Router weights, `[tokens x layers x top_k]`.
    pub weights: Option<Vec<f32>>,
    /// Token ids, `[tokens]`.
    pub token_ids: Option<Vec<u32>>,
    /// [Phase codes](Phase::code), `[tokens]`.
    pub phases: Vec<u8>,
    /// Domain of the text.
    pub domain: Option<DomainId>,
}

impl SequenceBuf {
    /// Creates a sequence of tokens of one phase from expert ids alone, `[tokens x layers x top_k]`.
    ///
    /// # Errors
    /// [`TraceError::ColumnLength`] if the ids are no whole number of tokens.
    pub fn from_experts(geometry: &Geometry, experts: Vec<u16>, phase: Phase) -> Result<SequenceBuf> {
        let row = geometry.layers() * geometry.top_k();
        let tokens = experts.len() / row;
        if tokens * row != experts.len() {
            return Err(TraceError::ColumnLength { column: "experts", len: experts.len(), expected: tokens * row });
        }
        Ok(SequenceBuf { experts, phases: vec![phase.code(); tokens], ..SequenceBuf::default() })
    }

    /// Checks the sequence and views it; `index` is its number for messages.
    ///
    /// # Errors
    /// [`TraceError::ColumnLength`], [`TraceError::PhaseCode`], [`TraceError::ExpertOutOfRange`],
    /// [`TraceError::DuplicateExpert`], [`TraceError::WeightNotFinite`].
    pub fn view<'a>(&'a self, geometry: &'a Geometry, index: usize) -> Result<Sequence<'a>> {
        Sequence::checked(geometry, index, self.columns())
    }

    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns {
            experts: Ids::U16(&self.experts),
            weights: self.weights.as_deref().map(Weights::F32),
            token_ids: self.token_ids.as_deref(),
            phases: PhaseColumn::Codes(&self.phases),
            domain: self.domain,
        }
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
