//! What a monitor has seen of one layer.

use serde::{Deserialize, Serialize};

use super::epoch::Epoch;
use crate::{
    experts::{LayerLoad, layer_load},
    srp::SrpValue,
};

/// The recent routing of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerSnapshot {
    /// Recent tokens.
    pub tokens: u64,
    /// Windows that recent tokens completed.
    pub windows: u64,
    /// SRP of the layer's experts pooled over these windows.
    pub srp: SrpValue,
    /// How evenly recent tokens use the experts.
    pub load: LayerLoad,
    /// How far the shares of the experts have moved: half the sum of absolute differences between recent and all earlier
    /// tokens, 0 for no change and 1 for other experts altogether. `None` before anything is earlier.
    pub drift: Option<f64>,
    /// Share of hits of an LRU cache, of the accesses served recently.
    pub lru_hit_rate: f64,
    /// Share of hits of a cache that knows the window ahead (SCH), of the same accesses.
    pub sch_hit_rate: f64,
}

impl LayerSnapshot {
    /// What `recent` says, beside the uses of each expert before.
    pub(super) fn new(recent: &Epoch, earlier: &[u64]) -> LayerSnapshot {
        let rate = |hits: u64| hits as f64 / recent.accesses.max(1) as f64;
        LayerSnapshot {
            tokens: recent.tokens,
            windows: recent.windows,
            srp: SrpValue::from_histogram(&recent.counts),
            load: layer_load(&recent.uses, recent.tokens),
            drift: total_variation(&recent.uses, earlier),
            lru_hit_rate: rate(recent.lru_hits),
            sch_hit_rate: rate(recent.sch_hits),
        }
    }

    /// What knowing the window ahead is worth: the hit rate of SCH above that of LRU.
    pub fn look_ahead_gap(&self) -> f64 {
        self.sch_hit_rate - self.lru_hit_rate
    }
}

/// Half the sum of the absolute differences of shares; `None` if one of the counts is empty.
fn total_variation(a: &[u64], b: &[u64]) -> Option<f64> {
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    let (all_a, all_b) = (sum(a), sum(b));
    if all_a == 0 || all_b == 0 {
        return None;
    }
    let difference = |(a, b): (&u64, &u64)| (*a as f64 / all_a as f64 - *b as f64 / all_b as f64).abs();
    Some(a.iter().zip(b).map(difference).sum::<f64>() / 2.0)
}
