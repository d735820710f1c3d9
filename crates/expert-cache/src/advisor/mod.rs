//! The smallest cache that is fast enough.

mod bootstrap;
mod candidate;
mod layout;
mod run;
mod survey;
mod target;
#[cfg(test)]
mod tests;

pub use bootstrap::SpeedBootstrap;
pub use candidate::{Candidate, Setup};
pub use layout::{Layout, Slots};
pub use survey::{Survey, Verdict};
pub use target::{Figure, Target};

use std::sync::Arc;

use moe_trace::RoutingSource;
use rayon::prelude::*;
use run::Run;

use crate::{
    CacheError, CostModel, LayerValue, Oversize, Partition, PolicyKind, Pool, PrefetcherKind, Requests, Result,
    WhileLoading, best_allocation, has_decoded,
};

/// What an [`Advisor`] tries.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// Policies; those that know the future are the bounds that a verdict compares with.
    pub policies: Vec<PolicyKind>,
    /// Prefetchers, likewise.
    pub prefetchers: Vec<PrefetcherKind>,
    /// Experts that a prefetcher may ask for after each layer.
    pub prefetched_experts: usize,
    /// Layers ahead for which a prefetcher predicts.
    pub prefetch_ahead: usize,
    /// Layouts.
    pub layouts: Vec<Layout>,
    /// Slots a layer; a layout that spreads them otherwise gets the same bytes. Empty: 1 to all experts.
    pub slots: Vec<usize>,
    /// Who computes an expert while it is loaded.
    pub while_loading: WhileLoading,
    /// What happens to a request that is larger than its pool.
    pub oversize: Oversize,
}

impl Default for Choices {
    /// LRU, a fading frequency, S3-FIFO and both optima without prefetching, in every layout at every capacity.
    fn default() -> Choices {
        Choices {
            policies: vec![
                PolicyKind::Lru,
                PolicyKind::Lfru { memory: 32 },
                PolicyKind::S3Fifo,
                PolicyKind::Belady,
                PolicyKind::BeladyBypass,
            ],
            prefetchers: vec![PrefetcherKind::None],
            prefetched_experts: 4,
            prefetch_ahead: 1,
            layouts: Layout::ALL.to_vec(),
            slots: Vec::new(),
            while_loading: WhileLoading::default(),
            oversize: Oversize::Waves,
        }
    }
}

/// Tries caches on a trace, one sequence after the other, and predicts how fast each is.
///
/// ```
/// use expert_cache::{Advisor, Choices, CostModel, Layout, Linear, Overlap, PolicyKind, Slots, Target, Verdict};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// // A loop over three of four experts; a load takes 1 s, an expert 1 s.
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// let experts = (0..300).map(|token| token % 3).collect();
/// trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Decode)?)?;
/// let mut costs = CostModel::loads(vec![1.0], Overlap::Copies);
/// costs.device_expert = Linear { call_seconds: 1.0, seconds_each: 0.0 };
///
/// let policies = vec![PolicyKind::Lru, PolicyKind::Belady];
/// let choices = Choices { policies, layouts: vec![Layout::Uniform], ..Choices::default() };
/// let advisor = Advisor::new(&trace, costs, vec![1000], choices)?;
/// let survey = advisor.survey(&|_, _| ())?;
/// let Verdict::Met { best } = survey.answer(Target::TokensPerSecond(0.9), None)? else { panic!() };
/// assert_eq!(survey.candidates[best].setup.slots, Slots::PerLayer(vec![3]));
/// // In two slots LRU always misses, and Belady misses every other time.
/// let failed = survey.answer(Target::TokensPerSecond(0.6), Some(2000))?;
/// let Verdict::PolicyFailure { bound, .. } = failed else { panic!() };
/// assert_eq!(survey.candidates[bound].setup.policy, PolicyKind::Belady);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Advisor<'a> {
    source: Source<'a>,
    costs: CostModel,
    slot_bytes: Vec<u64>,
    choices: Choices,
    per_layer: Partition,
    global: Partition,
    /// What each layer wants, for policies that know the future.
    futures: Vec<Arc<Requests>>,
    /// What the model wants, for those of a global pool and for oracles.
    future: Option<Arc<Requests>>,
}

