//! What a training run will need of the machine's memory.

use moe_model::OlmoeConfig;

use super::TrainOptions;

const FLOAT_BYTES: usize = 4;

/// An estimate, from above, of the bytes that training takes with some workers: weights, moments and gradients, and what
/// the backward pass needs of each layer for the tokens of a micro-batch.
///
/// It is there to refuse what cannot fit, not to plan to the last byte.
///
/// ```
/// use moe_model::{OlmoeConfig, OlmoeParams};
/// use moe_testbed::{TrainOptions, training_bytes};
/// // OLMoE-1B-7B: nearly 7 * 10^9 weights, each with two moments and two gradients.
/// let bytes = training_bytes(&OlmoeConfig::new(OlmoeParams::default())?, &TrainOptions::default(), 1);
/// assert!((139_000_000_000..300_000_000_000).contains(&bytes));
/// # Ok::<(), moe_model::ModelError>(())
/// ```
pub fn training_bytes(config: &OlmoeConfig, training: &TrainOptions, workers: usize) -> usize {
    let params = config.params();
    let tokens = training.micro_batch.saturating_mul(training.length);
    let used = params.num_experts_per_tok + params.n_shared_experts;
    // Inputs and outputs of every operation are kept until the backward pass.
    let layer = 16 * params.hidden_size
        + 3 * params.num_attention_heads * training.length
        + used * (4 * params.hidden_size + 5 * params.intermediate_size)
        + 6 * params.num_experts;
    let token = params.num_hidden_layers.saturating_mul(layer).saturating_add(3 * params.vocab_size);
    // As much again for gradients, and twice for what the allocator does not give back.
    let activations = tokens.saturating_mul(token).saturating_mul(4);
    let states = config.parameters().saturating_mul(4 + workers);
    workers.saturating_mul(activations).saturating_add(states).saturating_mul(FLOAT_BYTES)
}
