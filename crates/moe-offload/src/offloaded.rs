//! A bank that holds a few experts on the device and executes plans for the others.

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};
use expert_cache::{
    CacheError, EvictionPolicy, ExpertCache, ExpertKey, Hit, Lru, Oversize, Partition, Pool, RequestBuffer,
    ResidentProfile,
};
use moe_trace::{EMPTY_SLOT, ExpertId, Geometry, LayerId};

use crate::dispatch::Dispatch;
use crate::execute::Execution;
use crate::{
    CpuSlots, Exactness, ExpertBank, ExpertShape, ExpertSlots, ExpertStore, LayerCounters, OffloadError,
    OffloadOptions, Result, Routes, WeightType,
};

/// An [`ExpertBank`] of a cache a pool of layers: slots on the compute device, all weights in an [`ExpertStore`].
///
/// Hits are computed from their slots, misses are loaded first, and bypassed experts are computed in host memory. The
/// results are bit-identical to [`ResidentExperts`](crate::ResidentExperts) of the same weights, unless
/// [`Exactness::Tolerant`] allows otherwise.
///
/// A failed load fails its call and is rolled back; the bank goes on. A policy that knows the future is one request
/// ahead after a failed call: it still chooses valid victims, but no longer the best.
#[derive(Debug)]
pub struct OffloadedExperts {
    store: Arc<dyn ExpertStore>,
    device: Device,
    exactness: Exactness,
    pools: Vec<Pool>,
    capacities: Vec<usize>,
    /// The pool of each layer, and the key of the layer's first expert in it.
    places: Vec<(usize, u32)>,
    caches: Vec<Mutex<PoolCache>>,
    counters: Vec<Mutex<LayerCounters>>,
}

#[derive(Debug)]
struct PoolCache {
    cache: ExpertCache<Box<dyn EvictionPolicy>>,
    slots: Box<dyn ExpertSlots>,
    /// Scratch.
    request: RequestBuffer,
}

impl OffloadedExperts {
    /// Allocates the slots on `device`.
    ///
    /// # Errors
    /// [`OffloadError::Cache`] for a capacity of 0 or above the experts of a pool, for a profile of other pools, or from
    /// a policy; [`OffloadError::PoolCapacities`], [`OffloadError::PoolShape`], [`OffloadError::Inexact`],
    /// [`OffloadError::WhatIf`] for options that do not fit; [`OffloadError::Device`], or [`OffloadError::Tensor`] if the
    /// device has no room; a resident of the profile that cannot be loaded.
    pub fn new(store: Arc<dyn ExpertStore>, device: &Device, options: OffloadOptions<'_>) -> Result<OffloadedExperts> {
        let (shape, weight_type) = (store.shape(), store.weight_type());
        shape.check()?;
        options.check(device)?;
        let exactness = options.exactness;
        let OffloadOptions { capacity, partition, mut policy, oversize, misses, prefill_quota, profile, .. } = options;
        let partition = pools_of(shape, partition)?;
        let capacities = capacity.slots(&partition, shape.expert_bytes(weight_type) as u64, device)?;
        let pools = partition.into_pools();
        let mut caches = Vec::with_capacity(pools.len());
        for (pool, &capacity) in pools.iter().zip(&capacities) {
            let cache = ExpertCache::new(policy(pool, capacity)?, pool.universe(), capacity, oversize)?;
            let cache = cache.with_misses(misses.clone());
            caches.push(match prefill_quota {
                Some(quota) => cache.with_prefill_quota(quota),
                None => cache,
            });
        }
        let slots = capacities.iter().map(|&capacity| new_slots(capacity, shape, weight_type, device));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        if let Some(profile) = profile {
            profile.warm(&pools, &mut caches)?;
            for (number, resident) in residents(&profile, &pools, &capacities)? {
                let (layer, expert) = pools[number].expert(resident.key).expect("a key of the pool");
                store.with_bytes(layer, expert, &mut |bytes| slots[number].load(resident.slot, bytes))?;
            }
        }
        let place = |layer| {
            let first = |pool: &Pool| Some(pool.key(layer, ExpertId(0))?.0);
            let found = pools.iter().enumerate().find_map(|(number, pool)| Some((number, first(pool)?)));
            found.expect("a partition covers every layer")
        };
        let places = pools[0].geometry().layer_ids().map(place).collect();
        let caches = caches.into_iter().zip(slots).zip(&pools).map(|((cache, slots), pool)| {
            Mutex::new(PoolCache { cache, slots, request: RequestBuffer::new(pool.universe()) })
        });
        let caches = caches.collect();
        let counters = (0..shape.layers).map(|_| Mutex::default()).collect();
        let device = device.clone();
        Ok(OffloadedExperts { store, device, exactness, pools, capacities, places, caches, counters })
    }

