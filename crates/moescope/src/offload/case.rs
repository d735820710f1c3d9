//! What is measured: one cache after the other.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use expert_cache::{
    Counts, ExpertCache, MissPolicy, Oversize, Partition, PolicyKind, Pool, Prefetcher, PrefetcherKind, Requests,
    Simulation, Speed, Timeline,
};
use moe_offload::{ExpertStore, HostCounters, HostSimulation, MissSeconds, OffloadOptions, Transfers};
use moe_trace::{Geometry, RoutingSource};

use super::calibrate::Prices;
use super::stores::{Ahead, HostTier};

/// A cache to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    /// Slots a layer over top-k.
    pub(crate) rho: f64,
    /// Slots a layer.
    pub(crate) slots: usize,
    pub(crate) policy: PolicyKind,
    pub(crate) prefetcher: PrefetcherKind,
    /// Predictions considered after every request.
    pub(crate) per_request: usize,
    /// Of the predictions behind those.
    pub(crate) ahead: Option<Ahead>,
    pub(crate) misses: Misses,
    pub(crate) transfers: Transfers,
}

/// What happens to an expert that is not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Misses {
    /// It is loaded.
    Load,
    /// The host computes it where it is.
    Host,
    /// Whichever of the two is cheaper by the measured costs.
    Auto,
}

/// The routing that all cases serve, and what policies and prefetchers that know the future are given.
pub(crate) struct Served<'a> {
    source: &'a dyn RoutingSource,
    partition: Partition,
    /// What each layer will want.
    layers: Vec<Arc<Requests>>,
    /// What all of them will want.
    model: Arc<Requests>,
    /// The experts below the slots and the tier.
    store: &'a dyn ExpertStore,
    /// Between the disk and the slots.
    tier: Option<HostTier>,
    /// Prices that `Misses::Auto` decides by.
    prices: Prices,
}

/// What a simulation predicts of a case.
pub(crate) struct Predicted {
    pub(crate) speed: Speed,
    /// Of decoded tokens.
    pub(crate) counts: Counts,
    /// What the cache in host memory does, if there is one.
    pub(crate) host: Option<HostCounters>,
}

impl Case {
    /// Whether prefetches or reads ahead go on between steps.
    pub(crate) fn prefetches_beside_compute(&self) -> bool {
        self.prefetcher != PrefetcherKind::None && (self.transfers != Transfers::Inline || self.ahead.is_some())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rho {}, {}, prefetch {}, misses {}", self.rho, self.policy, self.prefetcher, self.misses)
    }
}

impl fmt::Display for Misses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misses::Load => "load",
            Misses::Host => "host",
            Misses::Auto => "auto",
        })
    }
}

/// Every cache that the lists make; `sizes` are pairs of rho and slots per layer.
pub(crate) fn cases(
    sizes: &[(f64, usize)],
    policies: &[PolicyKind],
    prefetchers: &[PrefetcherKind],
    misses: &[Misses],
    (per_request, ahead): (usize, Option<Ahead>),
    transfers: Transfers,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for (&misses, &prefetcher) in misses.iter().flat_map(|misses| prefetchers.iter().map(move |one| (misses, one))) {
        let ahead = ahead.filter(|_| prefetcher != PrefetcherKind::None);
        for &policy in policies {
            let case = |&(rho, slots)| Case { rho, slots, policy, prefetcher, per_request, ahead, misses, transfers };
            cases.extend(sizes.iter().map(case));
        }
    }
    cases
}

impl<'a> Served<'a> {
    /// Serves a source with the experts of a store; `prices` are what `Misses::Auto` decides by.
    pub(crate) fn new(
        source: &'a dyn RoutingSource,
        store: &'a dyn ExpertStore,
        tier: Option<HostTier>,
        prices: Prices,
    ) -> Result<Served<'a>> {
        let (partition, model) = (Partition::per_layer(source.geometry()), Partition::global(source.geometry()));
        let wanted = |pool| Ok(Arc::new(Requests::from_source(source, pool)?));
        let layers = partition.pools().iter().map(wanted).collect::<Result<_>>()?;
        Ok(Served { source, layers, model: wanted(&model.pools()[0])?, partition, store, tier, prices })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn prefetcher(&self, case: &Case) -> expert_cache::Result<Option<Box<dyn Prefetcher>>> {
        case.prefetcher.build(self.geometry(), 1, Some(&self.model), 0)
    }

