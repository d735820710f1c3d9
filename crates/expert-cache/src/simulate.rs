//! The simulator in engine order: it counts the plans that the runtime executes.

use moe_trace::{Geometry, LayerId, Phase, RoutingSource, Sequence};
use serde::Serialize;

use crate::requests::{check_pool, for_each_request};
use crate::{CacheError, EvictionPolicy, ExpertCache, Plan, Pool, RequestBuffer, Result};

/// What became of the experts that requests wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Number of requests.
    pub requests: u64,
    /// Experts found resident.
    pub hits: u64,
    /// Experts loaded.
    pub loads: u64,
    /// Experts served without being resident.
    pub bypasses: u64,
}

impl Counts {
    /// Counts the plan of one request.
    pub fn add(&mut self, plan: &Plan) {
        self.requests += 1;
        self.hits += plan.hits().len() as u64;
        self.loads += plan.loads().len() as u64;
        self.bypasses += plan.bypasses().len() as u64;
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.hits += other.hits;
        self.loads += other.loads;
        self.bypasses += other.bypasses;
    }

    /// Experts wanted: hits, loads and bypasses.
    pub fn accesses(&self) -> u64 {
        self.hits + self.loads + self.bypasses
    }

    /// Hits an access; 0 without accesses.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn hit_rate(&self) -> f64 {
        if self.accesses() == 0 { 0.0 } else { self.hits as f64 / self.accesses() as f64 }
    }
}

/// Counts, prefill and decode apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PhaseCounts {
    /// Requests of prefilled tokens.
    pub prefill: Counts,
    /// Requests of decoded tokens.
    pub decode: Counts,
}

impl PhaseCounts {
    /// Counts of a phase.
    pub fn of(&self, phase: Phase) -> &Counts {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Counts of a phase, to be changed.
    pub fn of_mut(&mut self, phase: Phase) -> &mut Counts {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &PhaseCounts) {
        self.prefill.merge(&other.prefill);
        self.decode.merge(&other.decode);
    }

    /// Both phases together.
    pub fn total(&self) -> Counts {
        let mut total = self.prefill;
        total.merge(&self.decode);
        total
    }
}

/// A running simulation of one cache, fed sequence by sequence; the cache stays warm from one to the next.
///
/// It counts what a runtime does that serves one sequence at a time, each turn's prefill in one pass.
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
/// let mut simulation = Simulation::new(&geometry, Pool::Layer(LayerId(0)), cache)?;
/// simulation.run(&trace)?;
/// // {0,1} is cold, {1,2} hits 1, {1,2} hits both, {0,1} hits 1.
/// assert_eq!(simulation.counts()[0].decode.hits, 4);
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Debug)]
pub struct Simulation<P> {
    geometry: Geometry,
    pool: Pool,
    cache: ExpertCache<P>,
    /// One entry a layer of the pool.
    counts: Vec<PhaseCounts>,
    buffer: RequestBuffer,
}

impl<P: EvictionPolicy> Simulation<P> {
    /// Creates a simulation of `cache` serving `pool`.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`](crate::CacheError::LayerOutOfRange) if the pool's layer does not exist.
    pub fn new(geometry: &Geometry, pool: Pool, cache: ExpertCache<P>) -> Result<Simulation<P>> {
        check_pool(geometry, pool)?;
        let counts = vec![PhaseCounts::default(); pool.layers(geometry).count()];
        let buffer = RequestBuffer::new(pool.universe(geometry));
        Ok(Simulation { geometry: geometry.clone(), pool, cache, counts, buffer })
    }

    /// Serves a sequence.
    ///
    /// # Errors
    /// [`CacheError::Geometry`](crate::CacheError::Geometry) if the sequence is of another model,
    /// [`CacheError::Universe`](crate::CacheError::Universe) if the cache is of another pool.
    pub fn serve(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        if *sequence.geometry() != self.geometry {
            return Err(CacheError::Geometry);
        }
        let first = self.pool.layers(&self.geometry).next().map_or(0, LayerId::index);
        let (cache, counts, mut outcome) = (&mut self.cache, &mut self.counts, Ok(()));
        for_each_request(sequence, self.pool, &mut self.buffer, |request| {
            if outcome.is_ok() {
                let counts = counts[request.layer().index() - first].of_mut(request.phase());
                outcome = cache.request(*request).map(|plan| counts.add(plan));
            }
        });
        self.cache.sequence_end();
        outcome
    }

    /// Serves every sequence of a source, one after the other.
    ///
    /// # Errors
    /// As [`serve`](Self::serve), and [`CacheError::Trace`](crate::CacheError::Trace) if a sequence cannot be read.
    pub fn run(&mut self, source: &dyn RoutingSource) -> Result<()> {
        (0..source.len()).try_for_each(|index| self.serve(&source.sequence(index)?))
    }

    /// Counts of each layer of the pool.
    pub fn counts(&self) -> &[PhaseCounts] {
        &self.counts
    }

    /// The cache as it stands.
    pub fn cache(&self) -> &ExpertCache<P> {
        &self.cache
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{MemoryTrace, SequenceBuf};

    use super::*;
    use crate::{Lru, Oversize};

    #[test]
    fn sequences_of_another_model_are_refused() {
        let (ours, theirs) = (Geometry::decoder(1, 4, 1).unwrap(), Geometry::decoder(1, 8, 1).unwrap());
        let mut trace = MemoryTrace::new(theirs.clone());
        trace.push(SequenceBuf::from_experts(&theirs, vec![7], Phase::Decode).unwrap()).unwrap();
        let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
        let mut simulation = Simulation::new(&ours, Pool::Layer(LayerId(0)), cache).unwrap();
        let message = simulation.run(&trace).unwrap_err().to_string();
        assert_eq!(message, "the sequence has another geometry than the simulation was made for");
    }

    #[test]
    fn layers_and_pools_that_do_not_exist_are_refused() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let cache = || ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
        let message = Simulation::new(&geometry, Pool::Layer(LayerId(2)), cache()).unwrap_err().to_string();
        assert_eq!(message, "layer 2 is out of range, the trace has 2 MoE layers");
        let mut trace = MemoryTrace::new(geometry.clone());
        trace.push(SequenceBuf::from_experts(&geometry, vec![1, 2], Phase::Decode).unwrap()).unwrap();
        let mut simulation = Simulation::new(&geometry, Pool::Model, cache()).unwrap();
        assert_eq!(simulation.run(&trace).unwrap_err().to_string(), "the set is over 8 experts, the cache over 4");
    }
}
