//! Pools of experts, and dense keys and slots within a pool.

use moe_trace::{ExpertId, Geometry, LayerId};

use crate::PoolShape;

/// An expert within a [`Pool`]: a dense index `0..universe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpertKey(pub u32);

/// A place for one expert in a cache: a dense index `0..capacity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// The experts that share one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pool {
    /// The experts of one layer; the key is the expert's id.
    Layer(LayerId),
    /// The experts of all layers; the key is `layer * experts + expert`.
    Model,
}

impl ExpertKey {
    /// The key as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_index(index: usize) -> ExpertKey {
        ExpertKey(u32::try_from(index).expect("a pool has at most 65535 x 65535 experts"))
    }
}

impl SlotId {
    /// The slot as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Pool {
    /// Number of experts in the pool.
    pub fn universe(self, geometry: &Geometry) -> usize {
        match self {
            Pool::Layer(_) => geometry.experts(),
            Pool::Model => geometry.layers() * geometry.experts(),
        }
    }

    /// The pool as policies see it.
    pub fn shape(self, geometry: &Geometry) -> PoolShape {
        PoolShape { layers: self.layers(geometry).count(), experts: geometry.experts() }
    }

    /// Layers of the pool in order of execution.
    pub fn layers(self, geometry: &Geometry) -> impl Iterator<Item = LayerId> + use<> {
        let (first, count) = match self {
            Pool::Layer(layer) => (layer.0, 1),
            Pool::Model => (0, geometry.layers()),
        };
        (first..).take(count).map(LayerId)
    }

    /// The key of an expert.
    ///
    /// ```
    /// use expert_cache::{ExpertKey, Pool};
    /// use moe_trace::{ExpertId, Geometry, LayerId};
    /// let geometry = Geometry::decoder(3, 8, 2)?;
    /// assert_eq!(Pool::Model.key(&geometry, LayerId(2), ExpertId(5)), ExpertKey(21));
    /// # Ok::<(), moe_trace::TraceError>(())
    /// ```
    pub fn key(self, geometry: &Geometry, layer: LayerId, expert: ExpertId) -> ExpertKey {
        ExpertKey::from_index(match self {
            Pool::Layer(_) => expert.index(),
            Pool::Model => layer.index() * geometry.experts() + expert.index(),
        })
    }
}
