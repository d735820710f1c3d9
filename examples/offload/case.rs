//! What is measured: one cache after the other.

use std::fmt;
use std::sync::Arc;

use anyhow::{Result, ensure};
use expert_cache::{
    CostModel, Counts, ExpertCache, Oversize, Partition, PolicyKind, PrefetcherKind, Prefetching, Requests, Simulation,
    Speed, Timeline,
};
use moe_offload::{OffloadOptions, Transfers};
use moe_trace::{Geometry, RoutingSource};

/// A cache to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    /// Slots a layer over top-k.
    pub(crate) rho: f64,
    pub(crate) policy: PolicyKind,
    pub(crate) prefetcher: PrefetcherKind,
    /// Predictions considered after every request.
    pub(crate) per_request: usize,
    pub(crate) transfers: Transfers,
}

/// The routing that all cases serve, and what policies and prefetchers that know the future are given.
pub(crate) struct Served<'a> {
    source: &'a dyn RoutingSource,
    partition: Partition,
    /// What each layer will want.
    layers: Vec<Arc<Requests>>,
    /// What all of them will want.
    model: Arc<Requests>,
}

impl Case {
    /// Slots a layer.
    pub(crate) fn slots(&self, geometry: &Geometry) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 1 or more")]
        let slots = (self.rho * geometry.top_k() as f64).round() as usize;
        slots.min(geometry.experts())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rho {}, {}, prefetch {}", self.rho, self.policy, self.prefetcher)
    }
}

/// Every cache that the lists make.
pub(crate) fn cases(
    rhos: &[f64],
    policies: &[PolicyKind],
    prefetchers: &[PrefetcherKind],
    per_request: usize,
    transfers: Transfers,
) -> Result<Vec<Case>> {
    if let Some(rho) = rhos.iter().find(|rho| !(rho.is_finite() && **rho >= 1.0)) {
        anyhow::bail!("--rho has {rho}, give 1 or more: slots a layer over top-k");
    }
    ensure!(per_request > 0, "--per-request is 0, give at least 1, or --prefetchers none");
    let mut cases = Vec::new();
    for &prefetcher in prefetchers {
        for &policy in policies {
            cases.extend(rhos.iter().map(|&rho| Case { rho, policy, prefetcher, per_request, transfers }));
        }
    }
    Ok(cases)
}

impl<'a> Served<'a> {
    pub(crate) fn new(source: &'a dyn RoutingSource) -> Result<Served<'a>> {
        let (partition, model) = (Partition::per_layer(source.geometry()), Partition::global(source.geometry()));
        let wanted = |pool| Ok(Arc::new(Requests::from_source(source, pool)?));
        let layers = partition.pools().iter().map(wanted).collect::<Result<_>>()?;
        Ok(Served { source, layers, model: wanted(&model.pools()[0])?, partition })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn prefetching(&self, case: &Case) -> expert_cache::Result<Option<Prefetching>> {
        let prefetcher = case.prefetcher.build(self.geometry(), 1, Some(&self.model), 0)?;
        Ok(prefetcher.map(|prefetcher| Prefetching::new(prefetcher, case.per_request)))
    }

    /// The options of a bank.
    pub(crate) fn options(&self, case: &Case) -> Result<OffloadOptions<'_>> {
        let policy = case.policy;
        let options = OffloadOptions::slots(case.slots(self.geometry()))
            .partition(self.partition.clone())
            .policy_with(move |pool, slots| {
                let layer = pool.layers()[0].index();
                policy.build(pool.shape(), slots, Some(&self.layers[layer]))
            })
            .transfers(case.transfers);
        Ok(match case.prefetcher.build(self.geometry(), 1, Some(&self.model), 0)? {
            Some(prefetcher) => options.prefetch_with(prefetcher, case.per_request),
            None => options,
        })
    }

    /// Predicted speed, and counts of decoded tokens.
    pub(crate) fn predict(&self, case: &Case, costs: &CostModel) -> Result<(Speed, Counts)> {
        let (experts, slots) = (self.geometry().experts(), case.slots(self.geometry()));
        let cache = |(pool, future): (&expert_cache::Pool, _)| {
            let policy = case.policy.build(pool.shape(), slots, Some(future))?;
            ExpertCache::new(policy, experts, slots, Oversize::Waves)
        };
        let pools = self.partition.pools();
        let caches = pools.iter().zip(&self.layers).map(cache).collect::<expert_cache::Result<_>>()?;
        let mut simulation = Simulation::of_pools(pools.to_vec(), caches)?;
        if let Some(prefetching) = self.prefetching(case)? {
            simulation = simulation.with_prefetching(prefetching);
        }
        let mut timeline = Timeline::new(costs.clone(), simulation.pools())?;
        simulation.observe(self.source, |served| {
            timeline.serve(served);
        })?;
        let mut counts = Counts::default();
        simulation.counts().iter().for_each(|layer| counts.merge(&layer.decode));
        Ok((timeline.speed().clone(), counts))
    }
}
