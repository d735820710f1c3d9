//! Tokens that are told apart by when they came, not by the position that a recorder gave them.

use std::collections::{HashMap, HashSet};

use super::token_table::{Refusal, TokenTable};
use crate::{EMPTY_SLOT, Geometry, Phase, SequenceBuf};

/// Collects a sequence forward pass by forward pass: all tokens of a pass in one layer, then in the next.
///
/// Recorders that hook a router see passes, and many number the tokens of each pass anew. A pass ends where the layers
/// begin again, or where a token's number comes again in the same layer.
#[derive(Debug)]
pub(super) struct Passes {
    tokens: TokenTable,
    /// Row of each token of the running pass, by the recorder's number.
    pass: HashMap<i64, usize>,
    layer: Option<usize>,
    /// The recorder's numbers that came in this layer.
    in_layer: HashSet<i64>,
    arrived: i64,
    /// Whether the recorder tells the phase; if not, a pass of one token that is not the first is a decode step.
    tells_phase: bool,
    first_pass: bool,
}

impl Passes {
    pub(super) fn new(geometry: &Geometry) -> Passes {
        Passes {
            tokens: TokenTable::new(geometry),
            pass: HashMap::new(),
            layer: None,
            in_layer: HashSet::new(),
            arrived: 0,
            tells_phase: false,
            first_pass: true,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The row of the token that the recorder calls `number`, of the pass that runs now.
    pub(super) fn token(&mut self, number: i64, layer: usize, phase: Option<Phase>) -> Result<usize, Refusal> {
        match self.layer {
            Some(last) if layer < last || (layer == last && self.in_layer.contains(&number)) => {
                self.end_pass();
                self.in_layer.clear();
            }
            Some(last) if layer > last => self.in_layer.clear(),
            _ => {}
        }
        self.layer = Some(layer);
        self.in_layer.insert(number);
        self.tells_phase |= phase.is_some();
        if let Some(&row) = self.pass.get(&number) {
            return Ok(row);
        }
        let row = self.tokens.row(self.arrived, phase.unwrap_or(Phase::Prefill))?;
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

    pub(super) fn finish(mut self) -> SequenceBuf {
        self.end_pass();
        self.tokens.finish()
    }
}
