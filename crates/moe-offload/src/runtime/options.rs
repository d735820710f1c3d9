//! What a user chooses about an offloaded bank.

use std::fmt;
use std::time::Duration;

use candle_core::Device;
use expert_cache::{
    EvictionPolicy, MissPolicy, Oversize, Partition, PolicyKind, Pool, Prefetcher, PrefetcherKind, ResidentProfile,
};

use super::capacity::Capacity;
use super::exactness::Exactness;
use super::read_ahead_queue::ReadAheadOptions;
use super::transfers::Transfers;
use crate::error::Result;

/// Makes the policy of a pool of so many slots.
pub(super) type MakePolicy<'a> = dyn FnMut(&Pool, usize) -> expert_cache::Result<Box<dyn EvictionPolicy>> + 'a;

/// Choices for [`OffloadedExperts`](crate::OffloadedExperts): a capacity, and what is not to stay as it is by default.
///
/// By default every layer has its own pool under LRU, every miss is loaded, a request larger than its pool runs in waves,
/// and outputs are those of a resident bank bit for bit.
///
/// ```
/// use expert_cache::{Oversize, PolicyKind};
/// use moe_offload::{Capacity, Exactness, OffloadOptions};
///
/// let few_slots_a_layer = OffloadOptions::slots(8);
/// let half_of_memory = OffloadOptions::new(Capacity::Bytes(12 << 30))
///     .policy(PolicyKind::Lfu)
///     .oversize(Oversize::Bypass)
///     .exactness(Exactness::Tolerant);
/// # drop((few_slots_a_layer, half_of_memory));
/// ```
pub struct OffloadOptions<'a> {
    pub(super) capacity: Capacity,
    pub(super) partition: Option<Partition>,
    pub(super) policy: Box<MakePolicy<'a>>,
    /// A policy of this kind may decline loads.
    pub(super) bypassing: Option<PolicyKind>,
    pub(super) oversize: Oversize,
    pub(super) misses: MissPolicy,
    pub(super) prefill_quota: Option<u64>,
    pub(super) profile: Option<ResidentProfile>,
    pub(super) exactness: Exactness,
    pub(super) transfers: Transfers,
    pub(super) prefetch: Option<PrefetchOptions>,
    pub(super) read_ahead: Option<ReadAheadOptions>,
    pub(super) timeline_events: usize,
    pub(super) load_timeout: Option<Duration>,
}

/// Who predicts, and how many of the best predictions of a request are considered.
pub(super) struct PrefetchOptions {
    pub(super) prefetcher: ChosenPrefetcher,
    pub(super) per_request: usize,
}

pub(super) enum ChosenPrefetcher {
    /// To be made for the model of the bank.
    Kind {
        kind: PrefetcherKind,
        ahead: usize,
    },
    Made(Box<dyn Prefetcher>),
}

