//! Router mass that is lost where a simulation leaves experts out.

use serde::{Deserialize, Serialize};

use crate::{Plan, Request};

/// Router mass of requests, where misses may be skipped or substituted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MassCounts {
    /// Mass of all wanted experts.
    pub total: f64,
    /// Mass of experts that were left out.
    pub skipped: f64,
    /// Mass that went to another expert.
    pub substituted: f64,
}

impl MassCounts {
    pub(super) fn add(&mut self, request: &Request<'_>, plan: &Plan) {
        self.total += request.total_mass().unwrap_or_default();
        for skip in plan.skips() {
            let mass = f64::from(request.mass(skip.key).unwrap_or_default());
            *if skip.substitute.is_none() { &mut self.skipped } else { &mut self.substituted } += mass;
        }
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &MassCounts) {
        self.total += other.total;
        self.skipped += other.skipped;
        self.substituted += other.substituted;
    }

    /// Share of the mass that did not go to its expert; 0 without mass.
    pub fn lost(&self) -> f64 {
        if self.total > 0.0 { (self.skipped + self.substituted) / self.total } else { 0.0 }
    }
}
