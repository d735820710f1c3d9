//! Architectures of as many parameters as a baseline.

use moe_model::{OlmoeConfig, OlmoeParams};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TestbedError, check};

/// What an ablation changes in the MoE blocks of a baseline.
///
/// The changes of *Local routing consistency* (arXiv 2505.16056, section 3.3, table 2): experts, top-k, shared experts,
/// dense layers. [`Architecture::matched`] finds the width of the experts that keeps the number of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Architecture {
    /// Routed experts a layer.
    pub experts: usize,
    /// Routed experts a token uses in a layer.
    pub top_k: usize,
    /// Experts a layer that every token uses besides.
    pub shared_experts: usize,
    /// Layers with a dense MLP instead of experts.
    pub dense_layers: DenseLayers,
}

/// Which layers have a dense MLP instead of experts.
///
/// In files the names are `none`, `first` and `every-second`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenseLayers {
    /// No layer.
    #[default]
    None,
    /// The first layer (Dai et al. 2024, arXiv 2401.06066).
    First,
    /// The first, the third and so on (Fedus et al. 2021, Switch Transformers, arXiv 2101.03961).
    EverySecond,
}

impl DenseLayers {
    /// The dense ones of `layers` layers, ascending.
    ///
    /// ```
    /// use moe_testbed::DenseLayers;
    /// assert_eq!(DenseLayers::EverySecond.of(4), [0, 2]);
    /// ```
    pub fn of(self, layers: usize) -> Vec<usize> {
        match self {
            DenseLayers::None => Vec::new(),
            DenseLayers::First => vec![0],
            DenseLayers::EverySecond => (0..layers).step_by(2).collect(),
        }
    }
}

impl Default for Architecture {
    /// The toy baseline of the paper: 64 experts of which a token uses 8.
    fn default() -> Architecture {
        Architecture { experts: 64, top_k: 8, shared_experts: 0, dense_layers: DenseLayers::None }
    }
}

/// A model whose number of parameters was matched to a baseline's.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchedModel {
    /// The model.
    pub config: OlmoeConfig,
    /// Its parameters.
    pub parameters: usize,
    /// The baseline's parameters.
    pub baseline: usize,
}

impl MatchedModel {
    /// How far the parameters are from the baseline's, as a fraction of them; negative if there are fewer.
    pub fn deviation(&self) -> f64 {
        self.parameters as f64 / self.baseline as f64 - 1.0
    }
}