impl<'a> OffloadOptions<'a> {
    /// Chooses a capacity.
    pub fn new(capacity: Capacity) -> OffloadOptions<'a> {
        OffloadOptions {
            capacity,
            partition: None,
            policy: of_kind(PolicyKind::Lru),
            bypassing: None,
            oversize: Oversize::Waves,
            misses: MissPolicy::Load,
            prefill_quota: None,
            profile: None,
            exactness: Exactness::Strict,
            transfers: Transfers::Inline,
            prefetch: None,
            read_ahead: None,
            timeline_events: 0,
            load_timeout: None,
        }
    }

    /// Chooses so many slots a pool, which is a layer unless another [`partition`](Self::partition) is chosen.
    pub fn slots(slots: usize) -> OffloadOptions<'a> {
        OffloadOptions::new(Capacity::Slots(slots))
    }

    /// Chooses which layers share a pool; a partition of the geometry that traces of the model have makes
    /// [residents](Self::warm) exchangeable with simulations of it.
    pub fn partition(mut self, partition: Partition) -> OffloadOptions<'a> {
        self.partition = Some(partition);
        self
    }

    /// Chooses the policy of every pool among those that need not know the future.
    pub fn policy(mut self, kind: PolicyKind) -> OffloadOptions<'a> {
        self.policy = of_kind(kind);
        self.bypassing = kind.needs().bypass.then_some(kind);
        self
    }

    /// Makes the policy of each pool from the pool and its slots.
    pub fn policy_with(
        mut self,
        make: impl FnMut(&Pool, usize) -> expert_cache::Result<Box<dyn EvictionPolicy>> + 'a,
    ) -> OffloadOptions<'a> {
        self.policy = Box::new(make);
        self.bypassing = None;
        self
    }

    /// Chooses what happens to requests that are larger than their pool.
    pub fn oversize(mut self, oversize: Oversize) -> OffloadOptions<'a> {
        self.oversize = oversize;
        self
    }

    /// Chooses how misses are served: loaded, computed on the host, or the cheaper of the two
    /// ([`MissSeconds`](crate::MissSeconds) prices them).
    pub fn misses(mut self, misses: MissPolicy) -> OffloadOptions<'a> {
        self.misses = misses;
        self
    }

    /// Keeps prefill from flushing what decode uses: see
    /// [`ExpertCache::with_prefill_quota`](expert_cache::ExpertCache::with_prefill_quota).
    pub fn prefill_quota(mut self, slots: u64) -> OffloadOptions<'a> {
        self.prefill_quota = Some(slots);
        self
    }

    /// Loads the residents of an earlier run, or of a simulation, before the first call.
    pub fn warm(mut self, profile: ResidentProfile) -> OffloadOptions<'a> {
        self.profile = Some(profile);
        self
    }

    /// Chooses how closely outputs agree with those of a resident bank.
    pub fn exactness(mut self, exactness: Exactness) -> OffloadOptions<'a> {
        self.exactness = exactness;
        self
    }

    /// Chooses who copies experts into slots.
    pub fn transfers(mut self, transfers: Transfers) -> OffloadOptions<'a> {
        self.transfers = transfers;
        self
    }

    /// Considers, after every request, the `per_request` best predictions for the layer that is executed `ahead` layers
    /// later, and loads those that are absent while the running layer computes.
    pub fn prefetch(self, kind: PrefetcherKind, ahead: usize, per_request: usize) -> OffloadOptions<'a> {
        self.chosen_prefetcher(ChosenPrefetcher::Kind { kind, ahead }, per_request)
    }

    /// As [`prefetch`](Self::prefetch), with a prefetcher that was made for the model.
    pub fn prefetch_with(self, prefetcher: Box<dyn Prefetcher>, per_request: usize) -> OffloadOptions<'a> {
        self.chosen_prefetcher(ChosenPrefetcher::Made(prefetcher), per_request)
    }

    fn chosen_prefetcher(mut self, prefetcher: ChosenPrefetcher, per_request: usize) -> OffloadOptions<'a> {
        self.prefetch = Some(PrefetchOptions { prefetcher, per_request });
        self
    }

    /// Reads ahead, after every request, up to `per_request` experts without giving slots to them: of the predictions, those
    /// ranked directly behind the ones that [`prefetch`](Self::prefetch) considers for slots, unless they are in slots.
    /// `threads` threads bring them from disk into host memory as [`ReadAhead`](crate::ReadAhead) does: into a
    /// [`HostCache`](crate::HostCache), or through the page cache if the store reads through it. A store that reads past the
    /// page cache ([`FileReads::Direct`](crate::FileReads)) without such a cache before it does nothing, nor does one
    /// without a disk.
    ///
    /// Outputs, hits of slots and loads into slots stay as they are. Which experts are in host memory then depends on timing,
    /// so that no simulation tells the hits of a `HostCache`. A call waits for no wish: one that finds the queue full, which
    /// holds `per_request` experts, is dropped. A load waits for the read of its own expert if that is under way, and shares
    /// the disk with the others; one that fails is left to the load.
    ///
    /// Needs a prefetcher, which may consider 0 predictions for slots.
    pub fn read_ahead(mut self, threads: usize, per_request: usize) -> OffloadOptions<'a> {
        self.read_ahead = Some(ReadAheadOptions { threads, per_request });
        self
    }

    /// Lets a call fail with [`OffloadError::SlowLoad`](crate::OffloadError::SlowLoad) when it has waited that long without
    /// an expert arriving. Only where other threads load: the calling thread cannot leave a load that it executes, so that
    /// it executes none. A load that is given up still occupies its slot until it ends, and dropping the bank waits for it.
    pub fn load_timeout(mut self, load_timeout: Duration) -> OffloadOptions<'a> {
        self.load_timeout = Some(load_timeout);
        self
    }

    /// Records the first `events` activities of the bank's threads: see
    /// [`OffloadedExperts::timeline`](crate::OffloadedExperts::timeline).
    pub fn record_timeline(mut self, events: usize) -> OffloadOptions<'a> {
        self.timeline_events = events;
        self
    }

    /// Refuses what does not go together on a device.
    pub(super) fn check(&self, device: &Device) -> Result<()> {
        self.exactness.check(device.is_cpu(), self.oversize, &self.misses, self.bypassing)
    }
}

fn of_kind(kind: PolicyKind) -> Box<MakePolicy<'static>> {
    Box::new(move |pool, slots| kind.build(pool.shape(), slots, None))
}

impl fmt::Debug for OffloadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OffloadOptions")
            .field("capacity", &self.capacity)
            .field("oversize", &self.oversize)
            .field("misses", &self.misses)
            .field("exactness", &self.exactness)
            .field("transfers", &self.transfers)
            .finish_non_exhaustive()
    }
}
