//! The experts of one sequence, in whatever order they come.

use std::collections::HashMap;

use crate::{EMPTY_SLOT, Geometry, Phase, SequenceBuf};

/// Collects the experts of one sequence cell by cell and puts the tokens into the order of their positions.
///
/// Cells that never come stay empty. Memory is bounded by the cells that did come, not by what a file claims: see
/// [`TokenTable::row`].
#[derive(Debug)]
pub(super) struct TokenTable {
    layers: usize,
    top_k: usize,
    rows: HashMap<i64, usize>,
    positions: Vec<i64>,
    phases: Vec<u8>,
    experts: Vec<u16>,
    weights: Vec<f32>,
    /// Cells that came, and how many of them had a weight.
    cells: usize,
    weighted: usize,
}

/// Why a cell cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The cell came before.
    Taken,
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
            positions: Vec::new(),
            phases: Vec::new(),
            experts: Vec::new(),
            weights: Vec::new(),
            cells: 0,
            weighted: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The row of the token at `position`, which is new or known.
    pub(super) fn row(&mut self, position: i64, phase: Phase) -> Result<usize, Refusal> {
        if let Some(&row) = self.rows.get(&position) {
            return if self.phases[row] == phase.code() { Ok(row) } else { Err(Refusal::Phase) };
        }
        let row = self.positions.len();
        let slots = (row + 1) * self.layers * self.top_k;
        if slots / Self::SPARSITY > self.cells + self.layers {
            return Err(Refusal::Sparse);
        }
        self.rows.insert(position, row);
        self.positions.push(position);
        self.phases.push(phase.code());
        self.experts.resize(slots, EMPTY_SLOT);
        self.weights.resize(slots, 0.0);
        Ok(row)
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
        let cell = (row * self.layers + layer) * self.top_k + slot;
        if self.experts[cell] != EMPTY_SLOT {
            return Err(Refusal::Taken);
        }
        self.experts[cell] = expert;
        self.cells += 1;
        if let Some(weight) = weight {
            self.weights[cell] = weight;
            self.weighted += 1;
        }
        Ok(())
    }

    /// The sequence, its tokens in the order of their positions; it has weights if all cells have them.
    pub(super) fn finish(self) -> SequenceBuf {
        let mut order: Vec<usize> = (0..self.positions.len()).collect();
        order.sort_unstable_by_key(|&row| self.positions[row]);
        let width = self.layers * self.top_k;
        let whole = self.weighted == self.cells && self.cells > 0;
        SequenceBuf {
            experts: order.iter().flat_map(|&row| &self.experts[row * width..][..width]).copied().collect(),
            weights: whole
                .then(|| order.iter().flat_map(|&row| &self.weights[row * width..][..width]).copied().collect()),
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
        let late = table.row(9, Phase::Decode).unwrap();
        let early = table.row(-1, Phase::Prefill).unwrap();
        table.put(late, 1, 0, 3, Some(0.5)).unwrap();
        table.put(early, 0, 1, 2, Some(0.25)).unwrap();
        assert_eq!(table.row(9, Phase::Decode), Ok(late));
        assert_eq!(table.put(late, 1, 0, 1, None), Err(Refusal::Taken));
        assert_eq!(table.row(9, Phase::Prefill), Err(Refusal::Phase));
        let sequence = table.finish();
        assert_eq!(sequence.experts, [EMPTY_SLOT, 2, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, 3, EMPTY_SLOT]);
        assert_eq!(sequence.weights, Some(vec![0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0]));
        assert_eq!(sequence.phases, [0, 1]);
    }

    #[test]
    fn a_geometry_that_the_cells_do_not_fill_is_refused() {
        let mut table = TokenTable::new(&Geometry::decoder(1, 65_535, 60_000).unwrap());
        let refused = (0..).find(|&position| match table.row(position, Phase::Decode) {
            Ok(row) => table.put(row, 0, 0, 1, None).is_err(),
            Err(refusal) => refusal == Refusal::Sparse,
        });
        assert_eq!(refused, Some(0));
    }

    #[test]
    fn weights_count_only_if_every_cell_has_one() {
        let mut table = TokenTable::new(&Geometry::decoder(1, 4, 2).unwrap());
        let row = table.row(0, Phase::Decode).unwrap();
        table.put(row, 0, 0, 3, Some(0.5)).unwrap();
        table.put(row, 0, 1, 1, None).unwrap();
        assert_eq!(table.finish().weights, None);
    }
}
