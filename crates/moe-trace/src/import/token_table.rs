//! The experts of one sequence, in whatever order they come.

use std::collections::HashMap;

use crate::{EMPTY_SLOT, Geometry, Phase, SequenceBuf};

/// A token as a file names it: by its position, or by the pass that computed it and its number in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TokenKey {
    /// The same for all tokens of a file that does not tell passes apart.
    pub(super) pass: i64,
    pub(super) token: i64,
}

impl TokenKey {
    /// The key of a token of a file that does not tell passes apart.
    pub(super) fn at(position: i64) -> TokenKey {
        TokenKey { pass: 0, token: position }
    }
}

/// Collects the experts of one sequence cell by cell and puts the tokens into the order of their keys.
///
/// Cells that never come stay empty. Memory is bounded by the cells that did come, not by what a file claims: see
/// [`TokenTable::row`].
#[derive(Debug)]
pub(super) struct TokenTable {
    layers: usize,
    top_k: usize,
    rows: HashMap<TokenKey, usize>,
    keys: Vec<TokenKey>,
    /// Where each token came first, like the number of a line.
    places: Vec<u64>,
    phases: Vec<u8>,
    experts: Vec<u16>,
    /// Slots of each token and layer of which some row says something, if only that they are empty.
    came: Vec<u16>,
    weights: Vec<f32>,
    token_ids: Vec<Option<u32>>,
    predictions: Vec<Option<u32>>,
    /// Cells that came, and how many of them had a weight.
    cells: usize,
    weighted: usize,
}

/// Why a cell cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The slot came before.
    Taken,
    /// The cell has this expert in another slot.
    Twice,
    /// The geometry promises far more cells than come.
    Sparse,
    /// The token came before in the other phase.
    Phase,
}

impl TokenTable {
    /// A table may be this many times as large as the cells in it; real recorders leave out a layer at most.
    const SPARSITY: usize = 512;

