//! Expected uses, counted anew over the requests of all sequences.

use moe_trace::ExpertSet;

use super::{Textbook, take};
use crate::policy::PoolShape;
use crate::request::Request;

/// The requests of a sequence.
type Sequence = Vec<Vec<usize>>;

/// The activation-aware policy: nothing but the requests is kept.
///
/// Rates, cosines and expected uses are rounded like the policy's: the same quotients in `f32`, and products of vectors
/// summed in the order of requests. Many are equal by their definition, where another rounding would choose otherwise.
#[derive(Debug)]
pub(super) struct Similarity {
    shape: PoolShape,
    remembered: usize,
    past: Vec<Sequence>,
    running: Sequence,
    residents: Vec<usize>,
}

#[expect(clippy::cast_precision_loss, reason = "short sequences")]
fn uses(sequence: &[Vec<usize>], expert: usize) -> f32 {
    sequence.iter().filter(|wanted| wanted.contains(&expert)).count() as f32
}

impl Similarity {
    pub(super) fn new(shape: PoolShape, remembered: usize) -> Similarity {
        Similarity { shape, remembered, past: Vec::new(), running: Vec::new(), residents: Vec::new() }
    }

    /// Uses of an expert a token.
    #[expect(clippy::cast_precision_loss, reason = "short sequences")]
    fn rate(&self, sequence: &Sequence, expert: usize) -> f32 {
        uses(sequence, expert) / (sequence.len() as f32 / self.shape.layers as f32)
    }

    /// Cosine between the uses in a past sequence and those in `requests`, times the length of the latter, which all
    /// cosines that are compared have in common; 0 if no expert is used in both.
    fn similarity(&self, sequence: &Sequence, requests: &[Vec<usize>]) -> f32 {
        let rates: Vec<f32> = (0..self.shape.universe()).map(|expert| self.rate(sequence, expert)).collect();
        let length = rates.iter().map(|rate| rate * rate).sum::<f32>().sqrt();
        let product: f32 = requests.iter().flatten().map(|&expert| rates[expert]).sum();
        if product > 0.0 { product / length } else { 0.0 }
    }

    /// The remembered sequence that is most similar to what whole tokens of the running one used; of those, the last.
    fn nearest(&self) -> Option<&Sequence> {
        let tokens = self.running.len() / self.shape.layers;
        let known = &self.running[..tokens * self.shape.layers];
        let remembered = self.past.iter().rev().take(self.remembered).rev();
        remembered.max_by(|a, b| self.similarity(a, known).total_cmp(&self.similarity(b, known)))
    }

    /// When an expert was requested last, in requests of all sequences.
    fn last_request(&self, expert: usize) -> Option<usize> {
        let requests: Vec<&Vec<usize>> = self.past.iter().flatten().chain(&self.running).collect();
        requests.iter().rposition(|wanted| wanted.contains(&expert))
    }
}

impl Textbook for Similarity {
    fn begin(&mut self, request: &Request<'_>) {
        self.running.push(request.wanted().iter().collect());
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.residents.contains(&expert)
    }

    fn hit(&mut self, _expert: usize) {}

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let nearest = self.nearest();
        let expected = |expert: usize| {
            let rate = nearest.map_or(0.0, |sequence| self.rate(sequence, expert));
            uses(&self.running, expert) + 16.0 * rate
        };
        let order = |expert: usize| (self.last_request(expert), expert);
        let evictable = self.residents.iter().copied().filter(|&expert| !pinned.contains(expert));
        let victim = evictable.min_by(|&a, &b| expected(a).total_cmp(&expected(b)).then(order(a).cmp(&order(b))))?;
        take(&mut self.residents, victim);
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.residents.push(expert);
    }

    fn sequence_end(&mut self) {
        if !self.running.is_empty() {
            self.past.push(std::mem::take(&mut self.running));
        }
    }
}
