//! Grouped-query attention with normalised queries and keys.

use std::ops::Range;

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::kernels::{CausalMask, Kernels};
use crate::kv_cache::KvCache;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::{OlmoeConfig, Result};

/// Queries that attend at once; bounds the memory of a long prefill.
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
    /// Blocks of queries, in order.
    blocks: Vec<QueryBlock>,
}

/// A run of queries that attend together.
#[derive(Debug)]
struct QueryBlock {
    /// Queries, counted from the span's first row.
    queries: Range<usize>,
    /// Number of keys that the last query sees.
    keys: usize,
    mask: CausalMask,
}

impl Span {
    /// The span of tokens at `rows` that have `past` tokens behind them.
    pub(crate) fn new(rows: Range<usize>, past: usize, device: &Device) -> Result<Span> {
        let length = rows.len();
        let blocks = (0..length).step_by(QUERY_BLOCK).map(|start| {
            let queries = start..length.min(start + QUERY_BLOCK);
            let keys = past + queries.end;
            let mask = CausalMask::new(queries.len(), keys, device)?;
            Ok(QueryBlock { queries, keys, mask })
        });
        Ok(Span { blocks: blocks.collect::<Result<_>>()?, rows })
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
    pub(crate) fn forward_dense(&self, x: &Tensor, batch: usize, mask: &CausalMask, rope: &Rope) -> Result<Tensor> {
        let kernels = Kernels::Differentiable;
        let [queries, keys, values] = self.project(x, kernels)?;
        let queries = rope.rotate(&split_heads(&queries, batch, self.heads)?, 0, kernels)?;
        let keys = rope.rotate(&split_heads(&keys, batch, self.kv_heads)?, 0, kernels)?;
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
        rope: &Rope,
    ) -> Result<Tensor> {
        let kernels = Kernels::Fused;
        let [queries, keys, values] = self.project(x, kernels)?;
        let mut mixed = Vec::new();
        for (span, cache) in sequences {
            let heads = |x: &Tensor, heads| split_heads(&x.narrow(0, span.rows.start, span.rows.len())?, 1, heads);
            let queries = rope.rotate(&heads(&queries, self.heads)?, cache.len(), kernels)?;
            let new_keys = rope.rotate(&heads(&keys, self.kv_heads)?, cache.len(), kernels)?;
            let new_values = heads(&values, self.kv_heads)?;
            let (keys, values) = cache.append(layer, &new_keys.squeeze(0)?, &new_values.squeeze(0)?)?;
            let (keys, values) = (keys.unsqueeze(0)?, values.unsqueeze(0)?);
            for block in &span.blocks {
                let queries = queries.narrow(2, block.queries.start, block.queries.len())?.contiguous()?;
                let (keys, values) = (keys.narrow(2, 0, block.keys)?, values.narrow(2, 0, block.keys)?);
                mixed.push(merge_heads(&self.attend(&queries, &keys, &values, &block.mask, kernels)?)?);
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
        let (batch, _, length, _) = queries.dims4()?;
        // Queries of a group become rows of one matrix, so that keys and values need not be repeated.
        let grouped = (batch, self.kv_heads, self.heads / self.kv_heads * length, self.head_dim);
        let scores = queries.reshape(grouped)?.matmul(&keys.t()?)?;
        let scores = scores.reshape((batch, self.heads, length, ()))?;
        // Head dimensions are small integers, which f32 holds.
        #[expect(clippy::cast_precision_loss)]
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let weights = kernels.causal_softmax(&scores, scale, mask)?;
        let weights = weights.reshape((batch, self.kv_heads, self.heads / self.kv_heads * length, ()))?;
        Ok(weights.matmul(values)?.reshape((batch, self.heads, length, self.head_dim))?)
    }
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
