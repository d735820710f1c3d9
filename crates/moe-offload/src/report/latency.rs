//! How long things took, as histograms that merge.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How often.
    pub samples: u64,
    /// The median.
    pub p50_seconds: f64,
    /// Ninety-nine of a hundred took no longer.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

/// Nanoseconds, to two digits.
#[derive(Debug)]
pub(crate) struct Times(Histogram<u32>);

impl Default for Times {
    fn default() -> Times {
        // Two digits are a valid precision, and the histogram grows with what it sees.
        Times(Histogram::new(2).expect("two digits"))
    }
}

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        // One that is told to saturate does not grow.
        self.0.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).expect("it grows");
    }

    pub(crate) fn merge(&mut self, other: &Times) {
        self.0.add(&other.0).expect("both grow");
    }

    #[expect(clippy::cast_precision_loss, reason = "two digits are kept")]
    pub(crate) fn latency(&self) -> Latency {
        let seconds = |nanoseconds: u64| nanoseconds as f64 * 1e-9;
        Latency {
            samples: self.0.len(),
            p50_seconds: seconds(self.0.value_at_quantile(0.5)),
            p99_seconds: seconds(self.0.value_at_quantile(0.99)),
            max_seconds: seconds(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_what_was_timed() {
        let mut times = Times::default();
        (1..=100).for_each(|millisecond| times.add(Duration::from_millis(millisecond)));
        let mut all = Times::default();
        all.merge(&times);
        let latency = all.latency();
        let close = |seconds: f64, expected: f64| (seconds / expected - 1.0).abs() < 0.01;
        assert_eq!(latency.samples, 100);
        assert!(close(latency.p50_seconds, 0.050) && close(latency.p99_seconds, 0.099), "{latency:?}");
        assert!(close(latency.max_seconds, 0.100), "{latency:?}");
    }
}
