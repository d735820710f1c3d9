//! Grouped-query attention with normalised queries and keys.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::kernels::{CausalMask, ExpBlock, Kernels, causal_exp};
use crate::kv_cache::{KeyValues, KvCache};
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::rope::{Rope, Rotation};
use crate::{ModelError, OlmoeConfig, Result};

/// Queries that attend at once.
///
/// With blocks of keys this bounds the memory of a long prefill: scores and weights of a block are f32
/// `[heads, 512, 2048]` each, together 8 MiB per query head.
const QUERY_BLOCK: usize = 512;

/// Self-attention of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// Over all query heads together.
    query_norm: RmsNorm,
    /// Over all key heads together.
    key_norm: RmsNorm,
    clip: Option<f64>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The rows of one sequence in a ragged batch, and what its attention needs to know.
#[derive(Debug)]
pub(crate) struct Span {
    /// Rows of the batch.
    pub(crate) rows: Range<usize>,
    rotation: Rotation,
    /// Blocks of queries, in order.
    blocks: Vec<QueryBlock>,
}

/// A run of queries that attend together.
#[derive(Debug)]
struct QueryBlock {
    /// Queries, counted from the span's first row.
    queries: Range<usize>,
    /// The keys that they see, block by block of the cache.
    keys: Vec<CausalMask>,
}

impl Span {
    /// The span of tokens at `rows` that follow the tokens of a cache.
    pub(crate) fn new(rows: Range<usize>, cache: &KvCache, rope: &Rope, device: &Device) -> Result<Span> {
        let (past, length) = (cache.len(), rows.len());
        let blocks = (0..length).step_by(QUERY_BLOCK).map(|start| {
            let queries = start..length.min(start + QUERY_BLOCK);
            let positions = past + queries.start..past + queries.end;
            let end = positions.end;
            let keys = (0..end).step_by(cache.block()).map(|first| first..end.min(first + cache.block()));
            let keys = keys.map(|keys| CausalMask::new(positions.clone(), keys, device)).collect::<Result<_>>()?;
            Ok(QueryBlock { queries, keys })
        });
        Ok(Span { blocks: blocks.collect::<Result<_>>()?, rotation: rope.at(past..past + length)?, rows })
    }
}

impl Attention {
    pub(crate) fn new(config: &OlmoeConfig, vb: &VarBuilder<'_>) -> Result<Attention> {
        let params = config.params();
        let (hidden, head_dim) = (params.hidden_size, config.head_dim());
        let kv_width = params.num_key_value_heads * head_dim;
        let init = Init::Randn { mean: 0.0, stdev: params.initializer_range };
        let linear = |name: &str, out| -> Result<Linear> {
            Ok(Linear::new(vb.pp(name).get_with_hints((out, hidden), "weight", init)?))
        };
        Ok(Attention {
            query: linear("q_proj", hidden)?,
            key: linear("k_proj", kv_width)?,
            value: linear("v_proj", kv_width)?,
            output: linear("o_proj", hidden)?,
            query_norm: RmsNorm::new(hidden, params.rms_norm_eps, &vb.pp("q_norm"))?,
            key_norm: RmsNorm::new(kv_width, params.rms_norm_eps, &vb.pp("k_norm"))?,
            clip: params.clip_qkv,
            heads: params.num_attention_heads,
            kv_heads: params.num_key_value_heads,
            head_dim,
        })
    }

    /// Attention over whole sequences of one length: `x` is `[batch x length, hidden]`.
    pub(crate) fn forward_dense(
        &self,
        x: &Tensor,
        batch: usize,
        mask: &CausalMask,
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let kernels = Kernels::Differentiable;
        let [queries, keys, values] = self.project(x, kernels)?;
        let queries = rotation.rotate(&split_heads(&queries, batch, self.heads)?, kernels)?;
        let keys = rotation.rotate(&split_heads(&keys, batch, self.kv_heads)?, kernels)?;
        let values = split_heads(&values, batch, self.kv_heads)?;
        let mixed = self.attend(&queries, &keys, &values, mask, kernels)?;
        self.output.forward(&merge_heads(&mixed)?)
    }

