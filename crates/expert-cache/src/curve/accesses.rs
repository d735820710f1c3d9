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
