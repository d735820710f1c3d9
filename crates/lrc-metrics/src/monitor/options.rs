//! What a monitor watches.

use expert_cache::{CacheError, curve::ColdStart};
use moe_trace::Geometry;
use serde::{Deserialize, Serialize};

use crate::error::{LONGEST_WINDOW, MetricError, Result};

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorOptions {
    /// Window length of SRP and look-ahead of SCH, in tokens.
    pub window: usize,
    /// Slots a layer of the caches.
    pub slots: usize,
    /// Tokens of a layer after which its counts begin to be forgotten.
    pub horizon: u64,
    /// How a first touch counts in the caches.
    pub cold_start: ColdStart,
    /// Sequences that run at once at most; with one more, the one that was idle longest ends.
    pub sequences: usize,
}

impl MonitorOptions {
    /// Windows of 16 tokens, twice as many slots as a token has experts, a horizon of 4,096 tokens, free first touches, 256
    /// sequences.
    ///
    /// ```
    /// use lrc_metrics::MonitorOptions;
    /// assert_eq!(MonitorOptions::new(&moe_trace::Geometry::decoder(2, 64, 8)?).slots, 16);
    /// # Ok::<(), moe_trace::TraceError>(())
    /// ```
    pub fn new(geometry: &Geometry) -> MonitorOptions {
        MonitorOptions {
            window: 16,
            slots: geometry.experts().min(2 * geometry.top_k()),
            horizon: 4096,
            cold_start: ColdStart::Free,
            sequences: 256,
        }
    }

    /// Checks the options for a model.
    pub(super) fn check(&self, geometry: &Geometry) -> Result<()> {
        let (window, experts) = (self.window, geometry.experts());
        if window == 0 {
            return Err(MetricError::Window { window });
        }
        if window > LONGEST_WINDOW {
            return Err(MetricError::WindowLimit { window, limit: LONGEST_WINDOW });
        }
        if self.horizon == 0 {
            return Err(MetricError::Horizon { horizon: 0 });
        }
        if self.sequences == 0 {
            return Err(MetricError::NoRunningSequences);
        }
        if self.slots == 0 || self.slots > experts {
            return Err(CacheError::Capacity { capacity: self.slots, experts }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: MonitorOptions =
        MonitorOptions { window: 2, slots: 1, horizon: 4, cold_start: ColdStart::Free, sequences: 9 };

    #[test]
    fn bad_options_say_why() {
        let geometry = Geometry::decoder(1, 3, 1).unwrap();
        let message = |options: MonitorOptions| options.check(&geometry).unwrap_err().to_string();
        assert_eq!(
            message(MonitorOptions { window: 0, ..OPTIONS }),
            "window length is 0 tokens, it must be at least 1"
        );
        let long = MonitorOptions { window: 4097, ..OPTIONS };
        assert_eq!(message(long), "window length is 4097 tokens, the limit is 4096");
        assert_eq!(message(MonitorOptions { horizon: 0, ..OPTIONS }), "horizon is 0 tokens, it must be at least 1");
        let none = MonitorOptions { sequences: 0, ..OPTIONS };
        assert_eq!(message(none), "number of running sequences is 0, it must be at least 1");
        assert_eq!(message(MonitorOptions { slots: 4, ..OPTIONS }), "capacity is 4 slots, allowed are 1..=3");
    }
}
