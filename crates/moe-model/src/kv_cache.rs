//! Keys and values of the tokens that a sequence has behind it.

use candle_core::Tensor;

use crate::{OlmoeConfig, Result};

/// Room that a cache starts with, in tokens.
const FIRST_TOKENS: usize = 64;

/// Keys and values of one sequence in every layer.
///
/// The room for tokens doubles when it is used up, so that appending costs amortised constant time a token. A forward
/// pass that fails leaves the cache as it was.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<LayerCache>>,
    len: usize,
    max_len: usize,
}

/// Keys and values of one layer, each `[kv_heads, room, head_dim]`.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// Creates the empty cache of a sequence.
    pub fn new(config: &OlmoeConfig) -> KvCache {
        let params = config.params();
        KvCache {
            layers: (0..params.num_hidden_layers).map(|_| None).collect(),
            len: 0,
            max_len: params.max_position_embeddings,
        }
    }

    /// Number of tokens that the sequence has behind it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the sequence has not begun.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the sequence; keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Writes the keys and values of new tokens, `[kv_heads, new, head_dim]`, behind the present ones; returns those
    /// of all tokens. The new tokens count only after [`advance`](Self::advance).
    pub(crate) fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let end = self.len + keys.dim(1)?;
        let slot = &mut self.layers[layer];
        let cache = match slot {
            Some(cache) if cache.room()? >= end => cache,
            _ => {
                let room = end.next_power_of_two().max(FIRST_TOKENS).min(self.max_len.max(end));
                let grown = LayerCache { keys: with_room(keys, room)?, values: with_room(values, room)? };
                if let Some(old) = slot.as_ref().filter(|_| self.len > 0) {
                    grown.keys.slice_set(&old.keys.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                    grown.values.slice_set(&old.values.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                }
                slot.insert(grown)
            }
        };
        cache.keys.slice_set(&keys.contiguous()?, 1, self.len)?;
        cache.values.slice_set(&values.contiguous()?, 1, self.len)?;
        Ok((cache.keys.narrow(1, 0, end)?, cache.values.narrow(1, 0, end)?))
    }

    /// Counts tokens whose keys and values every layer has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl LayerCache {
    fn room(&self) -> Result<usize> {
        Ok(self.keys.dim(1)?)
    }
}

fn with_room(like: &Tensor, room: usize) -> Result<Tensor> {
    let (heads, _, width) = like.dims3()?;
    Ok(Tensor::zeros((heads, room, width), like.dtype(), like.device())?)
}
