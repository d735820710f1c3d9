//! Names and shapes of the tensors of a checkpoint.

use moe_trace::{ExpertId, LayerId};

use crate::expert_layout::ExpertLayout;
use crate::{OlmoeConfig, RouterKind};

/// What a tensor is for, which decides how a new one is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// A matrix; new ones are drawn from a normal distribution of standard deviation `initializer_range`.
    Matrix,
    /// The gain of an RMSNorm; new ones are 1.
    Norm,
    /// Biases of a router's experts, f32 in every model; new ones are 0.
    Bias,
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
    /// Whether the gradient changes it: not the weights of a [random](RouterKind::Random) router and no bias.
    pub trained: bool,
    /// The MoE layer whose expert it belongs to, if it is part of an expert.
    pub expert_of: Option<LayerId>,
}

/// Name of all gate and up projections of a layer in one tensor, behind the name of its MLP.
pub(crate) const GATE_UP: &str = ".experts.gate_up_proj";
/// Name of all down projections of a layer in one tensor, behind the name of its MLP.
pub(crate) const STACKED_DOWN: &str = ".experts.down_proj";

/// Names of the gate, up and down projection of the MLP called `mlp`.
pub(crate) fn mlp_names(mlp: &str) -> [String; 3] {
    ["gate", "up", "down"].map(|projection| format!("{mlp}.{projection}_proj.weight"))
}

