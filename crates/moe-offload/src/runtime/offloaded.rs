//! A bank that holds a few experts on the device and executes plans for the others.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use expert_cache::{
    CacheError, ExpertCache, ExpertKey, Hit, Lru, Oversize, Partition, Pool, PrefetchPlanner, RequestBuffer,
    ResidentProfile,
};
use moe_trace::{EMPTY_SLOT, ExpertId, Geometry, LayerId, Phase};

use super::call::{Call, Scratch};
use super::engine::{Engine, State};
use super::meter::LayerMeter;
use super::options::{ChosenPrefetcher, OffloadOptions, PrefetchOptions};
use super::read_ahead_queue::{ReadAheadOptions, ReadAheadQueue};
use super::slot_order::{Job, Place, Reason, SlotOrder};
use super::transfers::{Transfers, Workers};
use crate::bank::ExpertBank;
use crate::dispatch::Dispatch;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes};
use crate::report::{BankReport, LayerCounters, RunTimeline};
use crate::routes::Routes;
use crate::slots::new_slots;
use crate::store::ExpertStore;

/// An [`ExpertBank`] of a cache a pool of layers: slots on the compute device, all weights in an [`ExpertStore`].
///
/// Hits are computed from their slots while misses are loaded; an expert that was loaded is computed when it has arrived,
/// and the next wave of a request larger than its pool is loaded into the slots that the running wave has left. Bypassed
/// experts are computed in host memory meanwhile. The results are bit-identical to
/// [`ResidentExperts`](crate::ResidentExperts) of the same weights, unless [`Exactness::Tolerant`](crate::Exactness)
/// allows otherwise.
///
/// Several threads may share a bank. Calls of layers of different pools run side by side, those of one pool take turns. On a
/// worker of rayon a call whose turn is taken is refused, as [`ExpertBank`] says.
///
/// Two models of equally shaped experts share one pool if a store holds the layers of both, one after the other, and a
/// [`Partition`] puts them together.
///
/// A failed load fails its call, which waits for its other loads and is rolled back; the bank goes on. A failed prefetch
/// fails nobody and gives its slot back; an expert that is wanted all the same is loaded again. A policy that knows the
/// future is one request ahead after a failed call: it still chooses valid victims, but no longer the best.
#[derive(Debug)]
pub struct OffloadedExperts {
    engine: Arc<Engine>,
    /// Held only to be dropped.
    _workers: Workers,
    transfers: Transfers,
    /// How long a call waits for a load, where other threads load.
    load_timeout: Option<Duration>,
    /// Whether the host may compute experts.
    host: bool,
    capacities: Vec<usize>,
    /// The pool of each layer, and the key of the layer's first expert in it.
    places: Vec<(usize, u32)>,
    /// Who serves a call of each pool.
    turns: Vec<Mutex<Turn>>,
}

/// What the call needs that has the turn.
#[derive(Debug)]
struct Turn {
    /// Whether requests must come with router mass.
    needs_router_weights: bool,
    request: RequestBuffer,
    scratch: Scratch,
}

