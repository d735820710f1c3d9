//! Prefetches of a simulation, and the request at which each was issued.

use crate::{Eviction, EvictionPolicy, ExpertCache, IssuedPrefetch, Load, Pool, PrefetchPlanner, Request, Result};

/// A planner whose loads take a number of requests.
#[derive(Debug)]
pub(super) struct SimulatedPrefetches {
    pub(super) planner: PrefetchPlanner,
    /// Requests served.
    clock: u64,
    /// Request at which each expert was prefetched last, by pool and key.
    issued_at: Vec<Vec<u64>>,
    /// Prefetches of the running request: the pool, the load, and the end of its evictions.
    issued: Vec<(usize, Load, usize)>,
    evictions: Vec<Eviction>,
}

impl SimulatedPrefetches {
    pub(super) fn new(planner: PrefetchPlanner, pools: &[Pool]) -> SimulatedPrefetches {
        let largest = pools.iter().map(Pool::universe).max().unwrap_or_default();
        SimulatedPrefetches {
            planner,
            clock: 0,
            issued_at: pools.iter().map(|pool| vec![0; pool.universe()]).collect(),
            issued: Vec::with_capacity(pools[0].geometry().experts()),
            evictions: Vec::with_capacity(largest),
        }
    }

    /// Counts earlier prefetches in a plan, and issues others. A prefetch is late if it is used before `lead` requests
    /// have passed.
    pub(super) fn serve<P: EvictionPolicy>(
        &mut self,
        pool: usize,
        request: &Request<'_>,
        caches: &mut [ExpertCache<P>],
        lead: u64,
    ) -> Result<()> {
        let SimulatedPrefetches { planner, clock, issued_at, issued, evictions } = self;
        *clock += 1;
        planner.count_served(pool, &caches[pool], |hit| *clock - issued_at[pool][hit.key.index()] < lead);
        issued.clear();
        evictions.clear();
        planner.plan(pool, request, caches, |prefetch| {
            issued_at[prefetch.pool][prefetch.load.key.index()] = *clock;
            evictions.extend_from_slice(prefetch.evictions);
            issued.push((prefetch.pool, prefetch.load, evictions.len()));
        })?;
        Ok(())
    }

    pub(super) fn running(&self) -> RunningPrefetches<'_> {
        RunningPrefetches { issued: &self.issued, evictions: &self.evictions }
    }
}

/// The prefetches of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RunningPrefetches<'a> {
    issued: &'a [(usize, Load, usize)],
    evictions: &'a [Eviction],
}

impl<'a> RunningPrefetches<'a> {
    pub(super) fn iter(self) -> impl ExactSizeIterator<Item = IssuedPrefetch<'a>> {
        let mut start = 0;
        self.issued.iter().map(move |&(pool, load, end)| {
            let evictions = &self.evictions[start..end];
            start = end;
            IssuedPrefetch { pool, load, evictions }
        })
    }
}
