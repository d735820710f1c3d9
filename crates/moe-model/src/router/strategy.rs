//! The seam between a router and its way to choose.

use std::fmt;

use candle_core::Tensor;
use moe_trace::DomainId;

use crate::Result;
use crate::router::choice::Choice;

/// What is known of tokens besides their hidden states, one entry a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenView<'a> {
    pub(crate) ids: &'a [u32],
    /// Place of a token in its sequence.
    pub(crate) positions: &'a [u32],
    /// In range, and present if the router asks for them; else empty.
    pub(crate) domains: &'a [DomainId],
}

/// A way to choose experts from a router's logits, `[tokens x experts]`, and from what is known of the tokens.
///
/// Inference takes experts and weights from [`choose`](Self::choose). Training takes the experts from
/// [`choose_in_batch`](Self::choose_in_batch), which is the same but for a router that lets tokens compete, and their
/// weights from [`scores`](Self::scores), which gradients flow through. Logits are finite.
pub(crate) trait Strategy: fmt::Debug + Send + Sync {
    /// Chooses `top_k` experts for each token by itself.
    fn choose(&self, logits: &[f32], tokens: &TokenView<'_>) -> Result<Choice>;

    /// Chooses experts for the tokens of a micro-batch.
    fn choose_in_batch(&self, logits: &[f32], tokens: &TokenView<'_>) -> Result<Choice> {
        self.choose(logits, tokens)
    }

    /// What a token's weight for an expert is before it is normalised, `[tokens, experts]`.
    fn scores(&self, logits: &Tensor, tokens: &TokenView<'_>) -> Result<Tensor>;

    /// The scores as distributions over experts, for the load-balance loss.
    fn distributions(&self, scores: &Tensor) -> Result<Tensor> {
        Ok(scores.clone())
    }
}
