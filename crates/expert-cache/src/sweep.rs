//! Many policies at many capacities in one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moe_trace::{LayerId, RoutingSource};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{ExpertCache, Oversize, Partition, PhaseCounts, PolicyKind, Pool, Requests, Result, Serving, Simulation};

/// What to simulate: every policy at every capacity for every pool.
///
/// Runs are independent and in parallel; the result does not depend on the number of threads.
///
/// ```
/// use expert_cache::{Partition, PolicyKind, Sweep};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 3, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 0, 2, 0], Phase::Decode)?)?;
/// let sweep = Sweep::new(Partition::per_layer(&geometry), &[PolicyKind::Lru, PolicyKind::Belady]);
/// let pools = sweep.run(&trace, |done, runs| assert!(done <= runs && runs == 6))?;
/// let hits = |policy: usize| pools[0].policies[policy].totals().map(|counts| counts.decode.hits).collect::<Vec<_>>();
/// assert_eq!(hits(0), [0, 2, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sweep {
    partition: Partition,
    policies: Vec<PolicyKind>,
    capacities: Option<Vec<usize>>,
    serving: Serving,
    oversize: Oversize,
}

/// Results of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSweep {
    /// Layers of the pool.
    pub layers: Vec<u16>,
    /// Number of slots of each run, ascending.
    pub capacities: Vec<usize>,
    /// Results in the order of the policies.
    pub policies: Vec<PolicySweep>,
}

/// Results of one policy in one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySweep {
    /// The policy's name.
    pub policy: String,
    /// Counts of each layer of the pool, `[capacities x layers]`.
    pub counts: Vec<Vec<PhaseCounts>>,
}

impl PolicySweep {
    /// Counts of all layers together, one a capacity.
    pub fn totals(&self) -> impl Iterator<Item = PhaseCounts> + '_ {
        self.counts.iter().map(|layers| {
            let mut total = PhaseCounts::default();
            layers.iter().for_each(|counts| total.merge(counts));
            total
        })
    }
}

impl Sweep {
    /// Simulates policies at every capacity from one slot to all experts of a pool.
    pub fn new(partition: Partition, policies: &[PolicyKind]) -> Sweep {
        Sweep {
            partition,
            policies: policies.to_vec(),
            capacities: None,
            serving: Serving::default(),
            oversize: Oversize::Waves,
        }
    }

    /// Simulates only some capacities, in slots of a pool; doubles are left out.
    pub fn with_capacities(mut self, capacities: &[usize]) -> Sweep {
        let mut capacities = capacities.to_vec();
        capacities.sort_unstable();
        capacities.dedup();
        self.capacities = Some(capacities);
        self
    }

    /// Serves sequences and tokens together.
    pub fn with_serving(mut self, serving: Serving) -> Sweep {
        self.serving = serving;
        self
    }

    /// Serves requests larger than the cache in another way than in waves.
    pub fn with_oversize(mut self, oversize: Oversize) -> Sweep {
        self.oversize = oversize;
        self
    }

