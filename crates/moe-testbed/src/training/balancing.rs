//! What training does about the load of the experts.

use std::fmt;

use moe_model::RouterKind;
use serde::{Deserialize, Serialize};

use crate::error::{Result, check};

/// What training does about the load of the experts.
///
/// ```
/// use moe_testbed::{BalanceScope, Balancing};
/// let balancing: Balancing = serde_json::from_str(r#"{ "scope": "global", "coefficient": 0.1, "z_loss": 0.001 }"#)?;
/// assert_eq!(balancing.scope, BalanceScope::Global);
/// assert_eq!(balancing.capacity_factor, None);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Balancing {
    /// The tokens over which the load is to be even.
    pub scope: BalanceScope,
    /// Weight of the load-balance loss, averaged over layers; without effect at [`BalanceScope::None`].
    pub coefficient: f64,
    /// Weight of the router z-loss, averaged over layers (Zoph et al. 2022, ST-MoE, arXiv 2202.08906, equation 5).
    pub z_loss: f64,
    /// What a step adds to or takes from an expert's bias (Wang et al. 2024, loss-free balancing, arXiv 2408.15664); 0
    /// keeps the biases at 0. Only the [`RouterKind::Sigmoid`] router has them.
    pub bias_rate: f64,
    /// An expert serves at most `ceil(capacity_factor * tokens * top_k / experts)` tokens of a micro-batch, and the rest
    /// are dropped (Fedus et al. 2021, Switch Transformers, arXiv 2101.03961, equation 3); none drops nothing.
    pub capacity_factor: Option<f64>,
}

/// The tokens over which the load-balance loss asks for an even load.
///
/// In files the names are `none`, `sequence`, `micro-batch` and `global`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceScope {
    /// There is no load-balance loss.
    None,
    /// Each sequence by itself (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    Sequence,
    /// The sequences that go through the model at once.
    #[default]
    MicroBatch,
    /// All micro-batches of a step: the load is that of the step, the gradient flows through the probabilities of each
    /// micro-batch (Qiu et al. 2025, arXiv 2501.11873).
    Global,
}

impl BalanceScope {
    /// Every scope.
    pub const ALL: [BalanceScope; 4] =
        [BalanceScope::None, BalanceScope::Sequence, BalanceScope::MicroBatch, BalanceScope::Global];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            BalanceScope::None => "none",
            BalanceScope::Sequence => "sequence",
            BalanceScope::MicroBatch => "micro-batch",
            BalanceScope::Global => "global",
        }
    }
}

impl fmt::Display for BalanceScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Default for Balancing {
    fn default() -> Balancing {
        Balancing {
            scope: BalanceScope::MicroBatch,
            coefficient: 0.01,
            z_loss: 0.0,
            bias_rate: 0.0,
            capacity_factor: None,
        }
    }
}

impl Balancing {
    /// Checks the numbers, and that the router has what they act on.
    ///
    /// # Errors
    /// [`TestbedError::Option`](crate::TestbedError::Option) names the first one that does not work.
    pub fn check(&self, router: RouterKind) -> Result<()> {
        for (option, value) in [("balance", self.coefficient), ("z-loss", self.z_loss), ("bias rate", self.bias_rate)] {
            check(option, value, value >= 0.0 && value.is_finite(), "0 and more")?;
        }
        let biased = self.bias_rate == 0.0 || router == RouterKind::Sigmoid;
        check("bias rate", self.bias_rate, biased, format!("0, the router {router} has no biases"))?;
        if let Some(factor) = self.capacity_factor {
            check("capacity factor", factor, factor > 0.0 && factor.is_finite(), "above 0")?;
            let drops = router != RouterKind::ExpertChoice;
            check("capacity factor", factor, drops, "none, the router expert-choice never exceeds its capacity")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files() {
        for scope in BalanceScope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.name());
        }
        let unknown = serde_json::from_str::<Balancing>(r#"{ "coeficient": 0.1 }"#).unwrap_err().to_string();
        assert!(unknown.starts_with("unknown field `coeficient`"), "{unknown}");
    }

    #[test]
    fn numbers_that_do_not_work_are_errors() {
        let message =
            |balancing: Balancing, router: RouterKind| balancing.check(router).map_err(|error| error.to_string());
        let default = Balancing::default();
        assert!(RouterKind::ALL.iter().all(|&router| default.check(router).is_ok()));
        let negative = message(Balancing { z_loss: -1.0, ..default }, RouterKind::Softmax);
        assert_eq!(negative.unwrap_err(), "z-loss is -1, allowed are 0 and more");
        let biased = Balancing { bias_rate: 1e-3, ..default };
        assert!(biased.check(RouterKind::Sigmoid).is_ok());
        let unbiased = message(biased, RouterKind::Hash).unwrap_err();
        assert_eq!(unbiased, "bias rate is 0.001, allowed are 0, the router hash has no biases");
        let dropping = |factor| Balancing { capacity_factor: Some(factor), ..default };
        assert!(dropping(1.25).check(RouterKind::Reference).is_ok());
        let zero = message(dropping(0.0), RouterKind::Softmax).unwrap_err();
        assert_eq!(zero, "capacity factor is 0, allowed are above 0");
        assert!(dropping(1.0).check(RouterKind::ExpertChoice).is_err());
    }
}
