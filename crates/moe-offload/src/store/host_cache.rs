//! A bounded part of host memory between the disk and the slots.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use expert_cache::{Load, PolicyKind, SlotId};
use moe_trace::{ExpertId, LayerId};

use super::expert_store::ExpertStore;
use super::host_meter::HostMeter;
use super::host_requests::{HostRequests, key};
use crate::error::Result;
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent};
use crate::report::{HostCounters, HostReports};

/// An [`ExpertStore`] that keeps the experts of a slower one in host memory, within a number of bytes and under a policy
/// of `expert_cache`.
///
/// All layers share the bytes. The policy sees only what a bank does not find in its slots, and what is read ahead and not
/// here, one by one, as decoded tokens without router mass. [`HostSimulation`](crate::HostSimulation) predicts the hits. An
/// expert may be in a slot and here. While an expert that leaves is still being read, or was [fetched](ExpertStore::fetch), its memory is freed when
/// nobody uses it any more.
///
/// A store below that reads through the page cache would hold the same experts once more:
/// [`FileReads::Direct`](crate::FileReads) does not.
///
/// ```
/// use std::sync::Arc;
/// use expert_cache::PolicyKind;
/// use moe_offload::{ExpertShape, ExpertStore, HostCache, RandomExperts, WeightType};
/// use moe_trace::{ExpertId, LayerId};
///
/// let shape = ExpertShape { layers: 1, experts: 4, hidden: 8, intermediate: 8 };
/// let below = Arc::new(RandomExperts::new(shape, WeightType::F32, 0)?);
/// let expert_bytes = 3 * 8 * 8 * 4;
/// let cache = HostCache::new(below, 2 * expert_bytes, PolicyKind::Lru)?;
/// for expert in [0, 1, 0, 2, 0, 1] {
///     cache.fetch(LayerId(0), ExpertId(expert))?;
/// }
/// let counters = cache.counters()[0];
/// assert_eq!((counters.hits, counters.loads, counters.loaded_bytes), (2, 4, 4 * expert_bytes));
/// # Ok::<(), moe_offload::OffloadError>(())
/// ```
#[derive(Debug)]
pub struct HostCache {
    store: Arc<dyn ExpertStore>,
    books: Mutex<Books>,
    /// A load has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct Books {
    requests: HostRequests,
    /// `[layers x experts]`
    places: Vec<Held>,
    /// Of each layer.
    types: Vec<ExpertTypes>,
    /// Memory that no expert is in yet.
    spare: Vec<ExpertWeights>,
    /// Number of the last load that began.
    loads: u64,
    /// Of each layer.
    meters: Vec<HostMeter>,
}

/// Where the weights of an expert are.
#[derive(Debug)]
enum Held {
    Below,
    /// On their way, by the load of this number.
    Coming(u64),
    Here {
        weights: Arc<ExpertWeights>,
        /// Somebody may compute with them whenever he likes, so that they are never overwritten.
        lent: bool,
    },
}

/// A load that has begun.
struct Begun {
    number: u64,
    /// Its place in the cache's books.
    slot: SlotId,
    /// Weights of the same types that nobody needs any more.
    storage: Option<ExpertWeights>,
}

/// What to do about an expert that is wanted.
enum Step {
    Use(Arc<ExpertWeights>),
    Load(Begun),
    /// Use it from the store below.
    Pass,
}

impl HostCache {
    /// Caches the experts of a store in at most `bytes` of host memory, and up to 12 KiB for each quantized projection. An
    /// expert that somebody still uses or was lent counts as gone when it has left.
    ///
    /// # Errors
    /// [`OffloadError::Size`](crate::OffloadError::Size) for a shape that no model has;
    /// [`OffloadError::Cache`](crate::OffloadError::Cache) if the largest expert does not fit, or for a policy that knows
    /// the future.
    pub fn new(store: Arc<dyn ExpertStore>, bytes: u64, policy: PolicyKind) -> Result<HostCache> {
        store.check()?;
        let shape = store.shape();
        let books = Books {
            requests: HostRequests::new(shape, store.weight_types(), bytes, policy)?,
            places: (0..shape.layers * shape.experts).map(|_| Held::Below).collect(),
            types: store.weight_types().to_vec(),
            spare: Vec::new(),
            loads: 0,
            meters: (0..shape.layers).map(|_| HostMeter::default()).collect(),
        };
        Ok(HostCache { store, books: Mutex::new(books), ended: Condvar::new() })
    }

