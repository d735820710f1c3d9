//! Owned sequences.

use crate::columns::{Columns, Floats, Ids, Phases};
use crate::{DomainId, Geometry, Phase, Result, Sequence, TokenText, TraceError};

/// An owned sequence, as a recorder or a generator makes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceBuf {
    /// Expert ids, `[tokens x layers x top_k]` in rank order, [`EMPTY_SLOT`](crate::EMPTY_SLOT) where a token used fewer.
    pub experts: Vec<u16>,
    /// Router weights, `[tokens x layers x top_k]`.
    pub weights: Option<Vec<f32>>,
    /// Router logits, `[tokens x layers x experts]`.
    pub logits: Option<Vec<f32>>,
    /// Token ids, `[tokens]`.
    pub token_ids: Option<Vec<u32>>,
    /// The token that the model held most likely to come next after each token, `[tokens]`.
    pub predictions: Option<Vec<u32>>,
    /// Text of the tokens.
    pub text: Option<TokenText>,
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
            weights: self.weights.as_deref().map(Floats::F32),
            logits: self.logits.as_deref().map(Floats::F32),
            token_ids: self.token_ids.as_deref(),
            predictions: self.predictions.as_deref(),
            text: self.text.as_ref().map(TokenText::column),
            phases: Phases::Codes(&self.phases),
            domain: self.domain,
        }
    }
}
