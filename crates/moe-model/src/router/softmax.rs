//! Top-k of a softmax over all experts.

use candle_core::{D, Tensor};
use candle_nn::ops;

use crate::Result;
use crate::router::choice::{Choice, TopK};
use crate::router::strategy::{Strategy, TokenView};

/// A token takes the experts of its largest probabilities.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax(pub(crate) TopK);

impl Strategy for Softmax {
    fn choose(&self, logits: &[f32], _: &TokenView<'_>) -> Result<Choice> {
        Ok(self.0.of_softmax(logits))
    }

    fn scores(&self, logits: &Tensor, _: &TokenView<'_>) -> Result<Tensor> {
        Ok(ops::softmax(logits, D::Minus1)?)
    }
}
