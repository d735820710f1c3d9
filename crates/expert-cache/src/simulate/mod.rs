//! The simulator in engine order: it counts the plans that the runtime executes.

mod counts;
mod mass;
mod prefetching;
#[cfg(test)]
mod tests;

pub use counts::{Counts, PhaseCounts};
pub use mass::MassCounts;

use moe_trace::{LayerId, RoutingSource};
use prefetching::{RunningPrefetches, SimulatedPrefetches};

use crate::pool::layers_in_order;
use crate::{
    CacheError, Demand, EvictionPolicy, ExpertCache, IssuedPrefetch, Plan, Pool, PrefetchCounts, PrefetchPlanner,
    Prefetcher, Request, Requests, Result, Serving, for_each_request,
};

/// One request as it was served.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The number of the pool.
    pub pool: usize,
    /// What was wanted.
    pub request: &'a Request<'a>,
    /// What the pool's cache decided.
    pub plan: &'a Plan,
    prefetches: RunningPrefetches<'a>,
}

impl<'a> Served<'a> {
    /// Returns the prefetches issued while the request is executed, in order; they may be for other pools.
    pub fn prefetches(&self) -> impl ExactSizeIterator<Item = IssuedPrefetch<'a>> {
        self.prefetches.iter()
    }
}

/// A running simulation of one cache a pool; caches stay warm from one sequence to the next.
///
/// It counts what a runtime does that serves a source in the same way: one sequence at a time, each turn's prefill in one
/// pass, unless another [`Serving`] is asked for.
///
/// ```
/// use expert_cache::{ExpertCache, Lru, Oversize, Pool, Simulation};
/// use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 4, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 1, 2, 2, 1, 0, 1], Phase::Decode)?)?;
///
/// let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves)?;
/// let mut simulation = Simulation::new(Pool::layer(&geometry, LayerId(0))?, cache)?;
/// let mut loads = Vec::new();
/// simulation.observe(&trace, |served| loads.push(served.plan.loads().len()))?;
/// // {0,1} is cold, {1,2} hits 1, {1,2} hits both, {0,1} hits 1.
/// assert_eq!(loads, [2, 1, 0, 1]);
/// assert_eq!(simulation.counts()[0].decode.hits, 4);
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Debug)]
pub struct Simulation<P> {
    pools: Vec<Pool>,
    caches: Vec<ExpertCache<P>>,
    serving: Serving,
    /// One entry a layer of the pools, in order of execution.
    counts: Vec<PhaseCounts>,
    mass: Vec<MassCounts>,
    /// Place of each layer of the model among the counts, if it is in a pool.
    places: Vec<Option<usize>>,
    prefetches: Option<SimulatedPrefetches>,
    /// Requests that a prefetch takes.
    lead: u64,
    /// The pool whose request was served last.
    running: usize,
}

impl<P: EvictionPolicy> Simulation<P> {
    /// Creates a simulation of one pool.
    ///
    /// # Errors
    /// [`CacheError::Universe`] if the cache is of another pool.
    pub fn new(pool: Pool, cache: ExpertCache<P>) -> Result<Simulation<P>> {
        Simulation::of_pools(vec![pool], vec![cache])
    }

    /// Creates a simulation of several pools, each with its cache; they need not cover the model.
    ///
    /// # Errors
    /// [`CacheError::EmptyPool`] without pools, [`CacheError::CacheCount`] if there are fewer or more caches,
    /// [`CacheError::Universe`] if a cache is of another pool than that of its number, [`CacheError::Geometry`] if the
    /// pools are not of one model, [`CacheError::DuplicateLayer`].
    pub fn of_pools(pools: Vec<Pool>, caches: Vec<ExpertCache<P>>) -> Result<Simulation<P>> {
        let layers = layers_in_order(&pools)?;
        if caches.len() != pools.len() {
            return Err(CacheError::CacheCount { caches: caches.len(), pools: pools.len() });
        }
        for (pool, cache) in pools.iter().zip(&caches) {
            cache.check_universe(pool.universe())?;
        }
        let mut places = vec![None; pools[0].geometry().layers()];
        for (place, (layer, _)) in layers.iter().enumerate() {
            places[layer.index()] = Some(place);
        }
        Ok(Simulation {
            pools,
            caches,
            serving: Serving::default(),
            counts: vec![PhaseCounts::default(); layers.len()],
            mass: vec![MassCounts::default(); layers.len()],
            places,
            prefetches: None,
            lead: 1,
            running: 0,
        })
    }

    /// Serves sequences and tokens together.
    pub fn with_serving(mut self, serving: Serving) -> Simulation<P> {
        self.serving = serving;
        self
    }

