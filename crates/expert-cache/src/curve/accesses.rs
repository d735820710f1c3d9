//! The accesses of one sequence to one pool of experts.

use moe_trace::{LayerId, Sequence};

use crate::{CacheError, Result};

/// The experts that each token of a sequence uses, as dense keys of one pool, in the order in which they are served.
///
/// The pool is a list of layers; the key of an expert is `position of its layer in the list * experts + expert`. Empty
/// slots are left out. One value is meant to be refilled for many sequences.
///
/// ```
/// use expert_cache::curve::Accesses;
/// use moe_trace::{EMPTY_SLOT, Geometry, LayerId, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(2, 4, 2)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![3, 0, 1, EMPTY_SLOT], Phase::Decode)?;
/// let mut accesses = Accesses::new();
/// accesses.fill(&sequence.view(&geometry, 0)?, &[LayerId(0), LayerId(1)])?;
/// assert_eq!(accesses.tokens().collect::<Vec<_>>(), [[3, 0, 5]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Accesses {
    keys: Vec<u32>,
    /// Token `t` owns `keys[bounds[t]..bounds[t + 1]]`.
    bounds: Vec<usize>,
    pool: usize,
}

impl Accesses {
    /// The largest number of accesses: times of last use and counts are 32 bits wide.
    const MAX: usize = u32::MAX as usize;

    /// Creates the accesses of no token.
    pub fn new() -> Accesses {
        Accesses { keys: Vec::new(), bounds: vec![0], pool: 0 }
    }

    /// Replaces the content by the accesses of `sequence` to the pool of `layers`.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`], or [`CacheError::SequenceTooLong`] for more than `u32::MAX` slots.
    pub fn fill(&mut self, sequence: &Sequence<'_>, layers: &[LayerId]) -> Result<()> {
        let geometry = sequence.geometry();
        check_layers(layers, geometry.layers())?;
        let slots = sequence.len().saturating_mul(layers.len() * geometry.top_k());
        if slots > Self::MAX {
            return Err(CacheError::SequenceTooLong { accesses: slots, limit: Self::MAX });
        }
        self.pool = layers.len() * geometry.experts();
        // Slots are written in place and the unused ones cut off: appending would check for room at each.
        self.keys.resize(slots, 0);
        let mut used = 0;
        self.bounds.clear();
        self.bounds.reserve(sequence.len() + 1);
        self.bounds.push(0);
        let stride = u32::try_from(geometry.experts()).expect("a geometry has at most 65535 experts");
        for token in 0..sequence.len() {
            let mut first = 0;
            for &layer in layers {
                sequence.experts(token, layer).for_each(|expert| {
                    self.keys[used] = first + u32::from(expert.0);
                    used += 1;
                });
                first += stride;
            }
            self.bounds.push(used);
        }
        self.keys.truncate(used);
        Ok(())
    }

    /// Number of experts in the pool.
    pub fn pool(&self) -> usize {
        self.pool
    }

    /// Number of tokens.
    pub fn token_count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Number of accesses of all tokens.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no token uses an expert of the pool.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that one token uses.
    ///
    /// # Panics
    /// If there is no such token.
    #[inline]
    pub fn token(&self, token: usize) -> &[u32] {
        &self.keys[self.bounds[token]..self.bounds[token + 1]]
    }

    /// The keys of each token in order.
    pub fn tokens(&self) -> impl DoubleEndedIterator<Item = &[u32]> {
        self.bounds.windows(2).map(|bounds| &self.keys[bounds[0]..bounds[1]])
    }

    /// The keys of all tokens, one after the other.
    pub fn keys(&self) -> &[u32] {
        &self.keys
    }
}

pub(super) fn check_layers(layers: &[LayerId], limit: usize) -> Result<()> {
    match layers.iter().find(|layer| layer.index() >= limit) {
        Some(layer) => Err(CacheError::LayerOutOfRange { layer: layer.index(), layers: limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{EMPTY_SLOT, Geometry, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the ids as they lie in the sequence: all curves, the definition too, read what is filled here.
        #[test]
        fn keys_are_those_of_the_slots(
            rows in proptest::collection::vec(
                Just(vec![0, 1, 2, 3, 4, EMPTY_SLOT, EMPTY_SLOT]).prop_shuffle().prop_map(|ids| [ids[0], ids[1]]), 0..30,
            ),
            layers in Just(vec![0, 1, 2]).prop_shuffle(), selected in 1usize..=3,
        ) {
            let geometry = Geometry::decoder(3, 5, 2).unwrap();
            let ids = rows[..rows.len() / 3 * 3].concat();
            let sequence = SequenceBuf::from_experts(&geometry, ids.clone(), Phase::Decode).unwrap();
            let layers: Vec<LayerId> = layers[..selected].iter().map(|&layer| LayerId(layer)).collect();
            let mut accesses = Accesses::new();
            for _ in 0..2 {
                accesses.fill(&sequence.view(&geometry, 0).unwrap(), &layers).unwrap();
                prop_assert_eq!((accesses.pool(), accesses.token_count()), (5 * selected, ids.len() / 6));
                for (token, slots) in ids.chunks(6).enumerate() {
                    let mut keys = Vec::new();
                    for (position, layer) in (0..).zip(&layers) {
                        for &id in slots[2 * layer.index()..][..2].iter().filter(|&&id| id != EMPTY_SLOT) {
                            keys.push(5 * position + u32::from(id));
                        }
                    }
                    prop_assert_eq!(accesses.token(token), &keys);
                }
            }
        }
    }
}
