//! Which expert leaves when another must come.

use std::fmt;

use moe_trace::ExpertSet;

use crate::{ExpertKey, Request};

/// Chooses whom to evict.
///
/// A cache calls [`on_request`](Self::on_request) once a request, before anything is evicted for it. Then, for every wanted expert
/// that is absent, in ascending order of keys, it asks [`should_admit`](Self::should_admit); if so, and if no slot is free, it asks
/// for a [`victim`](Self::victim) and calls [`on_evict`](Self::on_evict) with it; last it calls [`on_insert`](Self::on_insert). What
/// fails to load is taken back by `on_evict` and `on_insert` outside of this order; a policy may take an expert that returns
/// like that for a new one.
///
/// # Order within a request
/// Policies that keep experts in an order of use treat the wanted ones one by one: first those that are resident, in
/// ascending order of keys, when the request comes; then the others, in ascending order, as they are admitted. The last
/// one is the most recent. Requests for one expert give the textbook policy.
///
/// # Trust
/// A cache does not trust a policy: a [`victim`](Self::victim) that is pinned, absent or outside of the pool is
/// [`CacheError::Victim`](crate::CacheError::Victim), the request is taken back, and the cache goes on. A policy may panic on an
/// expert outside of the pool that it was made for, so a policy should tell its [`universe`](Self::universe): a cache of
/// another pool then refuses it.
pub trait EvictionPolicy: fmt::Debug + Send {
    /// A request is about to be served.
    fn on_request(&mut self, request: &Request<'_>);

    /// Whether a wanted expert that is absent is to be loaded; otherwise it is bypassed, even if a slot is free.
    fn should_admit(&mut self, _expert: ExpertKey) -> bool {
        true
    }

    /// `expert` is resident from now on.
    fn on_insert(&mut self, expert: ExpertKey);

    /// `expert` is no longer resident.
    fn on_evict(&mut self, expert: ExpertKey);

    /// The resident expert to evict for `incoming`, none of `pinned`; `None` to bypass instead, or if all are pinned.
    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey>;

    /// A sequence has ended; the next request is another's.
    fn sequence_end(&mut self) {}

    /// Number of experts of the pool that the policy was made for, if it was made for one.
    fn universe(&self) -> Option<usize> {
        None
    }

    /// A name for errors.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Whether [`on_request`](Self::on_request) reads the router mass of requests; to other policies it need not be given.
    fn needs_router_weights(&self) -> bool {
        false
    }

    /// Asserts the invariants of the policy, and that it takes exactly `resident` for resident.
    #[cfg(test)]
    fn validate(&self, _resident: &ExpertSet) {}
}

impl<P: EvictionPolicy + ?Sized> EvictionPolicy for Box<P> {
    fn on_request(&mut self, request: &Request<'_>) {
        (**self).on_request(request);
    }

    fn should_admit(&mut self, expert: ExpertKey) -> bool {
        (**self).should_admit(expert)
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        (**self).on_insert(expert);
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        (**self).on_evict(expert);
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        (**self).victim(incoming, pinned)
    }

    fn sequence_end(&mut self) {
        (**self).sequence_end();
    }

    fn universe(&self) -> Option<usize> {
        (**self).universe()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn needs_router_weights(&self) -> bool {
        (**self).needs_router_weights()
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        (**self).validate(resident);
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

    /// The layer of every key, counted from the pool's first.
    pub(crate) fn layer_of_keys(self) -> Vec<usize> {
        (0..self.universe()).map(|key| key / self.experts).collect()
    }
}
