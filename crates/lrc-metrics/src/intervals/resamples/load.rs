//! Load of a trace in all resamples.

use ndarray::{Array2, aview1};
use rayon::prelude::*;

use super::{BoundReports, Bounds, TraceResamples};
use crate::{
    experts::{LayerLoad, layer_load},
    trace::MetricsReport,
};

impl TraceResamples<'_> {
    /// Load of layers.
    pub(super) fn bound_loads(&self, value: &MetricsReport, reports: &mut BoundReports) {
        let tokens: Vec<f64> = self.rows.iter().map(|row| row.totals.tokens as f64).collect();
        let tokens = aview1(&tokens).dot(&self.weights);
        let layer = |position: usize| {
            let loads = self.loads(position, tokens.as_slice().expect("a vector in standard order"));
            let value = &value.layers[position].load;
            let bounds = |figure: &dyn Fn(&LayerLoad) -> f64| -> Bounds {
                self.bootstrap.interval(figure(value), &mut loads.iter().map(figure).collect::<Vec<_>>())
            };
            let rates = |expert: usize| bounds(&|load| load.activation_rates[expert]);
            LoadBounds {
                activation_rates: (0..value.activation_rates.len()).map(rates).collect(),
                deviation_percent: bounds(&|load| load.deviation_percent),
                max_load: bounds(&|load| load.max_load),
                entropy: bounds(&|load| load.entropy),
                utilization: bounds(&|load| load.utilization),
            }
        };
        let all: Vec<LoadBounds> = (0..value.layers.len()).into_par_iter().map(layer).collect();
        reports.set(|report, side| {
            for (layer, bounds) in report.layers.iter_mut().zip(&all) {
                layer.load = LayerLoad {
                    activation_rates: bounds.activation_rates.iter().map(side).collect(),
                    deviation_percent: side(&bounds.deviation_percent),
                    max_load: side(&bounds.max_load),
                    entropy: side(&bounds.entropy),
                    utilization: side(&bounds.utilization),
                    // A count is no estimate.
                    dead_experts: layer.load.dead_experts,
                };
            }
        });
    }

    /// Load of a layer by resample.
    fn loads(&self, position: usize, tokens: &[f64]) -> Vec<LayerLoad> {
        let experts = self.metrics.selection().experts();
        let uses = Array2::from_shape_fn((experts, self.rows.len()), |(expert, row)| {
            self.rows[row].totals.uses[position * experts + expert] as f64
        });
        let uses = uses.dot(&self.weights);
        let load = |(uses, &tokens): (ndarray::ArrayView1<'_, f64>, &f64)| {
            layer_load(&uses.iter().map(|&uses| whole(uses)).collect::<Vec<_>>(), whole(tokens))
        };
        uses.columns().into_iter().zip(tokens).map(load).collect()
    }
}

/// Bounds of what [`LayerLoad`] has.
struct LoadBounds {
    activation_rates: Vec<Bounds>,
    deviation_percent: Bounds,
    max_load: Bounds,
    entropy: Bounds,
    utilization: Bounds,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of whole numbers, exact in f64")]
fn whole(sum: f64) -> u64 {
    sum as u64
}
