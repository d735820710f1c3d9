//! What a router decided for a batch of tokens.

use candle_core::Tensor;
use moe_trace::Phase;

use crate::error::{OffloadError, Result};

/// Experts and weights chosen for the tokens of one call.
#[derive(Clone, Debug)]
pub struct Routes {
    experts: Vec<u16>,
    weights: Tensor,
    tokens: usize,
    top_k: usize,
    phase: Phase,
}

impl Routes {
    /// Creates routes from expert ids, `[tokens x top_k]` in rank order, [`EMPTY_SLOT`](moe_trace::EMPTY_SLOT) where a
    /// token uses fewer, and a weight tensor `[tokens, top_k]` on the
    /// compute device (a tensor, so that gradients reach the router).
    ///
    /// # Errors
    /// [`OffloadError::Routes`] if the two disagree; a weight tensor that is not of rank 2.
    pub fn new(experts: Vec<u16>, weights: Tensor, phase: Phase) -> Result<Routes> {
        let (tokens, top_k) = weights.dims2()?;
        if experts.len() != tokens * top_k {
            return Err(OffloadError::Routes { field: "experts", value: experts.len(), expected: tokens * top_k });
        }
        Ok(Routes { experts, weights, tokens, top_k, phase })
    }

    /// Expert ids, `[tokens x top_k]` in rank order.
    pub fn experts(&self) -> &[u16] {
        &self.experts
    }

    /// Weights, `[tokens, top_k]`.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Whether the tokens are prefilled or decoded.
    pub fn phase(&self) -> Phase {
        self.phase
    }
}
