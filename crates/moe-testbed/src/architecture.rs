//! Architectures of as many parameters as a baseline.

use moe_model::{OlmoeConfig, OlmoeParams};
use serde::{Deserialize, Serialize};

use crate::error::check;
use crate::{Result, TestbedError};

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
    /// The first layer, as in DeepSeekMoE (arXiv 2401.06066).
    First,
    /// The first, the third and so on, as in Switch Transformers (arXiv 2101.03961).
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
