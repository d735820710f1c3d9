//! Counts and times of one layer of a cache in host memory.

use std::time::Duration;

use crate::report::{HostCounters, HostReport, Times};

/// Counters of one layer, and a histogram of its loads.
#[derive(Debug, Default)]
pub(super) struct HostMeter {
    counters: HostCounters,
    load: Times,
}

impl HostMeter {
    pub(super) fn counters(&self) -> &HostCounters {
        &self.counters
    }

    /// An expert was there.
    pub(super) fn hit(&mut self, bytes: u64) {
        self.counters.hits += 1;
        self.counters.hit_bytes += bytes;
    }

    /// An expert was used from the store below.
    pub(super) fn bypassed(&mut self, bytes: u64) {
        self.counters.bypasses += 1;
        self.counters.loaded_bytes += bytes;
    }

    /// A load has ended; `ahead` if nobody had wanted it when it began.
    pub(super) fn loaded(&mut self, success: bool, ahead: bool, bytes: u64, time: Duration) {
        self.counters.load_seconds += time.as_secs_f64();
        match success {
            true => {
                self.counters.loads += 1;
                self.counters.ahead += u64::from(ahead);
                self.counters.loaded_bytes += bytes;
            }
            false => self.counters.failed_loads += 1,
        }
        self.load.add(time);
    }

    pub(super) fn merge(&mut self, other: &HostMeter) {
        self.counters.merge(&other.counters);
        self.load.merge(&other.load);
    }

    pub(super) fn report(&self) -> HostReport {
        HostReport { counters: self.counters, load: self.load.latency() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_merge_into_the_latencies_of_all_their_loads() {
        let mut layers = [HostMeter::default(), HostMeter::default()];
        layers[0].hit(5);
        layers[0].loaded(true, true, 5, Duration::from_millis(1));
        layers[0].loaded(false, true, 5, Duration::from_millis(30));
        layers[1].bypassed(7);
        (0..98).for_each(|_| layers[1].loaded(true, false, 7, Duration::from_millis(2)));
        let mut all = HostMeter::default();
        layers.iter().for_each(|layer| all.merge(layer));
        let HostReport { counters, load } = all.report();
        let expected = HostCounters {
            hits: 1,
            hit_bytes: 5,
            loads: 99,
            ahead: 1,
            bypasses: 1,
            loaded_bytes: 5 + 99 * 7,
            failed_loads: 1,
            load_seconds: counters.load_seconds,
        };
        assert_eq!(counters, expected);
        assert!((counters.load_seconds - 0.227).abs() < 1e-9, "{counters:?}");
        let close = |seconds: f64, expected: f64| (seconds / expected - 1.0).abs() < 0.01;
        assert_eq!((load.samples, layers[0].report().load.samples), (100, 2));
        assert!(close(load.p50_seconds, 0.002) && close(load.p99_seconds, 0.002), "{load:?}");
        assert!(close(load.max_seconds, 0.030), "{load:?}");
    }
}
