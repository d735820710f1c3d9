//! All metrics of a trace in one pass.

pub mod by_policy;
mod curves;
mod report;

pub use curves::Curves;
pub use report::{ExpertReport, HitRates, LayerReport, MetricsReport, ModelReport, PoolReport};

pub(crate) use report::matrix;

use std::collections::BTreeMap;

use expert_cache::Convention;
use expert_cache::curve::{Accesses, ColdStart, CurvePolicy};
use moe_trace::{Geometry, LayerId, Sequence, Stack};
use report::mean_curves;
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, MOST, Restore, Selection, checked_serde, intact, within},
    error::{MetricError, Result, same},
    experts::LoadBalance,
    srp::{Srp, SrpReport, SrpValue},
};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsOptions {
    /// Window lengths of SRP and of SCH, in tokens.
    pub windows: Vec<usize>,
    /// The layers to look at; `None` for all.
    pub layers: Option<Vec<LayerId>>,
    /// Whether to measure a cache that all selected layers share, too.
    pub pool: bool,
    /// How a first touch counts in the curves.
    pub cold_start: ColdStart,
}

impl Default for MetricsOptions {
    /// The windows of the source paper (4, 16, 64, 256), all layers, no pool, free first touches.
    fn default() -> MetricsOptions {
        MetricsOptions { windows: vec![4, 16, 64, 256], layers: None, pool: false, cold_start: ColdStart::Free }
    }
}

impl MetricsOptions {
    /// Returns about how many bytes it takes to measure a trace: one accumulator per thread and `reports` reports.
    ///
    /// The sums of curves, the counts of SRP and the values of each expert are included. Everything else is small beside them.
    pub fn memory_bytes(&self, geometry: &Geometry, threads: usize, reports: usize) -> u64 {
        // The nodes of an expert's map from window length to value hold 11 entries, and have a header and that of the allocator.
        const VALUES_PER_NODE: usize = 11;
        const NODE_HEADERS: usize = 32;
        let size = |bytes: usize| bytes as u128;
        let layers = self.layers.as_ref().map_or(geometry.layers(), Vec::len);
        let experts = size(layers) * size(geometry.experts()) * if self.pool { 2 } else { 1 };
        let policies = size(policies_of(&self.windows).len());
        let uses: u128 = self.windows.iter().map(|&window| size(window) + 1).sum();
        let lengths = size(self.windows.len());
        let counts = uses * size(size_of::<u64>()) + lengths * size(size_of::<Vec<u32>>());
        let accumulator = policies * size(size_of::<u128>()) + counts;
        let nodes = size(self.windows.len().div_ceil(VALUES_PER_NODE));
        let node = size(VALUES_PER_NODE) * size(size_of::<(usize, SrpValue)>()) + size(NODE_HEADERS);
        let report = (policies + 1) * size(size_of::<f64>()) + size(size_of::<ExpertReport>()) + nodes * node;
        let bytes = experts.saturating_mul(size(threads) * accumulator + size(reports) * report);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// SRP, hit-rate curves and load of a trace; each layer of a sequence is read once for all of them.
///
/// The curves are LRU, LFU, Belady with and without bypass, and SCH of every window length, in the paper convention. See the
/// [crate](crate) for an example.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct TraceMetrics {
    selection: Selection,
    srp: Srp,
    load: LoadBalance,
    /// By layer.
    curves: Vec<Curves>,
    pool: Option<Curves>,
    top_k: usize,
    sequences: u64,
    tokens: u64,
    #[serde(skip)]
    scratch: Accesses,
}

impl TraceMetrics {
    /// Creates the metrics of no sequence.
    ///
    /// # Errors
    /// [`MetricError::Window`](crate::MetricError::Window), [`MetricError::NoLayers`](crate::MetricError::NoLayers), or
    /// a layer out of range.
    pub fn new(geometry: &Geometry, options: &MetricsOptions) -> Result<TraceMetrics> {
        let selection = match &options.layers {
            Some(layers) => Selection::new(geometry, layers)?,
            None => Selection::all(geometry),
        };
        let layers = selection.layers();
        let srp = Srp::of_layers(geometry, layers, &options.windows)?;
        let policies = policies_of(&srp.windows());
        let curves = |layers: &[LayerId]| Curves::new(geometry, layers, &policies, options.cold_start);
        Ok(TraceMetrics {
            srp,
            load: LoadBalance::of_layers(geometry, layers)?,
            curves: layers.iter().map(|&layer| curves(&[layer])).collect::<Result<_>>()?,
            pool: if options.pool { Some(curves(layers)?) } else { None },
            top_k: geometry.top_k(),
            sequences: 0,
            tokens: 0,
            scratch: Accesses::new(),
            selection,
        })
    }

