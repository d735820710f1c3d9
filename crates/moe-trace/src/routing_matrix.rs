//! The routing of one sequence in one layer as a bit matrix.

use bitvec::{order::Lsb0, slice::BitSlice, vec::BitVec};

use crate::{EMPTY_SLOT, LayerId, Sequence};

/// Which token uses which expert, stored twice: a row of expert bits for each token, a column of token bits for each
/// expert. Rows and columns start at whole words.
///
/// ```text
/// row(t)    : word 0 = experts 0..64   word 1 = experts 64..128 ...   bit i % 64 of word i / 64
/// column(e) : word 0 = tokens  0..64   word 1 = tokens  64..128 ...
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingMatrix {
    tokens: usize,
    experts: usize,
    rows: BitVec<u64, Lsb0>,
    columns: BitVec<u64, Lsb0>,
}

impl RoutingMatrix {
    /// Creates the matrix of a sequence in a layer.
    ///
    /// # Panics
    /// If the layer does not exist.
    pub fn new(sequence: &Sequence<'_>, layer: LayerId) -> RoutingMatrix {
        let mut ids = Vec::new();
        sequence.copy_layer(layer, &mut ids);
        RoutingMatrix::from_ids(&ids, sequence.len(), sequence.geometry().experts())
    }

    /// Creates the matrix from ids `[tokens x slots]`; [`EMPTY_SLOT`] is skipped.
    ///
    /// # Panics
    /// If an id is not below `experts`, or the ids are not the same number for every token.
    pub fn from_ids(ids: &[u16], tokens: usize, experts: usize) -> RoutingMatrix {
        let (row_bits, column_bits) = (experts.next_multiple_of(64), tokens.next_multiple_of(64));
        let mut rows = BitVec::repeat(false, tokens * row_bits);
        let mut columns = BitVec::repeat(false, experts * column_bits);
        let slots = ids.len().checked_div(tokens).unwrap_or(0).max(1);
        assert!(ids.len() == slots * tokens || ids.is_empty(), "{} ids for {tokens} tokens", ids.len());
        for (slot, &id) in ids.iter().enumerate() {
            if id == EMPTY_SLOT {
                continue;
            }
            let (token, expert) = (slot / slots, usize::from(id));
            assert!(expert < experts, "expert {expert} of {experts}");
            rows.set(token * row_bits + expert, true);
            columns.set(expert * column_bits + token, true);
        }
        RoutingMatrix { tokens, experts, rows, columns }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Experts of a token, as words.
    ///
    /// # Panics
    /// If the token does not exist.
    pub fn row(&self, token: usize) -> &[u64] {
        let words = self.experts.div_ceil(64);
        &self.rows.as_raw_slice()[token * words..(token + 1) * words]
    }

    /// Tokens of an expert, as words.
    ///
    /// # Panics
    /// If the expert does not exist.
    pub fn column(&self, expert: usize) -> &[u64] {
        let words = self.tokens.div_ceil(64);
        &self.columns.as_raw_slice()[expert * words..(expert + 1) * words]
    }

    /// Tokens of an expert in ascending order.
    ///
    /// # Panics
    /// If the expert does not exist.
    pub fn column_ones(&self, expert: usize) -> impl Iterator<Item = usize> + '_ {
        BitSlice::<u64, Lsb0>::from_slice(self.column(expert)).iter_ones()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Rows and columns hold exactly the pairs of the id list.
        #[test]
        fn rows_and_columns_agree_with_the_ids(
            experts in 1u16..140,
            slots in 1usize..4,
            raw in proptest::collection::vec(proptest::option::of(any::<u16>()), 0..300),
        ) {
            let mut ids: Vec<u16> = raw.iter().map(|id| id.map_or(EMPTY_SLOT, |id| id % experts)).collect();
            ids.truncate(ids.len() / slots * slots);
            let tokens: Vec<&[u16]> = ids.chunks(slots).collect();
            let has = |token: usize, expert: usize| tokens[token].iter().any(|&id| usize::from(id) == expert);
            let matrix = RoutingMatrix::from_ids(&ids, tokens.len(), usize::from(experts));
            for token in 0..tokens.len() {
                for expert in 0..usize::from(experts) {
                    let expected = has(token, expert);
                    prop_assert_eq!(matrix.row(token)[expert / 64] >> (expert % 64) & 1 == 1, expected);
                    prop_assert_eq!(matrix.column(expert)[token / 64] >> (token % 64) & 1 == 1, expected);
                }
            }
            for expert in 0..usize::from(experts) {
                let naive: Vec<usize> = (0..tokens.len()).filter(|&token| has(token, expert)).collect();
                prop_assert_eq!(matrix.column_ones(expert).collect::<Vec<_>>(), naive);
            }
        }
    }
}