impl Architecture {
    /// Makes the change to a baseline, with experts of the width that brings the number of parameters closest to the
    /// baseline's.
    ///
    /// All else is the baseline's. A dense MLP is as wide as the experts that a token uses, shared ones included, so
    /// the layers do the same work for a token. The result may miss by at most the fraction `tolerance`.
    ///
    /// # Formula
    /// `width = round((P - P0) / (3 hidden (moe_layers (experts + shared) + dense_layers (top_k + shared))))`, where `P`
    /// are the baseline's parameters and `P0` those of the new model outside of experts and dense MLPs.
    ///
    /// # Errors
    /// [`TestbedError::Parameters`] if no width is within the tolerance; [`TestbedError::Model`] for a change that the
    /// baseline does not allow, like a top-k above the experts.
    ///
    /// ```
    /// use moe_model::{OlmoeConfig, OlmoeParams};
    /// use moe_testbed::Architecture;
    /// let baseline = OlmoeConfig::new(OlmoeParams {
    ///     hidden_size: 64, intermediate_size: 48, vocab_size: 512, num_hidden_layers: 4, eos_token_ids: vec![],
    ///     ..OlmoeParams::default()
    /// })?;
    /// let half = Architecture { experts: 32, top_k: 4, ..Architecture::default() };
    /// let model = half.matched(&baseline, 0.02)?;
    /// assert_eq!((model.config.params().num_experts, model.config.params().intermediate_size), (32, 96));
    /// // The routers alone are smaller.
    /// assert_eq!(model.baseline - model.parameters, 4 * 32 * 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn matched(self, baseline: &OlmoeConfig, tolerance: f64) -> Result<MatchedModel> {
        check("tolerance", tolerance, tolerance >= 0.0 && tolerance.is_finite(), "0 and more")?;
        let target = baseline.parameters();
        let narrowest = self.of_width(baseline.params(), 1)?;
        let with_one = narrowest.parameters();
        // The count is linear in the width.
        let slope = self.of_width(baseline.params(), 2)?.parameters() - with_one;
        let width = 1 + (target.saturating_sub(with_one) + slope / 2) / slope;
        let config = self.of_width(baseline.params(), width)?;
        let model = MatchedModel { parameters: config.parameters(), config, baseline: target };
        if model.deviation().abs() > tolerance {
            let (parameters, baseline) = (model.parameters, model.baseline);
            return Err(TestbedError::Parameters { width, parameters, baseline, tolerance });
        }
        Ok(model)
    }

    /// The change with experts of a given width.
    fn of_width(self, baseline: &OlmoeParams, width: usize) -> Result<OlmoeConfig> {
        let mlp_only_layers = self.dense_layers.of(baseline.num_hidden_layers);
        let used = self.top_k.saturating_add(self.shared_experts).saturating_mul(width);
        Ok(OlmoeConfig::new(OlmoeParams {
            num_experts: self.experts,
            num_experts_per_tok: self.top_k,
            intermediate_size: width,
            n_shared_experts: self.shared_experts,
            dense_intermediate_size: if mlp_only_layers.is_empty() { 0 } else { used },
            mlp_only_layers,
            ..baseline.clone()
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's toy baseline, smaller.
    fn baseline() -> OlmoeConfig {
        OlmoeConfig::new(OlmoeParams {
            vocab_size: 1000,
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            max_position_embeddings: 128,
            eos_token_ids: vec![],
            ..OlmoeParams::default()
        })
        .unwrap()
    }

    #[test]
    fn the_baseline_matches_itself() {
        let model = Architecture::default().matched(&baseline(), 0.0).unwrap();
        assert_eq!((model.deviation(), model.config), (0.0, baseline()));
    }

    /// No other width comes closer, and the count is that of the tensors.
    #[test]
    fn every_change_comes_as_close_as_a_width_can() {
        let default = Architecture::default();
        for change in [
            Architecture { experts: 32, top_k: 4, ..default },
            Architecture { experts: 32, ..default },
            Architecture { top_k: 16, ..default },
            Architecture { top_k: 2, ..default },
            Architecture { shared_experts: 1, ..default },
            Architecture { shared_experts: 2, ..default },
            Architecture { dense_layers: DenseLayers::First, ..default },
            Architecture { dense_layers: DenseLayers::EverySecond, shared_experts: 1, ..default },
        ] {
            let model = change.matched(&baseline(), 0.02).unwrap();
            let params = model.config.params();
            assert_eq!(model.parameters, model.config.parameters());
            assert_eq!((params.num_experts, params.num_experts_per_tok), (change.experts, change.top_k));
            assert_eq!(params.mlp_only_layers, change.dense_layers.of(4));
            let used = (change.top_k + change.shared_experts) * params.intermediate_size;
            let dense = change.dense_layers != DenseLayers::None;
            assert_eq!(params.dense_intermediate_size, if dense { used } else { 0 });
            for width in [params.intermediate_size - 1, params.intermediate_size + 1] {
                let other = change.of_width(baseline().params(), width).unwrap().parameters();
                assert!(other.abs_diff(model.baseline) >= model.parameters.abs_diff(model.baseline), "{change:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_matched_is_an_error() {
        let message = |change: Architecture, tolerance| change.matched(&baseline(), tolerance).unwrap_err();
        let shared = Architecture { shared_experts: 1, ..Architecture::default() };
        let error = message(shared, 1e-6).to_string();
        assert!(
            error.starts_with("experts of width 95 give ") && error.ends_with("more than 0.000001 of it apart"),
            "{error}"
        );
        let many = Architecture { top_k: 65, ..Architecture::default() };
        assert!(matches!(message(many, 0.02), TestbedError::Model(_)));
        // Even the narrowest experts are too many.
        let experts = Architecture { experts: 60_000, ..Architecture::default() };
        assert!(message(experts, 0.02).to_string().starts_with("experts of width 1 give "));
        assert!(message(shared, f64::NAN).to_string().starts_with("tolerance is NaN"));
    }

    #[test]
    fn names_are_those_of_files() {
        let change: Architecture = serde_json::from_str(r#"{ "top_k": 2, "dense_layers": "every-second" }"#).unwrap();
        let expected = Architecture { top_k: 2, dense_layers: DenseLayers::EverySecond, ..Architecture::default() };
        assert_eq!(change, expected);
        assert!(serde_json::from_str::<Architecture>(r#"{ "topk": 2 }"#).is_err());
    }
}