    /// Counters of each layer since the bank was made.
    ///
    /// # Errors
    /// [`OffloadError::Poisoned`].
    pub fn counters(&self) -> Result<Vec<LayerCounters>> {
        let layers = (0..).map(LayerId).zip(&self.counters);
        layers.map(|(layer, counters)| Ok(*counters.lock().map_err(|_| OffloadError::Poisoned { layer })?)).collect()
    }

    /// The pools of layers that share slots.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Slots of each pool.
    pub fn capacities(&self) -> &[usize] {
        &self.capacities
    }

    /// Bytes of the slots of all pools.
    pub fn slot_bytes(&self) -> usize {
        self.capacities.iter().sum::<usize>() * self.store.shape().expert_bytes(self.store.weight_type())
    }

    /// Bytes that the experts of all layers have as they are computed.
    pub fn expert_bytes(&self) -> usize {
        let shape = self.store.shape();
        shape.layers * shape.experts * shape.expert_bytes(self.store.weight_type())
    }

    fn cache(&self, number: usize, layer: LayerId) -> Result<MutexGuard<'_, PoolCache>> {
        self.caches[number].lock().map_err(|_| OffloadError::Poisoned { layer })
    }
}

/// Allocates slots on a device.
pub(crate) fn new_slots(
    capacity: usize,
    shape: ExpertShape,
    weight_type: WeightType,
    device: &Device,
) -> Result<Box<dyn ExpertSlots>> {
    match device {
        Device::Cpu => Ok(Box::new(CpuSlots::new(capacity, shape, weight_type)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Ok(Box::new(crate::CudaSlots::new(capacity, shape, weight_type, device)?)),
        _ => Err(OffloadError::Device { device: format!("{:?}", device.location()) }),
    }
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

/// Where the residents of a profile lie in caches that were made warm by it, by the numbers of their pools.
fn residents(profile: &ResidentProfile, pools: &[Pool], capacities: &[usize]) -> Result<Vec<(usize, Hit)>> {
    // A cache tells slots by its plans. Asking the banks' caches would tell their policies, so others are asked.
    let cache = |(pool, &capacity): (&Pool, &usize)| {
        ExpertCache::new(Lru::new(pool.universe()), pool.universe(), capacity, Oversize::Waves)
    };
    let mut caches = pools.iter().zip(capacities).map(cache).collect::<Result<Vec<_>, _>>()?;
    profile.warm(pools, &mut caches)?;
    let mut residents = Vec::new();
    for (number, cache) in caches.iter_mut().enumerate() {
        let resident = cache.resident().clone();
        residents.extend(cache.request(&resident)?.hits().iter().map(|&hit| (number, hit)));
    }
    Ok(residents)
}

impl ExpertBank for OffloadedExperts {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        let experts = self.store.shape().experts;
        let layers = self.places.len();
        let &(number, first_key) =
            self.places.get(layer.index()).ok_or(OffloadError::LayerOutOfRange { layer, layers })?;
        let dispatch = Dispatch::new(layer, hidden, routes, experts)?;
        if routes.tokens() == 0 {
            return Ok(hidden.clone());
        }
        let mut cache = self.cache(number, layer)?;
        let PoolCache { cache, slots, request } = &mut *cache;
        want(request, routes, first_key, cache.policy().reads_mass())?;
        let plan = cache.request(request.request(layer, routes.phase()))?.clone();
        if let Some(&key) = plan.bypasses().first().filter(|_| !self.exactness.allows_host(&self.device)) {
            cache.rollback(0);
            let (layer, expert) = self.pools[number].expert(key).expect("a key of the pool");
            return Err(OffloadError::Declined { layer, expert });
        }
        let mut execution = Execution::new(layer, &plan, first_key, &**slots, &*self.store, &dispatch, hidden);
        let result = execution.run();
        let loaded = execution.loaded();
        let (outputs, counters) = execution.finish();
        let mut layer_counters = self.counters[layer.index()].lock().map_err(|_| OffloadError::Poisoned { layer })?;
        let phase = layer_counters.of_mut(routes.phase());
        phase.merge(&counters);
        if let Err(error) = result {
            cache.rollback(loaded);
            return Err(error);
        }
        phase.counts.add(&plan);
        dispatch.combine(outputs, hidden, routes)
    }

    /// Tells the policies of all pools; what is resident stays.
    fn sequence_end(&self) -> Result<()> {
        let pools = self.pools.iter().enumerate();
        let mut caches = pools.map(|(number, pool)| self.cache(number, pool.layers()[0]));
        caches.try_for_each(|cache| cache.map(|mut cache| cache.cache.sequence_end()))
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
