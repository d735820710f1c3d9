//! The last pass of a model, layer by layer.

use moe_trace::{ExpertId, Geometry, LayerId};

/// What each layer wanted last, and which layer comes when.
#[derive(Clone, Debug)]
pub(super) struct LastPass {
    ahead: usize,
    /// One entry a layer; empty before its first request and after a sequence has ended.
    wanted: Vec<Vec<ExpertId>>,
}

impl LastPass {
    pub(super) fn new(geometry: &Geometry, ahead: usize) -> LastPass {
        let wanted = geometry.layer_ids().map(|_| Vec::with_capacity(geometry.experts())).collect();
        LastPass { ahead: ahead % geometry.layers(), wanted }
    }

    /// The layer that comes `ahead` layers later, in this pass or the next.
    pub(super) fn target(&self, layer: LayerId) -> LayerId {
        self.at((layer.index() + self.ahead) % self.wanted.len())
    }

    /// The layer that came `ahead` layers earlier, in this pass or the last.
    pub(super) fn source(&self, layer: LayerId) -> LayerId {
        self.at((layer.index() + self.wanted.len() - self.ahead) % self.wanted.len())
    }

    fn at(&self, index: usize) -> LayerId {
        LayerId(u16::try_from(index).expect("a geometry has at most 65535 layers"))
    }

    /// What a layer wanted last.
    pub(super) fn wanted(&self, layer: LayerId) -> &[ExpertId] {
        &self.wanted[layer.index()]
    }

    pub(super) fn set(&mut self, layer: LayerId, experts: &[ExpertId]) {
        let wanted = &mut self.wanted[layer.index()];
        wanted.clear();
        wanted.extend_from_slice(experts);
    }

    pub(super) fn clear(&mut self) {
        self.wanted.iter_mut().for_each(Vec::clear);
    }
}
