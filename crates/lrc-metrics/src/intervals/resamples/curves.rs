//! Hit rates of a trace in all resamples.

use std::ops::Range;

use expert_cache::curve::{CurveAccumulator, CurvePolicy};
use moe_trace::Stack;
use ndarray::Array2;
use rayon::prelude::*;

use super::{BoundReports, Bounds, TraceResamples};
use crate::trace::{HitRates, MetricsReport, ModelReport};

/// Hit rates are whole multiples of `2^-bits`, so that their sums over resamples are exact in whatever order they are added:
/// 30 bits for up to 2^22 sequences, fewer for more.
const RATE_BITS: u32 = 30;
/// Capacities of one policy that are looked at together in all layers.
const CAPACITIES: usize = 64;

/// The curves of a layer or of the pool of all.
struct CurveSet {
    /// Place of their sums in a row, behind the number of sequences.
    first: usize,
    capacities: usize,
    /// Whether a sequence uses it at all.
    used: bool,
    /// By resample; 1 if no sequence uses it, as its hit rates are 0 then, not none.
    sequences: Vec<f64>,
}

/// Bounds of some capacities of one policy: by layer, and of model, encoder and decoder.
struct PolicyBounds {
    layers: Vec<Vec<Bounds>>,
    model: Vec<Bounds>,
    stacks: [Option<Vec<Bounds>>; 2],
}

/// The mean over layers, each resample by itself: of the layers that its sequences use.
struct LayerMean {
    /// `[capacities x resamples]`.
    sum: Array2<f64>,
    /// Layers by resample.
    layers: Vec<f64>,
    /// Whether a sequence uses any of the layers; otherwise all rates are 0.
    used: bool,
}

impl LayerMean {
    fn new(capacities: usize, resamples: usize) -> LayerMean {
        LayerMean { sum: Array2::zeros((capacities, resamples)), layers: vec![0.0; resamples], used: false }
    }

    fn add(&mut self, set: &CurveSet, rates: &Array2<f64>) {
        if !set.used {
            return;
        }
        self.used = true;
        for (layers, &sequences) in self.layers.iter_mut().zip(&set.sequences) {
            *layers += f64::from(u8::from(sequences > 0.0));
        }
        for (mut sum, rates) in self.sum.rows_mut().into_iter().zip(rates.rows()) {
            let present = sum.iter_mut().zip(rates).filter(|(_, rate)| !rate.is_nan());
            present.for_each(|(sum, rate)| *sum += rate);
        }
    }

    /// Rates that are not a number are those of resamples that use no layer.
    fn finish(mut self) -> Array2<f64> {
        if self.used {
            for mut sum in self.sum.rows_mut() {
                sum.iter_mut().zip(&self.layers).for_each(|(sum, layers)| *sum /= layers);
            }
        }
        self.sum
    }
}

const STACKS: [Stack; 2] = [Stack::Encoder, Stack::Decoder];