    /// The measurements of the sequences so far, without SRP at window lengths that fit into no sequence.
    ///
    /// # Errors
    /// [`MetricError::WindowTooLong`](crate::MetricError::WindowTooLong) if no window length fits into a sequence.
    pub fn finish(&self) -> Result<MetricsReport> {
        Ok(self.report(&self.srp.finish()?))
    }

    /// The measurements with SRP that was measured apart, by window length.
    pub(crate) fn report(&self, srp: &BTreeMap<usize, SrpReport>) -> MetricsReport {
        let by_window = |value: &dyn Fn(&SrpReport) -> SrpValue| -> BTreeMap<usize, SrpValue> {
            srp.iter().map(|(&window, report)| (window, value(report))).collect()
        };
        let mut layers = Vec::new();
        for ((position, load), curves) in self.load.finish().into_iter().enumerate().zip(&self.curves) {
            let expert = |expert| ExpertReport { srp: by_window(&|report| report.layers[position].experts[expert]) };
            layers.push(LayerReport {
                layer: self.selection.layers()[position].index(),
                srp: by_window(&|report| report.layers[position].value),
                experts: (0..self.selection.experts()).map(expert).collect(),
                curves: hit_rates(curves),
                load,
            });
        }
        let stacks = || layers.iter().zip(self.selection.stacks());
        let by_stack = |stack: Stack, value: fn(&SrpReport) -> Option<SrpValue>| -> Option<ModelReport> {
            let srp = srp.iter().filter_map(|(&window, report)| Some((window, value(report)?))).collect();
            let curves = mean_curves(stacks().filter(|(_, of_layer)| **of_layer == stack).map(|(layer, _)| layer));
            self.selection.stacks().contains(&stack).then_some(ModelReport { srp, curves })
        };
        MetricsReport {
            sequences: self.sequences,
            tokens: self.tokens,
            top_k: self.top_k,
            convention: Convention::Paper,
            cold_start: self.curves[0].cold_start(),
            unused_layers: layers.iter().filter(|layer| !layer.is_used()).map(|layer| layer.layer).collect(),
            model: ModelReport { srp: by_window(&|report| report.model), curves: mean_curves(layers.iter()) },
            encoder: by_stack(Stack::Encoder, |report| report.encoder),
            decoder: by_stack(Stack::Decoder, |report| report.decoder),
            layers,
            pool: self.pool.as_ref().map(|pool| PoolReport { curves: hit_rates(pool) }),
        }
    }

    /// The same metrics but SRP, and its window lengths in ascending order.
    pub(crate) fn without_srp(mut self) -> (TraceMetrics, Vec<usize>) {
        let windows = self.srp.take_windows();
        (self, windows)
    }

    /// The layers in the order in which they were selected.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Uses of every expert.
    pub(crate) fn load(&self) -> &LoadBalance {
        &self.load
    }

    /// Curves of each layer, and of the pool of all if it is measured.
    pub(crate) fn curves(&self) -> impl Iterator<Item = &Curves> {
        self.curves.iter().chain(&self.pool)
    }

