//! SRP of a trace in all resamples.

use std::{collections::BTreeMap, ops::Range};

use moe_trace::Stack;
use ndarray::{Array2, s};
use rayon::prelude::*;

use super::{
    BoundReports, Bounds, Side, TraceResamples,
    threshold::{ThresholdResamples, threshold_resamples},
};
use crate::{
    srp::SrpValue,
    trace::{MetricsReport, ModelReport},
};

/// Sums of one matrix product, about: its result stays in the second cache.
const SUMS: usize = 256;
/// Resamples of one matrix product.
const BLOCK: usize = 256;
/// The largest sum over groups; more would not be exact as `f32` in a resample that draws large groups.
const LARGEST: u64 = 1 << 22;

/// Bounds of SRP, rho and activation rate.
type SrpBounds = [Bounds; 3];

/// Bounds at one window length.
struct GroupBounds {
    layers: Vec<SrpBounds>,
    encoder: Option<SrpBounds>,
    decoder: Option<SrpBounds>,
    model: SrpBounds,
}

impl TraceResamples<'_> {
    /// SRP of single experts.
    pub(super) fn bound_srp_of_experts(&self, value: &MetricsReport, reports: &mut BoundReports) {
        let experts = self.metrics.selection().experts();
        let mut tasks = Vec::new();
        for position in 0..value.layers.len() {
            for (number, &window) in self.fitting.iter().enumerate() {
                let few = (SUMS / window).clamp(1, experts);
                let starts = (0..experts).step_by(few);
                tasks.extend(starts.map(|first| (position, number, first..experts.min(first + few))));
            }
        }
        let weights = self.weights.mapv(exact_f32);
        let bounds: Vec<Vec<SrpBounds>> = tasks
            .par_iter()
            .map(|(position, number, experts)| {
                let of = |expert: usize| value.layers[*position].experts[expert].srp[&self.lengths[*number]];
                self.of_experts(*position, *number, experts.clone(), &weights, of)
            })
            .collect();
        reports.set(|report, side| {
            for ((position, number, experts), bounds) in tasks.iter().zip(&bounds) {
                for (expert, bounds) in report.layers[*position].experts[experts.clone()].iter_mut().zip(bounds) {
                    set_srp(&mut expert.srp, self.lengths[*number], bounds, side);
                }
            }
        });
    }

    /// SRP of layers, stacks and model.
    pub(super) fn bound_srp_of_groups(&self, value: &MetricsReport, reports: &mut BoundReports) {
        let numbers = 0..self.fitting.len();
        let bounds: Vec<GroupBounds> = numbers.into_par_iter().map(|number| self.of_groups(number, value)).collect();
        reports.set(|report, side| {
            for (&window, bounds) in self.fitting.iter().zip(&bounds) {
                set_srp(&mut report.model.srp, window, &bounds.model, side);
                for (layer, bounds) in report.layers.iter_mut().zip(&bounds.layers) {
                    set_srp(&mut layer.srp, window, bounds, side);
                }
                for (stack, bounds) in [(&mut report.encoder, &bounds.encoder), (&mut report.decoder, &bounds.decoder)]
                {
                    if let (Some(stack), Some(bounds)) = (stack, bounds) {
                        set_srp(&mut stack.srp, window, bounds, side);
                    }
                }
            }
        });
    }

    /// Some experts of a layer.
    fn of_experts(
        &self,
        position: usize,
        number: usize,
        experts: Range<usize>,
        weights: &Array2<f32>,
        value: impl Fn(usize) -> SrpValue,
    ) -> Vec<SrpBounds> {
        let window = self.lengths[number];
        // How often each expert is used at most, and the largest sum.
        let mut total = vec![0u64; window];
        let (mut used, mut largest) = (Vec::new(), 0);
        for expert in experts.clone() {
            total.fill(0);
            for group in self.rows {
                total
                    .iter_mut()
                    .zip(group.at_least.of(position, number, expert))
                    .for_each(|(sum, &more)| *sum += u64::from(more));
            }
            used.push(total.partition_point(|&windows| windows > 0));
            largest = total[0].max(largest);
        }
        // Beyond a corpus of 2^22 windows of one expert last bits are dropped.
        let shift = (largest / LARGEST).checked_ilog2().map_or(0, |bits| bits + 1);
        let columns: usize = used.iter().sum();
        let mut sums = Vec::with_capacity(self.rows.len() * columns);
        for group in self.rows {
            for (expert, &used) in experts.clone().zip(&used) {
                let of_group = group.at_least.of(position, number, expert);
                sums.extend(of_group.iter().map(|&windows| narrow(windows >> shift)));
                sums.resize(sums.len() + used - of_group.len(), 0.0);
            }
        }
        let sums = Array2::from_shape_vec((self.rows.len(), columns), sums).expect("a row for each group");
        let windows: Vec<f64> =
            self.windows.row(number).iter().map(|windows| windows / f64::from(1u32 << shift)).collect();
        let mut figures = vec![ThresholdResamples::default(); used.len()];
        for start in (0..windows.len()).step_by(BLOCK) {
            let block = start..windows.len().min(start + BLOCK);
            let resampled = sums.t().dot(&weights.slice(s![.., block.clone()]));
            let mut resampled = resampled.as_slice().expect("a product in standard order");
            for (figures, &used) in figures.iter_mut().zip(&used) {
                let (of_expert, rest) = resampled.split_at(used * block.len());
                threshold_resamples(of_expert, window, &windows[block.clone()], figures);
                resampled = rest;
            }
        }
        experts.zip(figures).map(|(expert, figures)| self.srp_bounds(&value(expert), figures)).collect()
    }

    /// Layers, stacks and model at one window length.
    fn of_groups(&self, number: usize, value: &MetricsReport) -> GroupBounds {
        let (window, experts) = (self.lengths[number], self.metrics.selection().experts() as f64);
        let resamples = self.weights.ncols();
        let bounds = |pooled: &Array2<f64>, layers: &[f64], value: &SrpValue| {
            let of_expert = self.windows.row(number);
            // Without any use the value is 0, and none without a window.
            let windows: Vec<f64> =
                of_expert.iter().zip(layers).map(|(windows, layers)| windows * layers.max(1.0) * experts).collect();
            let mut figures = ThresholdResamples::default();
            let pooled = pooled.as_slice().expect("a product in standard order");
            threshold_resamples(pooled, window, &windows, &mut figures);
            self.srp_bounds(value, figures)
        };
        let stacks = self.metrics.selection().stacks();
        // Pooled counts, and the layers that each resample uses.
        let none = || (Array2::zeros((window, resamples)), vec![0.0; resamples]);
        let ((mut encoder, mut of_encoder), (mut decoder, mut of_decoder)) = (none(), none());
        let mut layers = Vec::new();
        for (position, stack) in stacks.iter().enumerate() {
            let pooled = self.pooled(position, number).t().dot(&self.weights);
            layers.push(bounds(&pooled, &vec![1.0; resamples], &value.layers[position].srp[&window]));
            let (sum, count) = match stack {
                Stack::Encoder => (&mut encoder, &mut of_encoder),
                Stack::Decoder => (&mut decoder, &mut of_decoder),
            };
            *sum += &pooled;
            let uses = count.iter_mut().zip(pooled.row(0));
            uses.for_each(|(layers, &used)| *layers += f64::from(u8::from(used > 0.0)));
        }
        let of = |pooled, layers: &[f64], report: &Option<ModelReport>| {
            report.as_ref().map(|report| bounds(pooled, layers, &report.srp[&window]))
        };
        let (encoder_bounds, decoder_bounds) =
            (of(&encoder, &of_encoder, &value.encoder), of(&decoder, &of_decoder, &value.decoder));
        let model = match (encoder_bounds, decoder_bounds) {
            // A model of one stack is that stack.
            (Some(bounds), None) | (None, Some(bounds)) => bounds,
            _ => {
                let used: Vec<f64> = of_encoder.iter().zip(&of_decoder).map(|(one, other)| one + other).collect();
                bounds(&(encoder + decoder), &used, &value.model.srp[&window])
            }
        };
        GroupBounds { layers, encoder: encoder_bounds, decoder: decoder_bounds, model }
    }

    /// Windows of all experts of a layer by their uses at least, from 1 on, `[groups x window]`.
    fn pooled(&self, position: usize, number: usize) -> Array2<f64> {
        let (window, experts) = (self.lengths[number], self.metrics.selection().experts());
        let mut pooled = Array2::zeros((self.rows.len(), window));
        for (group, mut pooled) in self.rows.iter().zip(pooled.rows_mut()) {
            for expert in 0..experts {
                let at_least = group.at_least.of(position, number, expert);
                pooled.iter_mut().zip(at_least).for_each(|(sum, &windows)| *sum += f64::from(windows));
            }
        }
        pooled
    }

    fn srp_bounds(&self, value: &SrpValue, mut figures: ThresholdResamples) -> SrpBounds {
        [
            self.bootstrap.interval(value.srp, &mut figures.srp),
            self.bootstrap.interval(value.rho, &mut figures.rho),
            self.bootstrap.interval(value.activation_rate, &mut figures.activation_rate),
        ]
    }
}

/// Replaces the figures of a window length; thresholds stay.
fn set_srp(srp: &mut BTreeMap<usize, SrpValue>, window: usize, bounds: &SrpBounds, side: Side) {
    if let Some(found) = srp.get_mut(&window) {
        let [srp, rho, activation_rate] = bounds.each_ref().map(side);
        *found = SrpValue { srp, rho, activation_rate, threshold: found.threshold };
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a number of draws")]
fn exact_f32(draws: f64) -> f32 {
    draws as f32
}

#[expect(clippy::cast_precision_loss, reason = "at most 2^22")]
fn narrow(windows: u32) -> f32 {
    windows as f32
}
