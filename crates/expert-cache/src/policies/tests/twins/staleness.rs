//! Least-stale, from a log of everything that happened.

use std::cmp::Reverse;

use moe_trace::ExpertSet;

use super::{Textbook, take};
use crate::policy::PoolShape;
use crate::request::Request;

/// What happened, in order: a layer ran, an expert was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Run(usize),
    Use(usize),
}

/// Least-stale: when an expert became stale is looked up in the log.
#[derive(Debug)]
pub(super) struct Staleness {
    shape: PoolShape,
    log: Vec<Event>,
    residents: Vec<usize>,
}

impl Staleness {
    pub(super) fn new(shape: PoolShape) -> Staleness {
        Staleness { shape, log: Vec::new(), residents: Vec::new() }
    }

    fn layer(&self, expert: usize) -> usize {
        expert / self.shape.experts
    }

    fn last_use(&self, expert: usize) -> usize {
        self.log.iter().rposition(|&event| event == Event::Use(expert)).expect("a resident was used")
    }

    /// When the expert's layer ran first after the expert's last use; none if it is fresh.
    fn stale_since(&self, expert: usize) -> Option<usize> {
        let run = Event::Run(self.layer(expert));
        let used = self.last_use(expert);
        self.log[used..].iter().position(|&event| event == run).map(|after| used + after)
    }

    /// How many other layers run before the layer of `expert` does, in the cycle that the last run continues.
    fn layers_before(&self, expert: usize) -> usize {
        let run = |event: &Event| if let Event::Run(layer) = event { Some(*layer) } else { None };
        let running = self.log.iter().rev().find_map(run).expect("a layer runs");
        (self.layer(expert) + self.shape.layers - running - 1) % self.shape.layers
    }
}

impl Textbook for Staleness {
    fn begin(&mut self, request: &Request<'_>) {
        let mut layers: Vec<usize> = request.wanted().iter().map(|expert| self.layer(expert)).collect();
        layers.dedup();
        self.log.extend(layers.into_iter().map(Event::Run));
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.residents.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        self.log.push(Event::Use(expert));
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let evictable = || self.residents.iter().copied().filter(|&expert| !pinned.contains(expert));
        let stale = evictable().filter_map(|expert| Some((self.stale_since(expert)?, self.last_use(expert), expert)));
        let fresh = evictable().map(|expert| (Reverse(self.layers_before(expert)), self.last_use(expert), expert));
        let victim = stale.min().map(|stale| stale.2).or_else(|| fresh.min().map(|fresh| fresh.2))?;
        take(&mut self.residents, victim);
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.residents.push(expert);
        self.log.push(Event::Use(expert));
    }
}
