//! Which expert leaves when another must come.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use moe_trace::ExpertSet;

use crate::policies::{Belady, Lfu, LookAhead, Lru};
use crate::{CacheError, ExpertKey, Request, Requests, Result};

/// Chooses whom to evict.
///
/// A cache calls [`step`](Self::step) once a request, before any eviction for it; then, for every expert that must come
/// in, [`victim`](Self::victim) if no slot is free, [`forget`](Self::forget) for the victim and [`admit`](Self::admit)
/// for the newcomer.
///
/// # Panics
/// A policy may panic on an expert outside of the pool it was made for.
pub trait EvictionPolicy: fmt::Debug + Send {
    /// A request is about to be served.
    fn step(&mut self, request: &Request<'_>);

    /// `expert` is resident from now on.
    fn admit(&mut self, expert: ExpertKey);

    /// `expert` is no longer resident.
    fn forget(&mut self, expert: ExpertKey);

    /// The resident expert to evict, none of `pinned`; `None` to bypass instead, or if all are pinned.
    fn victim(&mut self, pinned: &ExpertSet) -> Option<ExpertKey>;

    /// A sequence has ended; the next request is another's.
    fn sequence_end(&mut self) {}
}

impl<P: EvictionPolicy + ?Sized> EvictionPolicy for Box<P> {
    fn step(&mut self, request: &Request<'_>) {
        (**self).step(request);
    }

    fn admit(&mut self, expert: ExpertKey) {
        (**self).admit(expert);
    }

    fn forget(&mut self, expert: ExpertKey) {
        (**self).forget(expert);
    }

    fn victim(&mut self, pinned: &ExpertSet) -> Option<ExpertKey> {
        (**self).victim(pinned)
    }

    fn sequence_end(&mut self) {
        (**self).sequence_end();
    }
}

/// The experts that a policy chooses among: `layers * experts`, keys in the order of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolShape {
    /// Layers that share the pool.
    pub layers: usize,
    /// Experts a layer.
    pub experts: usize,
}

impl PoolShape {
    /// Number of experts in the pool.
    pub fn universe(self) -> usize {
        self.layers * self.experts
    }
}

/// The policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// Least recently used.
    Lru,
    /// Least frequently used.
    Lfu,
    /// Farthest next use; knows the whole future.
    Belady,
    /// Least used in the next `window` requests to each layer; knows that much of the future.
    LookAhead {
        /// Requests looked at, the one being served included: decoded tokens, or whole prefills.
        window: usize,
    },
}

impl PolicyKind {
    /// Whether the policy must know the requests to come.
    pub fn needs_future(self) -> bool {
        matches!(self, PolicyKind::Belady | PolicyKind::LookAhead { .. })
    }

    /// Creates the policy for a cache of `capacity` slots over a pool; `future` are the requests it will see.
    ///
    /// # Errors
    /// [`CacheError::Capacity`] if the capacity is 0 or above the pool, [`CacheError::NeedsFuture`] if the policy needs a future and there is none, [`CacheError::Universe`] if the
    /// future is another pool's, [`CacheError::Window`] for an empty window.
    pub fn build(
        self,
        shape: PoolShape,
        capacity: usize,
        future: Option<&Arc<Requests>>,
    ) -> Result<Box<dyn EvictionPolicy>> {
        let universe = shape.universe();
        if capacity == 0 || capacity > universe {
            return Err(CacheError::Capacity { capacity, experts: universe });
        }
        let future = || {
            let future = future.ok_or(CacheError::NeedsFuture { policy: self })?;
            if future.universe() == universe {
                Ok(future)
            } else {
                Err(CacheError::Universe { found: future.universe(), expected: universe })
            }
        };
        Ok(match self {
            PolicyKind::Lru => Box::new(Lru::new(universe)),
            PolicyKind::Lfu => Box::new(Lfu::new(universe)),
            PolicyKind::Belady => Box::new(Belady::new(future()?)),
            PolicyKind::LookAhead { window } => {
                let future = future()?;
                Box::new(LookAhead::new(Arc::clone(future), window.saturating_mul(future.layers()))?)
            }
        })
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyKind::Lru => f.write_str("lru"),
            PolicyKind::Lfu => f.write_str("lfu"),
            PolicyKind::Belady => f.write_str("belady"),
            PolicyKind::LookAhead { window } => write!(f, "look-ahead-{window}"),
        }
    }
}

impl FromStr for PolicyKind {
    type Err = CacheError;

    fn from_str(name: &str) -> Result<PolicyKind> {
        let window = |name: &str| name.strip_prefix("look-ahead-").and_then(|window| window.parse().ok());
        match name {
            "lru" => Ok(PolicyKind::Lru),
            "lfu" => Ok(PolicyKind::Lfu),
            "belady" => Ok(PolicyKind::Belady),
            _ => window(name)
                .map(|window| PolicyKind::LookAhead { window })
                .ok_or_else(|| CacheError::UnknownPolicy { name: name.to_owned() }),
        }
    }
}

/// The member of `resident` outside `pinned` with the lowest priority; the lowest key on a tie.
pub(crate) fn lowest_priority<K: Ord>(
    resident: &ExpertSet,
    pinned: &ExpertSet,
    priority: impl Fn(usize) -> K,
) -> Option<ExpertKey> {
    let evictable = resident.iter().filter(|&expert| !pinned.contains(expert));
    evictable.min_by_key(|&expert| priority(expert)).map(ExpertKey::from_index)
}