impl OffloadedExperts {
    /// Allocates the slots on `device`.
    ///
    /// # Errors
    /// [`OffloadError::Cache`] for a capacity of 0 or above the experts of a pool, for a profile of other pools, or from
    /// a policy; [`OffloadError::PoolCapacities`], [`OffloadError::PoolShape`], [`OffloadError::Inexact`],
    /// [`OffloadError::WhatIf`], [`OffloadError::NothingPredicts`] for options that do not fit; [`OffloadError::Size`],
    /// [`OffloadError::StoreTypes`], [`OffloadError::Blocks`] for a store that is of no model;
    /// [`OffloadError::Device`], or [`OffloadError::Tensor`] if the device has no room; [`OffloadError::HostMemory`];
    /// [`OffloadError::Thread`]; [`OffloadError::Load`] for a resident of the profile.
    pub fn new(
        store: Arc<dyn ExpertStore>,
        device: &Device,
        mut options: OffloadOptions<'_>,
    ) -> Result<OffloadedExperts> {
        store.check()?;
        let shape = store.shape();
        options.check(device)?;
        let host = options.exactness.allows_host(device.is_cpu());
        let transfers = options.transfers;
        let load_timeout = options.load_timeout.filter(|_| transfers != Transfers::Inline);
        let partition = pools_of(shape, options.partition.take())?;
        let pools = partition.pools();
        let types = pools.iter().map(|pool| types_of(pool, store.weight_types())).collect::<Result<Vec<_>>>()?;
        let pool_bytes: Vec<u64> = types.iter().map(|&types| shape.expert_bytes(types) as u64).collect();
        let capacities = options.capacity.slots(&partition, &pool_bytes, device)?;
        let pools = partition.into_pools();
        let mut caches = caches_of(&pools, &capacities, &mut options)?;
        let geometry = pools[0].geometry();
        let slots = capacities.iter().zip(&types);
        let slots = slots.map(|(&capacity, &types)| new_slots(capacity, shape, types, device));
        let slots = slots.collect::<Result<_>>()?;
        let order = SlotOrder::new(&capacities);
        let mut fill = Vec::new();
        if let Some(profile) = options.profile {
            profile.warm(&pools, &mut caches)?;
            fill = residents(&profile, &pools, &capacities)?;
        }
        let place = |layer| {
            let first = |pool: &Pool| Some(pool.key(layer, ExpertId(0))?.0);
            let found = pools.iter().enumerate().find_map(|(number, pool)| Some((number, first(pool)?)));
            found.expect("a partition covers every layer")
        };
        let places: Vec<(usize, u32)> = geometry.layer_ids().map(place).collect();
        let prefetching = options.prefetch.as_ref().is_some_and(|prefetch| prefetch.per_request > 0);
        let (planner, read_ahead) = planner_of(&store, &pools, options.prefetch, options.read_ahead)?;
        let turn = |(pool, cache): (&Pool, &ExpertCache)| {
            let needs_router_weights = cache.policy().needs_router_weights() || cache.misses().needs_mass();
            Mutex::new(Turn {
                needs_router_weights,
                request: RequestBuffer::new(pool.universe()),
                scratch: Scratch::default(),
            })
        };
        let turns = pools.iter().zip(&caches).map(turn).collect();
        let prefetching = prefetching && planner.is_some();
        let meters = (0..shape.layers).map(|_| LayerMeter::default()).collect();
        let engine = Arc::new(Engine {
            expert_bytes: store.weight_types().iter().map(|&types| shape.expert_bytes(types) as u64).collect(),
            store,
            pools,
            slots,
            state: Mutex::new(State { caches, order, planner, read_ahead, meters, stopping: false }),
            work: Condvar::new(),
            done: Condvar::new(),
            timeline: (options.timeline_events > 0).then(|| RunTimeline::new(options.timeline_events)),
        });
        let workers = Workers::start(&engine, transfers, prefetching)?;
        engine.fill(fill)?;
        Ok(OffloadedExperts { engine, _workers: workers, transfers, load_timeout, host, capacities, places, turns })
    }

    /// Counters of each layer since the bank was made.
    ///
    /// # Errors
    /// [`OffloadError::Poisoned`].
    pub fn counters(&self) -> Result<Vec<LayerCounters>> {
        let state = self.engine.lock(LayerId(0))?;
        Ok((0..state.meters.len()).map(|layer| state.counters(layer)).collect())
    }

    /// Counters, latencies and sizes since the bank was made.
    ///
    /// # Errors
    /// [`OffloadError::Poisoned`].
    pub fn report(&self) -> Result<BankReport> {
        let state = self.engine.lock(LayerId(0))?;
        let mut total = LayerMeter::default();
        state.meters.iter().for_each(|meter| total.merge(meter));
        let mut report = BankReport {
            slots: self.capacities.clone(),
            slot_bytes: self.slot_bytes(),
            expert_bytes: self.expert_bytes(),
            layers: state.meters.iter().map(LayerMeter::report).collect(),
            total: total.report(),
        };
        for (number, layer) in report.layers.iter_mut().enumerate() {
            layer.prefetch.counts = state.counters(number).prefetch.counts;
            report.total.prefetch.counts.merge(&layer.prefetch.counts);
        }
        let read_ahead = state.read_ahead.as_ref().map(ReadAheadQueue::counters).unwrap_or_default();
        for (layer, &read_ahead) in report.layers.iter_mut().zip(read_ahead) {
            layer.read_ahead = read_ahead;
            report.total.read_ahead.merge(&read_ahead);
        }
        if let Some(host) = self.engine.store.host_reports() {
            report.layers.iter_mut().zip(host.layers).for_each(|(layer, host)| layer.host = Some(host));
            report.total.host = Some(host.total);
        }
        Ok(report)
    }

    /// What the threads of the bank did, if [`OffloadOptions::record_timeline`] asked for it.
    pub fn timeline(&self) -> Option<&RunTimeline> {
        self.engine.timeline.as_ref()
    }

    /// Which experts are resident, for [`OffloadOptions::warm`] of another run.
    ///
    /// # Errors
    /// [`OffloadError::Poisoned`].
    pub fn resident_profile(&self) -> Result<ResidentProfile> {
        Ok(ResidentProfile::of(&self.engine.pools, &self.engine.lock(LayerId(0))?.caches)?)
    }