    /// Number of sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Number of tokens.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds a sequence, and shows the accesses of each layer to `layer(position, accesses)`.
    pub(crate) fn update_and(&mut self, sequence: &Sequence<'_>, layer: impl FnMut(usize, &Accesses)) -> Result<()> {
        self.selection.check(sequence)?;
        let (found, expected) = (sequence.geometry().top_k(), self.top_k);
        if found != expected {
            return Err(MetricError::TopK { found, expected });
        }
        let mut accesses = std::mem::take(&mut self.scratch);
        let result = self.update_layers(sequence, &mut accesses, layer);
        self.scratch = accesses;
        result?;
        self.srp.count_sequence(sequence.len());
        self.load.count_sequence(sequence.len());
        self.sequences += 1;
        self.tokens += sequence.len() as u64;
        Ok(())
    }

    fn update_layers(
        &mut self,
        sequence: &Sequence<'_>,
        accesses: &mut Accesses,
        mut also: impl FnMut(usize, &Accesses),
    ) -> Result<()> {
        for (position, layer) in self.selection.layers().iter().enumerate() {
            accesses.fill(sequence, std::slice::from_ref(layer))?;
            also(position, accesses);
            self.srp.update_layer(position, accesses);
            self.load.update_layer(position, accesses);
            self.curves[position].update_accesses(accesses)?;
        }
        if let Some(pool) = &mut self.pool {
            accesses.fill(sequence, self.selection.layers())?;
            pool.update_accesses(accesses)?;
        }
        Ok(())
    }
}

/// The policies that are measured beside some window lengths.
fn policies_of(windows: &[usize]) -> Vec<CurvePolicy> {
    let fixed = [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::BeladyBypass];
    fixed.into_iter().chain(windows.iter().map(|&window| CurvePolicy::LookAhead { window })).collect()
}

fn hit_rates(curves: &Curves) -> HitRates {
    curves.finish().into_iter().map(|(policy, curve)| (policy, curve.hit_rates)).collect()
}

impl Accumulator for TraceMetrics {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.update_and(sequence, |_, _| {})
    }

    fn merge(&mut self, other: &TraceMetrics) -> Result<()> {
        same("number of experts a token", &self.top_k, &other.top_k)?;
        same("pool", &self.pool.is_some(), &other.pool.is_some())?;
        self.srp.merge(&other.srp)?;
        self.load.merge(&other.load)?;
        for (sum, more) in self.curves.iter_mut().zip(&other.curves).chain(self.pool.iter_mut().zip(&other.pool)) {
            sum.merge(more)?;
        }
        self.sequences += other.sequences;
        self.tokens += other.tokens;
        Ok(())
    }
}

checked_serde!(TraceMetrics);

impl Restore for TraceMetrics {
    fn restore(&mut self) -> Result<()> {
        within("number of tokens", 0, MOST.into(), self.tokens.into())?;
        within("number of sequences", 0, MOST.into(), self.sequences.into())?;
        let layers = self.selection.layers();
        intact("number of layers", &layers.len(), &self.curves.len())?;
        self.selection.same(self.srp.selection())?;
        self.selection.same(self.load.selection())?;
        let mut windows = self.srp.windows();
        for (layer, curves) in layers.iter().zip(&self.curves) {
            curves.check(std::slice::from_ref(layer), &self.curves[0])?;
            same("number of experts a layer", &self.selection.experts(), &curves.experts())?;
        }
        self.pool.iter().try_for_each(|pool| pool.check(layers, &self.curves[0]))?;
        let policies = self.curves[0].policies();
        if windows.is_empty() {
            // SRP may be measured apart.
            windows = policies.iter().filter_map(|policy| policy.window()).collect();
        }
        same("list of policies", &policies_of(&windows), &policies)?;
        intact("number of tokens of the load", &self.tokens, &self.load.tokens())?;
        intact("number of sequences of SRP", &self.sequences, &self.srp.sequences())
    }
}
