//! One simulation of a setup.

use std::sync::Arc;

use moe_trace::{Geometry, Phase, RoutingSource, Sequence};

use super::{Advisor, Candidate, Figure, Layout, Setup, Slots, SpeedBootstrap};
use crate::{
    Counts, EvictionPolicy, ExpertCache, ExpertSizes, PhaseSpeed, PolicyKind, Pool, PrefetchCounts, Requests, Result,
    Simulation, Timeline,
};

type Policy = Box<dyn EvictionPolicy>;

/// A simulation that has run.
pub(super) struct Run {
    simulation: Simulation<Policy>,
    timeline: Timeline,
    /// Seconds and tokens of the decode passes of each sequence.
    decode: Vec<Vec<(f64, u64)>>,
}

impl Run {
    pub(super) fn new(advisor: &Advisor<'_>, setup: &Setup) -> Result<Run> {
        let mut simulation = advisor.simulation(setup)?;
        let geometry = advisor.source.0.geometry();
        let prefetcher =
            setup.prefetcher.build(geometry, advisor.choices.prefetch_ahead, advisor.future.as_ref(), 0)?;
        if let Some(prefetcher) = prefetcher {
            simulation = simulation.with_prefetching(prefetcher, advisor.choices.prefetched_experts);
        }
        let timeline = Timeline::new(advisor.costs.clone(), simulation.pools())?.while_loading(setup.while_loading);
        let mut run = Run { simulation, timeline, decode: Vec::new() };
        run.serve(advisor.source.0)?;
        Ok(run)
    }

    /// Serves all sequences, one after the other.
    fn serve(&mut self, source: &dyn RoutingSource) -> Result<()> {
        for index in 0..source.len() {
            let (timeline, mut decode) = (&mut self.timeline, Vec::new());
            self.simulation.observe(&One { source, index }, |served| {
                if let Some(pass) = timeline.serve(served).filter(|pass| pass.phase == Phase::Decode) {
                    decode.push((pass.seconds(), pass.tokens));
                }
            })?;
            self.decode.push(decode);
        }
        Ok(())
    }

    pub(super) fn candidate(&self, setup: Setup) -> Candidate {
        let (mut decode, mut prefetches) = (Counts::default(), PrefetchCounts::default());
        self.simulation.counts().iter().for_each(|layer| decode.merge(&layer.decode));
        self.simulation.prefetch_counts().iter().for_each(|layer| prefetches.merge(layer));
        // The simulation counts by requests, the clock by seconds.
        let used = prefetches.useful + prefetches.late;
        prefetches.late = self.timeline.late_prefetches();
        prefetches.useful = used - prefetches.late;
        let speed = self.timeline.speed().clone();
        Candidate { setup, hit_rate: decode.hit_rate(), loads: decode.loads, prefetches, speed }
    }
}

impl Advisor<'_> {
    /// The interval of a figure of a setup's decode speed; `None` if the trace has fewer than two sequences.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`](crate::CacheError::TooSmall) or [`CacheError::Figure`](crate::CacheError::Figure) for an
    /// impossible bootstrap; as [`survey`](Self::survey).
    pub fn interval(&self, setup: &Setup, figure: Figure, bootstrap: &SpeedBootstrap) -> Result<Option<(f64, f64)>> {
        bootstrap.check()?;
        Ok(bootstrap.interval(&Run::new(self, setup)?.decode, figure))
    }

    fn simulation(&self, setup: &Setup) -> Result<Simulation<Policy>> {
        let partition = if setup.layout == Layout::Global { &self.global } else { &self.per_layer };
        let pools = partition.pools().to_vec();
        let cache = |(number, pool): (usize, &Pool)| match &setup.slots {
            Slots::PerLayer(slots) => {
                let future = self.futures.get(number);
                self.cache(setup.policy, pool, slots[number], future)
            }
            Slots::SharedBytes(bytes) => {
                let sizes = ExpertSizes::by_layer(pool, &self.slot_bytes)?;
                let capacity = sizes.most_within(*bytes);
                let policy = setup.policy.build(pool.shape(), capacity, self.future.as_ref())?;
                ExpertCache::in_bytes(policy, sizes, *bytes, self.choices.oversize)
            }
        };
        let caches = pools.iter().enumerate().map(cache).collect::<Result<_>>()?;
        Simulation::of_pools(pools, caches)
    }

    fn cache(
        &self,
        policy: PolicyKind,
        pool: &Pool,
        slots: usize,
        future: Option<&Arc<Requests>>,
    ) -> Result<ExpertCache<Policy>> {
        ExpertCache::of_kind(policy, pool.shape(), slots, self.choices.oversize, future)
    }

    /// Seconds of the loads of each layer in decode, with the same number of slots each.
    pub(super) fn seconds_of_loads(&self, policy: PolicyKind, slots: usize) -> Result<Vec<f64>> {
        let pools = self.per_layer.pools();
        let cache = |(number, pool): (usize, &Pool)| self.cache(policy, pool, slots, self.futures.get(number));
        let caches = pools.iter().enumerate().map(cache).collect::<Result<_>>()?;
        let mut simulation = Simulation::of_pools(pools.to_vec(), caches)?;
        simulation.run(self.source.0)?;
        let loads = simulation.counts().iter().map(|layer| layer.decode.loads as f64);
        Ok(loads.zip(&self.costs.load_seconds).map(|(loads, seconds)| loads * seconds).collect())
    }

    /// Speed with every expert in a slot from the start.
    pub(super) fn all_resident(&self) -> Result<PhaseSpeed> {
        let mut costs = self.costs.clone();
        costs.load_seconds.fill(0.0);
        let cache = |pool: &Pool| {
            ExpertCache::of_kind(PolicyKind::Lru, pool.shape(), pool.universe(), self.choices.oversize, None)
        };
        let pools = self.per_layer.pools().to_vec();
        let caches = pools.iter().map(cache).collect::<Result<_>>()?;
        let simulation = Simulation::of_pools(pools, caches)?;
        let timeline = Timeline::new(costs, simulation.pools())?;
        let mut run = Run { simulation, timeline, decode: Vec::new() };
        run.serve(self.source.0)?;
        Ok(run.timeline.speed().decode.clone())
    }
}

/// One sequence of a source.
struct One<'a> {
    source: &'a dyn RoutingSource,
    index: usize,
}

impl RoutingSource for One<'_> {
    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn len(&self) -> usize {
        1
    }

    fn sequence(&self, index: usize) -> moe_trace::Result<Sequence<'_>> {
        self.source.sequence(self.index + index)
    }
}