    pub(super) fn new(geometry: &Geometry) -> TokenTable {
        TokenTable {
            layers: geometry.layers(),
            top_k: geometry.top_k(),
            rows: HashMap::new(),
            keys: Vec::new(),
            places: Vec::new(),
            phases: Vec::new(),
            experts: Vec::new(),
            came: Vec::new(),
            weights: Vec::new(),
            token_ids: Vec::new(),
            predictions: Vec::new(),
            cells: 0,
            weighted: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys of the tokens, in the order in which they came.
    pub(super) fn keys(&self) -> &[TokenKey] {
        &self.keys
    }

    /// Where the token of a row came first.
    pub(super) fn place(&self, row: usize) -> u64 {
        self.places[row]
    }

    /// The row of the token of a key, which is new or known; a new one comes first at `place`.
    pub(super) fn row(&mut self, key: TokenKey, phase: Phase, place: u64) -> Result<usize, Refusal> {
        if let Some(&row) = self.rows.get(&key) {
            return if self.phases[row] == phase.code() { Ok(row) } else { Err(Refusal::Phase) };
        }
        let slots = (self.keys.len() + 1) * self.layers * self.top_k;
        if slots / Self::SPARSITY > self.cells + self.layers {
            return Err(Refusal::Sparse);
        }
        Ok(self.add(key, phase, place))
    }

    /// The row of a token that is new.
    pub(super) fn add(&mut self, key: TokenKey, phase: Phase, place: u64) -> usize {
        let row = self.keys.len();
        let slots = (row + 1) * self.layers * self.top_k;
        self.rows.insert(key, row);
        self.keys.push(key);
        self.places.push(place);
        self.phases.push(phase.code());
        self.experts.resize(slots, EMPTY_SLOT);
        self.came.resize((row + 1) * self.layers, 0);
        self.weights.resize(slots, 0.0);
        self.token_ids.push(None);
        self.predictions.push(None);
        row
    }

    /// The row of the token of a key, if it came.
    pub(super) fn find(&self, key: TokenKey) -> Option<usize> {
        self.rows.get(&key).copied()
    }

    /// The phase of the token of a row.
    pub(super) fn phase(&self, row: usize) -> Phase {
        Phase::from_code(self.phases[row]).expect("made of phases")
    }

    /// The slots of a token in a layer.
    pub(super) fn cell(&self, row: usize, layer: usize) -> &[u16] {
        &self.experts[(row * self.layers + layer) * self.top_k..][..self.top_k]
    }

    /// Notes that a row says something of so many slots of a token in a layer.
    pub(super) fn came(&mut self, row: usize, layer: usize, slots: usize) {
        let came = &mut self.came[row * self.layers + layer];
        *came = came.saturating_add(u16::try_from(slots).unwrap_or(u16::MAX));
    }

    /// Slots of a token in a layer of which some row says something, if only that they are empty.
    pub(super) fn slots_that_came(&self, row: usize, layer: usize) -> usize {
        usize::from(self.came[row * self.layers + layer])
    }

    /// The weights of a token's slots in a layer, if every cell so far had one.
    pub(super) fn weights(&self, row: usize, layer: usize) -> Option<&[f32]> {
        let whole = self.weighted == self.cells && self.cells > 0;
        whole.then(|| &self.weights[(row * self.layers + layer) * self.top_k..][..self.top_k])
    }

    pub(super) fn set_phase(&mut self, row: usize, phase: Phase) {
        self.phases[row] = phase.code();
    }

    /// Says which token it is, and which the model predicted to follow.
    pub(super) fn set_ids(&mut self, row: usize, token_id: Option<u32>, prediction: Option<u32>) {
        self.token_ids[row] = token_id.or(self.token_ids[row]);
        self.predictions[row] = prediction.or(self.predictions[row]);
    }

    /// Takes the ids of a token of another table.
    pub(super) fn copy_ids(&mut self, row: usize, other: &TokenTable, from: usize) {
        self.set_ids(row, other.token_ids[from], other.predictions[from]);
    }

    /// The first slot of a cell that is empty, if there is one.
    pub(super) fn free_slot(&self, row: usize, layer: usize) -> Option<usize> {
        self.cell(row, layer).iter().position(|&expert| expert == EMPTY_SLOT)
    }

    /// Fills a cell; layer and slot are in range.
    pub(super) fn put(
        &mut self,
        row: usize,
        layer: usize,
        slot: usize,
        expert: u16,
        weight: Option<f32>,
    ) -> Result<(), Refusal> {
        let first = (row * self.layers + layer) * self.top_k;
        let cell = first + slot;
        if self.experts[cell] != EMPTY_SLOT {
            return Err(Refusal::Taken);
        }
        if expert != EMPTY_SLOT && self.experts[first..first + self.top_k].contains(&expert) {
            return Err(Refusal::Twice);
        }
        self.experts[cell] = expert;
        self.cells += 1;
        if let Some(weight) = weight {
            self.weights[cell] = weight;
            self.weighted += 1;
        }
        Ok(())
    }

    /// Rows in the order of their keys.
    pub(super) fn sorted(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_unstable_by_key(|&row| self.keys[row]);
        order
    }

    /// The sequence, its tokens in the order of their keys.
    pub(super) fn finish(self) -> SequenceBuf {
        let order = self.sorted();
        self.finish_in(&order)
    }

    /// The sequence of the given rows; it has weights if all cells have them, and ids if all tokens have them.
    pub(super) fn finish_in(self, order: &[usize]) -> SequenceBuf {
        let width = self.layers * self.top_k;
        let whole = self.weighted == self.cells && self.cells > 0;
        SequenceBuf {
            experts: order.iter().flat_map(|&row| &self.experts[row * width..][..width]).copied().collect(),
            weights: whole
                .then(|| order.iter().flat_map(|&row| &self.weights[row * width..][..width]).copied().collect()),
            token_ids: order.iter().map(|&row| self.token_ids[row]).collect(),
            predictions: order.iter().map(|&row| self.predictions[row]).collect(),
            phases: order.iter().map(|&row| self.phases[row]).collect(),
            ..SequenceBuf::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_in_the_order_of_positions_and_missing_cells_stay_empty() {
        let geometry = Geometry::decoder(2, 4, 2).unwrap();
        let mut table = TokenTable::new(&geometry);
        let late = table.row(TokenKey::at(9), Phase::Decode, 0).unwrap();
        let early = table.row(TokenKey::at(-1), Phase::Prefill, 0).unwrap();
        table.put(late, 1, 0, 3, Some(0.5)).unwrap();
        table.put(early, 0, 1, 2, Some(0.25)).unwrap();
        assert_eq!(table.row(TokenKey::at(9), Phase::Decode, 1), Ok(late));
        assert_eq!(table.put(late, 1, 0, 1, None), Err(Refusal::Taken));
        assert_eq!(table.put(late, 1, 1, 3, None), Err(Refusal::Twice));
        assert_eq!(table.row(TokenKey::at(9), Phase::Prefill, 2), Err(Refusal::Phase));
        let sequence = table.finish();
        assert_eq!(sequence.experts, [EMPTY_SLOT, 2, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, 3, EMPTY_SLOT]);
        assert_eq!(sequence.weights, Some(vec![0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0]));
        assert_eq!(sequence.phases, [0, 1]);
    }

    #[test]
    fn a_geometry_that_the_cells_do_not_fill_is_refused() {
        let mut table = TokenTable::new(&Geometry::decoder(1, 65_535, 60_000).unwrap());
        let refused = (0..).find(|&position| match table.row(TokenKey::at(position), Phase::Decode, 0) {
            Ok(row) => table.put(row, 0, 0, 1, None).is_err(),
            Err(refusal) => refusal == Refusal::Sparse,
        });
        assert_eq!(refused, Some(0));
    }

    #[test]
    fn weights_count_only_if_every_cell_has_one() {
        let mut table = TokenTable::new(&Geometry::decoder(1, 4, 2).unwrap());
        let row = table.row(TokenKey::at(0), Phase::Decode, 0).unwrap();
        table.put(row, 0, 0, 3, Some(0.5)).unwrap();
        table.put(row, 0, 1, 1, None).unwrap();
        assert_eq!(table.finish().weights, None);
    }
}
