//! SRP by expert, layer, stack and model.

use moe_trace::Stack;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::threshold::SrpValue;
use crate::accumulate::Selection;

/// SRP of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SrpReport {
    /// Window length in tokens.
    pub window: usize,
    /// Number of windows in each layer.
    pub windows: u64,
    /// Numbers of the selected MoE layers of which no window has an access; no pool of layers has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused_layers: Vec<usize>,
    /// All experts of the layers that a window uses, pooled.
    pub model: SrpValue,
    /// The layers of the encoder pooled, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<SrpValue>,
    /// The layers of the decoder pooled, if there is one; the model if it is decoder-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<SrpValue>,
    /// The layers in the order in which they were selected.
    pub layers: Vec<LayerSrp>,
}

/// SRP of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerSrp {
    /// Number of the MoE layer.
    pub layer: usize,
    /// All experts of the layer pooled.
    pub value: SrpValue,
    /// Each expert alone, `[experts]`.
    pub experts: Vec<SrpValue>,
}

impl LayerSrp {
    /// Returns true if a window uses an expert of the layer.
    pub fn is_used(&self) -> bool {
        self.value.activation_rate > 0.0
    }
}

impl SrpReport {
    /// Pools the histograms of experts: `add_to(position, expert, counts)` adds that of an expert of a selected layer. A
    /// layer without a use is in no pool of layers, because its windows would lower the activation rate of the others.
    pub(crate) fn pool(
        window: usize,
        windows: u64,
        selection: &Selection,
        add_to: impl Fn(usize, usize, &mut [u64]),
    ) -> SrpReport {
        let empty = || vec![0; window + 1];
        let (mut encoder, mut decoder) = (empty(), empty());
        let mut layers = Vec::new();
        for (position, (layer, stack)) in selection.layers().iter().zip(selection.stacks()).enumerate() {
            let mut pooled = empty();
            let expert = |expert| {
                let mut counts = empty();
                add_to(position, expert, &mut counts);
                add(&mut pooled, &counts);
                SrpValue::from_histogram(&counts)
            };
            let experts = (0..selection.experts()).map(expert).collect();
            let of_layer = LayerSrp { layer: layer.index(), value: SrpValue::from_histogram(&pooled), experts };
            if of_layer.is_used() {
                add(if *stack == Stack::Encoder { &mut encoder } else { &mut decoder }, &pooled);
            }
            layers.push(of_layer);
        }
        let of = |stack, counts: &[u64]| selection.stacks().contains(&stack).then(|| SrpValue::from_histogram(counts));
        let stacks = (of(Stack::Encoder, &encoder), of(Stack::Decoder, &decoder));
        add(&mut encoder, &decoder);
        let model = SrpValue::from_histogram(&encoder);
        let unused_layers = layers.iter().filter(|layer| !layer.is_used()).map(|layer| layer.layer).collect();
        SrpReport { window, windows, unused_layers, model, encoder: stacks.0, decoder: stacks.1, layers }
    }

    /// SRP of every expert alone, `[layers x experts]`.
    pub fn experts(&self) -> Array2<f64> {
        let experts = self.layers.first().map_or(0, |layer| layer.experts.len());
        Array2::from_shape_fn((self.layers.len(), experts), |(layer, expert)| self.layers[layer].experts[expert].srp)
    }
}

fn add(sum: &mut [u64], counts: &[u64]) {
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}
