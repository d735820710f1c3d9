//! How evenly a router loads its experts.

use expert_cache::curve::Accesses;
use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, MOST, Restore, Selection, checked_serde, intact, total, within},
    error::Result,
};

/// Counts how often each expert is used.
///
/// # Complexity
/// One addition an access; `8 * layers * experts` bytes.
///
/// ```
/// use lrc_metrics::{Accumulator, LoadBalance};
/// use moe_trace::{Geometry, Phase, SequenceBuf};
///
/// // One layer of 4 experts, top-1; of four tokens three use expert 0 and one expert 2.
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 2, 0], Phase::Decode)?;
/// let mut load = LoadBalance::new(&geometry);
/// load.update(&sequence.view(&geometry, 0)?)?;
/// let layer = &load.finish()[0];
/// assert_eq!(layer.activation_rates, [0.75, 0.0, 0.25, 0.0]);
/// assert_eq!((layer.dead_experts, layer.max_load), (2, 3.0));
/// assert_eq!(layer.utilization, 0.5);
/// // Deviations from 0.25 are 0.5, -0.25, 0, -0.25: sqrt(0.375 / 4) = 0.306.
/// assert!((layer.deviation_percent - 30.618_621_784_789_724).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct LoadBalance {
    selection: Selection,
    /// Uses of every expert, by layer.
    uses: Vec<Vec<u64>>,
    tokens: u64,
    #[serde(skip)]
    scratch: Accesses,
}

/// Load of the experts of one layer.
///
/// With `n_e` the tokens that use expert `e`, `E` experts and `f_e = n_e / sum n` the share of routed slots. All is 0
/// where no token is routed.
///
/// # References
/// Standard deviation: arXiv 2505.16056, section 3.3. Utilization: arXiv 2604.07030.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerLoad {
    /// `n_e / #tokens`, `[experts]`.
    pub activation_rates: Vec<f64>,
    /// Standard deviation of the activation rates over all experts (not a sample of them), in per cent.
    pub deviation_percent: f64,
    /// `E * max f_e`: 1 is even load.
    pub max_load: f64,
    /// `- sum f_e ln f_e / ln E`: 1 is even load; 0 for a layer of one expert.
    pub entropy: f64,
    /// Experts that no token uses.
    pub dead_experts: usize,
    /// `sum min(f_e, 1 / E)`: 1 is even load.
    pub utilization: f64,
}

impl LayerLoad {
    /// Returns true if a token uses an expert of the layer.
    pub fn is_used(&self) -> bool {
        self.activation_rates.iter().any(|&rate| rate > 0.0)
    }
}

impl LoadBalance {
    /// Creates the load of all layers.
    pub fn new(geometry: &Geometry) -> LoadBalance {
        LoadBalance::over(Selection::all(geometry))
    }

    /// Creates the load of some layers.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`](crate::MetricError::NoLayers) or a layer out of range.
    pub fn of_layers(geometry: &Geometry, layers: &[LayerId]) -> Result<LoadBalance> {
        Ok(LoadBalance::over(Selection::new(geometry, layers)?))
    }

    fn over(selection: Selection) -> LoadBalance {
        let uses = vec![vec![0; selection.experts()]; selection.layers().len()];
        LoadBalance { selection, uses, tokens: 0, scratch: Accesses::new() }
    }

    /// Adds the accesses of a sequence to one of the selected layers.
    pub(crate) fn update_layer(&mut self, position: usize, accesses: &Accesses) {
        let uses = &mut self.uses[position];
        for &expert in accesses.keys() {
            uses[expert as usize] += 1;
        }
    }

    /// Counts a sequence of which every selected layer was added.
    pub(crate) fn count_sequence(&mut self, tokens: usize) {
        self.tokens += tokens as u64;
    }

    /// The layers that are looked at.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Number of tokens.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Uses of every expert of a selected layer.
    pub(crate) fn uses(&self, position: usize) -> &[u64] {
        &self.uses[position]
    }

    /// The load of the sequences so far, in the order in which layers were selected.
    pub fn finish(&self) -> Vec<LayerLoad> {
        self.uses.iter().map(|uses| layer_load(uses, self.tokens)).collect()
    }
}

/// Counts stay below `2^53`, so their conversion to `f64` is exact.
pub(crate) fn layer_load(uses: &[u64], tokens: u64) -> LayerLoad {
    let experts = uses.len() as f64;
    let routed = uses.iter().sum::<u64>().max(1) as f64;
    let tokens = tokens.max(1) as f64;
    let shares = || uses.iter().map(|&uses| uses as f64 / routed);
    let activation_rates: Vec<f64> = uses.iter().map(|&uses| uses as f64 / tokens).collect();
    let mean = activation_rates.iter().sum::<f64>() / experts;
    let variance = activation_rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / experts;
    let entropy: f64 = shares().filter(|&share| share > 0.0).map(|share| -share * share.ln()).sum();
    LayerLoad {
        activation_rates,
        deviation_percent: 100.0 * variance.sqrt(),
        max_load: experts * shares().fold(0.0, f64::max),
        entropy: if uses.len() > 1 { entropy / experts.ln() } else { 0.0 },
        dead_experts: uses.iter().filter(|&&uses| uses == 0).count(),
        utilization: shares().map(|share| share.min(1.0 / experts)).sum(),
    }
}

impl Accumulator for LoadBalance {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let mut accesses = std::mem::take(&mut self.scratch);
        for position in 0..self.uses.len() {
            accesses.fill(sequence, &self.selection.layers()[position..=position])?;
            self.update_layer(position, &accesses);
        }
        self.scratch = accesses;
        self.count_sequence(sequence.len());
        Ok(())
    }

    fn merge(&mut self, other: &LoadBalance) -> Result<()> {
        self.selection.same(&other.selection)?;
        for (sum, more) in self.uses.iter_mut().flatten().zip(other.uses.iter().flatten()) {
            *sum += more;
        }
        self.tokens += other.tokens;
        Ok(())
    }
}

checked_serde!(LoadBalance);

impl Restore for LoadBalance {
    fn restore(&mut self) -> Result<()> {
        within("number of tokens", 0, MOST.into(), self.tokens.into())?;
        intact("number of layers", &self.selection.layers().len(), &self.uses.len())?;
        for uses in &self.uses {
            intact("number of experts of a layer", &self.selection.experts(), &uses.len())?;
            total("uses of a layer", uses)?;
            uses.iter().try_for_each(|&uses| within("uses of an expert", 0, self.tokens.into(), uses.into()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_load_is_one_everywhere() {
        let load = layer_load(&[5, 5, 5, 5], 10);
        assert_eq!((load.deviation_percent, load.max_load, load.dead_experts), (0.0, 1.0, 0));
        assert_eq!((load.entropy, load.utilization), (1.0, 1.0));
    }

    #[test]
    fn no_routing_is_zero_everywhere() {
        let load = layer_load(&[0, 0], 0);
        assert_eq!((load.deviation_percent, load.max_load, load.entropy, load.utilization), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((load.activation_rates.as_slice(), load.dead_experts), ([0.0, 0.0].as_slice(), 2));
    }

    #[test]
    fn half_of_the_experts_carry_half_of_the_entropy() {
        // Two of four experts at one half each: ln 2 / ln 4.
        let load = layer_load(&[8, 0, 8, 0], 8);
        assert_eq!((load.entropy, load.max_load, load.utilization), (0.5, 2.0, 0.5));
    }
}
