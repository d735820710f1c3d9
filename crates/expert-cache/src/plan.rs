//! What a cache decides for one request.

use crate::{ExpertKey, SlotId};

/// An expert that is resident already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The expert.
    pub key: ExpertKey,
    /// Where it is.
    pub slot: SlotId,
}

/// An expert that must be copied into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The expert.
    pub key: ExpertKey,
    /// Where it goes.
    pub slot: SlotId,
    /// Who was there.
    pub evicted: Option<ExpertKey>,
}

/// Decisions for one request: every wanted expert is hit, loaded or bypassed, exactly once.
///
/// The plan is executed wave by wave. Experts of a wave are resident together; a later wave may load into a slot of an
/// earlier one. All hits belong to the first wave. Bypassed experts are served without a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub(crate) hits: Vec<Hit>,
    pub(crate) loads: Vec<Load>,
    /// End of each wave among the loads; at least one wave.
    pub(crate) wave_ends: Vec<usize>,
    pub(crate) bypasses: Vec<ExpertKey>,
}

impl Plan {
    /// Experts resident before the request, in ascending order.
    pub fn hits(&self) -> &[Hit] {
        &self.hits
    }

    /// Experts to load, in order of execution.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Loads of each wave; the first wave also has all hits.
    pub fn waves(&self) -> impl Iterator<Item = &[Load]> {
        let starts = std::iter::once(0).chain(self.wave_ends.iter().copied());
        starts.zip(&self.wave_ends).map(|(start, &end)| &self.loads[start..end])
    }

    /// Experts served without being resident.
    pub fn bypasses(&self) -> &[ExpertKey] {
        &self.bypasses
    }

    pub(crate) fn clear(&mut self) {
        self.hits.clear();
        self.loads.clear();
        self.wave_ends.clear();
        self.bypasses.clear();
    }
}