    /// Attention of each sequence over its own past: `x` is `[tokens, hidden]`, `spans` and `caches` say whose rows.
    pub(crate) fn forward_ragged<'c>(
        &self,
        x: &Tensor,
        layer: usize,
        sequences: impl Iterator<Item = (&'c Span, &'c mut KvCache)>,
    ) -> Result<Tensor> {
        let kernels = Kernels::Fused;
        // Gradients would keep the scores of all blocks.
        let [queries, keys, values] = self.project(x, kernels)?.map(|projected| projected.detach());
        let mut mixed = Vec::new();
        for (span, cache) in sequences {
            let heads = |x: &Tensor, heads| split_heads(&x.narrow(0, span.rows.start, span.rows.len())?, 1, heads);
            let queries = span.rotation.rotate(&heads(&queries, self.heads)?, kernels)?;
            let new_keys = span.rotation.rotate(&heads(&keys, self.kv_heads)?, kernels)?;
            let new_values = heads(&values, self.kv_heads)?;
            let new = KeyValues { keys: new_keys.squeeze(0)?, values: new_values.squeeze(0)? };
            let past = cache.append(layer, &new)?;
            for block in &span.blocks {
                let queries = queries.narrow(2, block.queries.start, block.queries.len())?.contiguous()?;
                mixed.push(merge_heads(&self.attend_in_blocks(&queries, &past, &block.keys)?)?);
            }
        }
        self.output.forward(&Tensor::cat(&mixed, 0)?)
    }

    /// Queries, keys and values of `x`, `[tokens, hidden]`: `[tokens, heads x head_dim]`, normalised and clipped.
    fn project(&self, x: &Tensor, kernels: Kernels) -> Result<[Tensor; 3]> {
        let queries = self.query_norm.forward(&self.query.forward(x)?, kernels)?;
        let keys = self.key_norm.forward(&self.key.forward(x)?, kernels)?;
        let values = self.value.forward(x)?;
        Ok(match self.clip {
            None => [queries, keys, values],
            Some(bound) => [queries.clamp(-bound, bound)?, keys.clamp(-bound, bound)?, values.clamp(-bound, bound)?],
        })
    }

    /// Mixes the values by the softmax of the scores. `queries` is contiguous `[batch, heads, length, head_dim]`;
    /// consecutive query heads share one of the `kv_heads` heads of keys and values.
    fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: &CausalMask,
        kernels: Kernels,
    ) -> Result<Tensor> {
        let weights = kernels.causal_softmax(&self.scores(queries, keys)?, self.scale(), mask)?;
        self.mix(&weights, values)
    }

    /// As [`attend`](Self::attend) for one sequence, over keys and values that lie in blocks; `masks` has one for each
    /// block that the queries see.
    ///
    /// Several blocks are taken one after the other (Milakov and Gimelshein 2018, arXiv 1805.02867): what was mixed so far
    /// is scaled to the largest score seen so far, and divided by the sum of weights at the end.
    fn attend_in_blocks(&self, queries: &Tensor, past: &[KeyValues], masks: &[CausalMask]) -> Result<Tensor> {
        let block = |past: &KeyValues, mask: &CausalMask| {
            let KeyValues { keys, values } = past.narrow(0..mask.keys())?;
            Ok::<_, ModelError>((keys.unsqueeze(0)?, values.unsqueeze(0)?))
        };
        if let ([past, ..], [mask]) = (past, masks) {
            let (keys, values) = block(past, mask)?;
            return self.attend(queries, &keys, &values, mask, Kernels::Fused);
        }
        let mut state: Option<Mixed> = None;
        for (past, mask) in past.iter().zip(masks) {
            let (keys, values) = block(past, mask)?;
            let scores = self.scores(queries, &keys)?;
            let largest = state.as_ref().map(|state| &state.largest);
            let ExpBlock { weights, largest, sums } = causal_exp(&scores, self.scale(), mask, largest)?;
            let mixed = self.mix(&weights.to_dtype(values.dtype())?, &values)?.to_dtype(DType::F32)?;
            state = Some(match state {
                None => Mixed { largest, sums, mixed },
                Some(before) => {
                    let shrink = ((before.largest - &largest)? * f64::from(self.scale()))?.exp()?;
                    let sums = ((before.sums * &shrink)? + sums)?;
                    Mixed { largest, sums, mixed: (before.mixed.broadcast_mul(&shrink)? + mixed)? }
                }
            });
        }
        let state = state.expect("a query sees its own key");
        Ok(state.mixed.broadcast_div(&state.sums)?.to_dtype(queries.dtype())?)
    }

    /// Factor of the scores.
    // Head dimensions are small integers, which f32 holds.
    #[expect(clippy::cast_precision_loss)]
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Products of queries and keys, `[batch, heads, length, keys]`.
    fn scores(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (batch, _, length, _) = queries.dims4()?;
        // Queries of a group become rows of one matrix, so that keys and values need not be repeated.
        let grouped = (batch, self.kv_heads, self.heads / self.kv_heads * length, self.head_dim);
        let scores = queries.reshape(grouped)?.matmul(&keys.t()?)?;
        Ok(scores.reshape((batch, self.heads, length, ()))?)
    }

    /// Sums of values by weights `[batch, heads, length, keys]`: `[batch, heads, length, head_dim]`.
    fn mix(&self, weights: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (batch, _, length, _) = weights.dims4()?;
        let weights = weights.reshape((batch, self.kv_heads, self.heads / self.kv_heads * length, ()))?;
        Ok(weights.matmul(values)?.reshape((batch, self.heads, length, self.head_dim))?)
    }
}

