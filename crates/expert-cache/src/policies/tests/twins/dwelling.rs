//! Hysteresis, with the request at which every resident was loaded.

use moe_trace::ExpertSet;

use super::Textbook;
use super::fading::Fading;
use crate::policy::PoolShape;
use crate::request::Request;

/// Hysteresis: every resident is asked whether it has dwelt long enough and is clearly weaker than the newcomer.
#[derive(Debug)]
pub(super) struct Dwelling {
    fading: Fading,
    dwell_requests: usize,
    /// Each with the number of the request at which it was loaded.
    residents: Vec<(usize, usize)>,
}

impl Dwelling {
    /// `dwell` is in tokens.
    pub(super) fn new(shape: PoolShape, dwell: usize) -> Dwelling {
        Dwelling { fading: Fading::new(shape, 32), dwell_requests: dwell * shape.layers, residents: Vec::new() }
    }
}

impl Textbook for Dwelling {
    fn begin(&mut self, request: &Request<'_>) {
        self.fading.push(request.wanted().iter().map(|expert| (expert, 1.0)));
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.residents.iter().any(|resident| resident.0 == expert)
    }

    fn hit(&mut self, _expert: usize) {}

    fn evict(&mut self, incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let scores = self.fading.scores();
        let replaceable = |&&(expert, loaded): &&(usize, usize)| {
            let age = self.fading.len() - loaded;
            !pinned.contains(expert) && age > self.dwell_requests && scores[incoming] > 1.25 * scores[expert]
        };
        let replaceable = self.residents.iter().filter(replaceable);
        let &(victim, _) = replaceable.min_by(|a, b| scores[a.0].total_cmp(&scores[b.0]).then(a.0.cmp(&b.0)))?;
        self.residents.retain(|resident| resident.0 != victim);
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.residents.push((expert, self.fading.len()));
    }
}