    /// Takes all its memory at once, so that no load waits for the operating system to find some. Where layers have experts
    /// of several types, nobody knows how many of each will come, and loads take it as they need it.
    ///
    /// # Errors
    /// [`OffloadError::HostMemory`](crate::OffloadError::HostMemory) for memory that cannot be had.
    pub fn allocate(self) -> Result<HostCache> {
        let mut books = self.lock();
        let types = books.types[0];
        if books.types.iter().all(|&other| other == types) {
            let bytes = books.requests.cache.capacity_bytes();
            let here = books.places.iter().filter(|place| !matches!(place, Held::Below)).count();
            let missing = books.requests.cache.sizes().most_within(bytes).saturating_sub(here + books.spare.len());
            for _ in 0..missing {
                // Each in memory of its own: one that is lent and leaves must not keep the others'.
                books.spare.push(ExpertWeights::zero(self.store.shape(), types)?);
            }
        }
        drop(books);
        Ok(self)
    }

    /// Counters of each layer since the cache was made.
    pub fn counters(&self) -> Vec<HostCounters> {
        self.lock().meters.iter().map(|meter| *meter.counters()).collect()
    }

    /// Counters and latencies since the cache was made.
    pub fn reports(&self) -> HostReports {
        let books = self.lock();
        let mut total = HostMeter::default();
        books.meters.iter().for_each(|meter| total.merge(meter));
        HostReports { layers: books.meters.iter().map(HostMeter::report).collect(), total: total.report() }
    }

    /// Bytes that experts may take.
    pub fn capacity_bytes(&self) -> u64 {
        self.lock().requests.cache.capacity_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing that is locked panics, unless a policy does; then what it says counts.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weights of an expert, after they were loaded if need be; `None` if they are to be used from the store below.
    fn obtain(&self, layer: LayerId, expert: ExpertId, purpose: Purpose) -> Result<Option<Arc<ExpertWeights>>> {
        let index = self.store.shape().index(layer, expert)?;
        let mut books = self.lock();
        while matches!(books.places[index], Held::Coming(_)) {
            books = self.ended.wait(books).unwrap_or_else(PoisonError::into_inner);
        }
        match books.step(layer, index, purpose)? {
            Step::Use(weights) => Ok(Some(weights)),
            Step::Pass => Ok(None),
            Step::Load(begun) => {
                drop(books);
                self.load((layer, expert), index, begun, purpose).map(Some)
            }
        }
    }

    fn load(
        &self,
        (layer, expert): (LayerId, ExpertId),
        index: usize,
        begun: Begun,
        purpose: Purpose,
    ) -> Result<Arc<ExpertWeights>> {
        /// Ends a load whatever happens to it.
        struct Ending<'a> {
            cache: &'a HostCache,
            layer: LayerId,
            index: usize,
            number: u64,
            slot: SlotId,
            started: Instant,
            purpose: Purpose,
            arrived: Option<Arc<ExpertWeights>>,
        }
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                let time = self.started.elapsed();
                let load = (self.number, self.slot);
                self.cache.lock().ended((self.layer, self.index), load, (self.purpose, time), self.arrived.take());
                self.cache.ended.notify_all();
            }
        }
        let ahead = purpose == Purpose::Foresight;
        let _span = tracing::trace_span!("host load", layer = layer.0, expert = expert.0, ahead).entered();
        let Begun { number, slot, storage } = begun;
        let mut ending =
            Ending { cache: self, layer, index, number, slot, started: Instant::now(), purpose, arrived: None };
        let types = self.store.weight_types()[layer.index()];
        let mut weights = match storage {
            Some(storage) => storage,
            None => ExpertWeights::zero(self.store.shape(), types)?,
        };
        self.store.load_into(layer, expert, &mut weights)?;
        let weights = Arc::new(weights);
        ending.arrived = Some(Arc::clone(&weights));
        Ok(weights)
    }

    /// Counts bytes that were used from the store below.
    fn passed(&self, layer: LayerId) {
        let bytes = self.expert_bytes(layer);
        self.lock().meters[layer.index()].bypassed(bytes);
    }

    fn expert_bytes(&self, layer: LayerId) -> u64 {
        self.store.shape().expert_bytes(self.store.weight_types()[layer.index()]) as u64
    }
}

