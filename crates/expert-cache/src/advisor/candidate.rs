//! One way to cache a model, and how fast it is.

use std::fmt::Display;

use serde::{Serialize, Serializer};

use super::{Layout, Slots};
use crate::{PolicyKind, PrefetchCounts, PrefetcherKind, Speed, WhileLoading};

/// How a model is cached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setup {
    /// Who is evicted.
    #[serde(serialize_with = "name")]
    pub policy: PolicyKind,
    /// What is loaded before it is wanted.
    #[serde(serialize_with = "name")]
    pub prefetcher: PrefetcherKind,
    /// Who computes an expert while it is loaded.
    pub while_loading: WhileLoading,
    /// How slots are spread over layers.
    pub layout: Layout,
    /// The slots.
    pub slots: Slots,
    /// Bytes of all slots.
    pub bytes: u64,
}

impl Setup {
    /// Whether it could be run: nobody knows the requests to come.
    pub fn is_online(&self) -> bool {
        !self.policy.needs_future() && !self.prefetcher.needs_future()
    }
}

/// A setup and what a simulation found of it.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// The setup.
    pub setup: Setup,
    /// Share of the experts wanted by decoded tokens that were resident, in time or not.
    pub hit_rate: f64,
    /// Experts loaded for decoded tokens, prefetches not counted.
    pub loads: u64,
    /// What became of prefetches, in both phases; late ones by the clock.
    pub prefetches: PrefetchCounts,
    /// Predicted speed.
    pub speed: Speed,
}

fn name<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
