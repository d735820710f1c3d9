//! The simulator in engine order: it counts the plans that the runtime executes.

mod counts;

pub use counts::{Counts, PhaseCounts};

use moe_trace::RoutingSource;

use crate::pool::layers_in_order;
use crate::{CacheError, Demand, EvictionPolicy, ExpertCache, Plan, Pool, Request, Result, Serving, for_each_request};

/// One request as it was served.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The number of the pool.
    pub pool: usize,
    /// What was wanted.
    pub request: &'a Request<'a>,
    /// What the pool's cache decided.
    pub plan: &'a Plan,
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
    /// Place of each layer of the model among the counts.
    places: Vec<usize>,
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
        let mut places = vec![0; pools[0].geometry().layers()];
        for (place, (layer, _)) in layers.iter().enumerate() {
            places[layer.index()] = place;
        }
        let counts = vec![PhaseCounts::default(); layers.len()];
        Ok(Simulation { pools, caches, serving: Serving::default(), counts, places })
    }

    /// Serves sequences and tokens together.
    pub fn with_serving(mut self, serving: Serving) -> Simulation<P> {
        self.serving = serving;
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
        let (caches, counts, places) = (&mut self.caches, &mut self.counts, &self.places);
        for_each_request(source, &self.pools, self.serving, |demand| {
            match demand {
                Demand::Request { pool, request } => {
                    let plan = caches[pool].request(request)?;
                    counts[places[request.layer().index()]].of_mut(request.phase()).add(plan);
                    observer(&Served { pool, request: &request, plan });
                }
                Demand::SequenceEnd => caches.iter_mut().for_each(ExpertCache::sequence_end),
            }
            Ok(())
        })
    }

    /// Counts of each layer of the pools, in order of execution.
    pub fn counts(&self) -> &[PhaseCounts] {
        &self.counts
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

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};

    use super::*;
    use crate::{Lru, Oversize};

    #[test]
    fn sequences_of_another_model_are_refused() {
        let (ours, theirs) = (Geometry::decoder(1, 4, 1).unwrap(), Geometry::decoder(1, 8, 1).unwrap());
        let mut trace = MemoryTrace::new(theirs.clone());
        trace.push(SequenceBuf::from_experts(&theirs, vec![7], Phase::Decode).unwrap()).unwrap();
        let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
        let mut simulation = Simulation::new(Pool::layer(&ours, LayerId(0)).unwrap(), cache).unwrap();
        let message = simulation.run(&trace).unwrap_err().to_string();
        assert_eq!(message, "pools and sequences are not of one model");
    }

    #[test]
    fn caches_that_do_not_fit_their_pools_are_refused() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let cache = || ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
        let message = Simulation::new(Pool::model(&geometry), cache()).unwrap_err().to_string();
        assert_eq!(message, "the set is over 8 experts, the cache over 4");
        let layer = || Pool::layer(&geometry, LayerId(0)).unwrap();
        let message = Simulation::of_pools(vec![layer(), layer()], vec![cache(), cache()]).unwrap_err().to_string();
        assert_eq!(message, "layer 0 is in two pools, or twice in one");
        let message = Simulation::of_pools(vec![layer()], vec![cache(), cache()]).unwrap_err().to_string();
        assert_eq!(message, "there are 2 caches for 1 pools");
    }
}
