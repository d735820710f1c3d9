//! The figures of a trace in all resamples.

use std::collections::BTreeMap;

use expert_cache::curve::CurveAccumulator;
use moe_trace::Stack;
use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::{
    Bootstrap, Intervals, LayerLoad, MetricsReport, ModelReport, SrpValue, TraceMetrics,
    group_row::GroupRow,
    load::layer_load,
    srp_resamples::{SrpResamples, srp_resamples},
};

/// Hit rates are whole multiples of `2^-bits`, so that their sums over resamples are exact in whatever order they are added:
/// 30 bits for up to 2^22 sequences, fewer for more.
const RATE_BITS: u32 = 30;
/// Counts of one matrix product, about: its result stays in the second cache.
const COUNTS: usize = 256;
/// Resamples of one matrix product.
const BLOCK: usize = 256;
/// The largest sum of a count over groups; more would not be exact as `f32` in a resample that draws large groups.
const LARGEST: u64 = 1 << 22;

/// Lower and upper bound.
type Bounds = (f64, f64);

/// The sums of groups, and how often each resample draws each group.
pub(crate) struct TraceResamples<'a> {
    bootstrap: &'a Bootstrap,
    metrics: &'a TraceMetrics,
    lengths: &'a [usize],
    rows: &'a [&'a GroupRow],
    /// `[groups x resamples]`.
    weights: Array2<f64>,
    /// Windows of an expert by window length, `[lengths x resamples]`.
    windows: Array2<f64>,
}

