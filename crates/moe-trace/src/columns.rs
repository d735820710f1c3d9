//! The columns of a sequence as their source stores them.

use half::{bf16, f16};

use crate::{DomainId, EMPTY_SLOT, Phase};

/// Expert ids, `[tokens x layers x top_k]`; the largest value of the type is an empty slot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ids<'a> {
    U8(&'a [u8]),
    U16(&'a [u16]),
}

/// Router weights `[tokens x layers x top_k]`, or logits `[tokens x layers x experts]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floats<'a> {
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F32(&'a [f32]),
}

/// Phases of the tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phases<'a> {
    /// Every token has this phase.
    All(Phase),
    /// Codes, `[tokens]`.
    Codes(&'a [u8]),
}

/// Text of the tokens: token `t` is `bytes[offsets[t] - first..offsets[t + 1] - first]` where `first` is `offsets[0]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(crate) bytes: &'a [u8],
    /// `[tokens + 1]`.
    pub(crate) offsets: &'a [i64],
}

/// The columns of a sequence before they are checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) experts: Ids<'a>,
    pub(crate) weights: Option<Floats<'a>>,
    pub(crate) logits: Option<Floats<'a>>,
    pub(crate) token_ids: Option<&'a [u32]>,
    pub(crate) predictions: Option<&'a [u32]>,
    pub(crate) text: Option<Text<'a>>,
    pub(crate) phases: Phases<'a>,
    pub(crate) domain: Option<DomainId>,
}

impl<'a> Ids<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Ids::U8(ids) => ids.len(),
            Ids::U16(ids) => ids.len(),
        }
    }

    pub(crate) fn get(&self, index: usize) -> u16 {
        match self {
            Ids::U8(ids) => widen(ids[index]),
            Ids::U16(ids) => ids[index],
        }
    }

    /// The ids of a range, appended to `out`.
    pub(crate) fn append(&self, range: std::ops::Range<usize>, out: &mut Vec<u16>) {
        match self {
            Ids::U8(ids) => out.extend(ids[range].iter().copied().map(widen)),
            Ids::U16(ids) => out.extend_from_slice(&ids[range]),
        }
    }

    pub(crate) fn slice(self, range: std::ops::Range<usize>) -> Ids<'a> {
        match self {
            Ids::U8(ids) => Ids::U8(&ids[range]),
            Ids::U16(ids) => Ids::U16(&ids[range]),
        }
    }
}

pub(crate) fn widen(id: u8) -> u16 {
    if id == u8::MAX { EMPTY_SLOT } else { u16::from(id) }
}

impl<'a> Floats<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Floats::F16(values) => values.len(),
            Floats::BF16(values) => values.len(),
            Floats::F32(values) => values.len(),
        }
    }

    pub(crate) fn get(&self, index: usize) -> f32 {
        match self {
            Floats::F16(values) => values[index].to_f32(),
            Floats::BF16(values) => values[index].to_f32(),
            Floats::F32(values) => values[index],
        }
    }

    pub(crate) fn all_finite(&self) -> bool {
        // A fold has no early exit, so that the loop becomes vector instructions.
        match self {
            Floats::F16(values) => values.iter().fold(true, |all, value| all & value.is_finite()),
            Floats::BF16(values) => values.iter().fold(true, |all, value| all & value.is_finite()),
            Floats::F32(values) => values.iter().fold(true, |all, value| all & value.is_finite()),
        }
    }

    pub(crate) fn slice(self, range: std::ops::Range<usize>) -> Floats<'a> {
        match self {
            Floats::F16(values) => Floats::F16(&values[range]),
            Floats::BF16(values) => Floats::BF16(&values[range]),
            Floats::F32(values) => Floats::F32(&values[range]),
        }
    }
}

impl<'a> Text<'a> {
    pub(crate) fn get(&self, token: usize) -> &'a [u8] {
        let at = |index: usize| usize::try_from(self.offsets[index] - self.offsets[0]).unwrap_or(0);
        &self.bytes[at(token)..at(token + 1)]
    }

    fn slice(self, tokens: std::ops::Range<usize>) -> Text<'a> {
        let at = |index: usize| usize::try_from(self.offsets[index] - self.offsets[0]).unwrap_or(0);
        Text { bytes: &self.bytes[at(tokens.start)..at(tokens.end)], offsets: &self.offsets[tokens.start..=tokens.end] }
    }
}

impl<'a> Columns<'a> {
    /// The columns of a range of tokens; a token has `slots` slots and `logits` logits.
    pub(crate) fn slice(self, tokens: std::ops::Range<usize>, slots: usize, logits: usize) -> Columns<'a> {
        let wide = |width: usize| tokens.start * width..tokens.end * width;
        Columns {
            experts: self.experts.slice(wide(slots)),
            weights: self.weights.map(|weights| weights.slice(wide(slots))),
            logits: self.logits.map(|values| values.slice(wide(logits))),
            token_ids: self.token_ids.map(|ids| &ids[tokens.clone()]),
            predictions: self.predictions.map(|ids| &ids[tokens.clone()]),
            text: self.text.map(|text| text.slice(tokens.clone())),
            phases: match self.phases {
                Phases::All(phase) => Phases::All(phase),
                Phases::Codes(codes) => Phases::Codes(&codes[tokens.clone()]),
            },
            domain: self.domain,
        }
    }
}