impl OlmoeConfig {
    /// Every tensor of a checkpoint, in the order of the model; names are those of Hugging Face's `OlmoeForCausalLM`.
    ///
    /// A [variant](crate::OlmoeParams::is_variant) has, of layer `l` under `model.layers.{l}.mlp`, what other
    /// architectures of Hugging Face call so: `shared_experts.{gate,up,down}_proj.weight`, all shared experts as one MLP
    /// of their total width, as in DeepSeek-V2; `{gate,up,down}_proj.weight` for a dense MLP; `gate.e_score_correction_bias` for
    /// the biases of the sigmoid router, as in DeepSeek-V3. The hash and position routers have no tensors.
    ///
    /// A variable map filled from this list in order is a reproducible start for training.
    ///
    /// ```
    /// use moe_model::{OlmoeConfig, OlmoeParams};
    /// let config = OlmoeConfig::new(OlmoeParams::default())?;
    /// assert_eq!(config.tensors().len(), 3 + 16 * (9 + 64 * 3));
    /// assert_eq!(config.tensors()[1].name, "model.layers.0.input_layernorm.weight");
    /// # Ok::<(), moe_model::ModelError>(())
    /// ```
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.each_tensor(ExpertLayout::Separate).collect()
    }

    /// Number of values in all tensors.
    ///
    /// # Complexity
    /// `O(tensors)`.
    ///
    /// ```
    /// use moe_model::{OlmoeConfig, OlmoeParams};
    /// assert_eq!(OlmoeConfig::new(OlmoeParams::default())?.parameters(), 6_919_161_856);
    /// # Ok::<(), moe_model::ModelError>(())
    /// ```
    pub fn parameters(&self) -> usize {
        self.each_tensor(ExpertLayout::Separate).fold(0, |sum: usize, tensor| {
            sum.saturating_add(tensor.shape.iter().fold(1, |count: usize, &size| count.saturating_mul(size)))
        })
    }

    /// Names of an expert's gate, up and down projection.
    ///
    /// # Panics
    /// Panics if the model does not have the layer.
    pub fn expert_names(&self, layer: LayerId, expert: ExpertId) -> [String; 3] {
        mlp_names(&format!("{}.experts.{}", self.mlp_name(layer), expert.0))
    }

    /// Name of a layer's MoE block.
    pub(crate) fn mlp_name(&self, layer: LayerId) -> String {
        format!("model.layers.{}.mlp", self.model_layer(layer))
    }

    /// [`tensors`](Self::tensors) one by one, in one of the layouts: a configuration may claim more of them than memory
    /// holds.
    pub(crate) fn each_tensor(&self, layout: ExpertLayout) -> impl Iterator<Item = TensorSpec> + '_ {
        let params = self.params();
        let (vocab, hidden) = (params.vocab_size, params.hidden_size);
        let output = (!params.tie_word_embeddings).then(|| matrix("lm_head.weight".to_owned(), (vocab, hidden)));
        std::iter::once(matrix("model.embed_tokens.weight".to_owned(), (vocab, hidden)))
            .chain((0..params.num_hidden_layers).flat_map(move |layer| self.layer_tensors(layer, layout)))
            .chain(std::iter::once(norm("model.norm.weight".to_owned(), hidden)))
            .chain(output)
    }

    fn layer_tensors(&self, layer: usize, layout: ExpertLayout) -> impl Iterator<Item = TensorSpec> + '_ {
        let params = self.params();
        let hidden = params.hidden_size;
        let kv_width = params.num_key_value_heads * self.head_dim();
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let moe = self.is_moe(layer);
        [
            norm(name("input_layernorm"), hidden),
            matrix(name("self_attn.q_proj"), (hidden, hidden)),
            matrix(name("self_attn.k_proj"), (kv_width, hidden)),
            matrix(name("self_attn.v_proj"), (kv_width, hidden)),
            matrix(name("self_attn.o_proj"), (hidden, hidden)),
            norm(name("self_attn.q_norm"), hidden),
            norm(name("self_attn.k_norm"), kv_width),
            norm(name("post_attention_layernorm"), hidden),
        ]
        .into_iter()
        .chain(moe.then(|| self.moe_tensors(layer, layout)).into_iter().flatten())
        .chain((!moe).then(|| self.dense_tensors(layer)).into_iter().flatten())
    }

    fn moe_tensors(&self, layer: usize, layout: ExpertLayout) -> impl Iterator<Item = TensorSpec> + '_ {
        let params = self.params();
        let (experts, hidden) = (params.num_experts, params.hidden_size);
        let mlp = format!("model.layers.{layer}.mlp");
        let gate = params.router.has_logits().then(|| TensorSpec {
            trained: params.router.is_trained(),
            ..matrix(format!("{mlp}.gate.weight"), (experts, hidden))
        });
        let bias = (params.router == RouterKind::Sigmoid).then(|| TensorSpec {
            name: format!("{mlp}.gate.e_score_correction_bias"),
            shape: vec![experts],
            kind: TensorKind::Bias,
            trained: false,
            expert_of: None,
        });
        let shared = params.n_shared_experts * params.intermediate_size;
        let shared = (shared > 0).then(|| mlp_tensors(&format!("{mlp}.shared_experts"), hidden, shared));
        let expert_of = self.moe_layer(layer);
        let width = params.intermediate_size;
        let separate = (layout == ExpertLayout::Separate).then(|| self.geometry().expert_ids());
        let name = mlp.clone();
        let separate = separate
            .into_iter()
            .flatten()
            .flat_map(move |expert| mlp_tensors(&format!("{name}.experts.{}", expert.0), hidden, width));
        let stacked = (layout == ExpertLayout::Stacked).then(|| {
            [(GATE_UP, [experts, 2 * width, hidden]), (STACKED_DOWN, [experts, hidden, width])]
                .map(|(name, shape)| TensorSpec { shape: shape.to_vec(), ..matrix(format!("{mlp}{name}"), (0, 0)) })
        });
        let routed = separate.chain(stacked.into_iter().flatten());
        let routed = routed.map(move |projection| TensorSpec { expert_of, ..projection });
        gate.into_iter().chain(bias).chain(routed).chain(shared.into_iter().flatten())
    }

    fn dense_tensors(&self, layer: usize) -> [TensorSpec; 3] {
        let params = self.params();
        mlp_tensors(&format!("model.layers.{layer}.mlp"), params.hidden_size, params.dense_intermediate_size)
    }
}

fn mlp_tensors(mlp: &str, hidden: usize, width: usize) -> [TensorSpec; 3] {
    let [gate, up, down] = mlp_names(mlp);
    [matrix(gate, (width, hidden)), matrix(up, (width, hidden)), matrix(down, (hidden, width))]
}

fn matrix(name: String, (out, inner): (usize, usize)) -> TensorSpec {
    TensorSpec { name, shape: vec![out, inner], kind: TensorKind::Matrix, trained: true, expert_of: None }
}

fn norm(name: String, width: usize) -> TensorSpec {
    TensorSpec { name, shape: vec![width], kind: TensorKind::Norm, trained: true, expert_of: None }
}
