//! Everything that was measured on a trace.

use std::collections::BTreeMap;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{LayerLoad, SrpValue};

/// What [`TraceMetrics`](crate::TraceMetrics) measured.
///
/// As JSON: `model.srp["16"].srp`, `layers[0].experts[5].srp["16"].rho`, `layers[0].curves.sch_16[7]`,
/// `pool.curves.lru[7]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsReport {
    /// Number of sequences.
    pub sequences: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Experts that a token uses at most in a layer.
    pub top_k: usize,
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
    /// SRP of all experts pooled, by window length.
    pub srp: BTreeMap<usize, SrpValue>,
    /// Hit rates by [policy label](expert_cache::curve::CurvePolicy::label), entry `i` for `i + 1` slots in each layer:
    /// the mean over layers.
    pub curves: BTreeMap<String, Vec<f64>>,
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
    /// Hit rates by [policy label](expert_cache::curve::CurvePolicy::label), entry `i` for `i + 1` slots.
    pub curves: BTreeMap<String, Vec<f64>>,
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
    /// Hit rates by policy label, entry `i` for `i + 1` slots shared by all layers.
    pub curves: BTreeMap<String, Vec<f64>>,
}

impl MetricsReport {
    /// Hit rates of a policy, `[layers x capacities]`; `None` if the policy was not measured.
    pub fn curves(&self, label: &str) -> Option<Array2<f64>> {
        let rows: Option<Vec<&[f64]>> =
            self.layers.iter().map(|layer| layer.curves.get(label).map(Vec::as_slice)).collect();
        rows.map(|rows| matrix(&rows))
    }

    /// Hit rate of a policy with a number of slots in each layer, mean over layers; `None` if it was not measured.
    pub fn hit_rate(&self, label: &str, slots: usize) -> Option<f64> {
        self.model.curves.get(label)?.get(slots.checked_sub(1)?).copied()
    }

    /// Activation rates, `[layers x experts]`.
    pub fn activation_rates(&self) -> Array2<f64> {
        let rows: Vec<&[f64]> = self.layers.iter().map(|layer| layer.load.activation_rates.as_slice()).collect();
        matrix(&rows)
    }
}

/// Mean hit rates of some layers.
pub(crate) fn mean_curves<'a>(layers: impl Iterator<Item = &'a LayerReport>) -> BTreeMap<String, Vec<f64>> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut count = 0.0;
    for layer in layers {
        count += 1.0;
        for (label, rates) in &layer.curves {
            let sum = sums.entry(label.clone()).or_insert_with(|| vec![0.0; rates.len()]);
            sum.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate);
        }
    }
    sums.values_mut().flatten().for_each(|sum| *sum /= count);
    sums
}

/// Rows of equal length as a matrix.
pub(crate) fn matrix(rows: &[impl AsRef<[f64]>]) -> Array2<f64> {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    Array2::from_shape_fn((rows.len(), columns), |(row, column)| rows[row].as_ref()[column])
}
