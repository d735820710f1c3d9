//! What a cache in host memory will do below the slots of a bank.

use expert_cache::{ExpertKey, PolicyKind, Pool, Served};

use super::expert_store::ExpertStore;
use super::host_requests::HostRequests;
use crate::error::Result;
use crate::expert::ExpertShape;
use crate::report::HostCounters;

/// A simulation of a [`HostCache`](crate::HostCache) below the slots of an [`OffloadedExperts`](crate::OffloadedExperts).
///
/// It observes an [`expert_cache::Simulation`] of the slots and makes the requests that the bank makes, in the bank's order:
/// first the experts that the host computes, then the loads, then the prefetches. Its counters equal those of a bank that
/// loads on the calling thread, whatever the policies of slots and host memory are. They may differ from those of a bank with
/// [`Transfers::Threads`](crate::Transfers), with experts that are [read ahead](crate::OffloadOptions::read_ahead) or with
/// several calling threads, because there the clock decides which expert reaches the cache first.
///
/// ```
/// use std::sync::Arc;
/// use candle_core::{DType, Device};
/// use expert_cache::{ExpertCache, Lru, Oversize, Partition, PolicyKind, Simulation};
/// use moe_offload::{
///     ExpertShape, HostCache, HostSimulation, OffloadOptions, OffloadedExperts, RandomExperts, Replay, WeightType,
/// };
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 4, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 0, 2, 1, 3, 0], Phase::Decode)?)?;
///
/// // One slot for the layer's experts, and host memory for two of them.
/// let shape = ExpertShape { layers: 1, experts: 4, hidden: 8, intermediate: 8 };
/// let experts = Arc::new(RandomExperts::new(shape, WeightType::F32, 0)?);
/// let host_bytes = 2 * shape.expert_bytes(WeightType::F32) as u64;
/// let partition = Partition::per_layer(&geometry);
/// let caches = vec![ExpertCache::new(Lru::new(4), 4, 1, Oversize::Waves)?];
/// let mut slots = Simulation::of_pools(partition.pools().to_vec(), caches)?;
/// let mut host = HostSimulation::new(&*experts, host_bytes, PolicyKind::Lru)?;
/// let mut outcome = Ok(());
/// slots.observe(&trace, |served| outcome = std::mem::replace(&mut outcome, Ok(())).and(host.serve(partition.pools(), served)))?;
/// outcome?;
///
/// let cache = Arc::new(HostCache::new(experts, host_bytes, PolicyKind::Lru)?);
/// let bank = OffloadedExperts::new(cache.clone(), &Device::Cpu, OffloadOptions::slots(1))?;
/// Replay::new(&trace, shape.hidden, DType::F32, &Device::Cpu)?.run(&bank, |_| ())?;
/// let (simulated, counted) = (host.total(), cache.counters()[0]);
/// assert_eq!((simulated.hits, simulated.loads), (1, 6));
/// assert_eq!((counted.hits, counted.loads), (1, 6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct HostSimulation {
    shape: ExpertShape,
    requests: HostRequests,
    layers: Vec<HostTraffic>,
}

/// Simulated counters of the experts of one layer in host memory; seconds are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostTraffic {
    /// Experts that are copied into slots.
    pub loaded: HostCounters,
    /// Experts that the host computes.
    pub computed: HostCounters,
}

impl HostSimulation {
    /// Simulates a cache of at most `bytes` in front of a store.
    ///
    /// # Errors
    /// As [`HostCache::new`](crate::HostCache::new).
    pub fn new(store: &dyn ExpertStore, bytes: u64, policy: PolicyKind) -> Result<HostSimulation> {
        store.check()?;
        let shape = store.shape();
        let requests = HostRequests::new(shape, store.weight_types(), bytes, policy)?;
        Ok(HostSimulation { shape, requests, layers: vec![HostTraffic::default(); shape.layers] })
    }

    /// Requests what a served request of the slots asks of host memory; `pools` are those of the slots.
    ///
    /// # Errors
    /// [`OffloadError::LayerOutOfRange`](crate::OffloadError::LayerOutOfRange),
    /// [`OffloadError::NoSuchExpert`](crate::OffloadError::NoSuchExpert) for pools of another model.
    ///
    /// # Panics
    /// If `pools` are not those of the simulation.
    pub fn serve(&mut self, pools: &[Pool], served: &Served<'_>) -> Result<()> {
        for &key in served.plan.bypasses() {
            self.want(&pools[served.pool], key, |traffic| &mut traffic.computed)?;
        }
        for load in served.plan.loads() {
            self.want(&pools[served.pool], load.key, |traffic| &mut traffic.loaded)?;
        }
        for prefetched in served.prefetches() {
            self.want(&pools[prefetched.pool], prefetched.load.key, |traffic| &mut traffic.loaded)?;
        }
        Ok(())
    }

    fn want(&mut self, pool: &Pool, key: ExpertKey, of: fn(&mut HostTraffic) -> &mut HostCounters) -> Result<()> {
        let (layer, expert) = pool.expert(key).expect("keys of a plan are the pool's");
        let index = self.shape.index(layer, expert)?;
        let bytes = self.requests.bytes(index);
        let plan = self.requests.want(layer, index)?;
        let counters = of(&mut self.layers[layer.index()]);
        match (plan.hits().len(), plan.loads().len()) {
            (1, _) => {
                counters.hits += 1;
                counters.hit_bytes += bytes;
            }
            (_, 1) => {
                counters.loads += 1;
                counters.loaded_bytes += bytes;
            }
            _ => {
                counters.bypasses += 1;
                counters.loaded_bytes += bytes;
            }
        }
        Ok(())
    }

    /// Counters of each layer.
    pub fn layers(&self) -> &[HostTraffic] {
        &self.layers
    }

    /// Counters of all layers, of loaded and computed experts together.
    pub fn total(&self) -> HostCounters {
        let mut total = HostCounters::default();
        for layer in &self.layers {
            total.merge(&layer.loaded);
            total.merge(&layer.computed);
        }
        total
    }
}