    /// Runs all; `progress` learns of every finished run: how many there are so far, of how many.
    ///
    /// A pool's requests are held in memory while its runs last, one pool after the other.
    ///
    /// # Errors
    /// [`CacheError::Capacity`](crate::CacheError::Capacity) for a capacity that a pool cannot have, what
    /// [`PolicyKind::build`] and [`Requests::served`] find.
    pub fn run(&self, source: &dyn RoutingSource, progress: impl Fn(usize, usize) + Sync) -> Result<Vec<PoolSweep>> {
        let capacities = |pool: &Pool| match &self.capacities {
            Some(capacities) => capacities.clone(),
            None => (1..=pool.universe()).collect(),
        };
        let pools = self.partition.pools();
        let runs = self.policies.len() * pools.iter().map(|pool| capacities(pool).len()).sum::<usize>();
        let done = AtomicUsize::new(0);
        pools
            .iter()
            .map(|pool| {
                let capacities = capacities(pool);
                let requests = Arc::new(Requests::served(source, pool, self.serving)?);
                let jobs: Vec<(PolicyKind, usize)> = (self.policies.iter())
                    .flat_map(|&policy| capacities.iter().map(move |&capacity| (policy, capacity)))
                    .collect();
                let one = |&(policy, capacity): &(PolicyKind, usize)| {
                    let counts = self.simulate(pool, &requests, policy, capacity)?;
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, runs);
                    Ok(counts)
                };
                let counts: Vec<Vec<PhaseCounts>> = jobs.par_iter().map(one).collect::<Result<_>>()?;
                let mut counts = counts.into_iter();
                let policy = |policy: &PolicyKind| PolicySweep {
                    policy: policy.to_string(),
                    counts: counts.by_ref().take(capacities.len()).collect(),
                };
                let policies = self.policies.iter().map(policy).collect();
                let layers = pool.layers().iter().map(|&LayerId(layer)| layer).collect();
                Ok(PoolSweep { layers, capacities, policies })
            })
            .collect()
    }

    fn simulate(
        &self,
        pool: &Pool,
        requests: &Arc<Requests>,
        policy: PolicyKind,
        capacity: usize,
    ) -> Result<Vec<PhaseCounts>> {
        let cache = ExpertCache::of_kind(policy, pool.shape(), capacity, self.oversize, Some(requests))?;
        let mut simulation = Simulation::new(pool.clone(), cache)?;
        simulation.replay(requests)?;
        Ok(simulation.counts().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::CacheError;

    const POLICIES: [PolicyKind; 3] = [PolicyKind::Lru, PolicyKind::Belady, PolicyKind::LookAhead { window: 3 }];

    fn trace() -> MemoryTrace {
        let geometry = Geometry::decoder(3, 6, 2).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        for sequence in 0..3u16 {
            let pair = |i: u16| [(i * i / 3 + sequence) % 6, (i * i / 3 + sequence + 1 + i % 5) % 6];
            let mut buf =
                SequenceBuf::from_experts(&geometry, (0..60).flat_map(pair).collect(), Phase::Decode).unwrap();
            buf.phases[..4].fill(Phase::Prefill.code());
            trace.push(buf).unwrap();
        }
        trace
    }

    #[test]
    fn a_sweep_equals_one_simulation_a_run_whatever_the_threads() {
        let trace = trace();
        let serving = Serving::new(2, 2).unwrap();
        for partition in [Partition::per_layer(trace.geometry()), Partition::grouped(trace.geometry(), 2).unwrap()] {
            let sweep = Sweep::new(partition.clone(), &POLICIES).with_serving(serving);
            let seen = AtomicUsize::new(0);
            let run = |threads| {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| sweep.run(&trace, |_, _| _ = seen.fetch_add(1, Ordering::Relaxed)).unwrap())
            };
            let swept = run(1);
            assert_eq!(swept, run(3));
            assert_eq!(seen.into_inner(), 2 * POLICIES.len() * 18);
            for (pool, swept) in partition.pools().iter().zip(swept) {
                assert_eq!(swept.capacities, (1..=pool.universe()).collect::<Vec<_>>());
                let future = Arc::new(Requests::served(&trace, pool, serving).unwrap());
                for (kind, swept) in POLICIES.iter().zip(&swept.policies) {
                    assert_eq!(swept.policy, kind.to_string());
                    for (capacity, counts) in (1..).zip(&swept.counts) {
                        let policy = kind.build(pool.shape(), capacity, Some(&future)).unwrap();
                        let cache = ExpertCache::new(policy, pool.universe(), capacity, Oversize::Waves).unwrap();
                        let mut simulation = Simulation::new(pool.clone(), cache).unwrap().with_serving(serving);
                        simulation.run(&trace).unwrap();
                        assert_eq!(simulation.counts(), counts, "{kind} with {capacity} slots");
                    }
                }
            }
        }
    }

    #[test]
    fn capacities_are_sorted_and_checked() {
        let trace = trace();
        let sweep = |capacities: &[usize]| {
            let sweep = Sweep::new(Partition::per_layer(trace.geometry()), &POLICIES[..1]);
            sweep.with_capacities(capacities).with_oversize(Oversize::Bypass).run(&trace, |_, _| ())
        };
        let pools = sweep(&[4, 1, 4]).unwrap();
        assert_eq!(pools[2].capacities, [1, 4]);
        let totals: Vec<PhaseCounts> = pools[2].policies[0].totals().collect();
        assert!(totals[0].total().bypasses > 0 && totals[1].total().hits > totals[0].total().hits);
        assert_eq!(sweep(&[0]).unwrap_err().to_string(), "capacity is 0 slots, allowed are 1..=6");
        assert!(matches!(sweep(&[7]), Err(CacheError::Capacity { capacity: 7, experts: 6 })));
    }
}
