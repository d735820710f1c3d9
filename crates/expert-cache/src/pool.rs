//! Pools: the layers whose experts share one cache.

use std::ops::Range;

use moe_trace::{ExpertId, Geometry, LayerId};

use crate::{CacheError, ExpertKey, PoolShape, Result};

/// The experts of some layers of a model, which share one cache.
///
/// The key of an expert is `place of its layer in the pool * experts + expert`; layers are in order of execution.
///
/// ```
/// use expert_cache::{ExpertKey, Pool};
/// use moe_trace::{ExpertId, Geometry, LayerId};
/// let geometry = Geometry::decoder(3, 8, 2)?;
/// let pool = Pool::new(&geometry, [LayerId(2), LayerId(0)])?;
/// assert_eq!(pool.universe(), 16);
/// assert_eq!(pool.key(LayerId(2), ExpertId(5)), Some(ExpertKey(13)));
/// assert_eq!(pool.key(LayerId(1), ExpertId(5)), None);
/// assert_eq!(pool.expert(ExpertKey(13)), Some((LayerId(2), ExpertId(5))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    geometry: Geometry,
    /// Ascending.
    layers: Vec<LayerId>,
}

impl Pool {
    /// Creates the pool of the given layers.
    ///
    /// # Errors
    /// [`CacheError::EmptyPool`], [`CacheError::LayerOutOfRange`], [`CacheError::DuplicateLayer`].
    pub fn new(geometry: &Geometry, layers: impl IntoIterator<Item = LayerId>) -> Result<Pool> {
        let mut layers: Vec<LayerId> = layers.into_iter().collect();
        layers.sort_unstable();
        let last = layers.last().ok_or(CacheError::EmptyPool)?;
        if last.index() >= geometry.layers() {
            return Err(CacheError::LayerOutOfRange { layer: last.index(), layers: geometry.layers() });
        }
        match layers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(CacheError::DuplicateLayer { layer: pair[0].index() }),
            None => Ok(Pool { geometry: geometry.clone(), layers }),
        }
    }

    /// Creates the pool of one layer, where keys are expert ids.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`].
    pub fn layer(geometry: &Geometry, layer: LayerId) -> Result<Pool> {
        Pool::new(geometry, [layer])
    }

    /// Creates the pool of all layers.
    pub fn model(geometry: &Geometry) -> Pool {
        Pool { geometry: geometry.clone(), layers: geometry.layer_ids().collect() }
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Number of experts in the pool.
    pub fn universe(&self) -> usize {
        self.layers.len() * self.geometry.experts()
    }

    /// The pool as policies see it.
    pub fn shape(&self) -> PoolShape {
        PoolShape { layers: self.layers.len(), experts: self.geometry.experts() }
    }

    /// Layers of the pool in order of execution.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// Keys of the experts of a layer, if it belongs to the pool.
    pub fn keys(&self, layer: LayerId) -> Option<Range<usize>> {
        let experts = self.geometry.experts();
        let place = self.layers.binary_search(&layer).ok()?;
        Some(place * experts..(place + 1) * experts)
    }

    /// The key of an expert, if there is one and its layer belongs to the pool.
    pub fn key(&self, layer: LayerId, expert: ExpertId) -> Option<ExpertKey> {
        let mut keys = self.keys(layer)?;
        keys.nth(expert.index()).map(ExpertKey::from_index)
    }

    /// The expert of a key, if it is one of the pool.
    pub fn expert(&self, key: ExpertKey) -> Option<(LayerId, ExpertId)> {
        let experts = self.geometry.experts();
        let layer = *self.layers.get(key.index() / experts)?;
        let expert = u16::try_from(key.index() % experts).expect("a geometry has at most 65535 experts a layer");
        Some((layer, ExpertId(expert)))
    }
}

/// Pools that cover every layer of a model exactly once.
///
/// ```
/// use expert_cache::Partition;
/// use moe_trace::{Geometry, LayerId};
/// let geometry = Geometry::decoder(5, 8, 2)?;
/// let partition = Partition::grouped(&geometry, 2)?;
/// assert_eq!(partition.pools().iter().map(|pool| pool.layers().len()).collect::<Vec<_>>(), [2, 2, 1]);
/// assert_eq!(partition.pool_of(LayerId(3)), Some(1));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pools: Vec<Pool>,
}

