//! Keys and values of the tokens that a sequence has behind it.

use std::ops::Range;

use candle_core::Tensor;
use moe_trace::DomainId;

use crate::{OlmoeConfig, Result};

/// Most tokens whose keys, or values, lie in one tensor.
///
/// What attention computes from a block is bounded by it, and so is what the CPU converts at once: candle multiplies bf16
/// matrices by widening the whole memory of a tensor.
pub(crate) const KEY_BLOCK: usize = 2048;

/// Room that a block starts with, in tokens.
const FIRST_TOKENS: usize = 64;

/// Keys and values of one sequence in every layer.
///
/// They lie in blocks of up to 2,048 tokens. The room of the last block doubles when it is used up, so that appending
/// costs amortised constant time a token. A forward pass that fails leaves the cache as it was.
#[derive(Debug)]
pub struct KvCache {
    /// Blocks of each layer.
    layers: Vec<Vec<KeyValues>>,
    len: usize,
    max_len: usize,
    block: usize,
    domain: Option<DomainId>,
}

/// Keys and values of consecutive tokens in one layer, `[kv_heads, tokens, head_dim]` each.
#[derive(Clone, Debug)]
pub(crate) struct KeyValues {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KvCache {
    /// Creates the empty cache of a sequence.
    pub fn new(config: &OlmoeConfig) -> KvCache {
        KvCache::with_blocks(config, KEY_BLOCK)
    }

    /// Creates the empty cache of a sequence, with blocks of some tokens.
    pub(crate) fn with_blocks(config: &OlmoeConfig, block: usize) -> KvCache {
        let params = config.params();
        KvCache {
            layers: vec![Vec::new(); params.num_hidden_layers],
            len: 0,
            max_len: params.max_position_embeddings,
            block,
            domain: None,
        }
    }

    /// Labels the sequence with its domain, which the [reference router](crate::RouterKind::Reference) asks for.
    pub fn in_domain(self, domain: DomainId) -> KvCache {
        KvCache { domain: Some(domain), ..self }
    }

    /// The domain of the sequence.
    pub fn domain(&self) -> Option<DomainId> {
        self.domain
    }

    /// Number of tokens that the sequence has behind it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the sequence has not begun.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the tokens of the sequence; keeps its domain and the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Tokens of a full block.
    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// Writes the keys and values of new tokens behind the present ones; returns those of all tokens, block by block. The
    /// new tokens count only after [`advance`](Self::advance).
    pub(crate) fn append(&mut self, layer: usize, new: &KeyValues) -> Result<Vec<KeyValues>> {
        let end = self.len + new.tokens()?;
        let blocks = &mut self.layers[layer];
        let mut at = self.len;
        while at < end {
            let (number, first) = (at / self.block, at / self.block * self.block);
            let next = end.min(first + self.block);
            let room = (next - first).next_power_of_two().max(FIRST_TOKENS);
            let room = room.min(self.block).min(self.max_len.max(end) - first);
            if blocks.len() == number {
                blocks.push(new.with_room(room)?);
            }
            let block = &mut blocks[number];
            if block.tokens()? < next - first {
                let grown = block.with_room(room)?;
                grown.write(0, &block.narrow(0..at - first)?)?;
                *block = grown;
            }
            block.write(at - first, &new.narrow(at - self.len..next - self.len)?)?;
            at = next;
        }
        let starts = (0..end).step_by(self.block);
        starts.zip(blocks).map(|(first, block)| block.narrow(0..self.block.min(end - first))).collect()
    }

    /// Counts tokens whose keys and values every layer has appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

impl KeyValues {
    fn tokens(&self) -> Result<usize> {
        Ok(self.keys.dim(1)?)
    }

    fn with_room(&self, room: usize) -> Result<KeyValues> {
        let (heads, _, width) = self.keys.dims3()?;
        let empty = || Tensor::zeros((heads, room, width), self.keys.dtype(), self.keys.device());
        Ok(KeyValues { keys: empty()?, values: empty()? })
    }

