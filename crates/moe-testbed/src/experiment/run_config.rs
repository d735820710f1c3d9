//! The configuration of one run.

use std::path::{Path, PathBuf};

use moe_model::{OlmoeConfig, OlmoeParams};
use serde::{Deserialize, Serialize};

use crate::{error::Result, measure::MeasureOptions, text::DataOptions, training::TrainOptions};

/// What decides every bit of a run, but for text that is read from folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the point.
    pub point: String,
    /// Text and tokenizer.
    pub data: DataOptions,
    /// The model.
    pub model: OlmoeParams,
    /// The training.
    pub training: TrainOptions,
    /// Steps between checkpoints, at each of which the model reads some held-out text.
    pub checkpoint_every: u64,
    /// What is measured at the end.
    pub measure: MeasureOptions,
}

impl RunConfig {
    /// The model's configuration, checked.
    ///
    /// # Errors
    /// [`TestbedError::Model`](crate::TestbedError::Model).
    pub fn config(&self) -> Result<OlmoeConfig> {
        Ok(OlmoeConfig::new(self.model.clone())?)
    }

    /// The router, with `-raw` behind it if the weights of a token's experts are not scaled to sum to 1.
    pub fn router(&self) -> String {
        let raw = self.model.router.has_logits() && !self.model.norm_topk_prob;
        format!("{}{}", self.model.router, if raw { "-raw" } else { "" })
    }

    /// Whether another run has the same experts, shared experts and dense layers.
    pub(super) fn same_architecture(&self, other: &RunConfig) -> bool {
        let of = |run: &RunConfig| {
            let model = &run.model;
            (model.num_experts, model.num_experts_per_tok, model.n_shared_experts, model.mlp_only_layers.clone())
        };
        of(self) == of(other)
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.training.seed
    }

    /// The folder of the run below that of its experiment.
    pub fn folder(&self) -> PathBuf {
        folder_of_run(&self.point, self.seed())
    }
}

/// Returns the folder of a run below that of its experiment.
pub(super) fn folder_of_run(point: &str, seed: u64) -> PathBuf {
    Path::new(point).join(format!("seed-{seed}"))
}