    /// Takes the turn of a pool, and waits for it where that is safe.
    fn turn(&self, layer: LayerId, pool: usize) -> Result<MutexGuard<'_, Turn>> {
        match self.turns[pool].try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
            // The call that has the turn may wait for this very thread to multiply its part of a matrix.
            Err(TryLockError::WouldBlock) if rayon::current_thread_index().is_some() => {
                Err(OffloadError::RayonWorker { layer })
            }
            Err(TryLockError::WouldBlock) => Ok(self.turns[pool].lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    #[cfg(test)]
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The pools of layers that share slots.
    pub fn pools(&self) -> &[Pool] {
        &self.engine.pools
    }

    /// Slots of each pool.
    pub fn capacities(&self) -> &[usize] {
        &self.capacities
    }

    /// Bytes of the slots of all pools.
    pub fn slot_bytes(&self) -> u64 {
        let bytes = |(pool, &slots): (&Pool, &usize)| slots as u64 * self.engine.expert_bytes[pool.layers()[0].index()];
        self.engine.pools.iter().zip(&self.capacities).map(bytes).sum()
    }

    /// Bytes that the experts of all layers have as they are computed.
    pub fn expert_bytes(&self) -> u64 {
        self.engine.store.bytes()
    }
}

/// Types of the experts of a pool, which are alike, so that every slot holds any of them.
fn types_of(pool: &Pool, types: &[ExpertTypes]) -> Result<ExpertTypes> {
    let first = pool.layers()[0];
    let expected = types[first.index()];
    match pool.layers().iter().find(|layer| types[layer.index()] != expected) {
        Some(&layer) => Err(OffloadError::PoolTypes { first, expected, layer, found: types[layer.index()] }),
        None => Ok(expected),
    }
}

/// The empty cache of each pool.
fn caches_of(pools: &[Pool], capacities: &[usize], options: &mut OffloadOptions<'_>) -> Result<Vec<ExpertCache>> {
    let cache = |(pool, &capacity): (&Pool, &usize)| {
        let policy = (options.policy)(pool, capacity)?;
        let cache = ExpertCache::new(policy, pool.universe(), capacity, options.oversize)?;
        let cache = cache.with_misses(options.misses.clone());
        match options.prefill_quota {
            Some(quota) => Ok(cache.with_prefill_quota(quota)?),
            None => Ok(cache),
        }
    };
    pools.iter().zip(capacities).map(cache).collect()
}

/// Returns the planner of prefetches of a model, and the queue of what is read ahead, if there are any.
fn planner_of(
    store: &Arc<dyn ExpertStore>,
    pools: &[Pool],
    prefetch: Option<PrefetchOptions>,
    read_ahead: Option<ReadAheadOptions>,
) -> Result<(Option<PrefetchPlanner>, Option<ReadAheadQueue>)> {
    let (chosen, per_request) = prefetch.map_or((None, 0), |chosen| (Some(chosen.prefetcher), chosen.per_request));
    let prefetcher = match chosen {
        Some(ChosenPrefetcher::Kind { kind, ahead }) => kind.build(pools[0].geometry(), ahead, None, 0)?,
        Some(ChosenPrefetcher::Made(prefetcher)) => Some(prefetcher),
        None => None,
    };
    let Some(prefetcher) = prefetcher else {
        return match read_ahead {
            Some(ReadAheadOptions { per_request, .. }) => Err(OffloadError::NothingPredicts { per_request }),
            None => Ok((None, None)),
        };
    };
    let leftovers = read_ahead.map_or(0, |options| options.per_request);
    let queue = read_ahead.map(|options| ReadAheadQueue::new(store, options)).transpose()?;
    Ok((Some(PrefetchPlanner::new(prefetcher, per_request, pools).with_leftovers(leftovers)), queue))
}

/// The pools of a bank: those chosen, or one a layer.
fn pools_of(shape: ExpertShape, chosen: Option<Partition>) -> Result<Partition> {
    let partition = match chosen {
        Some(partition) => partition,
        None => Partition::per_layer(&Geometry::decoder(shape.layers, shape.experts, 1).map_err(CacheError::from)?),
    };
    let geometry = partition.pools()[0].geometry();
    if (geometry.layers(), geometry.experts()) != (shape.layers, shape.experts) {
        return Err(OffloadError::PoolShape {
            found_layers: geometry.layers(),
            found_experts: geometry.experts(),
            layers: shape.layers,
            experts: shape.experts,
        });
    }
    Ok(partition)
}

/// Where the residents of a profile lie in caches that were made warm by it, as the loads that bring them there.
fn residents(profile: &ResidentProfile, pools: &[Pool], capacities: &[usize]) -> Result<Vec<Job>> {
    // A cache tells slots by its plans. Asking the banks' caches would tell their policies, so others are asked.
    let cache = |(pool, &capacity): (&Pool, &usize)| {
        ExpertCache::new(Lru::new(pool.universe()), pool.universe(), capacity, Oversize::Waves)
    };
    let mut caches = pools.iter().zip(capacities).map(cache).collect::<Result<Vec<_>, _>>()?;
    profile.warm(pools, &mut caches)?;
    let mut residents = Vec::new();
    for (pool, cache) in caches.iter_mut().enumerate() {
        let resident = cache.resident().clone();
        let job = |hit: &Hit| Job {
            place: Place { pool, slot: hit.slot },
            key: hit.key,
            reason: Reason::Demand(Phase::Prefill),
        };
        residents.extend(cache.request(&resident)?.hits().iter().map(job));
    }
    Ok(residents)
}

impl ExpertBank for OffloadedExperts {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        let layers = self.places.len();
        let &(pool, first_key) =
            self.places.get(layer.index()).ok_or(OffloadError::LayerOutOfRange { layer, layers })?;
        let dispatch = Dispatch::new(layer, hidden.dim(0)?, routes, self.engine.store.shape().experts)?;
        if routes.tokens() == 0 {
            return Ok(hidden.clone());
        }
        let (transfers, load_timeout, host, phase) = (self.transfers, self.load_timeout, self.host, routes.phase());
        let (engine, dispatch) = (&*self.engine, &dispatch);
        let outputs = {
            // What a call that panicked has left in its lists is cleared before it is used.
            let mut turn = self.turn(layer, pool)?;
            let Turn { needs_router_weights, request, scratch } = &mut *turn;
            want(request, routes, first_key, *needs_router_weights)?;
            let call = Call { engine, transfers, load_timeout, host, pool, first_key, layer, phase, dispatch, hidden };
            call.serve(&request.request(layer, phase), scratch)?
        };
        dispatch.combine(layer, outputs, hidden, routes)
    }

