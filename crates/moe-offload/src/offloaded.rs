//! A bank that holds a few experts on the device and executes plans for the others.

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};
use expert_cache::{EvictionPolicy, ExpertCache, ExpertKey, Oversize, RequestBuffer};
use moe_trace::{EMPTY_SLOT, LayerId};

use crate::dispatch::Dispatch;
use crate::execute::Execution;
use crate::{
    CpuSlots, ExpertBank, ExpertShape, ExpertSlots, ExpertStore, ExpertTypes, LayerCounters, OffloadError, Result,
    Routes,
};

/// An [`ExpertBank`] of one cache a layer: slots on the compute device, all weights in an [`ExpertStore`].
///
/// Hits are computed from their slots, misses are loaded first, and bypassed experts are computed in host memory. The
/// results are bit-identical to [`ResidentExperts`](crate::ResidentExperts) of the same weights whenever host and
/// device compute alike: always on the CPU, and on other devices if nothing is bypassed ([`Oversize::Waves`] and a
/// policy that never bypasses).
///
/// A failed load fails its call and is rolled back; the bank goes on. A policy that knows the future is one request
/// ahead after a failed call: it still chooses valid victims, but no longer the best.
#[derive(Debug)]
pub struct OffloadedExperts {
    store: Arc<dyn ExpertStore>,
    capacity: usize,
    layers: Vec<Mutex<LayerPool>>,
}

#[derive(Debug)]
struct LayerPool {
    cache: ExpertCache<Box<dyn EvictionPolicy>>,
    slots: Box<dyn ExpertSlots>,
    counters: LayerCounters,
    /// Scratch.
    request: RequestBuffer,
}

impl OffloadedExperts {
    /// Allocates `capacity` slots a layer on `device`; `policy` makes the policy of each layer.
    ///
    /// # Errors
    /// [`OffloadError::Cache`] for a capacity of 0 or above the number of experts, or from `policy`;
    /// [`OffloadError::Tensor`] if the device has no room.
    pub fn new(
        store: Arc<dyn ExpertStore>,
        device: &Device,
        capacity: usize,
        oversize: Oversize,
        mut policy: impl FnMut(LayerId) -> expert_cache::Result<Box<dyn EvictionPolicy>>,
    ) -> Result<OffloadedExperts> {
        let shape = store.shape();
        let mut layers = Vec::with_capacity(shape.layers);
        for layer in (0..).take(shape.layers).map(LayerId) {
            let cache = ExpertCache::new(policy(layer)?, shape.experts, capacity, oversize)?;
            let slots = new_slots(capacity, shape, store.weight_types()[layer.index()], device)?;
            let (counters, request) = (LayerCounters::default(), RequestBuffer::new(shape.experts));
            layers.push(Mutex::new(LayerPool { cache, slots, counters, request }));
        }
        Ok(OffloadedExperts { store, capacity, layers })
    }

    /// Counters of each layer since the bank was made.
    ///
    /// # Errors
    /// [`OffloadError::Poisoned`].
    pub fn counters(&self) -> Result<Vec<LayerCounters>> {
        (0..).map(LayerId).take(self.layers.len()).map(|layer| Ok(self.pool(layer)?.counters)).collect()
    }

    /// Slots a layer.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of the slots of all layers.
    pub fn slot_bytes(&self) -> usize {
        let shape = self.store.shape();
        self.store.weight_types().iter().map(|&types| self.capacity * shape.expert_bytes(types)).sum()
    }

    /// Bytes that the experts of all layers have as they are computed.
    pub fn expert_bytes(&self) -> usize {
        let shape = self.store.shape();
        self.store.weight_types().iter().map(|&types| shape.experts * shape.expert_bytes(types)).sum()
    }

    fn pool(&self, layer: LayerId) -> Result<MutexGuard<'_, LayerPool>> {
        let layers = self.layers.len();
        let pool = self.layers.get(layer.index()).ok_or(OffloadError::LayerOutOfRange { layer, layers })?;
        pool.lock().map_err(|_| OffloadError::Poisoned { layer })
    }
}

/// Allocates slots on a device.
pub(crate) fn new_slots(
    capacity: usize,
    shape: ExpertShape,
    types: ExpertTypes,
    device: &Device,
) -> Result<Box<dyn ExpertSlots>> {
    match device {
        Device::Cpu => Ok(Box::new(CpuSlots::new(capacity, shape, types)?)),
        _ => Err(OffloadError::Device { device: format!("{:?}", device.location()) }),
    }
}

impl ExpertBank for OffloadedExperts {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        let experts = self.store.shape().experts;
        let dispatch = Dispatch::new(layer, hidden, routes, experts)?;
        if routes.tokens() == 0 {
            return Ok(hidden.clone());
        }
        let mut pool = self.pool(layer)?;
        let pool = &mut *pool;
        pool.want(routes)?;
        let plan = pool.cache.request(pool.request.request(layer, routes.phase()))?.clone();
        let mut execution = Execution::new(layer, &plan, &*pool.slots, &*self.store, &dispatch, hidden);
        let result = execution.run();
        let loaded = execution.loaded();
        let (outputs, counters) = execution.finish();
        let phase = pool.counters.of_mut(routes.phase());
        phase.merge(&counters);
        if let Err(error) = result {
            pool.cache.rollback(loaded);
            return Err(error);
        }
        phase.counts.add(&plan);
        dispatch.combine(outputs, hidden, routes)
    }

    /// Tells the policies of all layers; what is resident stays.
    fn sequence_end(&self) -> Result<()> {
        let layers = (0..).map(LayerId).take(self.layers.len());
        layers.map(|layer| self.pool(layer)).try_for_each(|pool| pool.map(|mut pool| pool.cache.sequence_end()))
    }
}

impl LayerPool {
    /// Puts the request together that the simulator would replay from a trace of these routes.
    fn want(&mut self, routes: &Routes) -> Result<()> {
        // The weights may lie on a device, and reading them waits for it.
        let reads_mass = self.cache.policy().reads_mass();
        let weights: Option<Vec<f32>> =
            reads_mass.then(|| routes.weights().to_dtype(DType::F32)?.flatten_all()?.to_vec1()).transpose()?;
        self.request.clear();
        for (place, &expert) in routes.experts().iter().enumerate() {
            if place % routes.top_k() == 0 {
                self.request.token();
            }
            if expert != EMPTY_SLOT {
                self.request.want(ExpertKey(expert.into()), weights.as_ref().map(|weights| weights[place]));
            }
        }
        Ok(())
    }
}