impl Partition {
    /// Creates a partition.
    ///
    /// # Errors
    /// [`CacheError::EmptyPool`] without pools, [`CacheError::Geometry`] if they are not of one model,
    /// [`CacheError::DuplicateLayer`], [`CacheError::UncoveredLayer`].
    pub fn new(pools: Vec<Pool>) -> Result<Partition> {
        let order = layers_in_order(&pools)?;
        let covered = order.iter().map(|&(layer, _)| layer);
        let mut all = pools[0].geometry().layer_ids().zip(covered.map(Some).chain(std::iter::repeat(None)));
        match all.find(|&(layer, covered)| covered != Some(layer)) {
            Some((layer, _)) => Err(CacheError::UncoveredLayer { layer: layer.index() }),
            None => Ok(Partition { pools }),
        }
    }

    /// Creates one pool a layer.
    pub fn per_layer(geometry: &Geometry) -> Partition {
        let pool = |layer| Pool { geometry: geometry.clone(), layers: vec![layer] };
        Partition { pools: geometry.layer_ids().map(pool).collect() }
    }

    /// Creates one pool of all layers.
    pub fn global(geometry: &Geometry) -> Partition {
        Partition { pools: vec![Pool::model(geometry)] }
    }

    /// Creates pools of `layers` neighbouring layers each; the last may have fewer.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] for pools of no layer.
    pub fn grouped(geometry: &Geometry, layers: usize) -> Result<Partition> {
        CacheError::at_least_one("layers of a pool", layers)?;
        let all: Vec<LayerId> = geometry.layer_ids().collect();
        let pool = |layers: &[LayerId]| Pool { geometry: geometry.clone(), layers: layers.to_vec() };
        Ok(Partition { pools: all.chunks(layers).map(pool).collect() })
    }

    /// The pools.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The number of the pool that a layer belongs to; `None` if there is no such layer.
    pub fn pool_of(&self, layer: LayerId) -> Option<usize> {
        self.pools.iter().position(|pool| pool.keys(layer).is_some())
    }

    /// The pools, owned.
    pub fn into_pools(self) -> Vec<Pool> {
        self.pools
    }
}

/// The layers of pools in order of execution, each with the number of its pool.
pub(crate) fn layers_in_order(pools: &[Pool]) -> Result<Vec<(LayerId, usize)>> {
    let first = pools.first().ok_or(CacheError::EmptyPool)?;
    if pools.iter().any(|pool| pool.geometry() != first.geometry()) {
        return Err(CacheError::Geometry);
    }
    let layers =
        |(number, pool): (usize, &Pool)| pool.layers().iter().map(|&layer| (layer, number)).collect::<Vec<_>>();
    let mut order: Vec<(LayerId, usize)> = pools.iter().enumerate().flat_map(layers).collect();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(CacheError::DuplicateLayer { layer: pair[0].0.index() }),
        None => Ok(order),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_pools_and_partitions_are_refused() {
        let geometry = Geometry::decoder(3, 4, 1).unwrap();
        let pool = |layers: &[u16]| Pool::new(&geometry, layers.iter().copied().map(LayerId));
        let refusal = |layers: &[u16]| pool(layers).unwrap_err().to_string();
        assert_eq!(refusal(&[]), "a pool has no layer");
        assert_eq!(refusal(&[0, 3]), "layer 3 is out of range, the trace has 3 MoE layers");
        assert_eq!(refusal(&[1, 2, 1]), "layer 1 is in two pools, or twice in one");
        let partition = |pools: &[&[u16]]| {
            Partition::new(pools.iter().map(|layers| pool(layers).unwrap()).collect())
                .map_err(|error| error.to_string())
        };
        assert_eq!(partition(&[]).unwrap_err(), "a pool has no layer");
        assert_eq!(partition(&[&[0, 2]]).unwrap_err(), "layer 1 is in no pool");
        assert_eq!(partition(&[&[0], &[1]]).unwrap_err(), "layer 2 is in no pool");
        assert_eq!(partition(&[&[0, 2], &[1, 2]]).unwrap_err(), "layer 2 is in two pools, or twice in one");
        assert_eq!(partition(&[&[2, 0], &[1]]).unwrap().pool_of(LayerId(2)), Some(0));
        let other = Pool::model(&Geometry::decoder(3, 5, 1).unwrap());
        assert!(matches!(Partition::new(vec![pool(&[0]).unwrap(), other]), Err(CacheError::Geometry)));
        assert!(Partition::grouped(&geometry, 0).is_err());
    }
}