    /// Tells the policies of all pools, and the prefetcher; what is resident stays.
    fn sequence_end(&self) -> Result<()> {
        let mut state = self.engine.lock(LayerId(0))?;
        state.caches.iter_mut().for_each(ExpertCache::sequence_end);
        state.planner.iter_mut().for_each(PrefetchPlanner::sequence_end);
        Ok(())
    }
}

/// Puts the request together that the simulator would replay from a trace of these routes.
fn want(request: &mut RequestBuffer, routes: &Routes, first_key: u32, mass: bool) -> Result<()> {
    // The weights may lie on a device, and reading them waits for it.
    let weights: Option<Vec<f32>> =
        mass.then(|| routes.weights().to_dtype(DType::F32)?.flatten_all()?.to_vec1()).transpose()?;
    request.clear();
    for (place, &expert) in routes.experts().iter().enumerate() {
        if place % routes.top_k() == 0 {
            request.token();
        }
        if expert != EMPTY_SLOT {
            let key = ExpertKey(first_key + u32::from(expert));
            request.want(key, weights.as_ref().map(|weights| weights[place]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expert_cache::PolicyKind;

    use super::*;
    use crate::runtime::capacity::Capacity;

    /// Only another device forbids what the host computes, so the bank is told that it has one.
    #[test]
    fn a_load_declined_by_a_closures_policy_is_an_error_where_the_host_computes_otherwise() {
        let store = Arc::new(crate::runtime::stress::host_store());
        let policy = |pool: &Pool, slots| PolicyKind::Hysteresis { dwell: 100 }.build(pool.shape(), slots, None);
        let options = OffloadOptions::new(Capacity::Slots(1)).policy_with(policy);
        let mut bank = OffloadedExperts::new(store, &Device::Cpu, options).unwrap();
        let forward = |bank: &OffloadedExperts, expert| {
            let ones = |width| Tensor::ones((1, width), DType::F32, &Device::Cpu).unwrap();
            bank.forward(LayerId(1), &ones(8), &Routes::new(vec![expert], ones(1), Phase::Decode).unwrap())
        };
        bank.host = false;
        forward(&bank, 3).unwrap();
        assert_eq!(
            forward(&bank, 4).unwrap_err().to_string(),
            "layer 1, expert 4: the policy declined a load, and computing on the host is not exact on this device"
        );
        bank.host = true;
        forward(&bank, 4).unwrap();
        assert_eq!(bank.counters().unwrap()[1].decode.counts.bypasses, 1);
    }
}