/// A source that can be shown.
#[derive(Clone, Copy)]
struct Source<'a>(&'a dyn RoutingSource);

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sequences", self.0.len())
    }
}

impl<'a> Advisor<'a> {
    /// Prepares to try `choices` on a trace; `slot_bytes` are the bytes of a slot of each layer.
    ///
    /// # Errors
    /// [`CacheError::CostLayers`] if costs or bytes are not those of the trace's layers, [`CacheError::Capacity`] for
    /// impossible slots, [`CacheError::NoChoice`] if there is nothing to try, [`CacheError::LayerValue`] for slots of no
    /// bytes, [`CacheError::NoDecodedTokens`], what policies and prefetchers refuse of their parameters,
    /// [`CacheError::Profile`], [`CacheError::Trace`].
    pub fn new(
        source: &'a dyn RoutingSource,
        costs: CostModel,
        slot_bytes: Vec<u64>,
        choices: Choices,
    ) -> Result<Advisor<'a>> {
        let geometry = source.geometry();
        costs.check_layers(geometry)?;
        let (layers, experts) = (geometry.layers(), geometry.experts());
        if slot_bytes.len() != layers {
            return Err(CacheError::CostLayers { found: slot_bytes.len(), expected: layers });
        }
        if let Some(layer) = slot_bytes.iter().position(|&bytes| bytes == 0) {
            return Err(CacheError::LayerValue { layer, problem: "slots of 0 bytes" });
        }
        let empty = |what, is_empty: bool| if is_empty { Err(CacheError::NoChoice { what }) } else { Ok(()) };
        empty("policy", choices.policies.is_empty())?;
        empty("prefetcher", choices.prefetchers.is_empty())?;
        empty("layout", choices.layouts.is_empty())?;
        empty("sequence", source.is_empty())?;
        choices.policies.iter().try_for_each(|policy| policy.check())?;
        choices.prefetchers.iter().try_for_each(|prefetcher| prefetcher.check())?;
        if let Some(&capacity) = choices.slots.iter().find(|&&slots| slots == 0 || slots > experts) {
            return Err(CacheError::Capacity { capacity, experts });
        }
        if !has_decoded(source)? {
            return Err(CacheError::NoDecodedTokens);
        }
        let (per_layer, global) = (Partition::per_layer(geometry), Partition::global(geometry));
        let by_policy = choices.policies.iter().any(|policy| policy.needs_future());
        let by_prefetcher = choices.prefetchers.iter().any(|prefetcher| prefetcher.needs_future());
        let requests = |pool: &Pool| Ok(Arc::new(Requests::from_source(source, pool)?));
        let futures =
            if by_policy { per_layer.pools().par_iter().map(requests).collect::<Result<_>>()? } else { Vec::new() };
        let future = if by_policy || by_prefetcher { Some(requests(&global.pools()[0])?) } else { None };
        Ok(Advisor { source: Source(source), costs, slot_bytes, choices, per_layer, global, futures, future })
    }

    /// Returns the fewest bytes that a cache of the choices may take; a smaller budget has no answer.
    pub fn least_bytes(&self) -> u64 {
        let slots = match self.choices.layouts.contains(&Layout::Allocated) {
            // It need not use all bytes that it may.
            true => 1,
            false => self.choices.slots.iter().min().map_or(1, |&slots| slots as u64),
        };
        self.bytes_a_slot().saturating_mul(slots)
    }

    /// Bytes of one slot in every layer.
    fn bytes_a_slot(&self) -> u64 {
        self.slot_bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// The same trace and choices at other costs: another machine, another link.
    ///
    /// # Errors
    /// [`CacheError::CostLayers`], [`CacheError::Profile`].
    pub fn at(&self, costs: CostModel) -> Result<Advisor<'a>> {
        costs.check_layers(self.source.0.geometry())?;
        Ok(Advisor { costs, ..self.clone() })
    }

    /// Tries one setup, whether it is among the choices or not.
    ///
    /// # Errors
    /// [`CacheError::Trace`]; what policy and prefetcher refuse.
    pub fn evaluate(&self, setup: Setup) -> Result<Candidate> {
        Ok(Run::new(self, &setup)?.candidate(setup))
    }

    /// Tries everything; `progress` is told how many of how many simulations are done.
    ///
    /// # Errors
    /// [`CacheError::Trace`]; what policies and prefetchers refuse.
    pub fn survey(&self, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Survey> {
        let experts = self.source.0.geometry().experts();
        let capacities =
            if self.choices.slots.is_empty() { (1..=experts).collect() } else { self.choices.slots.clone() };
        let allocates = self.choices.layouts.contains(&Layout::Allocated);
        // Allocations are made from what each layer's loads cost at every capacity.
        let measured: Vec<(PolicyKind, usize)> = if allocates {
            let policies = self.choices.policies.iter();
            policies.flat_map(|&policy| (1..=experts).map(move |slots| (policy, slots))).collect()
        } else {
            Vec::new()
        };
        let pairs = self.choices.policies.len() * self.choices.prefetchers.len();
        let total = measured.len() + self.choices.layouts.len() * pairs * capacities.len() + 1;
        let done = std::sync::atomic::AtomicUsize::new(0);
        let step = || progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, total);

        let of_layers: Vec<Vec<f64>> = measured
            .par_iter()
            .map(|&(policy, slots)| {
                let seconds = self.seconds_of_loads(policy, slots);
                step();
                seconds
            })
            .collect::<Result<_>>()?;
        let values = |policy: PolicyKind| -> Vec<LayerValue> {
            let rows: Vec<&Vec<f64>> =
                measured.iter().zip(&of_layers).filter(|(key, _)| key.0 == policy).map(|(_, row)| row).collect();
            let value = |(layer, &slot_bytes): (usize, &u64)| LayerValue {
                slot_bytes,
                values: rows.iter().map(|row| -row[layer]).collect(),
            };
            self.slot_bytes.iter().enumerate().map(value).collect()
        };

        let mut setups = Vec::new();
        let bytes_a_slot = self.bytes_a_slot();
        for &layout in &self.choices.layouts {
            for &policy in &self.choices.policies {
                let values = if layout == Layout::Allocated { values(policy) } else { Vec::new() };
                for &capacity in &capacities {
                    let bytes = bytes_a_slot.saturating_mul(capacity as u64);
                    let (slots, bytes) = match layout {
                        Layout::Uniform => (Slots::PerLayer(vec![capacity; self.slot_bytes.len()]), bytes),
                        Layout::Allocated => {
                            let allocation = best_allocation(&values, bytes)?;
                            (Slots::PerLayer(allocation.slots), allocation.bytes)
                        }
                        Layout::Global => (Slots::SharedBytes(bytes), bytes),
                    };
                    for &prefetcher in &self.choices.prefetchers {
                        let while_loading = self.choices.while_loading;
                        setups.push(Setup { policy, prefetcher, while_loading, layout, slots: slots.clone(), bytes });
                    }
                }
            }
        }
        let candidates = setups
            .into_par_iter()
            .map(|setup| {
                let candidate = self.evaluate(setup);
                step();
                candidate
            })
            .collect::<Result<_>>()?;
        let all_resident = self.all_resident()?;
        step();
        let all_bytes = bytes_a_slot.saturating_mul(experts as u64);
        Ok(Survey { candidates, all_resident, all_bytes })
    }
}