/// What a block of queries has mixed of the key blocks so far, in f32.
struct Mixed {
    /// Largest score of each query, `[1, heads, queries, 1]`.
    largest: Tensor,
    /// Sums of the weights, `[1, heads, queries, 1]`.
    sums: Tensor,
    /// Sums of the weighted values, `[1, heads, queries, head_dim]`.
    mixed: Tensor,
}

/// `[batch x length, heads x head_dim]` to contiguous `[batch, heads, length, head_dim]`.
fn split_heads(x: &Tensor, batch: usize, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    Ok(x.reshape((batch, rows / batch, heads, width / heads))?.transpose(1, 2)?.contiguous()?)
}

/// `[batch, heads, length, head_dim]` to `[batch x length, heads x head_dim]`.
fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, length, head_dim) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((batch * length, heads * head_dim))?)
}

#[cfg(test)]
mod tests {
    use candle_nn::VarMap;
    use proptest::prelude::*;

    use super::*;
    use crate::OlmoeParams;

    /// Attention of four query heads over two of keys and values, in a type.
    fn attention(dtype: DType) -> (OlmoeConfig, Attention, Rope) {
        let params = OlmoeParams {
            hidden_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            initializer_range: 0.7,
            ..OlmoeParams::default()
        };
        let config = OlmoeConfig::new(params).unwrap();
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
        let attention = Attention::new(&config, &vb).unwrap();
        let rope = Rope::new(&config, dtype, &Device::Cpu).unwrap();
        (config, attention, rope)
    }

    /// Runs parts of a sequence one after the other on a cache of blocks of some tokens.
    fn in_parts(parts: &[Tensor], block: usize, (config, attention, rope): &(OlmoeConfig, Attention, Rope)) -> Tensor {
        let mut cache = KvCache::with_blocks(config, block);
        let outputs = parts.iter().map(|part| {
            let length = part.dim(0).unwrap();
            let span = Span::new(0..length, &cache, rope, &Device::Cpu).unwrap();
            let output = attention.forward_ragged(part, 0, std::iter::once((&span, &mut cache))).unwrap();
            cache.advance(length);
            output
        });
        Tensor::cat(&outputs.collect::<Vec<_>>(), 0).unwrap()
    }

    fn random(tokens: usize, dtype: DType) -> Tensor {
        Tensor::randn(0f32, 1.0, (tokens, 16), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        largest(&(wide(a) - wide(b)).unwrap()) / largest(&wide(b))
    }

    fn whole(x: &Tensor, (_, attention, rope): &(OlmoeConfig, Attention, Rope)) -> Tensor {
        let length = x.dim(0).unwrap();
        let mask = CausalMask::new(0..length, 0..length, &Device::Cpu).unwrap();
        attention.forward_dense(x, 1, &mask, &rope.at(0..length).unwrap()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn blocks_of_keys_give_what_all_keys_at_once_give(
            lengths in prop::collection::vec(prop_oneof![Just(1usize), 1..12usize], 1..8),
            block in 1..9usize,
        ) {
            let model = attention(DType::F32);
            let parts: Vec<Tensor> = lengths.iter().map(|&length| random(length, DType::F32)).collect();
            let expected = whole(&Tensor::cat(&parts, 0).unwrap(), &model);
            let difference = difference(&in_parts(&parts, block, &model), &expected);
            prop_assert!(difference < 1e-5, "{difference:e}");
        }
    }

    #[test]
    fn several_blocks_of_queries_see_several_blocks_of_keys() {
        for (dtype, bound) in [(DType::F32, 1e-5), (DType::F16, 0.01), (DType::BF16, 0.08)] {
            let model = attention(dtype);
            let parts = [random(130, dtype), random(1100, dtype), random(1, dtype)];
            let expected = whole(&Tensor::cat(&parts, 0).unwrap(), &model);
            let difference = difference(&in_parts(&parts, 300, &model), &expected);
            assert!(difference < bound, "{dtype:?}: {difference:e}");
        }
    }

    #[test]
    fn keys_of_one_block_give_the_bits_of_all_keys_at_once() {
        let model = attention(DType::F32);
        let x = random(300, DType::F32);
        let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&in_parts(std::slice::from_ref(&x), 300, &model)), bits(&whole(&x, &model)));
    }
}
