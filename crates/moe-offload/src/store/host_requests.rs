//! What a cache in host memory decides, asked for one expert at a time.

use expert_cache::{CacheError, ExpertCache, ExpertKey, ExpertSizes, Oversize, Partition, Plan, PolicyKind, Request};
use moe_trace::{ExpertSet, Geometry, LayerId, Phase};

use crate::error::Result;
use crate::expert::{ExpertShape, ExpertTypes};

/// The cache of a [`HostCache`](crate::HostCache), over all experts of a model, and of its simulation: both make the same
/// requests of it, so that they decide alike.
#[derive(Debug)]
pub(super) struct HostRequests {
    pub(super) cache: ExpertCache,
    /// One expert at a time.
    wanted: ExpertSet,
}

impl HostRequests {
    /// An empty cache of at most `bytes`.
    pub(super) fn new(
        shape: ExpertShape,
        types: &[ExpertTypes],
        bytes: u64,
        policy: PolicyKind,
    ) -> Result<HostRequests> {
        let geometry = Geometry::decoder(shape.layers, shape.experts, 1).map_err(CacheError::from)?;
        let partition = Partition::global(&geometry);
        let pool = &partition.pools()[0];
        let of_layer: Vec<u64> = types.iter().map(|&types| shape.expert_bytes(types) as u64).collect();
        let sizes = ExpertSizes::by_layer(pool, &of_layer)?;
        let bytes = bytes.min(sizes.total());
        let policy = policy.build(pool.shape(), sizes.most_within(bytes).max(1), None)?;
        let wanted = ExpertSet::new(pool.universe());
        Ok(HostRequests { cache: ExpertCache::in_bytes(policy, sizes, bytes, Oversize::Bypass)?, wanted })
    }

    /// Requests the expert of an [index](ExpertShape::index), as a decoded token without router mass does.
    pub(super) fn want(&mut self, layer: LayerId, index: usize) -> Result<&Plan> {
        self.wanted.insert(index);
        let outcome = self.cache.request(Request::new(&self.wanted, layer, Phase::Decode)).map(|_| ());
        self.wanted.remove(index);
        outcome?;
        Ok(self.cache.plan())
    }

    /// Bytes of an expert.
    pub(super) fn bytes(&self, index: usize) -> u64 {
        self.cache.sizes().of(key(index))
    }
}

/// The key of an index.
pub(super) fn key(index: usize) -> ExpertKey {
    ExpertKey(u32::try_from(index).expect("ids of layers and experts are u16"))
}
