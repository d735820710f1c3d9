//! Names and shapes of the tensors of a checkpoint.

use moe_trace::{ExpertId, LayerId};

use crate::OlmoeConfig;

/// What a tensor is for, which decides how a new one is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// A matrix; new ones are drawn from a normal distribution of standard deviation `initializer_range`.
    Matrix,
    /// The gain of an RMSNorm; new ones are 1.
    Norm,
}

/// Name, shape and kind of one tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape; a projection is `[out, in]`.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: TensorKind,
}

/// Names of an expert's gate, up and down projection.
pub(crate) fn expert_names(layer: LayerId, expert: ExpertId) -> [String; 3] {
    ["gate", "up", "down"]
        .map(|projection| format!("model.layers.{}.mlp.experts.{}.{projection}_proj.weight", layer.0, expert.0))
}

impl OlmoeConfig {
    /// Every tensor of a checkpoint, in the order of the model; names are those of Hugging Face's `OlmoeForCausalLM`.
    ///
    /// A variable map filled from this list in order is a reproducible start for training.
    ///
    /// ```
    /// use moe_model::{OlmoeConfig, OlmoeParams};
    /// let config = OlmoeConfig::new(OlmoeParams::default())?;
    /// let parameters: usize = config.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    /// assert_eq!(parameters, 6_919_161_856);
    /// # Ok::<(), moe_model::ModelError>(())
    /// ```
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let params = self.params();
        let (vocab, hidden) = (params.vocab_size, params.hidden_size);
        let kv_width = params.num_key_value_heads * self.head_dim();
        let matrix = |name: String, (out, inner): (usize, usize)| TensorSpec {
            name,
            shape: vec![out, inner],
            kind: TensorKind::Matrix,
        };
        let norm = |name: String, width| TensorSpec { name, shape: vec![width], kind: TensorKind::Norm };

        let mut tensors = vec![matrix("model.embed_tokens.weight".to_owned(), (vocab, hidden))];
        let geometry = self.geometry();
        for layer in geometry.layer_ids() {
            let name = |part: &str| format!("model.layers.{}.{part}.weight", layer.0);
            tensors.extend([
                norm(name("input_layernorm"), hidden),
                matrix(name("self_attn.q_proj"), (hidden, hidden)),
                matrix(name("self_attn.k_proj"), (kv_width, hidden)),
                matrix(name("self_attn.v_proj"), (kv_width, hidden)),
                matrix(name("self_attn.o_proj"), (hidden, hidden)),
                norm(name("self_attn.q_norm"), hidden),
                norm(name("self_attn.k_norm"), kv_width),
                norm(name("post_attention_layernorm"), hidden),
                matrix(name("mlp.gate"), (params.num_experts, hidden)),
            ]);
            for expert in geometry.expert_ids() {
                let shapes = self.expert_shape().projections();
                tensors.extend(expert_names(layer, expert).into_iter().zip(shapes).map(|(name, s)| matrix(name, s)));
            }
        }
        tensors.push(norm("model.norm.weight".to_owned(), hidden));
        if !params.tie_word_embeddings {
            tensors.push(matrix("lm_head.weight".to_owned(), (vocab, hidden)));
        }
        tensors
    }
}
