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
        self.each_tensor().collect()
    }

    /// [`tensors`](Self::tensors) one by one: a configuration may claim more of them than memory holds.
    pub(crate) fn each_tensor(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let params = self.params();
        let (vocab, hidden) = (params.vocab_size, params.hidden_size);
        let output = (!params.tie_word_embeddings).then(|| matrix("lm_head.weight".to_owned(), (vocab, hidden)));
        let layers = self.geometry().layer_ids();
        std::iter::once(matrix("model.embed_tokens.weight".to_owned(), (vocab, hidden)))
            .chain(layers.flat_map(|layer| self.layer_tensors(layer)))
            .chain(std::iter::once(norm("model.norm.weight".to_owned(), hidden)))
            .chain(output)
    }

    fn layer_tensors(&self, layer: LayerId) -> impl Iterator<Item = TensorSpec> + use<> {
        let params = self.params();
        let hidden = params.hidden_size;
        let kv_width = params.num_key_value_heads * self.head_dim();
        let name = |part: &str| format!("model.layers.{}.{part}.weight", layer.0);
        let projections = self.expert_shape().projections();
        let experts = self.geometry().expert_ids().flat_map(move |expert| {
            expert_names(layer, expert).into_iter().zip(projections).map(|(name, shape)| matrix(name, shape))
        });
        [
            norm(name("input_layernorm"), hidden),
            matrix(name("self_attn.q_proj"), (hidden, hidden)),
            matrix(name("self_attn.k_proj"), (kv_width, hidden)),
            matrix(name("self_attn.v_proj"), (kv_width, hidden)),
            matrix(name("self_attn.o_proj"), (hidden, hidden)),
            norm(name("self_attn.q_norm"), hidden),
            norm(name("self_attn.k_norm"), kv_width),
            norm(name("post_attention_layernorm"), hidden),
            matrix(name("mlp.gate"), (params.num_experts, hidden)),
        ]
        .into_iter()
        .chain(experts)
    }
}

fn matrix(name: String, (out, inner): (usize, usize)) -> TensorSpec {
    TensorSpec { name, shape: vec![out, inner], kind: TensorKind::Matrix }
}

fn norm(name: String, width: usize) -> TensorSpec {
    TensorSpec { name, shape: vec![width], kind: TensorKind::Norm }
}