    fn write(&self, at: usize, tokens: &KeyValues) -> Result<()> {
        if tokens.tokens()? > 0 {
            self.keys.slice_set(&tokens.keys.contiguous()?, 1, at)?;
            self.values.slice_set(&tokens.values.contiguous()?, 1, at)?;
        }
        Ok(())
    }

    /// Returns a part of the tokens, of the same memory.
    pub(crate) fn narrow(&self, tokens: Range<usize>) -> Result<KeyValues> {
        let part = |tensor: &Tensor| tensor.narrow(1, tokens.start, tokens.len());
        Ok(KeyValues { keys: part(&self.keys)?, values: part(&self.values)? })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::OlmoeParams;

    fn cache(max_position_embeddings: usize, block: usize) -> KvCache {
        let params = OlmoeParams { num_hidden_layers: 1, max_position_embeddings, ..OlmoeParams::default() };
        KvCache::with_blocks(&OlmoeConfig::new(params).unwrap(), block)
    }

    fn random(tokens: usize) -> KeyValues {
        let random = || Tensor::randn(0f32, 1.0, (2, tokens, 3), &Device::Cpu).unwrap();
        KeyValues { keys: random(), values: random() }
    }

    fn rooms(cache: &KvCache) -> Vec<usize> {
        cache.layers[0].iter().map(|block| block.tokens().unwrap()).collect()
    }

    /// Asserts that parts have the same tokens in the same order.
    fn assert_same(a: &[KeyValues], b: &[KeyValues]) {
        let values = |parts: &[KeyValues], of: fn(&KeyValues) -> &Tensor| {
            let parts: Vec<&Tensor> = parts.iter().map(of).collect();
            Tensor::cat(&parts, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(a, |part| &part.keys), values(b, |part| &part.keys));
        assert_eq!(values(a, |part| &part.values), values(b, |part| &part.values));
    }

    fn append(cache: &mut KvCache, parts: &mut Vec<KeyValues>, tokens: usize) {
        parts.push(random(tokens));
        let all = cache.append(0, parts.last().unwrap()).unwrap();
        cache.advance(tokens);
        assert_same(&all, parts);
    }

    #[test]
    fn appended_tokens_come_back_while_the_room_grows() {
        let (mut cache, mut parts) = (cache(200, KEY_BLOCK), Vec::new());
        // The last room is bounded by the positions.
        for (tokens, room) in [(60, 64), (4, 64), (1, 128), (50, 128), (80, 200)] {
            append(&mut cache, &mut parts, tokens);
            assert_eq!(rooms(&cache), [room]);
        }
        assert_eq!(cache.len(), 195);
    }

    #[test]
    fn a_full_block_stays_where_it_is() {
        let (mut cache, mut parts) = (cache(400, 100), Vec::new());
        let steps: [(usize, &[usize]); 6] = [
            (70, &[100]),
            (40, &[100, 64]),
            (60, &[100, 100]),
            (30, &[100, 100]),
            (1, &[100, 100, 64]),
            (199, &[100, 100, 100, 100]),
        ];
        for (tokens, expected) in steps {
            append(&mut cache, &mut parts, tokens);
            assert_eq!(rooms(&cache), expected);
        }
    }

    #[test]
    fn tokens_that_were_not_counted_are_written_over() {
        let mut cache = cache(200, 100);
        let (first, failed, second) = (random(3), random(120), random(2));
        cache.append(0, &first).unwrap();
        cache.advance(3);
        cache.append(0, &failed).unwrap();
        assert_same(&cache.append(0, &second).unwrap(), &[first, second]);
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn a_cleared_cache_keeps_its_room() {
        let mut cache = cache(200, KEY_BLOCK);
        cache.append(0, &random(100)).unwrap();
        cache.advance(100);
        cache.clear();
        assert!(cache.is_empty());
        let one = random(1);
        assert_same(&cache.append(0, &one).unwrap(), &[one]);
        assert_eq!(rooms(&cache), [128]);
    }
}
