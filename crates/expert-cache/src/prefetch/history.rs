//! The past pass that began most like the running one.

use moe_trace::{ExpertSet, Geometry, LayerId};

use super::{Prediction, Prefetcher, Routing};
use crate::{CacheError, Result};

/// Expects what followed in the past pass whose layers so far agree most with those of the running one.
///
/// Agreement is the number of (layer, expert) pairs that both passes want, in the layers executed so far; the latest of the
/// best is taken. Predictions beyond the last layer come from the pass after it. State: `passes * layers * experts` bits. A
/// prediction costs O(passes * experts / 64).
///
/// Source: the expert activation matrices that MoE-Infinity matches, arXiv 2401.14361, section 5, by token instead of by
/// sequence.
#[derive(Clone, Debug)]
pub struct HistoryMatch {
    layers: usize,
    ahead: usize,
    /// A ring; each pass has one set a layer. The running pass is one of them.
    passes: Vec<Vec<ExpertSet>>,
    /// Agreement of each pass with the running one.
    agreement: Vec<u64>,
    /// The running pass in the ring.
    running: usize,
    /// Complete passes in the ring.
    complete: usize,
    /// The layer of the running pass that was executed last.
    executed: Option<usize>,
}

impl HistoryMatch {
    /// Remembers `passes` passes (decoded tokens, or whole prefills), and predicts for the layer that is executed `ahead`
    /// layers later.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if one of them is 0, [`CacheError::TooManyPairs`] for very many passes.
    pub fn new(geometry: &Geometry, ahead: usize, passes: usize) -> Result<HistoryMatch> {
        CacheError::at_least_one("layers ahead", ahead)?;
        CacheError::at_least_one("passes of a history", passes)?;
        CacheError::pairs(passes.saturating_add(1), geometry.layers() * geometry.experts(), 1 << 33)?;
        let pass = vec![ExpertSet::new(geometry.experts()); geometry.layers()];
        Ok(HistoryMatch {
            layers: geometry.layers(),
            ahead: ahead % geometry.layers(),
            passes: vec![pass; passes + 1],
            agreement: vec![0; passes + 1],
            running: 0,
            complete: 0,
            executed: None,
        })
    }

    fn begin_pass(&mut self) {
        if self.executed.is_some() {
            self.running = (self.running + 1) % self.passes.len();
            self.complete = (self.complete + 1).min(self.passes.len() - 1);
        }
        self.passes[self.running].iter_mut().for_each(ExpertSet::clear);
        self.agreement.fill(0);
    }

    /// The complete passes in the ring, the latest first.
    fn past(&self) -> impl Iterator<Item = usize> + use<> {
        let (len, running) = (self.passes.len(), self.running);
        (1..=self.complete).map(move |back| (running + len - back) % len)
    }
}

impl Prefetcher for HistoryMatch {
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
        let layer = served.layer.index();
        if self.executed.is_none_or(|executed| layer <= executed) {
            self.begin_pass();
        }
        self.executed = Some(layer);
        let running = &mut self.passes[self.running][layer];
        served.experts.iter().for_each(|expert| _ = running.insert(expert.index()));
        for pass in self.past() {
            self.agreement[pass] += self.passes[pass][layer].intersection_len(&self.passes[self.running][layer]) as u64;
        }
        let Some(best) =
            self.past().reduce(|best, pass| if self.agreement[pass] > self.agreement[best] { pass } else { best })
        else {
            return;
        };
        let target = (layer + self.ahead) % self.layers;
        let pass = if target > layer { best } else { (best + 1) % self.passes.len() };
        let layer = LayerId(u16::try_from(target).expect("a geometry has at most 65535 layers"));
        let expected = self.passes[pass][target].iter().filter_map(|expert| u16::try_from(expert).ok());
        out.extend(expected.map(|expert| Prediction { layer, expert: moe_trace::ExpertId(expert), score: 1.0 }));
    }
}
