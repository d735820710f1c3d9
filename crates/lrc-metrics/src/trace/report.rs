//! Everything that was measured on a trace.

use std::collections::BTreeMap;

use expert_cache::Convention;
use expert_cache::curve::{ColdStart, CurvePolicy};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{experts::LayerLoad, srp::SrpValue, trace::by_policy};

/// Hit rates by policy; in JSON the keys are the policies' names, such as `lru` and `look-ahead-16`.
pub type HitRates = BTreeMap<CurvePolicy, Vec<f64>>;

fn free() -> ColdStart {
    ColdStart::Free
}

/// What [`TraceMetrics`](crate::TraceMetrics) measured.
///
/// As JSON: `model.srp["16"].srp`, `layers[0].experts[5].srp["16"].rho`, `layers[0].curves["look-ahead-16"][7]`,
/// `pool.curves.lru[7]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsReport {
    /// Number of sequences.
    pub sequences: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Experts that a token uses at most in a layer.
    pub top_k: usize,
    /// How the hit rates are counted.
    #[serde(default)]
    pub convention: Convention,
    /// How a first touch counts in the hit rates.
    #[serde(default = "free")]
    pub cold_start: ColdStart,
    /// Numbers of the selected MoE layers that no token uses; no mean, pool or correlation over layers has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused_layers: Vec<usize>,
    /// All selected layers together.
    pub model: ModelReport,
    /// The selected layers of the encoder, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<ModelReport>,
    /// The selected layers of the decoder, if there is one; the model if it is decoder-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<ModelReport>,
    /// The selected layers.
    pub layers: Vec<LayerReport>,
    /// All selected layers as one cache, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
}

/// Several layers together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// SRP of all experts pooled of the layers that a window of the length uses, by window length.
    pub srp: BTreeMap<usize, SrpValue>,
    /// Hit rates by policy, entry `i` for `i + 1` slots in each layer: the mean over the layers that a token uses, 0 if there
    /// is none.
    #[serde(with = "by_policy")]
    pub curves: HitRates,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Number of the MoE layer.
    pub layer: usize,
    /// SRP of the layer's experts pooled, by window length.
    pub srp: BTreeMap<usize, SrpValue>,
    /// Each expert alone, `[experts]`.
    pub experts: Vec<ExpertReport>,
    /// Hit rates by policy, entry `i` for `i + 1` slots.
    #[serde(with = "by_policy")]
    pub curves: HitRates,
    /// How evenly the layer's experts are used.
    pub load: LayerLoad,
}

/// One expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertReport {
    /// SRP by window length.
    pub srp: BTreeMap<usize, SrpValue>,
}

/// All selected layers as one cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Hit rates by policy, entry `i` for `i + 1` slots shared by all layers.
    #[serde(with = "by_policy")]
    pub curves: HitRates,
}

impl MetricsReport {
    /// Hit rates of a policy, `[layers x capacities]`; `None` if the policy was not measured.
    pub fn curves(&self, policy: CurvePolicy) -> Option<Array2<f64>> {
        let rows: Option<Vec<&[f64]>> =
            self.layers.iter().map(|layer| layer.curves.get(&policy).map(Vec::as_slice)).collect();
        rows.map(|rows| matrix(&rows))
    }

    /// Hit rate of a policy with a number of slots in each layer, mean over the layers that a token uses; `None` if it was
    /// not measured.
    pub fn hit_rate(&self, policy: CurvePolicy, slots: usize) -> Option<f64> {
        self.model.curves.get(&policy)?.get(slots.checked_sub(1)?).copied()
    }

    /// Activation rates, `[layers x experts]`.
    pub fn activation_rates(&self) -> Array2<f64> {
        let rows: Vec<&[f64]> = self.layers.iter().map(|layer| layer.load.activation_rates.as_slice()).collect();
        matrix(&rows)
    }
}

impl LayerReport {
    /// Returns true if a token uses an expert of the layer.
    pub fn is_used(&self) -> bool {
        self.load.is_used()
    }
}

/// Mean hit rates of those of some layers that a token uses; 0 if there is none.
pub(super) fn mean_curves<'a>(layers: impl Iterator<Item = &'a LayerReport>) -> HitRates {
    let mut sums = HitRates::new();
    let mut count: f64 = 0.0;
    for layer in layers {
        let used = layer.is_used();
        count += f64::from(u8::from(used));
        for (&policy, rates) in &layer.curves {
            let sum = sums.entry(policy).or_insert_with(|| vec![0.0; rates.len()]);
            if used {
                sum.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate);
            }
        }
    }
    sums.values_mut().flatten().for_each(|sum| *sum /= count.max(1.0));
    sums
}

/// Rows of equal length as a matrix.
pub(crate) fn matrix(rows: &[impl AsRef<[f64]>]) -> Array2<f64> {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    Array2::from_shape_fn((rows.len(), columns), |(row, column)| rows[row].as_ref()[column])
}