    fn misses(&self, case: &Case) -> Result<MissPolicy> {
        let costs = || self.prices.costs(&|_| 1.0, 1.0);
        Ok(match case.misses {
            Misses::Load => MissPolicy::Load,
            Misses::Host => MissPolicy::Host,
            Misses::Auto => MissPolicy::Cheaper(Arc::new(MissSeconds::new(costs(), self.geometry().layers())?)),
        })
    }

    /// The options of a bank.
    pub(crate) fn options(&self, case: &Case) -> Result<OffloadOptions<'_>> {
        let policy = case.policy;
        let options = OffloadOptions::slots(case.slots)
            .partition(self.partition.clone())
            .policy_with(move |pool, slots| {
                let layer = pool.layers()[0].index();
                policy.build(pool.shape(), slots, Some(&self.layers[layer]))
            })
            .misses(self.misses(case)?)
            .transfers(case.transfers);
        Ok(match self.prefetcher(case)? {
            Some(prefetcher) => {
                let options = options.prefetch_with(prefetcher, case.per_request);
                match case.ahead {
                    Some(Ahead { experts, threads }) => options.read_ahead(threads, experts),
                    None => options,
                }
            }
            None => options,
        })
    }

    fn simulation(&self, case: &Case) -> Result<Simulation<Box<dyn expert_cache::EvictionPolicy>>> {
        let misses = self.misses(case)?;
        let cache = |(pool, future): (&Pool, _)| {
            let cache = ExpertCache::of_kind(case.policy, pool.shape(), case.slots, Oversize::Waves, Some(future))?;
            Ok(cache.with_misses(misses.clone()))
        };
        let pools = self.partition.pools();
        let caches = pools.iter().zip(&self.layers).map(cache).collect::<expert_cache::Result<_>>()?;
        let simulation = Simulation::of_pools(pools.to_vec(), caches)?;
        Ok(match self.prefetcher(case)? {
            Some(prefetcher) => simulation.with_prefetching(prefetcher, case.per_request),
            None => simulation,
        })
    }

    /// Speed and hits of a case.
    pub(crate) fn predict(&self, case: &Case, prices: &Prices) -> Result<Predicted> {
        let below = self.tier.map(|tier| self.below_the_slots(case, tier)).transpose()?;
        let costs = match &below {
            // What comes from disk is copied once more.
            Some(below) => {
                let mut computed = HostCounters::default();
                below.layers().iter().for_each(|layer| computed.merge(&layer.computed));
                let loads = |layer: usize| misses_per_access(&below.layers()[layer].loaded);
                prices.through_host_memory().costs(&loads, misses_per_access(&computed))
            }
            None => prices.costs(&|_| 1.0, 1.0),
        };
        let mut simulation = self.simulation(case)?;
        let mut timeline = Timeline::new(costs, simulation.pools())?;
        simulation.observe(self.source, |served| {
            timeline.serve(served);
        })?;
        let mut counts = Counts::default();
        simulation.counts().iter().for_each(|layer| counts.merge(&layer.decode));
        Ok(Predicted { speed: timeline.speed().clone(), counts, host: below.map(|below| below.total()) })
    }

    /// Simulates a cache in host memory below the slots.
    fn below_the_slots(&self, case: &Case, tier: HostTier) -> Result<HostSimulation> {
        let mut host = HostSimulation::new(self.store, tier.bytes, tier.policy)?;
        let (pools, mut outcome) = (self.partition.pools(), Ok(()));
        self.simulation(case)?.observe(self.source, |served| {
            if outcome.is_ok() {
                outcome = host.serve(pools, served);
            }
        })?;
        outcome?;
        Ok(host)
    }
}

/// Share of the wanted experts that come from disk; 0 if none was wanted.
fn misses_per_access(counters: &HostCounters) -> f64 {
    let wanted = counters.hits + counters.loads + counters.bypasses;
    if wanted == 0 { 0.0 } else { 1.0 - counters.hit_rate() }
}
