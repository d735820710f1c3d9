//! Tokens that are told apart by when they came, not by the position that a recorder gave them.

use std::collections::{HashMap, HashSet};

use super::token_table::{Refusal, TokenKey, TokenTable};
use crate::{EMPTY_SLOT, Geometry, Phase, SequenceBuf};

/// What a row says of its token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The recorder's number of the token.
    pub(super) number: i64,
    pub(super) layer: usize,
    /// The forward pass, if the recorder names it.
    pub(super) pass: Option<i64>,
    pub(super) phase: Option<Phase>,
    /// Number of the line.
    pub(super) line: u64,
}

/// Collects a sequence forward pass by forward pass: all tokens of a pass in one layer, then in the next.
///
/// Recorders that hook a router see passes, and many number the tokens of each pass anew. A pass ends where the layers
/// begin again, or where a token's number comes again in the same layer, or where the recorder names another pass.
#[derive(Debug)]
pub(super) struct Passes {
    tokens: TokenTable,
    layers: usize,
    /// Whether every pass goes through all layers, from the first.
    whole: bool,
    /// Row of each token of the running pass, by the recorder's number.
    pass: HashMap<i64, usize>,
    layer: Option<usize>,
    named: Option<i64>,
    /// The recorder's numbers that came in this layer.
    in_layer: HashSet<i64>,
    arrived: i64,
    /// Whether the recorder tells the phase; if not, a pass of one token that is not the first is a decode step.
    tells_phase: bool,
    first_pass: bool,
    /// Whether every pass so far has one token, whose number is that of the tokens before it.
    counts_positions: bool,
}

impl Passes {
    /// Creates an empty sequence. A recorder of `whole` passes has a row of every token in every layer; a row that would end
    /// a pass before its last layer is refused as taken.
    pub(super) fn new(geometry: &Geometry, whole: bool) -> Passes {
        Passes {
            tokens: TokenTable::new(geometry),
            layers: geometry.layers(),
            whole,
            pass: HashMap::new(),
            layer: None,
            named: None,
            in_layer: HashSet::new(),
            arrived: 0,
            tells_phase: false,
            first_pass: true,
            counts_positions: true,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The row of the token that the recorder saw, of the pass that runs now.
    pub(super) fn token(&mut self, seen: Seen) -> Result<usize, Refusal> {
        let Seen { number, layer, pass, phase, line } = seen;
        let another = self.layer.is_some() && pass != self.named;
        match self.layer {
            Some(last) if another || layer < last || (layer == last && self.in_layer.contains(&number)) => {
                if self.whole && self.layers > 1 && (last + 1 < self.layers || layer > 0) {
                    return Err(Refusal::Taken);
                }
                self.end_pass();
                self.in_layer.clear();
            }
            Some(last) if layer > last => self.in_layer.clear(),
            _ => {}
        }
        self.layer = Some(layer);
        self.named = pass;
        self.in_layer.insert(number);
        self.tells_phase |= phase.is_some();
        if let Some(&row) = self.pass.get(&number) {
            return Ok(row);
        }
        let row = self.tokens.row(TokenKey::at(self.arrived), phase.unwrap_or(Phase::Prefill), line)?;
        self.counts_positions &= number == self.arrived && self.pass.is_empty();
        self.arrived += 1;
        self.pass.insert(number, row);
        Ok(row)
    }

    /// Fills the slots of a token in a layer.
    pub(super) fn put(&mut self, row: usize, layer: usize, experts: &[u16], weights: &[f32]) -> Result<(), Refusal> {
        for (slot, &expert) in experts.iter().enumerate().filter(|&(_, &expert)| expert != EMPTY_SLOT) {
            self.tokens.put(row, layer, slot, expert, weights.get(slot).copied())?;
        }
        Ok(())
    }

    fn end_pass(&mut self) {
        if !self.tells_phase && !self.first_pass && self.pass.len() == 1 {
            self.pass.values().for_each(|&row| self.tokens.set_phase(row, Phase::Decode));
        }
        self.first_pass = false;
        self.pass.clear();
    }

    pub(super) fn finish(self) -> SequenceBuf {
        self.into_tokens().0.finish()
    }

    /// The tokens, and whether their numbers count positions: then rows are sorted by token, passes cannot be told apart,
    /// and all tokens are prefilled.
    pub(super) fn into_tokens(mut self) -> (TokenTable, bool) {
        self.end_pass();
        let counts_positions = self.counts_positions && self.arrived > 2 && !self.tells_phase;
        if counts_positions {
            (0..self.tokens.keys().len()).for_each(|row| self.tokens.set_phase(row, Phase::Prefill));
        }
        (self.tokens, counts_positions)
    }
}