/// What an expert is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Copy,
    Compute,
    /// For later.
    Foresight,
}

impl Books {
    /// Decides about an expert that is not on its way.
    fn step(&mut self, layer: LayerId, index: usize, purpose: Purpose) -> Result<Step> {
        let bytes = self.requests.bytes(index);
        let here = matches!(self.places[index], Held::Here { .. });
        if !(here && purpose == Purpose::Foresight) {
            self.requests.want(layer, index)?;
        }
        if let Held::Here { weights, lent } = &mut self.places[index] {
            *lent |= purpose == Purpose::Compute;
            if purpose != Purpose::Foresight {
                self.meters[layer.index()].hit(bytes);
            }
            return Ok(Step::Use(Arc::clone(weights)));
        }
        let plan = self.requests.cache.plan();
        let Some(&Load { slot, .. }) = plan.loads().first() else { return Ok(Step::Pass) };
        let experts = self.places.len() / self.types.len();
        let mut storage = None;
        for gone in plan.evictions() {
            let left = std::mem::replace(&mut self.places[gone.key.index()], Held::Below);
            if let Held::Here { weights, lent: false } = left
                && self.types[gone.key.index() / experts] == self.types[layer.index()]
            {
                storage = Arc::into_inner(weights).or(storage);
            }
        }
        let storage = storage.or_else(|| self.spare.pop());
        self.loads += 1;
        self.places[index] = Held::Coming(self.loads);
        Ok(Step::Load(Begun { number: self.loads, slot, storage }))
    }

    /// A load has ended, well if weights have arrived.
    fn ended(
        &mut self,
        (layer, index): (LayerId, usize),
        (number, slot): (u64, SlotId),
        (purpose, time): (Purpose, Duration),
        arrived: Option<Arc<ExpertWeights>>,
    ) {
        let bytes = self.requests.bytes(index);
        self.meters[layer.index()].loaded(arrived.is_some(), purpose == Purpose::Foresight, bytes, time);
        // Another load may have taken its room meanwhile.
        if matches!(self.places[index], Held::Coming(running) if running == number) {
            self.places[index] = match arrived {
                Some(weights) => Held::Here { weights, lent: purpose == Purpose::Compute },
                None => {
                    self.requests.cache.forget(key(index), slot);
                    Held::Below
                }
            };
        }
    }
}

impl ExpertStore for HostCache {
    fn shape(&self) -> ExpertShape {
        self.store.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.store.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        match self.obtain(layer, expert, Purpose::Compute)? {
            Some(weights) => Ok((*weights).clone()),
            None => {
                let weights = self.store.fetch(layer, expert)?;
                self.passed(layer);
                Ok(weights)
            }
        }
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        match self.obtain(layer, expert, Purpose::Copy)? {
            Some(weights) => lend.weights(&weights),
            None => {
                let lent = self.store.lend(layer, expert, lend)?;
                self.passed(layer);
                Ok(lent)
            }
        }
    }

    fn read_ahead(&self, layer: LayerId, expert: ExpertId) -> Result<()> {
        self.obtain(layer, expert, Purpose::Foresight).map(drop)
    }

    fn host_reports(&self) -> Option<HostReports> {
        Some(self.reports())
    }
}