impl TraceResamples<'_> {
    /// Hit rates of layers, stacks, model and pool.
    pub(super) fn bound_curves(&self, value: &MetricsReport, reports: &mut BoundReports) {
        let sets = self.curve_sets();
        let (layers, pool) = sets.split_at(value.layers.len());
        let measured = self.metrics.curves().next().map_or(&[][..], |curves| curves.accumulators());
        let policies: Vec<CurvePolicy> = measured.iter().map(CurveAccumulator::policy).collect();
        let capacities = layers.first().map_or(0, |set| set.capacities);
        let mut tasks = Vec::new();
        for policy in 0..policies.len() {
            let starts = (0..capacities).step_by(CAPACITIES);
            tasks.extend(starts.map(|start| (policy, start..capacities.min(start + CAPACITIES))));
        }
        let of_policy = |(policy, slots): &(usize, Range<usize>)| {
            self.of_policy(layers, (*policy, policies[*policy]), slots, value)
        };
        let bounds: Vec<PolicyBounds> = tasks.par_iter().map(of_policy).collect();
        reports.set(|report, side| {
            for ((policy, slots), bounds) in tasks.iter().zip(&bounds) {
                let set = |curves: &mut HitRates, bounds: &[Bounds]| {
                    if let Some(curve) = curves.get_mut(&policies[*policy]) {
                        curve[slots.clone()].iter_mut().zip(bounds).for_each(|(rate, bounds)| *rate = side(bounds));
                    }
                };
                for (layer, bounds) in report.layers.iter_mut().zip(&bounds.layers) {
                    set(&mut layer.curves, bounds);
                }
                set(&mut report.model.curves, &bounds.model);
                for (stack, bounds) in [&mut report.encoder, &mut report.decoder].into_iter().zip(&bounds.stacks) {
                    if let (Some(stack), Some(bounds)) = (stack, bounds) {
                        set(&mut stack.curves, bounds);
                    }
                }
            }
        });
        let (Some(set), Some(pool)) = (pool.first(), &value.pool) else { return };
        let of_policy = |(number, policy): (usize, &CurvePolicy)| {
            self.rate_bounds(&mut self.hit_rates(set, number, &(0..set.capacities)), &pool.curves[policy])
        };
        let bounds: Vec<Vec<Bounds>> = policies.par_iter().enumerate().map(of_policy).collect();
        reports.set(|report, side| {
            for (policy, bounds) in policies.iter().zip(&bounds) {
                if let Some(curve) = report.pool.as_mut().and_then(|pool| pool.curves.get_mut(policy)) {
                    *curve = bounds.iter().map(side).collect();
                }
            }
        });
    }

    fn curve_sets(&self) -> Vec<CurveSet> {
        let mut first = 0;
        let set = |curves: &[CurveAccumulator]| {
            let capacities = curves.first().map_or(0, |curve| curve.rate_sums().len());
            let used = curves.iter().any(|curve| curve.sequences() > 0);
            let sequences =
                if used { self.rate_sums(first..first + 1).row(0).to_vec() } else { vec![1.0; self.weights.ncols()] };
            let set = CurveSet { first: first + 1, capacities, used, sequences };
            first += 1 + curves.len() * capacities;
            set
        };
        self.metrics.curves().map(|curves| curves.accumulators()).map(set).collect()
    }

    fn of_policy(
        &self,
        sets: &[CurveSet],
        (number, policy): (usize, CurvePolicy),
        slots: &Range<usize>,
        value: &MetricsReport,
    ) -> PolicyBounds {
        let none = || LayerMean::new(slots.len(), self.weights.ncols());
        let mut model = none();
        let mut stacks = [None, None];
        let mut layers = Vec::new();
        for ((set, stack), report) in sets.iter().zip(self.metrics.selection().stacks()).zip(&value.layers) {
            let mut rates = self.hit_rates(set, number, slots);
            model.add(set, &rates);
            stacks[usize::from(*stack == STACKS[1])].get_or_insert_with(none).add(set, &rates);
            layers.push(self.rate_bounds(&mut rates, &report.curves[&policy][slots.clone()]));
        }
        let of = |mean: LayerMean, report: &ModelReport| {
            self.rate_bounds(&mut mean.finish(), &report.curves[&policy][slots.clone()])
        };
        let [encoder, decoder] = stacks;
        let stacks = [(encoder, &value.encoder), (decoder, &value.decoder)]
            .map(|(mean, report)| Some(of(mean?, report.as_ref()?)));
        let model = match &stacks {
            // A model of one stack is that stack.
            [Some(bounds), None] | [None, Some(bounds)] => bounds.clone(),
            _ => of(model, &value.model),
        };
        PolicyBounds { layers, model, stacks }
    }

    /// Hit rates of one policy at some capacities, `[capacities x resamples]`.
    fn hit_rates(&self, set: &CurveSet, policy: usize, slots: &Range<usize>) -> Array2<f64> {
        let first = set.first + policy * set.capacities;
        let mut rates = self.rate_sums(first + slots.start..first + slots.end);
        for mut rates in rates.rows_mut() {
            rates.iter_mut().zip(&set.sequences).for_each(|(rate, sequences)| *rate /= sequences);
        }
        rates
    }

    /// Reorders the rates.
    fn rate_bounds(&self, rates: &mut Array2<f64>, values: &[f64]) -> Vec<Bounds> {
        let rows = rates.rows_mut().into_iter().zip(values);
        let interval = |(mut row, &value): (ndarray::ArrayViewMut1<'_, f64>, &f64)| {
            self.bootstrap.interval(value, row.as_slice_mut().expect("a row of a matrix in standard order"))
        };
        rows.map(interval).collect()
    }

    /// Resampled sums of some columns of the hit rates, `[columns x resamples]`.
    #[expect(clippy::cast_precision_loss, reason = "a sum of rates in multiples of 2^-bits is below 2^53")]
    fn rate_sums(&self, columns: Range<usize>) -> Array2<f64> {
        let more = (self.metrics.sequences() >> 22).checked_ilog2().map_or(0, |bits| bits + 1);
        let bits = RATE_BITS.saturating_sub(more);
        let rate = |(column, row): (usize, usize)| {
            let rounded = (self.rows[row].totals.rates[columns.start + column] >> (63 - bits)).div_ceil(2);
            rounded as f64 / f64::from(1u32 << bits)
        };
        Array2::from_shape_fn((columns.len(), self.rows.len()), rate).dot(&self.weights)
    }
}
