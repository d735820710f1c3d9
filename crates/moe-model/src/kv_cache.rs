//! Keys and values of the tokens that a sequence has behind it.

use candle_core::Tensor;
use moe_trace::DomainId;

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
    domain: Option<DomainId>,
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::OlmoeParams;

    fn cache(max_position_embeddings: usize) -> KvCache {
        let params = OlmoeParams { num_hidden_layers: 1, max_position_embeddings, ..OlmoeParams::default() };
        KvCache::new(&OlmoeConfig::new(params).unwrap())
    }

    fn random(tokens: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (2, tokens, 3), &Device::Cpu).unwrap()
    }

    fn room(cache: &KvCache) -> usize {
        cache.layers[0].as_ref().unwrap().room().unwrap()
    }

    fn assert_same(a: &Tensor, b: &Tensor) {
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(a), values(b));
    }

    #[test]
    fn appended_tokens_come_back_while_the_room_grows() {
        let mut cache = cache(200);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        // Room after each append: 64, 64, 128, 128, 200, the last one bounded by the positions.
        for (tokens, expected_room) in [(60, 64), (4, 64), (1, 128), (50, 128), (80, 200)] {
            keys.push(random(tokens));
            values.push(random(tokens));
            let (all_keys, all_values) = cache.append(0, keys.last().unwrap(), values.last().unwrap()).unwrap();
            cache.advance(tokens);
            assert_same(&all_keys, &Tensor::cat(&keys, 1).unwrap());
            assert_same(&all_values, &Tensor::cat(&values, 1).unwrap());
            assert_eq!(room(&cache), expected_room);
        }
        assert_eq!(cache.len(), 195);
    }

    #[test]
    fn tokens_that_were_not_counted_are_written_over() {
        let mut cache = cache(200);
        let (first, failed, second) = (random(3), random(90), random(2));
        cache.append(0, &first, &first).unwrap();
        cache.advance(3);
        cache.append(0, &failed, &failed).unwrap();
        let (keys, _) = cache.append(0, &second, &second).unwrap();
        assert_same(&keys, &Tensor::cat(&[&first, &second], 1).unwrap());
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn a_cleared_cache_keeps_its_room() {
        let mut cache = cache(200);
        cache.append(0, &random(100), &random(100)).unwrap();
        cache.advance(100);
        cache.clear();
        assert!(cache.is_empty());
        let keys = Tensor::ones((2, 1, 3), DType::F32, &Device::Cpu).unwrap();
        let (all, _) = cache.append(0, &keys, &keys).unwrap();
        assert_eq!((all.dims(), room(&cache)), ([2, 1, 3].as_slice(), 128));
    }
}
