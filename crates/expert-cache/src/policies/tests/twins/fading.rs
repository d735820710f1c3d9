//! LFRU and router mass, summed anew over all requests.

use moe_trace::ExpertSet;

use super::{Textbook, take};
use crate::key::ExpertKey;
use crate::policy::PoolShape;
use crate::request::Request;

/// All requests so far, and what each contributes to its experts.
///
/// A contribution is worth `1 + 1 / memory` times what one is that is a request older, for a memory in requests. That is
/// the order of scores whose old contributions shrink; and, as the older ones are added first and powers are products
/// from the left, every rounding is that of the policies, so that scores are equal where theirs are.
#[derive(Debug)]
pub(super) struct Fading {
    universe: usize,
    growth: f64,
    requests: Vec<Vec<(usize, f64)>>,
}

impl Fading {
    /// No requests yet; `memory` is in tokens.
    #[expect(clippy::cast_precision_loss, reason = "a short memory")]
    pub(super) fn new(shape: PoolShape, memory: usize) -> Fading {
        let growth = 1.0 + 1.0 / (memory * shape.layers) as f64;
        Fading { universe: shape.universe(), growth, requests: Vec::new() }
    }

    pub(super) fn push(&mut self, contributions: impl Iterator<Item = (usize, f64)>) {
        self.requests.push(contributions.collect());
    }

    /// Number of requests.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The score of every expert.
    pub(super) fn scores(&self) -> Vec<f64> {
        let mut scores = vec![0.0; self.universe];
        let mut worth = 1.0;
        for request in &self.requests {
            worth *= self.growth;
            request.iter().for_each(|&(expert, contribution)| scores[expert] += contribution * worth);
        }
        scores
    }
}

/// Evicts the least score: of requests, or of router mass.
#[derive(Debug)]
pub(super) struct LeastScore {
    fading: Fading,
    by_mass: bool,
    residents: Vec<usize>,
}

impl LeastScore {
    pub(super) fn new(fading: Fading, by_mass: bool) -> LeastScore {
        LeastScore { fading, by_mass, residents: Vec::new() }
    }
}

impl Textbook for LeastScore {
    #[expect(clippy::cast_precision_loss, reason = "small requests")]
    fn begin(&mut self, request: &Request<'_>) {
        let wanted = request.wanted();
        let alike = 1.0 / wanted.len() as f64;
        let mass = |expert| request.mass(ExpertKey::from_index(expert)).map_or(alike, f64::from);
        self.fading.push(wanted.iter().map(|expert| (expert, if self.by_mass { mass(expert) } else { 1.0 })));
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.residents.contains(&expert)
    }

    fn hit(&mut self, _expert: usize) {}

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let scores = self.fading.scores();
        let evictable = self.residents.iter().copied().filter(|&expert| !pinned.contains(expert));
        let victim = evictable.min_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)))?;
        take(&mut self.residents, victim);
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.residents.push(expert);
    }
}
