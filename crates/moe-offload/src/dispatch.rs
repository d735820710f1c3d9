//! Grouping of tokens by expert, and the sum of a token's experts in an order that no grouping changes.

use candle_core::Tensor;
use moe_trace::{EMPTY_SLOT, LayerId};

use crate::{OffloadError, Result, Routes};

/// The tokens of one call, sorted by expert.
pub(crate) struct Dispatch {
    /// Experts that have tokens, ascending.
    groups: Vec<Group>,
    tokens: usize,
    top_k: usize,
}

/// The tokens that one expert serves.
pub(crate) struct Group {
    /// The expert.
    pub(crate) expert: usize,
    /// Its tokens.
    tokens: Vec<u32>,
    /// Their places among the `tokens x top_k` outputs.
    places: Vec<u32>,
}

impl Dispatch {
    /// Sorts routes by expert, and checks them against the layer.
    pub(crate) fn new(layer: LayerId, hidden: &Tensor, routes: &Routes, experts: usize) -> Result<Dispatch> {
        let (tokens, top_k) = (routes.tokens(), routes.top_k());
        if hidden.dim(0)? != tokens {
            return Err(OffloadError::Routes { field: "tokens", value: tokens, expected: hidden.dim(0)? });
        }
        let mut group_of = vec![Vec::new(); experts];
        for (place, &expert) in (0u32..).zip(routes.experts()) {
            if expert == EMPTY_SLOT {
                continue;
            }
            let expert = usize::from(expert);
            let token = place as usize / top_k;
            let group = group_of.get_mut(expert);
            group.ok_or(OffloadError::ExpertOutOfRange { layer, token, expert, experts })?.push(place);
        }
        let divisor = u32::try_from(top_k).expect("top_k is at most the number of places, which are u32");
        let groups = group_of.into_iter().enumerate().filter(|(_, places)| !places.is_empty());
        let groups = groups.map(|(expert, places)| Group {
            expert,
            tokens: places.iter().map(|place| place / divisor).collect(),
            places,
        });
        Ok(Dispatch { groups: groups.collect(), tokens, top_k })
    }

    /// Groups in ascending order of expert.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Index of an expert's group.
    ///
    /// # Panics
    /// If the expert has no tokens.
    pub(crate) fn group_of(&self, expert: usize) -> usize {
        self.groups.binary_search_by_key(&expert, |group| group.expert).expect("plans cover exactly the groups")
    }

    /// Puts the outputs of the groups, in the order of [`groups`](Self::groups), back to their tokens and sums each
    /// token's experts by weight in rank order.
    pub(crate) fn combine(&self, outputs: Vec<Tensor>, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        let (width, device) = (hidden.dim(1)?, hidden.device());
        let (mut outputs, mut row_of) = (outputs, vec![u32::MAX; self.tokens * self.top_k]);
        for (row, &place) in (0u32..).zip(self.groups.iter().flat_map(|group| &group.places)) {
            row_of[place as usize] = row;
        }
        let mut weights = routes.weights().to_dtype(hidden.dtype())?;
        let rows: usize = self.groups.iter().map(|group| group.places.len()).sum();
        if rows < row_of.len() {
            // Empty slots read a row of zeros behind the last one, and their weight, whatever it is, counts as 0.
            outputs.push(Tensor::zeros((1, width), hidden.dtype(), device)?);
            let used: Vec<u8> = row_of.iter().map(|&row| u8::from(row != u32::MAX)).collect();
            let used = Tensor::from_vec(used, weights.shape(), device)?;
            weights = used.where_cond(&weights, &weights.zeros_like()?)?;
            let zero_row = u32::try_from(rows).expect("places are u32");
            row_of.iter_mut().filter(|row| **row == u32::MAX).for_each(|row| *row = zero_row);
        }
        let sorted = Tensor::cat(&outputs, 0)?;
        let row_of = Tensor::from_vec(row_of, self.tokens * self.top_k, device)?;
        let ranked = sorted.index_select(&row_of, 0)?.reshape((self.tokens, self.top_k, width))?;
        Ok(ranked.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?)
    }
}

impl Group {
    /// The rows of the tokens.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.tokens
    }

    /// The rows of `hidden` that the expert serves.
    pub(crate) fn gather(&self, hidden: &Tensor) -> Result<Tensor> {
        gather(hidden, &self.tokens)
    }
}

/// Rows of `hidden` in the order given.
pub(crate) fn gather(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
    Ok(hidden.index_select(&rows, 0)?)
}