    /// Prefetches while requests are executed: considers the `per_request` best predictions after every request, and loads
    /// those that are absent.
    pub fn with_prefetching(mut self, prefetcher: Box<dyn Prefetcher>, per_request: usize) -> Simulation<P> {
        let planner = PrefetchPlanner::new(prefetcher, per_request, &self.pools);
        self.prefetches = Some(SimulatedPrefetches::new(planner, &self.pools));
        self
    }

    /// Counts a prefetch as late if it is used fewer than `requests` requests (layers executed) after the one at which it
    /// was issued: the copy takes so long. The lead is 1 at first, so that nothing is late.
    pub fn with_prefetch_lead(mut self, requests: u64) -> Simulation<P> {
        self.lead = requests;
        self
    }

    /// Serves every sequence of a source.
    ///
    /// # Errors
    /// [`CacheError::Geometry`] if the source is of another model, [`CacheError::Trace`] if a sequence cannot be read.
    pub fn run(&mut self, source: &dyn RoutingSource) -> Result<()> {
        self.observe(source, |_| ())
    }

    /// Serves every sequence of a source and shows every request to `observer`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn observe(&mut self, source: &dyn RoutingSource, mut observer: impl FnMut(&Served<'_>)) -> Result<()> {
        let (pools, serving) = (std::mem::take(&mut self.pools), self.serving);
        let outcome = for_each_request(source, &pools, serving, |demand| self.meet(demand, &mut observer));
        self.pools = pools;
        outcome
    }

    /// Serves recorded requests to the only pool.
    ///
    /// # Errors
    /// [`CacheError::CacheCount`] if there are more pools, [`CacheError::Universe`] if the requests are of another pool,
    /// and what serving them finds.
    pub fn replay(&mut self, requests: &Requests) -> Result<()> {
        if self.pools.len() != 1 {
            return Err(CacheError::CacheCount { caches: self.caches.len(), pools: 1 });
        }
        self.caches[0].check_universe(requests.universe())?;
        requests.replay(|demand| self.meet(demand, &mut |_| ()))
    }

    fn meet(&mut self, demand: Demand<'_>, observer: &mut impl FnMut(&Served<'_>)) -> Result<()> {
        match demand {
            Demand::Request { pool, request } => self.serve(pool, &request, observer),
            Demand::SequenceEnd => {
                self.caches.iter_mut().for_each(ExpertCache::sequence_end);
                self.prefetches.iter_mut().for_each(|prefetches| prefetches.planner.sequence_end());
                Ok(())
            }
        }
    }

    fn serve(&mut self, pool: usize, request: &Request<'_>, observer: &mut impl FnMut(&Served<'_>)) -> Result<()> {
        let place = self.place(request.layer())?;
        let plan = self.caches[pool].request(*request)?;
        self.counts[place].of_mut(request.phase()).add(plan);
        if self.caches[pool].misses().needs_mass() {
            self.mass[place].add(request, self.caches[pool].plan());
        }
        if let Some(prefetches) = &mut self.prefetches {
            if self.running != pool {
                self.caches[self.running].release();
                self.running = pool;
            }
            prefetches.serve(pool, request, &mut self.caches, self.lead)?;
        }
        let prefetches = self.prefetches.as_ref().map(SimulatedPrefetches::running).unwrap_or_default();
        observer(&Served { pool, request, plan: self.caches[pool].plan(), prefetches });
        Ok(())
    }

    fn place(&self, layer: LayerId) -> Result<usize> {
        let place = self.places.get(layer.index()).copied().flatten();
        place.ok_or(CacheError::LayerOutOfRange { layer: layer.index(), layers: self.places.len() })
    }

    /// Counts of each layer of the pools, in order of execution.
    pub fn counts(&self) -> &[PhaseCounts] {
        &self.counts
    }

    /// Router mass of each layer of the pools, in order of execution; 0 unless misses are skipped or substituted.
    pub fn mass(&self) -> &[MassCounts] {
        &self.mass
    }

    /// What became of the prefetched experts of each layer of the pools, in order of execution; empty without prefetching.
    pub fn prefetch_counts(&self) -> Vec<PrefetchCounts> {
        let Some(prefetches) = &self.prefetches else { return Vec::new() };
        let layers = self.places.iter().zip(prefetches.planner.counts());
        layers.filter(|(place, _)| place.is_some()).map(|(_, &counts)| counts).collect()
    }

    /// The pools.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The cache of each pool as it stands.
    pub fn caches(&self) -> &[ExpertCache<P>] {
        &self.caches
    }
}