impl<'a> TraceResamples<'a> {
    pub(crate) fn new(
        bootstrap: &'a Bootstrap,
        metrics: &'a TraceMetrics,
        lengths: &'a [usize],
        rows: &'a [&'a GroupRow],
    ) -> TraceResamples<'a> {
        let weights = bootstrap.weights(rows.len());
        let windows =
            Array2::from_shape_fn((lengths.len(), rows.len()), |(number, row)| rows[row].windows[number] as f64);
        let windows = windows.dot(&weights);
        TraceResamples { bootstrap, metrics, lengths, rows, weights, windows }
    }

    /// The interval of every figure of a report of the whole.
    pub(crate) fn intervals(&self, value: MetricsReport) -> Intervals<MetricsReport> {
        let (mut low, mut high) = (value.clone(), value.clone());
        self.experts(&value, &mut low, &mut high);
        self.groups(&value, &mut low, &mut high);
        self.curves(&value, &mut low, &mut high);
        self.loads(&value, &mut low, &mut high);
        Intervals { value, low, high }
    }

    /// SRP of single experts.
    fn experts(&self, value: &MetricsReport, low: &mut MetricsReport, high: &mut MetricsReport) {
        let experts = self.metrics.selection().experts();
        let mut tasks = Vec::new();
        for position in 0..value.layers.len() {
            for (number, &window) in self.lengths.iter().enumerate() {
                let few = (COUNTS / window).clamp(1, experts);
                tasks
                    .extend((0..experts).step_by(few).map(|first| (position, number, first..experts.min(first + few))));
            }
        }
        let weights = self.weights.mapv(exact_f32);
        let bounds: Vec<Vec<[Bounds; 3]>> = tasks
            .par_iter()
            .map(|(position, number, experts)| {
                let of = |expert: usize| value.layers[*position].experts[expert].srp[&self.lengths[*number]];
                self.of_experts(*position, *number, experts.clone(), &weights, of)
            })
            .collect();
        for ((position, number, experts), bounds) in tasks.into_iter().zip(bounds) {
            let window = self.lengths[number];
            for (expert, bounds) in experts.zip(bounds) {
                let srp = |report: &'_ mut MetricsReport, bound: fn(Bounds) -> f64| {
                    set_srp(&mut report.layers[position].experts[expert].srp, window, bounds.map(bound));
                };
                srp(low, |bounds| bounds.0);
                srp(high, |bounds| bounds.1);
            }
        }
    }

    /// Bounds of SRP, rho and activation rate of some experts of a layer.
    fn of_experts(
        &self,
        position: usize,
        number: usize,
        experts: std::ops::Range<usize>,
        weights: &Array2<f32>,
        value: impl Fn(usize) -> SrpValue,
    ) -> Vec<[Bounds; 3]> {
        let (window, resamples) = (self.lengths[number], self.weights.ncols());
        let all: usize = self.lengths.iter().sum();
        let before: usize = self.lengths[..number].iter().sum();
        let at = self.metrics.selection().experts() * (position * all + before);
        let row = |expert: usize| at + expert * window..at + (expert + 1) * window;
        // How far each expert is used, and the largest sum of a count.
        let mut sums = vec![0u64; window];
        let (mut used, mut largest) = (Vec::new(), 0);
        for expert in experts.clone() {
            sums.fill(0);
            for group in self.rows {
                sums.iter_mut().zip(&group.counts[row(expert)]).for_each(|(sum, &more)| *sum += u64::from(more));
            }
            used.push(sums.iter().rposition(|&sum| sum > 0).map_or(0, |last| last + 1));
            largest = sums.iter().copied().fold(largest, u64::max);
        }
        // Beyond a corpus of 2^22 windows of one count its last bits are dropped.
        let shift = (largest / LARGEST).checked_ilog2().map_or(0, |bits| bits + 1);
        let columns: usize = used.iter().sum();
        let mut counts = Vec::with_capacity(self.rows.len() * columns);
        for group in self.rows {
            for (expert, &used) in experts.clone().zip(&used) {
                let first = row(expert).start;
                counts.extend(group.counts[first..first + used].iter().map(|&count| narrow(count >> shift)));
            }
        }
        let counts = Array2::from_shape_vec((self.rows.len(), columns), counts).expect("a row for each group");
        let windows: Vec<f64> =
            self.windows.row(number).iter().map(|windows| windows / f64::from(1u32 << shift)).collect();
        let mut figures: Vec<[Vec<f64>; 3]> = vec![Default::default(); used.len()];
        for first in (0..resamples).step_by(BLOCK) {
            let block = first..resamples.min(first + BLOCK);
            let resampled = counts.t().dot(&weights.slice(s![.., block.clone()]));
            let mut top = 0;
            for (figures, &used) in figures.iter_mut().zip(&used) {
                let counts = resampled.slice(s![top..top + used, ..]);
                let of = srp_resamples(&counts, window, &windows[block.clone()]);
                figures.iter_mut().zip([of.srp, of.rho, of.activation_rate]).for_each(|(all, more)| all.extend(more));
                top += used;
            }
        }
        let bounds = |(expert, [srp, rho, rate]): (usize, [Vec<f64>; 3])| {
            self.srp_bounds(&value(expert), SrpResamples { srp, rho, activation_rate: rate })
        };
        experts.zip(figures).map(bounds).collect()
    }

    fn srp_bounds(&self, value: &SrpValue, mut resamples: SrpResamples) -> [Bounds; 3] {
        [
            self.bootstrap.interval(value.srp, &mut resamples.srp),
            self.bootstrap.interval(value.rho, &mut resamples.rho),
            self.bootstrap.interval(value.activation_rate, &mut resamples.activation_rate),
        ]
    }

    /// SRP of layers, stacks and model.
    fn groups(&self, value: &MetricsReport, low: &mut MetricsReport, high: &mut MetricsReport) {
        let stacks = self.metrics.selection().stacks();
        let (lengths, experts) = (self.lengths, self.metrics.selection().experts());
        let bounds = |number: usize, pooled: &Array2<f64>, layers: usize, value: &SrpValue| {
            let windows: Vec<f64> =
                self.windows.row(number).iter().map(|windows| windows * (layers * experts) as f64).collect();
            self.srp_bounds(value, srp_resamples(&pooled.view(), lengths[number], &windows))
        };
        let one = |(number, &window): (usize, &usize)| {
            let mut of_stacks =
                [(Stack::Encoder, Array2::zeros((0, 0)), 0), (Stack::Decoder, Array2::zeros((0, 0)), 0)];
            for (_, pooled, _) in &mut of_stacks {
                *pooled = Array2::zeros((window, self.weights.ncols()));
            }
            let mut of_layers = Vec::new();
            for (position, stack) in stacks.iter().enumerate() {
                let pooled = self.pooled(position, number).t().dot(&self.weights);
                of_layers.push(bounds(number, &pooled, 1, &value.layers[position].srp[&window]));
                for (of_stack, sum, layers) in &mut of_stacks {
                    if of_stack == stack {
                        *sum += &pooled;
                        *layers += 1;
                    }
                }
            }
            let [(_, encoder, of_encoder), (_, decoder, of_decoder)] = of_stacks;
            let of = |pooled, layers, report: &Option<ModelReport>| {
                report.as_ref().map(|report| bounds(number, pooled, layers, &report.srp[&window]))
            };
            let encoder_bounds = of(&encoder, of_encoder, &value.encoder);
            let decoder_bounds = of(&decoder, of_decoder, &value.decoder);
            let model = match (encoder_bounds, decoder_bounds) {
                // A model of one stack is that stack.
                (Some(bounds), None) | (None, Some(bounds)) => bounds,
                _ => bounds(number, &(encoder + decoder), stacks.len(), &value.model.srp[&window]),
            };
            (of_layers, encoder_bounds, decoder_bounds, model)
        };
        let all: Vec<_> = lengths.par_iter().enumerate().map(one).collect();
        for (&window, (layers, encoder, decoder, model)) in lengths.iter().zip(all) {
            for (report, bound) in
                [(&mut *low, (|bounds| bounds.0) as fn(Bounds) -> f64), (&mut *high, |bounds| bounds.1)]
            {
                set_srp(&mut report.model.srp, window, model.map(bound));
                for (layer, bounds) in report.layers.iter_mut().zip(&layers) {
                    set_srp(&mut layer.srp, window, bounds.map(bound));
                }
                for (stack, bounds) in [(&mut report.encoder, encoder), (&mut report.decoder, decoder)] {
                    if let (Some(stack), Some(bounds)) = (stack, bounds) {
                        set_srp(&mut stack.srp, window, bounds.map(bound));
                    }
                }
            }
        }
    }

    /// Windows of all experts of a layer by their uses from 1 on, `[groups x window]`.
    fn pooled(&self, position: usize, number: usize) -> Array2<f64> {
        let (window, experts) = (self.lengths[number], self.metrics.selection().experts());
        let all: usize = self.lengths.iter().sum();
        let before: usize = self.lengths[..number].iter().sum();
        let at = experts * (position * all + before);
        let mut pooled = Array2::zeros((self.rows.len(), window));
        for (group, mut pooled) in self.rows.iter().zip(pooled.rows_mut()) {
            for counts in group.counts[at..at + experts * window].chunks_exact(window) {
                pooled.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += f64::from(count));
            }
        }
        pooled
    }

    /// Hit rates of layers, stacks, model and pool.
    fn curves(&self, value: &MetricsReport, low: &mut MetricsReport, high: &mut MetricsReport) {
        let layers = value.layers.len();
        let accumulators: Vec<&[CurveAccumulator]> =
            self.metrics.curves().map(|curves| curves.accumulators()).collect();
        // Where the sums of each curve set lie in a row: the number of sequences, then the policies.
        let capacities = |curves: &[CurveAccumulator]| curves.first().map_or(0, |curve| curve.rate_sums().len());
        let mut first = vec![0];
        for curves in &accumulators {
            first.push(first[first.len() - 1] + 1 + curves.len() * capacities(curves));
        }
        let sequences: Vec<Vec<f64>> = (0..accumulators.len())
            .map(|set| {
                // A layer that no sequence uses has hit rates of 0, not none.
                let unused = accumulators[set].iter().all(|curve| curve.sequences() == 0);
                let drawn = self.rates(first[set]..first[set] + 1);
                if unused { vec![1.0; self.weights.ncols()] } else { drawn.row(0).to_vec() }
            })
            .collect();
        let rates = |set: usize, columns: std::ops::Range<usize>| {
            let mut rates = self.rates(first[set] + 1 + columns.start..first[set] + 1 + columns.end);
            for mut rates in rates.rows_mut() {
                rates.iter_mut().zip(&sequences[set]).for_each(|(rate, sequences)| *rate /= sequences);
            }
            rates
        };
        let bounds = |rates: &mut Array2<f64>, values: &[f64]| -> Vec<Bounds> {
            let rows = rates.rows_mut().into_iter().zip(values);
            let interval = |(mut row, &value): (ndarray::ArrayViewMut1<'_, f64>, &f64)| {
                self.bootstrap.interval(value, row.as_slice_mut().expect("a row of a matrix in standard order"))
            };
            rows.map(interval).collect()
        };
        let labels: Vec<String> = accumulators
            .first()
            .map_or(Vec::new(), |curves| curves.iter().map(|curve| curve.policy().label()).collect());
        // A task looks at one policy and some capacities in all layers, in their order.
        let slots = accumulators.first().map_or(0, |curves| capacities(curves));
        let mut tasks = Vec::new();
        for policy in 0..labels.len() {
            tasks.extend((0..slots).step_by(COUNTS / 4).map(|start| (policy, start..slots.min(start + COUNTS / 4))));
        }
        let stacks = self.metrics.selection().stacks();
        let task = |(policy, slots_of): &(usize, std::ops::Range<usize>)| {
            let label = &labels[*policy];
            let columns = policy * slots + slots_of.start..policy * slots + slots_of.end;
            let mut sums: BTreeMap<Option<bool>, (Array2<f64>, f64)> = BTreeMap::new();
            let mut of_layers = Vec::new();
            for (position, stack) in stacks.iter().enumerate() {
                let mut rates = rates(position, columns.clone());
                let encoder = *stack == Stack::Encoder;
                for group in [None, Some(encoder)] {
                    let (sum, count) = sums
                        .entry(group)
                        .or_insert_with(|| (Array2::zeros((columns.len(), self.weights.ncols())), 0.0));
                    *sum += &rates;
                    *count += 1.0;
                }
                of_layers.push(bounds(&mut rates, &value.layers[position].curves[label][slots_of.clone()]));
            }
            let mut of_group = |group: Option<bool>, report: Option<&ModelReport>| {
                let (mut sum, count) = sums.remove(&group)?;
                sum.mapv_inplace(|sum| sum / count);
                Some(bounds(&mut sum, &report?.curves[label][slots_of.clone()]))
            };
            let groups = [
                of_group(None, Some(&value.model)),
                of_group(Some(true), value.encoder.as_ref()),
                of_group(Some(false), value.decoder.as_ref()),
            ];
            (of_layers, groups)
        };
        let results: Vec<_> = tasks.par_iter().map(task).collect();
        for ((policy, slots_of), (of_layers, groups)) in tasks.iter().zip(results) {
            for (report, bound) in
                [(&mut *low, (|bounds| bounds.0) as fn(&Bounds) -> f64), (&mut *high, |bounds| bounds.1)]
            {
                let set = |curves: &mut BTreeMap<String, Vec<f64>>, bounds: &[Bounds]| {
                    if let Some(curve) = curves.get_mut(&labels[*policy]) {
                        curve[slots_of.clone()].iter_mut().zip(bounds).for_each(|(rate, bounds)| *rate = bound(bounds));
                    }
                };
                for (layer, bounds) in report.layers.iter_mut().zip(&of_layers) {
                    set(&mut layer.curves, bounds);
                }
                let reports = [Some(&mut report.model), report.encoder.as_mut(), report.decoder.as_mut()];
                for (report, bounds) in reports.into_iter().zip(&groups) {
                    if let (Some(report), Some(bounds)) = (report, bounds) {
                        set(&mut report.curves, bounds);
                    }
                }
            }
        }
        if let Some(pool) = &value.pool {
            let of_policy = |(policy, label): (usize, &String)| {
                let slots = capacities(accumulators[layers]);
                bounds(&mut rates(layers, policy * slots..(policy + 1) * slots), &pool.curves[label])
            };
            let all: Vec<Vec<Bounds>> = labels.par_iter().enumerate().map(of_policy).collect();
            for (label, bounds) in labels.iter().zip(all) {
                for (report, bound) in
                    [(&mut *low, (|bounds| bounds.0) as fn(&Bounds) -> f64), (&mut *high, |bounds| bounds.1)]
                {
                    if let Some(pool) = &mut report.pool {
                        pool.curves.insert(label.clone(), bounds.iter().map(bound).collect());
                    }
                }
            }
        }
    }

    /// Resampled sums of some columns of the hit rates, `[columns x resamples]`.
    #[expect(clippy::cast_precision_loss, reason = "a sum of rates in multiples of 2^-bits is below 2^53")]
    fn rates(&self, columns: std::ops::Range<usize>) -> Array2<f64> {
        let more = (self.metrics.sequences() >> 22).checked_ilog2().map_or(0, |bits| bits + 1);
        let bits = RATE_BITS.saturating_sub(more);
        let rate = |(column, row): (usize, usize)| {
            let rounded = (self.rows[row].totals.rates[columns.start + column] >> (63 - bits)).div_ceil(2);
            rounded as f64 / f64::from(1u32 << bits)
        };
        Array2::from_shape_fn((columns.len(), self.rows.len()), rate).dot(&self.weights)
    }

    /// Load of layers.
    fn loads(&self, value: &MetricsReport, low: &mut MetricsReport, high: &mut MetricsReport) {
        let (experts, resamples) = (self.metrics.selection().experts(), self.weights.ncols());
        let column =
            |of: &dyn Fn(&GroupRow) -> u64| -> Vec<f64> { self.rows.iter().map(|row| of(row) as f64).collect() };
        let tokens = ndarray::aview1(&column(&|row| row.totals.tokens)).dot(&self.weights);
        let layer = |position: usize| -> (LayerLoad, LayerLoad) {
            let uses = Array2::from_shape_fn((experts, self.rows.len()), |(expert, row)| {
                self.rows[row].totals.uses[position * experts + expert] as f64
            });
            let uses = uses.dot(&self.weights);
            let loads: Vec<LayerLoad> = (0..resamples)
                .map(|at| {
                    layer_load(&uses.column(at).iter().map(|&uses| whole(uses)).collect::<Vec<_>>(), whole(tokens[at]))
                })
                .collect();
            let value = &value.layers[position].load;
            let bounds = |figure: &dyn Fn(&LayerLoad) -> f64| {
                self.bootstrap.interval(figure(value), &mut loads.iter().map(figure).collect::<Vec<_>>())
            };
            let (mut low, mut high) = (value.clone(), value.clone());
            for expert in 0..experts {
                (low.activation_rates[expert], high.activation_rates[expert]) =
                    bounds(&|load| load.activation_rates[expert]);
            }
            (low.deviation_percent, high.deviation_percent) = bounds(&|load| load.deviation_percent);
            (low.max_load, high.max_load) = bounds(&|load| load.max_load);
            (low.entropy, high.entropy) = bounds(&|load| load.entropy);
            (low.utilization, high.utilization) = bounds(&|load| load.utilization);
            (low, high)
        };
        let all: Vec<(LayerLoad, LayerLoad)> = (0..value.layers.len()).into_par_iter().map(layer).collect();
        for ((low, high), bounds) in low.layers.iter_mut().zip(&mut high.layers).zip(all) {
            (low.load, high.load) = bounds;
        }
    }
}

/// Replaces the figures of a window length; thresholds stay.
fn set_srp(srp: &mut BTreeMap<usize, SrpValue>, window: usize, [value, rho, activation_rate]: [f64; 3]) {
    if let Some(found) = srp.get_mut(&window) {
        *found = SrpValue { srp: value, rho, activation_rate, threshold: found.threshold };
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of whole numbers, exact in f64")]
fn whole(sum: f64) -> u64 {
    sum as u64
}

#[expect(clippy::cast_possible_truncation, reason = "a number of draws")]
fn exact_f32(draws: f64) -> f32 {
    draws as f32
}

#[expect(clippy::cast_precision_loss, reason = "at most 2^22")]
fn narrow(count: u32) -> f32 {
    count as f32
}
